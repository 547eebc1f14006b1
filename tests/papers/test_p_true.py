"""P(True) and P(IK): worked numbers, what the head reads, the probe, comparisons, one short run of both arms."""

import json

import numpy as np
import pytest
import torch

from papers.p_true import (
    PAPER,
    Config,
    at_the_end,
    comparison,
    forecasts,
    frequency,
    head,
    last_hidden,
    p_ik,
    p_true,
    probe,
    soft_bce,
    within_problems,
)
from repro import BASE, POLICY
from repro.arm import run_arm
from repro.results.metrics import auroc, ece
from repro.run import Run
from repro.tasks import prompts

SMALL = Config(
    steps=2,
    prompts=4,
    samples=4,
    updates=3,
    batch=4,
    compared=3,
    train_problems=8,
    eval_problems=4,
    eval_samples=4,
    max_new_tokens=64,
)


@pytest.fixture
def run(tmp_path):
    return Run(PAPER, "p_ik", 0, SMALL, tmp_path)


def questions(run: Run, count: int = 5) -> list[list[int]]:
    """Prompts of several lengths."""
    return [run.policy.encode(prompts.solve(p)) for p in run.held_out(count)]


# --- P(True) --------------------------------------------------------------------------------------------------------


def test_p_true_worked_numbers():
    assert p_true(np.array([0.0, 2.0])) == pytest.approx([0.5, 0.8808], abs=1e-4)


def test_a_temperature_changes_calibration_and_no_rank():
    rng = np.random.default_rng(0)
    odds = rng.normal(size=500)
    right = rng.random(500) < p_true(odds)
    for t in (0.5, 2.5):
        assert auroc(p_true(odds, t), right) == auroc(p_true(odds), right)
        assert ((p_true(odds, t) > 0.5) == (p_true(odds) > 0.5)).all()
        assert ece(p_true(odds, t), right) > ece(p_true(odds), right) + 0.02


def test_the_first_of_a_pair_gets_what_it_is_preferred_by(run, monkeypatch):
    monkeypatch.setattr("papers.p_true.preferred", lambda run, pairs: torch.ones(len(pairs)))
    assert comparison(run, run.held_out(1), [["a", "b", "c"]]).tolist() == [[1.0, 0.5, 0.0]]


def test_a_comparison_has_no_order(run):
    problems = run.held_out(2)
    texts = [[p.solution, "\\boxed{7}", "1 + 1\n\\boxed{2}"] for p in problems]
    scores = comparison(run, problems, texts)
    assert scores.sum(1) == pytest.approx([1.5, 1.5], abs=1e-5)  # each comparison gives 1 away
    assert comparison(run, problems, [group[::-1] for group in texts]) == pytest.approx(scores[:, ::-1], abs=1e-5)
    equal = comparison(run, problems[:1], [[problems[0].solution] * 3])
    assert equal == pytest.approx(np.full((1, 3), 0.5), abs=1e-5)


def test_the_frequency_of_an_answer_is_among_all_samples_of_its_problem():
    found = frequency([["a", "b", "a", None], ["c", "c", "c", "c"]])
    assert found.tolist() == [[0.5, 0.25, 0.5, 0.0], [1.0] * 4]


def test_difficulty_is_no_discrimination_within_problems():
    right = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=float)
    by_problem = np.repeat([[0.9], [0.1], [1.0]], 4, axis=1)
    assert auroc(by_problem.ravel(), right.ravel() > 0) > 0.8
    assert within_problems(by_problem, right) == 0.5
    assert within_problems(right, right) == 1.0
    assert np.isnan(within_problems(by_problem[2:], right[2:]))


def test_the_base_rate_as_a_forecast_ranks_nothing_and_is_calibrated():
    right = np.array([[1, 0, 0, 0], [1, 0, 1, 0]], dtype=float)
    found = forecasts({"constant": np.full_like(right, right.mean())}, right)
    assert found["auroc, constant"].value == 0.5
    assert found["brier, constant"].value == pytest.approx(3 / 8 * 5 / 8)
    assert found["ece, constant"].value == pytest.approx(0)
    assert len(found["brier, constant"].values) == 2  # one a problem: differences are paired


# --- P(IK) ----------------------------------------------------------------------------------------------------------


