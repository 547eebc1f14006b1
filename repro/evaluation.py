"""The evaluation that every arm of every paper shares."""

from __future__ import annotations

import numpy as np
import torch

from repro.methods.pool import token_scores
from repro.results.metric import Metric, number, share
from repro.results.metrics import pass_at_k
from repro.run import Rollouts, Run, entropy
from repro.tasks import prompts


def evaluate(run: Run) -> tuple[dict[str, Metric], Rollouts]:
    """Accuracy (mean over samples), pass@k and greedy accuracy on held-out problems; the rollouts they come from.

    Those know their token scores (repro/methods/pool.py).
    """
    config, problems = run.config, run.held_out()
    chats = [prompts.solve(p) for p in problems]
    generator = torch.Generator(run.policy.device).manual_seed(10_000 + run.seed)
    completions = run.sample(chats, config.eval_samples, generator=generator, score=token_scores)
    rewards = run.rewards(problems, completions)
    greedy = run.rewards(problems, run.sample(chats, 1, temperature=0.0, generator=generator))[:, 0]
    every = [c for group in completions for c in group]
    n = config.eval_samples
    metrics = {
        "accuracy": share(rewards.mean(1)),
        "greedy": share(greedy),
        "entropy": number(entropy(every)),
        "length": number(np.mean([len(c.ids) for c in every])),
        "truncated": share(np.mean([c.truncated for c in every])),
    }
    k = 1
    while k < n:
        k = min(2 * k, n)
        metrics[f"pass@{k}"] = share([pass_at_k(n, int(c), k) for c in rewards.sum(1)])
    for level in sorted({p.level for p in problems}):
        rows = [i for i, p in enumerate(problems) if p.level == level]
        metrics[f"accuracy, level {level}"] = share(rewards[rows].mean())
    return metrics, Rollouts(problems, completions, rewards)
