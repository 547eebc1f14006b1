"""The bias of the cut divergence, what conflicting teachers teach, the rule's check, and short runs of all arms.

The worked gradients of the cut forms are in tests/model/test_divergences.py.
"""

from dataclasses import replace

import pytest
import torch

from papers.opd_pitfalls import PAPER, RULE, Config, beginning, complies, divergence_of, health, repetition
from repro.arm import run_arm
from repro.model.logprobs import forward_kl, reverse_kl
from repro.run import Run
from repro.tasks import prompts

SMALL = Config(
    updates=2,
    prompts=4,
    train_problems=16,
    eval_problems=6,
    eval_samples=2,
    begun_problems=4,
    max_new_tokens=64,
    monitors=1,
)


def slope(divergence, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    logits = student.log().requires_grad_()
    (found,) = torch.autograd.grad(divergence(logits[None], teacher.log()[None]).sum(), logits)
    return found


def test_the_raw_form_lowers_the_token_that_the_teacher_prefers():
    student, teacher = (torch.tensor(p, dtype=torch.float64) for p in ((0.5, 0.3, 0.2), (0.6, 0.3, 0.1)))
    assert slope(divergence_of("raw", 1), student, teacher)[0] > 0  # descent lowers it
    for loss in ("stop_gradient", "tail", "full", "forward"):
        assert slope(divergence_of(loss, 1), student, teacher)[0] < 0
    # it rises only where the teacher's probability is above e times the student's
    student = torch.tensor([0.35, 0.33, 0.32], dtype=torch.float64)  # e times .35 is .951
    for p, sign in ((0.95, 1), (0.953, -1)):
        teacher = torch.tensor([p, (1 - p) / 2, (1 - p) / 2], dtype=torch.float64)
        assert slope(divergence_of("raw", 1), student, teacher)[0].sign() == sign
    same = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    for k in (1, 2):
        assert slope(divergence_of("norm", k), same, same).abs().max() < 1e-12
        assert slope(divergence_of("raw", k), same, same).abs().max() > 1e-2  # biased where nothing is to be learnt


def test_all_forms_are_one_over_the_whole_vocabulary():
    gen = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, generator=gen, dtype=torch.float64).softmax(-1) for _ in range(2))
    wanted = slope(reverse_kl, student, teacher)
    for loss in ("raw", "stop_gradient", "tail", "norm"):
        assert torch.allclose(slope(divergence_of(loss, 6), student, teacher), wanted, atol=1e-9)


@pytest.mark.parametrize(
    ("divergence", "optimum", "value"),
    [(reverse_kl, (0.363636, 0.272727, 0.363636), 0.597837), (forward_kl, (0.425, 0.15, 0.425), 0.399015)],
)
def test_conflicting_teachers_teach_their_mean(divergence, optimum, value):
    teachers = torch.tensor([[0.8, 0.15, 0.05], [0.05, 0.15, 0.8]], dtype=torch.float64).log()

    def average(logits: torch.Tensor) -> torch.Tensor:
        return divergence(logits.expand(2, -1), teachers).mean()

    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for _ in range(2000):
        (found,) = torch.autograd.grad(average(logits), logits)
        logits = (logits - 0.5 * found).detach().requires_grad_()
    assert logits.softmax(-1).tolist() == pytest.approx(optimum, abs=1e-3)
    assert average(logits).item() == pytest.approx(value, abs=1e-4)
    other = (0.425, 0.15, 0.425) if divergence is reverse_kl else (0.363636, 0.272727, 0.363636)
    worse = average(torch.tensor(other, dtype=torch.float64).log()).item()
    assert worse == pytest.approx(0.640706 if divergence is reverse_kl else 0.441884, abs=1e-5)


def test_two_opposite_teachers_leave_a_coin():
    teachers = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64).log()
    even = torch.zeros(2, 2, dtype=torch.float64)
    assert reverse_kl(even, teachers).mean().item() == pytest.approx(0.510826, abs=1e-6)
    assert reverse_kl(teachers[:1], teachers[:1]).item() == pytest.approx(0, abs=1e-12)


def test_repeated_trigrams():
    assert repetition([*"abcabcabc"]) == pytest.approx(4 / 7)
    assert repetition([*"abcdefghi"]) == repetition(["a"]) == 0


def test_the_health_of_a_distribution():
    student, teacher = (torch.tensor([p]).log() for p in ((0.5, 0.3, 0.2), (0.2, 0.7, 0.1)))
    same, mass, kl = health(student, teacher, 2)[0].tolist()
    assert (same, mass) == pytest.approx((0.0, 0.8))
    assert kl == pytest.approx(reverse_kl(student, teacher).item())
    assert health(student, student, 1)[0].tolist() == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("1: 2+3\n2: 5\n\\boxed{5}", True),
        ("1. Add them.\n2. It is 5.", True),
        ("2+3\n5\n\\boxed{5}", False),
        ("1: 2+3\n1: 5\n\\boxed{5}", False),
        ("12+3\n15\n\\boxed{15}", False),
        ("\\boxed{5}", False),
    ],
)
def test_numbered_steps(text, kept):
    assert complies(text) is kept


def test_a_beginning_ends_with_a_whole_line():
    text = "aaaa\nbbbb\ncccc\ndddd"
    assert [beginning(text, part) for part in (0.0, 0.25, 0.5, 0.75)] == ["", "", "aaaa", "aaaa\nbbbb"]


@pytest.mark.parametrize("arm", ["raw", "rule", "norm_5"])
def test_arms_run(arm, tmp_path):
    result = run_arm(PAPER, SMALL, arm, 0, str(tmp_path))
    assert result["status"] == "ok"
    assert result["budget"]["completions"] == 8
    metrics = result["metrics"]
    assert 0 <= metrics["compliance"]["value"] <= 1 and 0 < metrics["mass in top-K"]["value"] <= 1
    assert all(row["gap"] >= 0 for row in result["history"])


def test_the_base_has_what_claims_name(tmp_path):
    names = {metric for claim in PAPER.claims for arm, metric in (claim.left, claim.right) if arm == "base"}
    metrics = run_arm(PAPER, replace(SMALL, begun_problems=6, eval_problems=6), "base", 0, str(tmp_path))["metrics"]
    assert {n for n in names if "wrong" not in n} <= {*metrics, "accuracy", "greedy"}
    assert metrics["compliance when told"]["value"] > metrics["compliance"]["value"]


def test_a_teacher_with_a_rule_reads_the_rule_and_the_student_does_not(tmp_path):
    run = Run(PAPER, "rule", 0, SMALL, tmp_path)
    rollouts = run.rollout(run.next_problems(2), 1)
    rule = run.policy.tokenizer(prompts.NUMBERED, add_special_tokens=False).input_ids
    for prompt, context in zip((c.prompt for (c,) in rollouts.completions), RULE(run, rollouts), strict=True):
        assert set(rule) <= set(context) and not set(rule) & set(prompt)
