"""ThinkTuning's shaping on worked numbers, the splice, plain GRPO without guidance, what counts as a look back."""

from dataclasses import replace

import pytest
import torch

from papers.thinktuning import (
    PAPER,
    Config,
    Guided,
    before_reflection,
    fits,
    gamma_of,
    guide,
    measure,
    shaped,
    spliced,
    think,
    weights,
)
from repro.arm import run_arm
from repro.config import ConfigError
from repro.methods.grpo import GRPO, advantages, train_grpo
from repro.model.sampling import Completion
from repro.run import Rollouts, Run
from repro.tasks import prompts


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_gamma():  # checks 1 and 3: not the constant of the released code
    found = gamma_of(tensor(-4, -2, 0, 1.5, 4, 9), 0.001)
    assert found.tolist() == pytest.approx([-0.001, -0.0005, 0, 0.000375, 0.001, 0.001])


@pytest.mark.parametrize(
    ("gamma", "p", "expected"),
    [
        (0.001, [0.0005, 0.002, 0.01, 0.1], [0.3333, 0.6667, 0.9091, 0.9901]),
        (-0.001, [0.0005, 0.0011, 0.002, 0.01], [1.0001, 11.0, 2.0, 1.1111]),
        (0.0, [0.0005, 0.3, 1.0], [1, 1, 1]),
        (0.001, [0.9999], [0.9999]),
    ],
)
def test_worked_weights(gamma, p, expected):  # check 2
    assert shaped(tensor(*p), torch.full((len(p),), gamma).double()).tolist() == pytest.approx(expected, abs=1e-4)
    assert shaped(tensor(*p), torch.full((len(p),), gamma).double(), 2.0).max() <= 2.0


@pytest.mark.parametrize("gamma", [0.0, 0.1, -0.001])
def test_the_weight_is_the_gradient_of_the_shaped_ratio(gamma):  # check 4, the denominator is a constant
    logp = tensor(-3.0).requires_grad_()
    p = logp.detach().exp()
    (slope,) = torch.autograd.grad((logp.exp() / (p + gamma)).sum(), logp)
    assert slope.item() == pytest.approx(shaped(p, tensor(gamma)).item())


def test_unlikely_tokens_with_negative_advantages_keep_the_ratio():  # check 5
    p, advantage = tensor(0.005, 0.02, 0.005, 0.005), tensor(-1, -1, 1, 1)
    guided = torch.tensor([True, True, True, False])
    found = weights(p, advantage, guided, Config(gamma=0.001))
    assert found[0] == 1 and found[3] == 1
    assert found[1].item() == pytest.approx(0.02 / (0.02 - 0.00025))
    assert found[2].item() == pytest.approx(0.005 / (0.005 + 0.00025))
    damped = weights(p, advantage, guided, Config(gamma=0.1, constant=True))
    assert damped.tolist() == pytest.approx([1, 0.02 / 0.12, 0.005 / 0.105, 1])


def test_group_advantages():  # check 7
    found = advantages(torch.tensor([[1.0, 0, 0, 0, 0]]), "dapo")[0]
    assert found.tolist() == pytest.approx([1.788850] + [-0.447213] * 4, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("3+4\n\\boxed{7}", None),
        ("Wait.\n\\boxed{7}", None),
        ("\\boxed{8}\n\nWait, let me check.\n\n3+4\n\\boxed{7}", "\\boxed{8}"),
        ("a \\boxed{8} I doubt it.", "a \\boxed{8}"),
        ("no box, let me check", None),
    ],
)
def test_what_looks_back(text, first):
    assert before_reflection(text) == first


TINY = Config(
    **{"steps": 2, "prompts": 4, "samples": 4, "updates": 3, "step_problems": 2, "batch": 4, "guidance": 0.5},
    **{"train_problems": 16, "eval_problems": 6, "eval_samples": 2, "max_new_tokens": 96, "monitors": 1},
)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(PAPER, "tt", 0, TINY, tmp_path)


