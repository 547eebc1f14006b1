"""OREAL: advantages, pairs, token weights and gradients on worked numbers; the ladder's arms for a few steps."""

from dataclasses import replace

import pytest
import torch

from papers.oreal import (
    PAPER,
    Config,
    pairs,
    reward_loss,
    scores,
    signed,
    token_advantages,
    token_weights,
)
from repro import BASE
from repro.arm import run_arm
from repro.config import ConfigError
from repro.methods.grpo import advantages, kl_k3, surrogate
from repro.methods.judge import hidden_states
from repro.model.logprobs import lm_head
from repro.model.sampling import Completion
from repro.run import Rollouts, Run

TINY = Config(
    steps=2,
    prompts=4,
    samples=4,
    parts=2,
    frozen=1,
    scored_problems=3,
    train_problems=16,
    eval_problems=4,
    eval_samples=2,
    max_new_tokens=48,
    monitors=1,
)
FIRST, SECOND = torch.tensor([2.0, 0.0, -1.0]).double(), torch.tensor([-1.0, -1.0, 4.0]).double()


def of(right: int, samples: int) -> torch.Tensor:
    return torch.tensor([[1.0] * right + [0.0] * (samples - right)], dtype=torch.float64)


# --- the worked checks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "samples", "positive", "negative"),
    [
        (1, 16, 2.0, -0.133333),
        (4, 16, 1.6, -0.533333),
        (8, 16, 1.066667, -1.066667),
        (15, 16, 0.133333, -2.0),
        (2, 8, 1.714286, -0.571429),
    ],
)
def test_signed(right, samples, positive, negative):  # 1
    found = signed(of(right, samples))[0]
    assert (found[0].item(), found[-1].item()) == pytest.approx((positive, negative), abs=1e-6)
    assert positive == pytest.approx(2 * (samples - right) / (samples - 1), abs=1e-6)


def test_shaped_by_the_group():  # 1
    found = advantages(of(4, 16), "grpo", delta=0.0)[0]
    assert (found[0].item(), found[-1].item()) == pytest.approx((1.677051, -0.559017), abs=1e-6)


def test_token_weights():  # 2 and 3
    right, wrong = token_weights(FIRST)
    assert right.tolist() == pytest.approx([0.761594, 0.462117, 0.165140], abs=1e-6) and wrong.tolist() == [0] * 3
    right, wrong = token_weights(SECOND)
    assert right.tolist() == pytest.approx([0, 0, 0.321513], abs=1e-6)
    assert wrong.tolist() == pytest.approx([0.462117, 0.462117, 0], abs=1e-6)


@pytest.mark.parametrize(("label", "loss", "gradient"), [(1.0, 0.540306, -0.139143), (0.0, 0.873639, 0.194190)])
def test_reward_loss(label, loss, gradient):  # 2
    z = FIRST.clone().requires_grad_()
    value = reward_loss(z, [3], torch.tensor([label]).double())
    (found,) = torch.autograd.grad(value, z)
    assert value.item() == pytest.approx(loss, abs=1e-6) and found.tolist() == pytest.approx([gradient] * 3, abs=1e-6)


