"""Reproduce papers: their arms on some seeds, then tables and verdicts (``repro run``, ``repro all``)."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import tyro

from repro.arm import preflight, tasks_of, work
from repro.config import ConfigError, Launch, RunConfig, as_words, parse
from repro.launch.many import default_workers, run_tasks
from repro.launch.overview import cost, measured, plan
from repro.launch.record import remember_command
from repro.launch.slurm import Element, array_script, in_the_queue, split_words, submit
from repro.launch.task import Task
from repro.paper import Paper
from repro.results.claims import next_look
from repro.results.files import read_rows
from repro.results.site import write_site
from repro.results.summary import corrected, merged, summarise
from repro.results.tables import describe, leaderboard, markdown
from repro.scripts import ROOT, find_script, load_script, paper_scripts


@dataclass
class Work:
    """A paper with its settings, and what has come of it so far."""

    paper: Paper
    script: Path
    config: RunConfig
    arms: Sequence[str]
    results: list[dict | None] = field(default_factory=list)
    summary: dict | None = None
    done: int = 0  # seeds

    def tasks(self, launch: Launch, goal: int) -> list[Task]:
        """Those of the seeds that are missing up to ``goal``."""
        seeds = range(launch.first_seed + self.done, launch.first_seed + goal)
        return tasks_of(self.paper, self.script, self.config, self.arms, seeds, launch.out)

    def goal(self, launch: Launch) -> int | None:
        """Seeds to have next: those asked for, or those of the next look while the primary claim is undecided."""
        if launch.until_decided:
            return next_look(self.summary["claims"] if self.summary else (), self.done)
        return None if self.done else launch.seeds

    @property
    def failed(self) -> bool:
        return not all(row and row["status"] == "ok" for row in self.results)


def reproduce(works: Sequence[Work], launch: Launch) -> None:
    """Run what is missing, all papers side by side, and sum it up; with --until-decided, from look to look."""
    while goals := {i: goal for i, w in enumerate(works) if (goal := w.goal(launch)) is not None}:
        tasks = {i: works[i].tasks(launch, goal) for i, goal in goals.items()}
        every = [task for mine in tasks.values() for task in mine]
        made = dict(zip([task.folder for task in every], run_tasks(every, work, launch), strict=True))
        for i, goal in goals.items():
            one = works[i]
            one.results += [made[task.folder] for task in tasks[i]]
            one.done = goal
            if rows := [row for row in one.results if row]:
                card = one.paper.card()
                one.summary = summarise(card, merged(card, rows))
        if all(w.failed for w in works):
            return


def say_plan(works: Sequence[Work], launch: Launch) -> None:
    """Print what is left to do, how long it takes and in how much memory."""
    tasks = [task for w in works for task in w.tasks(launch, w.goal(launch))]
    rows, text = plan(tasks, read_rows(ROOT / "results"), launch.workers or default_workers(launch.device))
    print(markdown(rows), text, sep="\n\n", flush=True)


def elements(works: Sequence[Work], launch: Launch) -> list[Element]:
    """What is neither finished nor in the queue of a cluster, one element for each arm and seed.

    What papers measure on a standard arm comes behind it in the same element.
    """
    out = Path(launch.out).resolve()
    queue, results = in_the_queue(out), measured([*read_rows(ROOT / "results"), *read_rows(out)])
    found: dict[Path, tuple[list[Task], list[tuple[str, ...]]]] = {}
    for w in works:
        seeds = range(launch.first_seed, launch.first_seed + launch.seeds)
        for seed, arm in itertools.product(seeds, w.arms):
            every = tasks_of(w.paper, w.script, w.config, [arm], [seed], str(out))
            left = [task for task in every if not task.finished()]
            if not left or left[0].folder in queue or (left[0].folder in found and len(left) == 1):
                continue
            tasks, commands = found.setdefault(left[0].folder, ([], []))
            tasks += [task for task in left if task not in tasks]
            own = replace(launch, arms=(arm,), first_seed=seed, seeds=1, workers=1, out=str(out), dry_run=False)
            preset = w.config.preset
            settings = as_words(w.config, replace(type(w.config).for_preset(preset), preset=""))
            commands.append(("run", w.script.stem, *settings, *as_words(own, Launch().for_preset(preset))))
    made = []
    for folder, (tasks, commands) in found.items():
        seconds, sizes = zip(*(cost(task, results) for task in tasks), strict=True)
        size = max(sizes) if launch.device == "cpu" else 0  # of a GPU it is the card's
        made.append(Element(folder, tuple(commands), sum(seconds) if all(seconds) else 0, size))
    return made


def hand_over(name: str, works: Sequence[Work], launch: Launch, sbatch: Sequence[str]) -> int:
    """Submit what is missing to Slurm, or with --dry-run print the script."""
    if launch.until_decided:
        raise ConfigError("--until-decided: not with --slurm; say how many --seeds")
    missing, out = elements(works, launch), Path(launch.out).resolve()
    if not missing:
        print("nothing to submit: all is finished or in the queue (repro status)")
        return 0
    script = array_script(f"repro-{name}", missing, out, sbatch, launch.workers)
    if launch.dry_run:
        print(script, end="")
        return 0
    job = submit(script, out)
    print(f"job {job}: {len(missing)} runs submitted; repro status --out {launch.out} shows them")
    return 0


def run(argv: Sequence[str]) -> int:
    """``repro run PAPER``."""
    if not argv or argv[0].startswith("-"):
        raise ConfigError(f"repro run needs a paper; there are {', '.join(paper_scripts())}, and standard")
    script = find_script(argv[0])
    return run_paper(load_script(script), script, argv[1:])


def run_paper(paper: Paper, script: Path, argv: Sequence[str]) -> int:
    """Run a paper's arms and print its table; the last line of standard output is one JSON document."""
    remember_command(["repro", "run", script.stem, *argv])
    argv, sbatch = split_words(argv)
    title = f"{paper.title} (arXiv {paper.arxiv})" if paper.arxiv else paper.title
    config, launch = parse(paper.config, list(argv), f"repro run {script.stem}", title)
    unknown = [arm for arm in launch.arms if arm not in paper.arms]
    if unknown:
        raise ConfigError(f"--arms {' '.join(unknown)}: unknown arm; there are {', '.join(paper.arms)}")
    one = Work(paper, script, config, launch.arms or paper.default_arms)
    if sbatch is not None:
        return hand_over(paper.slug, [one], launch, sbatch)
    if launch.dry_run:
        say_plan([one], launch)
        return 0
    preflight(config)
    reproduce([one], launch)
    if not one.summary:
        return 1
    print("\n" + describe(one.summary) + "\n")
    told = {name: one.summary[name] for name in ("paper", "preset", "seeds", "arms", "claims")}
    print(json.dumps(told | {"status": "failed" if one.failed else "ok"}))
    return 1 if one.failed else 0


