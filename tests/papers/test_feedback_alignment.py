"""What each teacher reads, where its signal is, the paper's worked numbers, and short runs of both arms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import own_arms

from papers.feedback_alignment import (
    CONTEXTS,
    PAPER,
    REGIONS,
    Config,
    localisation,
    regions,
    shown_to_teacher,
    signal,
)
from repro.arm import run_arm
from repro.methods.distill import read_by_teacher
from repro.methods.grpo import advantages
from repro.methods.steps import first_wrong_step
from repro.model.logprobs import forward_kl, reverse_kl
from repro.model.policy import BASE
from repro.model.training import Batch
from repro.run import Run
from repro.tasks import prompts
from repro.tasks.problem import Problem

SMALL = Config(
    updates=2,
    prompts=4,
    train_problems=16,
    eval_problems=8,
    eval_samples=2,
    region_problems=8,
    max_new_tokens=64,
    monitors=1,
)
PROBLEM = Problem("Compute 3+4*5-1.", "22", "3+20-1\n23-1\n\\boxed{22}", "mixed", 1)
WRONG = "3+20-1\n24-1\n\\boxed{23}"
RIGHT = "3+20-1\n3+19\n\\boxed{22}"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return Run(PAPER, "stepalign", 0, SMALL, tmp_path_factory.mktemp("run"))


def test_group_advantages():
    rewards = torch.tensor([[1.0] + [0.0] * 7])
    for ddof, expected in ((0, (2.645751, -0.377964)), (1, (2.474874, -0.353553))):
        assert advantages(rewards, "grpo", ddof, 0)[0, :2].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_expected_advantage_is_minus_the_reverse_kl():
    student, teacher = (torch.tensor(p, dtype=torch.float64) for p in ((0.5, 0.3, 0.2), (0.7, 0.2, 0.1)))
    expected = (student * (teacher.log() - student.log())).sum().item()
    assert -reverse_kl(student.log()[None], teacher.log()[None]).item() == pytest.approx(expected)
    assert expected == pytest.approx(-0.092033, abs=1e-6)
    assert forward_kl(student.log()[None], teacher.log()[None]).item() == pytest.approx(0.085123, abs=1e-6)


def test_the_aligned_context_keeps_right_steps_and_never_quotes_the_wrong_one():
    lines = {name: shown(PROBLEM, WRONG, False).split("\n") for name, shown in CONTEXTS.items()}
    assert lines["aligned"][0] == "3+20-1" and "24-1" not in lines["aligned"]
    assert lines["aligned"][-1] == "\\boxed{22}"
    assert lines["quoted"][:2] == ["3+20-1", "24-1"] and lines["quoted"][2:] == lines["aligned"][1:]
    assert lines["unquoted"] == lines["aligned"][1:]
    assert lines["answer"] == ["\\boxed{22}"] and "\n".join(lines["reference"]) == PROBLEM.solution


def test_a_right_solution_is_its_own_aligned_context():
    assert CONTEXTS["aligned"](PROBLEM, RIGHT, True) == CONTEXTS["quoted"](PROBLEM, RIGHT, True) == RIGHT
    assert CONTEXTS["unquoted"](PROBLEM, RIGHT, True) == "\\boxed{22}"


def test_regions_cover_each_token_once():
    pieces = ["3", "+20", "-1", "\n", "24", "-1", "\n", "\\boxed{", "23", "}", ""]
    found = regions(pieces, 2)
    assert found == [REGIONS[0]] * 3 + [None] + [REGIONS[1]] * 2 + [None] + [REGIONS[2]] * 3 + [None]
    assert set(regions(pieces, None)) == {REGIONS[0], None}


def test_localisation():
    assert localisation(-3.0, 1.0) == 0.75 and localisation(0.0, -1.0) == 0


def test_teachers_read_their_context_before_the_student_s_own_tokens(run):
    rollouts = run.rollout(run.next_problems(3), 2)
    shown = CONTEXTS["aligned"]
    batch = read_by_teacher(run, rollouts, shown_to_teacher(shown))
    asked = [problem for problem in rollouts.problems for _ in range(2)]
    flat, right = [c for group in rollouts.completions for c in group], rollouts.rewards.flatten().tolist()
    for problem, c, r, context, (_, ids) in zip(asked, flat, right, batch.contexts, batch.sequences, strict=True):
        text = run.policy.tokenizer.decode(context)
        assert shown(problem, c.text, r > 0) in text and prompts.REFERENCE in text and tuple(ids) == c.ids


def test_the_signal_by_hand(run):
    """The means of one context against a loop over solutions and tokens."""
    rollouts = run.rollout(run.held_out(), 1)
    found = signal(run, rollouts)
    errors = []
    for problem, (c,), (right,) in zip(rollouts.problems, rollouts.completions, rollouts.rewards.tolist(), strict=True):
        wrong = first_wrong_step(problem, c.text)
        lines = c.text.split("\n")
        if wrong is None or wrong > len(lines):
            continue
        shown = replace(problem, solution=CONTEXTS["aligned"](problem, c.text, right > 0))
        context = run.policy.encode(prompts.solve_with_reference(shown))
        difference = run.logprobs(Batch([(context, c.ids)]), BASE) - run.logprobs(Batch([(c.prompt, c.ids)]), BASE)
        start = len(run.policy.tokenizer("\n".join([*lines[: wrong - 1], ""]), add_special_tokens=False).input_ids)
        length = len(run.policy.tokenizer(lines[wrong - 1], add_special_tokens=False).input_ids)
        errors.append(difference[start : start + length].mean().item())
    assert errors and found["aligned, error"].value == pytest.approx(np.mean(errors), abs=1e-4)


@pytest.mark.parametrize("arm", own_arms(PAPER))
def test_every_arm_learns(arm, tmp_path):
    result = run_arm(PAPER, SMALL, arm, 0, str(tmp_path))
    assert result["budget"]["completions"] == 2 * 4 and result["budget"]["optimizer_steps"] == 2
    assert all(row["gap"] > 0 for row in result["history"])
    assert not any(name.startswith("localisation") for name in result["metrics"])


def test_the_base_is_where_the_signal_is_measured(tmp_path):
    metrics = run_arm(PAPER, SMALL, "base", 0, str(tmp_path))["metrics"]
    assert {f"localisation, {name}" for name in CONTEXTS} <= metrics.keys()
