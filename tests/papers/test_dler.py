"""DLER: advantages over the batch, the limit, clipping and KL on worked numbers; an arm for a few steps."""

from dataclasses import replace

import pytest
import torch

from papers.dler import PAPER, Config, over_batch, shortened
from repro.arm import run_arm
from repro.config import ConfigError
from repro.methods.grpo import GRPO, advantages, kl_k3, over_tokens, surrogate, whiten
from repro.model.sampling import Completion
from repro.model.training import token_weights
from repro.run import Rollouts, Run
from repro.tasks.problem import Problem

REWARDS = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.float64)
TINY = Config(
    steps=2,
    prompts=4,
    samples=4,
    minibatches=2,
    limit=40,
    think_tokens=64,
    train_problems=8,
    eval_problems=3,
    eval_samples=2,
    max_new_tokens=48,
    monitors=1,
)


def rollouts_of(rewards: torch.Tensor, lengths: list[list[int]]) -> Rollouts:
    groups = [[Completion((1,), tuple(range(n)), (0.0,) * n, "", False) for n in row] for row in lengths]
    return Rollouts(["p"] * len(rewards), groups, rewards)


# --- the worked checks -----------------------------------------------------------------------------------------------


def test_advantages_over_the_batch():  # 1
    rollouts = rollouts_of(REWARDS, [[1] * 4] * 2)
    centred = advantages(REWARDS, "dr_grpo")
    assert centred.flatten().tolist() == [0.75, -0.25, -0.25, -0.25, 0.5, 0.5, -0.5, -0.5]
    expected = [1.603567, *[-0.534522] * 3, 1.069045, 1.069045, -1.069045, -1.069045]
    assert over_batch(None, rollouts, GRPO()).flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert whiten(centred, ddof=1).flatten().tolist() == pytest.approx([1.5, *[-0.5] * 3, 1, 1, -1, -1], abs=1e-6)
    by_group = advantages(REWARDS, "grpo", ddof=0, delta=0.0)
    assert by_group.flatten().tolist() == pytest.approx([1.732051, *[-0.577350] * 3, 1, 1, -1, -1], abs=1e-6)
    assert advantages(REWARDS, "grpo", delta=0.0)[:, 0].tolist() == pytest.approx([1.5, 0.866025], abs=1e-6)


def test_statistics_over_tokens():  # 2
    lengths = [2, 4, 4, 4, 2, 2, 4, 4]
    found = over_tokens(None, rollouts_of(REWARDS, [lengths[:4], lengths[4:]]), GRPO(), ddof=1)
    expected = [2.107698, *[-0.274917] * 3, 1.512044, 1.512044, -0.870571, -0.870571]
    assert found.tolist() == pytest.approx([a for a, n in zip(expected, lengths, strict=True) for _ in range(n)], 1e-5)
    assert (found.mean().item(), found.std().item()) == pytest.approx((0, 1), abs=1e-6)


def test_what_is_cut_is_wrong_and_what_ends_at_the_limit_is_not(tmp_path):  # 3
    run = Run(PAPER, "dler", 0, TINY, tmp_path)
    at_limit = [Completion((1,), (2,) * TINY.limit, (0.0,), "\\boxed{2}", truncated) for truncated in (False, True)]
    assert run.rewards([Problem("q", "2")], [at_limit]).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("ratio", "advantage", "high", "objective", "moves"),
    [
        (1.25, 1.0, 0.28, 1.25, True),
        (1.25, 1.0, 0.2, 1.2, False),
        (1.3, 1.0, 0.28, 1.28, False),
        (0.75, -1.0, 0.28, -0.8, False),
        (1.3, -1.0, 0.28, -1.3, True),
    ],
)
def test_clipping(ratio, advantage, high, objective, moves):  # 4
    logp = torch.tensor([ratio], dtype=torch.float64).log().requires_grad_()
    loss = surrogate(logp, torch.zeros(1), torch.tensor([advantage]), 0.2, high)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert -loss.item() == pytest.approx(objective) and bool(gradient != 0) is moves


def test_kl():  # 5
    assert kl_k3(torch.tensor(0.0).double(), torch.tensor(0.1).double()).item() == pytest.approx(0.00517092, abs=1e-8)


def test_mean_over_tokens():  # 7
    assert (torch.tensor([1.0, 0, 0, 0]) * token_weights([1, 3], "token")).sum().item() == 0.25


def test_groups_without_signal_are_dropped():  # 8
    rollouts = rollouts_of(torch.tensor([[0.0, 0], [1, 0], [1, 1]]), [[1, 1]] * 3)
    assert rollouts.mixed().rewards.tolist() == [[1, 0]]


def test_easy_groups_have_half_of_the_limit():
    rewards = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0]])
    lengths = torch.tensor([[3, 9, 4, 9], [9, 9, 9, 9]])
    assert shortened(rewards, lengths, 4).tolist() == [[1, 0, 1, 0], [1, 1, 0, 0]]


# --- whole arms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["dler", "grpo_cut", "grpo_full", "da_dler"])
def test_arms(arm, tmp_path, monkeypatch):
    longest, sample = [], Run.sample

    def watched(run, chats, *args, **kwargs):
        longest.append((kwargs.get("max_new_tokens"), "Think it over" in str(chats[0])))
        return sample(run, chats, *args, **kwargs)

    monkeypatch.setattr(Run, "sample", watched)
    result = run_arm(PAPER, TINY, arm, 0, str(tmp_path))
    assert result["status"] == "ok"
    assert result["budget"]["completions"] == TINY.steps * TINY.prompts * TINY.samples
    thought = [limit for limit, thinks in longest if thinks]
    assert thought == [TINY.think_tokens if arm == "grpo_full" else TINY.limit] * TINY.steps + [TINY.think_tokens]
    assert result["history"][0]["length"] <= (TINY.think_tokens if arm == "grpo_full" else TINY.limit)
    values = {name: metric["value"] for name, metric in result["metrics"].items()}
    assert values["half of the think tokens"] == pytest.approx(values["think tokens"] / 2)
    assert values["think accuracy within the limit"] <= values["think accuracy"]


def test_a_limit_that_cuts_nothing_is_refused():
    with pytest.raises(ConfigError):
        replace(TINY, limit=64).check()
