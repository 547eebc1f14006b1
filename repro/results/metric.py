"""A measured quantity: one number, or one for each problem of the evaluation, and its unit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """``values``: one for each problem, or a single one. A share is shown in percent, a number as it is."""

    values: tuple[float, ...]
    unit: Literal["share", "number"]

    @property
    def value(self) -> float:
        """The mean; NaN for "not defined here"."""
        return sum(self.values) / len(self.values) if self.values else float("nan")


def share(values: Any) -> Metric:
    """A share, or one for each problem: numbers, a sequence, or a tensor [problems]."""
    return Metric(_floats(values), "share")


def number(values: Any) -> Metric:
    """A number of any other unit, or one for each problem."""
    return Metric(_floats(values), "number")


def _floats(values: Any) -> tuple[float, ...]:
    several = isinstance(values, Iterable) and getattr(values, "ndim", 1)
    return tuple(map(float, values)) if several else (float(values),)