def test_a_success_rate_is_the_mean_of_its_samples_as_rows():
    z = torch.tensor(0.5, dtype=torch.float64)
    rows = torch.cat([soft_bce(z.expand(20), torch.ones(20)), soft_bce(z.expand(10), torch.zeros(10))])
    assert soft_bce(z, torch.tensor(20 / 30)).item() == pytest.approx(0.64074, abs=1e-5)
    assert rows.mean().item() == pytest.approx(0.64074, abs=1e-5)


@pytest.mark.parametrize("g", [0.0625, 0.3, 0.9])
def test_the_loss_is_least_where_the_forecast_is_the_rate(g):
    z = torch.logit(torch.tensor(g, dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(soft_bce(z, torch.tensor(g)), z)
    assert gradient.item() == pytest.approx(0, abs=1e-7)
    away = [soft_bce(z.detach() + d, torch.tensor(g)) for d in (-0.1, 0.1)]
    assert min(away) > soft_bce(z.detach(), torch.tensor(g))


def test_the_head_reads_the_last_token_of_the_question_and_no_answer(run):
    asked = questions(run)
    batch = at_the_end(asked)
    assert batch.lengths == [1] * len(asked)  # one position a question carries the loss
    z = run.values(batch, head(run))
    yes, no = run.policy.token("Yes"), run.policy.token("No")
    with torch.no_grad():
        for question, value in zip(asked, z, strict=True):
            logits = run.policy.model(input_ids=torch.tensor([question])).logits[0, -1]
            assert value.item() == pytest.approx((logits[yes] - logits[no]).item(), abs=1e-3)
    other = at_the_end(asked)
    other.sequences = [(question, [yes]) for question, _ in other.sequences]
    assert torch.equal(run.values(other, head(run)), z)


def test_hidden_states_are_of_the_last_token_whatever_is_beside_it(run):
    asked = questions(run)
    together = last_hidden(run, asked)
    with torch.no_grad():
        for question, row in zip(asked, together, strict=True):
            states = run.policy.model.get_base_model().get_decoder()(input_ids=torch.tensor([question]))
            assert torch.allclose(states.last_hidden_state[0, -1].double(), row, atol=1e-4)


def test_the_probe_finds_what_is_linear_in_the_hidden_state():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(400, 8, generator=generator, dtype=torch.float64) * 3 + 1
    truth = hidden[:, 0] / 2 - 1
    z = probe(hidden[:300], truth[:300].sigmoid(), hidden[300:], penalty=1e-6)
    assert torch.allclose(z, truth[300:], atol=0.05)
    constant = probe(hidden[:300], torch.full((300,), 0.25, dtype=torch.float64), hidden[300:], penalty=1.0)
    assert constant.sigmoid().tolist() == pytest.approx([0.25] * 100, abs=1e-3)


# --- short runs -----------------------------------------------------------------------------------------------------


def test_the_head_is_trained_and_what_answers_is_the_base(run, tmp_path):
    p_ik(run, SMALL)
    asked = at_the_end(questions(run))
    base, answers, forecasts = (run.values(asked, head(run), adapter) for adapter in (BASE, POLICY, "p_ik"))
    assert torch.equal(base, answers)
    assert (base - forecasts).abs().min() > 0
    again = Run(PAPER, "p_ik", 0, SMALL, tmp_path)  # a run that was killed in its evaluation
    p_ik(again, SMALL)
    assert torch.equal(again.values(asked, head(again), "p_ik"), forecasts)
    assert torch.equal(again.values(asked, head(again)), base)


def test_both_arms_measure_what_is_claimed(tmp_path):
    results = {arm: run_arm(PAPER, SMALL, arm, 0, str(tmp_path)) for arm in ("base", "p_ik")}
    assert results["p_ik"]["budget"]["completions"] == 2 * 4 * 4
    (standard,) = tmp_path.glob("standard/*/base-seed0/result.json")
    common = json.loads(standard.read_text())["metrics"]
    results["base"]["metrics"] |= common
    assert results["p_ik"]["metrics"]["accuracy"] == common["accuracy"]
    for claim in PAPER.claims:
        for arm, metric in (claim.left, claim.right):
            assert metric in results[arm]["metrics"] or "auroc of g" in metric  # of few problems all may be alike
    for name in ("P(IK)", "probe", "prior", "agreement"):
        assert len(results["p_ik"]["per_problem"][f"brier, {name}"]) == SMALL.eval_problems
