"""The properties of B-STaR: balance score, selection, the search for a setting, and the course of the optimiser."""

from math import cos, pi
from types import SimpleNamespace

import pytest
import torch

from papers import b_star
from papers.b_star import (
    PAPER,
    Config,
    Pool,
    balance_score,
    choose,
    combined_reward,
    complete,
    draw,
    explored,
    measure,
    process_reward,
    select,
    shape,
)
from repro.arm import run_arm, run_folder
from repro.config import ConfigError
from repro.model.policy import BASE
from repro.model.sampling import Completion
from repro.model.training import cosine
from repro.results.metrics import pass_at_k
from repro.run import Rollouts
from repro.tasks.problem import Problem

SMALL = Config(
    steps=2,
    prompts=6,
    samples=4,
    rounds=2,
    dev_problems=2,
    temperatures=(0.5, 1.0),
    updates=3,
    batch_size=4,
    train_problems=64,
    eval_problems=8,
    eval_samples=2,
    max_new_tokens=48,
    monitors=1,
)


def completion(text: str, truncated: bool = False) -> Completion:
    return Completion((1,), (2, 3), (0.0, 0.0), text, truncated)


def pool(*groups: list[tuple[str, float, float]]) -> Pool:
    """Problems with samples (text, right, process reward)."""
    right = torch.tensor([[r for _, r, _ in group] for group in groups])
    process = torch.tensor([[p for _, _, p in group] for group in groups])
    completions = [[completion(text) for text, _, _ in group] for group in groups]
    return Pool([None] * len(groups), completions, right, combined_reward(right, process))


# --- balance score --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selected", "right", "score"), [(5, 4, 0.4), (12, 10, 0.833333), (8, 0, 0.0), (8, 8, 1.0), (16, 8, 0.5), (0, 0, 0)]
)
def test_balance_score(selected, right, score):
    assert balance_score(selected, right, 8) == pytest.approx(score, abs=1e-6)


def test_balance_score_is_the_piecewise_form_of_the_code():
    for n in range(1, 65):
        for right in range(n + 1):
            piecewise = right / n if right >= 8 else right * (right / n) / 8
            assert balance_score(n, right, 8) == pytest.approx(piecewise)


def test_balance_score_rises_with_right_and_falls_with_wrong_samples():
    for n in range(1, 20):
        for right in range(n):
            assert balance_score(n, right + 1, 8) > balance_score(n, right, 8)
            assert balance_score(n + 1, right, 8) <= balance_score(n, right, 8)


def test_mean_balance_of_a_pool_counts_a_problem_without_selected_samples_as_0():
    config = Config(n_star=2)
    full = [("a", 1.0, 0.0), ("b", 1.0, 0.0), ("b", 1.0, 0.0)]  # n = n' = 2
    mixed = [("a", 1.0, 0.0), ("c", 0.0, 1.0), ("d", 0.0, -1.0)]  # at tau 0: n = 2, n' = 1
    empty = [("c", 0.0, -1.0), ("d", 0.0, -1.0), ("e", 0.0, -1.0)]
    assert pool(full, mixed, empty).balance(0.0, config) == pytest.approx((1 + 0.25 + 0) / 3)
    assert pool(full, mixed, empty).balance(0.5, config) == pytest.approx((1 + 0.5 + 0) / 3)


# --- selection ------------------------------------------------------------------------------------------------------

SCORES = [1.2, 1.2, 0.9, 0.3, -0.2]
TEXTS = ["a", "a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("threshold", "cap", "chosen"),
    [(0.0, 3, [0, 2, 3]), (0.0, 2, [0, 2]), (-0.5, 9, [0, 2, 3, 4]), (0.9, 9, [0]), (2.0, 9, [])],
)
def test_selection_caps_after_duplicates_are_dropped(threshold, cap, chosen):
    assert select(TEXTS, SCORES, threshold, cap) == chosen


def test_combined_reward_keeps_right_and_wrong_apart_where_the_grid_has_its_gap():
    process = torch.tensor([-1.0, 1.0])
    assert combined_reward(torch.ones(2), process).tolist() == pytest.approx([0.8, 1.2])
    assert combined_reward(torch.zeros(2), process).tolist() == pytest.approx([-0.2, 0.2])


def test_no_threshold_of_the_gap_lets_a_wrong_answer_in_that_the_verifier_is_sure_of():
    wrong = pool([("a", 0.0, 1.0)])  # tanh of 10 is 1 in float32, and 1 / 5 in float32 is above 0.2
    assert torch.tensor(20.0 / 2).tanh() == 1.0 and (torch.tensor(1.0) / 5).item() > 0.2
    assert wrong.selected(0.2, 6) == [[]] and wrong.selected(0.1, 6) == [[0]]


