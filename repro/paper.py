"""What a script declares: the paper, its arms, its claims, its figure. Nothing here runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from repro.config import RunConfig

if TYPE_CHECKING:
    from repro.results.metrics import Metric
    from repro.run import Rollouts, Run

Train = Callable[["Run", Any], None]
Measure = Callable[["Run", Any, "Rollouts"], "dict[str, Metric]"]
STANDARD = ("base", "sft", "rft", "rft_online", "grpo", "dr_grpo", "dpo")  # the kit's arms (repro.methods.standard)


@dataclass(frozen=True)
class Arm:
    """One way of training. ``train`` None: nothing is trained. ``standard``: the name of the kit's arm that it is.

    ``by_name``: run only when it is asked for with --arms.
    """

    train: Train | None = None
    by_name: bool = False
    standard: str = ""


def standard(name: str, by_name: bool = False) -> Arm:
    """An arm of the kit, at the protocol's budget: made once, shared by all papers. Raises ValueError for no such."""
    if name not in STANDARD:
        raise ValueError(f"no standard arm {name!r}; there are {', '.join(STANDARD)}")
    return Arm(by_name=by_name, standard=name)


@dataclass(frozen=True)
class Claim:
    """What a paper claims, as a difference of two measured numbers that must be above a threshold.

    ``left`` and ``right`` are (arm, metric); their difference is paired by problem and seed. A threshold below 0 says
    "not worse by more than this". A difference that is neither above nor below it, and whose interval lies within
    +-``margin`` of 0, is called equivalent. ``primary``: the one that the paper stands or falls with, fixed before the
    reported seeds run.
    """

    name: str
    text: str
    left: tuple[str, str]
    right: tuple[str, str]
    threshold: float = 0.0
    margin: float = 0.02
    published: str = ""
    primary: bool = False

    @classmethod
    def over(
        cls, left: str, right: str, metric: str = "accuracy", than: str = "", *, text: str = "", **more: Any
    ) -> Claim:
        """The claim that one arm ends above another in a metric; ``than``: above another metric of it."""
        named = "" if metric == "accuracy" else f"_{metric}" + f"_{than}" * bool(than)
        points = -100 * more.get("threshold", 0.0)
        says = f"is not worse by more than {points:g} points than" if points > 0 else "ends above"
        told = text or f"{left} {says} {right}" + ("" if metric == "accuracy" else f" ({metric})")
        return cls(f"{left}_over_{right}{named}", told, (left, metric), (right, than or metric), **more)

    @classmethod
    def within(cls, arm: str, name: str, text: str, left: str, right: str, published: str = "", **more: Any) -> Claim:
        """The claim that one metric of an arm is above another of it."""
        return cls(name, text, (arm, left), (arm, right), published=published, **more)


@dataclass(frozen=True)
class Panel:
    """One panel of a paper's figure.

    curve: ``names`` of the training history over ``x`` ("step", or a budget spent until then: "completions",
    "sampled_tokens"), one line per arm and name. bars: metrics of the finished arms side by side. turns: metrics in
    their order as one line per arm. sizes: metrics ``name@K`` over K, which ``x`` says what it is, one line per name
    ("samples"). points: the first of two metrics against the second, one point per arm. ``arms``: only these.
    """

    label: str
    names: tuple[str, ...]
    kind: Literal["curve", "bars", "turns", "sizes", "points"] = "curve"
    x: str = "step"
    arms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paper:
    """Identity, arms and claims of a paper. The arm "base" needn't be named: every paper has it, first.

    Raises ValueError for a claim or a panel on an arm that isn't there, and for more than one primary claim.
    """

    slug: str
    title: str
    arxiv: str
    config: type[RunConfig]
    arms: dict[str, Arm | Train]
    claims: tuple[Claim, ...]
    family: str = ""
    departs: str = ""  # why its arms can't be at the protocol's base, problems or budget; "": they are
    traits: dict[str, dict[str, str]] = field(default_factory=dict)  # what sets arms apart, for the family's table
    columns: tuple[str, ...] = ("accuracy", "pass@8", "greedy", "entropy")
    published: dict[str, str] = field(default_factory=dict)  # of the arms, as the paper prints them
    published_setting: str = ""  # their model and data
    measure: Measure | None = None  # further metrics, from the rollouts of the common evaluation or from others
    curves: tuple[str, ...] = ("reward", "entropy")  # of the history: shown while running, their means are metrics
    panels: tuple[Panel, ...] = ()  # of the figure; without any, the curves

    def __post_init__(self) -> None:
        arms = {name: arm if isinstance(arm, Arm) else Arm(arm) for name, arm in self.arms.items()}
        arms = {"base": standard("base"), **arms}
        object.__setattr__(self, "arms", arms)
        used = {claim.name: {claim.left[0], claim.right[0]} for claim in self.claims}
        used |= {panel.label: set(panel.arms) for panel in self.panels} | {"published": set(self.published)}
        used["traits"] = set(self.traits)
        for name, those in used.items():
            if unknown := sorted(those - arms.keys()):
                raise ValueError(f"{self.slug}, {name}: unknown arm {', '.join(unknown)}; there are {', '.join(arms)}")
        if len({claim.name for claim in self.claims}) < len(self.claims):
            raise ValueError(f"{self.slug}: two claims have one name")
        if sum(claim.primary for claim in self.claims) > 1:
            raise ValueError(f"{self.slug}: more than one primary claim")

    @property
    def default_arms(self) -> list[str]:
        """The arms that run unless others are named."""
        return [name for name, arm in self.arms.items() if not arm.by_name]

    def card(self) -> dict:
        """All of it that tables and pages need, as JSON can hold it: results are read without loading the script."""
        return {
            **{
                name: getattr(self, name)
                for name in ("slug", "title", "arxiv", "family", "departs", "traits", "published")
            },
            "published_setting": self.published_setting,
            "columns": list(self.columns),
            "curves": list(self.curves),
            "arms": [{"name": n, "standard": a.standard, "by_name": a.by_name} for n, a in self.arms.items()],
            "claims": [asdict(claim) for claim in self.claims],
            "panels": [asdict(panel) for panel in self.panels],
            "digests": {preset: self.config.for_preset(preset).digest() for preset in RunConfig.PRESETS},
        }
