"""Generation vs. multiple choice: letters, choices and flips on worked examples, mock models, and a short run."""

import json
import random
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from papers.gen_vs_mc import (
    LETTERS,
    PAPER,
    Choice,
    Config,
    asked_again,
    by_round,
    choice_of,
    choose,
    letter,
    options_of,
    picked,
    solutions_of,
)
from repro.arm import run_arm, run_folder
from repro.methods.multiturn import retry
from repro.model.sampling import Completion
from repro.results.metrics import flips, majority
from repro.tasks import prompts
from repro.tasks.problem import Problem

PROBLEM = Problem("Compute 1+1.", "2", "\\boxed{2}")
RIGHT = np.array([[0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 1]], dtype=float)


def completion(text: str, truncated: bool = False) -> Completion:
    return Completion((), (), (), text, truncated)


# --- the worked checks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", range(4))
def test_history(k):  # check 1; the paper has three opening messages more
    replies = [f"reply {j}" for j in range(k)]
    for chat in (asked_again(Choice("first", "again", "A"), replies), retry(PROBLEM, replies)):
        assert len(chat) + 3 == 2 + 2 * (k + 1)
        assert [m["content"] for m in chat[1::2]] == replies
    assert [m["content"] for m in asked_again(Choice("first", "again", "A"), replies)[::2]] == ["first"] + ["again"] * k


def values(right: np.ndarray, answers=None) -> dict[str, float]:
    return {name: v.mean() for name, v in by_round(right, answers or right.tolist()).items()}


def test_flips_and_accuracies():  # checks 3 and 2
    mended, broken = (f.mean(0).tolist() for f in flips(RIGHT))
    assert mended == [1 / 4, 1 / 4] and broken == [1 / 4, 2 / 4]
    found = values(RIGHT)
    assert [found[f"accuracy@{n}"] for n in (1, 2, 3)] == [0.5, 0.5, 0.25]
    assert [found[f"cumulative@{n}"] for n in (1, 2, 3)] == [0.5, 0.75, 0.75]
    assert (found["accuracy"], found["cumulative"]) == (0.25, 0.75)
    assert (found["flips@2"], found["flips@3"], found["flips"]) == pytest.approx((0.5, 0.75, 0.625))
    # wrong at first: rows 0 and 2; right at first: rows 1 and 3
    assert [found[f"recovery@{n}"] for n in (2, 3)] == pytest.approx([0.5, 0])
    assert [found[f"retention@{n}"] for n in (2, 3)] == pytest.approx([0.5, 0.5])
    assert (found["recovery"], found["retention"]) == pytest.approx((0, 0.5))


@pytest.mark.parametrize("seed", range(4))
def test_identities(seed):  # checks 2 and 4
    right = np.random.default_rng(seed).integers(0, 2, (30, 6)).astype(float)
    found = values(right)
    for n in range(2, 7):
        mended, broken = (f[:, n - 2].mean() for f in flips(right))
        assert found[f"accuracy@{n}"] - found[f"accuracy@{n - 1}"] == pytest.approx(mended - broken)
        assert found[f"cumulative@{n}"] >= max(found[f"accuracy@{n}"], found[f"cumulative@{n - 1}"]) - 1e-9
        wrong = right[:, 0] == 0
        assert found[f"recovery@{n}"] == pytest.approx(right[wrong, n - 1].mean())
        assert found[f"retention@{n}"] == pytest.approx(right[~wrong, n - 1].mean())
    assert found["cumulative@1"] == found["accuracy@1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(A) is too small, (B) too large. The final answer is (C).", "C"),  # check 5
        ("Only (B) fits.", "B"),
        ("It is (A) or (B).", None),
        ("The final answer is: **D**", "D"),
        ("the Final Answer is $\\boxed{B}$.", "B"),
        ("(A)? No.\n\\boxed{(C)}", "C"),
        ("The final answer is (A). Wait. The final answer is (B).", "B"),
        ("The final answer is a number.", None),
        ("The final answer is 12.", None),
        ("Apples are good.", None),
        ("B", "B"),
        ("\\boxed{12}", None),
        ("", None),
    ],
)
def test_letters(text, expected):
    assert letter(text) == expected


def test_an_option_may_be_named_by_its_text():
    options = {"12": "A", "18": "B"}
    assert letter("So 6 * 3 = 18.\nThe final answer is \\boxed{18}", options) == "B"
    assert letter("\\boxed{13}", options) is None and letter("\\boxed{18}. The final answer is (A).", options) == "A"
    replies = [[completion("(B)"), completion("(B)", truncated=True)]]
    assert picked([Choice("first", "again", "B", options)], replies)[0].tolist() == [[1.0, 0.0]]


def test_a_majority_of_letters():  # check 6; a reply without a letter doesn't vote here
    assert majority(["A", "A", None, "B", "B"]) == "A"


def talk(answer, rounds: int = 5, count: int = 3) -> tuple[np.ndarray, list]:
    """What is picked when ``answer(chat)`` writes every reply."""
    choices = [Choice(f"question {i}", "again", "B") for i in range(count)]
    run = SimpleNamespace(sample=lambda chats, n, generator: [[completion(answer(chat))] for chat in chats])
    first = [completion(answer(asked_again(choice, ()))) for choice in choices]
    return picked(choices, choose(run, choices, first, rounds, None))


