"""Long work in blocks, each saved when it is done: a process that is killed loses one block at most."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import torch

from repro.launch.storage import write_atomically
from repro.model.sampling import Completion

LONG = 30  # seconds of work that are worth a file
EVALUATION = "evaluation-"  # begins the names of the files of an evaluation's calls


class Calls:
    """The calls of an evaluation: each has a file of its own, whose name tells what it is made from."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._made: Counter[str] = Counter()

    def file(self, *made_from: object) -> Path:
        """Of the next call that is made from these; an equal call that comes later has another file."""
        name = hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]
        self._made[name] += 1
        return self.folder / f"{EVALUATION}{name}-{self._made[name]}.pt"


def in_blocks(
    file: Path,
    items: int,
    size: int,
    make: Callable[[int, int], list],
    generator: torch.Generator | None,
    keep: bool,
    report: Callable[[int, float], None],
) -> tuple[list, float]:
    """``make(first, last)`` of all items, ``size`` at once; their values, and seconds of earlier processes on them.

    Each block is saved in the file, with the state of a generator that is drawn from, and none is made twice. A
    single block is saved with ``keep`` or where it took long. A file that is ``keep``'s and complete costs nothing:
    who made it has counted its time. ``report`` gets the number of items done and this process's seconds for each.
    """
    done: list = []
    earlier = 0.0
    if file.exists():
        stored = torch.load(file, map_location="cpu", weights_only=True)
        done = stored["rows"]
        if generator:
            generator.set_state(stored["generator"])
        if not keep or len(done) < items:
            earlier = stored["seconds"]
    began, before = time.monotonic(), len(done)
    for start in range(before, items, size):
        done += make(start, min(start + size, items))
        seconds = earlier + time.monotonic() - began
        if keep or size < items or seconds > LONG:
            state = {"rows": done, "generator": generator and generator.get_state(), "seconds": seconds}
            write_atomically(file, lambda f, state=state: torch.save(state, f))
        if size < items:
            report(len(done), (time.monotonic() - began) / (len(done) - before))
    return done, earlier


def as_rows(completions: Sequence[Sequence[Completion]]) -> list[list[tuple]]:
    """Completions as plain values, for a file."""
    names = [field.name for field in fields(Completion)]
    return [[tuple(getattr(c, name) for name in names) for c in group] for group in completions]


def from_rows(rows: Sequence[Sequence[Sequence]]) -> list[list[Completion]]:
    """What ``as_rows`` has made."""
    return [[Completion(*row) for row in group] for group in rows]
