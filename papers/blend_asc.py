"""Optimal Self-Consistency for Efficient Reasoning with Large Language Models. Austin Feng, Marius Alonso, Ambroise
Odonnat, arXiv 2511.12309, 2025.

Idea. A vote over n samples misses the most likely answer with a probability that falls as exp(-n m), where the margin
m = (sqrt(p1) - sqrt(p2))^2 differs from question to question: many samples are wasted on clear ones. With one budget
for a batch of questions, the next sample goes to the question whose leader is least certain. Of two certainties, that
of adaptive self-consistency (ASC) is good after few samples and that of PPR-1v1 (a martingale test of the leader
against the runner-up) after many. Blend-ASC goes from the first to the second, without a hyperparameter.

Reproduced. Nothing is trained: one pool of samples of the base is taken for the truth, and each rule of allocation
(uniform, ASC, PPR-1v1, Blend-ASC) is replayed on it, samples drawn with replacement, at several budgets. The error is
the share of aligned problems (the pool's mode is the right answer) whose mode isn't found. Primary: Blend-ASC at half
the budget has less error than uniform self-consistency, mean over budgets.

How this differs from the paper and why.
- The form of the blend is ours, as our source has its idea only: the weight of PPR-1v1 is the share of the budget that
  is spent. It can't be what the question itself had: PPR-1v1 doubts more than ASC, so that who had most would be
  given more.
- The number of possible answers in PPR-1v1 is that of those seen, at least two; ties go to the question with fewest
  samples, then to the first. Both are ours.
- The batch is that of the aligned problems; "in the whole batch" all problems share the budget, which nobody who
  doesn't know the answers can avoid. A problem whose pool is led by two answers together isn't aligned.
- No answer, or a truncated sample, is a class of its own that is never right: left out of the counts, a problem
  without answers would take the whole budget.
- Stopping question by question, and the allocation of an oracle, aren't here.

Commands.
    repro run blend_asc --seeds 5                  # tiny model, with intervals
    repro run blend_asc --preset small             # Qwen2.5-0.5B-Instruct on GSM8K, CPU or GPU
    repro run blend_asc --preset gpu               # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.special import betainc, betaln

from repro import Claim, Metric, Panel, Paper, Rollouts, Run, number, script_main, share
from repro.methods.pool import PoolConfig, answers_of
from repro.results.metrics import ratio

BUDGETS = (2, 4, 8, 16, 32, 64)  # samples a problem, on average
DOUBLED, HALVED, FITTED = BUDGETS[2:], BUDGETS[1:-1], BUDGETS[1:]
ALL = "error in the whole batch"
SMALL = 0.02  # a margin that takes more than BUDGETS to see


@dataclass(frozen=True)
class Config(PoolConfig):
    """Blend-ASC has no hyperparameters; these are of the measurement."""

    replays: int = 16
    """Replays of each rule at each budget, averaged per problem (ours: a minute of one core; paper: not known)."""


# --- doubts: one minus the confidence, which keeps its digits where confidence is nearly 1 ----------------------------


def asc_doubt(leader: np.ndarray, second: np.ndarray) -> np.ndarray:
    """P(theta < 1/2) for theta ~ Beta(v1 + 1, v2 + 1), from the counts of the two commonest answers (ASC, 2023)."""
    return betainc(leader + 1.0, second + 1.0, 0.5)


def ppr_doubt(leader: np.ndarray, second: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """The level at which PPR-1v1 would stop now: (K - 1) BetaPDF(1/2; v1 + 1, v2 + 1), at most 1 (Jain et al. 2022).

    ``answers``: K, the number of different ones seen; at least 2 (ours).
    """
    density = np.exp(-(leader + second) * np.log(2.0) - betaln(leader + 1.0, second + 1.0))
    return np.minimum(1.0, (np.maximum(answers, 2) - 1) * density)


Rule = Callable[[np.ndarray, np.ndarray, float], np.ndarray]

# The two doubts [replays, problems] and the share of the budget that is spent -> doubts, the largest is served next.
RULES: dict[str, Rule] = {
    "uniform": lambda asc, ppr, spent: np.zeros_like(asc),
    "asc": lambda asc, ppr, spent: asc,
    "ppr": lambda asc, ppr, spent: ppr,
    "blend": lambda asc, ppr, spent: (1 - spent) * asc + spent * ppr,
}


# --- replays from the pool -------------------------------------------------------------------------------------------


def replay(pool: np.ndarray, budget: int, rule: Rule, replays: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Spend exactly ``budget`` samples on the problems; the modes found and the samples spent, [replays, problems].

    ``pool`` [problems, samples]: numbers of answers, see ``numbered``. The first seen wins a tie of modes. In a replay
    the same number decides on the t-th sample under every rule.
    """
    rng = np.random.default_rng([seed, budget])
    problems, size = pool.shape
    counts = np.zeros((replays, problems, max(2, pool.max() + 1)), dtype=np.int64)
    seen = np.full_like(counts, budget)  # when each answer came first
    drawn = np.zeros((replays, problems), dtype=np.int64)
    asc, ppr = np.full((replays, problems), 0.5), np.ones((replays, problems))
    every = np.arange(replays)
    for t in range(budget):
        doubt = rule(asc, ppr, t / budget)
        tied = doubt == doubt.max(1, keepdims=True)
        at = every, np.where(tied, drawn, budget).argmin(1)
        answer = (*at, pool[at[1], rng.integers(0, size, replays)])
        counts[answer] += 1
        seen[answer] = np.minimum(seen[answer], t)
        drawn[at] += 1
        of = counts[at]
        second, leader = np.partition(of, -2, axis=1)[:, -2:].T
        asc[at], ppr[at] = asc_doubt(leader, second), ppr_doubt(leader, second, (of > 0).sum(1))
    return (counts * (budget + 1) - seen).argmax(2), drawn


