"""The built-in task: exact arithmetic in six kinds and four levels, with step-by-step solutions.

Every problem has one reference derivation and one *habit*: a systematic, wrong way of solving its kind (sums from right
to left, products before precedence is looked at, parentheses ignored, ...). A problem is kept only if the habit leads
to another answer. Derivations are executed step by step, so that a slip (one wrong result) carries on into the steps
after it, and the first wrong step of every attempt is known exactly. Design: ours.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm

KINDS = ("chain", "product", "mixed", "parentheses", "fraction", "equation")
LEVELS = (1, 2, 3, 4)
Tokens = list["int | str"]


@dataclass(frozen=True)
class Attempt:
    """One derivation. ``first_error`` is the 1-based number of the first wrong step, None if the answer is right."""

    steps: tuple[str, ...]
    answer: str
    first_error: int | None


@dataclass
class Work:
    """Writes the steps of one derivation; each result slips with probability ``slip``."""

    rng: random.Random
    slip: float = 0.0
    steps: list[str] = field(default_factory=list)
    slips: list[int] = field(default_factory=list)

    def slipped(self, value: int) -> int:
        if self.slip and self.rng.random() < self.slip:
            self.slips.append(len(self.steps) + 1)
            digit = 10 ** self.rng.randrange(max(1, len(str(abs(value)))))
            return value + self.rng.choice((-1, 1)) * digit
        return value

    def step(self, left: str, value: int) -> int:
        value = self.slipped(value)
        self.steps.append(f"{left}={value}")
        return value


def _number(value: int, first: bool) -> str:
    return f"({value})" if value < 0 and not first else str(value)


def _binary(work: Work, a: int, op: str, b: int) -> int:
    value = a + b if op == "+" else a - b if op == "-" else a * b
    return work.step(f"{_number(a, True)}{op}{_number(b, False)}", value)


def _collapse(work: Work, tokens: Tokens, at: int) -> None:
    """Replace ``tokens[at:at+3]`` (number, operator, number) by its result."""
    tokens[at : at + 3] = [_binary(work, tokens[at], tokens[at + 1], tokens[at + 2])]


def _left_to_right(work: Work, tokens: Tokens) -> int:
    while len(tokens) > 1:
        _collapse(work, tokens, 0)
    return tokens[0]


def _right_to_left(work: Work, tokens: Tokens) -> int:
    while len(tokens) > 1:
        _collapse(work, tokens, len(tokens) - 3)
    return tokens[0]


def _by_precedence(work: Work, tokens: Tokens) -> int:
    while "*" in tokens:
        _collapse(work, tokens, tokens.index("*") - 1)
    return _left_to_right(work, tokens)


def _with_parentheses(work: Work, tokens: Tokens) -> int:
    while ")" in tokens:
        close = tokens.index(")")
        start = max(i for i in range(close) if tokens[i] == "(")
        tokens[start : close + 1] = [_by_precedence(work, tokens[start + 1 : close])]
    return _by_precedence(work, tokens)


def _without_parentheses(work: Work, tokens: Tokens) -> int:
    return _by_precedence(work, [t for t in tokens if t not in ("(", ")")])


def _text(tokens: Tokens) -> str:
    return "".join(str(t) for t in tokens)


# --- one function per kind and derivation: data, habit -> answer -------------------------------------------------


def _solve_product(work: Work, factors: list[int], habit: bool) -> str:
    """Split the first factor into its places; the habit multiplies the bare digits and forgets the zeros."""
    value = factors[0]
    for factor in factors[1:]:
        digits = str(abs(value))
        places = [10 ** (len(digits) - 1 - i) for i in range(len(digits))]
        parts = [
            _binary(work, int(d) * (1 if habit else place), "*", factor)
            for d, place in zip(digits, places, strict=True)
            if d != "0"
        ]
        value = parts[0] if parts else 0
        for part in parts[1:]:
            value = _binary(work, value, "+", part)
    return str(value)


def _fraction(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"


def _reduce(work: Work, top: int, bottom: int) -> str:
    """The last step of a fraction: write it in lowest terms, if it isn't yet."""
    lowest = _fraction(Fraction(top, bottom))
    if lowest != f"{top}/{bottom}":
        work.steps.append(f"{top}/{bottom}={lowest}")
    return lowest


