"""Language Models (Mostly) Know What They Know. Saurav Kadavath, Tom Conerly, Amanda Askell et al., arXiv 2207.05221,
2022.

Idea. A model is asked whether an answer of its own is right: P(True), read off the next token. Before it answers it is
asked whether it will be right: P(IK), "I know", a value head at the question's last token, trained on how often its
samples are right. Both are forecasts: they can be calibrated, and not only rank.

Reproduced. P(True) of the base's own samples, alone and beside other samples of the problem, against scores that need
no verdict: the solution's mean log-prob and the frequency of its answer. AUROC (over all samples, and within problems),
Brier score, calibration error, accuracy where P(True) is above 1/2; the verdict at other temperatures. P(IK) by LoRA
against a linear probe on the frozen hidden state, the training problems' success rate, and the agreement of samples.

How this differs from the paper and why.
- The verdict is Yes or No in the kit's words, without examples or a list of brainstormed answers in the context: the
  tiny model knows one verdict a conversation. Beside other samples, a solution's score is the model's mean preference
  for it over each of the others, in both orders. That ranks; it isn't the probability of being right.
- P(IK)'s head is the difference of the output matrix's rows for Yes and No, which stays; LoRA under it is trained
  (paper: a new head and the whole model). Then the policy goes back to the base: what answers in the evaluation is the
  model whose success was forecast. A problem is one row with its success rate, not one row a sample: equal gradients.
- Samples are drawn at the run's temperature, 0.7 for the larger models (paper: 1), which are instruct models (the
  paper's aren't). Lettered choices and other tasks aren't here.

Commands.
    repro run p_true --seeds 5                     # tiny model, with intervals
    repro run p_true --preset small --arms base    # Qwen2.5-0.5B-Instruct on GSM8K: P(True) alone
    repro run p_true --preset gpu                  # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
import torch
from scipy.special import expit
from torch.nn.functional import binary_cross_entropy_with_logits

from repro import Batch, Claim, Metric, Panel, Paper, Rollouts, Run, number, script_main, share
from repro.methods.judge import hidden_states, preferred
from repro.methods.pool import Pool, PoolConfig, answers_of, odds_of, pool_of
from repro.methods.sft import draws
from repro.model.logprobs import TokenFunction
from repro.results.metrics import auroc, brier, ece, ratio
from repro.tasks.problem import Problem

SCORES = ("P(True)", "log-prob", "frequency", "base rate")  # of a solution; the last is a constant
AHEAD = ("P(IK)", "probe", "prior", "agreement")  # of a problem
TEMPERATURES = (1.0, 1.5, 2.0, 2.5, 4.0)  # of the verdict (paper: 2.5 repairs RLHF policies)


@dataclass(frozen=True)
class Config(PoolConfig):
    """P(True)'s and P(IK)'s hyperparameters."""

    compared: int = 5
    """Samples of each problem that are compared with each other, the judged one among them (paper: 5)."""
    updates: int = 20
    """Optimiser steps of P(IK): two epochs (paper: not stated)."""
    batch: int = 32
    """Problems in one of them (paper: 7,680 rows of 30 to a problem)."""
    learning_rate: float = 1e-3
    """Of P(IK)'s adapter (ours; paper: a third of the pretraining's)."""
    penalty: float = 0.01
    """L2 penalty of the linear probe on standardised hidden states (ours)."""
    monitors: int = 0
    """No measurements while P(IK) is trained: what is trained answers nothing."""

    PRESETS = {  # noqa: RUF012
        "smol": {"updates": 16, "batch": 16, "learning_rate": 2e-4},
        "small": {"compared": 2, "updates": 32, "batch": 16, "learning_rate": 1e-4},  # two: pairs take hours on a CPU
        "gpu": {"updates": 60, "learning_rate": 1e-4},
    }


# --- P(True) --------------------------------------------------------------------------------------------------------


def p_true(odds: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """P(True) from the verdict's log-odds, any shape (section 3): the two tokens' probabilities over their sum."""
    return expit(odds / temperature)


def frequency(answers: Sequence[Sequence[str | None]]) -> np.ndarray:
    """The share of a problem's samples that have a sample's answer, [problems, samples]; 0 without an answer."""
    return np.array([[0.0 if a is None else group.count(a) / len(group) for a in group] for group in answers])


def comparison(run: Run, problems: Sequence[Problem], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Mean preference for each solution over each other one of its problem, both orders, [problems, samples]."""
    duels = [(i, a, b) for i, group in enumerate(texts) for a, b in combinations(range(len(group)), 2)]
    won = preferred(run, [(problems[i], texts[i][a], texts[i][b]) for i, a, b in duels])
    scores = np.zeros((len(texts), len(texts[0])))
    for (i, a, b), p in zip(duels, won.tolist(), strict=True):
        scores[i, a] += p
        scores[i, b] += 1 - p
    return scores / (scores.shape[1] - 1)


