"""Exposure, reward and controller on worked numbers, its bookkeeping, and short runs of all arms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import own_arms

from papers.atesd import (
    EXPOSURES,
    MARGIN,
    PAPER,
    STATE,
    Config,
    beta_of,
    controller,
    controller_loss,
    draw,
    exposed,
    normalised,
    reward,
)
from repro.arm import run_arm
from repro.run import Run
from repro.tasks import prompts
from repro.tasks.problem import Problem

SMALL = Config(
    updates=8,
    prompts=4,
    decisions=2,
    train_problems=32,
    eval_problems=6,
    eval_samples=2,
    probe_problems=4,
    aside_problems=4,
    max_new_tokens=64,
    monitors=1,
)
PROBLEM = Problem("Compute.", "9", "".join(f"line {i}\n" for i in range(7)) + "\\boxed{9}")
FEATURES = 1 + len(STATE)


def test_whole_steps_are_shown_and_the_answer_once():
    for exposure, shown in zip(EXPOSURES, (0, 1, 3, 5, 7), strict=True):
        (asked,) = exposed(PROBLEM, exposure)
        lines = asked["content"].split("\n")
        assert [line for line in lines if line.startswith("line")] == [f"line {i}" for i in range(shown)]
        assert lines.count("9") == 1 and lines[lines.index("9") - 1] == prompts.ANSWER and "\\boxed{9}" not in lines


def test_the_delayed_reward():
    losses, grounded = (1.0, 0.8, 0.9, 0.7), (-1.0, -0.5, -0.2)
    assert reward(losses, grounded, 0.9, 0.0) == pytest.approx(0.362)
    assert reward((1, 1, 1, 1), grounded, 0.9, 1.0) == pytest.approx(-0.594834, abs=1e-6)
    assert reward(losses, grounded, 0.9, 0.1) == pytest.approx(0.302517, abs=1e-6)


def test_rewards_are_relative():
    assert normalised(torch.tensor([0.3, 0.1, 0.2])).tolist() == pytest.approx([1.224745, -1.224745, 0], abs=1e-5)
    assert normalised(torch.full((3,), 0.2)).tolist() == [0, 0, 0]


def test_it_begins_without_a_preference():
    policy = beta_of(controller(torch.Generator().manual_seed(0)), torch.randn(FEATURES))
    assert policy.concentration1.item() == policy.concentration0.item() == pytest.approx(1.693147, abs=1e-6)
    assert policy.mean.item() == pytest.approx(0.5) and policy.entropy().item() == pytest.approx(-0.077459, abs=1e-5)
    even = torch.distributions.Beta(torch.tensor(2.0), torch.tensor(2.0))
    assert even.log_prob(torch.tensor(0.5)).item() == pytest.approx(0.405465, abs=1e-6)
    assert even.entropy().item() == pytest.approx(-0.125093, abs=1e-6)


@pytest.mark.parametrize(("target", "punished"), [(-0.2, True), (-0.05, False)])
def test_only_too_much_exploration_is_punished(target, punished):
    net = controller(torch.Generator().manual_seed(0))
    config = replace(SMALL, entropy_target=target, penalty=1.0)
    policy = beta_of(net, torch.zeros(2, FEATURES))
    loss = controller_loss(policy, torch.tensor([0.3, 0.6]), torch.ones(2), config)  # equal rewards: no other gradient
    loss.backward()
    assert loss.item() == pytest.approx((-0.077459 + 0.2) ** 2 if punished else 0, abs=1e-5)
    assert (net[2].bias.grad.abs().max() > 0) == punished


def test_draws_follow_the_distribution():
    rng = torch.Generator().manual_seed(0)
    policy = torch.distributions.Beta(torch.tensor(3.0), torch.tensor(1.5))
    drawn = [draw(policy, rng) for _ in range(2000)]
    assert np.mean(drawn) == pytest.approx(policy.mean.item(), abs=0.02)
    assert np.std(drawn) == pytest.approx(policy.stddev.item(), abs=0.02)
    extreme = torch.distributions.Beta(torch.tensor(1e-3), torch.tensor(1e-3))
    assert all(MARGIN <= draw(extreme, rng) <= 1 - MARGIN for _ in range(20))


def test_a_bandit_is_learnt():
    rng = torch.Generator().manual_seed(0)
    net, state = controller(rng), torch.ones(8, FEATURES)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(500):
        policy = beta_of(net, state)
        one = torch.distributions.Beta(policy.concentration1[0].detach(), policy.concentration0[0].detach())
        drawn = torch.tensor([draw(one, rng) for _ in range(8)])
        optimizer.zero_grad()
        controller_loss(policy, drawn, -((drawn - 0.7) ** 2), SMALL).backward()
        optimizer.step()
    assert beta_of(net, state[0]).mean.item() == pytest.approx(0.7, abs=0.1)


def test_decisions_are_held_and_rewarded_when_their_time_has_come(tmp_path):
    run = Run(PAPER, "atesd", 0, SMALL, tmp_path)
    PAPER.arms["atesd"].train(run, SMALL)
    rows = run.history
    for window in range(0, SMALL.updates, SMALL.hold):
        assert len({row["exposure"] for row in rows[window : window + SMALL.hold]}) == 1
    assert len({row["exposure"] for row in rows}) == SMALL.updates // SMALL.hold
    rewarded = [row["step"] - 1 for row in rows if "controller_reward" in row]
    assert rewarded == [4, 6]  # decisions of steps 0 and 2, after look_ahead steps each
    assert [row["step"] - 1 for row in rows if "controller_updates" in row] == [6]
    assert [decision["step"] for decision in run.kept["open"]] == [4, 6]  # never used
    for row, began in zip([rows[4], rows[6]], (0, 2), strict=True):
        losses, grounded = run.kept["probe"][began : began + 5], run.kept["grounded"][began + 1 : began + 5]
        assert row["controller_reward"] == pytest.approx(reward(losses, grounded, 0.9, 0.05))


@pytest.mark.parametrize("arm", own_arms(PAPER))
def test_every_arm_learns(arm, tmp_path):
    result = run_arm(PAPER, replace(SMALL, updates=2), arm, 0, str(tmp_path))
    assert result["budget"]["completions"] == 2 * 4 and result["budget"]["optimizer_steps"] == 2
    assert all(row["gap"] > 0 and 0 <= row["exposure"] <= 1 for row in result["history"])


def test_the_base_is_where_exposures_are_compared(tmp_path):
    metrics = run_arm(PAPER, SMALL, "base", 0, str(tmp_path))["metrics"]
    assert {f"KL of the teacher@{round(100 * e)}" for e in EXPOSURES} <= metrics.keys()
    assert {f"other token first@{round(100 * e)}" for e in EXPOSURES} <= metrics.keys()