def test_a_model_that_repeats_itself_never_flips():  # check 7
    right, answers = talk(lambda chat: "(B)" if chat[0]["content"] != "question 1" else "(C)")
    assert right.tolist() == [[1.0] * 6, [0.0] * 6, [1.0] * 6]
    found = values(right, answers)
    assert found["flips"] == found["changed"] == found["recovery"] == found["unread"] == 0
    assert found["retention"] == 1
    assert found["accuracy"] == found["cumulative"] == found["accuracy@1"] == pytest.approx(2 / 3)


def test_a_model_that_draws_raises_the_cumulative_accuracy_alone():  # check 8
    rng = random.Random(0)
    right, answers = talk(lambda chat: f"({rng.choice(LETTERS)})", count=4000)
    found = values(right, answers)
    assert [found[f"accuracy@{n}"] for n in range(1, 7)] == pytest.approx([0.25] * 6, abs=0.025)
    assert found["cumulative"] == pytest.approx(1 - 0.75**6, abs=0.02)
    assert found["flips"] == pytest.approx(2 * 0.25 * 0.75, abs=0.02)


def test_answers_that_change_or_cannot_be_read():
    found = values(np.zeros((2, 3)), [["A", None, "C"], ["A", "A", "A"]])
    assert (found["changed"], found["changed@2"], found["unread"]) == pytest.approx((0.5, 0.5, 1 / 6))
    assert [found[f"unread@{n}"] for n in (1, 2, 3)] == [0, 0.5, 0]
    assert np.isnan(found["retention"])  # nothing was right at first; the run leaves it out


# --- choices --------------------------------------------------------------------------------------------------------


def listed(choice: Choice) -> dict[str, str]:
    lines = choice.first.split("Options:\n")[1].split("\n")[:-1]
    return {line[1]: line[4:-1] for line in lines}


def test_options_are_the_right_answer_and_wrong_ones_of_the_model():
    choice = options_of(PROBLEM, ["3", "2.0", None, "3", "4", "5", "6"], [0, 1, 0, 0, 0, 0, 0])
    shown = listed(choice)
    assert sorted(shown.values()) == ["2.0", "3", "4", "5"]  # the right one as the model writes it
    assert shown[choice.right] == "2.0"
    assert choice.again.endswith(choice.first) and choice.again != choice.first
    assert choice == options_of(PROBLEM, ["3", "2.0", "4", "5"], [0, 1, 0, 0])  # the order is the problem's
    few = options_of(PROBLEM, ["3", None], [0, 0])
    assert sorted(listed(few).values()) == ["2", "3"] and listed(few)[few.right] == "2"
    assert options_of(PROBLEM, ["2", None], [1, 0]) is None


def test_the_right_option_stands_in_every_place():
    problems = [replace(PROBLEM, question=f"Compute {i}.") for i in range(400)]
    places = [options_of(p, ["3", "4", "5"], [0, 0, 0]).right for p in problems]
    assert all(70 < places.count(name) < 130 for name in LETTERS)
    pairs = [solutions_of(p, ["a", "b"], [0, 1]).right for p in problems]
    assert 160 < pairs.count("A") < 240


def test_solutions_are_a_right_and_a_wrong_one():
    choice = solutions_of(PROBLEM, ["a", "b", "c", "d"], [0, 1, 1, 0])
    pair = ("b", "a") if choice.right == "A" else ("a", "b")
    assert choice.first == prompts.compare(PROBLEM, *pair)[0]["content"]
    assert solutions_of(PROBLEM, ["a", "b"], [1, 1]) is None
    assert solutions_of(PROBLEM, [], []) is None


def test_truncated_samples_make_no_choice():
    cut = [completion("\\boxed{2}"), completion("\\boxed{2}", truncated=True)]  # wrong by the limit alone
    for choice in ("options", "solutions"):
        ask = partial(choice_of, PROBLEM, config=Config(choice=choice))
        assert ask(cut, [1.0, 0.0]) is None
        assert ask([*cut, completion("\\boxed{3}")], [1.0, 0.0, 0.0]) is not None


# --- a short run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["solutions", "options"])
def test_measured_on_the_base(choice, tmp_path):
    config = Config(choice=choice, rounds=2, round_problems=5, eval_problems=6, eval_samples=6, max_new_tokens=48)
    run_arm(PAPER, config, "base", 0, str(tmp_path))
    result = json.loads((run_folder(PAPER, config, "base", 0, str(tmp_path)) / "result.json").read_text())
    found = {name: entry["value"] for name, entry in result["metrics"].items()}
    assert 0 < found["with a choice"] <= 1
    for kind in ("generation", "choice", "fresh generation", "fresh choice"):
        for n in (2, 3):
            gain = found[f"accuracy, {kind}@{n}"] - found[f"accuracy, {kind}@{n - 1}"]
            assert abs(gain) <= found[f"flips, {kind}@{n}"] + 1e-9
        assert found[f"flips, {kind}"] == pytest.approx(found[f"mended, {kind}"] + found[f"broken, {kind}"])
        assert len(result["per_problem"][f"flips, {kind}"]) == config.round_problems
    assert found["accuracy, generation@1"] == pytest.approx(found["accuracy, fresh generation@1"])
    assert found["accuracy, choice@1"] == pytest.approx(found["accuracy, fresh choice@1"])
