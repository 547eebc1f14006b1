"""The evaluation that all arms share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from repro.config import RunConfig
from repro.model.sampling import Completion
from repro.paper import Metrics
from repro.results.metrics import pass_at_k
from repro.run import Run, entropy
from repro.tasks import prompts
from repro.tasks.loading import load


def evaluate(
    run: Run, config: RunConfig, more: Callable[[list[list[Completion]], torch.Tensor], Metrics] | None = None
) -> Metrics:
    """Accuracy (mean over samples), pass@k and greedy accuracy on held-out problems; per-problem values.

    ``more``: further metrics from the same completions and rewards [problems, samples].
    """
    problems = load(config.task, config.eval_split, config.eval_problems, 0, config.data)
    chats = [prompts.solve(p) for p in problems]
    generator = torch.Generator(run.policy.device).manual_seed(10_000 + run.seed)
    completions = run.sample(chats, config.eval_samples, generator=generator)
    rewards = run.rewards(problems, completions)
    greedy = run.rewards(problems, run.sample(chats, 1, temperature=0.0, generator=generator))[:, 0]
    every = [c for group in completions for c in group]
    n = config.eval_samples
    metrics: Metrics = {
        "accuracy": rewards.mean(1).tolist(),
        "greedy": greedy.tolist(),
        "entropy": entropy(every),
        "length": float(np.mean([len(c.ids) for c in every])),
        "truncated": float(np.mean([c.truncated for c in every])),
    }
    k = 1
    while k < n:
        k = min(2 * k, n)
        metrics[f"pass@{k}"] = [pass_at_k(n, int(c), k) for c in rewards.sum(1)]
    for level in sorted({p.level for p in problems}):
        metrics[f"accuracy, level {level}"] = float(
            np.mean([a for a, p in zip(metrics["accuracy"], problems, strict=True) if p.level == level])
        )
    if more is not None:
        metrics.update(more(completions, rewards))
    return metrics