def within_problems(scores: np.ndarray, right: np.ndarray) -> float:
    """Mean AUROC over the problems with right and wrong samples: what is left where difficulty is the same."""
    mixed = (right.min(1) < right.max(1)).nonzero()[0]
    return float(np.mean([auroc(scores[i], right[i] > 0) for i in mixed])) if len(mixed) else float("nan")


def forecasts(scores: dict[str, np.ndarray], right: np.ndarray, of: str = "") -> dict[str, Metric]:
    """AUROC, Brier score (one a problem) and calibration error of probabilities [problems, samples]."""
    metrics: dict[str, Metric] = {}
    for name, p in scores.items():
        metrics[f"auroc{of}, {name}"] = share(auroc(p.ravel(), right.ravel() > 0))
        metrics[f"brier{of}, {name}"] = number([brier(*both) for both in zip(p, right, strict=True)])
        metrics[f"ece{of}, {name}"] = share(ece(p.ravel(), right.ravel()))
    return metrics


def measure_p_true(run: Run, config: Config, pool: Pool, odds: np.ndarray) -> dict[str, Metric]:
    """All scores on the whole pool, and "of few" on the first samples of each problem, which are compared."""
    few = min(config.compared, pool.right.shape[1])
    texts = [group[:few] for group in pool.texts]
    p, right = p_true(odds), pool.right
    likelihood = np.exp(pool.mean("logp"))  # the geometric mean of the tokens' probabilities
    constant = np.full_like(right, right.mean())
    scores = dict(zip(SCORES, (p, likelihood, frequency(pool.answers), constant), strict=True))
    of_few = {
        "P(True)": p[:, :few],
        "comparison": comparison(run, pool.problems, texts),
        "frequency": frequency([group[:few] for group in pool.answers]),
    }
    metrics = forecasts(scores, right) | forecasts(of_few, right[:, :few], " of few")
    for name in ("P(True)", "log-prob"):
        metrics[f"auroc within problems, {name}"] = share(within_problems(scores[name], right))
    for t in TEMPERATURES:
        metrics[f"ece, T={t}"] = share(ece(p_true(odds, t).ravel(), right.ravel()))
    trusted = p > 0.5
    if trusted.any():
        metrics["conditional accuracy"] = share(ratio((right * trusted).sum(1), trusted.sum(1)))
    return metrics | {"coverage": share(trusted.mean(1)), "mean P(True)": share(p.mean(1))}


# --- P(IK) ----------------------------------------------------------------------------------------------------------


