"""Reproduce papers: their arms on some seeds, then tables and verdicts (``repro run``, ``repro all``, ``repro new``)."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from repro.arm import preflight, tasks_of, work
from repro.config import ConfigError, Launch, parse
from repro.launch.many import default_workers, run_tasks
from repro.launch.overview import plan
from repro.launch.task import Task
from repro.results.claims import next_look
from repro.results.files import read_rows
from repro.results.summary import merged, summarise
from repro.results.tables import describe, leaderboard, markdown
from repro.scripts import ROOT, find_script, load_script, paper_scripts


def run_paper(script: Path, argv: Sequence[str]) -> int:
    """Run a paper's arms and print its table; the last line of standard output is one JSON document."""
    paper = load_script(script)
    os.environ.setdefault("REPRO_COMMAND", shlex.join(["repro", "run", script.stem, *argv]))
    title = f"{paper.title} (arXiv {paper.arxiv})" if paper.arxiv else paper.title
    config, launch = parse(paper.config, list(argv), f"repro run {script.stem}", title)
    unknown = [arm for arm in launch.arms if arm not in paper.arms]
    if unknown:
        raise ConfigError(f"--arms {' '.join(unknown)}: unknown arm; there are {', '.join(paper.arms)}")
    preflight(config)
    arms = launch.arms or paper.default_arms
    results: list[dict | None] = []
    summary: dict = {}
    for seeds in _looks(launch, lambda: summary):
        results += run_tasks(tasks_of(paper, script, config, arms, seeds, launch.out), work, launch)
        rows = merged(paper.card(), [row for row in results if row])
        if not rows:
            return 1
        summary = summarise(paper.card(), rows)
    print("\n" + describe(summary) + "\n")
    status = "ok" if all(row and row["status"] == "ok" for row in results) else "failed"
    print(json.dumps({k: summary[k] for k in ("paper", "preset", "seeds", "arms", "claims")} | {"status": status}))
    return 0 if status == "ok" else 1


def _looks(launch: Launch, summary) -> Sequence[range]:
    """The seeds to run: those asked for, or up to each look until the primary claim is decided."""
    if not launch.until_decided:
        yield range(launch.first_seed, launch.first_seed + launch.seeds)
        return
    done = 0
    while (look := next_look(summary().get("claims", ()), done)) is not None:
        yield range(launch.first_seed + done, launch.first_seed + look)
        done = look


@dataclasses.dataclass(frozen=True)
class All:
    """Several papers, or all, one after the other or side by side."""

    papers: tyro.conf.Positional[tuple[str, ...]] = ()
    """Only these papers."""
    preset: Literal["tiny", "smol", "gpu"] = "tiny"
    """Their settings (see repro run PAPER --help)."""
    dry_run: bool = False
    """Only say what would be run, how long it takes and how much memory."""
    launch: tyro.conf.OmitArgPrefixes[Launch] = dataclasses.field(default_factory=Launch)


def run_all(argv: Sequence[str]) -> int:
    """Several papers, or all: what is finished is skipped, tables come last, 1 if something failed."""
    os.environ.setdefault("REPRO_COMMAND", shlex.join(["repro", "all", *argv]))
    options = tyro.cli(All, args=list(argv), prog="repro all", config=(tyro.conf.FlagConversionOff,)[:0])
    launch = options.launch
    if launch.seeds < 1:
        raise ConfigError(f"--seeds {launch.seeds}: must be at least 1")
    seeds = range(launch.first_seed, launch.first_seed + launch.seeds)
    scripts = [find_script(name) for name in options.papers or paper_scripts()]
    papers = [(load_script(script), script) for script in scripts]
    tasks: dict[str, list[Task]] = {}
    for paper, script in papers:
        config = paper.config.for_preset(options.preset)
        tasks[paper.slug] = tasks_of(paper, script, config, paper.default_arms, seeds, launch.out)
    every = [task for mine in tasks.values() for task in mine]
    known = [row for row in read_rows(ROOT / "results")]
    rows, text = plan(every, known, launch.workers or default_workers())
    print(markdown(rows), text, sep="\n\n", flush=True)
    if options.dry_run:
        return 0
    for paper, _ in papers:
        preflight(paper.config.for_preset(options.preset))
    made = dict(zip([task.folder for task in every], run_tasks(every, work, launch), strict=True))
    summaries = []
    for paper, _ in papers:
        rows = merged(paper.card(), [row for task in tasks[paper.slug] if (row := made[task.folder])])
        if rows:
            summaries.append(summarise(paper.card(), rows))
            print("\n" + describe(summaries[-1]))
    if summaries:
        print("\n" + markdown(leaderboard(summaries)))
    failed = [task.name for task in every if not (row := made[task.folder]) or row["status"] != "ok"]
    if failed:
        print(f"repro: failed: {', '.join(dict.fromkeys(failed))}", file=sys.stderr)
    return 1 if failed else 0
