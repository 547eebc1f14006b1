"""Examining False Positives under Inference Scaling for Mathematical Reasoning. Yu Wang, Nan Yang, Liang Wang, Furu
Wei, arXiv 2502.06217, EMNLP 2025.

Idea. A solution with the right answer counts as right, even if its reasoning is wrong: a false positive. The more
samples are drawn, the more chances there are to reach the answer by a wrong way. So accuracy by answers is above that
by solutions for every selector, most of all for pass@N, and the harder the problems the more.

Reproduced. One pool of samples of the base, and of a model that was fine-tuned on its own solutions with right answers
(the standard arm rft): the share of false positives among solutions with a right answer, by level; for one of N right
(pass@N), the best of N and majorities the accuracy by answers, by valid solutions, and the gap; how well P(Yes) tells
false positives from valid solutions. Primary: the gap of pass@N is above that of the best of N.

How this differs from the paper and why.
- Instead of human labels: on the built-in arithmetic every line has an exact value, and a solution is valid where all
  lines have the right one. Elsewhere a solution is invalid where one of its written equations is wrong and isn't
  corrected; other errors aren't seen, so that the numbers are lower bounds. The paper forgives slips without effect.
- The problems of the arithmetic are drawn as they come. Those of the common evaluation, on which rft is trained as
  well, are chosen so that no wrong way was seen to end at the right answer: they have few false positives.
- pass@N by valid solutions asks for one valid solution among N, and is exact over subsets of the pool; which solution
  the paper judges isn't clear. The reward is the model's own log-odds of Yes in place of a reward model's.
- Rewards that are all equal weigh 1 in the weighted vote; the code takes them as they are, which may be below 0.
- RFT stands for reinforcement learning on answers. General against mathematical models, search by steps and judges in
  words aren't here. GSM8K has no levels: claims on them are for arithmetic and MATH.

Commands.
    repro run false_positives --seeds 5            # tiny model, with intervals
    repro run false_positives --preset small       # Qwen2.5-0.5B-Instruct on GSM8K, CPU or GPU
    repro run false_positives --preset gpu         # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch

from repro import Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, number, script_main, share, standard
from repro.methods.judge import judged
from repro.methods.pool import answers_of, best_of, odds_of, of_all, powers_of_two, subsets
from repro.methods.steps import first_wrong_step
from repro.results.metrics import auroc, majority, ratio
from repro.tasks import prompts
from repro.tasks.arithmetic import KINDS, LEVELS, make_problem
from repro.tasks.generated import as_problem
from repro.tasks.problem import Problem


@dataclass(frozen=True)
class Config(RunConfig):
    """Settings of the pool on the built-in arithmetic; on other tasks it is the evaluation's samples."""

    pool_problems: int = 256
    """Held-out problems, drawn as they come (paper: 90 to 100)."""
    pool_samples: int = 32
    """Samples of each (paper: 256)."""

    PRESETS = {"smol": {"eval_samples": 16}, "gpu": {"eval_samples": 32}}  # noqa: RUF012


# --- selectors -------------------------------------------------------------------------------------------------------


def min_max(rewards: np.ndarray) -> np.ndarray:
    """Weights of the weighted vote, from 0 for the smallest reward to 1 for the largest; 1 where all are equal."""
    low, high = rewards.min(), rewards.max()
    return (rewards - low) / (high - low) if high > low else np.ones_like(rewards)


def representative(answers: Sequence[str | None], rewards: np.ndarray, weights: np.ndarray) -> int | None:
    """The sample with the largest reward among those with the answer that wins the vote; None without an answer."""
    winner = majority(answers, list(weights))
    return None if winner is None else max((i for i, a in enumerate(answers) if a == winner), key=lambda i: rewards[i])


def voted(
    answers: Sequence[Sequence[str | None]], rewards: np.ndarray, values: np.ndarray, n: int, weighted: bool
) -> np.ndarray:
    """``values`` of the representative of ``n`` samples, mean over subsets, [problems]; rewards, values [P, samples].

    Weights are of the n rewards, as in the code.
    """
    found, chosen = np.zeros(len(answers)), list(subsets(rewards.shape[1], n, 32))
    for (i, row), rows in product(enumerate(answers), chosen):
        scores = rewards[i, rows]
        winner = representative([row[j] for j in rows], scores, min_max(scores) if weighted else np.ones(n))
        found[i] += 0.0 if winner is None else values[i, rows[winner]]
    return found / len(chosen)


def detection(flagged: np.ndarray, false: np.ndarray) -> tuple[float, float, float]:
    """Precision, recall and F1 of flags for false positives (section 5.2); NaN where there is nothing to divide by."""
    hits, flags, wanted = (flagged & false).sum(), flagged.sum(), false.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        return hits / flags, hits / wanted, 2 * hits / (flags + wanted)


# --- what is measured ------------------------------------------------------------------------------------------------


