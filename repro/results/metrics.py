"""What the tables show: pass@k, majority@k, self-correction, calibration, and intervals for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from math import comb

import numpy as np
from scipy import optimize, stats

RESAMPLES = 4000
# P(a), P(b | a), P(b | not a), [questions] each, for two answers in a row: a, the first is right; b, the second is
Chances = tuple[np.ndarray, np.ndarray, np.ndarray]


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the probability that one of ``k`` samples is right, from ``correct`` of ``n`` >= k.

    1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1).
    """
    if not 0 < k <= n or not 0 <= correct <= n:
        raise ValueError(f"pass@{k} needs 1 <= k <= n and 0 <= correct <= n, not n={n}, correct={correct}")
    return 1.0 - comb(n - correct, k) / comb(n, k)


def majority(answers: Sequence[str | None], weights: Sequence[float] | None = None) -> str | None:
    """The answer with the most (weighted) votes; the first seen wins a tie, None (no answer) never votes."""
    votes: Counter[str] = Counter()
    for answer, weight in zip(answers, weights or [1.0] * len(answers), strict=True):
        if answer is not None:
            votes[answer] += weight
    return max(votes, key=votes.__getitem__) if votes else None


def majority_at_k(
    answers: Sequence[str | None], right: Sequence[float], k: int, weights: Sequence[float] | None = None
) -> float:
    """Accuracy of the (weighted) majority of ``k`` answers, mean over all runs of k neighbours among them (cyclic).

    Equal answers are written alike; ``right`` is 1 or 0 for each.
    """
    total = 0.0
    for start in range(len(answers)):
        window = [(start + j) % len(answers) for j in range(k)]
        winner = majority([answers[i] for i in window], weights and [weights[i] for i in window])
        total += 0.0 if winner is None else right[answers.index(winner)]
    return total / len(answers)


def self_correction(first: Sequence[bool], second: Sequence[bool], changed: Sequence[bool]) -> dict[str, np.ndarray]:
    """Per-problem values whose means are the metrics of SCoRe (arXiv 2409.12917, section 3).

    acc@t1, acc@t2; delta = acc@t2 - acc@t1; i_to_c and c_to_i are shares of all problems; changed is the share of
    problems with another answer at the second attempt.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    return {
        "acc@t1": a,
        "acc@t2": b,
        "delta": b - a,
        "i_to_c": (1 - a) * b,
        "c_to_i": a * (1 - b),
        "changed": np.asarray(changed, dtype=float),
    }


def confidence_critique(first: Sequence[bool], second: Sequence[bool]) -> dict[str, float]:
    """CL, CS and RSS of "Confidence v.s. Critique" (arXiv 2412.19513).

    CL = P(right at t2 | right at t1), CS = P(right at t2 | wrong at t1); RSS places acc@t2 between its lower bound
    acc1**2 and upper bound 2 acc1 - acc1**2. NaN where a condition never occurs.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    parts = decompose(a, b, b)
    return {name: float(parts[name].mean()) for name in ("CL", "CS", "RSS")}


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> np.ndarray:
    """Per-problem values whose mean is sum(numerator) / sum(denominator), [problems]; all NaN if that is 0 / 0.

    r + (n - r d) / mean(d): the ratio's linearisation, so that an interval of the mean is one of the ratio (delta
    method), and differences can be paired by problem. A value by itself may lie outside of what a ratio can be.
    """
    n, d = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    if d.sum() == 0:
        return np.full(len(d), np.nan)
    r = n.sum() / d.sum()
    return r + (n - r * d) / d.mean()


def over_all(values: np.ndarray, rows: Sequence[int], problems: int) -> np.ndarray:
    """Values of the problems ``rows`` as values of all: with their mean, and the spread that it has among all."""
    full, among = np.zeros(problems), np.zeros(problems)
    full[rows], among[rows] = values, 1
    return ratio(full, among)


