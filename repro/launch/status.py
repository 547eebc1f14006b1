"""What has become of the runs in a folder: finished, running, queued, stopped or failed (``repro status``)."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from repro.config import ConfigError
from repro.launch.slurm import in_the_queue
from repro.launch.storage import CHECKPOINT, in_use
from repro.results.tables import markdown


def state_of(folder: Path, queue: dict[Path, str]) -> tuple[str, str]:
    """State of a run, and its last line of progress or its error."""
    result, error, progress = (folder / name for name in ("result.json", "error.txt", "progress.txt"))
    if result.exists():
        made = json.loads(result.read_text())
        return ("finished", "") if made["status"] == "ok" else ("failed", made["error"])
    line = progress.read_text().partition(": ")[2] if progress.exists() else ""
    if in_use(folder):
        return "running", line
    if folder in queue:
        return "queued", line
    if error.exists():
        return "failed", error.read_text().strip().splitlines()[-1]
    return "stopped", line if (folder / CHECKPOINT).exists() else "before the first step"


def main(argv: Sequence[str]) -> int:
    """``repro status``: one row for each run that isn't finished, then how many there are of each state."""
    parser = argparse.ArgumentParser(prog="repro status", description=__doc__)
    parser.add_argument("--out", default="runs", help="folder of the runs")
    out = Path(parser.parse_args(argv).out).resolve()
    if not out.is_dir():
        raise ConfigError(f"--out {out}: there is no such folder")
    queue = in_the_queue(out)
    states = {folder: state_of(folder, queue) for folder in sorted({*out.glob("*/*/*-seed*"), *queue})}
    left = [[str(f.relative_to(out)), *state] for f, state in states.items() if state[0] != "finished"]
    if left:
        print(markdown([["run", "state", "last line"], *left]) + "\n")
    counts = Counter(state for state, _ in states.values())
    print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no runs")
    return 0
