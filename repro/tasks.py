"""Problems: the built-in arithmetic, GSM8K, MATH, and generators of the package reasoning-gym.

``load(task, split, size, seed, data)`` returns problems of one split. Train, validation and test never share a
question: for generated tasks the split of a question is a hash of its text, for data sets validation is a part of the
train file that is chosen by the same hash.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import operator
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from repro.arithmetic import KINDS, LEVELS, ArithmeticProblem, make_problem
from repro.countdown import Countdown, make_countdown
from repro.verify import Outcome, extract_answer, grade_many

SPLITS = ("train", "validation", "test")
SIXTEENTHS = {"train": range(0, 13), "validation": range(13, 14), "test": range(14, 16)}


class TaskError(ValueError):
    """Data or settings of a task that can't be used; the text says what is wrong and what would be right."""


@dataclass(frozen=True)
class Problem:
    """A question with its reference ``answer`` (what the grader compares with) and ``solution`` (text that ends with
    ``\\boxed{answer}``). ``level`` counts from 1, 0 where the source has none. With ``numbers`` the final answer is an
    expression of these numbers, each used exactly once, that equals ``answer``."""

    question: str
    answer: str
    solution: str = ""
    kind: str = ""
    level: int = 0
    numbers: tuple[int, ...] = ()


def split_of(question: str) -> str:
    """The split that a question belongs to, from a hash of its text: 13/16 train, 1/16 validation, 2/16 test."""
    bucket = hashlib.sha256(question.encode()).digest()[0] % 16
    return next(name for name, buckets in SIXTEENTHS.items() if bucket in buckets)


def solution_text(steps: Iterable[str], answer: str) -> str:
    """Steps, one a line, and the boxed answer."""
    return "\n".join((*steps, f"\\boxed{{{answer}}}"))


def _unique(draw: Callable[[], Problem], split: str, size: int) -> list[Problem]:
    problems: dict[str, Problem] = {}
    tries = 0
    while len(problems) < size:
        problem = draw()
        tries += 1
        if problem.question not in problems and split_of(problem.question) == split:
            problems[problem.question] = problem
            tries = 0
        if tries > 100_000:
            raise TaskError(f"only {len(problems)} different {split} problems can be drawn, {size} were asked for")
    return list(problems.values())


def arithmetic(
    split: str, size: int, seed: int, levels: Sequence[int] = LEVELS, coincidences: bool = False
) -> list[Problem]:
    """``size`` different problems, kinds and levels in equal shares as long as each has new ones.

    ``coincidences``: only such that a wrong way can end at the right answer; without it, none that was seen to."""
    rng = random.Random(f"arithmetic {split} {seed}")

    def draw() -> Problem:
        return as_problem(make_problem(rng.choice(KINDS), rng.choice(levels), rng, coincidences))

    return _unique(draw, split, size)


def as_problem(raw: ArithmeticProblem) -> Problem:
    """A problem of the built-in arithmetic with its reference solution."""
    answer = raw.reference.answer
    return Problem(raw.question, answer, solution_text(raw.reference.steps, answer), raw.kind, raw.level)


def one_step(split: str, size: int, seed: int) -> list[Problem]:
    """Sum, difference or product of two numbers up to 12: for language models of about a hundred million parameters."""
    rng = random.Random(f"one_step {split} {seed}")

    def draw() -> Problem:
        sign = rng.choice("+-*")
        b, a = sorted((rng.randint(1, 12), rng.randint(1, 12))) if sign == "-" else rng.choices(range(1, 13), k=2)
        answer = str({"+": a + b, "-": a - b, "*": a * b}[sign])
        step = f"{a} {sign} {b} = {answer}"
        return Problem(f"What is {a} {sign} {b}?", answer, solution_text([step], answer), "one_step", 1)

    return _unique(draw, split, size)


def gsm_symbolic(split: str, size: int, seed: int) -> list[Problem]:
    """GSM-Symbolic templates from reasoning-gym (no download)."""

    def convert(entry: dict) -> Problem:
        steps = re.sub(r"<<.*?>>", "", entry["metadata"].get("answer_cot") or "").split("####")[0].strip().split("\n")
        return Problem(entry["question"], entry["answer"], solution_text(steps, entry["answer"]), "gsm_symbolic", 1)

    return _reasoning_gym("gsm_symbolic", convert, split, size, seed)


def countdown(split: str, size: int, seed: int) -> list[Problem]:
    """Reach a target from three numbers, each used exactly once; any right expression is accepted."""
    rng = random.Random(f"countdown {split} {seed}")
    return _unique(lambda: countdown_problem(make_countdown(rng)), split, size)


def countdown_problem(raw: Countdown) -> Problem:
    """A problem whose answer is an expression."""
    solution = solution_text((), raw.expression)
    return Problem(raw.question, str(raw.target), solution, "countdown", 1, raw.numbers)


def _reasoning_gym(name: str, convert: Callable[[dict], Problem], split: str, size: int, seed: int) -> list[Problem]:
    import reasoning_gym

    def entries() -> Iterator[dict]:
        for block in itertools.count():
            yield from reasoning_gym.create_dataset(name, seed=1_000_003 * seed + block, size=500)

    source = entries()
    return _unique(lambda: convert(next(source)), split, size)


# --- data sets ------------------------------------------------------------------------------------------------------


