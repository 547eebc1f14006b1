"""Supervised fine-tuning: on reference solutions, or on any completions."""

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
    """Negative log-likelihood, [tokens]."""
    return -logp


def solution_batch(run: Run, problems: Sequence[Problem]) -> Batch:
    """Reference solutions as completions of the solve prompt, each closed by the end token."""
    tokenizer = run.policy.tokenizer
    pairs = []
    for problem in problems:
        completion = tokenizer(problem.solution, add_special_tokens=False).input_ids
        pairs.append((run.policy.encode(prompts.solve(problem)), [*completion, tokenizer.eos_token_id]))
    return Batch(pairs)


def draws(items: int, count: int, size: int, rng: torch.Generator) -> Iterator[list[int]]:
    """``count`` times ``size`` of the numbers below ``items``; all are used before one comes again."""
    queue: list[int] = []
    for _ in range(count if items else 0):
        while len(queue) < size:
            queue += torch.randperm(items, generator=rng).tolist()
        yield queue[:size]
        del queue[:size]


def train_sft(run: Run, steps: int, problems: int, learning_rate: float | None = None) -> None:
    """Cross-entropy on reference solutions, ``problems`` of them a step; prompt tokens carry no loss."""
    for _ in run.stage("train", steps, learning_rate=learning_rate):
        run.update(solution_batch(run, run.next_problems(problems)), nll)
