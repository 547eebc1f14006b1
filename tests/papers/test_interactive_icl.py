"""RL2F's rewards on worked numbers, what carries a loss, one turn as plain GRPO, who sees the solution, short runs."""

from dataclasses import replace

import pytest
import torch

from papers.interactive_icl import PAPER, Config, attempts_that_lead, dialogue_rewards, rl2f, teacher_of
from repro.arm import run_arm
from repro.config import ConfigError
from repro.methods.critic import reference_critic
from repro.methods.grpo import GRPO, advantages, train_grpo
from repro.methods.multiturn import Conversations, Dialogue, conversations
from repro.model.sampling import Completion
from repro.run import Run
from repro.tasks import prompts
from repro.tasks.problem import Problem

TINY = Config(
    **{"steps": 2, "prompts": 4, "samples": 4, "updates": 3, "conversation_problems": 2, "monitors": 1, "batch": 4},
    **{"train_problems": 16, "eval_problems": 6, "eval_samples": 2, "max_new_tokens": 64, "eval_turns": 3},
)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(PAPER, "rl2f", 0, TINY, tmp_path)


def solved_at(*turns: int) -> Conversations:
    """One problem with dialogues of up to three attempts that are solved there (0: never)."""

    def dialogue(turn: int) -> Dialogue:
        count = turn or 3
        return Dialogue(
            Problem("q", "1"), [Completion((1,), (2, 3), (), "", False)] * count, turn > 0, ["w"] * (count - 1)
        )

    group = [dialogue(turn) for turn in turns]
    return Conversations([Problem("q", "1")], [], torch.zeros(1, len(turns)), [group])


def test_worked_rewards():  # check 1
    rewards = dialogue_rewards(solved_at(1, 2, 3, 0), 0.7)
    assert rewards[0].tolist() == pytest.approx([1, 0.7, 0.49, 0])
    assert rewards.mean().item() == pytest.approx(0.5475)
    sample = advantages(rewards, "grpo", delta=0.0)[0]
    population = advantages(rewards, "grpo", ddof=0, delta=0.0)[0]
    assert sample.tolist() == pytest.approx([1.0755, 0.3625, -0.1367, -1.3013], abs=1e-4)
    assert population.tolist() == pytest.approx([1.2419, 0.4185, -0.1578, -1.5026], abs=1e-4)
    assert dialogue_rewards(solved_at(3, 1), 1.0)[0].tolist() == [1, 1]


def test_one_advantage_for_all_attempts_of_a_dialogue():
    made = solved_at(1, 3)
    weights = made.weights(torch.tensor([[1.5, -0.5]]).expand(3, 1, 2))
    assert weights.tolist() == [1.5] * 2 + [-0.5] * 6  # two tokens an attempt


def trained(run: Run, method) -> torch.Tensor:
    run.folder.mkdir()
    method(run)
    return torch.cat([p.detach().flatten() for p in run.policy.parameters])


def test_one_turn_is_single_turn_grpo(tmp_path):  # check 3
    config = replace(TINY, turns=1, updates=2)
    dialogue, plain = (Run(PAPER, "rl2f", 0, config, tmp_path / name) for name in "ab")
    ours = trained(dialogue, lambda run: rl2f(run, config))
    theirs = trained(plain, lambda run: train_grpo(run, 2, 2, 4, GRPO()))
    assert torch.equal(ours, theirs)
    assert dialogue.budget["completions"] == plain.budget["completions"] == 16


def test_what_carries_a_loss(run, monkeypatch):  # checks 2 and 4
    seen = []
    monkeypatch.setattr(run, "update", lambda batch, *a, **k: seen.append(batch))
    rl2f(run, TINY, critique_weight=0.1)
    decode, asked = run.policy.tokenizer.decode, 0
    for batch in seen:
        for (prompt, ids), weight in zip(batch.sequences, batch.fields["advantage"].split(batch.lengths), strict=True):
            text = decode(prompt)
            if prompts.CRITICIZE in text:
                asked += 1
                assert decode(ids).startswith("Step ") and weight.tolist() == pytest.approx([0.1] * len(ids))
                assert prompts.FEEDBACK not in text  # the problem and the attempt, nothing that the teacher said
            else:
                assert "Step " not in decode(ids) and prompts.SOLVE in text
    assert asked


def test_dialogues_end_at_the_first_right_attempt(run):
    made = conversations(run, run.next_problems(4), 4, 3, teacher_of(TINY))
    for group, first in zip(made.dialogues, made.rewards, strict=True):
        for dialogue, right in zip(group, first.tolist(), strict=True):
            rewards = run.rewards([dialogue.problem], [dialogue.attempts])[0].tolist()
            assert rewards[:-1] == [0] * (len(rewards) - 1) and bool(rewards[-1]) == dialogue.right
            assert len(dialogue.words) == len(rewards) - 1 and (rewards[0] == right)
    kept = attempts_that_lead(made)
    every = [d for group in made.dialogues for d in group]
    assert len(kept) == sum(len(d.attempts) for d in every if d.right)


def test_the_student_never_sees_the_solution(run, monkeypatch):  # check 5
    problem = Problem("How many?", "7", "SENTINEL 3 + 4 = 7\n\\boxed{7}", "gsm8k")
    asked, sample = [], run.sample
    monkeypatch.setattr(run, "sample", lambda chats, *a, **k: asked.extend(chats) or sample(chats, *a, **k))
    conversations(run, [problem], 4, 3, reference_critic("step"))
    student = [chat for chat in asked if prompts.SOLVE in chat[0]["content"]]
    assert len(student) > 1 and not any("SENTINEL" in str(chat) for chat in student)
    assert any("SENTINEL" in str(chat) for chat in asked)


@pytest.mark.parametrize("arm", ["rl2f_wm", "sft"])
def test_arms(arm, tmp_path):
    result = run_arm(PAPER, TINY, arm, 0, str(tmp_path))
    values = {name: found["value"] for name, found in result["metrics"].items()}
    assert result["status"] == "ok"
    assert 0 < result["budget"]["completions"] <= TINY.steps * TINY.prompts * TINY.samples
    assert 0 < result["budget"]["optimizer_steps"] <= TINY.updates
    for name in ("solved", "solved, empty", "solved, shuffled"):
        rising = [values[f"{name}@{t}"] for t in (1, 2, 3)]
        assert rising == sorted(rising) and rising[0] == values["solved@1"] == values["unverified@1"]
    assert values["slope"] == pytest.approx(values["solved@3"] - values["solved@1"])
    assert values["equal tokens@1"] == values["solved@1"]
    assert values["own gain"] == pytest.approx(values["unverified@3"] - values["unverified@1"])
    assert len(result["per_problem"]["solved@3"]) == TINY.eval_problems


@pytest.mark.parametrize("settings", [{"eval_turns": 2}, {"discount": 0.0}, {"discount": 1.5}])
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ConfigError):
        replace(TINY, **settings).check()
