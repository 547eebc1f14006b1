"""What runs and what would be run."""

from __future__ import annotations

import datetime
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Sequence

from repro.launch.task import Task


class Overview:
    """Lines that are drawn anew in place: one per running arm, and one for the whole. Silent where nobody looks."""

    def __init__(self, tasks: Sequence[Task]):
        self.tasks = tasks
        self.live = sys.stderr.isatty()
        self.began = time.time()
        self.lines = 0

    def __enter__(self) -> Overview:
        if self.live:
            os.environ["REPRO_QUIET"] = "1"  # the workers' lines would tear the picture apart
        return self

    def __exit__(self, *error) -> None:
        os.environ.pop("REPRO_QUIET", None)

    def show(self, done: int) -> None:
        """Draw the state of all arms; ``done`` of them are over."""
        if not self.live:
            return
        width = shutil.get_terminal_size().columns
        rows = [line for task in self.tasks if (line := self.state(task))]
        spent = datetime.timedelta(seconds=round(time.time() - self.began))
        rows.append(f"{done} of {len(self.tasks)} arms are over, {spent} so far")
        back = f"\x1b[{self.lines}A" if self.lines else ""
        text = "".join(f"\x1b[2K{row[: width - 1]}\n" for row in rows)
        print(back + text + "\x1b[0J", end="", file=sys.stderr, flush=True)
        self.lines = len(rows)

    def state(self, task: Task) -> str | None:
        """The last step of a running arm, None for one that hasn't begun or is over."""
        file = task.folder / "progress.txt"
        try:
            if (task.folder / "result.json").exists() or file.stat().st_mtime < self.began:
                return None
            return file.read_text()
        except FileNotFoundError:
            return None


Measured = dict[tuple[str, str, str], list[dict]]


def measured(known: Sequence[dict]) -> Measured:
    """Results by paper, arm and settings."""
    rows: Measured = defaultdict(list)
    for r in known:
        rows[r["paper"], r["arm"], r["digest"]].append(r)
    return rows


def cost(task: Task, rows: Measured) -> tuple[float, float]:
    """Mean seconds and largest peak in bytes of an arm with these settings; 0 and 0 where it was never measured."""
    mine = rows.get((task.paper, task.arm, task.digest), [])
    peaks = [entry["peak_memory_bytes"] for r in mine for entry in r["phases"].values()]
    return sum(r["seconds"] for r in mine) / max(1, len(mine)), max(peaks, default=0)


def plan(tasks: Sequence[Task], known: Sequence[dict], workers: int) -> tuple[list[list[str]], str]:
    """Header and one row per paper of what is left to do, with minutes and memory measured in ``known`` results."""
    rows = [["paper", "preset", "arms", "seeds", "left to run", "minutes", "GB a process"]]
    results, total, unknown = measured(known), 0.0, 0
    once = list({task.folder: task for task in tasks}.values())
    for slug in dict.fromkeys(task.paper for task in once):
        mine = [task for task in once if task.paper == slug]
        left = [task for task in mine if not task.finished()]
        seconds = [cost(task, results)[0] for task in left]
        peak = max(cost(task, results)[1] for task in mine)
        missing = seconds.count(0)
        total, unknown = total + sum(seconds), unknown + missing
        arms, seeds = len({t.arm for t in mine}), len({t.seed for t in mine})
        minutes = "not measured" if missing else f"{sum(seconds) / 60 / workers:.0f}"
        memory = f"{peak / 1e9:.1f}" if peak else "not measured"
        preset = mine[0].settings["preset"]
        rows.append([slug, preset, str(arms), str(seeds), f"{len(left)} of {len(mine)}", minutes, memory])
    text = f"about {total / 60 / workers:.0f} minutes with {workers} side by side, as on the machine of the results"
    return rows, text + (f", and {unknown} arms that were never measured with these settings" if unknown else "")
