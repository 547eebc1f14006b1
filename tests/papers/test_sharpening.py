"""Sharpening: the tempered optimum and its regression, best-of-N, likelihoods of whole sequences, one short run."""

from itertools import product
from math import ceil, exp, log
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import perturb

from papers.sharpening import (
    PAPER,
    Config,
    log_coverage,
    pairs_of,
    random_scores,
    regression_loss,
    self_rewards,
    winners,
)
from repro.arm import run_arm
from repro.methods.pool import best_of
from repro.model.sampling import Completion
from repro.results.metrics import pass_at_k
from repro.run import Run
from repro.tasks import prompts

BASE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)  # three responses of one token
SMALL = Config(
    steps=2,
    prompts=4,
    samples=4,
    updates=3,
    batch=4,
    train_problems=8,
    eval_problems=4,
    eval_samples=4,
    max_new_tokens=64,
    monitors=0,
)


def completion(ids: list[int], truncated: bool = False) -> Completion:
    return Completion((1, 2), tuple(ids), (0.0,) * len(ids), "", truncated)


def optimum(beta: float) -> torch.Tensor:
    return (BASE.log() * (1 + 1 / beta)).softmax(0)


def regression(policy: torch.Tensor, one: int, other: int, beta: float, max_gap: float = 10.0) -> torch.Tensor:
    """The loss of a pair of the three responses."""
    fields = SimpleNamespace(row=torch.tensor([0, 1]), ref_logp=BASE.log()[[one, other]])
    return regression_loss(policy.log()[[one, other]], fields, beta, max_gap, pairs=1).sum()


# --- RLHF-Sharpening ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        (1.0, [0.657895, 0.236842, 0.105263]),
        (0.25, [0.919118, 0.071471, 0.009412]),
        (0.1, [0.996344, 0.003615, 0.000042]),
    ],
)
def test_all_pairs_are_fitted_by_the_base_to_a_power(beta, expected):
    assert optimum(beta).tolist() == pytest.approx(expected, abs=1e-5)
    losses = [regression(optimum(beta), a, b, beta).item() for a, b in product(range(3), repeat=2)]
    assert losses == pytest.approx([0] * 9, abs=1e-12)
    away = optimum(beta) * torch.tensor([1.0, 1.1, 0.9])
    assert regression(away, 0, 1, beta) > 1e-6


def test_the_regression_at_the_base_is_the_squared_gap():
    gap = log(0.5 / 0.3)
    assert gap == pytest.approx(0.510826, abs=1e-6)
    assert regression(BASE, 0, 1, beta=0.25).item() == pytest.approx(0.260943, abs=1e-6)
    assert regression(BASE, 1, 0, beta=0.25, max_gap=0.2).item() == pytest.approx(0.04)  # clipped on both sides
    assert regression(BASE, 0, 1, beta=0.25, max_gap=0.2).item() == pytest.approx(0.04)


def test_the_regression_sums_tokens_and_has_no_gradient_through_the_base():
    logp = torch.tensor([-1.0, -2.0, -0.5, -3.0, -1.5], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([-1.5, -1.0, -0.5, -2.0, -2.5], dtype=torch.float64)
    fields = SimpleNamespace(row=torch.tensor([0, 0, 1, 2, 3]), ref_logp=ref)
    loss = regression_loss(logp, fields, beta=0.5, max_gap=10.0, pairs=2)
    first = (0.5 * ((-3.0 + 2.5) - 0.0) - (-2.5 + 0.5)) ** 2
    second = (0.5 * ((-3.0 + 2.0) - (-1.5 + 2.5)) - (-2.0 + 2.5)) ** 2
    assert loss.tolist() == pytest.approx([first / 2, second / 2])
    loss.sum().backward()
    assert logp.grad[0] == logp.grad[1] == -logp.grad[2]  # one slope a sequence
    shifted = regression_loss(logp + torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0]), fields, 0.5, 10.0, 2)
    assert shifted[0].item() == pytest.approx(loss[0].item())  # a constant on both responses changes nothing


def test_pairs_end_and_differ():
    a, b, cut = completion([5, 1]), completion([6, 1]), completion([7, 7], truncated=True)
    assert pairs_of([[a, cut, b, a, a], [a, b, b, a], [cut, a]]) == [
        [[[1, 2], [5, 1]], [[1, 2], [6, 1]]],  # the cut one is passed over; a with a teaches nothing
        [[[1, 2], [5, 1]], [[1, 2], [6, 1]]],
        [[[1, 2], [6, 1]], [[1, 2], [5, 1]]],
    ]


# --- best-of-N ------------------------------------------------------------------------------------------------------


def test_best_of_two_draws():
    found = torch.zeros(3, dtype=torch.float64)
    for draw in product(range(3), repeat=2):
        ((_, k),) = winners(BASE.log()[list(draw)][None])
        found[draw[k]] += BASE[list(draw)].prod()
    assert found.tolist() == pytest.approx([0.75, 0.21, 0.04])


