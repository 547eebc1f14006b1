"""GRPO, with Dr. GRPO and DAPO as settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from repro.run import Run

Variant = Literal["grpo", "dr_grpo", "dapo"]


@dataclass(frozen=True)
class GRPO:
    """Settings of the group-relative policy gradient. DeepSeekMath 2402.03300, Dr. GRPO 2503.20783, DAPO 2503.14476."""

    variant: Variant = "grpo"
    minibatches: int = 1  # optimiser steps per rollout; with 1 the ratio is 1 and nothing is clipped
    clip_low: float = 0.2
    clip_high: float = 0.2  # DAPO: 0.28
    kl: float = 0.0  # weight of the k3 estimate of KL(policy || reference)
    generation_batches: int = 1  # DAPO's dynamic sampling: at most so many batches of prompts a step


def advantages(rewards: torch.Tensor, variant: Variant, ddof: int = 1, delta: float = 1e-6) -> torch.Tensor:
    """Rewards relative to their group, [groups, samples]; divided by the group's std except for dr_grpo.

    2402.03300 section 4.1.2; ``ddof`` 1 as in public trainers, 0 for the population std of the equations.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    if variant == "dr_grpo":
        return centred
    return centred / (rewards.std(1, keepdim=True, correction=ddof) + delta)


def surrogate(
    logp: torch.Tensor, old_logp: torch.Tensor, advantage: torch.Tensor, clip_low: float, clip_high: float
) -> torch.Tensor:
    """PPO's clipped loss per token, -min(rho A, clip(rho) A), all [tokens]."""
    ratio = (logp - old_logp).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)


def token_weights(lengths: Sequence[int], variant: Variant, limit: int) -> torch.Tensor:
    """Weight of each token in the loss, [tokens]; ``limit`` is the generation limit, a constant.

    grpo: mean over sequences of token means. dapo: mean over tokens. dr_grpo: sum divided by sequences x limit.
    """
    length = torch.tensor(lengths)
    per_sequence = {
        "grpo": 1 / (len(lengths) * length),
        "dapo": torch.full((len(lengths),), 1 / sum(lengths)),
        "dr_grpo": torch.full((len(lengths),), 1 / (len(lengths) * limit)),
    }[variant]
    return per_sequence.repeat_interleave(length)


def kl_k3(logp: torch.Tensor, ref_logp: torch.Tensor) -> torch.Tensor:
    """Non-negative estimate of KL(policy || reference) per token: exp(d) - d - 1 with d = ref_logp - logp."""
    d = ref_logp - logp
    return d.exp() - d - 1


def soft_overlong(length: int, limit: int, buffer: int) -> float:
    """DAPO's soft overlong punishment, added to the reward (2503.14476, equation 13)."""
    if length <= limit - buffer:
        return 0.0
    return (limit - buffer - length) / buffer if length <= limit else -1.0


def grpo_loss(logp: torch.Tensor, fields: SimpleNamespace, settings: GRPO) -> torch.Tensor:
    """Weighted surrogate, with the KL term where it is on; [tokens]."""
    loss = surrogate(logp, fields.old_logp, fields.advantage, settings.clip_low, settings.clip_high)
    if settings.kl:
        loss = loss + settings.kl * kl_k3(logp, fields.ref_logp)
    return loss * fields.weight


def dynamic_sampling(draw: Callable[[], list], wanted: int, cap: int) -> list:
    """Call ``draw`` until ``wanted`` items have come together, at most ``cap`` times; the surplus is dropped (DAPO).

    Raises RuntimeError when the cap is reached, since the batch would be smaller than the method asks for.
    """
    found: list = []
    for _ in range(cap):
        found += draw()
        if len(found) >= wanted:
            return found[:wanted]
    raise RuntimeError(f"dynamic sampling found {len(found)} of {wanted} mixed groups in {cap} batches")


def train_grpo(run: Run, iterations: int, problems: int, samples: int, settings: GRPO) -> None:
    """GRPO from outcome rewards. Groups that are all right or all wrong have no gradient; DAPO drops them."""
    for _ in run.steps(iterations):
        rollouts = run.rollout(run.next_problems(problems), samples)
        if settings.variant == "dapo":
            rollouts = rollouts.mixed()
            if settings.generation_batches > 1:
                rollouts = _refill(run, rollouts, problems, samples, settings.generation_batches)
        if not rollouts.problems:
            continue
        batch = rollouts.batch()
        batch.fields["old_logp"] = run.values(batch)
        batch.fields["advantage"] = batch.spread(advantages(rollouts.rewards, settings.variant).flatten())
        if settings.kl:
            batch.fields["ref_logp"] = run.values(batch, adapter=None)
        for mini in batch.split(settings.minibatches, run.rng):
            mini.fields["weight"] = token_weights(mini.lengths, settings.variant, run.config.max_new_tokens)
            run.update(mini, partial(grpo_loss, settings=settings))


def _refill(run: Run, rollouts, problems: int, samples: int, cap: int):
    queue = [rollouts]

    def draw() -> list:
        part = queue.pop() if queue else run.rollout(run.next_problems(problems), samples).mixed()
        return [part.select([i]) for i in range(len(part.problems))]

    groups = dynamic_sampling(draw, problems, cap)
    return type(rollouts)(
        [g.problems[0] for g in groups], [g.completions[0] for g in groups], torch.cat([g.rewards for g in groups])
    )
