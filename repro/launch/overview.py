"""What runs and what would be run."""

from __future__ import annotations

import datetime
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from repro.launch.task import Task

if TYPE_CHECKING:
    pass


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


def plan(tasks: Sequence[Task], known: Sequence[dict], workers: int) -> tuple[list[list[str]], str]:
    """Header and one row per paper of what is left to do, with minutes and memory measured in ``known`` results."""
    rows = [["paper", "preset", "arms", "seeds", "left to run", "minutes", "GB a process"]]
    measured: dict[tuple, list[dict]] = defaultdict(list)
    for r in known:
        measured[r["paper"], r["arm"], r["digest"]].append(r)
    total, unknown = 0.0, 0
    once = list({task.folder: task for task in tasks}.values())
    for slug in dict.fromkeys(task.paper for task in once):
        mine = [task for task in once if task.paper == slug]
        left = [task for task in mine if not task.finished()]
        seconds = [[r["seconds"] for r in measured[t.paper, t.arm, t.digest]] for t in left]
        peaks = [
            e["peak_memory_bytes"]
            for t in mine
            for r in measured[t.paper, t.arm, t.digest]
            for e in r["phases"].values()
        ]
        missing, cost = sum(not s for s in seconds), sum(sum(s) / len(s) for s in seconds if s)
        total, unknown = total + cost, unknown + missing
        arms, seeds = len({t.arm for t in mine}), len({t.seed for t in mine})
        time_ = "not measured" if missing else f"{cost / 60 / workers:.0f}"
        memory = f"{max(peaks) / 1e9:.1f}" if peaks else "not measured"
        preset = mine[0].settings["preset"]
        rows.append([slug, preset, str(arms), str(seeds), f"{len(left)} of {len(mine)}", time_, memory])
    text = f"about {total / 60 / workers:.0f} minutes with {workers} side by side, as on the machine of the results"
    return rows, text + (f", and {unknown} arms that were never measured with these settings" if unknown else "")
