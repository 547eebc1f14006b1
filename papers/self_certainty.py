"""Scalable Best-of-N Selection for Large Language Models via Self-Certainty. Zhewei Kang, Xuandong Zhao, Dawn Song,
arXiv 2502.18581, NeurIPS 2025.

Idea. How far a model's next-token distributions are from uniform says how sure it is of what it writes. The mean of
KL(uniform || p) over a solution's tokens, self-certainty, needs no reward model and no answer format. As a score for
best-of-N it keeps improving as N grows where perplexity stops; as a rank in a Borda vote it is at least the majority.

Reproduced. Nothing is trained: one pool of samples of the base, and selectors on subsets of it. Greedy, first answer,
argmax of self-certainty, perplexity, entropy, distributional perplexity and Gini; sum and average of self-certainty per
answer; Borda votes with several powers and by ranks of perplexity; majority; one of N right (pass@N).

How this differs from the paper and why.
- The distributions are those that predict the solution's own tokens (equation 9); the official code reads one further
  right. They are at temperature 1 without top-p, whatever the samples were drawn with: with it, log 0 would be taken.
- The power of the Borda vote is the paper's, 0.3 up to N = 16 and 1.2 from 32; that of tiny agrees on validation.
- A subset of N samples is drawn at random from the pool, the same one for every selector; the paper repeats the pool.
- Answers are equal where the grader says so, not where their text is. Universal self-consistency, which has the model
  choose among all texts at once, is left out: the built-in model doesn't read so many.

Commands.
    repro run self_certainty --seeds 5             # tiny model, with intervals
    repro run self_certainty --preset small        # Qwen2.5-0.5B-Instruct on GSM8K, CPU or GPU
    repro run self_certainty --preset gpu          # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from repro import Claim, Metric, Panel, Paper, Rollouts, Run, number, script_main, share
from repro.methods.pool import (
    Pool,
    PoolConfig,
    accuracy_at,
    average,
    best,
    best_of,
    borda,
    first,
    of_all,
    pool_of,
    vote,
)
from repro.results.metrics import auroc

POWERS = (0.3, 0.5, 0.7, 1.2, 2.0, 4.0)  # of the Borda vote (paper: 0.3 to 2)


@dataclass(frozen=True)
class Config(PoolConfig):
    """Self-certainty's hyperparameters."""

    power: float = 1.2
    """Power of the Borda vote in the claims (paper: 0.3 up to 16 samples, 1.2 from 32; tiny: chosen on validation)."""

    PRESETS = {"smol": {"power": 0.3}, "small": {"power": 0.3}}  # noqa: RUF012


def confidences(pool: Pool) -> dict[str, np.ndarray]:
    """Scores of solutions, larger is surer, [problems, samples]: means over tokens (sections 3 and 5.1)."""
    return {
        "certainty": pool.mean("certainty"),
        "perplexity": pool.mean("logp"),  # -exp(-mean log p) ranks alike
        "entropy": -pool.mean("entropy"),
        "distributional perplexity": -pool.mean("perplexity"),
        "gini": pool.mean("gini"),
    }


def correlation(scores: np.ndarray, tokens: np.ndarray) -> float:
    """Pearson's correlation of score and length over all samples; NaN where one doesn't vary."""
    if scores.std() == 0 or tokens.std() == 0:
        return float("nan")
    return float(np.corrcoef(scores.ravel(), tokens.ravel())[0, 1])


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Every selector at every N (without @N: the whole pool); AUROC and correlation with length of every score."""
    pool = pool_of(rollouts)
    scores, certainty = confidences(pool), pool.mean("certainty")
    metrics: dict[str, Metric] = {}
    for n in config.sizes:
        metrics[f"first@{n}"] = share(accuracy_at(pool, n, first))
        metrics[f"majority@{n}"] = share(accuracy_at(pool, n, vote))
        metrics[f"one right@{n}"] = share(best_of(pool.right, pool.right, n))
        for name, score in scores.items():
            metrics[f"{name}@{n}"] = share(accuracy_at(pool, n, best, score))
        metrics[f"sum@{n}"] = share(accuracy_at(pool, n, vote, certainty))
        metrics[f"average@{n}"] = share(accuracy_at(pool, n, average, certainty))
        metrics[f"borda@{n}"] = share(accuracy_at(pool, n, borda(config.power), certainty))
        metrics[f"borda by perplexity@{n}"] = share(accuracy_at(pool, n, borda(config.power), scores["perplexity"]))
        for power in POWERS:
            metrics[f"borda, power {power}@{n}"] = share(accuracy_at(pool, n, borda(power), certainty))
    metrics |= of_all(metrics, n)
    for name, score in scores.items():
        metrics[f"auroc, {name}"] = share(auroc(score.ravel(), pool.right.ravel() > 0))
        metrics[f"length, {name}"] = number(abs(correlation(score, pool.tokens)))
    metrics["no answer"] = share(np.mean([[a is None for a in row] for row in pool.answers]))
    levels = np.array([p.level for p in pool.problems])
    for level in sorted(set(levels.tolist())):
        metrics[f"mean certainty, level {level}"] = number(certainty[levels == level].mean())
    return metrics


within = partial(Claim.within, "base")
SELECTORS = ("majority", "borda", "certainty", "perplexity", "average", "one right")

PAPER = Paper(
    slug="self_certainty",
    title="Scalable Best-of-N Selection for Large Language Models via Self-Certainty",
    arxiv="2502.18581",
    family="sampling",
    departs="nothing is trained; a pool of more samples on fewer problems in place of the common evaluation",
    config=Config,
    arms={},
    measure=measure,
    claims=(
        within("borda_over_majority", "Borda is above the majority", "borda", "majority", "+0.7", primary=True),
        within("certainty_over_perplexity", "Its argmax is above perplexity's", "certainty", "perplexity", "+4.7"),
        within("certainty_over_greedy", "Its argmax is above greedy decoding", "certainty", "greedy", "+8.7"),
        within("majority_over_certainty", "It is below the majority", "majority", "certainty", "+6.7"),
        within("certainty_grows", "Its argmax gains from 8 to all samples", "certainty", "certainty@8", "+2.1"),
        within("perplexity_stops", "Perplexity's argmax doesn't", "perplexity@8", "perplexity", "+1.4"),
        within("average_falls", "The average per answer falls with N", "average@8", "average", "+14.0"),
        within("length_free", "Perplexity follows length more", "length, perplexity", "length, certainty", "figure 5"),
    ),
    columns=("accuracy", "greedy", *SELECTORS),
    published={"base": "49.1"},
    published_setting="Llama-3.1-8B-Instruct on MATH: first answer; N = 64: majority 63.4, Borda (1.2) 64.1",
    curves=(),
    panels=(
        Panel("accuracy of the selected answer", SELECTORS, "sizes", x="samples"),
        Panel("Borda vote by power", tuple(f"borda, power {p}" for p in POWERS), "sizes", x="samples"),
        Panel("AUROC", tuple(f"auroc, {n}" for n in ("certainty", "perplexity", "entropy", "gini")), "bars"),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