def _rows(source: str, split: str, data: str | None, hub: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, dict]]:
    """Pairs of a row's place (for error messages) and its fields, from ``data/SPLIT.jsonl`` or from the hub."""
    if data is None:
        from datasets import load_dataset

        name, *config = hub[split]
        try:
            rows = load_dataset(name, *config, split=split)
        except Exception as error:
            raise TaskError(f"{name} can't be loaded ({type(error).__name__}); name a folder with --data") from error
        for number, row in enumerate(rows):
            yield f"{name}:{number}", row
        return
    path = Path(data) / f"{split}.jsonl"
    if not path.is_file():
        raise TaskError(f"--data {data}: no file {split}.jsonl ({source} needs train.jsonl and test.jsonl)")
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise TaskError(f"{path}:{number}: not a line of JSON ({error.msg})") from error
                if not isinstance(row, dict):
                    raise TaskError(f"{path}:{number}: not a JSON object")
                yield f"{path}:{number}", row


def _field(row: dict, place: str, *names: str) -> str:
    for name in names:
        if isinstance(row.get(name), str):
            return row[name]
    raise TaskError(f"{place}: no text field {' or '.join(map(repr, names))}")


def _gsm8k_problem(place: str, row: dict) -> Problem:
    steps, mark, answer = _field(row, place, "answer").rpartition("####")
    if not mark:
        raise TaskError(f"{place}: the answer has no '####'")
    answer = answer.strip().replace(",", "")
    steps = re.sub(r"<<.*?>>", "", steps).strip().split("\n")
    return Problem(_field(row, place, "question", "problem"), answer, solution_text(steps, answer), "gsm8k")


def _math_problem(place: str, row: dict) -> Problem:
    solution = _field(row, place, "solution")
    answer = row["answer"] if isinstance(row.get("answer"), str) else extract_answer(solution)
    if answer is None:
        raise TaskError(f"{place}: no answer field and no \\boxed{{}} in the solution")
    level = re.search(r"\d", str(row.get("level", "")))
    kind = str(row.get("subject") or row.get("type") or "")
    return Problem(_field(row, place, "problem", "question"), answer, solution, kind, int(level[0]) if level else 0)


def _from_files(name: str, split: str, size: int, seed: int, data: str | None, hub: dict, convert: Callable) -> list:
    problems = []
    for place, row in _rows(name, "test" if split == "test" else "train", data, hub):
        problem = convert(place, row)
        held_out = split_of(problem.question) == "validation"
        if split == "test" or held_out == (split == "validation"):
            problems.append((place, problem))
    if size > len(problems):
        raise TaskError(f"{name} has {len(problems)} {split} problems, {size} were asked for")
    chosen = random.Random(f"{name} {split} {seed}").sample(problems, size)
    outcomes = grade_many([("0", problem.answer) for _, problem in chosen])
    for (place, problem), outcome in zip(chosen, outcomes, strict=True):
        if outcome is Outcome.UNREADABLE_REFERENCE:
            raise TaskError(f"{place}: the grader can't read the reference answer {problem.answer!r}")
    return [problem for _, problem in chosen]


GSM8K = {"train": ("openai/gsm8k", "main"), "test": ("openai/gsm8k", "main")}
MATH = {"train": ("DigitalLearningGmbH/MATH-lighteval",), "test": ("HuggingFaceH4/MATH-500",)}
GENERATED = {"arithmetic": arithmetic, "one_step": one_step, "gsm_symbolic": gsm_symbolic, "countdown": countdown}
FROM_FILES = {"gsm8k": (GSM8K, _gsm8k_problem), "math": (MATH, _math_problem)}
TASKS = (*GENERATED, *FROM_FILES)


def load(task: str, split: str, size: int, seed: int = 0, data: str | None = None) -> list[Problem]:
    """``size`` problems of a split, in an order given by ``seed``.

    ``data`` is a folder with ``train.jsonl`` and ``test.jsonl`` in place of the hub (gsm8k and math only). Raises
    TaskError for an unknown task, a file that is missing or broken (with its line), and for too large a size.
    """
    if task in GENERATED:
        if data is not None:
            raise TaskError(f"--data goes with {' and '.join(FROM_FILES)}; {task} makes its own problems")
        return GENERATED[task](split, size, seed)
    if task not in FROM_FILES:
        raise TaskError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    return _from_files(task, split, size, seed, data, *FROM_FILES[task])


# --- rewards --------------------------------------------------------------------------------------------------------


def score(problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
    """The outcome reward of each completion: 1.0 if its final answer equals the reference, else 0.0."""
    answers = [extract_answer(text) for text in texts]
    pairs = [(None if p.numbers else a, p.answer) for p, a in zip(problems, answers, strict=True)]
    rewards = [float(outcome is Outcome.EQUAL) for outcome in grade_many(pairs)]
    for i, (problem, answer) in enumerate(zip(problems, answers, strict=True)):
        if problem.numbers:
            rewards[i] = float(answer is not None and _reaches(answer, problem.numbers, int(problem.answer)))
    return rewards


def _reaches(expression: str, numbers: tuple[int, ...], target: int) -> bool:
    """Does the expression use each of the numbers exactly once and equal the target? Never executes the text."""
    used: list[int] = []
    operations = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            used.append(node.value)
            return Fraction(node.value)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in operations:
            return operations[type(node.op)](value(node.left), value(node.right))
        raise ValueError("not an expression of whole numbers")

    if len(expression) > 200 or not re.fullmatch(r"[0-9+\-*/() ]+", expression):
        return False
    try:
        reached = value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return False
    return reached == target and sorted(used) == sorted(numbers)