def gradient_of(advantage: float, right: float, omega: torch.Tensor, eta: float = 0.5) -> list[float]:
    """Of one sequence by itself, with respect to its log-probs, as the kit's loop takes it: a mean over tokens."""
    lengths = [len(omega)]
    weighed = token_advantages(torch.tensor([advantage]), torch.tensor([right]), omega, lengths, eta)
    logp = torch.full((len(omega),), -1.0, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(surrogate(logp, logp.detach(), weighed, 0.2, 0.2).mean(), logp)
    return found.tolist()


def test_gradients():  # 4
    assert gradient_of(1.6, 1.0, token_weights(FIRST)[0]) == pytest.approx([-0.406184, -0.246462, -0.088075], abs=1e-6)
    assert gradient_of(-0.533333, 0.0, token_weights(SECOND)[1]) == pytest.approx([0.041077, 0.041077, 0], abs=1e-6)


def test_right_and_wrong_have_means_of_their_own():
    """The losses of section 3, written out, against what the loop does with the advantages."""
    lengths, right = [2, 3, 4], torch.tensor([1.0, 0.0, 1.0]).double()
    a, eta = torch.tensor([1.6, -0.5, 0.7]).double(), 0.5
    omega = torch.rand(9, generator=torch.Generator().manual_seed(0)).double()
    logp = -torch.rand(9, generator=torch.Generator().manual_seed(1)).double()
    logp.requires_grad_()
    spread = torch.tensor(lengths)
    each, positive = a.repeat_interleave(spread), right.repeat_interleave(spread)
    cloned = (positive * each * omega * -logp).sum() / 6
    pushed = -eta * ((1 - positive) * each * omega * (logp - logp.detach()).exp()).sum() / 3
    (expected,) = torch.autograd.grad(cloned + pushed, logp)
    weighed = token_advantages(a, right, omega, lengths, eta)
    (found,) = torch.autograd.grad(surrogate(logp, logp.detach(), weighed, 0.2, 0.2).mean(), logp)
    assert found.tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize(("d", "value", "slope"), [(0.1, 0.00517092, -0.105171), (-0.1, 0.00483742, 0.095163)])
def test_kl(d, value, slope):  # 5
    logp = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    found = kl_k3(logp, torch.tensor(d, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(found, logp)
    assert (found.item(), gradient.item()) == pytest.approx((value, slope), abs=1e-6)
    assert kl_k3(logp, torch.tensor(0.0).double()).item() == 0


def test_pairs():  # 6
    rewards = torch.cat([of(0, 8), of(3, 8), of(8, 8)])
    groups = [[Completion((1,), (10 * i + k,), (0.0,), "", False) for k in range(8)] for i in range(3)]
    seen = set()
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        kept, advantage = pairs(Rollouts(["a", "b", "c"], groups, rewards), rng)
        assert kept.problems == ["b"] and kept.rewards.tolist() == [[1, 0]]
        assert advantage[0].tolist() == pytest.approx([1.428571, -0.857143], abs=1e-6)
        (right, wrong) = (c.ids[0] - 10 for c in kept.completions[0])
        assert right < 3 <= wrong
        seen.add((right, wrong))
    assert len(seen) > 5
    assert not pairs(Rollouts(["a"], groups[:1], of(0, 8)), rng)[0].problems


# --- whole arms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["rloo", "shaped", "clone", "oreal"])
def test_arms(arm, tmp_path):
    result = run_arm(PAPER, TINY, arm, 0, str(tmp_path))
    assert result["status"] == "ok"
    assert result["budget"]["completions"] == TINY.steps * TINY.prompts * TINY.samples
    most = TINY.steps * TINY.parts - (TINY.frozen if arm == "oreal" else 0)
    assert 0 < result["budget"]["optimizer_steps"] <= most


def test_logits_are_read_where_tokens_are_predicted(tmp_path):
    run = Run(PAPER, "oreal", 0, TINY, tmp_path)
    batch = run.rollout(run.next_problems(3), 2).batch()
    logp = lm_head(run.policy.model.get_base_model())(hidden_states(run, batch)).log_softmax(-1)
    targets = torch.tensor([token for _, completion in batch.sequences for token in completion])
    assert torch.allclose(logp.gather(1, targets[:, None])[:, 0], run.logprobs(batch, BASE), atol=1e-4)


def test_the_policy_is_frozen_while_the_reward_model_learns(tmp_path):  # 7
    run = Run(PAPER, "oreal", 0, replace(TINY, frozen=4), tmp_path)
    before = run.policy.adapter_state()
    PAPER.arms["oreal"].train(run, run.config)
    after = run.policy.adapter_state()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert run.kept["head"].abs().max() > 0 and not run.kept["head"].requires_grad
    rollouts = run.rollout(run.next_problems(2), 2)
    assert scores(run, rollouts).shape == (sum(rollouts.batch().lengths),)


def test_parts_divide_the_problems():
    with pytest.raises(ConfigError):
        replace(TINY, parts=3).check()
    for preset in ("tiny", "smol", "small", "gpu"):
        Config.for_preset(preset).check()
