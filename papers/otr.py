"""One-Token Rollout: Guiding Supervised Fine-Tuning of LLMs with Policy Gradient. Rui Ming, Haoyuan Wu, Shoubo Hu,
Zhuolun He, Bei Yu, arXiv 2509.26313, 2025.

Idea. Each position of a reference solution is an episode of one step: tokens are drawn from the tempered policy,
those that equal the reference's token are rewarded with 1 and all others with a slightly negative beta, and their
log-probs are weighted with these rewards. So the data of supervised fine-tuning (SFT) teach on-policy, token by token:
what the policy would hardly say is hardly learnt, and abilities that the data don't hold are said to suffer less.

Reproduced. base, SFT, DFT (each reference token weighted with its own probability, the expectation of OTR without
tempering and negative rewards), OTR without negative rewards and OTR, on the same solutions in the same order. In
domain: the task. Out of domain: other roles, which the solutions don't hold (below). By name: the exact form that
many samples tend to, other temperatures and fewer samples.

How this differs from the paper and why.
- Out of domain are other requests on held-out problems: another attempt behind a first one of the base and the true
  verdict on it; thinking at length; which of two solutions is right. Benchmarks of code and knowledge say nothing of
  models this small. First attempts are the base's, the same for all arms.
- The loss is the mean over all tokens of a batch, as the kit's SFT has it, in place of the mean over sequences: what
  differs between the arms is the loss of a token alone.
- kappa = 1.3 and beta = -0.1 aren't confirmed by a text that we have; neither are the paper's numbers. Signs alone are
  compared. LoRA, 40 updates.

Commands.
    repro run otr --seeds 5                                      # tiny model, with intervals
    repro run otr --arms otr otr_exact otr_kappa_1 otr_k_1       # the ablations
    repro run otr --preset small                                 # Qwen2.5-0.5B-Instruct on GSM8K, CPU or GPU
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch

from repro import BASE, Arm, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, number, script_main, share, standard
from repro.config import ConfigError
from repro.methods.judge import preferred
from repro.methods.sft import solution_batch
from repro.model.logprobs import token_logprob
from repro.results.metrics import over_all
from repro.tasks import prompts


@dataclass(frozen=True)
class Config(RunConfig):
    """OTR's hyperparameters."""

    learning_rate: float = 2e-3
    """Of OTR with any beta; as the standard SFT arm's (paper: the same for both)."""
    dft_learning_rate: float = 2e-3
    """Of DFT, likewise."""
    kappa: float = 1.3
    """Temperature of the drawn tokens; their log-probs are not tempered (paper: above 1, the value is inferred)."""
    beta: float = -0.1
    """Reward of a token that isn't the reference's (paper: slightly negative, the value is inferred)."""
    draws: int = 256
    """Tokens drawn at each position (paper: 256)."""
    updates: int = 40
    """Optimiser steps, as many as the standard SFT arm's."""
    batch: int = 32
    """Solutions in each of them, as many as that arm's."""

    PRESETS = {  # noqa: RUF012
        "smol": {"learning_rate": 2e-4, "dft_learning_rate": 2e-4, "updates": 64, "batch": 8},
        "small": {"learning_rate": 1e-4, "dft_learning_rate": 1e-4, "updates": 128, "batch": 8},
        "gpu": {"learning_rate": 1e-4, "dft_learning_rate": 1e-4, "updates": 240, "batch": 16},
    }

    def check(self) -> None:
        super().check()
        if self.kappa <= 0:
            raise ConfigError(f"--kappa {self.kappa}: must be above 0")
        if self.beta > 1:
            raise ConfigError(f"--beta {self.beta}: at most 1, the reward of the reference's token")


# --- the paper's loss: logits [tokens, vocabulary], targets [tokens] -> [tokens] --------------------------------------


def exact_loss(logits: torch.Tensor, targets: torch.Tensor, kappa: float, beta: float) -> torch.Tensor:
    """The expectation of the loss over what is drawn: -sum_a sg[pi'(a) R(a)] log pi(a), pi' = softmax(z / kappa).

    With kappa = 1 and beta = 0 it is DFT's. No gradient goes through pi' or R.
    """
    logp = logits.log_softmax(-1)
    drawn = (logits / kappa).softmax(-1).detach()
    hit = drawn.gather(-1, targets[:, None])[:, 0] * token_logprob(logits, targets)
    return -hit if beta == 0 else -hit - beta * ((drawn * logp).sum(-1) - hit)


def sampled_loss(
    logits: torch.Tensor, targets: torch.Tensor, kappa: float, beta: float, draws: int, generator: torch.Generator
) -> torch.Tensor:
    """The mean over ``draws`` tokens a ~ pi' of -R(a) log pi(a), R = 1 for the target and beta for all others."""
    drawn = (logits / kappa).softmax(-1).detach()
    tokens = torch.multinomial(drawn, draws, replacement=True, generator=generator)
    reward = torch.where(tokens == targets[:, None], 1.0, beta).to(logits.dtype)
    return -(reward * logits.log_softmax(-1).gather(-1, tokens)).mean(-1)


