"""Scores, selectors and estimates on a pool of samples, against worked numbers and brute force over subsets."""

import gzip
import json
import math
import random
from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch

from repro.cli import main
from repro.config import ConfigError, RunConfig
from repro.evaluation import evaluate
from repro.methods import judge
from repro.methods.pool import (
    TOKEN_SCORES,
    Pool,
    PoolConfig,
    accuracy_at,
    average,
    best,
    best_of,
    borda,
    first,
    odds_of,
    pool_of,
    read_pool,
    self_certainty,
    subsets,
    sums_of,
    token_scores,
    vote,
)
from repro.model.logprobs import completion_values
from repro.paper import Paper
from repro.results.metrics import majority
from repro.run import Rollouts, Run
from repro.tasks import prompts
from repro.tasks.loading import load
from repro.tasks.rewards import score


@pytest.mark.parametrize(
    ("p", "certainty"), [((0.25,) * 4, 0.0), ((0.7, 0.1, 0.1, 0.1), 0.42981), ((0.4, 0.3, 0.2, 0.1), 0.12178)]
)
def test_self_certainty_is_the_divergence_from_uniform(p, certainty):
    logp = torch.tensor([p], dtype=torch.float64).log()
    assert self_certainty(logp).item() == pytest.approx(certainty, abs=1e-5)
    read = token_scores(logp + 3.7, torch.tensor([0]))[0, TOKEN_SCORES.index("certainty")]  # of logits
    assert read.item() == pytest.approx(certainty, abs=1e-5)


@pytest.mark.parametrize(("token", "rate"), [(0, 0.10), (1, 0.0), (2, -0.10)])
def test_a_step_up_on_a_token_changes_self_certainty_by_its_share_of_the_squares(token, rate):
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log().requires_grad_()
    (certain,) = torch.autograd.grad(self_certainty(logits.log_softmax(-1)).sum(), logits, retain_graph=True)
    (upwards,) = torch.autograd.grad(logits.log_softmax(-1)[0, token], logits)
    # in units of 1/V, as the theorem has it
    assert (certain * upwards).sum().item() == pytest.approx(rate, abs=1e-9)


def test_token_scores_are_of_the_whole_distribution():
    p = torch.tensor([[0.7, 0.1, 0.1, 0.1]], dtype=torch.float64)
    logp, entropy, certainty, perplexity, gini = token_scores(p.log(), torch.tensor([1]))[0].tolist()
    h = -(0.7 * math.log(0.7) + 0.3 * math.log(0.1))
    assert (logp, entropy, perplexity) == pytest.approx((math.log(0.1), h, math.exp(h)))
    assert (certainty, gini) == pytest.approx((0.42981, 0.52), abs=1e-5)


def votes(answers: str, scores, power: float) -> dict[str, float]:
    """The votes that a Borda count of some power gives, counted by hand."""
    ranks = {i: r for r, i in enumerate(sorted(range(len(scores)), key=lambda i: -scores[i]), 1)}
    found: dict[str, float] = {}
    for i, a in enumerate(answers):
        found[a] = found.get(a, 0.0) + (len(scores) - ranks[i] + 1) ** power
    return found


@pytest.mark.parametrize(
    ("power", "a", "b", "winner"),
    [(0, 2, 3, "B"), (0.3, 3.136, 3.622, "B"), (0.5, 4.236, 4.146, "A"), (2, 41, 14, "A")],
)
def test_borda_on_the_worked_example(power, a, b, winner):
    answers, scores = "BBBAA", np.array([14, 13, 12, 18, 17.0])
    assert votes(answers, scores, power) == pytest.approx({"A": a, "B": b}, abs=1e-3)
    assert borda(power)(list(answers), scores) == winner


def test_borda_with_a_tie_takes_the_first_seen_and_with_a_large_power_the_best():
    answers, scores = list("ABBAC"), np.array([17.8, 17.1, 16.9, 16.0, 18.2])
    assert borda(1)(answers, scores) == "A"  # 5 : 5 : 5
    assert borda(6)(answers, scores) == "C" == best(answers, scores)


def test_a_sample_without_an_answer_keeps_its_rank_and_never_wins():
    answers, scores = [None, "A", "B", "B"], np.array([9.0, 8.0, 2.0, 1.0])
    assert best(answers, scores) == first(answers, scores) == "A"
    # weights 4, 3, 2, 1 to the power 1: A 3, B 3, the first seen; without the rank of None they would be 3, 2, 1
    assert borda(1)(answers, scores) == "A"
    assert borda(0.9)(answers, scores) == "B"
    for select in (borda(1), best, first, vote, average):
        assert select([None, None], np.array([1.0, 2.0])) is None


