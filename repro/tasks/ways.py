"""The ways of doing the next step of a built-in problem: right ones and those that tempt.

A state is what a line shows. ``moves(kind, state, pick)`` lists every way of the next step with its *temptation*, the
probability with which it is taken before persistence and style count, and the move: what the result is off by (0
without a slip) -> the next state; ``pick`` from 0 to 1 says how far from the left one works. Three sorts make the task:
strong temptations in few states, which greedy decoding falls for; weak ones everywhere, which only sampling does; and
some facts that are known wrong, each of which has to be learnt for itself, since care doesn't help. Design: ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from math import gcd, lcm
from zlib import crc32

Tokens = tuple  # of numbers, operators and parentheses
Move = Callable[[int], tuple]
Moves = dict[str, tuple[float, Move]]
HABIT, TEMPTING = 0.75, 0.42  # strong temptations: greedy decoding falls for the first, sampling for both
FACT, SORE = 0.92, 0.08  # how surely a wrong fact is taken for true; the share of facts that are known wrong


def _fact(right: Move, a: int, op: str, b: int) -> Moves:
    """The wrong result that ``a op b`` is remembered with, for SORE of all pairs always the same one."""
    drawn = crc32(f"{a}{op}{b}".encode()) % 1000
    if drawn >= 1000 * SORE or (op == "*" and 0 in (a, b)):
        return {}
    wrong = (1, -1, 2, -2, 10, -10)[drawn % 6]
    return {"fact": (FACT, lambda off: right(off + wrong))}


# --- expressions: chain, mixed, parentheses, product ----------------------------------------------------------------


def _show(tokens: Tokens) -> str:
    bare = [not i or tokens[i - 1] == "(" for i in range(len(tokens))]
    return "".join(
        f"({t})" if isinstance(t, int) and t < 0 and not first else str(t)
        for t, first in zip(tokens, bare, strict=True)
    )


def operators_in(tokens: Tokens, start: int = 0, end: int | None = None) -> list[int]:
    return [i for i in range(start, len(tokens) if end is None else end) if tokens[i] in ("+", "-", "*")]


def _groups(tokens: Tokens) -> list[tuple[int, int]]:
    """Innermost parentheses as [start, end) of their contents; the whole expression if there are none."""
    found, opened = [], None
    for i, token in enumerate(tokens):
        if token == "(":
            opened = i + 1
        elif token == ")" and opened is not None:
            found.append((opened, i))
            opened = None
    return found or [(0, len(tokens))]


def _tidy(tokens: list) -> Tokens:
    """Parentheses around one number go, and ``+-`` and ``--`` become one sign."""
    i = 1
    while i < len(tokens) - 1:
        if tokens[i - 1] == "(" and tokens[i + 1] == ")":
            tokens[i - 1 : i + 2] = [tokens[i]]
            i = max(1, i - 2)
        else:
            i += 1
    for i in range(1, len(tokens)):
        if isinstance(tokens[i], int) and tokens[i] < 0 and tokens[i - 1] in ("+", "-"):
            tokens[i - 1] = "-" if tokens[i - 1] == "+" else "+"
            tokens[i] = -tokens[i]
    return tuple(tokens)


def _calculate(a: int, op: str, b: int) -> int:
    return a + b if op == "+" else a - b if op == "-" else a * b


def _combine(tokens: Tokens, at: int, unsigned: bool = False, lost: bool = False, other: str = "") -> Move:
    """Do the operator at ``at``. ``unsigned``: the minus before its left number stands for the result as a whole (wrong
    grouping). ``lost``: the result's sign is lost. ``other``: another operator is done in its place."""
    op, a, b = other or tokens[at], tokens[at - 1], tokens[at + 1]
    sign = at >= 2 and tokens[at - 2] == "-" and op != "*" and not unsigned

    def move(off: int) -> Tokens:
        value = _calculate(-a if sign else a, op, b)
        value = (abs(value) if lost else value) + off
        head = list(tokens[: at - 1])
        if sign:
            head[-1] = "+"
        return _tidy([*head, value, *tokens[at + 2 :]])

    return move


def _redexes(tokens: Tokens) -> list[int]:
    """Operators between two numbers that may be done next."""
    found = []
    for start, end in _groups(tokens):
        operators = operators_in(tokens, start, end)
        for k, i in enumerate(operators):
            beside = [tokens[j] for j in operators[max(0, k - 1) : k] + operators[k + 1 : k + 2]]
            if tokens[i] == "*" or "*" not in beside:
                found.append(i)
    return found


def _at(pick: float, items: list):
    """The item at this share of the list."""
    return items[int(pick * len(items))]


