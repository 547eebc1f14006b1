"""Future credit on exact toys, the local gradients, cut forms, what a teacher reads, and short runs of all arms."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import own_arms, perturb
from torch.autograd import grad

from papers.distil_dagger import (
    PAPER,
    Config,
    credit_of,
    cross_entropy,
    follow,
    future_costs,
    siblings,
    surrogate,
    top_k_cross_entropy,
    with_feedback,
    within_groups,
)
from repro.arm import run_arm
from repro.model.logprobs import Divergence, forward_kl, jensen_shannon, reverse_kl
from repro.run import Run
from repro.tasks import prompts

SMALL = Config(
    updates=2,
    groups=4,
    samples=3,
    train_problems=16,
    eval_problems=6,
    eval_samples=2,
    aided_problems=4,
    max_new_tokens=64,
    monitors=1,
)


def logits(*p: float) -> torch.Tensor:
    return torch.tensor(p, dtype=torch.float64).log().requires_grad_()


def two_steps(after: dict[str, tuple], cost: Divergence) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Step 1 is a coin between a and b in both; ``after`` has student and teacher behind each. Exact expectation of the
    loss, its gradient by the first step's logits, and the surrogate's there, local alone and whole."""
    first, taught = logits(0.5, 0.5), logits(0.5, 0.5).detach()
    costs = torch.stack([cost(logits(*s)[None], logits(*t)[None])[0].detach() for s, t in after.values()])
    here = cost(first[None], taught[None])[0]
    whole = here + (first.softmax(-1) * costs).sum()
    exact = grad(whole, first, retain_graph=True)[0]
    total = torch.zeros(2, dtype=torch.float64)
    for action in (0, 1):  # both actions, weighted with their probability
        credit = future_costs(torch.stack([here.detach(), costs[action]]), [2])[0, :1]
        values = torch.stack([cost(first[None], taught[None]), first.log_softmax(-1)[action][None]], -1)
        loss = surrogate(values, SimpleNamespace(credit=credit))
        total += 0.5 * grad(loss.sum(), first, retain_graph=True)[0]
    assert torch.allclose(total, exact, atol=1e-9)
    return whole, grad(here, first)[0], total


def test_the_future_decides_where_nothing_is_to_be_learnt_locally():
    whole, local, total = two_steps({"a": ((0.9, 0.1), (0.9, 0.1)), "b": ((0.1, 0.9), (0.9, 0.1))}, cross_entropy)
    assert whole.item() == pytest.approx(1.897120, abs=1e-6)
    assert local.abs().max() < 1e-9
    assert total.tolist() == pytest.approx([-0.439445, 0.439445], abs=1e-6)  # descent favours a


def test_as_a_future_cost_cross_entropy_keeps_what_kl_does_not_see():
    after = {"a": ((0.9, 0.1), (0.9, 0.1)), "b": ((0.5, 0.5), (0.5, 0.5))}
    assert two_steps(after, cross_entropy)[2].tolist() == pytest.approx([-0.092016, 0.092016], abs=1e-6)
    assert two_steps(after, forward_kl)[2].abs().max() < 1e-9


def test_costs_of_what_follows():
    costs = torch.tensor([0.5, 1.0, 0.25])
    assert future_costs(costs, [3])[0].tolist() == pytest.approx([1.25, 0.25, 0])
    assert future_costs(costs, [3], 0.9)[0].tolist() == pytest.approx([1.225, 0.25, 0])
    assert future_costs(costs[:2], [2])[0].tolist() == pytest.approx([1, 0])  # the last token isn't there
    both = future_costs(torch.cat([costs, costs[:1]]), [3, 1])
    assert both[1].tolist() == [0, 0, 0] and both[0, 0] == 1.25  # no cost of a neighbour


def test_the_baseline_is_the_others_mean_and_the_ended_cost_nothing():
    future = torch.tensor([[3.0, 1.0], [1.0, 0.0], [5.0, 2.0], [7.0, 4.0]])
    centred = within_groups(future, [3, 1])
    assert centred.tolist() == [[0, 0], [-3, -1.5], [3, 1.5], [0, 0]]
    equal = within_groups(torch.full((4, 2), 2.5), [4])
    assert equal.abs().max() == 0  # a cost that is the same whatever is done teaches nothing


def test_credit_of_each_form():
    costs, lengths = torch.tensor([0.5, 1.0, 0.25, 2.0, 1.0]), [3, 2]
    assert credit_of(costs, lengths, [2], SMALL, "literal").tolist() == pytest.approx([1.25, 0.25, 0, 1, 0])
    centred = torch.tensor([0.25, 0.25, 0, -0.25, -0.25])  # with discount 1: each less the other's cost-to-go
    found = credit_of(costs, lengths, [2], replace(SMALL, discount=1.0, weight=0.3), "practical")
    assert torch.allclose(found, 0.3 * centred / centred.std())


