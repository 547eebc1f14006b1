"""The exact value of a line: an expression, or an equation in x. Nothing is executed."""

from __future__ import annotations

import re
from fractions import Fraction


class _Reader:
    """Recursive descent over ``+-*/()``, whole numbers and x: values are (coefficient of x, constant)."""

    def __init__(self, text: str):
        self.tokens = re.findall(r"\d+|[-+*/()x]", text)
        if "".join(self.tokens) != text or len(self.tokens) > 200:
            raise ValueError("unreadable")
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1] if self.at <= len(self.tokens) else ""

    def all(self) -> tuple[Fraction, Fraction]:
        value = self.sum()
        if self.peek():
            raise ValueError("unreadable")
        return value

    def sum(self) -> tuple[Fraction, Fraction]:
        minus = self.peek() == "-" and bool(self.take())
        a, b = self.product()
        a, b = (-a, -b) if minus else (a, b)
        while self.peek() and self.peek() in "+-":
            sign = 1 if self.take() == "+" else -1
            c, d = self.product()
            a, b = a + sign * c, b + sign * d
        return a, b

    def product(self) -> tuple[Fraction, Fraction]:
        a, b = self.atom()
        while self.peek() and self.peek() in "*/":
            op = self.take()
            c, d = self.atom()
            if op == "/" and not c and d:
                a, b = a / d, b / d
            elif op == "*" and not (a and c):
                a, b = a * d + c * b, b * d
            else:
                raise ValueError("not linear")
        return a, b

    def atom(self) -> tuple[Fraction, Fraction]:
        token = self.take()
        if token == "(":
            value = self.sum()
            if self.take() != ")":
                raise ValueError("unreadable")
            return value
        if token == "x":
            return Fraction(1), Fraction(0)
        return Fraction(0), Fraction(int(token))


def value_of(line: str) -> Fraction | None:
    """The value of an expression or the root of an equation, exactly; None if there is none. Executes nothing."""
    try:
        sides = [_Reader(side).all() for side in line.strip().split("=")]
    except (ValueError, RecursionError):
        return None
    if len(sides) == 1:
        return None if sides[0][0] else sides[0][1]
    if len(sides) != 2 or sides[0][0] == sides[1][0]:
        return None
    (a, b), (c, d) = sides
    return (d - b) / (a - c)
