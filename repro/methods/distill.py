"""Self-distillation on the student's own answers: a teacher that reads more says how each token would have gone on.

A method of this family is what its teacher reads (a context), a divergence, and how the answers are drawn. The teacher
is the same model: the base, or a frozen copy of the policy. No verifier is needed; rewards are only logged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from repro.model.logprobs import Divergence, forward_kl
from repro.model.policy import BASE
from repro.model.training import Batch, Mean
from repro.run import Rollouts, Run
from repro.tasks.problem import Problem
from repro.tasks.prompts import Chat

Context = Callable[[Run, Rollouts], list[Sequence[int]]]  # ids of what the teacher reads, for each completion in order


def traits(reads: str, loss: str) -> dict[str, str]:
    """An arm of this family in the table of all of them: what the teacher reads, what the student minimises."""
    return {"teacher reads": reads, "loss": loss}


def of_problem(ask: Callable[[Problem], Chat]) -> Context:
    """What a teacher reads of the problem alone (``prompts.solve_with_reference``, ...), alike for all its answers."""

    def context(run: Run, rollouts: Rollouts) -> list[Sequence[int]]:
        asked = [run.policy.encode(ask(problem)) for problem in rollouts.problems]
        return [ids for ids, group in zip(asked, rollouts.completions, strict=True) for _ in group]

    return context


def read_by_teacher(run: Run, rollouts: Rollouts, context: Context) -> Batch:
    """The rollouts' answers, end tokens and truncated ones included, with what the teacher reads before each."""
    return replace(rollouts.batch(), contexts=context(run, rollouts))


def follow(run: Run, batch: Batch, divergence: Divergence, teacher: str = BASE, mean: Mean = "token") -> None:
    """One optimiser step on the divergence; logs the gap, KL(teacher || student) a token, from the same pass."""

    def both(student: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            gap = forward_kl(student, taught)
        return torch.stack([divergence(student, taught), gap], -1)

    def loss(values: torch.Tensor, _: SimpleNamespace) -> torch.Tensor:
        run.log(gap=values[:, 1].detach().mean())
        return values[:, 0]

    run.distill(batch, both, teacher, mean=mean, loss=loss)


def train_distill(
    run: Run,
    name: str,
    steps: int,
    problems: int,
    context: Context,
    divergence: Divergence,
    teacher: str = BASE,
    *,
    minibatches: int = 1,
    mean: Mean = "token",
    **stage: Any,
) -> None:
    """A stage of rollout steps: one answer to each of ``problems``, then ``minibatches`` optimiser steps on them.

    ``stage``: what it begins with (see ``Run.stage``); ``freeze="teacher"`` makes the policy its own teacher.
    """
    for _ in run.stage(name, steps, **stage):
        batch = read_by_teacher(run, run.rollout(run.next_problems(problems), 1), context)
        for mini in batch.split(minibatches, run.rng) if minibatches > 1 else [batch]:
            follow(run, mini, divergence, teacher, mean)
