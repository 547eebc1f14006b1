"""What the built-in problems are drawn from: one function per kind, level (1 to 6), rng -> state."""

from __future__ import annotations

import random
from functools import partial
from itertools import pairwise
from math import lcm

from repro.tasks.ways import Tokens, operators_in


def _interleave(numbers: list[int], operators: list[str]) -> Tokens:
    return tuple(t for pair in zip(["", *operators], numbers, strict=True) for t in pair)[1:]


def _draw_flat(kind: str, level: int, rng: random.Random) -> Tokens:
    size = (3, 4, 5, 6, 8, 10)[level - 1]
    while True:
        operators = [rng.choice("+-*" if kind == "mixed" else "+--") for _ in range(size)]
        if kind == "chain" or (1 <= operators.count("*") <= 1 + size // 3 and ("*", "*") not in pairwise(operators)):
            break
    beside = [*zip(["", *operators], [*operators, ""], strict=True)]
    numbers = [rng.randint(2, 5) if "*" in pair else rng.randint(1, 9) for pair in beside]
    return _interleave(numbers, operators)


def _draw_nested(level: int, rng: random.Random) -> Tokens:
    """Terms of which some are groups, some groups are multiplied, some groups hold a group."""
    size = (3, 4, 5, 6, 8, 10)[level - 1]

    def group(operators: int, depth: int) -> list:
        tokens: list = []
        while operators >= 0:
            inner = rng.choice((1, 1, 2)) if operators >= 2 and depth < 2 and rng.random() < 0.65 else 0
            if inner:
                inner = min(inner, operators - 1)
                factor = operators - inner >= 2 and rng.random() < 0.4
                term = ["(", *group(inner, depth + 1), ")"]
                if factor:
                    term = [rng.randint(2, 4), "*", *term] if rng.random() < 0.5 else [*term, "*", rng.randint(2, 4)]
                operators -= inner + factor
            else:
                term = [rng.randint(1, 9)]
            tokens += [rng.choice("+--")] * bool(tokens) + term
            operators -= 1
        return tokens

    while True:
        tokens = tuple(group(size, 0))
        if len(operators_in(tokens)) == size and any(
            (b == "(" and a in ("-", "*")) or (a == ")" and b == "*") for a, b in pairwise(tokens)
        ):
            return tokens


def _draw_product(level: int, rng: random.Random) -> Tokens:
    """Products of a two-digit number, sums of them, and more terms."""
    big, more = ((1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 3))[level - 1]
    terms: list[list] = [[rng.choice([n for n in range(13, 40) if n % 10]), "*", rng.randint(2, 5)] for _ in range(big)]
    terms += [[rng.randint(1, 9)] for _ in range(more)]
    rng.shuffle(terms)
    return tuple(t for i, term in enumerate(terms) for t in ([rng.choice("+-")] if i else []) + term)


def _draw_fraction(level: int, rng: random.Random) -> tuple:
    count = (2, 3, 3, 3, 4, 5)[level - 1]
    bottoms = (2, 3, 4, 6) if level < 3 else (2, 3, 4, 6, 12)
    while True:
        chosen = [rng.choice(bottoms) for _ in range(count)]
        if len(set(chosen)) > 1 and lcm(*chosen) <= 12:
            break
    return tuple(
        ((rng.choice((-1, 1)) if i else 1) * rng.randint(1, max(2, bottom - 1)), bottom)
        for i, bottom in enumerate(chosen)
    )


def _draw_equation(level: int, rng: random.Random) -> tuple:
    """Terms on both sides; the root is a whole number."""
    xs, ones = ((1, 2), (2, 1), (2, 2), (3, 2), (3, 4), (4, 5))[level - 1]
    while True:
        left = [(rng.randint(3, 6), True)]
        right = []
        for is_x, count in ((True, xs - 1), (False, ones)):
            for i in range(count):
                side = right if (is_x and i == 0) or rng.random() < 0.3 else left
                side.append((rng.choice((-1, 1)) * rng.randint(1, 3 if is_x else 9), is_x))
        a = sum(c for c, x in left if x) - sum(c for c, x in right if x)
        rest = a * rng.randint(-6, 9) - sum(c for c, x in right if not x) + sum(c for c, x in left if not x)
        if a > 1 and rest and abs(rest) < 60 and any(not x for _, x in left):
            head = left[:1]
            tail = left[1:]
            rng.shuffle(tail)
            return tuple(head + tail), (*right, (rest, False))


DRAWS = {
    "chain": partial(_draw_flat, "chain"),
    "mixed": partial(_draw_flat, "mixed"),
    "parentheses": _draw_nested,
    "product": _draw_product,
    "fraction": _draw_fraction,
    "equation": _draw_equation,
}