def _solve_fraction(work: Work, terms: list[tuple[str, int, int]], habit: bool) -> str:
    """Common denominator, then the numerators; the habit adds numerators and denominators as they stand."""
    signs = [sign for sign, _, _ in terms]
    if habit:
        tops, bottoms = [t for _, t, _ in terms], [b for _, _, b in terms]
        bottom = sum(bottoms)
    else:
        bottom = lcm(*(b for _, _, b in terms))
        tops = []
        for _, a, b in terms:
            top = a
            if b != bottom:
                top = work.slipped(a * (bottom // b))
                work.steps.append(f"{a}/{b}={top}/{bottom}")
            tops.append(top)
        bottoms = [bottom] * len(terms)
    shown = "".join(f"{s}{t}/{b}" for s, t, b in zip(signs, tops, bottoms, strict=True)).removeprefix("+")
    total = work.slipped(sum(t if s == "+" else -t for s, t in zip(signs, tops, strict=True)))
    work.steps.append(f"{shown}={total}/{bottom}")
    return _reduce(work, total, bottom)


def _solve_equation(work: Work, data: tuple[int, int, int, int, bool], habit: bool) -> str:
    """a*x+b=d*x+c, or a*(x+b)=c. The habit keeps the sign of a term that changes sides, or doesn't distribute."""
    a, b, c, d, distribute = data
    if distribute and not habit:
        b = _binary(work, a, "*", b)
    flip = habit and not distribute
    right = _binary(work, c, "+" if (b < 0) != flip else "-", abs(b))
    left = _binary(work, a, "+" if flip else "-", d) if d else a
    if left == 1:
        return str(right)
    answer = _fraction(Fraction(right, left)) if left else "0"
    work.steps.append(f"{right}/{left}={answer}")
    return answer


def _token_solver(right: Callable, wrong: Callable) -> Callable:
    return lambda work, tokens, habit: str((wrong if habit else right)(work, list(tokens)))


SOLVERS: dict[str, Callable] = {
    "chain": _token_solver(_left_to_right, _right_to_left),
    "product": _solve_product,
    "mixed": _token_solver(_by_precedence, _left_to_right),
    "parentheses": _token_solver(_with_parentheses, _without_parentheses),
    "fraction": _solve_fraction,
    "equation": _solve_equation,
}


# --- one function per kind: level, rng -> question, data -----------------------------------------------------------


def _make_chain(level: int, rng: random.Random) -> tuple[str, Tokens]:
    tokens: Tokens = [rng.randint(1, 20)]
    for _ in range(level + 1):
        tokens += [rng.choice("+-"), rng.randint(1, 20)]
    return f"Compute {_text(tokens)}.", tokens


def _make_product(level: int, rng: random.Random) -> tuple[str, list[int]]:
    first = rng.randint(100, 499) if level == 3 else rng.randint(12, 99)
    factors = [first, rng.randint(2, 5 if level in (1, 3) else 9)] + [rng.randint(2, 4)] * (level == 4)
    return f"Compute {_text(_interleave(factors, '*'))}.", factors


def _interleave(values: list[int], op: str) -> Tokens:
    return [token for value in values for token in (op, value)][1:]


def _make_mixed(level: int, rng: random.Random) -> tuple[str, Tokens]:
    size = level + 2
    while True:
        ops = [rng.choice("+-*") for _ in range(size - 1)]
        products = ops.count("*")
        if 1 <= products <= 1 + level // 3 and "**" not in "".join(ops) and ops[0] != "*":
            break
    tokens: Tokens = []
    for i in range(size):
        factor = (i > 0 and ops[i - 1] == "*") or (i < size - 1 and ops[i] == "*")
        tokens += [rng.randint(2, 9) if factor else rng.randint(1, 20)] + ([ops[i]] if i < size - 1 else [])
    return f"Compute {_text(tokens)}.", tokens


PATTERNS = {  # small letters: 2..6, capitals: 1..15, o: + or -
    1: ("(AoB)*c", "A-(BoC)", "a*(BoC)"),
    2: ("(AoB)*coD", "A-(BoC)oD", "(AoB)*(coD)", "Ao(BoC)*d"),
    3: ("A-(BoC)*doE", "(AoB)*c-(DoE)", "a*(Bo(CoD))", "A-(Bo(CoD))"),
    4: ("A-(Bo(CoD)*e)oF", "(AoB)*(coD)-(EoF)", "a*(Bo(CoD))-(EoF)", "A-(BoC)-(DoE)*f"),
}


def _make_parentheses(level: int, rng: random.Random) -> tuple[str, Tokens]:
    tokens: Tokens = []
    for c in rng.choice(PATTERNS[level]):
        if c == "o":
            tokens.append(rng.choice("+-"))
        else:
            tokens.append(rng.randint(1, 15) if c.isupper() else rng.randint(2, 6) if c.islower() else c)
    return f"Compute {_text(tokens)}.", tokens


def _make_fraction(level: int, rng: random.Random) -> tuple[str, list[tuple[str, int, int]]]:
    if level == 1:
        bottoms = [rng.randint(3, 15)] * 2
    elif level == 2:
        small = rng.randint(2, 7)
        bottoms = [small, small * rng.randint(2, 3)]
    elif level == 3:
        bottoms = [rng.randint(2, 7), rng.randint(2, 7)]
    else:
        bottoms = [rng.choice((2, 3, 4, 6)) for _ in range(3)]
    rng.shuffle(bottoms)
    terms = [("+" if i == 0 else rng.choice("+-"), rng.randint(1, max(3, b - 1)), b) for i, b in enumerate(bottoms)]
    return f"Compute {''.join(f'{s}{a}/{b}' for s, a, b in terms).removeprefix('+')}.", terms


def _make_equation(level: int, rng: random.Random) -> tuple[str, tuple[int, int, int, int, bool]]:
    x, b = rng.randint(2, 12), rng.choice((-1, 1)) * rng.randint(1, 20)
    a = 1 if level == 1 else rng.randint(2, 6)
    if level == 4:
        b = rng.choice((-1, 1)) * rng.randint(1, 9)
        c = a * (x + b)
        return f"Solve {a}*(x{b:+d})={c}.", (a, b, c, 0, True)
    d = rng.randint(1, a - 1) if level == 3 else 0
    c = a * x + b - d * x
    left = "x" if a == 1 else f"{a}*x"
    right = f"{'x' if d == 1 else f'{d}*x'}{c:+d}" if d else str(c)
    return f"Solve {left}{b:+d}={right}.", (a, b, c, d, False)


MAKERS: dict[str, Callable] = {
    "chain": _make_chain,
    "product": _make_product,
    "mixed": _make_mixed,
    "parentheses": _make_parentheses,
    "fraction": _make_fraction,
    "equation": _make_equation,
}


@dataclass(frozen=True)
class ArithmeticProblem:
    """A question with the data that its derivations are executed from."""

    question: str
    kind: str
    level: int
    data: tuple

    def attempt(self, rng: random.Random, habit: bool = False, slip: float = 0.0) -> Attempt:
        """Solve by the right method or by the habit, with slips of probability ``slip`` per result."""
        reference = self.reference
        work = Work(rng, slip)
        answer = SOLVERS[self.kind](work, self.data, habit)
        if answer == reference.answer:
            return Attempt(tuple(work.steps), answer, None)
        same = [s == r for s, r in zip(work.steps, reference.steps, strict=False)]
        differs = same.index(False) + 1 if False in same else min(len(work.steps), len(reference.steps))
        return Attempt(tuple(work.steps), answer, differs)

    @property
    def reference(self) -> Attempt:
        """The right derivation without slips."""
        work = Work(random.Random(0))
        answer = SOLVERS[self.kind](work, self.data, False)
        return Attempt(tuple(work.steps), answer, None)


def make_problem(kind: str, level: int, rng: random.Random) -> ArithmeticProblem:
    """Draw one problem whose habit leads to a wrong answer and whose right answer stays below 10,000."""
    while True:
        question, data = MAKERS[kind](level, rng)
        problem = ArithmeticProblem(question, kind, level, tuple(data))
        right = problem.reference
        wrong = problem.attempt(rng, habit=True)
        if wrong.answer != right.answer and len(right.answer) <= 5 and len(right.steps) <= 8 and right.answer != "0":
            return problem
