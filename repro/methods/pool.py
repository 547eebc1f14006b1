"""A pool: many samples of each problem by one model, drawn and scored once, read by many papers.

The pool of the base is the evaluation of the standard arm ``base`` with as many ``eval_samples``: all papers that ask
for the same ones share it, and its verdicts, which stand beside it in the arm's folder. Selectors choose an answer from
some of a problem's samples; estimates are over subsets of the pool.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import torch

from repro.config import ConfigError, RunConfig
from repro.methods.judge import judged
from repro.methods.multiturn import final_answers
from repro.results.files import locked
from repro.results.metric import Metric
from repro.results.metrics import majority
from repro.run import Rollouts, Run
from repro.tasks.problem import Problem

ODDS = "odds.pt"  # in the folder of a standard arm
TOKEN_SCORES = ("logp", "entropy", "certainty", "perplexity", "gini")
Select = Callable[[Sequence[str | None], np.ndarray], str | None]  # answers and scores of some samples -> an answer


def self_certainty(logp: torch.Tensor) -> torch.Tensor:
    """KL(uniform || p) from log-probs [tokens, vocabulary], [tokens] (2502.18581, equation 9)."""
    return -logp.mean(-1) - np.log(logp.shape[-1])


def token_scores(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """TOKEN_SCORES at temperature 1, [tokens, 5]: log p(target), H(p), KL(uniform || p), exp(H(p)), sum of p^2."""
    logp = logits.log_softmax(-1)
    p = logp.exp()
    chosen, entropy = logp.gather(-1, targets[:, None])[:, 0], -(p * logp).sum(-1)
    return torch.stack([chosen, entropy, self_certainty(logp), entropy.exp(), p.square().sum(-1)], -1)


def powers_of_two(size: int) -> list[int]:
    """1, 2, 4, ... below ``size``, and ``size``: numbers of samples that curves are drawn over."""
    return [2**i for i in range((size - 1).bit_length())] + [size]


def of_all(metrics: dict[str, Metric], size: int) -> dict[str, Metric]:
    """The metrics ``name@size`` of the whole pool as ``name``: claims don't depend on a preset's pool."""
    return {name.removesuffix(f"@{size}"): m for name, m in metrics.items() if name.endswith(f"@{size}")}


@dataclass(frozen=True)
class PoolConfig(RunConfig):
    """Settings of papers on a pool: more samples of fewer problems than the common evaluation has."""

    eval_problems: int = 256
    """Held-out problems of the pool."""
    eval_samples: int = 64
    """Samples of each."""

    PRESETS = {  # noqa: RUF012
        "smol": {"eval_problems": 40, "eval_samples": 16},
        "small": {"eval_problems": 200, "eval_samples": 16},
        "gpu": {"eval_problems": 500, "eval_samples": 64},
    }

    @property
    def sizes(self) -> list[int]:
        """Numbers of samples that curves are drawn over."""
        return powers_of_two(self.eval_samples)


@dataclass
class Pool:
    """N samples of P problems, their ``texts`` [P][N]; arrays are [P, N].

    ``answers``: final ones, equal ones written alike, None where there is none or the sample is truncated. ``sums``:
    of the TOKEN_SCORES over a sample's tokens, its end included; ``tokens``: their number. ``right``: 1 or 0.
    ``odds``: the model's log-odds that the solution is right, or None (``odds_of``).
    """

    problems: list[Problem]
    texts: list[list[str]]
    answers: list[list[str | None]]
    right: np.ndarray
    sums: dict[str, np.ndarray]
    tokens: np.ndarray
    odds: np.ndarray | None = None

    def mean(self, score: str) -> np.ndarray:
        """The mean of a token score over each sample's tokens."""
        return self.sums[score] / self.tokens


def pool_of(rollouts: Rollouts) -> Pool:
    """The pool that the evaluation's rollouts are."""
    texts, right = [[c.text for c in group] for group in rollouts.completions], rollouts.rewards.double().numpy()
    return Pool(rollouts.problems, texts, answers_of(rollouts), right, sums_of(rollouts), rollouts.lengths.numpy())


def write_pool(pool: Pool, file: Path, made: dict) -> None:
    """A pool as compressed JSON (``repro samples RUN --pool FILE``).

    Its first line says how it was ``made``, each other one holds a problem with its samples.
    """
    arrays = {"right": pool.right, "tokens": pool.tokens, **pool.sums}
    arrays |= {} if pool.odds is None else {"odds": pool.odds}
    with gzip.GzipFile(file, "wb", mtime=0) as out:
        out.write(json.dumps(made).encode() + b"\n")
        for i, problem in enumerate(pool.problems):
            made = {name: [round(v, 3) for v in rows[i].tolist()] for name, rows in arrays.items()}
            line = asdict(problem) | {"texts": pool.texts[i], "answers": pool.answers[i]} | made
            out.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


def read_pool(file: Path | str) -> Pool:
    """What ``write_pool`` has written; numbers have three decimals."""
    with gzip.open(file, "rt", encoding="utf-8") as text:
        _, *lines = map(json.loads, text)
    names = [field.name for field in fields(Problem)]
    problems = [Problem(**{name: line[name] for name in names} | {"numbers": tuple(line["numbers"])}) for line in lines]
    array = {
        n: np.array([line[n] for line in lines]) for n in ("right", "tokens", "odds", *TOKEN_SCORES) if n in lines[0]
    }
    sums, odds = {name: array[name] for name in TOKEN_SCORES}, array.get("odds")
    texts, answers = ([line[name] for line in lines] for name in ("texts", "answers"))
    return Pool(problems, texts, answers, array["right"], sums, array["tokens"], odds)


