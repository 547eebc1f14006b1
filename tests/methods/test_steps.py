"""The first wrong step, what is right from there, and which tokens belong to a step."""

import random

import pytest

from repro.methods.steps import corrected, first_wrong_step, right_from, steps_of_tokens
from repro.tasks.arithmetic import KINDS, LEVELS, first_wrong, make_problem
from repro.tasks.generated import as_problem, from_problem
from repro.tasks.problem import Problem, solution_text
from repro.tasks.prompts import split_steps

PROBLEM = Problem("Compute 3+4*5-1.", "22", "3+20-1\n23-1\n\\boxed{22}", "mixed", 1)
WORDS = Problem("How many?", "22", "4 * 5 = 20\n20 + 2 = 22\n\\boxed{22}")


def drawn(count: int) -> list:
    rng = random.Random(1)
    return [make_problem(KINDS[i % len(KINDS)], rng.choice(LEVELS), rng) for i in range(count)]


def test_a_problem_is_executed_again():
    for raw in drawn(60):
        assert from_problem(as_problem(raw)) == raw
    assert from_problem(WORDS) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3+20-1\n23-1\n\\boxed{22}", None),
        ("3+20-1\n24-1\n\\boxed{23}", 2),
        ("7*5-1\n35-1\n\\boxed{34}", 1),
        ("3+20-1\n23-1", 3),  # no answer
    ],
)
def test_the_first_wrong_step(text, number):
    assert first_wrong_step(PROBLEM, text) == number


def test_elsewhere_wrong_equations_are_seen():
    assert first_wrong_step(WORDS, "4 * 5 = 20\n20 + 2 = 23\n\\boxed{23}") == 2
    assert first_wrong_step(WORDS, "It must be.\n\\boxed{23}") is None
    assert first_wrong_step(WORDS, "20 + 2 = 23. Wait, that is a mistake: 20 + 2 = 22.") is None


def test_a_correction_keeps_what_was_right():
    text = "3+20-1\n24-1\n\\boxed{23}"
    lines = split_steps(corrected(PROBLEM, text, right=False))
    assert lines[0] == "3+20-1" and "24-1" not in lines and lines[-1] == "\\boxed{22}"
    assert corrected(PROBLEM, PROBLEM.solution, right=True) == PROBLEM.solution
    assert corrected(WORDS, "4 * 5 = 21\n\\boxed{21}", right=False) == WORDS.solution
    assert corrected(WORDS, "4 * 5 = 20\n20 + 2 = 23", right=False) == "4 * 5 = 20\n" + WORDS.solution
    assert corrected(WORDS, "It must be.\n\\boxed{23}", right=False) == WORDS.solution
    for line in ("what?", "(3)+20-1", "23+-1"):  # a state that can't be read, or that no derivation has
        assert right_from(PROBLEM, f"{line}\n23-1", 2) == PROBLEM.solution


def test_corrections_of_random_attempts_are_right():
    rng, wrong = random.Random(2), 0
    for raw in drawn(120):
        problem, attempt = as_problem(raw), raw.attempt(rng)
        text = solution_text(attempt.steps, attempt.answer)
        found = corrected(problem, text, attempt.right)
        number = attempt.first_error
        if number is None:
            assert found == text
            continue
        wrong += 1
        assert first_wrong(raw.question, found) is None
        assert split_steps(found)[: number - 1] == split_steps(text)[: number - 1]
        assert split_steps(text)[number - 1] not in split_steps(found)[number - 1 :]
    assert wrong > 30


def test_steps_of_tokens():
    pieces = ["3", "+20", "\n", "23", "\n", "\\boxed{", "23", "}", ""]
    assert steps_of_tokens(pieces) == [1, 1, 1, 2, 2, 3, 3, 3, 3]