def flips(right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wrong to right and right to wrong between neighbouring answers: [problems, n] -> [problems, n - 1] each."""
    before, after = right[:, :-1], right[:, 1:]
    return (1 - before) * after, before * (1 - after)


def cumulative(right: np.ndarray) -> np.ndarray:
    """1 once any answer so far was right, [problems, n]: an oracle's choice, which noise raises as well."""
    return np.maximum.accumulate(right, axis=1)


def chances_by_samples(first: np.ndarray, second: np.ndarray) -> Chances:
    """Of rewards of first and second answers [questions, samples]; 0 where a condition never occurs (2412.19513)."""
    right, wrong = first.sum(1), (1 - first).sum(1)
    kept, mended = (first * second).sum(1), ((1 - first) * second).sum(1)
    return first.mean(1), kept / np.maximum(right, 1), mended / np.maximum(wrong, 1)


def chances_by_labels(first: np.ndarray, second: np.ndarray, gold: Sequence[int]) -> Chances:
    """Of probabilities of labels: first [questions, labels], second [questions, first label, second label]."""
    rows = np.arange(len(first))
    right, to_gold = first[rows, gold], second[rows, :, gold]
    mended = (first * to_gold).sum(1) - right * to_gold[rows, gold]
    wrong = 1 - right
    return right, to_gold[rows, gold], np.divide(mended, wrong, out=np.zeros_like(wrong), where=wrong > 0)


def decompose(right: np.ndarray, kept: np.ndarray, mended: np.ndarray) -> dict[str, np.ndarray]:
    """Values of questions whose means are acc@t1, acc@t2, CL and CS, [questions], and RSS; NaN where not defined.

    CL and CS weigh questions with P(a) and P(not a); they are not means of the questions' own ratios.
    """
    acc1, acc2 = right, right * kept + (1 - right) * mended
    a, b = acc1.mean(), acc2.mean()
    rss = (b - a**2) / (2 * a * (1 - a)) if 0 < a < 1 else np.nan
    parts = {"CL": ratio(right * kept, right), "CS": ratio((1 - right) * mended, 1 - right)}
    return {"acc@t1": acc1, "acc@t2": acc2, **parts, "RSS": np.asarray(rss)}


def semantic_entropy(answers: Sequence[str | None], logprobs: Sequence[float] | None = None) -> float:
    """Entropy in nats over clusters of equal answers, weighted by the samples' probabilities or by their number.

    Equal answers are written alike; samples without one (None) are a cluster of their own.
    """
    logp = np.zeros(len(answers)) if logprobs is None else np.asarray(logprobs, dtype=float)
    weights = np.exp(logp - logp.max())
    p = np.array([sum(w for w, a in zip(weights, answers, strict=True) if a == one) for one in dict.fromkeys(answers)])
    p = p[p > 0] / p.sum()
    return float(-(p * np.log(p)).sum())


def auroc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Probability that a right item's score is above a wrong one's, ties counting half; NaN with one class only."""
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool)
    right, wrong = scores[labels], scores[~labels]
    if not len(right) or not len(wrong):
        return float("nan")
    return float(stats.mannwhitneyu(right, wrong).statistic / (len(right) * len(wrong)))


def brier(probabilities: Sequence[float], labels: Sequence[float]) -> float:
    """Mean squared difference of forecasts and outcomes; b (1 - b) for a constant forecast of the base rate b."""
    return float(np.square(np.subtract(probabilities, labels)).mean())


def ece(probabilities: Sequence[float], labels: Sequence[float], bins: int = 10) -> float:
    """Expected calibration error: |mean forecast - frequency| in bins of equal counts, mean over items.

    Equal forecasts are exchangeable: each counts with their mean outcome, or the items' order would decide which bin an
    outcome falls into.
    """
    p, y = np.asarray(probabilities, dtype=float), np.asarray(labels, dtype=float)
    order = np.argsort(p, kind="stable")
    _, group = np.unique(p, return_inverse=True)
    y = (np.bincount(group, y) / np.bincount(group))[group]
    return float(sum(abs((p[rows] - y[rows]).sum()) for rows in np.array_split(order, bins)) / len(p))


def interval(values: np.ndarray, level: float = 0.05, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Interval of the mean of ``values`` [seeds, problems] that misses in a share ``level``: 0.05 for one of 95 %.

    A bootstrap over seeds and problems (ours). Both are resampled independently, since every seed is evaluated on the
    same problems. Few seeds make a plain bootstrap too narrow: the seeds' deviations are widened by sqrt(n/(n-1)) and
    by the ratio of the t to the normal quantile. With one seed the interval covers the choice of problems only; with
    one column (a metric without per-problem values) it is the t interval over seeds. NaN for a single number.
    """
    values = np.asarray(values, dtype=float)
    seeds, problems = values.shape
    mean = values.mean()
    if seeds == 1 and problems == 1:
        return float("nan"), float("nan")
    if problems == 1:
        half = stats.t.ppf(1 - level / 2, seeds - 1) * values.std(ddof=1) / np.sqrt(seeds)
        return float(mean - half), float(mean + half)
    rng = np.random.default_rng(0)
    effects = values.mean(axis=1) - mean
    if seeds > 1:
        effects = effects * np.sqrt(seeds / (seeds - 1)) * t_over_normal(level, seeds)
    columns = values.mean(axis=0)  # the effects sum to 0, so that these are the problems' values without them
    means = effects[rng.integers(0, seeds, (resamples, seeds))].mean(1)
    means += columns[rng.integers(0, problems, (resamples, problems), dtype=np.int32)].mean(1)
    low, high = np.quantile(means, [level / 2, 1 - level / 2])
    return float(low), float(high)


def p_value(values: np.ndarray, threshold: float = 0.0) -> float:
    """The level at which the interval of the mean of ``values`` [seeds, problems] would end at the threshold.

    From the two variances that ``interval`` resamples, in place of resampling for every level: the half-width at a
    level is sqrt(t^2 V_seeds + z^2 V_problems). With one column it is the p of the t test, with one seed that of the
    normal test over problems. NaN without a variance.
    """
    values = np.asarray(values, dtype=float)
    seeds, problems = values.shape
    between = values.mean(axis=1).var(ddof=1) / seeds if seeds > 1 else 0.0
    within = values.mean(axis=0).var() / problems if problems > 1 else 0.0
    distance = abs(values.mean() - threshold)
    if between + within == 0:
        return float("nan")

    def excess(z: float) -> float:
        t = stats.t.isf(stats.norm.sf(z), seeds - 1) if between else 0.0
        return np.sqrt(t * t * between + z * z * within) - distance

    if excess(8.0) < 0:
        return float(2 * stats.norm.sf(8.0))
    return float(2 * stats.norm.sf(optimize.brentq(excess, 0.0, 8.0)))


@cache
def t_over_normal(level: float, seeds: int) -> float:
    """How much wider than a normal interval one over a few seeds has to be."""
    return float(stats.t.ppf(1 - level / 2, seeds - 1) / stats.norm.ppf(1 - level / 2))
