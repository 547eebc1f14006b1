"""The steps of a solution: which is the first wrong one, how it goes on rightly from there, which tokens belong to it.

Steps are lines, counted from 1. The built-in arithmetic is executed, so that all of this is exact. Of other tasks only
wrong equations are seen, and a reference solution is the only right way that is known.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from repro.tasks.arithmetic import first_wrong, state_before
from repro.tasks.equations import wrong_equation
from repro.tasks.generated import from_problem
from repro.tasks.problem import Problem, solution_text
from repro.tasks.prompts import split_steps


def first_wrong_step(problem: Problem, text: str) -> int | None:
    """The number of the first wrong step, None if none is seen; one more than there are lines where the end lacks.

    Of other tasks than the built-in arithmetic: the first line up to whose end a wrong equation is seen.
    """
    if from_problem(problem):
        return first_wrong(problem.question, text)
    lines = split_steps(text)
    if wrong_equation(text) is None:
        return None
    return next((n for n in range(1, len(lines)) if wrong_equation("\n".join(lines[:n]))), len(lines))


def right_from(problem: Problem, text: str, number: int) -> str:
    """The solution from step ``number`` on, done rightly, behind the text's own steps before it.

    It is the reference where the state before the step can't be read, and in other tasks than the built-in arithmetic.
    """
    raw = from_problem(problem)
    state = raw and state_before(raw, text, number)
    if not raw or not state:
        return problem.solution
    rest = raw.attempt(random.Random(raw.question), scale=0.0, slip=0.0, start=state)  # in the reference's style
    return solution_text(rest.steps, rest.answer)


def corrected(problem: Problem, text: str, right: bool) -> str:
    """The text's steps before its first wrong one word by word, and what is right from there; a right text as it is.

    ``right``: its final answer is. Where that isn't so and no wrong step is seen, the reference.
    """
    number = first_wrong_step(problem, text)
    if number is None:
        return text if right else problem.solution
    return "\n".join([*split_steps(text)[: number - 1], right_from(problem, text, number)])


def steps_of_tokens(pieces: Sequence[str]) -> list[int]:
    """The number of the step that each token belongs to, from the tokens' texts; the end of a line belongs to it."""
    numbers, before = [], ""
    for piece in pieces:
        numbers.append(len(split_steps(f"{before}.")))
        before += piece
    return numbers