# --- the arms -------------------------------------------------------------------------------------------------------


def otr(run: Run, config: Config, **changes) -> None:
    """The standard SFT arm's solutions under this loss; ``changes``: with other settings."""
    config = replace(config, **changes)
    loss = partial(exact_loss, kappa=config.kappa, beta=config.beta)
    if config.draws:
        loss = partial(sampled_loss, kappa=config.kappa, beta=config.beta, draws=config.draws, generator=run.generator)
    for _ in run.stage("train", config.updates, learning_rate=config.learning_rate):
        run.update_on_logits(solution_batch(run, run.next_problems(config.batch)), loss)


def dft(run: Run, config: Config) -> None:
    """Reference tokens weighted with their own probability (2508.05629)."""
    otr(run, config, kappa=1.0, beta=0.0, draws=0, learning_rate=config.dft_learning_rate)


# --- evaluation -----------------------------------------------------------------------------------------------------


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """The other roles, and what the policy thinks of held-out solutions."""
    problems = rollouts.problems
    generator = torch.Generator(run.policy.device).manual_seed(20_000 + run.seed)
    first = run.sample([prompts.solve(p) for p in problems], 1, adapter=BASE, generator=generator)
    right = run.rewards(problems, first)[:, 0]
    pairs = list(zip(problems, [c.text for (c,) in first], right.tolist(), strict=True))
    again = [prompts.revise(prompts.solve(p), text, bool(reward)) for p, text, reward in pairs]
    wrong = [(p, p.solution, text) for p, text, reward in pairs if not reward]
    roles = {
        "revising": run.rewards(problems, run.sample(again, 1, generator=generator))[:, 0].numpy(),
        "thinking": run.rewards(problems, run.sample([prompts.think(p) for p in problems], 1, generator=generator))[
            :, 0
        ].numpy(),
    }
    if wrong:
        told = (preferred(run, wrong) > 0.5).numpy()
        roles["judging"] = over_all(told, (right == 0).nonzero()[:, 0].tolist(), len(problems))
    logp = run.logprobs(solution_batch(run, problems)).cpu()
    return {
        **{name: share(values) for name, values in roles.items()},
        "other roles": share(sum(roles.values()) / len(roles)),
        "NLL": number(-logp.mean()),
        "p(reference)": share(logp.exp().mean()),
        "out of reach": share(
            (logp.exp() < 1 / 256).float().mean()
        ),  # of 256 untempered draws, none is expected to be it
    }


over = Claim.over
OTHERS, NOT_WORSE = "other roles", "by more than 2 points"

PAPER = Paper(
    slug="otr",
    title="One-Token Rollout: Guiding Supervised Fine-Tuning of LLMs with Policy Gradient",
    arxiv="2509.26313",
    family="supervised fine-tuning",
    config=Config,
    arms={
        "sft": standard("sft"),
        "dft": dft,
        "otr_beta_0": partial(otr, beta=0.0),
        "otr": otr,
        "otr_exact": Arm(partial(otr, draws=0), by_name=True),
        **{f"otr_kappa_{k:g}": Arm(partial(otr, kappa=k), by_name=True) for k in (1.0, 2.0)},
        **{f"otr_k_{k}": Arm(partial(otr, draws=k), by_name=True) for k in (1, 16)},
    },
    measure=measure,
    claims=(
        over("otr", "sft", OTHERS, text="OTR ends above SFT in other roles", published="above", primary=True),
        over("otr", "sft", threshold=-0.02, text=f"In its domain it isn't worse {NOT_WORSE}", published="above"),
        over("base", "sft", OTHERS, text="SFT costs abilities in other roles"),
        over("otr", "base", OTHERS, threshold=-0.02, text=f"OTR costs no abilities in other roles, {NOT_WORSE}"),
        over("otr", "otr_beta_0", text="Negative rewards help in the domain", published="best"),
        over("otr", "otr_beta_0", OTHERS, text="Negative rewards help in other roles"),
        over("otr", "dft", text="OTR ends above DFT, which its expectation is close to"),
        over("otr", "dft", OTHERS, text="... in other roles"),
        over("otr", "sft", "out of reach", text="OTR leaves more reference tokens beyond its reach than SFT"),
    ),
    columns=("accuracy", "greedy", OTHERS, "revising", "thinking", "judging", "entropy", "NLL", "out of reach"),
    published_setting="Qwen2.5 and Qwen3 base models on OpenR1-Math-220k; its numbers weren't available",
    curves=("validation", "grad_norm"),
    panels=(
        Panel("accuracy (validation)", ("validation",)),
        Panel("in its domain and in other roles", ("accuracy", "revising", "thinking", "judging"), "bars"),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
