"""Problems of data sets: GSM8K and MATH, from the hub or from a folder."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from repro.tasks.problem import Problem, TaskError, solution_text, split_of
from repro.verify import Outcome, extract_answer, grade_many


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

FROM_FILES = {"gsm8k": (GSM8K, _gsm8k_problem), "math": (MATH, _math_problem)}
