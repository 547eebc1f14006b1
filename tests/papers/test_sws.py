"""SwS: weaknesses, budgets, labels and bands on worked numbers; the arms share their first stage."""

from dataclasses import replace

import pytest
import torch

from papers.sws import (
    PAPER,
    Config,
    apportion,
    exact_answer,
    failure_ratios,
    in_band,
    is_weak,
    labelled,
    majority_label,
    slope,
)
from repro.arm import run_arm
from repro.config import ConfigError
from repro.methods.grpo import GRPO, surrogate
from repro.model.training import token_weights
from repro.run import Rollouts, Run
from repro.tasks.loading import load
from repro.tasks.problem import Problem, split_of

TINY = Config(
    steps=3,
    prompts=4,
    samples=4,
    minibatches=1,
    seed_problems=4,
    first_steps=2,
    rounds=2,
    proposals=8,
    label_samples=4,
    train_problems=12,
    eval_problems=6,
    eval_samples=2,
    max_new_tokens=64,
    monitors=1,
)


# --- the worked checks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracies", "rises", "weak"),
    [
        ([0.125, 0.25, 0.125, 0.0], -0.05, True),
        ([0.0, 0.125, 0.25], 0.125, False),
        ([0.0, 0.0, 0.0], 0.0, True),
        ([0.625, 0.25, 0.125], -0.25, False),
        ([0.5, 0.25, 0.0], -0.25, True),
        ([0.25], 0.0, True),
    ],
)
def test_weaknesses(accuracies, rises, weak):  # 1
    assert slope(accuracies) == pytest.approx(rises)
    assert is_weak(accuracies) is weak


def test_what_was_never_seen_is_not_weak():
    assert not is_weak([])


def test_budget():  # 2
    ratios = dict(zip("abcdefg", (0.0785, 0.1427, 0.1509, 0.0587, 0.1108, 0.0369, 0.0752), strict=True))
    shares = [r / sum(ratios.values()) for r in ratios.values()]
    assert shares == pytest.approx([0.1201, 0.2183, 0.2308, 0.0898, 0.1695, 0.0564, 0.1150], abs=1e-4)
    for total in (1, 7, 100, 1001):
        found = apportion(ratios, total)
        assert sum(found.values()) == total
        assert all(abs(found[k] - total * s) < 1 for k, s in zip(ratios, shares, strict=True))
    assert apportion({"a": 1.0, "b": 1.0, "c": 2.0}, 5) == {"a": 1, "b": 1, "c": 3}  # 1.25, 1.25, 2.5
    assert apportion({"a": 0.0, "b": 0.0}, 5) == {"a": 0, "b": 0}


def test_failure_ratios():
    assert failure_ratios(["b", "a", "b", "b"], [0, 3]) == {"a": 0.0, "b": pytest.approx(2 / 3)}


def test_majority():  # 4
    texts = [f"\\boxed{{{a}}}" for a in ("1/2", "0.5", "1/2", "0.5", "1", "2", "3", "4")]
    assert majority_label(texts) == "1/2"
    assert majority_label([*texts[:3], *texts[4:], "\\boxed{5}"]) is None
    assert majority_label(["no answer"] * 8) is None


def test_band():  # 5
    rewards = torch.tensor([[1.0] * n + [0.0] * (8 - n) for n in range(9)])
    assert in_band(rewards) == [2, 3, 4, 5, 6]


def test_filter():  # 6
    rewards = torch.tensor([[1.0] * n + [0.0] * (8 - n) for n in range(9)])
    assert Rollouts(list(range(9)), [[]] * 9, rewards).mixed().problems == [1, 2, 3, 4, 5, 6, 7]


def test_means():  # 7
    losses = torch.tensor([1.0, 2.0, 2.0, 2.0])
    for mean, value in (("token", 1.75), ("sequence", 1.5)):
        assert (losses * token_weights([1, 3], mean)).sum().item() == pytest.approx(value)


@pytest.mark.parametrize(("ratio", "advantage", "moves"), [(1.25, 1, 1), (1.3, 1, 0), (0.85, -1, 1), (0.75, -1, 0)])
def test_clipping(ratio, advantage, moves):  # 8
    settings = GRPO("dapo", clip_high=0.28)
    logp = torch.tensor([ratio]).log().requires_grad_()
    loss = surrogate(logp, torch.zeros(1), torch.tensor([float(advantage)]), settings.clip_low, settings.clip_high)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert bool(gradient.abs() > 0) is bool(moves)


# --- labels ----------------------------------------------------------------------------------------------------------


def test_exact_labels_are_the_references():
    for problem in load("arithmetic", "train", 24):
        assert exact_answer(problem.question) == problem.answer
    for text in ("Compute 3+.", "Compute 1/0.", "What is 3+4?", "Solve x=x.", ""):
        assert exact_answer(text) is None


def test_only_what_has_a_label_is_kept(tmp_path):
    run = Run(PAPER, "sws", 0, TINY, tmp_path)
    problems = [Problem("Compute 3+4.", "", kind="chain", level=1), Problem("Compute 3+", "", kind="chain", level=1)]
    assert labelled(run, TINY, problems, exact=True) == [Problem("Compute 3+4.", "7", "", "chain", 1)]
    assert labelled(run, TINY, [], exact=False) == []


# --- whole arms ------------------------------------------------------------------------------------------------------


def test_arms(tmp_path, monkeypatch):
    kept = {}
    monkeypatch.setattr("papers.sws.is_weak", lambda accuracies: min(accuracies) < 1)
    monkeypatch.setattr("papers.sws.BAND", (0.0, 1.0))
    for arm in ("sws", "uniform", "continued"):
        result = run_arm(PAPER, TINY, arm, 0, str(tmp_path))
        assert result["status"] == "ok"
        (checkpoint,) = tmp_path.rglob(f"{arm}-seed0/checkpoint.pt")
        kept[arm] = torch.load(checkpoint, weights_only=True)["kept"]
        rollouts = TINY.steps * TINY.prompts * TINY.samples
        spent = result["budget"]["completions"]
        assert spent == rollouts if arm == "continued" else spent > rollouts + TINY.rounds * TINY.proposals
        assert result["metrics"]["problems made"]["value"] == len(kept[arm].get("made", []))
        assert 0 <= result["metrics"]["weak problems solved"]["value"] <= 1
    assert kept["sws"]["seen"] == kept["uniform"]["seen"] == kept["continued"]["seen"]  # the same first stage
    assert [len(visits) for visits in kept["sws"]["seen"]] == [2, 2, 2, 2]
    made = [Problem(**fields) for fields in kept["sws"]["made"]]
    assert made and len({p.question for p in made}) == len(made)
    assert all(split_of(p.question) == "train" and exact_answer(p.question) == p.answer for p in made)
    assert {p.kind for p in made} <= {p.kind for p in load("arithmetic", "train", 12)[:4]}


@pytest.mark.parametrize("preset", ["tiny", "smol", "small", "gpu"])
def test_the_longer_arm_takes_at_least_what_the_synthesis_does(preset):
    config = Config.for_preset(preset)
    config.check()
    assert config.first_steps * config.prompts >= 2 * config.seed_problems
    most = config.rounds * config.proposals * (1 + config.label_samples * (1 if preset == "tiny" else 2))
    assert 0 <= config.steps_of_synthesis * config.prompts * config.samples - most < config.prompts * config.samples


def test_a_first_stage_that_leaves_no_steps_is_refused():
    with pytest.raises(ConfigError):
        replace(TINY, first_steps=3).check()
