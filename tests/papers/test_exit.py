"""ExIt's score, buffer and bonus on worked numbers, what its instances ask, and that it is GRPO without a buffer."""

from dataclasses import replace

import pytest
import torch

from papers.exit import (
    PAPER,
    Config,
    admit,
    chances,
    choose,
    diversity,
    exploratory,
    learnability,
    pair_counts,
    remember,
    request,
)
from repro.arm import run_arm
from repro.config import ConfigError
from repro.methods.grpo import GRPO, advantages, train_grpo
from repro.methods.standard import settings_for
from repro.run import Run
from repro.tasks import prompts


def test_learnability():  # check 1
    rewards = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0, 0]])
    assert learnability(rewards).item() == pytest.approx(0.1875)
    assert rewards.var(1).item() == pytest.approx(0.214286, abs=1e-6)
    for ddof, right, wrong in ((0, 1.73205, -0.57735), (1, 1.62019, -0.54006)):
        found = advantages(rewards, "grpo", ddof=ddof, delta=0.0)[0]
        assert (found[0].item(), found[2].item()) == pytest.approx((right, wrong), abs=1e-5)


@pytest.mark.parametrize(
    ("kappa", "expected"),
    [
        (1, [0.37886, 0.32609, 0.29506]),
        (10, [0.76616, 0.17095, 0.06289]),
        (20, [0.94650, 0.04712, 0.00638]),
        (0, [1 / 3] * 3),
    ],
)
def test_what_is_drawn(kappa, expected):  # check 2
    assert chances([0.25, 0.1, 0.0], kappa).tolist() == pytest.approx(expected, abs=5e-5)


def test_the_bonus():  # check 4
    assert diversity(torch.tensor([[1.0, 2, 3]]), 5.0).tolist() == [[0.5, 1, 1.5]]
    assert diversity(torch.full((2, 3), 0.7), 5.0).tolist() == [[1, 1, 1]] * 2
    assert diversity(torch.tensor([[9.0, 9, 10]]), 5.0).tolist() == [[5, 5, 5]]
    advantage = torch.tensor([[-1.0, 0.5, 2]])
    assert torch.equal((advantage * diversity(torch.tensor([[1.0, 2, 3]]), 5.0)).sign(), advantage.sign())


def test_pair_counts():
    vectors = pair_counts([(1, 2, 3), (1, 2, 3), (4, 5), (1,)])
    assert vectors.norm(dim=1).tolist() == pytest.approx([1, 1, 1, 0])
    assert (vectors @ vectors.T)[0].tolist() == pytest.approx([1, 1, 0, 0])


def item(problem: int, score: float, depth: int = 0, attempt: str = "") -> dict:
    return {"problem": problem, "depth": depth, "attempt": attempt, "score": score}


def test_the_buffer():  # check 5
    def after(score: float) -> list[float]:
        buffer = [item(0, 0.1), item(1, 0.2), item(2, 0.25)]
        admit(buffer, item(3, score), 3)
        return [one["score"] for one in buffer if one["problem"] == 3] or [0.0]

    assert [after(score) for score in (0.05, 0.1, 0.3)] == [[0.0], [0.1], [0.3]]
    buffer = [item(0, 0.1), item(1, 0.2)]
    admit(buffer, item(0, 0.0), 2)  # known: scored anew
    admit(buffer, item(1, 0.0, attempt="x"), 3)
    assert [one["score"] for one in buffer] == [0.0, 0.2, 0.0]
    zeros = [item(0, 0.0), item(1, 0.0)]
    admit(zeros, item(2, 0.0), 2)
    assert {one["problem"] for one in zeros} == {1, 2}
    admit(zeros, item(3, 0.0), 2)  # the oldest leaves
    assert {one["problem"] for one in zeros} == {2, 3}


TINY = Config(
    **{"steps": 3, "prompts": 2, "samples": 4, "minibatches": 2, "monitors": 1, "train_problems": 8},
    **{"eval_problems": 4, "eval_samples": 2, "max_new_tokens": 64, "buffer_size": 4, "improvements": 2},
)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(PAPER, "exit", 0, TINY, tmp_path)


