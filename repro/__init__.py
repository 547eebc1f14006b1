"""Single-GPU reproductions of papers on self-improving language models, with executable claims."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its import warns of kernels that only speed up the CPU

if TYPE_CHECKING:
    from repro.cli import script_main
    from repro.config import RunConfig
    from repro.model.policy import BASE, POLICY
    from repro.model.training import Batch
    from repro.paper import Arm, Claim, Panel, Paper, standard
    from repro.results.metric import Metric, number, share
    from repro.run import Rollouts, Run

_HOMES = {
    "repro.cli": ("script_main",),
    "repro.config": ("RunConfig",),
    "repro.model.policy": ("BASE", "POLICY"),
    "repro.model.training": ("Batch",),
    "repro.paper": ("Arm", "Claim", "Panel", "Paper", "standard"),
    "repro.results.metric": ("Metric", "number", "share"),
    "repro.run": ("Rollouts", "Run"),
}
__all__ = [
    "BASE",
    "POLICY",
    "Arm",
    "Batch",
    "Claim",
    "Metric",
    "Panel",
    "Paper",
    "Rollouts",
    "Run",
    "RunConfig",
    "number",
    "script_main",
    "share",
    "standard",
]


def __getattr__(name: str) -> Any:
    """Load a name when it is asked for: the grader's worker processes import this package without torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'repro' has no attribute {name!r}")
