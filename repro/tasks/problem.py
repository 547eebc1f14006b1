"""A problem, and the split that it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

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
