"""Self-Improvement in Language Models: The Sharpening Mechanism. Audrey Huang, Adam Block, Dylan J. Foster et al.,
arXiv 2412.01951, ICLR 2025.

Idea. A model can often tell a good response of its own, by its likelihood, more easily than it finds one in a sample.
Best-of-N under the self-reward log pi_base(y|x) uses that at inference; sharpening puts it into the weights, without
any label: by fine-tuning on the likeliest of N samples, or by a KL-regularised reward whose optimum is the base to the
power 1 + 1/beta, normalised anew.

Reproduced. Best-of-N on the base's samples by likelihood, by likelihood a token, and the majority, against sampling and
greedy decoding. SFT-Sharpening; its control, fine-tuning on a random one of the N; RLHF-Sharpening by regression on
pairs. Accuracy of samples and log pi_base of what each arm writes. By name: rft, which sees labels.

How this differs from the paper and why.
- Held-out prompts throughout; the paper evaluates on the prompts that it trains on, and takes the best checkpoint.
- N is the protocol's number of samples per problem (paper: 50, with gains to 10-20), the updates are those of the
  standard arm rft, at a constant rate. LoRA on all arms, as in the paper.
- Truncated samples lack the factor of their end and would look likely: they never win, and are in no pair.
- RLHF-Sharpening wasn't run at scale in the paper; its pairs' gaps are clipped, or long ones ask for too much.
- Likelihoods are at temperature 1 whatever the samples were drawn with. They are given in nats, not as a lift, and
  compared with those of samples (paper: of the greedy output).
- The larger presets draw at 0.7 (paper: 1): there any sample of the base teaches what is likelier already, so that only
  the comparisons with SFT on a random sample show sharpening. ``--temperature 1`` is the paper's setting.

Commands.
    repro run sharpening --seeds 5                 # tiny model, with intervals
    repro run sharpening --preset small            # Qwen2.5-0.5B-Instruct on GSM8K, CPU or GPU
    repro run sharpening --preset gpu              # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch

from repro import (
    BASE,
    Batch,
    Claim,
    Metric,
    Panel,
    Paper,
    Rollouts,
    Run,
    RunConfig,
    number,
    script_main,
    share,
    standard,
)
from repro.methods.dpo import train_on_pairs
from repro.methods.pool import answers_of, best_of, of_all, powers_of_two, sums_of
from repro.methods.rft import train_on_kept
from repro.model.sampling import Completion
from repro.results.metrics import majority_at_k, ratio

Score = Callable[[Run, Sequence[Sequence[Completion]]], torch.Tensor]  # [problems, samples], -inf: never the best


@dataclass(frozen=True)
class Config(RunConfig):
    """Sharpening's hyperparameters."""

    updates: int = 40
    """Optimiser steps, as the standard arm rft takes (paper: 10 to 30 epochs)."""
    batch: int = 32
    """Solutions, or pairs of them, in one of these steps (paper: 1 or 4)."""
    learning_rate: float = 2e-3
    """Of sharpen_sft and random_sft: that of the standard arm rft (paper: 3e-4, falling to 0)."""
    rlhf_learning_rate: float = 3e-4
    """Of rlhf_sharpen (ours; paper: not given)."""
    beta: float = 0.25
    """Weight of the KL term of rlhf_sharpen: the optimum is the base to the power 1 + 1/beta (ours)."""
    max_gap: float = 10.0
    """A pair's gap in log-likelihood is clipped to this many nats: it asks for a log-ratio of gap / beta (ours)."""

    PRESETS = {  # noqa: RUF012
        "smol": {"updates": 64, "batch": 8, "learning_rate": 2e-4, "rlhf_learning_rate": 5e-5},
        "small": {"updates": 128, "batch": 8, "rlhf_learning_rate": 1e-5},
        "gpu": {"updates": 240, "batch": 16, "learning_rate": 1e-4, "rlhf_learning_rate": 1e-5},
    }

    @property
    def sizes(self) -> list[int]:
        """N of best-of-N, up to all samples of the evaluation."""
        return powers_of_two(self.eval_samples)


# --- the self-reward ------------------------------------------------------------------------------------------------


def of_ended(sums: torch.Tensor, completions: Sequence[Sequence[Completion]]) -> torch.Tensor:
    """The sums, -inf where a sample has no end, [problems, samples]."""
    return sums.masked_fill(torch.tensor([[c.truncated for c in group] for group in completions]), -torch.inf)