def test_threshold_is_inert_with_the_answer_alone():
    one = pool([("a", 1.0, 0.0), ("b", 1.0, 0.0), ("c", 0.0, 0.0)], [("a", 0.0, 0.0), ("b", 0.0, 0.0), ("c", 1.0, 0.0)])
    scores = {one.balance(tau, Config()) for tau in (0.0, 0.1, 0.5, 0.99)}
    assert len(scores) == 1 and scores != {0.0}


# --- the search -----------------------------------------------------------------------------------------------------


def test_search_returns_an_interior_temperature_and_the_threshold_that_leaves_wrong_samples_out():
    low = pool([("a", 1.0, 0.5)] * 4)  # four copies of one right solution
    middle = pool([("a", 1.0, 0.5), ("b", 1.0, 0.5), ("c", 0.0, 0.5), ("d", 0.0, -0.5)])
    high = pool([("b", 1.0, 0.5), ("c", 0.0, 0.5), ("d", 0.0, 0.5), ("e", 0.0, 0.5)])
    config = Config(n_star=2, thresholds=(-0.2, 0.0, 0.2, 0.8))
    temperature, threshold, curve = choose({0.5: low, 1.0: middle, 1.5: high}, config, 0.5)
    assert (temperature, threshold) == (1.0, 0.2)
    assert curve == pytest.approx({0.5: 0.5, 1.0: 1.0, 1.5: 0.5})


@pytest.mark.parametrize(("last", "chosen"), [(0.0, 0.5), (0.5, 0.5), (1.0, 1.0)])
def test_a_tie_keeps_the_last_temperature(last, chosen):
    same, worse = pool([("a", 1.0, 0.5)]), pool([("a", 0.0, 0.5)])
    assert choose({0.5: same, 1.0: same, 1.5: worse}, Config(), last)[0] == chosen


# --- sampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "truncated", "expected"),
    [
        ("1+2=3\n\\boxed{3}", False, True),
        ("1+2=3\n\\boxed{3}", True, False),
        ("1+2=3", False, False),
        ("\\boxed{4}\n\nWait, this solution is wrong.\n\n\\boxed{3}", False, False),
    ],
)
def test_only_solutions_that_end_with_their_first_answer_are_complete(text, truncated, expected):
    assert complete(completion(text, truncated)) == expected


def test_exploration_counts_distinct_right_solutions():
    group = [completion(t) for t in ("1+2=3\nx", "1+2=3\nx", "2+1=3\nx", "1+2=4\ny")]
    found = explored(group, [1.0, 1.0, 1.0, 0.0])
    assert (found["pass@K"], found["pass@K-2"], found["distinct right"]) == (1.0, 1.0, 2.0)
    assert found["repeated steps"] == pytest.approx(3 / 8)
    copies = explored(group[:2] * 2, [1.0] * 4)
    assert (copies["pass@K"], copies["pass@K-2"]) == (1.0, 0.0)


def test_unbiased_pass_at_k():
    assert pass_at_k(8, 2, 4) == pytest.approx(0.785714, abs=1e-6)


class Scripted:
    """A run whose samples, rewards and verdicts (log-odds of Yes) are written down."""

    def __init__(self, policy, completions, right, log_odds):
        self.policy, self.completions, self.right, self.logged = policy, completions, right, {}
        self.log_odds, self.read = log_odds, []

    def sample(self, chats, samples, temperature):
        return self.completions

    def rewards(self, problems, completions):
        return torch.tensor(self.right)

    def values(self, batch, function, adapter, temperature=1.0, last=False):
        assert last and temperature == 1.0 and adapter == BASE  # a verdict isn't a sample
        self.read = batch.sequences
        yes = torch.tensor(self.log_odds[: len(batch.sequences)])
        return torch.stack([yes, torch.zeros_like(yes)], -1)

    def log(self, **values):
        self.logged |= values


PROBLEM = Problem("Compute 1+2.", "3", "1+2=3\n\\boxed{3}")
GROUP = [  # right, a copy of it, wrong, goes on after its answer, has none
    *(completion("1+2=3\n\\boxed{3}"), completion("1+2=3\n\\boxed{3}"), completion("1+2=4\n\\boxed{4}")),
    *(completion("1+2=3\n\\boxed{3}\n1+1=2"), completion("1+2=3")),
]


@pytest.mark.parametrize("process", [True, False])
def test_incomplete_solutions_are_never_selected(tiny, process):
    run = Scripted(tiny, [GROUP], [[1.0, 1.0, 0.0, 1.0, 0.0]], [4.0, -4.0, 4.0, 4.0])
    made = draw(run, [PROBLEM], 5, 1.0, process)
    assert made.rewards.tolist() == [[1.0, 1.0, 0.0, 0.0, 0.0]]
    assert made.selected(-9.0, 6) == [[0, 2]]
    assert run.logged["complete"] == pytest.approx(3 / 5)


def test_process_reward_is_twice_the_probability_of_yes_less_one_and_reads_equal_texts_once(tiny):
    run = Scripted(tiny, [GROUP], [], [0.0, 1.0, -2.0, 40.0])
    score = process_reward(run, Rollouts([PROBLEM], [GROUP], torch.zeros(1, 5)))[0].tolist()
    assert score == pytest.approx([0.0, 0.0, 0.462117, -0.761594, 1.0], abs=1e-6)
    assert len(run.read) == 4