@pytest.mark.parametrize(("p", "n", "hit"), [(0.05, 50, 0.923055), (0.02, 50, 0.635830), (0.1, 10, 0.651322)])
def test_the_likeliest_response_is_among_n_draws(p, n, hit):
    assert pass_at_k(20_000, round(20_000 * p), n) == pytest.approx(hit, abs=1e-3)
    pool = np.array([[1.0] * round(400 * p) + [0.0] * round(400 * (1 - p))])
    assert best_of(pool, pool, n)[0] == pytest.approx(pass_at_k(400, round(400 * p), n))


@pytest.mark.parametrize(("p", "n"), [(0.1, 30), (0.02, 150)])
def test_draws_that_are_enough_for_95_percent(p, n):
    assert ceil(log(1 / 0.05) / p) == n
    assert pass_at_k(20_000, round(20_000 * p), n) >= 0.95


def test_coverage():
    assert exp(log_coverage(np.log([0.5, 0.05]))) == pytest.approx(11)
    assert log_coverage(np.array([-900.0, -900.0])) == pytest.approx(900)


def test_greedy_decoding_misses_the_likeliest_sequence():
    sequences = {"Aa": 0.6 * 0.5, "Ab": 0.6 * 0.5, "B": 0.4 * 1.0}
    ((_, k),) = winners(torch.tensor([list(sequences.values())]).log())
    assert list(sequences)[k] == "B"


def test_the_sum_prefers_short_responses_and_the_mean_may_not():
    sums, tokens = torch.tensor([[-6.0, -8.0]]), torch.tensor([[3, 8]])
    assert winners(sums) == [(0, 0)]
    assert winners(sums / tokens) == [(0, 1)]


def test_what_does_not_end_never_wins():
    inf = float("inf")
    assert winners(torch.tensor([[-inf, -5.0, -5.0], [-inf, -inf, -inf], [-inf, -9.0, -3.0]])) == [(0, 1), (2, 2)]


# --- the self-reward and the arms -----------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    return Run(PAPER, "sharpen_sft", 0, SMALL, tmp_path)


def test_the_self_reward_is_the_bases_with_the_end_and_without_the_prompt(run):
    problem = run.held_out()[0]
    prompt = tuple(run.policy.encode(prompts.solve(problem)))
    ids = (*run.policy.tokenizer(problem.solution, add_special_tokens=False).input_ids, run.policy.stop_ids[0])
    texts = [Completion(prompt, ids, (0.0,) * len(ids), "", False), Completion(prompt, ids[:-1], (), "", True)]
    with torch.no_grad():
        logits = run.policy.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0].double()
    rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
    expected = rows.gather(-1, torch.tensor(ids)[:, None]).sum().item()
    perturb(run.policy)  # the reward is the base's, whatever was learnt
    scores = self_rewards(run, [texts])
    assert scores[0, 0].item() == pytest.approx(expected, abs=1e-3)
    assert scores[0, 1] == -torch.inf


def test_the_control_chooses_any_sample_that_ends(run):
    group = [completion([i, 1], truncated=i == 2) for i in range(4)]
    chosen = [winners(random_scores(run, [group]))[0][1] for _ in range(60)]
    assert set(chosen) == {0, 1, 3}


def test_a_softmax_policy_sharpens_every_epoch():
    generator = torch.Generator().manual_seed(0)
    base = torch.tensor([0.35, 0.3, 0.2, 0.1, 0.05])
    draws = torch.multinomial(base, 16 * 50, replacement=True, generator=generator).view(16, 50)
    best = torch.tensor([draws[i, k] for i, k in winners(base.log()[draws])])
    logits = base.log().clone().requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=0.5)
    course = [base[0].item()]
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.expand(16, -1), best).backward()
        optimizer.step()
        course.append(logits.softmax(0)[0].item())
    assert course == sorted(course) and course[-1] > 0.8


def test_every_arm_draws_alike_and_measures_what_is_claimed(tmp_path):
    arms = ("base", "random_sft", "sharpen_sft", "rlhf_sharpen")
    results = {arm: run_arm(PAPER, SMALL, arm, 0, str(tmp_path)) for arm in arms}
    for arm in arms[1:]:
        assert results[arm]["status"] == "ok"
        assert results[arm]["budget"]["completions"] == 2 * 4 * 4
    first = {results[arm]["history"][0]["reward"] for arm in arms[1:]}
    assert len(first) == 1  # the same samples of the base
    for claim in PAPER.claims:
        for arm, metric in (claim.left, claim.right):
            assert metric in results[arm]["metrics"] or (arm == "base" and metric in ("accuracy", "greedy"))
    found = results["base"]["per_problem"]
    assert found["likelihood"] == found["likelihood@4"]
    assert results["base"]["metrics"]["log-likelihood"]["value"] < 0