def self_rewards(run: Run, completions: Sequence[Sequence[Completion]]) -> torch.Tensor:
    """log pi_base(y|x), a sum over tokens with the end, [problems, samples]; -inf where a sample has no end."""
    batch = Batch([(c.prompt, c.ids) for group in completions for c in group])
    sums = torch.stack([row.double().sum() for row in run.logprobs(batch, BASE).cpu().split(batch.lengths)])
    return of_ended(sums.view(len(completions), -1), completions)


def random_scores(run: Run, completions: Sequence[Sequence[Completion]]) -> torch.Tensor:
    """In place of the self-reward: the best is any one of a problem's samples that end, [problems, samples]."""
    return of_ended(torch.rand(len(completions), len(completions[0]), generator=run.rng), completions)


def winners(scores: torch.Tensor) -> list[tuple[int, int]]:
    """(problem, sample) with the largest score of each problem, the first of equals; none where no sample ends."""
    return [(i, int(row.argmax())) for i, row in enumerate(scores) if row.max() > -torch.inf]


def log_coverage(best: np.ndarray) -> float:
    """log of C_cov = E[1 / pi_base(y*(x)|x)] (section 3) from log pi_base(y*|x) [problems]."""
    return float(np.logaddexp.reduce(-best) - np.log(len(best)))


# --- the arms -------------------------------------------------------------------------------------------------------


def sharpen_sft(run: Run, config: Config, score: Score = self_rewards) -> None:
    """SFT-Sharpening: cross-entropy on the likeliest of each problem's samples. No reward is used, only logged."""
    for _ in run.stage("collect", config.steps):
        rollouts = run.rollout(run.next_problems(config.prompts), config.samples)
        chosen = winners(score(run, rollouts.completions))
        best = [rollouts.completions[i][k] for i, k in chosen]
        run.kept.setdefault("solutions", []).extend([list(c.prompt), list(c.ids)] for c in best)
        for (i, k), c in zip(chosen, best, strict=True):
            run.log(**{"chosen right": rollouts.rewards[i, k], "chosen length": len(c.ids)})
    train_on_kept(run, config.updates, config.batch, config.learning_rate)


def pairs_of(completions: Sequence[Sequence[Completion]]) -> list[list[list[list[int]]]]:
    """Neighbours among each problem's samples that end, as [prompt ids, completion ids]; equal ones teach nothing."""
    pairs = []
    for group in completions:
        ended = [c for c in group if not c.truncated]
        for pair in zip(ended[0::2], ended[1::2], strict=False):
            if pair[0].ids != pair[1].ids:
                pairs.append([[list(c.prompt), list(c.ids)] for c in pair])
    return pairs


def regression_loss(
    logp: torch.Tensor, fields: SimpleNamespace, beta: float, max_gap: float, pairs: int
) -> torch.Tensor:
    """(beta (rho(y) - rho(y')) - gap)^2 / pairs with rho = log pi / pi_base of the sequence, [pairs].

    The gap is log pi_base(y) - log pi_base(y'), clipped. logp and ``fields.ref_logp`` (of the base) [tokens];
    ``fields.row`` numbers the tokens' sequences, two neighbours of which are a pair.
    """
    sums = logp.new_zeros(int(fields.row[-1]) + 1, 2)
    ratio, base = sums.index_add(0, fields.row, torch.stack([logp - fields.ref_logp, fields.ref_logp], -1)).unbind(-1)
    gap = (base[0::2] - base[1::2]).clamp(-max_gap, max_gap)
    return (beta * (ratio[0::2] - ratio[1::2]) - gap).square() / pairs


