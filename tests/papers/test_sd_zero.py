"""SD-Zero: the masks of self-revision training, what the reviser reads and sees, the divergence's numbers, all arms."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import own_arms, perturb, random_model

from papers.sd_zero import (
    PAPER,
    REGIONS,
    Config,
    divergence,
    phase_two,
    regions,
    revision_contexts,
    sd_zero,
    srt_batch,
    train_srt,
)
from repro.arm import run_arm, run_folder
from repro.config import ConfigError
from repro.model.logprobs import between, completion_hidden, completion_taught, mixed_kl
from repro.model.training import Batch
from repro.run import Rollouts, Run
from repro.tasks import prompts
from repro.tasks.loading import load
from repro.tasks.problem import Problem

CONFIG = Config(
    **{"steps": 4, "prompts": 2, "samples": 4, "phase_one": 0.5, "epochs": 2, "train_problems": 64},
    **{"eval_problems": 8, "eval_samples": 2, "max_new_tokens": 64, "monitors": 1},
)
DRAFT, RIGHT = "3-2+4=4\n\\boxed{4}", "3-2=1\n1+4=5\n\\boxed{5}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = Run(PAPER, "sd_zero", 0, CONFIG, tmp_path_factory.mktemp("run"))
    perturb(run.policy)
    return run


def trace(run: Run) -> list[list[int]]:
    chat = prompts.solve(run.problems[0])
    x = run.policy.encode(chat)
    context = run.policy.encode(prompts.revise_in_turn(chat, DRAFT, False))
    assert context[: len(x)] == x
    tokenizer = run.policy.tokenizer
    revision = [*tokenizer(RIGHT, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return [x, context[len(x) :], revision]


def test_srt_loss_is_the_sum_of_both_losses(run):
    """L_SRT = L_rev + L_gen = NLL(y0, P_r | x) + 2 NLL(y1 | x, y0, P_r), from separate forward passes."""
    x, draft, revision = trace(run)
    batch = srt_batch([(x, draft, revision)], CONFIG)
    assert batch.lengths == [len(draft) + len(revision)]
    total = -(run.logprobs(batch) * batch.fields["counts"]).sum().item()
    generation = -run.logprobs(Batch([(x, [*draft, *revision])])).sum().item()
    reviser = -run.logprobs(Batch([([*x, *draft], revision)])).sum().item()
    opening = -run.logprobs(Batch([(x, draft)])).sum().item()
    assert generation == pytest.approx(opening + reviser, rel=1e-4)
    assert total == pytest.approx(generation + reviser, rel=1e-4)
    assert total == pytest.approx(opening + 2 * reviser, rel=1e-4)


def test_srt_trains_on_that_loss_as_a_mean_over_tokens(run, tmp_path, monkeypatch):
    fresh, seen = Run(PAPER, "srt", 0, CONFIG, tmp_path), []
    monkeypatch.setattr("papers.sd_zero.revise", lambda *_: [trace(run)])
    monkeypatch.setattr(fresh, "update", lambda batch, loss, **more: seen.append((batch, loss, more)))
    train_srt(fresh, CONFIG, 1)
    assert len(seen) == CONFIG.epochs and all(not more for *_, more in seen)  # the token mean, at temperature 1
    batch, loss, _ = seen[0]
    _, draft, revision = trace(run)
    values = loss(torch.ones(len(draft) + len(revision)), SimpleNamespace(**batch.fields))
    assert values.tolist() == [-1.0] * len(draft) + [-2.0] * len(revision)


@pytest.mark.parametrize(("generation", "revision"), [(1.0, 0.0), (0.0, 1.0)])
def test_masks_of_the_two_losses(run, generation, revision):
    x, draft, revised = trace(run)
    config = replace(CONFIG, generation_weight=generation, revision_weight=revision)
    weight = srt_batch([(x, draft, revised)], config).fields["counts"].tolist()
    assert weight == [generation] * len(draft) + [1.0] * len(revised)


def rollouts_of(run: Run, text: str, right: bool) -> Rollouts:
    problem = run.problems[0]
    tokenizer = run.policy.tokenizer
    ids = (*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id)
    completion = run.sample([prompts.solve(problem)], 1)[0][0]
    completion = replace(completion, ids=ids, text=text, truncated=False)
    return Rollouts([problem], [[completion]], torch.tensor([[float(right)]]))


def test_the_teacher_sees_the_problem_the_answer_the_phrase_and_the_answer_again(run):
    rollouts = rollouts_of(run, DRAFT, False)
    completion = rollouts.completions[0][0]
    (context,) = revision_contexts(run, rollouts)
    x, y = list(completion.prompt), list(completion.ids)
    delimiter = run.policy.tokenizer(f"\n\n{prompts.CUE_WRONG}\n\n", add_special_tokens=False).input_ids
    assert context == [*x, *y[:-1], *delimiter]  # the first copy isn't closed
    batch = rollouts.batch()
    batch.contexts = [context]
    ((seen, second),) = batch.seen_by_teacher()
    assert list(second) == y and len(seen) + len(second) == len(x) + 2 * len(y) - 1 + len(delimiter)


def test_the_verdict_changes_the_phrase_only(run):
    (wrong,) = revision_contexts(run, rollouts_of(run, DRAFT, False))
    (right,) = revision_contexts(run, rollouts_of(run, DRAFT, True))
    differs = [i for i, (a, b) in enumerate(zip(wrong, right, strict=True)) if a != b]
    tokens = run.policy.tokenizer.convert_ids_to_tokens([wrong[i] for i in differs])
    assert tokens == [prompts.CUE_WRONG]


def test_divergence_on_the_teachers_top_2():
    student = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[1.0, 2.0, 0.0, -1.0]], dtype=torch.float64)
    for weight in (0.0, 0.5, 1.0):
        value = divergence(Config(top_k=2, kl_weight=weight))(student, teacher)
        assert value.item() == pytest.approx(0.462117, abs=1e-6)
    (gradient,) = torch.autograd.grad(divergence(Config(top_k=2, kl_weight=0.5))(student, teacher).sum(), student)
    assert gradient[0].tolist() == pytest.approx([0.427671, -0.427671, 0.0, 0.0], abs=1e-6)
    assert mixed_kl(student, teacher).item() == pytest.approx(0.407031, abs=1e-6)  # the whole vocabulary


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_no_loss_and_no_gradient_where_the_teacher_agrees(weight):
    logits = torch.randn(5, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = divergence(Config(kl_weight=weight))(logits, logits.detach().clone())
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.abs().max() < 1e-12 and gradient.abs().max() < 1e-12


def test_both_copies_are_aligned():
    """With logits that depend on the last token only, the copies differ at the first position, behind the phrase."""
    model = random_model()
    for layer in model.model.layers:  # neither attention nor position: each token by itself
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    x, y, phrase = [5, 6, 7], [11, 12, 13, 14], [20, 21]
    with torch.no_grad():
        teacher, targets = completion_hidden(model, [([*x, *y, *phrase], y)])
        values = completion_taught(model, [(x, y)], teacher, between(divergence(Config())))
    assert targets.tolist() == y
    assert values[0] > 1e-3 and values[1:].abs().max() < 1e-9


SOLUTION = "3+20-1\n23-1\n\\boxed{22}"
PROBLEM = Problem("Compute 3+4*5-1.", "22", SOLUTION, "mixed", 1)


@pytest.mark.parametrize(
    ("text", "right", "lines"),
    [
        (SOLUTION, True, [0, 0, 0]),
        ("3+20-1\n3+19\n\\boxed{22}", True, [0, 0, 0]),  # in another order than the reference's
        ("3+20-1\n24-1\n\\boxed{23}", False, [1, 2, 3]),
        ("7*5-1\n35-1\n\\boxed{34}", False, [2, 3, 3]),
        ("3+20-1\n23\n\\boxed{23}", False, [1, 2, 3]),  # a term got lost
        ("3+20\n\\boxed{22}", True, None),  # right in spite of a wrong step
        ("7*5-1\n\\boxed{34}\n\nWait\n\n" + SOLUTION, True, None),  # a wrong draft with a right revision
    ],
)
def test_regions(text, right, lines):
    labels = regions(PROBLEM, [*text, ""], right)  # characters for tokens, and the end token
    assert len(labels) == len(text) + 1 and labels[-1] is None
    if lines is None:
        assert set(labels) == {None}
        return
    place = 0
    for line, region in zip(text.split("\n"), lines, strict=True):
        assert set(labels[place : place + len(line)]) == {REGIONS[region]}
        place += len(line) + 1


def test_regions_end_with_the_first_final_answer():
    draft = "7*5-1\n\\boxed{34}"
    labels = regions(PROBLEM, list(draft + "\n\nWait\n\n" + draft), False)
    assert None not in labels[: len(draft)] and set(labels[len(draft) :]) == {None}


@pytest.mark.parametrize("arm", own_arms(PAPER))
def test_own_arms_train_on_the_protocol_s_completions(arm, tmp_path):
    result = run_arm(PAPER, CONFIG, arm, 0, str(tmp_path))
    assert result["status"] == "ok"
    assert result["budget"]["completions"] == 4 * 2 * 4
    assert {"acc@t1", "acc@t2", "accuracy"} <= result["metrics"].keys()
    teachers = {"sd_zero", "sd_zero_sync", "sd_only", "sd_zero_from_srt"}
    assert ("accuracy, teacher" in result["metrics"]) == (arm in teachers)


def test_a_standard_arm_is_its_own_reviser(tmp_path):
    result = run_arm(PAPER, CONFIG, "base", 0, str(tmp_path))
    assert {"acc@t1", "acc@t2", "self-revised"} <= result["metrics"].keys()
    assert "accuracy, teacher" not in result["metrics"] and "accuracy" not in result["metrics"]
    (file,) = tmp_path.rglob("evaluation.pt")
    first = torch.load(file, weights_only=True)["rewards"][:, 0]
    assert result["per_problem"]["acc@t1"] == first.tolist()


@pytest.mark.parametrize(("preset", "first"), [("tiny", 2), ("smol", 2), ("gpu", 12)])
def test_phase_one_is_a_share_of_the_protocol(preset, first, tmp_path, monkeypatch):
    config, stages, drawn = Config.for_preset(preset), [], []
    draft = config.prompts * config.samples // (1 + config.revisions)
    assert draft * (1 + config.revisions) == config.prompts * config.samples
    monkeypatch.setattr("papers.sd_zero.train_srt", lambda run, config, steps: drawn.append(steps))
    fake = SimpleNamespace(stage=lambda name, steps, **more: stages.append((steps, more)) or range(0))
    sd_zero(fake, config, rounds=2)
    assert drawn == [first] and sum(steps for steps, _ in stages) == config.steps - first
    assert [more["freeze"] for _, more in stages] == ["teacher", "teacher"]  # the second is the student by then
    assert stages[0][1]["from_base"] and "from_base" not in stages[1][1]


@pytest.mark.parametrize("settings", [{"phase_one": 1.5}, {"revisions": 4}])
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ConfigError):
        Config(**settings).check()


class Killed(Exception):
    pass


def test_killed_in_either_phase_it_ends_the_same(tmp_path, monkeypatch):
    def adapters(out):
        folder = run_folder(PAPER, CONFIG, "sd_zero_sync", 0, str(out))
        content = torch.load(folder / "checkpoint.pt", weights_only=True)
        return [content["adapter"], content["copies"]["teacher"]]

    run_arm(PAPER, CONFIG, "sd_zero_sync", 0, str(tmp_path / "whole"))
    save = Run._save
    for last in (1, 3, 5):  # while it collects, while it fine-tunes, where the second round of phase 2 begins

        def stop(run, last=last):
            if run.step > last:
                raise Killed
            save(run)

        monkeypatch.setattr(Run, "_save", stop)
        with pytest.raises(Killed):
            run_arm(PAPER, CONFIG, "sd_zero_sync", 0, str(tmp_path / "killed"))
    monkeypatch.setattr(Run, "_save", save)
    run_arm(PAPER, CONFIG, "sd_zero_sync", 0, str(tmp_path / "killed"))
    for whole, killed in zip(adapters(tmp_path / "whole"), adapters(tmp_path / "killed"), strict=True):
        assert all(torch.equal(whole[k], killed[k]) for k in whole)


def test_the_teacher_is_frozen_until_it_is_synchronised(tmp_path):
    run = Run(PAPER, "sd_zero", 0, CONFIG, tmp_path)
    perturb(run.policy)
    run.policy.freeze_copy("teacher")
    before = run.policy.adapter_state("teacher")
    phase_two(run, CONFIG, "distil", 1, revision_contexts, "teacher")
    after = run.policy.adapter_state("teacher")
    assert all(torch.equal(before[k], after[k]) for k in before)
    rollouts = run.rollout(load("arithmetic", "validation", 4, 0), 1)
    batch = rollouts.batch()
    batch.contexts = [prompt for prompt, _ in batch.sequences]
    assert run.divergences(batch, divergence(CONFIG), "teacher").abs().max() > 1e-4
    run.policy.freeze_copy("teacher")
    assert run.divergences(batch, divergence(CONFIG), "teacher").abs().max() < 1e-6
