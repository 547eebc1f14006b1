"""The built-in task: right references, exact values, first wrong steps, styles, coincidences, Countdown."""

import random
import re
from fractions import Fraction
from itertools import product

import pytest

from repro.tasks import ways
from repro.tasks.arithmetic import (
    FAR,
    KINDS,
    LEVELS,
    STYLES,
    ArithmeticProblem,
    draw_problem,
    first_wrong,
    make_problem,
)
from repro.tasks.countdown import make_countdown, solutions
from repro.tasks.linear import value_of
from repro.tasks.loading import load
from repro.tasks.problem import Problem, solution_text
from repro.tasks.rewards import score


def evaluate(line: str) -> Fraction:
    """An independent value: Python's own arithmetic, and the root of an equation from two of its values."""
    exact = re.sub(r"\d+", lambda m: f"Fraction({m[0]})", line)
    if "x" not in line:
        return eval(exact, {"Fraction": Fraction})
    left, right = exact.split("=")
    at = [eval(f"({left})-({right})", {"Fraction": Fraction, "x": Fraction(x)}) for x in (0, 1)]
    return -at[0] / (at[1] - at[0])


def asked(problem: ArithmeticProblem) -> Fraction:
    return evaluate(re.fullmatch(r"(Compute|Solve) (.+)\.", problem.question)[2])


@pytest.mark.parametrize("kind", KINDS)
def test_each_line_of_a_reference_is_worth_what_the_question_is(kind):
    rng = random.Random(kind)
    styles = set()
    for level in (LEVELS + FAR) * 12:
        problem = make_problem(kind, level, rng)
        truth, reference = asked(problem), problem.reference
        assert [evaluate(line) for line in reference.steps] == [truth] * len(reference.steps)
        assert Fraction(reference.answer) == truth
        assert (reference.first_error, reference.right, set(reference.ways)) == (None, True, {"right"})
        styles.add(reference.style)
    assert styles == set(STYLES)


def test_the_first_error_is_the_first_line_of_another_value():
    rng = random.Random(1)
    places, found = [], set()
    for _ in range(400):
        problem = make_problem(rng.choice(KINDS), rng.choice(LEVELS), rng)
        attempt = problem.attempt(rng)
        truth = asked(problem)
        lines = [*attempt.steps, attempt.answer]
        worth = [value_of(line) for line in lines]
        expected = next((i for i, value in enumerate(worth, 1) if value != truth), None)
        assert attempt.first_error == expected
        assert first_wrong(problem.question, solution_text(attempt.steps, attempt.answer)) == expected
        assert attempt.right == (Fraction(attempt.answer) == truth)
        if expected is not None:
            places.append(expected)
            found.add(attempt.ways[expected - 1])
    assert found == {"order", "sign", "drop", "fact", "slip"}
    assert sum(place == 1 for place in places) < 0.6 * len(places)


def test_the_first_wrong_line_of_any_text():
    question = "Compute 9-2*3+4."
    assert first_wrong(question, "9-6+4\n3+4\n\\boxed{7}") is None
    assert first_wrong(question, "9-6+4\n\n7\n\\boxed{7}") is None
    assert first_wrong(question, "7*3+4\n25\n\\boxed{25}") == 1
    assert first_wrong(question, "9-6+4\n9-10\n\\boxed{-1}") == 2
    assert first_wrong(question, "9-6+4\n3+4\n\\boxed{8}") == 3
    assert first_wrong(question, "9-6+4\n3+4") == 3
    assert first_wrong(question, "so 9-6+4\n\\boxed{7}") == 1
    assert first_wrong(question, "9-2*5\n3+4\n\\boxed{7}") == 1  # right in the end all the same
    assert first_wrong("Solve 3*x+2=x-4.", "2*x+2=-4\n2*x=-6\n\\boxed{-3}") is None


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("12-(-3)*2", 18),
        ("1/2-1/3", Fraction(1, 6)),
        ("-(4-6)*3", 6),
        ("2*x-3=x*4+5", -4),
        ("3*(x+1)=12", 3),
        ("x=x", None),
        ("x*x=4", None),
        ("2/0", None),
        ("2**3", None),
        ("(1", None),
        ("1+", None),
        ("", None),
        ("__import__('os')", None),
        ("(" * 900 + "1" + ")" * 900, None),
    ],
)
def test_values_of_lines(line, value):
    assert value_of(line) == value


