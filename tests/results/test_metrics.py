"""Metrics against worked numbers, brute force and coverage."""

import itertools

import numpy as np
import pytest
from scipy import stats

from repro.results.metrics import (
    auroc,
    brier,
    confidence_critique,
    ece,
    interval,
    majority,
    majority_at_k,
    over_all,
    p_value,
    pass_at_k,
    ratio,
    self_correction,
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


def test_brier_worked_numbers():
    assert brier([0.9, 0.2, 0.6], [1, 0, 0]) == pytest.approx(0.13667, abs=1e-5)
    labels = [1, 0, 0, 0]
    assert brier([0.25] * 4, labels) == pytest.approx(0.25 * 0.75)


def test_calibration_error_has_bins_of_equal_counts():
    forecasts, outcomes = np.arange(0.05, 1, 0.1), [0] * 5 + [1] * 5
    assert ece(forecasts, outcomes) == pytest.approx(0.25)
    rng = np.random.default_rng(0)
    p = rng.random(10_000)
    assert ece(p, rng.random(10_000) < p) < 0.02
    assert ece(p**4, np.zeros(10_000)) == pytest.approx((p**4).mean())  # never above: no bin makes good for another


def test_the_calibration_error_of_equal_forecasts_has_no_order():
    labels = [1] * 30 + [0] * 70
    assert ece([0.3] * 100, labels) == pytest.approx(0)
    assert ece([0.5] * 100, labels) == pytest.approx(0.2)
    rng = np.random.default_rng(0)
    p, y = rng.integers(0, 4, 100) / 4, rng.integers(0, 2, 100)
    order = rng.permutation(100)
    assert ece(p, y) == pytest.approx(ece(p[order], y[order]))


def test_a_ratio_s_values_have_its_mean_and_its_spread():
    rng = np.random.default_rng(0)
    weight = rng.random(400)
    part = weight * (rng.random(400) < 0.3 + 0.5 * weight)
    values = ratio(part, weight)
    assert values.mean() == pytest.approx(part.sum() / weight.sum())
    drawn = rng.integers(0, 400, (4000, 400))
    spread = (part[drawn].sum(1) / weight[drawn].sum(1)).std()
    assert values.std() / 20 == pytest.approx(spread, rel=0.05)
    assert ratio([1, 0, 2], [1, 1, 1]).tolist() == pytest.approx([1, 0, 2])  # a plain mean keeps its values
    assert np.isnan(ratio([0, 0], [0, 0])).all()


def test_values_of_some_problems_as_values_of_all():
    some = over_all(np.array([1.0, 0.0, 0.5]), [0, 2, 3], 6)
    assert some.shape == (6,)
    assert some.mean() == pytest.approx(0.5)
    assert some[[1, 4, 5]].tolist() == pytest.approx([0.5] * 3)  # the others say nothing: they stand at the mean
    part, weight = np.array([0.0, 1.0, 0.2]), np.array([0.5, 1.0, 0.4])
    spread = np.zeros((2, 6))
    spread[:, [0, 2, 3]] = part, weight
    assert over_all(ratio(part, weight), [0, 2, 3], 6) == pytest.approx(ratio(*spread))


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
    for _ in range(120):
        values = 0.3 + 0.05 * rng.normal(size=(5, 1)) + 0.3 * rng.normal(size=(5, 200))
        low, high = interval(values)
        hits += low <= 0.3 <= high
    assert hits / 120 >= 0.90


def test_interval_without_seeds_or_problems():
    low, high = interval(np.random.default_rng(0).normal(size=(1, 400)))
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    low, high = interval(np.array([[1.0], [2.0], [3.0]]))  # t quantile 4.303, std 1
    assert (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    low, high = interval(np.array([[1.0], [2.0], [3.0]]), level=0.2)  # t quantile 1.886
    assert high - low == pytest.approx(2 * 1.886 / 3**0.5, abs=1e-3)
    assert np.isnan(interval(np.array([[1.0]]))).all()


def test_interval_is_the_bootstrap_over_seeds_and_problems_one_by_one():
    """The same statistic with a loop: seeds and problems drawn apart, seeds' deviations widened for there being few."""
    rng = np.random.default_rng(3)
    values = 0.03 * rng.normal(size=(4, 1)) + 0.2 * rng.normal(size=(4, 50))
    t, z = 3.182446, 1.959964  # quantiles of t with 3 degrees of freedom and of the normal
    effects = (values.mean(1) - values.mean()) * (4 / 3) ** 0.5 * t / z
    rest = values - (values.mean(1) - values.mean())[:, None]
    means = []
    for _ in range(20_000):
        rows, columns = rng.integers(0, 4, 4), rng.integers(0, 50, 50)
        means.append(effects[rows].mean() + rest[:, columns].mean())
    assert interval(values, resamples=20_000) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.004)


def test_p_value_is_that_of_the_t_test_without_problems():
    values = np.array([0.4, 0.1, 0.3, -0.1, 0.2])
    assert p_value(values[:, None]) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert p_value(values[:, None], 0.3) == pytest.approx(stats.ttest_1samp(values, 0.3).pvalue)
    assert np.isnan(p_value(np.ones((3, 1)))) and np.isnan(p_value(np.ones((1, 9))))
    problems = np.array([[0.1, 0.3, -0.1, 0.5]])
    z = problems.mean() / np.sqrt(problems.var() / 4)
    assert p_value(problems) == pytest.approx(2 * stats.norm.sf(z)) and np.isnan(p_value(np.ones((1, 1))))


def test_p_value_says_when_the_interval_ends_at_the_threshold():
    rng = np.random.default_rng(5)
    values = 0.03 + 0.03 * rng.normal(size=(20, 1)) + 0.3 * rng.normal(size=(20, 300))
    low, high = interval(values, 0.05)
    assert p_value(values, low) == pytest.approx(0.05, abs=0.02) == p_value(values, high)
    assert p_value(values, low - 0.02) < 0.01 and p_value(values, values.mean()) > 0.99
