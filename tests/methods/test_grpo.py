"""GRPO, Dr. GRPO and DAPO: advantages, clipping, normalisation, with worked numbers."""

import math
from types import SimpleNamespace

import pytest
import torch

from repro.methods.grpo import GRPO, advantages, grpo_loss, kl_k3, mean_of, surrogate, whiten
from repro.methods.sft import draws
from repro.model.training import LOGPROBS, Batch, Trainer, token_weights
from repro.run import Rollouts


def test_advantages():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert advantages(rewards, "grpo", ddof=0, delta=0)[0].tolist() == pytest.approx([3**0.5] + [-(3**-0.5)] * 3)
    assert advantages(rewards, "grpo", ddof=1, delta=0)[0].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5])
    assert advantages(rewards, "dr_grpo")[0].tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25])
    pair = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert advantages(pair, "grpo", delta=0)[0].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)])


def test_a_constant_group_has_no_advantage():
    for variant in ("grpo", "dr_grpo", "dapo"):
        assert advantages(torch.ones(2, 4), variant).abs().max() == 0


def test_whitened_values_have_mean_0_and_std_1():
    values = torch.tensor([[1.0, 2.0, 4.0], [0.0, -3.0, 1.0]], dtype=torch.float64)
    for ddof in (0, 1):
        found = whiten(values, ddof)
        assert found.shape == values.shape
        assert (found.mean().item(), found.std(correction=ddof).item()) == pytest.approx((0, 1), abs=1e-7)
    assert whiten(torch.full((2, 2), 0.5)).abs().max() == 0


@pytest.mark.parametrize(
    ("variant", "loss", "weights"),
    [("grpo", 0.0, (0.25, 0.125)), ("dapo", 1 / 3, (1 / 6, 1 / 6)), ("dr_grpo", 0.125, (1 / 16, 1 / 16))],
)
def test_normalisation(variant, loss, weights):
    weight = token_weights([2, 4], mean_of(variant, [2, 4], limit=8)).double()
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0, -1.0], dtype=torch.float64)
    logp = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    total = (surrogate(logp, torch.zeros(6), advantage, 0.2, 0.2) * weight).sum()
    (gradient,) = torch.autograd.grad(total, logp)
    assert total.item() == pytest.approx(loss, abs=1e-6)
    assert gradient.abs().tolist() == pytest.approx([weights[0]] * 2 + [weights[1]] * 4)


@pytest.mark.parametrize(
    ("advantage", "ratio", "high", "loss", "gradient"),
    [
        (1.0, 1.25, 0.2, -1.2, 0.0),
        (1.0, 1.25, 0.28, -1.25, -1.25),
        (-1.0, 0.75, 0.2, 0.8, 0.0),
        (-1.0, 1.25, 0.2, 1.25, 1.25),
    ],
)
def test_clipping(advantage, ratio, high, loss, gradient):
    logp = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    value = surrogate(logp, torch.zeros(1).double(), torch.tensor([advantage]).double(), 0.2, high)
    (measured,) = torch.autograd.grad(value.sum(), logp)
    assert (value.item(), measured.item()) == pytest.approx((loss, gradient))


def test_k3():
    logp = torch.tensor([-0.1, 0.1, 0.0], dtype=torch.float64, requires_grad=True)
    value = kl_k3(logp, torch.zeros(3).double())
    assert value.tolist() == pytest.approx([0.00517092, 0.00483742, 0.0], abs=1e-8)
    (gradient,) = torch.autograd.grad(value.sum(), logp)
    assert gradient[2].item() == 0.0


@pytest.mark.parametrize("variant", ["grpo", "dr_grpo", "dapo"])
def test_micro_batches_do_not_change_the_gradient(tiny, variant):
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (
            torch.randint(10, 60, (6,), generator=generator).tolist(),
            torch.randint(10, 60, (n,), generator=generator).tolist(),
        )
        for n in (3, 9, 5, 7)
    ]
    batch = Batch(pairs)
    batch.fields["advantage"] = batch.spread([1.5, -0.5, -0.5, -0.5])
    batch.fields["weight"] = token_weights(batch.lengths, mean_of(variant, batch.lengths, limit=16))
    tiny.model.double()
    trainer = Trainer(tiny, 0.0)
    batch.fields["old_logp"] = trainer.values(batch)
    gradients = []
    for tokens in (10_000, 30, 15):  # 1, 2 and 4 micro-batches
        trainer.tokens_per_batch = tokens
        trainer._accumulate(batch, lambda v, f: grpo_loss(v, f, GRPO(variant=variant)), LOGPROBS, 1)
        gradients.append(torch.cat([p.grad.flatten() for p in tiny.parameters]))
    counts = [len(batch.micro_batches(tokens)) for tokens in (10_000, 30, 15)]
    assert counts[0] == 1 and counts[1] in (2, 3) and counts[2] == 4
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() <= 1e-9 * gradients[0].norm()


def test_without_old_log_probs_the_loss_is_that_of_ratio_one():
    logp = torch.tensor([-0.5, -2.0, -0.1], requires_grad=True)
    advantage = torch.tensor([1.5, -0.5, 0.25])
    loss = grpo_loss(logp, SimpleNamespace(advantage=advantage), GRPO())
    assert torch.equal(loss, -advantage)
    loss.sum().backward()
    assert torch.equal(logp.grad, -advantage)


def test_uniform_groups_are_dropped():
    rewards = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    kept = Rollouts(["a", "b", "c"], [["x", "y"]] * 3, rewards).mixed()
    assert kept.problems == ["b"] and kept.rewards.tolist() == [[0.0, 1.0]]


def test_every_item_is_drawn_before_one_comes_again():
    found = list(draws(6, 3, 4, torch.Generator().manual_seed(0)))
    assert [len(some) for some in found] == [4, 4, 4]
    order = [i for some in found for i in some]
    assert sorted(order[:6]) == sorted(order[6:]) == list(range(6))
    assert list(draws(0, 3, 4, torch.Generator())) == []
