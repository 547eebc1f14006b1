"""DPO and the data of RFT and DPO: worked numbers, and what is paired with what."""

import math
from types import SimpleNamespace

import pytest
import torch

from repro.methods.dpo import dpo_loss, preference_pairs
from repro.methods.rft import right_solutions
from repro.model.sampling import Completion
from repro.run import Rollouts
from repro.tasks.problem import Problem


def rollouts(rewards: list[list[float]], texts: list[str] | None = None) -> Rollouts:
    """Completions whose only token is their number, or that of their text."""
    numbers = [[i * len(row) + k for k in range(len(row))] for i, row in enumerate(rewards)]
    completions = [[Completion((i,), (n,), (0.0,), str(n), False) for n in row] for i, row in enumerate(numbers)]
    return Rollouts([Problem("q", "1")] * len(rewards), completions, torch.tensor(rewards))


def test_dpo_of_the_reference_is_log_two_and_its_gradient_is_half_beta():
    logp = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64, requires_grad=True)
    fields = SimpleNamespace(row=torch.tensor([0, 0, 1]), ref_logp=logp.detach().clone())
    loss = dpo_loss(logp, fields, beta=0.1, pairs=1)
    assert loss.tolist() == pytest.approx([math.log(2)])
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert gradient.tolist() == pytest.approx([-0.05, -0.05, 0.05])


def test_dpo_sums_log_ratios_over_the_tokens_of_each_pair():
    logp = torch.tensor([0.5, 0.5, -1.0, 0.0, 2.0], dtype=torch.float64)
    fields = SimpleNamespace(row=torch.tensor([0, 0, 1, 2, 3]), ref_logp=torch.zeros(5, dtype=torch.float64))
    margins = [0.5 * (1.0 - -1.0), 0.5 * (0.0 - 2.0)]
    expected = [math.log1p(math.exp(-m)) / 2 for m in margins]
    assert dpo_loss(logp, fields, beta=0.5, pairs=2).tolist() == pytest.approx(expected)


def test_pairs_are_of_one_problem_and_as_many_as_it_has_of_both():
    made = rollouts([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    pairs = preference_pairs(made, torch.Generator().manual_seed(0))
    assert len(pairs) == 3
    right = {(i,) for i, r in enumerate(made.rewards.flatten().tolist()) if r}
    for (prompt, chosen), (other, rejected) in pairs:
        assert prompt == other
        assert tuple(chosen) in right and tuple(rejected) not in right
    assert len({tuple(chosen) for (_, chosen), _ in pairs}) == 3


def test_a_right_solution_that_was_sampled_twice_counts_once():
    made = rollouts([[1.0, 1.0, 0.0]])
    twice = made.completions[0][0]
    made.completions[0][1] = twice
    assert right_solutions(made) == [[[0], [0]]]