def test_the_splice():  # check 8
    answer = Completion((1, 2), (3, 4, 9), (-0.1, -0.2, -0.3), "ab", False)
    more = Completion((1, 2, 3, 4, 7, 8), (5, 9), (-0.4, -0.5), "c\\boxed{1}", False)
    made = spliced(answer, (7, 8), "--", more)
    assert (made.prompt, made.ids, made.text) == ((1, 2), (3, 4, 7, 8, 5, 9), "ab--c\\boxed{1}")
    assert len(made.logprobs) == len(made.ids) and isinstance(made, Guided)
    assert fits(more)
    assert not fits(Completion((), (5,), (), "c\\boxed{1}", True)) and not fits(Completion((), (5, 9), (), "c", False))


def test_guidance_replaces_answers_that_ended(run):
    rollouts = run.rollout(run.next_problems(6), 4)
    made = guide(run, rollouts, 1)
    replaced = 0
    end = run.policy.tokenizer.eos_token_id
    for i, group in enumerate(made.completions):
        guided = [k for k, c in enumerate(group) if isinstance(c, Guided)]
        assert len(guided) <= 1
        for k, completion in enumerate(group):
            before = rollouts.completions[i][k]
            if k not in guided:
                assert completion is before and made.rewards[i, k] == rollouts.rewards[i, k]
                continue
            replaced += 1
            assert not before.truncated and completion.ids[: len(before.answer)] == before.answer
            assert completion.ids[-1] == end
            assert completion.text.startswith(f"{before.text}\n\n{prompts.CHECK}\n\n")
            whole = run.policy.encode(prompts.check_in_turn(prompts.solve(rollouts.problems[i]), before.text))
            assert (*completion.prompt, *completion.ids)[: len(whole)] == tuple(whole)
    assert replaced
    rewards = run.rewards(made.problems, [list(group) for group in made.completions])
    assert torch.equal(rewards, made.rewards)


def trained(run: Run, method) -> torch.Tensor:
    run.folder.mkdir()
    method(run)
    return torch.cat([p.detach().flatten() for p in run.policy.parameters])


def test_without_guidance_it_is_grpo(tmp_path):  # check 6
    config = replace(TINY, updates=2)
    ours, theirs = (Run(PAPER, "tt", 0, config, tmp_path / name) for name in "ab")
    a = trained(ours, lambda run: think(run, config, guidance=0.0))
    b = trained(theirs, lambda run: train_grpo(run, 2, 2, 4, GRPO("dapo")))
    assert torch.equal(a, b)


def test_looks_back_are_measured(run):
    problem = run.problems[0]
    right, wrong = f"\\boxed{{{problem.answer}}}", "\\boxed{12345}"
    texts = [right, f"{wrong}\n\nWait, let me check.\n\n{right}", f"{right}\n\nWait.\n\n{wrong}", wrong]
    group = [Completion((), (), (), text, False) for text in texts]
    found = measure(run, TINY, Rollouts([problem], [group], torch.tensor([[1.0, 1, 0, 0]])))
    expected = {"reflection": 0.5, "fixed": 0.25, "broken": 0.25, "first box": 0.5}
    assert {name: metric.value for name, metric in found.items()} == expected


@pytest.mark.parametrize("arm", ["tt", "sft"])
def test_arms(arm, tmp_path):
    result = run_arm(PAPER, TINY, arm, 0, str(tmp_path))
    values = {name: found["value"] for name, found in result["metrics"].items()}
    assert result["status"] == "ok"
    assert 0 < result["budget"]["completions"] <= TINY.steps * TINY.prompts * TINY.samples
    assert values["accuracy"] == pytest.approx(values["first box"] + values["fixed"] - values["broken"])
    assert "training rejected" in values
    assert len(result["per_problem"]["reflection"]) == TINY.eval_problems


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError):
        replace(TINY, guidance=1.5).check()
