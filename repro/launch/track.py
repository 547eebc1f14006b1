"""Progress of a run in an experiment tracker, trackio or wandb, for who wants it: one adapter for both."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from repro.config import ConfigError

LIBRARY = "none"  # as --track (repro.config.Launch)
Log = Callable[[dict[str, float]], None]


def choose_tracker(name: str) -> None:
    """Let all runs of this process be tracked. Raises ConfigError if it isn't installed."""
    global LIBRARY
    if name != "none" and importlib.util.find_spec(name) is None:
        raise ConfigError(f"--track {name}: it isn't installed; run: pip install {name}")
    LIBRARY = name


@contextmanager
def tracking(name: str, settings: dict) -> Iterator[Log]:
    """Yield a function for the numbers of one step (with "step" among them); it does nothing unless a tracker is on.

    A run that goes on after an interruption goes on there, too, since its ``name`` is the same.
    """
    if LIBRARY == "none":
        yield lambda row: None
        return
    tracker = importlib.import_module(LIBRARY)
    same = {"id": name} if LIBRARY == "wandb" else {}  # trackio goes by the name
    tracker.init(project="repro", name=name, config=settings, resume="allow", **same)
    try:
        yield lambda row: tracker.log({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))
    finally:
        tracker.finish()