def sums_of(rollouts: Rollouts) -> dict[str, np.ndarray]:
    """Sums of the TOKEN_SCORES over each sample of the evaluation, by the policy that wrote it, [P, N] each.

    Raises ConfigError for samples that have none.
    """
    scores = [[c.scores for c in group] for group in rollouts.completions]
    if not all(len(sums) == len(TOKEN_SCORES) for group in scores for sums in group):
        raise ConfigError("an evaluation of an earlier version has no token scores: run with another --out")
    return dict(zip(TOKEN_SCORES, np.moveaxis(np.array(scores, dtype=float), -1, 0), strict=True))


def odds_of(run: Run, rollouts: Rollouts) -> np.ndarray:
    """Log-odds of the run's policy that each solution of the evaluation is right, [P, N]; made once, block by block."""
    texts = [[c.text for c in group] for group in rollouts.completions]

    def judge(first: int, last: int) -> list[list[float]]:
        return judged(run, rollouts.problems[first:last], texts[first:last]).tolist()

    with locked(run.evaluated_in):
        rows = run.in_blocks(run.evaluated_in / ODDS, len(texts), len(texts[0]), judge, keep=True)
    return np.array(rows)


def stored_odds(folder: Path, problems: int) -> np.ndarray | None:
    """What ``odds_of`` has found for a standard arm in its folder, or None where it isn't finished."""
    rows = torch.load(folder / ODDS, weights_only=True)["rows"] if (folder / ODDS).is_file() else []
    return np.array(rows) if len(rows) == problems else None


def answers_of(rollouts: Rollouts) -> list[list[str | None]]:
    """Final answers [problems][samples], equal ones of a problem written alike; None: there is none, or truncated."""
    return [
        [None if c.truncated else a for a, c in zip(final_answers([c.text for c in group]), group, strict=True)]
        for group in rollouts.completions
    ]


# --- selectors: an answer from some samples --------------------------------------------------------------------------


def vote(answers: Sequence[str | None], scores: np.ndarray) -> str | None:
    """The answer with the largest sum of scores; the first seen wins a tie. Equal scores: the majority."""
    return majority(answers, list(scores))


def best(answers: Sequence[str | None], scores: np.ndarray) -> str | None:
    """The answer of the sample with the largest score among those with one (best-of-N); the first of equals."""
    with_answer = [i for i, a in enumerate(answers) if a is not None]
    return answers[max(with_answer, key=lambda i: scores[i])] if with_answer else None


def average(answers: Sequence[str | None], scores: np.ndarray) -> str | None:
    """The answer with the largest mean score; the first seen wins a tie."""
    of: dict[str, list[float]] = {}
    for answer, score in zip(answers, scores, strict=True):
        if answer is not None:
            of.setdefault(answer, []).append(float(score))
    return max(of, key=lambda a: sum(of[a]) / len(of[a])) if of else None


def borda(power: float) -> Select:
    """A vote in which the sample of rank r among N counts (N - r + 1)^power (2502.18581, section 4).

    Samples without an answer keep their rank and don't vote; equal scores rank in their order. Power 0 is the
    majority, a large one the best.
    """

    def select(answers: Sequence[str | None], scores: np.ndarray) -> str | None:
        order = sorted(range(len(answers)), key=lambda i: -scores[i])
        weights = np.empty(len(answers))
        weights[order] = np.arange(len(answers), 0, -1, dtype=float) ** power
        return majority(answers, list(weights))

    return select


def first(answers: Sequence[str | None], scores: np.ndarray) -> str | None:
    """The first answer that there is."""
    return next((a for a in answers if a is not None), None)


# --- estimates over subsets of the pool ------------------------------------------------------------------------------


def subsets(size: int, k: int, draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Sets of ``k`` of ``size`` samples in their order: all of them if there are at most ``draws``, else random ones.

    The same ones for every selector and problem: differences between selectors are paired.
    """
    if comb(size, k) <= draws:
        yield from (np.array(chosen) for chosen in combinations(range(size), k))
        return
    rng = np.random.default_rng([seed, size, k])
    for _ in range(draws):
        yield np.sort(rng.choice(size, k, replace=False))


def accuracy_at(pool: Pool, k: int, select: Select, scores: np.ndarray | None = None, draws: int = 32) -> np.ndarray:
    """Accuracy of a selector over ``k`` samples, mean over subsets, per problem [P]; ``scores`` None: all alike.

    Raises ValueError for more samples than the pool has.
    """
    problems, size = pool.right.shape
    if not 0 < k <= size:
        raise ValueError(f"{k} samples of a pool of {size}")
    scores = np.ones_like(pool.right) if scores is None else scores
    found = np.zeros(problems)
    chosen = list(subsets(size, k, draws))
    for i, answers in enumerate(pool.answers):
        value = {a: r for a, r in zip(answers, pool.right[i], strict=True) if a is not None}
        for rows in chosen:
            winner = select([answers[j] for j in rows], scores[i, rows])
            found[i] += 0.0 if winner is None else value[winner]
    return found / len(chosen)


def best_of(values: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
    """Expected value of the sample with the largest score among ``k`` random ones without replacement, [P].

    Exact: the sample of rank r among N is the best of k with probability C(N - r, k - 1) / C(N, k). Equal scores share
    theirs. values, scores [P, N].
    """
    size = values.shape[1]
    if not 0 < k <= size:
        raise ValueError(f"{k} samples of a pool of {size}")
    weight = np.array([comb(size - r, k - 1) / comb(size, k) for r in range(1, size + 1)])
    out = np.empty(len(values))
    for i, (value, score) in enumerate(zip(values, scores, strict=True)):
        _, group = np.unique(-score, return_inverse=True)
        order = np.argsort(group, kind="stable")
        shared = np.bincount(group[order], weight) / np.bincount(group)  # mean weight of those with equal scores
        out[i] = (shared[group] * value).sum()
    return out
