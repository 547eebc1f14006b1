"""Reproduce papers: their arms on some seeds, then tables and verdicts (``repro run``, ``repro all``)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from repro.arm import preflight, tasks_of, work
from repro.config import ConfigError, Launch, RunConfig, parse
from repro.launch.many import default_workers, run_tasks
from repro.launch.overview import plan
from repro.launch.record import remember_command
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


def run(argv: Sequence[str]) -> int:
    """``repro run PAPER``."""
    if not argv or argv[0].startswith("-"):
        raise ConfigError(f"repro run needs a paper; there are {', '.join(paper_scripts())}, and standard")
    script = find_script(argv[0])
    return run_paper(load_script(script), script, argv[1:])


def run_paper(paper: Paper, script: Path, argv: Sequence[str]) -> int:
    """Run a paper's arms and print its table; the last line of standard output is one JSON document."""
    remember_command(["repro", "run", script.stem, *argv])
    title = f"{paper.title} (arXiv {paper.arxiv})" if paper.arxiv else paper.title
    config, launch = parse(paper.config, list(argv), f"repro run {script.stem}", title)
    unknown = [arm for arm in launch.arms if arm not in paper.arms]
    if unknown:
        raise ConfigError(f"--arms {' '.join(unknown)}: unknown arm; there are {', '.join(paper.arms)}")
    preflight(config)
    one = Work(paper, script, config, launch.arms or paper.default_arms)
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
    preset: Literal["tiny", "smol", "gpu"] = "tiny"
    """Their settings, as in repro run PAPER --help."""
    dry_run: bool = False
    """Only say what would be run, how long it takes and how much memory."""


@dataclass(frozen=True)
class Options:
    what: All = field(default_factory=All)
    launch: Launch = field(default_factory=Launch)


def run_all(argv: Sequence[str]) -> int:
    """``repro all``: what is finished is skipped, tables come last, 1 if something failed."""
    remember_command(["repro", "all", *argv])
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
    tasks = [task for w in works for task in w.tasks(launch, w.goal(launch))]
    rows, text = plan(tasks, read_rows(ROOT / "results"), launch.workers or default_workers(launch.device))
    print(markdown(rows), text, sep="\n\n", flush=True)
    if what.dry_run:
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
