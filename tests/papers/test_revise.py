"""ReVISE: its pairs, masks and losses on worked numbers, the decision loop, and every arm on a few steps."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import random_model

from papers.revise import (
    PAPER,
    Config,
    attempt_of,
    balanced,
    imitated,
    make_pair,
    measure,
    read,
    revise,
    revise_loss,
    solve,
    until_refine,
    votes,
)
from repro import Rollouts, Run
from repro.arm import run_arm, run_folder
from repro.methods.dpo import dpo_loss
from repro.model.logprobs import completion_values
from repro.model.sampling import Completion
from repro.tasks import prompts
from repro.tasks.problem import Problem

P, A, B, R, C, D, E = 9, 10, 11, 5, 12, 13, 1  # prompt, letters, [refine], end
PREFIX, END, REFINE = [20, 21, 22, 23], 1, 2


# --- data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "solution", "chosen", "rejected"),
    [
        (True, None, [A, B, E], [A, B, R]),
        (False, None, [A, B, R], [A, B, E]),
        (True, [C, D], [A, B, E], [A, B, R]),
        (False, [C, D], [A, B, R, C, D, E], [A, B, E]),
    ],
)
def test_pairs_of_both_stages(right, solution, chosen, rejected):
    assert make_pair([A, B], right, solution, E, R) == (chosen, rejected)


@pytest.mark.parametrize(
    ("sample", "attempt"),
    [
        ((A, B, E), [A, B]),
        ((A, B, R), [A, B]),
        ((A, R, B, E), [B]),  # "foo R bar" -> "bar"
        ((A, R, C, R, B, R), [B]),
        ((R,), []),
    ],
)
def test_attempt_is_what_stands_behind_the_last_refine(sample, attempt):
    assert attempt_of(Completion((P,), sample, (), "", False).answer, R) == attempt
    assert attempt_of(Completion((P,), sample[:-1], (), "", True).answer, R) == attempt


@pytest.mark.parametrize(
    ("chosen", "trained"),
    [
        ([A, B, R, C, D, E], [R, C, D, E]),
        ([A, B, E], [A, B, E]),
        ([A, R, B, R, C, E], [R, C, E]),
        ([A, B, R], [R]),
        ([0, 0, E], [0, 0, E]),  # token 0 is a token like any other
    ],
)
def test_mask_of_the_sft_term(chosen, trained):
    assert [t for t, m in zip(chosen, imitated(chosen, R), strict=True) if m] == trained


@pytest.mark.parametrize(
    ("right", "wrong", "kept"), [(30, 10, (20, 10)), (3, 9, (3, 6)), (5, 6, (5, 6)), (0, 8, (0, 2))]
)
def test_classes_are_balanced(right, wrong, kept):
    labels = [True] * right + [False] * wrong
    rows = balanced(labels, 2.0, torch.Generator().manual_seed(0))
    assert len(set(rows)) == len(rows)
    assert (sum(labels[i] for i in rows), sum(not labels[i] for i in rows)) == kept


def preference_loss(logp, start, row, beta):
    """L_pref of each pair."""
    return dpo_loss(logp, SimpleNamespace(row=row, ref_logp=start), beta, 1)


# --- losses ---------------------------------------------------------------------------------------------------------


def test_loss_where_policy_and_start_agree_is_ln_2():
    logp = torch.randn(11, dtype=torch.float64)
    row = torch.tensor([0] * 3 + [1] * 2 + [2] * 1 + [3] * 5)
    assert preference_loss(logp, logp, row, 0.1).tolist() == pytest.approx([math.log(2)] * 2)


def test_loss_and_weight_at_a_margin_of_two():
    logp = torch.tensor([-1.0, -0.5, -3.0], dtype=torch.float64, requires_grad=True)
    start = torch.tensor([-1.5, -1.5, -2.5], dtype=torch.float64)  # log-ratios 0.5 + 1.0 against -0.5
    loss = preference_loss(logp, start, torch.tensor([0, 0, 1]), 0.1)
    assert loss.tolist() == pytest.approx([0.598139], abs=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert (gradient / 0.1).tolist() == pytest.approx([-0.450166, -0.450166, 0.450166], abs=1e-6)


def token_logps(logits: list[torch.Tensor], targets: list[list[int]]) -> torch.Tensor:
    pieces = [
        x.log_softmax(-1).gather(-1, torch.tensor(t)[:, None])[:, 0] for x, t in zip(logits, targets, strict=True)
    ]
    return torch.cat(pieces)


def test_the_shared_prefix_cancels_in_the_logits():
    torch.manual_seed(0)
    pair = [[A, B, C, E], [A, B, C, R]]
    prefix = torch.randn(3, 20, dtype=torch.float64)
    rows = [torch.cat([prefix, torch.randn(1, 20, dtype=torch.float64)]).requires_grad_() for _ in pair]
    start = torch.randn(8, dtype=torch.float64)
    start[4:7] = start[:3]
    row = torch.tensor([0] * 4 + [1] * 4)
    loss = preference_loss(token_logps(rows, pair), start, row, 0.1).sum()
    gradients = torch.autograd.grad(loss, rows)
    assert (gradients[0][:3] + gradients[1][:3]).abs().max() < 1e-12
    assert gradients[0][:3].abs().max() > 1e-4  # each row's is not zero by itself
    noise = torch.zeros(4, 20, dtype=torch.float64)
    noise[1] = torch.randn(20, dtype=torch.float64)
    again = preference_loss(token_logps([r + noise for r in rows], pair), start, row, 0.1).sum()
    assert again.item() == pytest.approx(loss.item(), abs=1e-12)


def gradient(model, loss) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def full_and_tail(model, pair, prompt, start_model):
    """The preference loss over whole completions, and over the tokens behind the shared y_hat only."""
    losses = []
    for cut in (0, len(PREFIX)):
        sequences = [([*prompt, *ids[:cut]], ids[cut:]) for ids in pair]
        with torch.no_grad():
            start = completion_values(start_model, sequences)
        lengths = torch.tensor([len(ids) for _, ids in sequences])
        row = torch.arange(2).repeat_interleave(lengths)
        losses.append(preference_loss(completion_values(model, sequences), start, row, 0.1).sum())
    return losses


@pytest.mark.parametrize("solution", [None, [30, 31, 32]])
def test_the_gradient_is_that_of_the_tokens_behind_the_prefix(solution):
    model, start = random_model(), random_model(seed=1)
    pair = make_pair(PREFIX, False, solution, END, REFINE)
    full, tail = full_and_tail(model, pair, [7, 8], start)
    assert full.item() == pytest.approx(tail.item(), abs=1e-6)
    a, b = gradient(model, full), gradient(model, tail)
    assert b.abs().max() > 1e-3 and (a - b).abs().max() < 1e-5 * b.abs().max()  # norms are in float32


def fields_of(pairs, start):
    lengths = torch.tensor([len(ids) for pair in pairs for ids in pair])
    weight = torch.tensor(
        [m for chosen, rejected in pairs for m in [*imitated(chosen, REFINE), *[0.0] * len(rejected)]]
    )
    row = torch.arange(len(lengths)).repeat_interleave(lengths)
    return SimpleNamespace(row=row, weight=weight.double() / weight.sum(), ref_logp=start)


def test_both_forms_of_lambda_have_one_direction():
    model, start = random_model(), random_model(seed=1)
    pairs = [make_pair(PREFIX, True, [30, 31], END, REFINE), make_pair(PREFIX[:2], False, [33, 34, 35], END, REFINE)]
    sequences = [([7, 8], ids) for pair in pairs for ids in pair]
    with torch.no_grad():
        fields = fields_of(pairs, completion_values(start, sequences))
    paper = gradient(model, revise_loss(completion_values(model, sequences), fields, 2, Config()))
    logp = completion_values(model, sequences)
    code = preference_loss(logp, fields.ref_logp, fields.row, 0.1).mean() + 10 * (-logp * fields.weight).sum()
    other = gradient(model, code)
    assert torch.nn.functional.cosine_similarity(paper, other, dim=0).item() == pytest.approx(1.0, abs=1e-9)
    assert (other.norm() / paper.norm()).item() == pytest.approx(10.0)


def test_a_step_on_a_wrong_solution_teaches_to_refine_and_not_to_imitate_it():
    model = random_model()
    pair = make_pair(PREFIX, False, [30, 31, 32], END, REFINE)
    sequences = [([7, 8], ids) for ids in pair]

    def margin() -> torch.Tensor:
        return completion_values(model, [([7, 8, *PREFIX], [REFINE]), ([7, 8, *PREFIX], [END])])

    with torch.no_grad():
        before, fields = margin(), fields_of([pair], completion_values(model, sequences))
    logp = completion_values(model, sequences)
    logp.retain_grad()
    revise_loss(logp, fields, 1, Config(preference_weight=0.0)).backward()
    assert logp.grad[: len(PREFIX)].abs().max() == 0  # y_hat
    assert (logp.grad[len(PREFIX) : len(pair[0])] < 0).all() and logp.grad[len(pair[0]) :].abs().max() == 0
    model.zero_grad()
    revise_loss(completion_values(model, sequences), fields, 1, Config()).backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= 0.01 * p.grad
        after = margin()
    assert (after[0] - after[1]) > (before[0] - before[1])


# --- the loop at test time ------------------------------------------------------------------------------------------


class Scripted:
    """Stands for a run: the policy writes 30, 31, 32, ..., and refines ``asks`` times."""

    def __init__(self, asks: int):
        self.asks, self.contexts, self.judged, self.count, self.seed = asks, [], [], 31, 0
        tokenizer = SimpleNamespace(eos_token_id=END, decode=lambda ids: " ".join(map(str, ids)))
        self.policy = SimpleNamespace(token=lambda text: REFINE, tokenizer=tokenizer, device="cpu")

    def sample(self, chats, samples, generator, stop):
        assert stop == (REFINE,) and samples == 1
        self.contexts.append(chats)
        ids = (self.count, END)  # the likelier decision counts, not the sampled one
        self.count += 1
        return [[Completion(tuple(c), ids, (0.0, 0.0), str(ids[0]), False)] for c in chats]

    def values(self, batch, function):
        def log_probs(ids) -> list[float]:
            refine = 0.6 if list(ids).count(REFINE) < self.asks else 0.1
            return [math.log(0.7 - refine), math.log(refine), -1.0]

        self.judged += [(*prompt, *ids[:-1]) for prompt, ids in batch.sequences]
        return torch.tensor([log_probs(prompt) for prompt, ids in batch.sequences for _ in ids])

    def rewards(self, problems, completions):
        return torch.tensor([[float(c.text == "32") for c in group] for group in completions])


def answer(*ids: int, prompt=(7, 8)) -> Completion:
    return Completion(prompt, ids, (-1.0,) * len(ids), " ".join(map(str, ids[:-1])), False)


FIRST = Rollouts([Problem("q", "1")], [[answer(30, END)]], torch.zeros(1, 1))


def solved(run: Scripted, rounds: int):
    return solve(run, FIRST, read(run, [((7, 8), (30,))], REFINE), Config(rounds=rounds))


@pytest.mark.parametrize(("asks", "rounds"), [(0, 3), (1, 3), (9, 1), (9, 3)])
def test_the_loop_ends_at_the_limit_and_goes_on_in_the_same_answer(asks, rounds):
    run = Scripted(asks)
    attempts = solved(run, rounds)
    refinements = min(asks, rounds)
    turns = [turn[0][0] for turn in attempts.completions]
    assert [int(c.text) for c in turns] == [30 + min(n, refinements) for n in range(rounds + 1)]
    assert list(turns[-1].written).count(REFINE) == refinements  # the answer is the text behind the last one
    for n, contexts in enumerate(run.contexts, 1):
        earlier = [token for i in range(n) for token in (30 + i, REFINE)]
        assert [list(c) for c in contexts] == ([[7, 8, *earlier]] if n <= refinements else [])
    assert attempts.rewards[:, 0, 0].tolist() == [float(c.text == "32") for c in turns]


def test_a_second_attempt_is_judged_behind_the_question_alone():
    run = Scripted(1)
    attempts = solved(run, 1)
    run.judged = []
    votes(run, attempts, torch.zeros(1), Config(eval_samples=1))
    assert run.judged == [(7, 8, 31)]


def test_first_attempts_are_the_evaluations_answers_up_to_the_decision():
    run = Scripted(0)
    whole = answer(40, 41, REFINE, 42, REFINE, 43, END)
    assert until_refine(run, whole, REFINE) == Completion((7, 8), (40, 41, REFINE), (-1.0,) * 3, "40 41", False)
    cut = replace(whole, ids=whole.ids[:-1], logprobs=whole.logprobs[:-1], truncated=True)
    assert not until_refine(run, cut, REFINE).truncated  # the attempt itself had its end
    assert until_refine(run, answer(40, END), REFINE) == answer(40, END)
    rollouts = Rollouts([Problem("q", "1")], [[whole, answer(32, END)]], torch.zeros(1, 2))
    metrics = measure(run, Config(eval_samples=2, rounds=1), rollouts)
    assert run.judged == [(7, 8, 40, 41), (7, 8, 32)]
    assert metrics["acc@t1"].values == (0.5,) and metrics["refined"].values == (0.0,)
    assert metrics["auroc, chance"].value == 0.5


def test_decisions_are_read_at_temperature_1(tmp_path):
    """P(end) and the likelihood are the model's own, whatever temperature the samples were drawn at."""
    run = Run(PAPER, "revise", 0, replace(TINY, temperature=0.5), tmp_path)
    refine, end = run.policy.token(run.config.refine), run.policy.tokenizer.eos_token_id
    prompt = run.policy.encode(prompts.solve(run.problems[0]))
    solution = run.policy.tokenizer(run.problems[0].solution, add_special_tokens=False).input_ids
    with torch.no_grad():
        logp = run.policy.model(torch.tensor([[*prompt, *solution]])).logits[0].double().log_softmax(-1)
    likelihood = logp[len(prompt) - 1 : -1].gather(-1, torch.tensor(solution)[:, None]).mean()
    expected = [logp[-1, end].item(), logp[-1, refine].item(), likelihood.item()]
    assert read(run, [(prompt, solution)], refine)[0].tolist() == pytest.approx(expected, abs=1e-4)