def rlhf_sharpen(run: Run, config: Config) -> None:
    """RLHF-Sharpening: regression of log-ratios on gaps of the self-reward, on pairs of the base's samples."""
    for _ in run.stage("collect", config.steps):
        rollouts = run.rollout(run.next_problems(config.prompts), config.samples)
        run.kept.setdefault("pairs", []).extend(pairs_of(rollouts.completions))
        run.log(pairs=len(run.kept["pairs"]))
    loss = partial(regression_loss, beta=config.beta, max_gap=config.max_gap, pairs=config.batch)
    train_on_pairs(run, config.updates, config.batch, config.rlhf_learning_rate, loss)


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Best-of-N of the arm's samples by what the base says of them (without @N: of all), and how sharp they are."""
    if run.arm == "base":  # what other papers on its pool have read
        scores = of_ended(torch.from_numpy(sums_of(rollouts)["logp"]), rollouts.completions).numpy()
    else:
        scores = self_rewards(run, rollouts.completions).numpy()
    right = rollouts.rewards.double().numpy()
    lengths = rollouts.lengths.double().numpy()
    answers = answers_of(rollouts)
    metrics: dict[str, Metric] = {}
    for n in config.sizes:
        metrics[f"likelihood@{n}"] = share(best_of(right, scores, n))
        metrics[f"likelihood a token@{n}"] = share(best_of(right, scores / lengths, n))
        metrics[f"majority@{n}"] = share([majority_at_k(a, r, n) for a, r in zip(answers, right, strict=True)])
        metrics[f"length of likeliest@{n}"] = number(best_of(lengths, scores, n))
    metrics |= of_all(metrics, n)
    ends = np.isfinite(scores)
    metrics["log-likelihood"] = number(ratio(np.where(ends, scores, 0).sum(1), ends.sum(1)))
    best = scores.max(1)
    metrics["log coverage"] = number(log_coverage(best[np.isfinite(best)]))
    likeliest = [group[row.argmax()].ids for group, row in zip(rollouts.completions, scores, strict=True)]
    alike = [  # of the others
        (sum(c.ids == ids for c in group) - 1) / max(1, len(group) - 1)
        for group, ids in zip(rollouts.completions, likeliest, strict=True)
    ]
    return metrics | {"share of likeliest": share(alike)}


SELECTORS = ("likelihood", "likelihood a token", "majority")
over = partial(Claim.over, "sharpen_sft")
SFT, SAMPLED, GREEDY, BEST, VOTED = (
    ("sharpen_sft", "accuracy"),
    *(("base", name) for name in ("accuracy", "greedy", "likelihood", "majority")),
)
COMPARED = (
    ("sharpen_sft_over_greedy", "SFT-Sharpening ends above the base's greedy decoding", SFT, GREEDY, "1.8 to 19.2 %"),
    ("best_over_sampling", "Best-of-N by likelihood is above sampling", BEST, SAMPLED, ""),
    ("best_over_greedy", "Best-of-N by likelihood is above greedy decoding", BEST, GREEDY, "most models"),
    ("best_over_sharpen_sft", "Best-of-N by likelihood is above SFT-Sharpening", BEST, SFT, "yes"),
    ("majority_over_best", "The majority is above best-of-N by likelihood", VOTED, BEST, "usually"),
)

PAPER = Paper(
    slug="sharpening",
    title="Self-Improvement in Language Models: The Sharpening Mechanism",
    arxiv="2412.01951",
    family="self-training",
    config=Config,
    arms={
        "random_sft": partial(sharpen_sft, score=random_scores),
        "sharpen_sft": sharpen_sft,
        "rlhf_sharpen": rlhf_sharpen,
        "rft": standard("rft", by_name=True),
    },
    measure=measure,
    claims=(
        over("random_sft", text="SFT on the likeliest sample ends above SFT on a random one", primary=True),
        over("base", text="SFT-Sharpening ends above the base"),
        over("base", "log-likelihood", text="Its samples are likelier under the base", published="1.5 to 48.3 %"),
        over("random_sft", "log-likelihood", text="They are likelier than those of SFT on a random sample"),
        Claim.over("rlhf_sharpen", "base", text="RLHF-Sharpening ends above the base"),
        *(Claim(name, text, left, right, published=p) for name, text, left, right, p in COMPARED),
    ),
    columns=(
        "accuracy",
        "greedy",
        "likelihood",
        "majority",
        "log-likelihood",
        "share of likeliest",
        "entropy",
        "length",
    ),
    published={"sharpen_sft": "+19.2 %"},
    published_setting="Phi3.5-mini on MATH: accuracy of samples over the base's greedy decoding, relative",
    curves=("reward", "chosen right", "chosen length", "loss"),
    panels=(
        Panel("accuracy of the base's best of N", SELECTORS, "sizes", x="samples", arms=("base",)),
        Panel("length of the base's likeliest of N", ("length of likeliest",), "sizes", x="samples", arms=("base",)),
        Panel("log pi_base of samples", ("log-likelihood",), "bars"),
        Panel("accuracy", ("accuracy", "greedy"), "bars"),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
