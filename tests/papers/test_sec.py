"""Self-Evolving Curriculum: the bandit on worked numbers, orders of problems, an arm for a few steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from papers.sec import PAPER, Config, bandit_reward, by_kind_and_level, by_level, decayed
from repro.arm import run_arm
from repro.methods.curriculum import boltzmann, draw_keys, moved
from repro.methods.grpo import advantages
from repro.tasks.problem import Problem
from repro.tasks.rewards import score

TINY = Config(
    steps=4,
    prompts=4,
    samples=4,
    minibatches=1,
    train_problems=24,
    eval_problems=6,
    eval_samples=2,
    hard_problems=2,
    hard_samples=2,
    max_new_tokens=48,
    monitors=1,
)


def mean_absolute(rewards, **how) -> float:
    return advantages(torch.tensor([rewards], dtype=torch.float64), "grpo", **how).abs().mean().item()


# --- the worked checks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "unbiased"), [(0, 0), (1, 0.6187), (2, 0.8101), (3, 0.9057), (4, 0.9354)])
def test_mean_absolute_advantage(right, unbiased):  # 1
    for ones in (right, 8 - right):
        rewards = [1.0] * ones + [0.0] * (8 - ones)
        assert mean_absolute(rewards) == pytest.approx(unbiased, abs=1e-4)
        p = ones / 8
        assert mean_absolute(rewards, ddof=0, delta=1e-12) == pytest.approx(2 * (p * (1 - p)) ** 0.5, abs=1e-4)


def test_values_and_shares():  # 2 and 3
    values = moved(dict.fromkeys("abc", 0.0), dict(zip("abc", (0.9, 0.6, 0.1), strict=True)), 0.5)
    assert list(values.values()) == pytest.approx([0.45, 0.30, 0.05])
    for tau, shares in (
        (1.0, [0.3951, 0.3401, 0.2648]),
        (0.4, [0.4866, 0.3344, 0.1790]),
        (0.2, [0.6220, 0.2938, 0.0842]),
    ):
        assert list(boltzmann(values, tau).values()) == pytest.approx(shares, abs=1e-4)
    assert list(boltzmann(dict.fromkeys("abc", 0.0), 0.4).values()) == pytest.approx([1 / 3] * 3)


def test_an_arm_that_wasnt_drawn():  # 4
    values = {"a": 0.4, "b": 0.0}
    assert moved(values, {"b": 0.6}, 0.5) == {"a": 0.4, "b": 0.3}
    assert decayed(values, {"b": 0.6}, 0.5) == {"a": 0.2, "b": 0.3}


def test_rewards_for_the_format_look_like_right_answers():  # 5
    assert mean_absolute([1.0] * 2 + [0.1] * 6) == pytest.approx(0.8101, abs=1e-4)
    assert mean_absolute([0.1] * 4 + [0.0] * 4) == pytest.approx(0.9354, abs=1e-4)


def test_values_converge_to_constant_rewards():  # 7
    rewards, values = dict(zip("abc", (0.9, 0.6, 0.1), strict=True)), dict.fromkeys("abc", 0.0)
    for step in range(1, 20):
        values = moved(values, rewards, 0.3)
        assert list(values.values()) == pytest.approx([r * (1 - 0.7**step) for r in rewards.values()])


@pytest.mark.parametrize(("expression", "right"), [("(5+7)*3", 1.0), ("36", 0.0), ("3*3*4", 0.0)])
def test_countdown(expression, right):  # 8
    problem = Problem("Make 36 from the numbers 3, 5, 7.", "36", numbers=(3, 5, 7))
    assert score([problem], [f"\\boxed{{{expression}}}"]) == [right]


# --- arms of the bandit ----------------------------------------------------------------------------------------------


def test_rewards_are_means_over_the_samples_of_an_arm():
    advantage = torch.tensor([[1.0, -1.0], [0.0, 0.0], [3.0, -3.0]])
    assert bandit_reward(["1", "2", "1"], advantage) == {"1": 2.0, "2": 0.0}


def test_levels_are_those_of_the_task_or_quarters_by_length():
    levels = [Problem("q", "1", kind="k", level=level) for level in (1, 4)]
    assert [by_level(levels)(p) for p in levels] == ["1", "4"]
    assert by_kind_and_level(levels)(levels[1]) == "k 4"
    pool = [Problem("q", "1", "." * n, level=1) for n in range(1, 9)]
    assert [by_level(pool)(p) for p in pool] == ["1", "1", "2", "2", "3", "3", "4", "4"]


# --- whole arms ------------------------------------------------------------------------------------------------------


def test_sec_draws_by_the_values(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("papers.sec.draw_keys", lambda *a: asked.append(dict(a[0])) or draw_keys(*a))
    result = run_arm(PAPER, TINY, "sec", 0, str(tmp_path))
    assert result["status"] == "ok"
    first, last = result["history"][0], result["history"][-1]
    assert [first[f"share {level}"] for level in range(1, 5)] == [0.25] * 4
    values = np.array([last[f"value {level}"] for level in range(1, 5)])
    expected = np.exp(values / TINY.tau)
    assert [last[f"share {level}"] for level in range(1, 5)] == pytest.approx(expected / expected.sum())
    assert values.max() > 0
    assert list(asked[-1].values()) == pytest.approx(expected / expected.sum())
    assert last["expected"] == pytest.approx((np.arange(1, 5) * expected).sum() / expected.sum())
    assert result["budget"]["completions"] == TINY.steps * TINY.prompts * TINY.samples
    assert len(result["per_problem"]["accuracy, hardest level"]) == TINY.hard_problems


@pytest.mark.parametrize(("arm", "levels"), [("ordered", [1, 2, 3, 4]), ("reverse", [4, 3, 2, 1])])
def test_fixed_orders(arm, levels, tmp_path):
    result = run_arm(PAPER, replace(TINY, max_new_tokens=16), arm, 0, str(tmp_path))
    assert [row["level"] for row in result["history"]] == levels
    metrics = {name: found["value"] for name, found in result["metrics"].items()}
    assert metrics["level drawn, early"] == np.mean(levels[:2]) and metrics["level drawn, late"] == np.mean(levels[-2:])
