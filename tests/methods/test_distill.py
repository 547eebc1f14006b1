"""What a teacher reads, and that following it is one step on the divergence with the gap told beside it."""

from functools import partial

import pytest
import torch
from conftest import perturb

from repro.config import RunConfig
from repro.methods.distill import follow, of_problem, read_by_teacher, train_distill
from repro.model.logprobs import forward_kl, reverse_kl
from repro.model.policy import BASE
from repro.paper import Paper
from repro.run import Rollouts, Run
from repro.tasks import prompts

CONFIG = RunConfig(train_problems=16, eval_problems=4, max_new_tokens=48, monitors=0, warmup=0)
REFERENCE = of_problem(prompts.solve_with_reference)
PAPER = Paper(slug="p", title="", arxiv="", config=RunConfig, arms={"one": lambda *_: None}, claims=())


@pytest.fixture
def run(tmp_path) -> Run:
    made = Run(PAPER, "one", 0, CONFIG, tmp_path)
    perturb(made.policy)
    return made


def rollouts_of(run: Run, problems: int, samples: int) -> Rollouts:
    return run.rollout(run.next_problems(problems), samples)


def test_a_teacher_reads_its_own_prompt_before_each_answer(run):
    rollouts = rollouts_of(run, 3, 2)
    batch = read_by_teacher(run, rollouts, REFERENCE)
    flat = [c for group in rollouts.completions for c in group]
    assert [tuple(answer) for _, answer in batch.sequences] == [c.ids for c in flat]
    asked = [run.policy.encode(prompts.solve_with_reference(p)) for p in rollouts.problems for _ in range(2)]
    assert batch.contexts == asked


def test_a_step_is_on_the_divergence_alone_and_tells_the_gap(run):
    batch = read_by_teacher(run, rollouts_of(run, 3, 1), REFERENCE)
    gap = run.divergences(batch, forward_kl, BASE).mean()
    before = run.policy.adapter_state()
    follow(run, batch, reverse_kl)
    told = run._logged["gap"]
    assert len(told) == 1 and told[0] == pytest.approx(gap.item(), rel=1e-4)
    followed = run.policy.adapter_state()
    run.policy.load_adapter_state(before)
    run.trainer.new_optimizer()
    run.distill(batch, reverse_kl, BASE)
    assert all(torch.allclose(followed[k], v, atol=1e-7) for k, v in run.policy.adapter_state().items())
    assert any(not torch.equal(followed[k], before[k]) for k in before)


def test_nothing_is_learnt_from_a_teacher_that_reads_what_the_student_reads(tmp_path):
    run = Run(PAPER, "one", 0, CONFIG, tmp_path)
    batch = read_by_teacher(run, rollouts_of(run, 2, 1), of_problem(prompts.solve))
    follow(run, batch, forward_kl)
    assert run._logged["gap"][0] == pytest.approx(0, abs=1e-6)
    assert run._logged["grad_norm"][0] == pytest.approx(0, abs=1e-5)


def test_following_brings_the_student_closer(tmp_path):
    config = RunConfig(**{**vars(CONFIG), "learning_rate": 2e-3})
    run = Run(PAPER, "one", 0, config, tmp_path)
    fixed = read_by_teacher(run, rollouts_of(run, 8, 2), REFERENCE)
    before = run.divergences(fixed, reverse_kl, BASE).mean()
    train_distill(run, "train", 6, 8, REFERENCE, partial(reverse_kl), minibatches=2)
    assert run.budget["optimizer_steps"] == 12
    assert run.divergences(fixed, reverse_kl, BASE).mean() < before
    assert all(row["gap"] > 0 for row in run.history)