def soft_bce(z: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of sigma(z) with success rates g, any shape (section 5): the mean over samples as rows."""
    return binary_cross_entropy_with_logits(z, g, reduction="none")


def at_the_end(questions: Sequence[Sequence[int]]) -> Batch:
    """Questions as prompts with one token to be predicted: what is read there has seen the question and no answer."""
    return Batch([(question, [0]) for question in questions])


def head(run: Run) -> TokenFunction:
    """z of P(IK) from logits [tokens, vocabulary]: that of Yes less that of No; the token that follows isn't read."""
    yes, no = run.policy.token("Yes"), run.policy.token("No")
    return lambda logits, _: logits[:, yes] - logits[:, no]


def last_hidden(run: Run, questions: Sequence[Sequence[int]]) -> torch.Tensor:
    """The base's last hidden states at the questions' last tokens, [questions, width]."""
    return hidden_states(run, at_the_end(questions)).double()


def probe(hidden: torch.Tensor, g: torch.Tensor, others: torch.Tensor, penalty: float) -> torch.Tensor:
    """z for ``others`` [n, width] by logistic regression of success rates g [m] on ``hidden`` [m, width]."""
    mean, std = hidden.mean(0), hidden.std(0) + 1e-6
    w, b = torch.zeros_like(mean, requires_grad=True), torch.zeros_like(mean[0], requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = soft_bce((hidden - mean) / std @ w + b, g).mean() + penalty * w.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return ((others - mean) / std @ w + b).detach()


def p_ik(run: Run, config: Config) -> None:
    """Success rates of the base's samples on training problems, then two epochs of cross-entropy with them.

    The trained adapter is kept as a copy; the policy is the base again.
    """
    for _ in run.stage("collect", config.steps):
        rollouts = run.rollout(run.next_problems(config.prompts), config.samples)
        run.kept.setdefault("questions", []).extend(list(group[0].prompt) for group in rollouts.completions)
        run.kept.setdefault("rates", []).extend(rollouts.rewards.mean(1).tolist())

    def order() -> None:
        run.kept["order"] = list(draws(len(run.kept["rates"]), config.updates, config.batch, run.rng))

    for update in run.stage("train", config.updates, learning_rate=config.learning_rate, begin=order):
        rows = run.kept["order"][update]
        batch = at_the_end([run.kept["questions"][i] for i in rows])
        batch.fields["g"] = torch.tensor([run.kept["rates"][i] for i in rows])
        run.update_on_logits(batch, head(run), lambda z, f: soft_bce(z, f.g))
    run.policy.freeze_copy("p_ik")
    run.policy.reset()


def measure_p_ik(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Forecasts of every sample's success on held-out problems, and, as in table 1, of g > 1/2."""
    questions, g = run.kept["questions"], torch.tensor(run.kept["rates"]).double()
    held_out = [group[0].prompt for group in rollouts.completions]
    right = rollouts.rewards.double().numpy()
    answers = answers_of(rollouts)
    z = probe(last_hidden(run, questions), g, last_hidden(run, held_out), config.penalty)
    known, constant = run.values(at_the_end(held_out), head(run), "p_ik").cpu(), np.full(len(right), g.mean().item())
    found = (expit(known.numpy()), expit(z.numpy()), constant, frequency(answers).max(1))
    of_problem = dict(zip(AHEAD, found, strict=True))
    rounded = (right.mean(1, keepdims=True) > 0.5).astype(float)
    metrics = forecasts({name: np.broadcast_to(p[:, None], right.shape) for name, p in of_problem.items()}, right)
    metrics |= forecasts({name: p[:, None] for name, p in of_problem.items()}, rounded, " of g > 1/2")
    return metrics | {"g > 1/2": share(rounded[:, 0]), "mean P(IK)": share(found[0])}


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """P(True) of the base's samples; in the arm p_ik, forecasts of the base's success."""
    if run.arm == "p_ik":
        return measure_p_ik(run, config, rollouts)
    return measure_p_true(run, config, pool_of(rollouts), odds_of(run, rollouts))


base, ahead = partial(Claim.within, "base"), partial(Claim.within, "p_ik")
AUROC, BRIER = "auroc of g > 1/2, {}".format, "brier of g > 1/2, {}".format

PAPER = Paper(
    slug="p_true",
    title="Language Models (Mostly) Know What They Know",
    arxiv="2207.05221",
    family="calibration",
    departs="what answers is always the base; a pool of more samples on fewer problems than the common evaluation",
    config=Config,
    arms={"p_ik": p_ik},
    measure=measure,
    claims=(
        base("trusted", "More is right where P(True) > 1/2", "conditional accuracy", "accuracy", primary=True),
        base("auroc_over_chance", "P(True) ranks above chance", "auroc, P(True)", "auroc, base rate"),
        base("brier_below_base_rate", "Its Brier score is below the base rate's", "brier, base rate", "brier, P(True)"),
        base("verdict_over_likelihood", "It ranks above the log-prob", "auroc, P(True)", "auroc, log-prob"),
        base("comparison_over_alone", "Other samples help", "auroc of few, comparison", "auroc of few, P(True)"),
        base("comparison_over_votes", "They rank above votes", "auroc of few, comparison", "auroc of few, frequency"),
        ahead("p_ik_over_chance", "P(IK) ranks above chance", AUROC("P(IK)"), AUROC("prior"), "+0.364 (52B, TriviaQA)"),
        ahead("p_ik_brier", "Its Brier score is below the prior's", BRIER("prior"), BRIER("P(IK)")),
        ahead("p_ik_over_probe", "LoRA ranks above the linear probe", AUROC("P(IK)"), AUROC("probe")),
    ),
    columns=(
        *("accuracy", "conditional accuracy", "coverage", "auroc, P(True)", "brier, base rate", "brier, P(True)"),
        *("ece, P(True)", AUROC("P(IK)"), BRIER("prior"), BRIER("P(IK)")),
    ),
    curves=("loss",),
    panels=(
        Panel("AUROC of single solutions", tuple(f"auroc, {n}" for n in SCORES), "bars", arms=("base",)),
        Panel("calibration error of P(True)", tuple(f"ece, T={t}" for t in TEMPERATURES), "bars", arms=("base",)),
        Panel("AUROC of g > 1/2", tuple(map(AUROC, AHEAD)), "bars", arms=("p_ik",)),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