# --- evaluation -----------------------------------------------------------------------------------------------------


def test_repeated_steps_are_counted_among_the_steps_of_a_problem():
    assert explored([completion(""), completion("")], [0.0, 0.0])["repeated steps"] == 0.0
    rollouts = Rollouts([PROBLEM], [[completion("1+2=3")] * 4], torch.zeros(1, 4))
    found = measure(SimpleNamespace(history=[]), Config(), rollouts)
    assert found["repeated steps"].values == (0.75,)
    assert found["pass@K-2"].values == found["distinct right"].values == (0.0,)


def test_course_is_measured_from_its_first_to_its_last_round():
    rows = [{"temperature": 0.6, "balance": 0.2}, {"temperature": 1.0, "balance": 0.4, "repeated steps": 0.5}]
    found = measure(SimpleNamespace(history=rows), Config(), Rollouts([PROBLEM], [GROUP], torch.zeros(1, 5)))
    assert (found["first temperature"].value, found["last temperature"].value) == (0.6, 1.0)
    assert found["first repeated steps"].value == found["last repeated steps"].value == 0.5
    assert "first threshold" not in found


# --- the loop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "expected"), [("tiny", (64, 10)), ("smol", (16, 16)), ("gpu", (128, 10))])
def test_search_and_sampling_cost_what_the_protocol_has(preset, expected):
    config = Config.for_preset(preset)
    assert shape(config) == expected
    problems, samples = expected
    searched = problems + config.dev_problems * (len(config.temperatures) - 1)
    total = config.steps * config.prompts * config.samples
    assert config.rounds * searched * config.samples == config.rounds * problems * samples == total


def test_a_search_that_leaves_nothing_is_refused():
    with pytest.raises(ConfigError, match="--dev-problems 27: at most 26 "):
        shape(Config(dev_problems=27))  # 80 problems a round: 27 of them at 3 temperatures are more
    assert shape(Config(dev_problems=26))[0] == 28


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Every arm of a very small run."""
    out = str(tmp_path_factory.mktemp("runs"))
    return out, {arm: run_arm(PAPER, SMALL, arm, 0, out) for arm in PAPER.arms}


def test_every_arm_runs_on_equal_samples(finished):
    _, results = finished
    assert all(result["status"] == "ok" for result in results.values())
    trained = {arm: r["budget"] for arm, r in results.items() if arm != "base"}
    assert {b["completions"] for b in trained.values()} == {2 * 6 * 4}
    for arm in ("online_rft", "b_star"):
        row = results[arm]["history"][-1]
        assert {"temperature", "threshold", "balance", "pass@K-2", "best-of-K", "reward@K-K/2"} <= row.keys()
    for result in results.values():
        assert {"pass@K-2", "distinct right"} <= result["per_problem"].keys()


def test_every_arm_starts_from_one_base(finished):
    _, results = finished
    first = {r["history"][0]["reward"] for arm, r in results.items() if arm in ("star", "rest_em", "online_rft")}
    assert len(first) == 1


def test_optimiser_and_schedule_go_on_over_iterations(finished):
    """One cosine and one step counter, unless the arm starts anew each time."""
    out, results = finished
    for arm in ("online_rft", "b_star"):
        assert results[arm]["budget"]["optimizer_steps"] == 6
        trainer = torch.load(run_folder(PAPER, SMALL, arm, 0, out) / "checkpoint.pt", weights_only=True)["trainer"]
        assert trainer["steps"] == 6
        last = 0.05 + 0.95 * (1 + cos(pi * 5 / 6)) / 2
        assert trainer["learning_rate"] == pytest.approx(SMALL.learning_rate * last)
    restarted = torch.load(run_folder(PAPER, SMALL, "rest_em", 0, out) / "checkpoint.pt", weights_only=True)["trainer"]
    assert restarted["steps"] == results["rest_em"]["budget"]["optimizer_steps"] / 2 == 6  # in each round
    assert cosine(0, 6, 0.05) == 1.0 and cosine(6, 6, 0.05) == pytest.approx(0.05)


def test_interrupted_between_iterations_it_ends_alike(finished, tmp_path, monkeypatch):
    _, results = finished
    improve, calls = b_star.improve, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        improve(*arguments)

    monkeypatch.setattr(b_star, "improve", killed)
    with pytest.raises(KeyboardInterrupt):
        run_arm(PAPER, SMALL, "rest_em", 0, str(tmp_path))
    monkeypatch.setattr(b_star, "improve", improve)
    resumed = run_arm(PAPER, SMALL, "rest_em", 0, str(tmp_path))
    assert resumed["history"] == results["rest_em"]["history"]
    assert resumed["metrics"] == results["rest_em"]["metrics"]
    assert resumed["budget"] == results["rest_em"]["budget"]
