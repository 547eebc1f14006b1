"""Countdown with three numbers: reach a target with each number used exactly once. Design: ours."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import permutations, product

SHAPES = ("{a}{o}{b}{p}{c}", "({a}{o}{b}){p}{c}", "{a}{o}({b}{p}{c})")


@dataclass(frozen=True)
class Countdown:
    """Three numbers, the target, and an expression of them that reaches it."""

    numbers: tuple[int, int, int]
    target: int
    expression: str

    @property
    def question(self) -> str:
        listed = ", ".join(map(str, self.numbers))
        return (
            f"Make {self.target} from the numbers {listed} with +, -, * and parentheses. "
            "Use each number exactly once. The final answer is the expression."
        )


def value(shape: str, numbers: tuple[int, int, int], operators: tuple[str, str]) -> int:
    """What an expression of SHAPES is worth, by the rules of precedence."""
    (a, b, c), (o, p) = numbers, operators

    def do(x: int, operator: str, y: int) -> int:
        return x + y if operator == "+" else x - y if operator == "-" else x * y

    right_first = shape == SHAPES[2] or (shape == SHAPES[0] and p == "*" and o != "*")
    return do(a, o, do(b, p, c)) if right_first else do(do(a, o, b), p, c)


def draw_try(numbers: tuple[int, int, int], rng: random.Random) -> tuple[str, int]:
    """A random expression that uses each number once, and its value."""
    order = tuple(rng.sample(numbers, 3))
    shape, operators = rng.choice(SHAPES), (rng.choice("+-*"), rng.choice("+-*"))
    return write(shape, order, operators), value(shape, order, operators)


def write(shape: str, numbers: tuple[int, int, int], operators: tuple[str, str]) -> str:
    return shape.format(a=numbers[0], b=numbers[1], c=numbers[2], o=operators[0], p=operators[1])


def solutions(numbers: tuple[int, int, int], target: int) -> list[str]:
    """Every expression of SHAPES that reaches the target."""
    return [
        write(shape, order, operators)
        for order in permutations(numbers)
        for shape in SHAPES
        for operators in product("+-*", repeat=2)
        if value(shape, order, operators) == target
    ]


def make_countdown(rng: random.Random) -> Countdown:
    """Draw numbers from 1 to 12 and a target from 1 to 99 that can be reached."""
    while True:
        numbers = (rng.randint(1, 12), rng.randint(1, 12), rng.randint(1, 12))
        expression, target = draw_try(numbers, rng)
        if 1 <= target <= 99:
            return Countdown(numbers, target, expression)
