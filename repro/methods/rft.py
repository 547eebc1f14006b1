"""Rejection-sampling fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repro.methods.sft import nll, token_mean

if TYPE_CHECKING:
    from repro.run import Run


def train_rft(run: Run, iterations: int, problems: int, samples: int, minibatches: int = 1) -> None:
    """Rejection-sampling fine-tuning, online: sample, keep what is right, raise its likelihood."""
    for _ in run.steps(iterations):
        rollouts = run.rollout(run.next_problems(problems), samples)
        right = rollouts.batch().select(rollouts.rewards.flatten().nonzero()[:, 0].tolist())
        for mini in right.split(minibatches, run.rng) if right.sequences else ():
            mini.fields["weight"] = token_mean(mini)
            run.update(mini, nll)