def test_states_are_read_back_from_their_lines():
    rng = random.Random(2)
    for _ in range(300):
        problem = make_problem(rng.choice(KINDS), rng.choice(LEVELS + FAR), rng)
        attempt = problem.attempt(rng)
        assert tuple(ways.read(problem.kind, step) for step in attempt.steps) == attempt.states
    assert ways.read("chain", "3+x") is None
    assert ways.read("fraction", "1/2+3") is None


def test_every_line_of_an_attempt_without_slips_is_one_that_can_follow():
    rng = random.Random(3)
    for _ in range(120):
        problem = make_problem(rng.choice(KINDS), rng.choice(LEVELS), rng)
        attempt = problem.attempt(rng, slip=0.0)
        before = (problem.data, *attempt.states)
        lines = solution_text(attempt.steps, attempt.answer).split("\n")
        for state, line, way in zip(before, lines, attempt.ways, strict=True):
            following = problem.next_lines(state)
            assert following[line] == "right" or way != "right"  # two wrong ways can lead to one line
            if state == problem.data and following[line] == "right":
                assert value_of(re.sub(r"\\boxed\{(.*)\}", r"\1", line)) == asked(problem)


def test_a_wrong_fact_is_the_same_in_every_problem_and_care_does_not_help():
    wrong = 0
    for a, b in product(range(1, 30), range(1, 10)):
        data = (a, "+", b, "+", 1), (a, "+", b, "-", 4)
        first, second = (ways.moves("chain", state, 0.0) for state in data)
        assert ("fact" in first) == ("fact" in second)
        if "fact" in first:
            wrong += 1
            (found, *_), (again, *_) = first["fact"][1](0), second["fact"][1](0)
            assert found == again != a + b
            problem = ArithmeticProblem("", "chain", 1, data[0])
            careless, careful, sure = (problem.chances(first, "left", "", scale)["fact"] for scale in (1.0, 0.2, 0.0))
            assert careless == careful > 0.5 and sure == 0
    assert 0.03 < wrong / (29 * 9) < 0.15


def test_going_on_from_a_right_line_without_temptation_ends_right():
    rng = random.Random(4)
    for _ in range(100):
        problem = make_problem(rng.choice(KINDS), rng.choice(LEVELS), rng)
        states = problem.attempt(rng, "left", scale=0.0, slip=0.0).states
        if states:
            rest = problem.attempt(rng, "right", scale=0.0, slip=0.0, start=states[0])
            assert Fraction(rest.answer) == asked(problem)


def test_coincidences_are_apart():
    def share(problems: list[ArithmeticProblem]) -> float:
        rng = random.Random(0)
        right = [a for p in problems for a in (p.attempt(rng) for _ in range(40)) if a.right]
        return sum(a.first_error is not None for a in right) / len(right)

    rng = random.Random(5)
    kinds = [kind for kind in KINDS for _ in range(4)]
    plain = share([draw_problem((kind,), (2, 3), rng) for kind in kinds])
    coincident = share([draw_problem(KINDS, (2, 3), rng, coincidences=True) for _ in kinds])
    assert plain < 0.06 < 0.1 < coincident
    questions = {p.question for p in load("arithmetic", "train", 200)}
    assert len(questions) == 200


def test_countdown_has_a_solution_that_uses_each_number_once():
    rng = random.Random(6)
    for _ in range(50):
        raw = make_countdown(rng)
        found = solutions(raw.numbers, raw.target)
        assert raw.expression in found
        for expression in found:
            assert eval(expression) == raw.target
            assert sorted(map(int, re.findall(r"\d+", expression))) == sorted(raw.numbers)
    problem = Problem("", "24", numbers=(2, 3, 4))
    answers = ["\\boxed{2*3*4}", "\\boxed{4*6}", "\\boxed{2*3*4*1}", "\\boxed{3*4+2*3*2}"]
    assert score([problem] * 4, answers) == [1.0, 0.0, 0.0, 0.0]
