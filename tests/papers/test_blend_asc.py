"""The properties of Blend-ASC: doubts on worked counts, exact errors, allocation, and a run on the tiny model."""

from math import comb, exp, gamma, pi, sqrt

import numpy as np
import pytest
from scipy.integrate import quad

from papers.blend_asc import (
    BUDGETS,
    PAPER,
    RULES,
    Config,
    asc_doubt,
    limit,
    margin,
    numbered,
    ppr_doubt,
    replay,
    samples_for,
    slope,
)
from repro.arm import run_arm

SIXTY = np.array([[0] * 6 + [1] * 4])  # p = (.6, .4)


@pytest.mark.parametrize(
    ("leader", "second", "confidence"),
    [
        *((1, 0, 0.75), (2, 0, 0.875), (3, 0, 0.9375), (4, 0, 0.96875)),
        *((3, 1, 0.8125), (5, 1, 0.9375), (6, 2, 0.91016), (2, 2, 0.5)),
    ],
)
def test_asc_on_worked_counts(leader, second, confidence):
    assert 1 - asc_doubt(leader, second) == pytest.approx(confidence, abs=1e-5)


def test_asc_stops_after_four_unanimous_answers():
    assert next(n for n in range(1, 40) if asc_doubt(n, 0) <= 0.05) == 4


@pytest.mark.parametrize(
    ("leader", "second", "density"), [(4, 0, 0.3125), (3, 1, 1.25), (5, 1, 0.65625), (2, 2, 1.875)]
)
def test_ppr_on_worked_counts(leader, second, density):
    assert ppr_doubt(leader, second, 2) == pytest.approx(min(1, density))
    assert ppr_doubt(leader, second, 1) == ppr_doubt(leader, second, 2)
    assert ppr_doubt(leader, second, 3) == pytest.approx(min(1, 2 * density))


@pytest.mark.parametrize(("delta", "stops"), [(0.1, 7), (0.05, 8)])
def test_ppr_stops_late(delta, stops):
    assert next(n for n in range(1, 40) if ppr_doubt(n, 0, 1) <= delta) == stops
    assert ppr_doubt(stops, 0, 1) == pytest.approx((stops + 1) / 2**stops)


@pytest.mark.parametrize(("n", "error", "bound"), [(1, 0.4, 0.980), (3, 0.352, 0.941), (5, 0.31744, 0.904)])
def test_the_mode_is_missed_as_often_as_the_binomial_says(n, error, bound):
    assert margin(SIXTY[0]) == pytest.approx(0.020204, abs=1e-6)
    exact = sum(comb(n, k) * 0.4**k * 0.6 ** (n - k) for k in range(n // 2 + 1, n + 1))
    assert exact == pytest.approx(error)
    assert exp(-n * margin(SIXTY[0])) == pytest.approx(bound, abs=1e-3)
    modes, _ = replay(SIXTY, n, RULES["uniform"], replays=20_000)
    assert modes.mean() == pytest.approx(error, abs=0.012)


def test_margins_dense_near_zero_make_a_slope_of_a_half():
    errors = [quad(lambda m, n=n: exp(-n * m) * 0.5 / sqrt(m), 0, 1)[0] for n in (10, 100)]
    assert errors == pytest.approx([0.28025, 0.08862], abs=1e-5)
    assert errors[1] == pytest.approx(gamma(0.5) / 2 / sqrt(100), rel=1e-4)
    assert gamma(0.5) == pytest.approx(sqrt(pi))
    assert slope((10, 100), errors) == pytest.approx(-0.5, abs=1e-3)
    assert np.isnan(slope((10, 100), [0.1, 0.0]))


@pytest.mark.parametrize("name", RULES)
def test_the_budget_is_spent_exactly_and_alike_on_clear_problems(name):
    rng = np.random.default_rng(0)
    _, drawn = replay(rng.integers(0, 5, (7, 16)), 45, RULES[name], replays=3)
    assert (drawn.sum(1) == 45).all()
    assert drawn.min() >= 1
    _, drawn = replay(np.zeros((7, 16), dtype=int), 45, RULES[name], replays=3)
    assert np.ptp(drawn, axis=1).tolist() == [1, 1, 1]


def test_the_open_problem_takes_the_budget():
    pool = np.array([[0] * 20, [0] * 11 + [1] * 9])
    _, drawn = replay(pool, 40, RULES["asc"], replays=400)
    assert drawn[:, 1].mean() / 40 == pytest.approx(0.89, abs=0.02)


@pytest.mark.parametrize(("weight", "name"), [(0.0, "asc"), (1.0, "ppr")])
def test_the_blend_is_one_of_both_at_its_ends(weight, name):
    pool = np.random.default_rng(1).integers(0, 4, (6, 12))
    blended = replay(pool, 60, lambda asc, ppr, _: RULES["blend"](asc, ppr, weight), replays=5)
    alone = replay(pool, 60, RULES[name], replays=5)
    assert all((a == b).all() for a, b in zip(blended, alone, strict=True))


def test_the_first_seen_answer_wins_a_tie_of_modes():
    pool = np.array([[0, 1, 2]])
    for seed in range(20):
        (mode,), _ = replay(pool, 2, RULES["uniform"], 1, seed)
        rng = np.random.default_rng([seed, 2])
        first = pool[0, rng.integers(0, 3, 1)]
        assert mode[0] == first[0]


def test_answers_are_numbered_and_no_answer_is_one_of_them():
    assert numbered([["4", None, "4"], [None, "x", "y"]]).tolist() == [[0, 1, 0], [0, 1, 2]]
    assert [limit(np.array(row)) for row in ([1, 0, 1], [0, 0, 1, 1])] == [1, -1]
    assert margin(np.array([0, 0, 0])) == 1.0


def test_samples_for_an_error_are_read_off_the_curve():
    errors = [0.5, 0.4, 0.3, 0.2, 0.1, 0.05]
    assert [samples_for(e, errors) for e in errors] == pytest.approx(list(BUDGETS))
    assert samples_for(0.25, errors) == pytest.approx(sqrt(8 * 16))
    assert samples_for(0.6, errors) == pytest.approx(BUDGETS[0])  # no more is known than that it needs so many at most
    assert samples_for(0.01, errors) == pytest.approx(BUDGETS[-1])
    assert samples_for(0.1, [0.5, 0.4, 0.1, 0.1, 0.2, 0.1]) == pytest.approx(BUDGETS[2])  # the first of equals


def test_a_short_run(tmp_path):
    config = Config(eval_problems=6, eval_samples=6, max_new_tokens=64, train_problems=8, replays=3)
    metrics = run_arm(PAPER, config, "base", 0, str(tmp_path))["metrics"]
    named = {m for claim in PAPER.claims for _, m in (claim.left, claim.right) if not m.startswith("slope")}
    assert named <= metrics.keys()
    assert metrics["accuracy, uniform@64"]["value"] <= 1
    assert metrics["error, blend@64"]["value"] <= metrics["error, blend@2"]["value"]
