"""What a script declares: the paper, its claims, its figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from repro.config import RunConfig

if TYPE_CHECKING:
    from repro.run import Run

Metrics = dict[str, "float | list[float]"]  # one number, or one number per evaluation problem


@dataclass(frozen=True)
class Claim:
    """What a paper claims, as a difference of two measured numbers that must be above a threshold.

    ``left`` and ``right`` are (arm, metric); their difference is paired by problem and seed. A threshold below 0 makes
    "on par" a claim: not worse by more than this.
    """

    name: str
    text: str
    left: tuple[str, str]
    right: tuple[str, str]
    threshold: float = 0.0
    published: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel of a paper's figure.

    curve: ``names`` of the training history over ``x`` ("step", or a budget spent until then: "completions",
    "sampled_tokens"), one line per arm and name. bars: metrics of the finished arms side by side. turns: metrics in
    their order as one line per arm. ``arms``: only these.
    """

    label: str
    names: tuple[str, ...]
    kind: Literal["curve", "bars", "turns"] = "curve"
    x: str = "step"
    arms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paper:
    """Identity, arms and claims of a paper."""

    slug: str
    title: str
    arxiv: str
    config: type[RunConfig]
    arms: dict[str, Callable[[Run, RunConfig], None]]
    claims: tuple[Claim, ...]
    columns: tuple[str, ...] = ("accuracy", "pass@8", "greedy", "entropy")
    extra_arms: dict[str, Callable[[Run, RunConfig], None]] = field(default_factory=dict)  # run only by name
    published: dict[str, str] = field(default_factory=dict)  # of the arms, as the paper prints them
    published_setting: str = ""  # their model and data
    evaluate: Callable[[Run, RunConfig], Metrics] | None = None
    curves: tuple[str, ...] = ("reward", "entropy")  # of the history: shown while running, their means are metrics
    panels: tuple[Panel, ...] = ()  # of the figure; without any, the curves

    @property
    def all_arms(self) -> dict[str, Callable[[Run, RunConfig], None]]:
        return {**self.arms, **self.extra_arms}
