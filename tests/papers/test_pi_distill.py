"""Shaped rewards, ratios and clips on worked numbers, which half gets which gradient, and short runs of all arms."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import own_arms
from hypothesis import given
from hypothesis import strategies as st

from papers.pi_distill import PAPER, Config, as_student, both_losses, halved, log_ratio, of_both, shaped
from repro.arm import run_arm
from repro.methods.grpo import advantages
from repro.model.logprobs import reverse_kl
from repro.model.training import Batch
from repro.run import Run
from repro.tasks import prompts
from repro.tasks.problem import Problem

SMALL = Config(
    steps=2,
    prompts=4,
    samples=3,
    minibatches=2,
    updates=2,
    batch=4,
    train_problems=16,
    eval_problems=6,
    eval_samples=2,
    aided_problems=4,
    max_new_tokens=64,
    monitors=1,
)
TEACHER, STUDENT = torch.tensor([-0.1, -0.2]), torch.tensor([-0.5, -1.2])


def test_the_log_ratio_lowers_the_reward():
    gap = log_ratio(TEACHER, STUDENT, [2])
    assert gap.item() == pytest.approx(0.7)  # 1.4 as a sum
    assert shaped(torch.ones(1, 1), gap, 0.25).item() == pytest.approx(0.825)
    assert shaped(torch.ones(1, 1), 2 * gap, 0.25).item() == pytest.approx(0.65)


def test_a_group_of_shaped_rewards():
    kept = shaped(torch.tensor([[1.0, 1, 0, 0]]), torch.tensor([1.4, 0.2, 0.4, 0.4]), 0.25)
    assert kept[0].tolist() == pytest.approx([0.65, 0.95, -0.1, -0.1])
    assert advantages(kept, "dr_grpo")[0].tolist() == pytest.approx([0.3, 0.6, -0.45, -0.45])
    expected = [0.648886, 1.297771, -0.973329, -0.973329]
    assert advantages(kept, "grpo", ddof=0, delta=0)[0].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("advantage", "loss", "slope"), [(1.0, -1.038199, True), (-1.0, 1.6, False)])
def test_far_behind_the_teacher_only_right_rollouts_teach(advantage, loss, slope):
    logp = STUDENT.clone().requires_grad_()
    ones = torch.ones(2)
    fields = SimpleNamespace(old_logp=TEACHER, advantage=advantage * ones, share=ones, pull=0 * ones)
    value = both_losses(logp, fields, 0.2).sum()
    assert value.item() == pytest.approx(loss, abs=1e-6)
    (found,) = torch.autograd.grad(value, logp)
    assert (found.abs().sum() > 0) == slope


def test_the_pull_has_the_gradient_of_the_likelihood():
    logp = STUDENT.clone().requires_grad_()
    zeros, ones = torch.zeros(2), torch.ones(2)
    fields = SimpleNamespace(old_logp=TEACHER, advantage=zeros, share=ones, pull=0.25 * ones)
    (found,) = torch.autograd.grad(both_losses(logp, fields, 0.2).sum(), logp)
    assert torch.allclose(found, -0.25 * ones)


def gradients(alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """By the log-probs of the teacher's tokens and of the student's, of two rollouts with two and one tokens."""
    teacher, student = Batch([([1, 9], [3, 4]), ([1, 9], [5])]), Batch([([1], [3, 4]), ([1], [5])])
    fields = {"old_logp": torch.full((3,), -0.5), "teacher": torch.tensor([1.0, -1]), "student": torch.tensor([2.0, 1])}
    batch = of_both(teacher, student, alpha, 0.0, fields)
    logp = torch.full((len(batch.fields["share"]),), -0.5, requires_grad=True)
    weight = torch.cat([torch.full((n,), 1 / (len(batch.lengths) * n)) for n in batch.lengths])
    loss = both_losses(logp, SimpleNamespace(**batch.fields), 0.2) * weight
    (found,) = torch.autograd.grad(loss.sum(), logp)
    prompts_of = [len(prompt) for prompt, ids in batch.sequences for _ in ids]
    of_teacher = torch.tensor(prompts_of) == 2
    nothing = torch.zeros(3)
    return found[of_teacher] if of_teacher.any() else nothing, found[~of_teacher] if alpha < 1 else nothing


def test_alpha_shares_between_the_readers():
    only_teacher, only_student, half = gradients(1.0), gradients(0.0), gradients(0.5)
    assert only_teacher[1].abs().max() == 0 and only_student[0].abs().max() == 0
    assert only_teacher[0].tolist() == pytest.approx([-0.25, -0.25, 0.5])  # -A / (rollouts x tokens)
    assert torch.allclose(half[0], only_teacher[0] / 2) and torch.allclose(half[1], only_student[1] / 2)


def test_full_reverse_kl_and_its_gradients():
    student = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().requires_grad_()
    teacher = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).log()
    value = reverse_kl(student[None], teacher[None]).sum()
    assert value.item() == pytest.approx(0.092033, abs=1e-6)
    (found,) = torch.autograd.grad(value, student)
    assert found.tolist() == pytest.approx([-0.214253, 0.094030, 0.120223], abs=1e-6)


def test_readers_that_read_the_same_are_one(tmp_path):
    run = Run(PAPER, "pi_distill", 0, SMALL, tmp_path)
    rollouts = run.rollout(run.next_problems(2), 2, ask=prompts.solve)
    assert as_student(run, rollouts).completions == rollouts.completions
    batch = rollouts.batch()
    old = run.logprobs(batch)
    assert log_ratio(old, run.logprobs(as_student(run, rollouts).batch()), batch.lengths).abs().max() == 0
    fields = {"old_logp": old, "teacher": torch.arange(4.0), "student": torch.arange(4.0)}
    updated = []
    for alpha in (0.0, 0.5, 1.0):
        before = run.policy.adapter_state()
        run.trainer.new_optimizer(1e-3)
        run.update(of_both(batch, batch, alpha, 0.0, fields), partial(both_losses, clip=0.2), "sequence")
        updated.append(run.policy.adapter_state())
        run.policy.load_adapter_state(before)
    for state in updated[1:]:
        assert all(torch.allclose(state[name], value, atol=1e-5) for name, value in updated[0].items())


@given(st.text(st.characters(categories=["L", "N"]), min_size=4, max_size=20))
def test_the_student_never_reads_the_information(secret):
    problem = Problem("Compute 1+1.", "2", f"step {secret}\n1+1\n\\boxed{{2}}")
    (asked,) = prompts.solve(problem)
    assert f"step {secret}" not in asked["content"] and f"step {secret}" in halved(problem)[0]["content"]


@pytest.mark.parametrize("arm", own_arms(PAPER))
def test_every_arm_learns(arm, tmp_path):
    result = run_arm(PAPER, SMALL, arm, 0, str(tmp_path))
    assert result["budget"]["completions"] == 2 * 4 * 3 and result["budget"]["optimizer_steps"] == (
        2 if arm == "rft_pi" else 4
    )
    assert arm == "rft_pi" or all("gap" in row for row in result["history"])
