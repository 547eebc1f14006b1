"""DLER: Doing Length pEnalty Right - Incentivizing More Intelligence per Token via Reinforcement Learning.
Shih-Yang Liu, Xin Dong, Ximing Lu et al., arXiv 2510.15110, 2025.

Idea. The simplest length penalty is enough: a solution that isn't over at the limit gets no reward. What costs accuracy
under GRPO isn't the penalty but the optimiser: advantages over the group's std are biased where few samples are right,
entropy collapses, and many prompts carry no signal. Advantages that are standardised over the batch, a higher upper
clipping range and dropped groups keep accuracy at a fraction of the tokens.

Reproduced. On the request to think: GRPO (a mean over tokens, with the KL) without and with the limit, then the parts
one by one: advantages over the batch, clip-higher, and with dropped groups DLER. By name: statistics over tokens as in
the code; DA-DLER, by which problems that are mostly solved have half of the limit.

How this differs from the paper and why.
- Groups without signal are dropped, not replaced: all arms generate as many completions (paper: more, until the batch
  is full).
- Whether a right answer at the limit counts as right for the filter can't differ here: the box is what ends a solution.
- DA-DLER has its limits from the start (paper: from the end of DLER on), and groups are dropped by what it makes of
  their rewards. The cosine and other penalties, the dual clip and selective merging aren't here.
- Tokens are measured far above the limit. The kit's common evaluation asks for terse solutions: its accuracy says what
  is left of that role.
- LoRA, 4 optimiser steps a rollout (paper: 8).

Commands.
    repro run dler --seeds 5                       # tiny model, with intervals over seeds
    repro run dler --arms base grpo_cut dler --limit 96   # another limit
    repro run dler --preset gpu                    # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from repro import Arm, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, number, script_main, share
from repro.config import ConfigError
from repro.methods.behaviours import think, thought_metrics
from repro.methods.grpo import GRPO, advantages, from_outcomes, over_tokens, train_grpo, whiten
from repro.tasks import prompts
from repro.tasks.problem import Problem


@dataclass(frozen=True)
class Config(RunConfig):
    """DLER's hyperparameters."""

    learning_rate: float = 2e-3
    """Of all arms, chosen on validation problems (paper: 1e-6, full fine-tuning)."""
    minibatches: int = 4
    """Optimiser steps per rollout step (paper: 8)."""
    limit: int = 64
    """Tokens of a solution in training: below the mean of the base (paper: 4000, of a mean of 10,499)."""
    clip_high: float = 0.28
    """Upper clipping range of clip_higher and dler (paper: 0.28)."""
    kl: float = 5e-4
    """Weight of the KL to the base (paper: 0.0005; the scripts' estimate, k3)."""
    think_tokens: int = 320
    """Limit of the evaluation (paper: 32,000)."""
    think_samples: int = 2
    """Solutions of each held-out problem (paper: 16)."""

    PRESETS = {  # noqa: RUF012
        "smol": {"limit": 48, "think_tokens": 192},
        "small": {"limit": 160, "think_tokens": 640},
        "gpu": {"limit": 192, "think_tokens": 1024},
    }

    def check(self) -> None:
        super().check()
        if self.limit >= self.think_tokens:
            raise ConfigError(f"--limit {self.limit}: must be below --think-tokens, {self.think_tokens}")


# --- advantages and rewards ------------------------------------------------------------------------------------------


def over_batch(run: Run, rollouts: Rollouts, settings: GRPO) -> torch.Tensor:
    """Rewards less their group's mean, standardised over all responses of the batch, [problems, samples]."""
    return whiten(advantages(rollouts.rewards, "dr_grpo"))


def shortened(rewards: torch.Tensor, lengths: torch.Tensor, limit: int) -> torch.Tensor:
    """DA-DLER: where more than half of a group is right, what is longer than ``limit`` gets none; all [P, samples]."""
    easy = rewards.mean(1, keepdim=True) > 0.5
    return rewards * ~(easy & (lengths > limit))


# --- training --------------------------------------------------------------------------------------------------------


