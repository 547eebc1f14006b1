"""Which problems come next: pools by key that are drawn to their end, scores of the pools, shares by the scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from repro.tasks.problem import Problem

if TYPE_CHECKING:
    from repro.run import Run


class Pools:
    """Problems by key. Each pool is drawn without replacement, in an order of its own; then it is shuffled again.

    What is left of the pools stands in ``run.kept`` under ``name``: a run that was killed goes on where it was.
    """

    def __init__(
        self, run: Run, problems: Sequence[Problem], key: Callable[[Problem], str] = lambda p: "", name: str = "left"
    ):
        self.run, self.problems = run, problems
        self.rows: dict[str, list[int]] = {}
        for row, problem in sorted(enumerate(problems), key=lambda pair: key(pair[1])):
            self.rows.setdefault(key(problem), []).append(row)
        self.left: dict[str, list[int]] = run.kept.setdefault(name, {})

    @property
    def keys(self) -> list[str]:
        """The pools that have problems, sorted."""
        return list(self.rows)

    def row(self, key: str = "") -> int:
        """The number of the next problem of a pool."""
        if not self.left.get(key):
            rows = self.rows[key]
            self.left[key] = [rows[i] for i in torch.randperm(len(rows), generator=self.run.rng).tolist()]
        return self.left[key].pop()

    def next(self, key: str = "") -> Problem:
        """The next problem of a pool."""
        return self.problems[self.row(key)]


def boltzmann(scores: Mapping[str, float], temperature: float) -> dict[str, float]:
    """Shares proportional to exp(score / temperature)."""
    shares = (torch.tensor(list(scores.values()), dtype=torch.float64) / temperature).softmax(0)
    return dict(zip(scores, shares.tolist(), strict=True))


def draw_keys(shares: Mapping[str, float], count: int, rng: torch.Generator) -> list[str]:
    """``count`` independent draws of a key, by its share; shares need not sum to 1."""
    drawn = torch.multinomial(torch.tensor(list(shares.values())).float(), count, replacement=True, generator=rng)
    return [list(shares)[i] for i in drawn.tolist()]


def means_by_key(keys: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """The mean of the values of each key."""
    found: dict[str, list[float]] = {}
    for key, value in zip(keys, values, strict=True):
        found.setdefault(key, []).append(value)
    return {key: sum(those) / len(those) for key, those in found.items()}


def moved(scores: Mapping[str, float], seen: Mapping[str, float], rate: float) -> dict[str, float]:
    """Scores after a step towards what was seen: rate x seen + (1 - rate) x score; a key that wasn't seen keeps its."""
    return {key: rate * seen[key] + (1 - rate) * old if key in seen else old for key, old in scores.items()}
