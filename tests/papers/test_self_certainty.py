"""Self-certainty's selectors on a pool whose best answers are known, and one short run."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from papers.self_certainty import PAPER, POWERS, Config, confidences, correlation, measure
from repro.arm import run_arm
from repro.methods.pool import TOKEN_SCORES, Pool
from repro.tasks.problem import Problem

SMALL = Config(eval_problems=6, eval_samples=4, train_problems=8, max_new_tokens=48)


def made(answers, right, certainty, tokens) -> Pool:
    right, tokens = np.asarray(right, float), np.asarray(tokens, float)
    sums = {name: np.zeros_like(right) for name in TOKEN_SCORES} | {"certainty": np.asarray(certainty, float) * tokens}
    problems = [Problem("", "", level=1 + i % 2) for i in range(len(right))]
    return Pool(problems, [], answers, right, sums, tokens)


def test_scores_are_means_over_tokens_and_larger_is_surer():
    sums = {"logp": -2.0, "entropy": 3.0, "certainty": 8.0, "perplexity": 6.0, "gini": 1.0}
    one = Pool([], [], [], np.ones((1, 1)), {k: np.full((1, 1), v) for k, v in sums.items()}, np.full((1, 1), 4))
    wanted = {"certainty": 2.0, "perplexity": -0.5, "entropy": -0.75, "distributional perplexity": -1.5, "gini": 0.25}
    assert {name: score.item() for name, score in confidences(one).items()} == pytest.approx(wanted)


def test_correlation_with_length():
    tokens = np.array([[10.0, 20.0], [30.0, 40.0]])
    assert correlation(2 * tokens + 1, tokens) == pytest.approx(1)
    assert correlation(-tokens, tokens) == pytest.approx(-1)
    assert np.isnan(correlation(np.ones((2, 2)), tokens))


def test_selectors_differ_as_their_votes_do(monkeypatch):
    # the surest sample of the first problem is right and alone; in the second the majority is right
    answers = [["a", "a", "b", None], ["x", "x", "y", "y"]]
    right, certainty = [[0, 0, 1, 0], [1, 1, 0, 0]], [[1, 1, 3, 9], [2, 2, 1, 3.5]]
    pool = made(answers, right, certainty, [[5, 5, 5, 5], [4, 4, 4, 4]])
    monkeypatch.setattr("papers.self_certainty.pool_of", lambda rollouts: pool)
    found = measure(SimpleNamespace(), replace(SMALL, eval_problems=2), None)
    assert found["majority"].values == (0.0, 1.0)
    assert found["certainty"].values == (1.0, 0.0)  # the surest of all has no answer
    assert found["average"].values == (1.0, 0.0)
    assert found["sum"].values == (1.0, 0.0)  # 2 : 3 and 4 : 4.5
    assert found["one right"].values == (1.0, 1.0)
    assert found["one right@2"].values == pytest.approx((0.5, 5 / 6))
    assert found["first"].values == (0.0, 1.0)
    assert found["borda, power 4.0"].values == (1.0, 0.0)
    assert found["mean certainty, level 1"].value == pytest.approx(3.5)
    assert found["no answer"].value == pytest.approx(1 / 8)


def test_a_short_run_measures_what_claims_and_panels_name(tmp_path):
    result = run_arm(PAPER, SMALL, "base", 0, str(tmp_path))
    metrics = result["metrics"]
    for claim in PAPER.claims:
        for _, name in (claim.left, claim.right):
            assert name in metrics or name.endswith("@8") or name == "greedy" or name.startswith("length, ")
    for n in (1, 2, 4):
        assert metrics[f"majority@{n}"]["value"] <= metrics[f"one right@{n}"]["value"]
    assert all(f"borda, power {power}@4" in metrics for power in POWERS)
    # of one sample every selector takes that one
    assert metrics["borda@1"]["value"] == metrics["certainty@1"]["value"] == metrics["majority@1"]["value"]
