"""GRPO, with Dr. GRPO and DAPO as settings. DeepSeekMath 2402.03300, Dr. GRPO 2503.20783, DAPO 2503.14476."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import torch

from repro.model.policy import BASE
from repro.model.training import Mean

if TYPE_CHECKING:
    from repro.run import Rollouts, Run
    from repro.tasks.problem import Problem

Variant = Literal["grpo", "dr_grpo", "dapo"]


@dataclass(frozen=True)
class GRPO:
    """Settings of the group-relative policy gradient."""

    variant: Variant = "grpo"
    minibatches: int = 1  # optimiser steps per rollout; with 1 the ratio is 1 and nothing is clipped
    clip_low: float = 0.2
    clip_high: float = 0.2  # DAPO: 0.28
    kl: float = 0.0  # weight of the k3 estimate of KL(policy || reference)
    keep_uniform: bool = False  # dapo without its filter: groups that are all right or all wrong stay in the mean


def advantages(rewards: torch.Tensor, variant: Variant, ddof: int = 1, delta: float = 1e-6) -> torch.Tensor:
    """Rewards relative to their group, [groups, samples]; divided by the group's std except for dr_grpo.

    2402.03300 section 4.1.2; ``ddof`` 1 as in public trainers, 0 for the population std of the equations.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    if variant == "dr_grpo":
        return centred
    return centred / (rewards.std(1, keepdim=True, correction=ddof) + delta)


def leave_one_out(values: torch.Tensor) -> torch.Tensor:
    """RLOO: each value minus the mean of the others of its row, the last dimension (2402.14740), same shape."""
    others = values.shape[-1] - 1
    return (values - values.mean(-1, keepdim=True)) * (others + 1) / others


def whiten(values: torch.Tensor, ddof: int = 0, delta: float = 1e-8) -> torch.Tensor:
    """Less their mean, over their std: of all values, of any shape."""
    return (values - values.mean()) / (values.std(correction=ddof) + delta)


def surrogate(
    logp: torch.Tensor, old_logp: torch.Tensor, advantage: torch.Tensor, clip_low: float, clip_high: float
) -> torch.Tensor:
    """PPO's clipped loss per token, -min(rho A, clip(rho) A), all [tokens]."""
    ratio = (logp - old_logp).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)


def mean_of(variant: Variant, lengths: Sequence[int], limit: int) -> Mean:
    """grpo: mean over sequences of token means. dapo: mean over tokens. dr_grpo: sum / (sequences x limit)."""
    return {"grpo": "sequence", "dapo": "token", "dr_grpo": 1 / (max(1, len(lengths)) * limit)}[variant]


def kl_k3(logp: torch.Tensor, ref_logp: torch.Tensor) -> torch.Tensor:
    """Non-negative estimate of KL(policy || reference) per token: exp(d) - d - 1 with d = ref_logp - logp."""
    d = ref_logp - logp
    return d.exp() - d - 1


def grpo_loss(logp: torch.Tensor, fields: SimpleNamespace, settings: GRPO) -> torch.Tensor:
    """The surrogate, with the KL term where it is on; [tokens]. Without old log-probs the ratio is 1."""
    old_logp = getattr(fields, "old_logp", logp.detach())
    loss = surrogate(logp, old_logp, fields.advantage, settings.clip_low, settings.clip_high)
    return loss + settings.kl * kl_k3(logp, fields.ref_logp) if settings.kl else loss


def from_outcomes(run: Run, rollouts: Rollouts, settings: GRPO) -> torch.Tensor:
    """The group-relative advantages of the rewards, [problems, samples]."""
    return advantages(rollouts.rewards, settings.variant)


def over_tokens(run: Run, rollouts: Rollouts, settings: GRPO, ddof: int = 0) -> torch.Tensor:
    """Rewards less their group's mean, standardised over the batch's tokens: a response counts by its length, [tokens].

    REINFORCE++-baseline as it is implemented (2501.03262).
    """
    return whiten(rollouts.batch().spread(advantages(rollouts.rewards, "dr_grpo").flatten()), ddof)


def train_grpo(
    run: Run,
    steps: int,
    problems: int,
    samples: int,
    settings: GRPO,
    *,
    draw: Callable[[Run, int], list[Problem]] | None = None,
    rollout: Callable[[Run, list[Problem], int], Rollouts] | None = None,
    advantage: Callable[[Run, Rollouts, GRPO], torch.Tensor] = from_outcomes,
    **stage: Any,
) -> None:
    """The policy-gradient loop. Groups that are all right or all wrong have no gradient; DAPO drops them.

    What a paper changes: ``draw`` chooses the problems of a step, by default the next ones; ``rollout`` samples and
    rewards, drops or replaces groups; ``advantage`` gives [problems, samples], or one value a completion token in the
    order of ``rollouts.batch()``. ``stage``: what it begins with (see ``Run.stage``).
    """
    temperature = run.config.temperature
    for _ in run.stage("train", steps, **stage):
        drawn = draw(run, problems) if draw else run.next_problems(problems)
        rollouts = rollout(run, drawn, samples) if rollout else run.rollout(drawn, samples)
        if settings.variant == "dapo" and not settings.keep_uniform:
            rollouts = rollouts.mixed()
        if not rollouts.problems:
            continue
        batch = rollouts.batch()
        if settings.minibatches > 1:
            batch.fields["old_logp"] = run.logprobs(batch, temperature=temperature)
        weighed = advantage(run, rollouts, settings)
        batch.fields["advantage"] = batch.spread(weighed.flatten()) if weighed.dim() == 2 else weighed
        if settings.kl:
            batch.fields["ref_logp"] = run.logprobs(batch, BASE, temperature)
        for mini in batch.split(settings.minibatches, run.rng):
            mean = mean_of(settings.variant, mini.lengths, run.config.max_new_tokens)
            run.update(mini, partial(grpo_loss, settings=settings), mean, temperature)
