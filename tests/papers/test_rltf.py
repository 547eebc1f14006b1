"""RLTF's rewards, advantages and mask on worked numbers, what each arm learns from, its gradient, short runs."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from papers.rltf import (
    PAPER,
    Config,
    centred,
    kept,
    sd_advantages,
    shaped,
    turn_rewards,
    two_turn_advantages,
    with_lessons,
)
from repro.arm import run_arm
from repro.methods.grpo import GRPO, grpo_loss
from repro.methods.multiturn import Conversations, Dialogue
from repro.model.sampling import Completion
from repro.model.training import LOGPROBS, Batch
from repro.run import Run
from repro.tasks import prompts

RIGHT = torch.tensor([[[1.0, 0, 0, 0]], [[0.0, 1, 1, 0]]])  # of four samples the first ends after one turn
REACHED = torch.tensor([[0.0, 1, 1, 1]])


def test_worked_advantages():  # check 1
    assert sd_advantages(RIGHT, REACHED, "first")[0].tolist() == [0, 0.75, 0.75, -0.25]
    assert sd_advantages(RIGHT, REACHED, "second")[0].tolist() == pytest.approx([0, 1 / 3, 1 / 3, -2 / 3])
    first, second = two_turn_advantages(RIGHT, REACHED, 0.1)
    assert first[0].tolist() == pytest.approx([0.7, -0.2, -0.2, -0.3])
    assert second[0].tolist() == pytest.approx([0, 1 / 3, 1 / 3, -2 / 3])


def test_where_critiques_always_work_the_second_baseline_teaches_nothing():  # check 2
    rewards, reached = torch.stack([torch.zeros(2, 4), torch.ones(2, 4)]), torch.ones(2, 4)
    assert sd_advantages(rewards, reached, "second").abs().max() == 0
    assert sd_advantages(rewards, reached, "first").tolist() == torch.ones(2, 4).tolist()
    alone = torch.tensor([[0.0, 0, 0, 1]])
    assert centred(torch.rand(1, 4), alone).abs().max() == 0  # one that went on alone
    assert centred(torch.rand(1, 4), torch.zeros(1, 4)).abs().max() == 0


def test_the_mask():  # check 4
    assert kept(torch.tensor([-0.1, -6, -4.9, -5.0]), -5.0).tolist() == [1, 0, 1, 1]


def test_rewards():  # check 7
    right, boxed = torch.tensor([1.0, 0, 0, 1]), torch.tensor([1.0, 1, 0, 0])
    assert shaped(right, boxed, 0.1).tolist() == pytest.approx([1, 0, -0.1, -0.1])


TINY = Config(
    **{"steps": 2, "prompts": 4, "samples": 4, "updates": 4, "conversation_problems": 2, "monitors": 1},
    **{"train_problems": 16, "eval_problems": 6, "eval_samples": 2, "max_new_tokens": 64, "own_turns": 2},
)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(PAPER, "sd", 0, TINY, tmp_path)


def told(run: Run) -> Conversations:
    """A problem with four dialogues, as in RIGHT; the answers' texts name their turn."""
    problem = run.problems[0]

    def said(text: str) -> Completion:
        ids = (*run.policy.tokenizer(text, add_special_tokens=False).input_ids, run.policy.tokenizer.eos_token_id)
        return Completion((1, 2, 3), ids, (), text, False)

    first = [said(f"{i}\n\\boxed{{{i}}}") for i in range(4)]
    group = [Dialogue(problem, [first[0]], True)]
    for i in (1, 2, 3):
        group.append(Dialogue(problem, [first[i], said(f"{i}0\n\\boxed{{{i}0}}")], i < 3, ["Step 1 is wrong."]))
    return Conversations([problem], [first], torch.tensor([[1.0, 0, 0, 0]]), [group])


