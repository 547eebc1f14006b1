"""NFT: Bridging Supervised Learning and Reinforcement Learning in Math Reasoning. Huayu Chen, Kaiwen Zheng, Qinsheng
Zhang, Ganqu Cui et al., arXiv 2505.18116, ICLR 2026.

Idea. Rejection-sampling fine-tuning (RFT) raises the likelihood of right answers and throws the wrong ones away. NFT
keeps them: the policy that generated the answers is a known mixture of a "right" and a "wrong" part, so a model of the
right part implies a model of the wrong part, and maximum likelihood of wrong answers under that implicit negative
policy trains the same network. On-policy, the gradient is (Dr.) GRPO's; off-policy it needs no ratio clipping.

Reproduced. base, RFT, GRPO and NFT from the same base, problems, order and number of completions. That NFT's gradient
equals Dr. GRPO's with one update per rollout is a unit test (tests/papers/test_nft.py). Further arms by name:
rft_weighted (RFT with NFT's prompt weight), dr_grpo.

How this differs from the paper and why.
- Every arm sees a fixed number of prompts a step, and prompts whose answers are all right or all wrong are dropped
  afterwards. The paper draws on until the batch is full; then arms with other success rates see other problems.
- The loss is divided by the mini-batch's completion tokens (the text's token mean); the code divides by 1000.
- LoRA and a higher learning rate in place of full fine-tuning at 1e-6; 4 updates per rollout in place of 16.

Commands.
    repro run nft                                  # tiny model, seed 0
    repro run nft --seeds 5                        # with intervals over seeds
    repro run nft --preset smol                    # SmolLM2-135M-Instruct on sums, differences and products
    repro run nft --preset gpu                     # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Literal

import torch

from repro import Arm, Claim, Paper, Run, RunConfig, script_main, standard

Omega = Literal["1", "1-r", "sqrt"]


@dataclass(frozen=True)
class Config(RunConfig):
    """NFT's hyperparameters."""

    learning_rate: float = 1e-3
    """Of NFT; chosen on validation problems (paper: 1e-6 for all arms, full fine-tuning)."""
    rft_learning_rate: float = 2e-3
    """Of RFT, chosen alike."""
    minibatches: int = 4
    """Optimiser steps per rollout step (paper: 16). With 1, NFT is Dr. GRPO by construction."""
    eps: float = 1.0
    """Lower bound of the implicit negative ratio, max_v's epsilon (paper: 1.0)."""
    neg_weight: float = 1.0
    """Weight of wrong answers (code: neg_weight 1.0); 0 is RFT."""
    omega: Omega = "1-r"
    """Prompt weight: 1, 1-r (paper's default, on-policy equal to Dr. GRPO) or sqrt((1-r)/r) (equal to GRPO)."""
    r_min: float = 0.02
    """The success rate r is kept within [r_min, 1 - r_min] (code)."""
    max_log_ratio: float = 10.0
    """Upper bound of log R, of right and wrong tokens alike (code)."""

    PRESETS = {  # noqa: RUF012
        "smol": {"rft_learning_rate": 2e-4},
        "small": {"rft_learning_rate": 1e-4},
        "gpu": {"rft_learning_rate": 2e-5},
    }


# --- the paper's loss -----------------------------------------------------------------------------------------------


def prompt_weight(r_hat: torch.Tensor, omega: Omega) -> torch.Tensor:
    """omega(q) of equation 10, from the success rate of the prompt."""
    if omega == "1":
        return torch.ones_like(r_hat)
    return 1 - r_hat if omega == "1-r" else ((1 - r_hat) / r_hat).sqrt()


def max_v(x: torch.Tensor, eps: float) -> torch.Tensor:
    """max(x, eps) as a value, with the gradient of x. A plain clamp would have none: on-policy, NFT would be RFT."""
    return x + (x.clamp(min=eps) - x).detach()


