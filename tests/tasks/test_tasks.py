"""Problems: right references, disjoint splits, loaders, and errors that name the place."""

import json
import sys

import pytest

from repro.tasks.arithmetic import KINDS, LEVELS
from repro.tasks.generated import GENERATED
from repro.tasks.loading import load
from repro.tasks.problem import Problem, TaskError, split_of
from repro.tasks.rewards import score


def test_a_task_of_reasoning_gym_without_it_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)  # as if it were not installed
    with pytest.raises(TaskError, match=r"--task gsm_symbolic .*reasoning-gym.*C compiler.*\.\[gym\]") as error:
        load("gsm_symbolic", "train", 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("task", GENERATED)
def test_splits_are_disjoint_and_deterministic(task):
    if task == "gsm_symbolic":
        pytest.importorskip("reasoning_gym", reason="needs the extra gym")
    size = {"arithmetic": 300, "one_step": 20, "gsm_symbolic": 20, "countdown": 60}[task]
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
    good = ["1*2*3*4", "(1+2+3)*4", "2*3*4/1"]
    bad = ["4*3*2", "4*3*2*2", "24", "25", "1+", "(1+3)*(2+4)+0", "__import__('os')", "2**3*3", "9" * 500, "1/0", "((1"]
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