def numbered(answers: Sequence[Sequence[str | None]]) -> np.ndarray:
    """The answers of each problem as numbers from 0, in the order of their first, [problems, samples]."""
    places = [{a: i for i, a in enumerate(dict.fromkeys(group))} for group in answers]
    return np.array([[place[a] for a in group] for place, group in zip(places, answers, strict=True)])


def limit(row: np.ndarray) -> int:
    """The mode of a problem's pool; -1 where two answers lead."""
    counts = np.bincount(row)
    return int(counts.argmax()) if (counts == counts.max()).sum() == 1 else -1


def margin(row: np.ndarray) -> float:
    """(sqrt(p1) - sqrt(p2))^2 of a problem's pool, the rate at which the mode's error falls."""
    second, first = np.sort(np.append(np.bincount(row), 0))[-2:] / len(row)
    return float((np.sqrt(first) - np.sqrt(second)) ** 2)


# --- what is measured ------------------------------------------------------------------------------------------------


def samples_for(error: float, errors: Sequence[float]) -> float:
    """Samples a problem at which a rule with these errors at BUDGETS reaches ``error``, log-linear between them."""
    rising, first = np.unique(-np.minimum.accumulate(errors), return_index=True)  # of equal errors the first
    return float(np.exp(np.interp(-error, rising, np.log(BUDGETS)[first])))


