"""Direct preference optimisation (2305.18290) of right over wrong own solutions."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch

from repro.methods.sft import draws
from repro.model.policy import BASE
from repro.model.training import Batch, TokenLoss

if TYPE_CHECKING:
    from repro.run import Rollouts, Run


def dpo_loss(logp: torch.Tensor, fields: SimpleNamespace, beta: float, pairs: int) -> torch.Tensor:
    """-log sigma(beta (r(chosen) - r(rejected))) / pairs with r = log pi / pi_ref summed over tokens, [pairs].

    Equation 7. ``fields.row`` numbers the tokens' sequences: even ones are chosen, the next one is rejected.
    """
    ratio = logp.new_zeros(int(fields.row[-1]) + 1).index_add(0, fields.row, logp - fields.ref_logp)
    return -torch.nn.functional.logsigmoid(beta * (ratio[0::2] - ratio[1::2])) / pairs


def preference_pairs(rollouts: Rollouts, rng: torch.Generator) -> list[list[list[list[int]]]]:
    """[right, wrong] solutions of one problem as [prompt ids, completion ids]; as many as it has of both."""
    pairs = []
    for group, rewards in zip(rollouts.completions, rollouts.rewards.tolist(), strict=True):
        order = torch.randperm(len(group), generator=rng).tolist()
        right, wrong = ([group[i] for i in order if bool(rewards[i]) is kind] for kind in (True, False))
        pairs += [[[list(c.prompt), list(c.ids)] for c in pair] for pair in zip(right, wrong, strict=False)]
    return pairs


def train_dpo(
    run: Run, steps: int, problems: int, samples: int, updates: int, size: int, learning_rate: float, beta: float
) -> None:
    """Pairs of the base's own solutions of ``steps`` x ``problems`` problems, then ``updates`` steps on ``size``."""
    for _ in run.stage("collect", steps):
        rollouts = run.rollout(run.next_problems(problems), samples)
        run.kept.setdefault("pairs", []).extend(preference_pairs(rollouts, run.rng))
        run.log(pairs=len(run.kept["pairs"]))
    train_on_pairs(run, updates, size, learning_rate, partial(dpo_loss, beta=beta, pairs=size))


def train_on_pairs(run: Run, updates: int, size: int, learning_rate: float, loss: TokenLoss) -> None:
    """``updates`` steps on ``size`` of the pairs in ``run.kept``, each epoch in a new order.

    ``loss`` is given the base's log-probs as the field ``ref_logp``.
    """

    def order() -> None:
        run.kept["order"] = list(draws(len(run.kept["pairs"]), updates, size, run.rng))

    for update in run.stage("train", updates, learning_rate=learning_rate, begin=order):
        if run.kept["order"]:
            batch = Batch([s for i in run.kept["order"][update] for s in run.kept["pairs"][i]])
            batch.fields["ref_logp"] = run.logprobs(batch, BASE)
            run.update(batch, loss, together=2)
