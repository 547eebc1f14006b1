"""Pools that are drawn to their end and go on after a kill, shares by scores."""

from collections import Counter

import pytest
import torch

from repro.methods.curriculum import Pools, boltzmann, draw_keys, means_by_key, moved
from repro.tasks.problem import Problem


class Kept:
    """As much of a run as pools need."""

    def __init__(self, kept: dict | None = None):
        self.kept, self.rng = kept or {}, torch.Generator().manual_seed(0)


PROBLEMS = [Problem(f"{i}", f"{i}", level=1 + i % 3 // 2) for i in range(9)]  # six of level 1, three of level 2


def level(problem: Problem) -> str:
    return str(problem.level)


def test_every_problem_comes_once_a_pass():
    pools = Pools(Kept(), PROBLEMS, level)
    assert pools.keys == ["1", "2"]
    for _ in range(2):
        assert sorted(pools.next("2").question for _ in range(3)) == ["2", "5", "8"]
    assert sorted(pools.next("1").question for _ in range(6)) == ["0", "1", "3", "4", "6", "7"]
    passes = [[pools.row("1") for _ in range(6)] for _ in range(4)]
    assert len({tuple(order) for order in passes}) > 1 and len({tuple(sorted(order)) for order in passes}) == 1


def test_pools_go_on_where_they_were():
    run = Kept()
    pools = Pools(run, PROBLEMS, level)
    pools.next("1"), pools.next("1")
    stored = {"left": {key: list(rows) for key, rows in run.kept["left"].items()}}
    expected = [pools.row("1") for _ in range(4)]
    assert [Pools(Kept(stored), PROBLEMS, level).row("1") for _ in range(4)] == expected


def test_one_pool_without_a_key():
    pools = Pools(Kept(), PROBLEMS)
    assert pools.keys == [""] and len({pools.next().question for _ in range(9)}) == 9


def test_draws_follow_the_shares():
    rng = torch.Generator().manual_seed(0)
    found = Counter(draw_keys({"a": 0.5, "b": 0.3, "c": 0.2}, 4000, rng))
    assert [found[k] / 4000 for k in "abc"] == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    assert set(draw_keys({"a": 0.0, "b": 2.0}, 50, rng)) == {"b"}


def test_shares_and_scores():
    assert boltzmann({"a": 0.0, "b": 0.0}, 0.3) == {"a": 0.5, "b": 0.5}
    assert means_by_key(["a", "b", "a"], [1.0, 5.0, 2.0]) == {"a": 1.5, "b": 5.0}
    assert moved({"a": 0.4, "b": 0.2}, {"b": 0.6}, 0.5) == {"a": 0.4, "b": pytest.approx(0.4)}