def as_they_come(split: str, size: int) -> list[Problem]:
    """Held-out problems of the built-in arithmetic, all kinds and levels in turn, whatever wrong ways may end at."""
    rng, found = random.Random(f"false positives {split}"), {}
    wanted = list(product(LEVELS, KINDS))
    while len(found) < size:
        level, kind = wanted[len(found) % len(wanted)]
        problem = as_problem(make_problem(kind, level, rng, split))
        found[problem.question] = problem
    return list(found.values())


def draw(run: Run, config: Config) -> Rollouts:
    """The pool on the built-in arithmetic."""
    problems = as_they_come(config.eval_split, config.pool_problems)
    generator = torch.Generator(run.policy.device).manual_seed(20_000 + run.seed)
    completions = run.sample([prompts.solve(p) for p in problems], config.pool_samples, generator=generator)
    return Rollouts(problems, completions, run.rewards(problems, completions))


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Every selector by answers and by valid solutions at every N; false positives by level; P(Yes) as a detector."""
    pool = draw(run, config) if config.task == "arithmetic" else rollouts
    texts = [[c.text for c in group] for group in pool.completions]
    right, answers = pool.rewards.double().numpy(), answers_of(pool)
    rows = zip(pool.problems, texts, strict=True)
    checked = [[first_wrong_step(problem, text) is None for text in group] for problem, group in rows]
    valid = right * np.array(checked)
    odds = odds_of(run, pool) if pool is rollouts else judged(run, pool.problems, texts).double().numpy()
    false, size = right - valid, right.shape[1]
    metrics = {"false positives": share(ratio(false.sum(1), right.sum(1)))}
    levels = np.array([p.level for p in pool.problems])
    for level in sorted(set(levels.tolist())):
        of = levels == level
        metrics[f"false positives, level {level}"] = share(ratio(of * false.sum(1), of * right.sum(1)))
    for n in powers_of_two(size):
        selected = {
            "one right": [best_of(v, v, n) for v in (right, valid)],
            "best": [best_of(v, odds, n) for v in (right, valid)],
            "majority": [voted(answers, odds, v, n, weighted=False) for v in (right, valid)],
            "weighted": [voted(answers, odds, v, n, weighted=True) for v in (right, valid)],
        }
        for name, (by_answer, by_steps) in selected.items():
            metrics[f"{name}, automatic@{n}"] = share(by_answer)
            metrics[f"{name}, valid@{n}"] = share(by_steps)
            metrics[f"{name}, gap@{n}"] = share(by_answer - by_steps)
            metrics[f"{name}, false positives@{n}"] = share(ratio(by_answer - by_steps, by_answer))
    metrics |= of_all(metrics, n)
    of_right, tokens = right > 0, pool.lengths.numpy()
    metrics["auroc"] = share(auroc(odds[of_right], valid[of_right] > 0))
    metrics["chance"] = share(0.5)
    found = detection(odds[of_right] < 0, false[of_right] > 0)
    metrics |= {f"No, {name}": share(v) for name, v in zip(("precision", "recall", "F1"), found, strict=True)}
    for name, chosen in (("valid", valid > 0), ("false positives", false > 0)):
        metrics[f"length, {name}"] = number(tokens[chosen].mean() if chosen.any() else float("nan"))
    return metrics


within = partial(Claim.within, "base")
SELECTORS = ("one right", "best", "majority", "weighted")
MOST = "The gap between answers and valid solutions is larger for pass@N than for the best of N"

PAPER = Paper(
    slug="false_positives",
    title="Examining False Positives under Inference Scaling for Mathematical Reasoning",
    arxiv="2502.06217",
    family="sampling",
    config=Config,
    arms={"rft": standard("rft")},
    measure=measure,
    claims=(
        within("pass_inflates_most", MOST, "one right, gap", "best, gap", "+14.4 (N = 64)", primary=True),
        within(
            "gap_grows", "That of pass@N grows from 4 to all samples", "one right, gap", "one right, gap@4", "+16.7"
        ),
        within(
            "harder_is_falser",
            "More right answers of level 4 have a wrong step than of level 1",
            "false positives, level 4",
            "false positives, level 1",
            "+14.4 (AIME over MATH)",
        ),
        Claim.over(
            "rft", "base", "false positives", text="RFT has more of them", published="+9.9 (7 of 27 over 4 of 25)"
        ),
        within("told_apart", "P(Yes) of valid solutions is above theirs (AUROC)", "auroc", "chance", "F1 .28 to .54"),
    ),
    columns=("accuracy", "false positives", "one right, gap", "best, gap", "majority, gap", "auroc"),
    published={"base": "best of 256: 18.8 % false positives; gaps at N = 64: pass@N 18.9, best of N 4.4"},
    published_setting="Qwen2.5-Math-72B-Instruct on AIME 2022 to 2024, labelled by people",
    curves=(),
    panels=(
        Panel("gap", tuple(f"{name}, gap" for name in SELECTORS), "sizes", x="samples", arms=("base",)),
        Panel("pass@N", ("one right, automatic", "one right, valid"), "sizes", x="samples"),
        Panel("false positives", tuple(f"false positives, level {level}" for level in LEVELS), "bars"),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