def test_what_each_arm_learns_from(run):
    rewards, reached = turn_rewards(told(run), 0.1)
    assert rewards.tolist() == RIGHT.tolist() and reached.tolist() == REACHED.tolist()
    assert with_lessons(run, told(run), TINY, "", "first").more == []
    alone = run.policy.encode(prompts.solve(run.problems[0]))
    decode = run.policy.tokenizer.decode
    made = with_lessons(run, told(run), TINY, "sd", "first").more
    assert [weight for *_, weight in made] == pytest.approx([0.075, 0.075, -0.025])
    assert all(prompt == alone and "0\n" in decode(ids) for prompt, ids, _ in made)
    made = with_lessons(run, told(run), TINY, "sft", "first").more
    assert [weight for *_, weight in made] == [0.1, 0.1] and made[0][0] == alone
    made = with_lessons(run, told(run), TINY, "fm", "first").more
    assert [weight for *_, weight in made] == [0.1] * 3  # whatever the reward
    for (prompt, ids, _), i in zip(made, (1, 2, 3), strict=True):
        assert decode(ids[:-1]) == "Step 1 is wrong." and ids[-1] == run.policy.tokenizer.eos_token_id
        attempt = f"{i}\n\\boxed{{{i}}}"
        assert prompt == run.policy.encode(prompts.criticize(prompts.solve(run.problems[0]), attempt))
    assert with_lessons(run, told(run), replace(TINY, feedback_weight=0.0), "fm", "first").more == []


def slope(run: Run, batch: Batch, loss) -> torch.Tensor:
    run.trainer._accumulate(batch, loss, LOGPROBS, 1)
    found = torch.cat([p.grad.flatten() for p in run.policy.parameters]).double()
    run.trainer.optimizer.zero_grad()
    return found


def test_the_gradient_of_sd_is_weighted_likelihood(run):  # check 3
    more = with_lessons(run, told(run), TINY, "sd", "first").more
    batch = Batch([(prompt, ids) for prompt, ids, _ in more])
    batch.fields["old_logp"] = run.logprobs(batch)
    batch.fields["advantage"] = batch.spread([w for *_, w in more]) * kept(batch.fields["old_logp"], -5.0)
    batch.fields["weight"] = torch.ones(sum(batch.lengths))
    loop = slope(run, batch, partial(grpo_loss, settings=GRPO("dr_grpo")))
    plain = slope(run, batch, lambda logp, f: -f.advantage * logp)
    assert torch.allclose(loop, plain, atol=1e-6) and plain.abs().max() > 0


def outcome(arm: str, config: Config, out) -> dict:
    result = run_arm(PAPER, config, arm, 0, str(out))
    assert result["status"] == "ok"
    return result


@pytest.mark.parametrize("arm", ["sd", "sd_shuffled", "sft_y1"])
def test_arms(arm, tmp_path):
    result = outcome(arm, TINY, tmp_path)
    values = {name: found["value"] for name, found in result["metrics"].items()}
    assert 0 < result["budget"]["completions"] <= TINY.steps * TINY.prompts * TINY.samples
    assert 0 < result["budget"]["optimizer_steps"] <= TINY.updates
    assert values["own gain"] == pytest.approx(values["own, acc@t2"] - values["own, acc@t1"])
    assert values["told"] >= values["own, acc@t1"]
    assert len(result["per_problem"]["told"]) == TINY.eval_problems
    assert ("training masked" in values) == arm.startswith("sd")


def test_without_its_weight_feedback_modelling_is_two_turn_rl(tmp_path):  # check 5
    config = replace(TINY, feedback_weight=0.0)
    fm, rl = (outcome(arm, config, tmp_path) for arm in ("fm", "grpo_mt"))
    assert json.dumps(fm["metrics"]) == json.dumps(rl["metrics"]) and fm["history"] == rl["history"]
    taught = outcome("fm", TINY, tmp_path)
    assert taught["history"] != rl["history"]


@pytest.mark.parametrize("preset", ["tiny", "smol", "small", "gpu"])
def test_presets(preset):
    config = Config.for_preset(preset)
    config.check()
    budget, first = config.steps * config.prompts * config.samples, config.updates * config.conversation_problems
    assert first * config.samples < budget <= 2 * first * config.samples