def test_borda_lies_between_the_majority_and_the_best():
    rng = random.Random(0)
    for _ in range(200):
        answers = [rng.choice(["a", "b", "c", None]) for _ in range(7)]
        scores = np.array([rng.random() for _ in range(7)])
        assert borda(0)(answers, scores) == majority(answers) == vote(answers, np.ones(7))
        assert borda(50)(answers, scores) == best(answers, scores)


def test_an_average_is_won_by_one_lucky_sample_and_a_sum_isnt():
    answers, scores = ["A", "A", "A", "B"], np.array([1.0, 2.0, 3.0, 2.5])
    assert average(answers, scores) == "B"
    assert vote(answers, scores) == "A"


def pool(answers, right, problems=None) -> Pool:
    right = np.asarray(right, dtype=float)
    return Pool(problems or [None] * len(right), [], answers, right, {}, np.ones_like(right))


def test_the_best_of_k_is_exact():
    rng = np.random.default_rng(0)
    values, scores = rng.integers(0, 2, (3, 7)).astype(float), rng.integers(0, 4, (3, 7)).astype(float)  # with ties
    for k in range(1, 8):
        found = []
        for v, s in zip(values, scores, strict=True):
            sets = [list(c) for c in combinations(range(7), k)]
            found.append(np.mean([v[c][s[c] == s[c].max()].mean() for c in map(np.array, sets)]))
        assert best_of(values, scores, k) == pytest.approx(np.array(found))


def test_the_accuracy_of_a_selector_is_its_mean_over_all_subsets():
    answers, right = [["a", "b", "a", None, "c"], ["x", "x", "y", "y", "y"]], [[1, 0, 1, 0, 0], [1, 1, 0, 0, 0]]
    some = pool(answers, right)
    for k in range(1, 6):
        sets = list(combinations(range(5), k))
        brute = []
        for row, value in zip(answers, right, strict=True):
            wins = [majority([row[j] for j in c]) for c in sets]
            brute.append(np.mean([0 if w is None else value[row.index(w)] for w in wins]))
        assert accuracy_at(some, k, vote, draws=100) == pytest.approx(np.array(brute))
    with pytest.raises(ValueError, match="6 samples of a pool of 5"):
        accuracy_at(some, 6, vote)


def test_random_subsets_are_the_same_for_all_and_have_no_sample_twice():
    one, two = ([s.tolist() for s in subsets(64, 8, 32)] for _ in range(2))
    assert one == two
    assert len(one) == 32
    assert all(len(set(s)) == 8 and s == sorted(s) for s in one)
    assert [s.tolist() for s in subsets(5, 5, 32)] == [[0, 1, 2, 3, 4]]


def test_a_pool_is_scored_as_it_is_drawn_and_judged_once(tmp_path, monkeypatch):
    config = PoolConfig(eval_problems=6, eval_samples=4, rows_per_batch=4)  # blocks of four problems
    paper = Paper(slug="p", title="", arxiv="", config=PoolConfig, arms={}, claims=())
    run = Run(paper, "base", 0, config, tmp_path)
    _, rollouts = evaluate(run)
    texts, calls = [[c.text for c in group] for group in rollouts.completions], []
    whole = judge.judged(run, rollouts.problems, texts)

    def cut(self, problems, texts, stop_at=None):
        calls.append(len(problems))
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return judge.judged(self, problems, texts)

    monkeypatch.setattr("repro.methods.pool.judged", partial(cut, stop_at=2))
    with pytest.raises(KeyboardInterrupt):
        odds_of(run, rollouts)
    monkeypatch.setattr("repro.methods.pool.judged", cut)
    made, odds = pool_of(rollouts), odds_of(run, rollouts)
    assert calls == [4, 2, 2]  # the second was cut short
    assert odds == pytest.approx(whole.numpy(), abs=1e-4)
    for i, group in enumerate(rollouts.completions):
        for j, c in enumerate(group):
            model = run.policy.model.get_base_model()
            rows = completion_values(model, [(c.prompt, c.ids)], token_scores)
            assert made.sums["certainty"][i, j] == pytest.approx(rows[:, 2].sum().item(), rel=1e-4)
            assert made.mean("logp")[i, j] == pytest.approx(np.mean(c.logprobs), abs=1e-4)
            assert (made.answers[i][j] is None) >= c.truncated
    monkeypatch.setattr(Run, "values", lambda *_, **__: pytest.fail("read twice"))
    state = run.generator.get_state()
    assert (odds_of(run, rollouts) == odds).all() and torch.equal(run.generator.get_state(), state)
    unscored = [[replace(c, scores=()) for c in group] for group in rollouts.completions]
    with pytest.raises(ConfigError, match="has no token scores"):
        sums_of(Rollouts(rollouts.problems, unscored, rollouts.rewards))


