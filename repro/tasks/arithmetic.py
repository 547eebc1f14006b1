"""The built-in task, second edition: six kinds of exact arithmetic in six levels, solved line by line.

A solution rewrites the whole problem, one step a line, until the answer is left for the box; every line has an exact
value, so the first wrong step of *any* text is known (``first_wrong``). The way of each step is drawn anew: right in
one of three *styles* (from the left, from the right, in free order), or wrong in one of several *ways* that the
state tempts to (``repro.tasks.ways``), and each result may slip. A wrong way that was taken once is likelier
afterwards. So errors come late and in many sorts.
Levels 1 to 4 are the standard task, 5 and 6 stand apart. Design: ours.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from repro.tasks import ways
from repro.tasks.draws import DRAWS
from repro.tasks.linear import value_of
from repro.tasks.problem import split_of
from repro.tasks.prompts import split_steps

KINDS = ("chain", "mixed", "parentheses", "product", "fraction", "equation")
LEVELS = (1, 2, 3, 4)
FAR = (5, 6)
STYLES = {"left": 0.3, "right": 0.25, "free": 0.45}  # how often a solution is written so
PERSISTENCE = 0.6  # probability of a wrong way where it was the last wrong one in this solution
SLIP = 0.03  # probability that one result is wrong by accident
CARELESS = {"left": 0.9, "right": 1.15, "free": 1.0}  # how much a style is tempted, in every kind
PLACES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.999)  # from left to right
LARGE = re.compile(r"\d{4}")  # an attempt that comes to such a number, or to so many steps, is drawn again
LONGEST = 16
TRIES = 24  # attempts by which a coincidence is looked for


@dataclass(frozen=True)
class Attempt:
    """One derivation of something worth ``truth``. ``ways`` says how each line was done; ``states`` are what the lines
    show."""

    truth: Fraction
    steps: tuple[str, ...]
    answer: str
    style: str
    ways: tuple[str, ...]
    states: tuple

    @cached_property
    def right(self) -> bool:
        return value_of(self.answer) == self.truth

    @cached_property
    def first_error(self) -> int | None:
        """The 1-based number of the first wrong line (the box is the last line), None if all are right."""
        lines = enumerate((*self.steps, self.answer), 1)
        return next((number for number, line in lines if value_of(line) != self.truth), None)


@dataclass(frozen=True)
class ArithmeticProblem:
    """A question with the state that its derivations start from."""

    question: str
    kind: str
    level: int
    data: tuple

    @cached_property
    def truth(self) -> Fraction:
        return value_of(ways.show(self.kind, self.data))

    def chances(self, moves: ways.Moves, style: str, last: str, scale: float) -> dict[str, float]:
        """Probability of each way; the last wrong one of the solution persists."""
        factor = scale * CARELESS[style]
        chances = {
            way: temptation * (factor if way != "fact" else scale > 0)  # care doesn't help who knows it wrong
            for way, (temptation, _) in moves.items()
            if way != "right"
        }
        if last in chances and scale:
            chances = {w: p * (1 - PERSISTENCE) + PERSISTENCE * (w == last) for w, p in chances.items()}
        return {"right": max(0.0, 1 - sum(chances.values())), **chances}

    def attempt(
        self, rng: random.Random, style: str = "", scale: float = 1.0, slip: float = SLIP, start: tuple | None = None
    ) -> Attempt:
        """Solve, from the state ``start`` on; ``scale`` 0 and ``slip`` 0 never err."""
        style = style or rng.choices(list(STYLES), list(STYLES.values()))[0]
        state, last, steps, taken, states = start or self.data, "", [], [], []
        while True:
            pick = PLACES[0] if style == "left" else PLACES[-1] if style == "right" else rng.random()
            moves = ways.moves(self.kind, state, pick)
            chances = self.chances(moves, style, last, scale)
            way = rng.choices(list(chances), list(chances.values()))[0]
            off = rng.choice((-1, 1)) * rng.choice((1, 1, 2, 10)) if slip and rng.random() < slip else 0
            state = moves[way][1](off)
            last = way if way != "right" else last
            way = "slip" if off and way == "right" else way
            taken.append(way)
            if ways.over(self.kind, state):
                break
            line = ways.show(self.kind, state)
            if LARGE.search(line) or len(steps) > LONGEST:
                return self.attempt(rng, style, scale, slip, start)
            steps.append(line)
            states.append(state)
        return Attempt(self.truth, tuple(steps), self.final(state), style, tuple(taken), tuple(states))

    def next_lines(self, state: tuple) -> dict[str, str]:
        """Every line that can follow a state without a slip, and the way it was done; an answer in its box."""
        found: dict[str, str] = {}
        for pick in PLACES:
            for way, (_, move) in ways.moves(self.kind, state, pick).items():
                after = move(0)
                over = ways.over(self.kind, after)
                line = f"\\boxed{{{self.final(after)}}}" if over else ways.show(self.kind, after)
                found[line] = "right" if way == "right" else found.get(line, way)
        return found

    def final(self, state: tuple) -> str:
        """The answer of a state that is over."""
        if self.kind == "equation" and not isinstance(state, Fraction):
            return "0"
        return ways.show(self.kind, state)

    @cached_property
    def reference(self) -> Attempt:
        """A right derivation; its style is one of the three, the same for the same question."""
        return self.attempt(random.Random(self.question), scale=0.0, slip=0.0)


def _draw(kind: str, level: int, rng: random.Random) -> ArithmeticProblem:
    data = DRAWS[kind](level, rng)
    verb = "Solve" if kind == "equation" else "Compute"
    return ArithmeticProblem(f"{verb} {ways.show(kind, data)}.", kind, level, data)


def coincides(problem: ArithmeticProblem) -> bool:
    """Does one of some attempts reach the right answer through a wrong step?"""
    rng = random.Random(problem.question)
    attempts = (problem.attempt(rng) for _ in range(TRIES))
    return any(a.right and a.first_error is not None for a in attempts)


def make_problem(kind: str, level: int, rng: random.Random, split: str = "") -> ArithmeticProblem:
    """Draw one problem with a small answer that isn't 0, of ``split`` if one is named."""
    while True:
        problem = _draw(kind, level, rng)
        if split and split_of(problem.question) != split:
            continue
        small = abs(problem.truth) < (400 if kind == "product" else 100) and problem.truth.denominator <= 40
        if small and problem.truth != 0:
            return problem


