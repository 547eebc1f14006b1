"""Supervised fine-tuning on reference solutions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch

from repro.model.training import Batch
from repro.tasks import prompts
from repro.tasks.problem import Problem

if TYPE_CHECKING:
    from repro.run import Run


def nll(logp: torch.Tensor, fields: SimpleNamespace) -> torch.Tensor:
    """Negative log-likelihood times the field ``weight``, [tokens]."""
    return -logp * fields.weight


def token_mean(batch: Batch) -> torch.Tensor:
    """Weights that make a sum over the batch's tokens their mean, [tokens]."""
    return torch.full((sum(batch.lengths),), 1.0 / max(1, sum(batch.lengths)))


def solution_batch(run: Run, problems: Sequence[Problem]) -> Batch:
    """Reference solutions as completions of the solve prompt, each closed by the end token."""
    tokenizer = run.policy.tokenizer
    pairs = []
    for problem in problems:
        completion = tokenizer(problem.solution, add_special_tokens=False).input_ids
        pairs.append((run.policy.encode(prompts.solve(problem)), [*completion, tokenizer.eos_token_id]))
    return Batch(pairs)


def batches(solutions: Sequence[tuple], count: int, size: int, rng: torch.Generator) -> Iterator[Batch]:
    """``count`` batches of (prompt ids, completion ids) pairs for ``nll``; all are used before one comes again."""
    queue: list[int] = []
    for _ in range(count if solutions else 0):
        while len(queue) < size:
            queue += torch.randperm(len(solutions), generator=rng).tolist()
        batch = Batch([solutions[i] for i in queue[:size]])
        del queue[:size]
        batch.fields["weight"] = token_mean(batch)
        yield batch


def train_sft(run: Run, iterations: int, problems: int) -> None:
    """Cross-entropy on reference solutions, ``problems`` of them a step; prompt tokens are masked."""
    for _ in run.steps(iterations):
        batch = solution_batch(run, run.next_problems(problems))
        batch.fields["weight"] = token_mean(batch)
        run.update(batch, nll)