@dataclass(frozen=True)
class All:
    """Which papers, and with which settings."""

    papers: tyro.conf.Positional[tuple[str, ...]] = ()
    """Only these papers."""
    preset: Literal["tiny", "smol", "small", "gpu"] = "tiny"
    """Their settings, as in repro run PAPER --help."""


@dataclass(frozen=True)
class Options:
    what: All = field(default_factory=All)
    launch: Launch = field(default_factory=Launch)


def run_all(argv: Sequence[str]) -> int:
    """``repro all``: what is finished is skipped, tables come last, 1 if something failed."""
    remember_command(["repro", "all", *argv])
    argv, sbatch = split_words(argv)
    text = "Several papers, or all, side by side; then their tables."
    options = tyro.cli(
        Options, args=list(argv), prog="repro all", description=text, config=(tyro.conf.OmitArgPrefixes,)
    )
    what, launch = options.what, options.launch.for_preset(options.what.preset)
    if launch.seeds < 1:
        raise ConfigError(f"--seeds {launch.seeds}: must be at least 1")
    works = []
    for script in [find_script(name) for name in what.papers or paper_scripts()]:
        paper = load_script(script)
        arms = [arm for arm in launch.arms or paper.default_arms if arm in paper.arms]
        works.append(Work(paper, script, paper.config.for_preset(what.preset), arms))
    if sbatch is not None:
        return hand_over("all", works, launch, sbatch)
    say_plan(works, launch)
    if launch.dry_run:
        return 0
    for one in works:
        preflight(one.config)
    reproduce(works, launch)
    summaries = [w.summary for w in works if w.summary]
    for summary in summaries:
        print("\n" + describe(summary))
    if summaries:
        print("\n" + markdown(leaderboard(summaries)))
        site = Path(launch.out) / "site"
        write_site(corrected(summaries), site, runs=Path(launch.out))
        print(f"\nall of this as pages: {site / 'index.html'}")
    if failed := [w.paper.slug for w in works if w.failed]:
        print(f"repro: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0