def slope(budgets: Sequence[int], errors: Sequence[float]) -> float:
    """Of log error over log budget; NaN where there is no error."""
    return float(np.polyfit(np.log(budgets), np.log(errors), 1)[0]) if min(errors) > 0 else float("nan")


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Mode error of every rule at every budget, accuracy on all problems, samples saved, slopes."""
    pool, right = numbered(answers_of(rollouts)), rollouts.rewards.double().numpy()
    limits = np.array([limit(row) for row in pool])
    aligned = ((pool == limits[:, None]) & (right > 0)).any(1)
    value = np.zeros((len(pool), max(2, pool.max() + 1)))  # of each answer of each problem
    np.put_along_axis(value, pool, right, 1)
    small = np.array([margin(row) < SMALL for row in pool])
    metrics = {"aligned": share(aligned), "small margins": share(ratio(aligned & small, aligned))}
    alone, whole = {}, {}  # mode errors by rule and budget, where the aligned problems are the batch and where all are
    for name, n in product(RULES, BUDGETS):
        modes, drawn = replay(pool, n * len(pool), RULES[name], config.replays, run.seed)
        reached = np.take_along_axis(value, modes.T, 1).mean(1)
        metrics[f"accuracy, {name}@{n}"] = share(reached)
        metrics[f"accuracy on misaligned, {name}@{n}"] = share(ratio(~aligned * reached, ~aligned))
        metrics[f"largest share, {name}@{n}"] = share((drawn.max(1) / drawn.sum(1)).mean())
        whole[name, n] = ratio(aligned * (modes != limits).mean(0), aligned)
        missed = np.zeros(len(pool))
        if aligned.any():
            modes, _ = replay(pool[aligned], n * aligned.sum(), RULES[name], config.replays, run.seed)
            missed[aligned] = (modes != limits[aligned]).mean(0)
        alone[name, n] = ratio(missed, aligned)
    for batch, errors in (("error", alone), (ALL, whole)):
        metrics |= {f"{batch}, {name}@{n}": share(values) for (name, n), values in errors.items()}
        for name, budgets in product(RULES, (DOUBLED, HALVED, FITTED)):
            mean = np.mean([errors[name, n] for n in budgets], 0)
            metrics[f"{batch}, {name}, {budgets[0]} to {budgets[-1]}"] = share(mean)
    for name in RULES:
        curve = [alone[name, n].mean() for n in BUDGETS]
        metrics[f"slope, {name}"] = number(slope(FITTED, curve[-len(FITTED) :]))
        saved = [n / samples_for(alone["uniform", n].mean(), curve) for n in DOUBLED]
        metrics[f"samples saved, {name}"] = number(np.mean(saved))
    return metrics


def less(name: str, text: str, left: str, right: str, **more) -> Claim:
    """One metric of the base's pool below another."""
    return Claim(name, text, ("base", right), ("base", left), **more)


HALF = "Blend-ASC has less mode error than uniform self-consistency with twice the samples"
MAIN = {"published": "4.8 times fewer samples", "primary": True}
ATMOST = "Its error is at most half a point above"
NEAR = {"threshold": -0.005, "published": "at or below"}

PAPER = Paper(
    slug="blend_asc",
    title="Optimal Self-Consistency for Efficient Reasoning with Large Language Models",
    arxiv="2511.12309",
    family="sampling",
    departs="nothing is trained; a pool of more samples on fewer problems in place of the common evaluation",
    config=Config,
    arms={},
    measure=measure,
    claims=(
        less("half_the_samples", HALF, "error, blend, 4 to 32", "error, uniform, 8 to 64", **MAIN),
        less(
            "half_in_a_whole_batch", f"{HALF}, all in one batch", f"{ALL}, blend, 4 to 32", f"{ALL}, uniform, 8 to 64"
        ),
        less("blend_over_uniform", "It has less at equal budgets", "error, blend, 4 to 64", "error, uniform, 4 to 64"),
        less("blend_over_asc", f"{ATMOST} ASC's", "error, blend, 4 to 64", "error, asc, 4 to 64", **NEAR),
        less("blend_over_ppr", f"{ATMOST} PPR-1v1's", "error, blend, 4 to 64", "error, ppr, 4 to 64", **NEAR),
        less("steeper", "Its error falls faster with the budget", "slope, blend", "slope, uniform"),
        less(
            "accuracy_at_8",
            "On all problems its vote at 8 samples is better",
            "accuracy, uniform@8",
            "accuracy, blend@8",
        ),
    ),
    columns=("accuracy", "aligned", *(f"samples saved, {n}" for n in ("asc", "ppr", "blend")), "slope, uniform"),
    published={"base": "samples saved, blend: 4.8 (version 1: 6.8)"},
    published_setting="mean over models of 3B to 32B on GSM8K, MATH, MMLU and GPQA; slope of uniform about -0.5",
    curves=(),
    panels=(
        Panel("mode error, aligned", tuple(f"error, {n}" for n in RULES), "sizes", x="samples a problem"),
        Panel("in the whole batch", tuple(f"{ALL}, {n}" for n in RULES), "sizes", x="samples a problem"),
        Panel("accuracy", tuple(f"accuracy, {n}" for n in RULES), "sizes", x="samples a problem"),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