# --- the arms -------------------------------------------------------------------------------------------------------

TINY = replace(
    Config.for_preset("tiny"),
    steps=3,
    verify_steps=1,
    minibatches=4,
    prompts=3,
    samples=4,
    train_problems=64,
    eval_problems=6,
    eval_samples=3,
    refined_problems=5,
    max_new_tokens=40,
    rounds=2,
    monitors=1,
)


# base stands for the standard arms: they are measured alike
@pytest.mark.parametrize("arm", ["base", "revise", "rft_as_long"])
def test_every_arm_runs(arm, tmp_path):
    result = run_arm(PAPER, TINY, arm, 0, str(tmp_path))
    assert result["status"] == "ok"
    if arm != "base":
        assert result["budget"]["completions"] == 3 * 3 * 4
        assert 0 < result["budget"]["optimizer_steps"] <= 3 * 4
        assert len(result["per_problem"]["accuracy"]) == 6
    json.dumps(result["per_problem"])
    assert len(result["per_problem"]["maj@3, weighted"]) == 5
    gain, fixed, broken = (result["metrics"][name]["value"] for name in ("delta", "i_to_c", "c_to_i"))
    assert gain == pytest.approx(fixed - broken)
    accuracy, first = (result["metrics"][name]["value"] for name in ("acc@t2", "acc@t1"))
    assert accuracy - first == pytest.approx(gain)


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_run_killed_in_any_step_ends_alike(step, tmp_path):
    """The stage's frozen copy and new optimiser come back: stages begin at steps 0 and 1."""
    config = replace(TINY, monitors=0)  # they sample too
    whole = Run(PAPER, "revise", 0, config, tmp_path / "whole")
    cut = Run(PAPER, "revise", 0, config, tmp_path / "cut")
    for run in (whole, cut):
        run.folder.mkdir()
    revise(whole, config)

    def die(*args, **kwargs):
        if cut.step == step:
            raise Killed
        return sample(*args, **kwargs)

    sample, cut.sample = cut.sample, die
    with pytest.raises(Killed):
        revise(cut, config)
    again = Run(PAPER, "revise", 0, config, tmp_path / "cut")
    assert again.step == step and again.policy.copies == (["start"] if step else [])
    revise(again, config)
    a, b = whole.policy.adapter_state(), again.policy.adapter_state()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert whole.history == again.history


def test_refine_must_be_one_token(tmp_path):
    run = Run(PAPER, "revise", 0, replace(TINY, refine="two words"), tmp_path)
    with pytest.raises(ValueError, match="must be one token"):
        revise(run, run.config)
    assert not run_folder(PAPER, TINY, "revise", 0, str(tmp_path)).exists()