def test_answers_become_instances(run):  # check 6
    run.kept["buffer"] = []
    first = choose(run, TINY, run.next_problems(2))
    assert [one["depth"] for one in first] == [0, 0]
    rollouts = run.rollout([run.problems[one["problem"]] for one in first], 4)
    remember(run, TINY, first, rollouts)
    plain, child = run.kept["buffer"][0], run.kept["buffer"][1]
    assert (child["problem"], child["depth"], child["score"]) == (plain["problem"], 1, plain["score"])
    assert child["attempt"] in [c.text for c in rollouts.completions[0]]
    again = choose(run, replace(TINY, iterate=1.0), run.next_problems(2))
    assert all(one in run.kept["buffer"] for one in again)
    fewer = replace(TINY, deepen=False)
    run.kept["buffer"] = []
    remember(run, fewer, first, rollouts)
    assert [one["depth"] for one in run.kept["buffer"]] == [0, 0]


def test_requests_show_the_last_answer_only(run):
    problem = run.problems[0]
    assert request(problem, "", True) == prompts.solve(problem)
    improve, diverge = request(problem, "a", False), request(problem, "a", True)
    assert [m["content"] for m in improve[1:]] == ["a", prompts.RETRY]
    assert [m["content"] for m in diverge[1:]] == ["a", prompts.ANOTHER]


def trained(run: Run, method) -> torch.Tensor:
    run.folder.mkdir()
    method(run)
    return torch.cat([p.detach().flatten() for p in run.policy.parameters])


def test_without_the_buffer_it_is_grpo(tmp_path):  # check 7
    config = replace(TINY, steps=2)
    ours, theirs = (Run(PAPER, "exit", 0, config, tmp_path / name) for name in "ab")
    plain = {"iterate": 0.0, "bonus": False}
    a = trained(ours, lambda run: exploratory(run, config, **plain))
    b = trained(theirs, lambda run: train_grpo(run, 2, 2, 4, GRPO(minibatches=2)))
    assert torch.equal(a, b)


def test_prompts_carry_no_loss(run, monkeypatch):  # check 8
    seen = []
    monkeypatch.setattr(run, "update", lambda batch, *a, **k: seen.append(batch))
    exploratory(run, TINY, iterate=1.0, diverge=1.0)
    asked = [run.policy.tokenizer.decode(prompt) for batch in seen for prompt, _ in batch.sequences]
    assert any(prompts.ANOTHER in text for text in asked) and not any(prompts.RETRY in text for text in asked)
    assert all(prompts.ANOTHER not in run.policy.tokenizer.decode(ids) for batch in seen for _, ids in batch.sequences)


@pytest.mark.parametrize("arm", ["exit", "curriculum"])
def test_arms(arm, tmp_path):
    result = run_arm(PAPER, TINY, arm, 0, str(tmp_path))
    values = {name: found["value"] for name, found in result["metrics"].items()}
    assert result["status"] == "ok"
    assert result["budget"]["completions"] == TINY.steps * TINY.prompts * TINY.samples
    assert result["budget"]["optimizer_steps"] == TINY.steps * TINY.minibatches
    assert values["gain"] == pytest.approx(values["improved"] - values["acc@t1"])
    assert values["gain"] == pytest.approx(values["mended"] - values["broken"])
    assert values["net corrections"] == pytest.approx(values["gain"] * TINY.eval_problems)
    assert (values["training depth"] == 0) == (arm == "curriculum")


@pytest.mark.parametrize("preset", ["tiny", "smol", "small", "gpu"])
def test_presets(preset):
    config = Config.for_preset(preset)
    config.check()
    grpo = settings_for(config)
    assert config.minibatches == grpo.minibatches
    assert config.learning_rate == grpo.learning_rate or preset == "tiny"  # chosen there on validation
    assert config.buffer_size == 4 * config.prompts


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError):
        replace(TINY, iterate=1.5).check()
