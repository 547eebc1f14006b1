"""Problems: right references, disjoint splits, loaders, and errors that name the place."""

import json
import random
import re
import sys
from fractions import Fraction

import pytest

from repro.tasks.arithmetic import KINDS, LEVELS, make_problem
from repro.tasks.generated import GENERATED
from repro.tasks.loading import load
from repro.tasks.problem import Problem, TaskError, split_of
from repro.tasks.rewards import score


def evaluate(question: str) -> Fraction:
    """An independent solution: Python's own arithmetic on the question."""
    text = re.fullmatch(r"(Compute|Solve) (.+)\.", question)[2]
    exact = re.sub(r"\d+", lambda m: f"Fraction({m[0]})", text)
    if "x" not in text:
        return eval(exact, {"Fraction": Fraction})
    left, right = exact.split("=")
    residual = [eval(f"({left})-({right})", {"Fraction": Fraction, "x": Fraction(x)}) for x in (0, 1)]
    return -residual[0] / (residual[1] - residual[0])


@pytest.mark.parametrize("kind", KINDS)
def test_references_are_right_and_habits_are_wrong(kind):
    rng = random.Random(kind)
    for level in LEVELS * 60:
        problem = make_problem(kind, level, rng)
        truth = evaluate(problem.question)
        assert Fraction(problem.reference.answer) == truth
        assert problem.reference.first_error is None
        habit = problem.attempt(rng, habit=True)
        assert Fraction(habit.answer) != truth
        assert 1 <= habit.first_error <= len(habit.steps)


def test_each_step_of_a_reference_is_true():
    rng = random.Random(0)
    for _ in range(300):
        problem = make_problem(rng.choice(KINDS), rng.choice(LEVELS), rng)
        for step in problem.reference.steps:
            left, right = (
                eval(re.sub(r"\d+", lambda m: f"Fraction({m[0]})", side), {"Fraction": Fraction})
                for side in step.split("=")
            )
            assert left == right, (problem, step)


def test_the_first_error_of_a_slip_is_the_step_that_slipped():
    rng = random.Random(1)
    seen = 0
    for _ in range(300):
        problem = make_problem("chain", 3, rng)
        attempt = problem.attempt(rng, slip=0.2)
        if attempt.first_error is None:
            continue
        seen += 1
        n = attempt.first_error
        assert attempt.steps[: n - 1] == problem.reference.steps[: n - 1]
        left, right = attempt.steps[n - 1].split("=")
        assert eval(left) != int(right)
    assert seen > 50


@pytest.mark.parametrize("task", ["gsm_symbolic", "countdown"])
def test_a_task_of_reasoning_gym_without_it_names_the_command(task, monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)  # as if it were not installed
    with pytest.raises(TaskError, match=rf"--task {task} .*reasoning-gym.*C compiler.*\.\[gym\]") as error:
        load(task, "train", 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("task", GENERATED)
def test_splits_are_disjoint_and_deterministic(task):
    if task in ("gsm_symbolic", "countdown"):
        pytest.importorskip("reasoning_gym", reason="needs the extra gym")
    size = {"arithmetic": 300, "one_step": 20, "gsm_symbolic": 20, "countdown": 2}[task]
    splits = {name: load(task, name, size, seed=0) for name in ("train", "validation", "test")}
    questions = [p.question for problems in splits.values() for p in problems]
    assert len(questions) == len(set(questions)) == 3 * size
    assert load(task, "train", size, seed=0) == splits["train"]
    assert load(task, "train", size, seed=1) != splits["train"]
    for name, problems in splits.items():
        assert all(split_of(p.question) == name for p in problems)
        assert score(problems, [p.solution for p in problems]) == [1.0] * size


def test_arithmetic_has_every_kind_and_level():
    problems = load("arithmetic", "test", 600)
    assert {(p.kind, p.level) for p in problems} == {(k, level) for k in KINDS for level in LEVELS}


def test_countdown_accepts_any_right_expression_and_nothing_else():
    problem = Problem("", "24", numbers=(1, 2, 3, 4))
    good = ["1*2*3*4", "(1+2+3)*4", "4*3*2", "2*3*4/1"]
    bad = ["4*3*2*2", "24", "25", "1+", "(1+3)*(2+4)+0", "__import__('os')", "2**3*3", "9" * 500, "1/0", "((1"]
    answers = [f"\\boxed{{{a}}}" for a in good + bad]
    assert score([problem] * len(answers), answers) == [1.0] * len(good) + [0.0] * len(bad)
    assert score([problem], ["no box"]) == [0.0]


def write_gsm8k(folder, rows=200):
    lines = [
        {"question": f"What is {i} + 1?", "answer": f"{i}+1=<<{i}+1={i + 1}>>{i + 1}\n#### {i + 1:,}"}
        for i in range(rows)
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "test.jsonl").write_text(
        "\n".join(json.dumps({**r, "question": "Test: " + r["question"]}) for r in lines)
    )


def test_gsm8k_from_a_folder(tmp_path):
    write_gsm8k(tmp_path, 1200)
    train = load("gsm8k", "train", 900, data=str(tmp_path))
    validation = load("gsm8k", "validation", 40, data=str(tmp_path))
    test = load("gsm8k", "test", 1200, data=str(tmp_path))
    assert not {p.question for p in train} & {p.question for p in validation}
    assert all(p.question.startswith("Test") for p in test)
    big = next(p for p in test if "1110 " in p.question)
    assert big.answer == "1111" and big.solution == "1110+1=1111\n\\boxed{1111}"


def test_math_from_a_folder(tmp_path):
    row = {
        "problem": "Half of one?",
        "solution": "It is $\\boxed{\\frac{1}{2}}$.",
        "level": "Level 3",
        "subject": "Algebra",
    }
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    (tmp_path / "test.jsonl").write_text(json.dumps({**row, "answer": "0.5"}))
    (problem,) = load("math", "test", 1, data=str(tmp_path))
    assert (problem.answer, problem.level, problem.kind) == ("0.5", 3, "Algebra")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "train.jsonl:2: not a line of JSON"),
        ("[1]", "train.jsonl:2: not a JSON object"),
        ('{"question": "q"}', "train.jsonl:2: no text field 'answer'"),
        ('{"question": "q", "answer": "no mark"}', "train.jsonl:2: the answer has no '####'"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    good = json.dumps({"question": "q", "answer": "#### 1"})
    (tmp_path / "train.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(TaskError) as error:
        load("gsm8k", "train", 1, data=str(tmp_path))
    assert message in str(error.value)


def test_other_errors(tmp_path):
    with pytest.raises(TaskError, match="unknown task"):
        load("nothing", "train", 1)
    with pytest.raises(TaskError, match=r"no file train\.jsonl"):
        load("gsm8k", "train", 1, data=str(tmp_path))
    with pytest.raises(TaskError, match="makes its own problems"):
        load("arithmetic", "train", 1, data=str(tmp_path))
    write_gsm8k(tmp_path)
    with pytest.raises(TaskError, match="test problems, 500 were asked for"):
        load("gsm8k", "test", 500, data=str(tmp_path))