def draw_problem(
    kinds: Sequence[str], levels: Sequence[int], rng: random.Random, split: str = "", coincidences: bool = False
) -> ArithmeticProblem:
    """Draw one of these kinds and levels. No wrong way that was tried ends at the right answer; with ``coincidences``
    some do, which not every kind and level has."""
    while True:
        problem = make_problem(rng.choice(kinds), rng.choice(levels), rng, split)
        if coincides(problem) == coincidences:
            return problem


def first_wrong(question: str, text: str) -> int | None:
    """The 1-based number of the first line of a solution that isn't worth what the question is; None if all are.

    The box counts as a line; an unreadable line is wrong, and so is the line after the last one where there is no box.
    """
    truth = value_of(question.partition(" ")[2].rstrip("."))
    lines = split_steps(text)
    for number, line in enumerate(lines, 1):
        boxed = re.fullmatch(r"\\boxed\{(.*)\}", line.strip())
        if value_of(boxed[1] if boxed else line) != truth:
            return number
        if boxed:
            return None
    return len(lines) + 1


def state_before(raw: ArithmeticProblem, text: str, number: int) -> tuple | None:
    """What line ``number`` of a solution starts from; None behind an answer, or a line that no derivation has."""
    state = raw.data if number == 1 else ways.read(raw.kind, split_steps(text)[number - 2])
    if state is None or ways.over(raw.kind, state):
        return None
    try:
        raw.next_lines(state)
    except (IndexError, TypeError, ValueError):  # such as "(3)+4", with nothing to do in its group, or "3+-4"
        return None
    return state


def following(raw: ArithmeticProblem, text: str, number: int) -> dict[str, str]:
    """What line ``number`` of a solution could be, and each line's way; nothing where ``state_before`` knows none."""
    state = state_before(raw, text, number)
    return raw.next_lines(state) if state else {}


def way_of(raw: ArithmeticProblem, text: str, number: int) -> str:
    """Which wrong way line ``number`` is; slip: none that is known."""
    lines = split_steps(text)
    return following(raw, text, number).get(lines[number - 1].strip(), "slip") if number <= len(lines) else "slip"


def right_lines(raw: ArithmeticProblem, text: str, number: int) -> list[str]:
    """What line ``number`` could rightly be, the left style first."""
    found = [line for line, way in following(raw, text, number).items() if way == "right"]
    return found or [f"\\boxed{{{raw.reference.answer}}}"]