def train(
    run: Run,
    config: Config,
    limited: bool = True,
    advantage: Callable = from_outcomes,
    clip_higher: bool = False,
    dropped: bool = False,
    by_difficulty: bool = False,
) -> None:
    """The clipped surrogate, a mean over tokens, on thought solutions. What isn't over at the limit is wrong."""
    limit = config.limit if limited else config.think_tokens

    def rollout(run: Run, problems: list[Problem], samples: int) -> Rollouts:
        rollouts = run.rollout(problems, samples, ask=prompts.think, max_new_tokens=limit)
        if by_difficulty:
            rollouts.rewards = shortened(rollouts.rewards, rollouts.lengths, limit // 2)
        return rollouts

    high = config.clip_high if clip_higher else GRPO.clip_high
    settings = GRPO("dapo", config.minibatches, clip_high=high, kl=config.kl, keep_uniform=not dropped)
    sizes = config.steps, config.prompts, config.samples
    train_grpo(run, *sizes, settings, rollout=rollout, advantage=advantage)


dler = partial(train, advantage=over_batch, clip_higher=True, dropped=True)


# --- evaluation ------------------------------------------------------------------------------------------------------


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Accuracy, tokens and behaviours of thought solutions, far above the training limit and within it."""
    thought = think(run, rollouts.problems, config.think_samples, config.think_tokens)
    lengths = thought.lengths
    return thought_metrics(run, thought) | {
        "half of the think tokens": number(lengths.double().mean(1) / 2),
        "think accuracy within the limit": share((thought.rewards * (lengths <= config.limit)).mean(1)),
        "think truncated": share(np.mean([c.truncated for group in thought.completions for c in group])),
    }


over = Claim.over
THINK, TOKENS = "think accuracy", "think tokens"

PAPER = Paper(
    slug="dler",
    title="DLER: Doing Length pEnalty Right - Incentivizing More Intelligence per Token via Reinforcement Learning",
    arxiv="2510.15110",
    family="reinforcement learning",
    config=Config,
    arms={
        "grpo_full": partial(train, limited=False),
        "grpo_cut": train,
        "batch": partial(train, advantage=over_batch),
        "clip_higher": partial(train, advantage=over_batch, clip_higher=True),
        "dler": dler,
        "dler_tokens": Arm(partial(dler, advantage=partial(over_tokens, ddof=1)), by_name=True),
        "da_dler": Arm(partial(dler, by_difficulty=True), by_name=True),
    },
    measure=measure,
    claims=(
        Claim(
            *("tokens_halved", "DLER's solutions have less than half of the base's tokens"),
            *(("base", "half of the think tokens"), ("dler", TOKENS)),
            published="-77 % (1.5B), -69 % (7B)",
        ),
        over("dler", "base", THINK, threshold=-0.02, text="At no loss of accuracy (2 points)", published="+5.0 (1.5B)"),
        over(
            *("dler", "grpo_full", THINK),
            threshold=-0.02,
            text="It isn't below GRPO without a limit by more than 2 points",
        ),
        over("dler", "grpo_cut", THINK, text="It ends above GRPO with the same limit", primary=True),
        over("grpo_cut", "dler", TOKENS, threshold=-2.0, text="With at most 2 tokens a solution more"),
        over("batch", "grpo_cut", THINK, text="Advantages over the batch alone raise it", published="about +3"),
        over("dler", "grpo_cut", "training entropy", text="It keeps more entropy in training than GRPO with the limit"),
        over("grpo_full", "grpo_cut", TOKENS, text="It is the limit that shortens: without it GRPO ends longer"),
    ),
    columns=(THINK, TOKENS, "think accuracy within the limit", "think truncated", "redundant checks", "accuracy"),
    published={"base": "51.7 % / 10,499 tokens", "dler": "56.7 % / 2,466"},
    published_setting="R1-Distill-Qwen-1.5B, mean of five mathematics benchmarks",
    curves=("reward", "length", "entropy", "truncated"),
    panels=(
        Panel("reward within the limit", ("reward",), x="sampled_tokens"),
        Panel("tokens of a solution in training", ("length",), x="completions"),
        Panel(THINK, (THINK, TOKENS), "points"),
        Panel("accuracy", (THINK, "think accuracy within the limit"), "bars"),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