def test_a_pool_is_a_file_that_others_read(tmp_path, capsys):
    few = ["--eval-problems", "4", "--eval-samples", "3", "--max-new-tokens", "32"]
    assert main(["run", "p_true", "--arms", "base", *few, "--workers", "1", "--out", str(tmp_path)]) == 0
    (folder,) = tmp_path.glob("standard/*/base-seed0")
    file = tmp_path / "pool.jsonl.gz"
    assert main(["samples", str(folder), "--pool", str(file)]) == 0
    read, result = read_pool(file), json.loads((folder / "result.json").read_text())
    assert read.right.mean(1).tolist() == pytest.approx(result["per_problem"]["accuracy"], abs=1e-3)
    assert read.tokens.mean() == pytest.approx(result["metrics"]["length"]["value"])
    assert read.odds.shape == read.mean("certainty").shape == (4, 3)
    assert [p.question for p in read.problems] == [p.question for p in load("arithmetic", "test", 4, 0, None)]
    assert score(read.problems, [group[0] for group in read.texts]) == read.right[:, 0].tolist()
    assert accuracy_at(read, 3, vote).mean() <= best_of(read.right, read.right, 3).mean()
    with gzip.open(file, "rt") as text:
        made = json.loads(text.readline())
    assert (made["seed"], made["machine"], made["command"]) == (0, result["machine"], result["command"])
    (folder / "odds.pt").unlink()
    assert main(["samples", str(folder), "--pool", str(file)]) == 0 and read_pool(file).odds is None
    capsys.readouterr()
    assert main(["samples", str(tmp_path), "--pool", str(file)]) == 2
    assert "no evaluation.pt in it" in capsys.readouterr().err


# --- the judge -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    paper = Paper(slug="p", title="", arxiv="", config=RunConfig, arms={}, claims=())
    return Run(paper, "base", 0, RunConfig(train_problems=8, eval_problems=8), tmp_path)


def test_choices_are_read_at_the_next_token_and_equal_conversations_once(run, monkeypatch):
    one, two = (prompts.verify(p, p.solution) for p in run.held_out()[:2])
    seen = []
    values = Run.values
    monkeypatch.setattr(
        Run, "values", lambda self, batch, *a, **k: seen.append(len(batch.sequences)) or values(self, batch, *a, **k)
    )
    read = judge.choice_logprobs(run, [one, two, one], ("Yes", "No"))
    assert seen == [2]
    assert torch.equal(read[0], read[2])
    with torch.no_grad():
        ids = torch.tensor([run.policy.encode(two)])
        logp = run.policy.model(input_ids=ids).logits[0, -1].log_softmax(-1)
    wanted = logp[[run.policy.token("Yes"), run.policy.token("No")]]
    assert torch.allclose(read[1], wanted, atol=1e-4)
    assert torch.allclose(judge.log_odds(run, [two]), wanted[:1] - wanted[1:], atol=1e-4)
    assert judge.choice_logprobs(run, [], ("Yes", "No")).shape == (0, 2)


def test_both_orders_of_a_comparison_are_one_number(run):
    problem = run.held_out()[0]
    right, wrong = problem.solution, "\\boxed{0}"
    one, other = judge.preferred(run, [(problem, right, wrong), (problem, wrong, right)])
    assert one.item() == pytest.approx(1 - other.item(), abs=1e-5)
    alone = judge.preferred(run, [(problem, right, wrong), (problem, wrong, right)], both_orders=False)
    assert one.item() == pytest.approx((alone[0] + 1 - alone[1]).item() / 2, abs=1e-5)


def test_solutions_are_judged_in_their_place(run):
    problems = run.held_out()[:2]
    odds = judge.judged(run, problems, [[p.solution, "\\boxed{7}"] for p in problems])
    assert odds.shape == (2, 2)
    alone = judge.log_odds(run, [prompts.verify(problems[1], "\\boxed{7}")])
    assert odds[1, 1].item() == pytest.approx(alone.item(), abs=1e-4)


def test_conversations_that_begin_alike_share_their_beginning(run, monkeypatch):
    problems = run.held_out()[:3]
    chats = [prompts.verify(p, text) for p in problems for text in (p.solution, "\\boxed{7}", "\\boxed{71}")]
    alone, read, values = judge.log_odds(run, chats), [], Run.values

    def seen(self, batch, *a, **k):
        read.extend(batch.sequences)
        return values(self, batch, *a, **k)

    monkeypatch.setattr(Run, "values", seen)
    assert torch.allclose(judge.log_odds(run, chats, alike=3), alone, atol=1e-4)
    assert len({prompt for prompt, _ in read}) == 3 and len(read) == 9
    assert [(*prompt, *rest[:-1]) for prompt, rest in read] == [tuple(run.policy.encode(chat)) for chat in chats]
    assert sum(len(prompt) for prompt, _ in read) > sum(len(rest) for _, rest in read[1::3])