def _split(tokens: Tokens, at: int) -> Moves:
    """37*6 in its places: right, with the zero forgotten, with the second place not multiplied, its sign not kept."""
    a, b = tokens[at - 1], tokens[at + 1]
    minus = at >= 2 and tokens[at - 2] == "-"
    tens, ones = a // 10 * 10, a % 10

    def parts(*middle) -> Move:
        return lambda off: _tidy(
            [
                *tokens[: at - 1],
                *(m if isinstance(m, str) else m + off for m in middle[:1]),
                *middle[1:],
                *tokens[at + 2 :],
            ]
        )

    joint = "-" if minus else "+"
    moves = {
        "right": (0.0, parts(tens, "*", b, joint, ones, "*", b)),
        "order": (0.05, parts(tens // 10, "*", b, joint, ones, "*", b)),
        "drop": (0.04, parts(tens, "*", b, joint, ones)),
    }
    if minus:
        moves["sign"] = (HABIT if b >= 4 else TEMPTING, parts(tens, "*", b, "+", ones, "*", b))
    return moves


def _grouping(tokens: Tokens, pick: float) -> tuple[float, Move] | None:
    """The wrong grouping that this state tempts to."""
    if "(" in tokens:
        start, end = _at(pick, _groups(tokens))
        before, after = tokens[start - 2] if start > 1 else "", tokens[end + 1] if end + 1 < len(tokens) else ""
        if before not in ("-", "*") and after != "*":
            return None
        bare = (*tokens[: start - 1], *tokens[start:end], *tokens[end + 1 :])
        weight = HABIT if tokens[start + 1] == "-" else TEMPTING
        return weight if before == "-" else 0.05, _combine(bare, _at(pick, _redexes(bare)))
    operators = operators_in(tokens)
    tempting = []
    for k, i in enumerate(operators):
        before = tokens[operators[k - 1]] if k else ""
        after = tokens[operators[k + 1]] if k + 1 < len(operators) else ""
        if tokens[i] != "*" and "*" in (before, after):
            weight = HABIT if tokens[i - 1] > tokens[i + 1] else TEMPTING
            tempting.append((weight if tokens[i] == "-" and after == "*" else 0.06, i))
        elif tokens[i] != "*" and before == "-":
            weight = HABIT if tokens[i - 1] + tokens[i + 1] == 10 else TEMPTING
            tempting.append((weight if tokens[i] == "+" else 0.03, i))
    if not tempting:
        return None
    weight, at = _at(pick, tempting)
    return weight, _combine(tokens, at, unsigned=True)


def _expression_moves(tokens: Tokens, pick: float) -> Moves:
    at = _at(pick, _redexes(tokens))
    a, op, b = tokens[at - 1 : at + 2]
    if op == "*" and 12 < a < 100 and a % 10 and b > 1:
        return _split(tokens, at)
    right = _combine(tokens, at)
    left = -a if at >= 2 and tokens[at - 2] == "-" and op != "*" else a
    moves = {"right": (0.0, right), **_fact(right, left, op, b)}
    signed = _calculate(left, op, b)
    if (grouped := _grouping(tokens, pick)) is not None:
        moves["order"] = grouped
    if signed < 0:
        moves["sign"] = (0.04, _combine(tokens, at, lost=True))
    elif op != "+":
        moves["sign"] = (0.02, _combine(tokens, at, other="+"))
    numbers = sum(isinstance(t, int) for t in tokens)
    if numbers >= 3 and isinstance(tokens[-1], int) and at + 1 < len(tokens) - 2 and tokens[-2] != "*":
        moves["drop"] = (0.02, _combine(tokens[:-2], at))
    return moves


# --- fractions: a tuple of (top, bottom), tops signed ---------------------------------------------------------------


def _show_fractions(terms: tuple) -> str:
    return "".join(f"{top:+d}/{bottom}" for top, bottom in terms).removeprefix("+")


def _fraction_moves(terms: tuple, pick: float) -> Moves:
    if len(terms) == 1:  # lowest terms
        return {"right": (0.0, lambda off: Fraction(*terms[0]) + off)}
    common = lcm(*(bottom for _, bottom in terms))
    unlike = [i for i, (_, bottom) in enumerate(terms) if bottom != common]
    at = _at(pick, list(range(len(terms) - 1)))
    (a, p), (b, q) = terms[at : at + 2]

    def put(place: int, width: int, top: int, bottom: int) -> Move:
        return lambda off: (*terms[:place], (top + off, bottom), *terms[place + width :])

    if unlike:
        i = _at(pick, unlike)
        top, bottom = terms[i]
        right = put(i, 1, top * (common // bottom), common)
        return {
            "right": (0.0, right),
            **_fact(right, top, "*", common // bottom),
            "order": (
                0.0 if p == q else HABIT if gcd(p, q) == 1 else TEMPTING if p % q and q % p else 0.05,
                put(at, 2, a + b, p + q),
            ),
            "drop": (0.06, put(i, 1, top, common)),
        }
    right = put(at, 2, a + b, p)
    moves = {"right": (0.0, right), "order": (0.06, put(at, 2, a + b, p + q)), **_fact(right, a, "+", b)}
    if a + b < 0:
        moves["sign"] = (0.08, put(at, 2, -(a + b), p))
    elif b < 0:
        moves["sign"] = (0.04, put(at, 2, a - b, p))
    return moves


# --- equations: two sides of terms (coefficient, is it x's) ---------------------------------------------------------


def _show_side(terms: tuple) -> str:
    text = ""
    for c, x in terms:
        body = ("x" if abs(c) == 1 else f"{abs(c)}*x") if x else str(abs(c))
        text += ("-" if c < 0 else "+" if text else "") + body
    return text or "0"


def _show_equation(state: tuple) -> str:
    return "=".join(map(_show_side, state))


def _tidy_sides(sides: list[list]) -> tuple:
    return tuple(tuple(t for t in side if t[0]) for side in sides)


def _collect(state: tuple, side: int, x: bool) -> Moves:
    places = [i for i, t in enumerate(state[side]) if t[1] == x][:2]
    a, b = (state[side][i][0] for i in places)

    def put(value: int) -> Move:
        def move(off: int) -> tuple:
            sides = [list(state[0]), list(state[1])]
            sides[side][places[0]] = (value + off, x)
            del sides[side][places[1]]
            return _tidy_sides(sides)

        return move

    moves = {"right": (0.0, put(a + b)), "drop": (0.02, put(a)), **_fact(put(a + b), a, "+", b)}
    if b < 0:
        moves["sign"] = (0.06, put(a - b))
    elif a < 0:
        moves["sign"] = (0.06, put(-(-a + b)))
    return moves


def _carry(state: tuple, side: int, x: bool) -> Moves:
    """A term changes sides and joins the like one there."""
    at = next(i for i, t in enumerate(state[side]) if t[1] == x)
    c, other = state[side][at][0], 1 - side
    place = next((i for i, t in enumerate(state[other]) if t[1] == x), None)
    there = 0 if place is None else state[other][place][0]

    def put(value: int) -> Move:
        def move(off: int) -> tuple:
            sides = [list(state[0]), list(state[1])]
            del sides[side][at]
            if place is None:
                sides[other].insert(0, (value + off, x))
            else:
                sides[other][place] = (value + off, x)
            return _tidy_sides(sides)

        return move

    return {
        "right": (0.0, put(there - c)),
        "order": ((HABIT if c < -4 else TEMPTING) if c < 0 and not x else 0.05, put(there + c)),
        "drop": (0.02, put(there)),
        **(_fact(put(there - c), there, "-", c) if there else {}),
    }


def _equation_moves(state: tuple, pick: float) -> Moves:
    like = [(side, x) for side in (0, 1) for x in (True, False) if sum(t[1] == x for t in state[side]) > 1]
    away = [(1, True)] * any(t[1] for t in state[1]) + [(0, False)] * any(not t[1] for t in state[0])
    if like:
        return _collect(state, *_at(pick, like))
    if away:
        return _carry(state, *_at(pick, away))
    a, b = sum(c for c, _ in state[0]), sum(c for c, _ in state[1])
    root = Fraction(b, a) if a else Fraction(0)
    moves = {"right": (0.0, lambda off: root + off), "order": (0.03, lambda off: Fraction(b - a) + off)}
    if root < 0:
        moves["sign"] = (0.05, lambda off: -root + off)
    return moves


# --- states as text -------------------------------------------------------------------------------------------------


def moves(kind: str, state: tuple, pick: float) -> Moves:
    """Every way of the next step: its temptation, and what it leads to."""
    return {"fraction": _fraction_moves, "equation": _equation_moves}.get(kind, _expression_moves)(state, pick)


def show(kind: str, state: tuple | Fraction) -> str:
    """The line that a state is written as."""
    if isinstance(state, Fraction):
        return str(state)
    return {"fraction": _show_fractions, "equation": _show_equation}.get(kind, _show)(state)


def read(kind: str, line: str) -> tuple | None:
    """The state that a line shows, None if it shows none."""
    if kind == "fraction":
        state = tuple((int(a), int(b)) for a, b in re.findall(r"([+-]?\d{1,6})/(\d{1,6})", line))
        state = state if all(b for _, b in state) else ()
    elif kind == "equation":
        sides = [re.findall(r"([+-]?)(?:(\d{1,6})(\*x)?|(x))", side) for side in line.split("=")]
        state = tuple(tuple((int(f"{s}{n or 1}"), bool(t or x)) for s, n, t, x in side if n != "0") for side in sides)
        state = state if len(state) == 2 else ()
    else:
        found = re.findall(r"\((-\d{1,6})\)|((?:^|(?<=\())-\d{1,6}|\d{1,6})|([-+*()])", line)
        state = tuple(int(a or b) if a or b else c for a, b, c in found)
    return state if state and show(kind, state) == line else None


def over(kind: str, state: tuple | Fraction) -> bool:
    """Is only the answer left?"""
    if isinstance(state, Fraction):
        return True
    if kind == "fraction":
        return len(state) == 1 and show(kind, state) == str(Fraction(*state[0]))
    if kind == "equation":
        return not any(x for side in state for _, x in side)
    return len(state) == 1
