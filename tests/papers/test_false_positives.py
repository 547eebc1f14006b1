"""False positives: worked counts, selectors, problems as they come, and a run on the tiny model."""

from itertools import combinations

import numpy as np
import pytest

from papers.false_positives import (
    PAPER,
    Config,
    as_they_come,
    detection,
    min_max,
    representative,
    voted,
)
from repro.arm import run_arm
from repro.methods.pool import best_of
from repro.results.metrics import ratio
from repro.tasks.problem import split_of


def test_accuracy_by_answers_and_by_valid_solutions():
    automatic = np.array([1.0] * 32 + [0.0] * 58)
    valid = np.array([1.0] * 26 + [0.0] * 64)
    false = ratio(automatic - valid, automatic).mean()
    assert (automatic.mean(), false) == pytest.approx((0.35556, 0.1875), abs=1e-5)
    assert valid.mean() == pytest.approx(0.28889, abs=1e-5) == automatic.mean() * (1 - false)


@pytest.fixture
def some():
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, (5, 6)).astype(float)
    valid = right * rng.integers(0, 2, (5, 6))
    answers = [["4" if r else rng.choice(["1", "2", "3"]) for r in row] for row in right]
    return answers, rng.normal(size=(5, 6)), right, valid


def test_valid_is_at_most_automatic_and_one_of_n_grows(some):
    answers, rewards, right, valid = some
    found = []
    for n in range(1, 7):
        pairs = [[best_of(v, v, n) for v in (right, valid)], [best_of(v, rewards, n) for v in (right, valid)]]
        pairs += [[voted(answers, rewards, v, n, weighted) for v in (right, valid)] for weighted in (False, True)]
        assert all((by_steps <= by_answer + 1e-12).all() for by_answer, by_steps in pairs)
        found.append(pairs[0])
        sets = [list(c) for c in combinations(range(6), n)]
        assert pairs[0][1] == pytest.approx(np.array([np.mean([row[c].max() for c in sets]) for row in valid]))
    assert (np.diff(np.array(found), axis=0) >= -1e-12).all()


@pytest.mark.parametrize(("rewards", "weighted"), [((0, 1, 0.5, 0.5), "A"), ((0, 1, 0.4, 0.4), "B")])
def test_the_weighted_vote_on_the_worked_example(rewards, weighted):
    answers, rewards = list("ABAA"), np.array(rewards)
    assert min_max(rewards).tolist() == rewards.tolist()
    assert answers[representative(answers, rewards, min_max(rewards))] == weighted  # a tie goes to the first seen
    assert answers[representative(answers, rewards, np.ones(4))] == "A"
    assert representative(answers, rewards, np.ones(4)) == 2  # the first of A's largest rewards
    assert representative([None, None], np.ones(2), np.ones(2)) is None


@pytest.mark.parametrize("reward", [-3.0, 0.0, 0.7])
def test_equal_rewards_make_the_weighted_vote_the_majority(reward):
    answers, rewards = list("ABBCAB"), np.full(6, reward)
    assert answers[representative(answers, rewards, min_max(rewards))] == "B"


def test_a_vote_counts_the_representative_and_not_the_answer():
    answers, rewards = [["A", "A", "B"]], np.array([[1.0, 2.0, 9.0]])
    assert voted(answers, rewards, np.array([[1.0, 0.0, 0.0]]), 3, weighted=False).tolist() == [0.0]
    assert voted(answers, rewards, np.array([[0.0, 1.0, 0.0]]), 3, weighted=False).tolist() == [1.0]


def test_detection_on_the_released_counts():
    flagged = np.array([True] * 45 + [True] * 59 + [False] * 18 + [False] * 331)
    false = np.array([True] * 45 + [False] * 59 + [True] * 18 + [False] * 331)
    assert detection(flagged, false) == pytest.approx((0.4327, 0.7143, 0.5389), abs=1e-4)
    assert np.isnan(detection(flagged[:0], false[:0])).all()


def test_problems_as_they_come_are_held_out_and_of_all_kinds_and_levels():
    problems = as_they_come("test", 48)
    assert problems == as_they_come("test", 48)
    assert len({p.question for p in problems}) == 48
    assert {split_of(p.question) for p in problems} == {"test"}
    assert len({(p.kind, p.level) for p in problems}) == 24


SMALL = {
    "steps": 1,
    "prompts": 4,
    "samples": 4,
    "train_problems": 16,
    "eval_problems": 4,
    "eval_samples": 2,
    "max_new_tokens": 64,
    "monitors": 0,
}


def test_a_short_run(tmp_path):
    config = Config(**SMALL, pool_problems=12, pool_samples=8)
    found = run_arm(PAPER, config, "base", 0, str(tmp_path))
    metrics = found["metrics"]
    assert {"one right, gap", "one right, gap@4", "best, gap", "weighted, valid@2", "chance"} <= metrics.keys()
    for name in ("one right", "best", "majority", "weighted"):
        automatic, valid, gap = (metrics[f"{name}, {what}"]["value"] for what in ("automatic", "valid", "gap"))
        assert gap == pytest.approx(automatic - valid) and gap >= 0
    assert len(found["per_problem"]["one right, gap"]) == 12


def test_on_other_tasks_the_pool_is_the_evaluation(tmp_path):
    config = Config(**SMALL | {"task": "one_step", "eval_samples": 3, "max_new_tokens": 24})
    found = run_arm(PAPER, config, "base", 0, str(tmp_path))
    assert len(found["per_problem"]["best, automatic"]) == 4
    assert "one right, gap@2" in found["metrics"]
