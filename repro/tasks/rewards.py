"""The outcome reward of a completion."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Sequence
from fractions import Fraction

from repro.tasks.problem import Problem
from repro.verify import Outcome, extract_answer, grade_many


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