def negative_ratio(ratio: torch.Tensor, r_hat: torch.Tensor) -> torch.Tensor:
    """The implicit negative policy over the old one: (1 - r R) / (1 - r), below 0 once R > 1/r."""
    return (1 - r_hat * ratio) / (1 - r_hat)


def nft_loss(
    logp: torch.Tensor, old_logp: torch.Tensor, right: torch.Tensor, r_hat: torch.Tensor, config: Config
) -> torch.Tensor:
    """Equation 10 per token; all [tokens]. ``right`` is 1 or 0, ``r_hat`` the success rate of the token's prompt.

    The value says nothing (on wrong tokens it is 0 wherever R >= 1); the gradient does.
    """
    log_ratio = (logp - old_logp).clamp(max=config.max_log_ratio)
    r_hat = r_hat.clamp(config.r_min, 1 - config.r_min)
    positive = -log_ratio
    negative = -max_v(negative_ratio(log_ratio.exp(), r_hat), config.eps).log()
    return prompt_weight(r_hat, config.omega) * (right * positive + config.neg_weight * (1 - right) * negative)


# --- the arms -------------------------------------------------------------------------------------------------------


def nft(run: Run, config: Config) -> None:
    """Algorithm 1."""

    def loss(logp: torch.Tensor, f: SimpleNamespace) -> torch.Tensor:
        return nft_loss(logp, f.old_logp, f.right, f.r_hat, config)

    for _ in run.stage("train", config.steps, learning_rate=config.learning_rate):
        rollouts = run.rollout(run.next_problems(config.prompts), config.samples).mixed()  # 0 < r_hat < 1
        if not rollouts.problems:
            continue
        batch = rollouts.batch()
        # r_hat is over all samples of a prompt: a mini-batch may split them
        r_hat = rollouts.rewards.mean(1, keepdim=True).expand_as(rollouts.rewards)
        batch.fields["right"] = batch.spread(rollouts.rewards.flatten())
        batch.fields["r_hat"] = batch.spread(r_hat.flatten())
        # by the training forward pass, not by the sampler
        batch.fields["old_logp"] = run.logprobs(batch, temperature=config.temperature)
        for mini in batch.split(config.minibatches, run.rng):
            run.update(mini, loss, mean="token", temperature=config.temperature)


def rft(run: Run, config: Config) -> None:
    """The same loop without wrong answers and without prompt weights."""
    nft(run, replace(config, neg_weight=0.0, omega="1", learning_rate=config.rft_learning_rate))


def rft_weighted(run: Run, config: Config) -> None:
    """RFT with NFT's prompt weight: what the weight alone does."""
    nft(run, replace(config, neg_weight=0.0, learning_rate=config.rft_learning_rate))


PAPER = Paper(
    slug="nft",
    title="NFT: Bridging Supervised Learning and Reinforcement Learning in Math Reasoning",
    arxiv="2505.18116",
    family="reinforcement learning",
    config=Config,
    arms={
        "rft": rft,
        "grpo": standard("grpo"),
        "nft": nft,
        "rft_weighted": Arm(rft_weighted, by_name=True),
        "dr_grpo": standard("dr_grpo", by_name=True),
    },
    claims=(
        Claim.over(
            "nft", "rft", text="NFT ends above RFT at equal samples", published="+3.4 (7B), +6.4 (32B)", primary=True
        ),
        Claim(
            "nft_on_par_with_grpo",
            "NFT is not worse than GRPO by more than 2 points",
            ("nft", "accuracy"),
            ("grpo", "accuracy"),
            threshold=-0.02,
            published="+2.2 (7B)",
        ),
        Claim(
            "nft_keeps_entropy",
            "NFT keeps more entropy than RFT, mean over training",
            ("nft", "training entropy"),
            ("rft", "training entropy"),
            published="RFT's falls, NFT's rises",
        ),
    ),
    published={"base": "31.6", "rft": "48.3", "grpo": "49.5", "nft": "51.7"},
    published_setting="Qwen2.5-Math-7B, average of six mathematics benchmarks",
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