def test_a_constant_cost_has_no_expected_gradient():
    policy = logits(0.2, 0.5, 0.3)
    values = torch.stack([torch.zeros(3), policy.log_softmax(-1)], -1)  # of the three actions

    def slope(*credit: float) -> torch.Tensor:
        losses = surrogate(values, SimpleNamespace(credit=torch.tensor(credit, dtype=torch.float64)))
        return grad((policy.softmax(-1).detach() * losses).sum(), policy, retain_graph=True)[0]

    assert slope(1.7, 1.7, 1.7).abs().max() < 1e-12
    assert slope(1.7, 0.0, 0.0)[0] > 0.1  # what costs more than the others is lowered


def test_local_gradients():
    student, teacher = logits(0.5, 0.3, 0.2), logits(0.6, 0.3, 0.1)
    value = cross_entropy(student[None], teacher.detach()[None]).sum()
    assert value.item() == pytest.approx(0.938024, abs=1e-6)
    slope = grad(value, student)[0]
    assert slope.tolist() == pytest.approx([-0.1, 0, 0.1], abs=1e-9)
    assert torch.allclose(slope, grad(forward_kl(student[None], teacher.detach()[None]).sum(), student)[0])
    cut = grad(top_k_cross_entropy(student[None], teacher.detach()[None], 1).sum(), student)[0]
    assert cut.tolist() == pytest.approx([-0.1, 0.06, 0.04], abs=1e-9)  # with the tail in a bucket
    whole = top_k_cross_entropy(student[None], teacher.detach()[None], 3)
    assert whole.item() == pytest.approx(value.item(), abs=1e-9)


@pytest.mark.parametrize(
    ("divergence", "hard", "mild"),
    [
        (reverse_kl, (-0.366988, -0.202761), (-0.017358, -0.049153)),
        (jensen_shannon, (-0.010747, -0.012484), (0.017341, -0.003581)),
        (cross_entropy, (0.470000, -0.033484), (0.175000, 0.011250)),
    ],
)
def test_what_a_step_does_to_the_reward_of_a_bandit(divergence, hard, mild):
    """First order, by the natural gradient and by the logits': a divergence can lower what its teacher is better at."""
    reward = torch.tensor([0, 0.5, 1], dtype=torch.float64)
    cases = ((0.44, 0.55, 0.01), (0.24, 0.01, 0.75), hard), ((0.6, 0.3, 0.1), (0.55, 0.05, 0.4), mild)
    for student, teacher, expected in cases:
        policy = logits(*student)
        down = -grad(divergence(policy[None], logits(*teacher).detach()[None]).sum(), policy)[0]
        of_reward = grad((policy.softmax(-1) * reward).sum(), policy)[0]
        assert [(down * reward).sum().item(), (down * of_reward).sum().item()] == pytest.approx(expected, abs=1e-6)


def test_a_rollout_is_never_its_own_demonstration():
    assert siblings([0, 1, 0, 0]) == [1, None, 1, 1]
    assert siblings([1, 0, 1]) == [2, 2, 0]
    assert siblings([0, 0]) == [None, None]


def test_teachers_read_a_sibling_or_the_reference(tmp_path):
    run = Run(PAPER, "distil", 0, SMALL, tmp_path)
    rollouts = run.rollout(run.next_problems(2), 3)
    rollouts.rewards[:] = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    batch, sizes = with_feedback(run, rollouts, "sibling")
    group = rollouts.completions[0]
    assert sizes == [2] and [ids for _, ids in batch.sequences] == [group[0].ids, group[2].ids]
    asked = prompts.solve_with_reference(replace(rollouts.problems[0], solution=group[1].text))
    assert batch.contexts == [run.policy.encode(asked)] * 2
    batch, sizes = with_feedback(run, rollouts, "reference")
    assert sizes == [3, 3]
    assert batch.contexts[3] == run.policy.encode(prompts.solve_with_reference(rollouts.problems[1]))


def test_a_teacher_that_follows_slowly(tmp_path):
    run = Run(PAPER, "distil_average", 0, SMALL, tmp_path)
    run.policy.freeze_copy("teacher")
    start = run.policy.adapter_state()
    perturb(run.policy)
    new = run.policy.adapter_state()
    for _ in range(2):
        follow(run.policy, 0.25)
    for name, value in run.policy.adapter_state("teacher").items():  # 1 - .75^2 of the way
        assert torch.allclose(value, start[name] + 0.4375 * (new[name] - start[name]), atol=1e-6)


@pytest.mark.parametrize("arm", own_arms(PAPER))
def test_every_arm_learns(arm, tmp_path):
    result = run_arm(PAPER, SMALL, arm, 0, str(tmp_path))
    assert result["budget"]["completions"] == 2 * 4 * 3
    assert all(row["local"] > 0 for row in result["history"] if row["informed"])
