"""Rejection-sampling fine-tuning: sample, keep what is right, raise its likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repro.methods.sft import draws, nll
from repro.model.training import Batch

if TYPE_CHECKING:
    from repro.run import Rollouts, Run


def right_solutions(rollouts: Rollouts) -> list[list[list[int]]]:
    """[prompt ids, completion ids] of every right completion, each once."""
    pairs = zip(rollouts.completions, rollouts.rewards, strict=True)
    right = dict.fromkeys((c.prompt, c.ids) for group, kept in pairs for c, r in zip(group, kept, strict=True) if r)
    return [[list(prompt), list(ids)] for prompt, ids in right]


def train_rft(run: Run, steps: int, problems: int, samples: int, updates: int, size: int, learning_rate: float) -> None:
    """The base's own right solutions of ``steps`` x ``problems`` problems, then ``updates`` steps on ``size`` of them.

    Each epoch's order is drawn anew; a solution that was sampled twice counts once (2308.01825).
    """
    for _ in run.stage("collect", steps):
        rollouts = run.rollout(run.next_problems(problems), samples)
        run.kept.setdefault("solutions", []).extend(right_solutions(rollouts))
        run.log(solutions=len(run.kept["solutions"]))
    train_on_kept(run, updates, size, learning_rate)


def train_on_kept(run: Run, updates: int, size: int, learning_rate: float | None = None, **stage) -> None:
    """``updates`` steps of cross-entropy on ``size`` of the solutions in ``run.kept``, each epoch in a new order.

    ``stage``: what else `Run.stage` takes.
    """

    def order() -> None:
        run.kept["order"] = list(draws(len(run.kept["solutions"]), updates, size, run.rng))

    for update in run.stage("train", updates, learning_rate=learning_rate, begin=order, **stage):
        if run.kept["order"]:
            run.update(Batch([run.kept["solutions"][i] for i in run.kept["order"][update]]), nll)


def train_rft_online(
    run: Run, steps: int, problems: int, samples: int, minibatches: int, learning_rate: float | None = None
) -> None:
    """The same with fresh samples of the policy at every step, all of the right ones used at once."""
    for _ in run.stage("train", steps, learning_rate=learning_rate):
        rollouts = run.rollout(run.next_problems(problems), samples)
        right = rollouts.batch().select(rollouts.rewards.flatten().nonzero()[:, 0].tolist())
        for mini in right.split(minibatches, run.rng) if right.sequences else ():
            run.update(mini, nll)
