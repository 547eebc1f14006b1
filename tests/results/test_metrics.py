"""Metrics against worked numbers, brute force and coverage."""

import itertools

import numpy as np
import pytest

from repro.results.metrics import (
    auroc,
    confidence_critique,
    interval,
    majority,
    majority_at_k,
    pass_at_k,
    self_correction,
    verdict,
)


def test_pass_at_k_worked_numbers():
    assert pass_at_k(16, 4, 8) == pytest.approx(0.961538, abs=1e-6)
    assert pass_at_k(8, 2, 4) == pytest.approx(0.785714, abs=1e-6)
    assert pass_at_k(128, 1, 8) == pytest.approx(0.0625)


def test_pass_at_k_is_the_average_over_all_subsets():
    for n, correct, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if correct <= n and k <= n:
            labels = [i < correct for i in range(n)]
            brute = np.mean([any(c) for c in itertools.combinations(labels, k)])
            assert pass_at_k(n, correct, k) == pytest.approx(brute)
    with pytest.raises(ValueError, match="pass@9"):
        pass_at_k(8, 1, 9)


def test_majority():
    assert majority(["12", "12", "15", "12"], [0.2, 0.3, 0.9, 0.3]) == "15"
    assert majority(["12", "12", "15", "12"]) == "12"
    assert majority(["b", "a", None, None, None]) == "b"
    assert majority([None]) is None


def test_majority_at_k_is_the_mean_over_neighbours():
    answers, right, weights = ["12", "12", "15", "12"], [0, 0, 1, 0], [0.2, 0.3, 0.9, 0.3]
    assert majority_at_k(answers, right, 4, weights) == 1 and majority_at_k(answers, right, 4) == 0
    # 12 12 15 | 12 15 12 | 15 12 12 | 12 12 12: weighted 15 wins the first three
    assert majority_at_k(answers, right, 3, weights) == pytest.approx(3 / 4)
    assert majority_at_k(answers, right, 1) == pytest.approx(1 / 4)
    assert majority_at_k([None, "7"], [0, 1], 2) == 1 and majority_at_k([None], [0], 1) == 0


def test_equal_weights_are_the_plain_majority():
    rng = np.random.default_rng(0)
    for _ in range(50):
        answers = [str(a) for a in rng.integers(0, 3, 5)]
        right = [float(a == "0") for a in answers]
        for k in (1, 3, 5):
            assert majority_at_k(answers, right, k, [0.4] * 5) == majority_at_k(answers, right, k)


def test_self_correction_identities():
    first, second = [1, 1, 0, 0, 0], [1, 0, 1, 0, 0]
    means = {k: v.mean() for k, v in self_correction(first, second, [0, 1, 1, 1, 0]).items()}
    assert means == pytest.approx(
        {"acc@t1": 0.4, "acc@t2": 0.4, "delta": 0, "i_to_c": 0.2, "c_to_i": 0.2, "changed": 0.6}
    )
    parts = confidence_critique(first, second)
    assert means["acc@t2"] == pytest.approx(0.4 * parts["CL"] + 0.6 * parts["CS"])
    assert parts["RSS"] == pytest.approx(0.5)  # acc@t2 = acc@t1


def test_confidence_critique_of_the_score_table():
    """SCoRe's base row (arXiv 2409.12917, table 2): 52.6, 41.4, i->c 4.6, c->i 15.8."""
    first = np.repeat([1, 1, 0, 0], [368, 158, 46, 428])
    second = np.repeat([1, 0, 1, 0], [368, 158, 46, 428])
    assert confidence_critique(first, second) == pytest.approx({"CL": 0.700, "CS": 0.097, "RSS": 0.275}, abs=5e-4)


def test_auroc_is_the_share_of_ordered_pairs():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 5, 40), rng.random(40) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels] for b in scores[~labels]]
    assert auroc(scores, labels) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc([1, 2], [True, True]))


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """Five seeds with effects of their own, 200 problems: a plain bootstrap over five seeds covers far less."""
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(120):
        values = 0.3 + 0.05 * rng.normal(size=(5, 1)) + 0.3 * rng.normal(size=(5, 200))
        low, high = interval(values, seed=trial)
        hits += low <= 0.3 <= high
    assert hits / 120 >= 0.90


def test_interval_without_seeds_or_problems():
    low, high = interval(np.random.default_rng(0).normal(size=(1, 400)))
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    low, high = interval(np.array([[1.0], [2.0], [3.0]]))  # t quantile 4.303, std 1
    assert (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    assert np.isnan(interval(np.array([[1.0]]))).all()


def test_verdict():
    assert verdict(0.1, 0.2) == "holds"
    assert verdict(-0.2, -0.1) == "fails"
    assert verdict(-0.1, 0.1) == "undecided"
    assert verdict(-0.01, 0.03, threshold=-0.02) == "holds"
    assert verdict(float("nan"), float("nan")) == "undecided"
