"""The forms that a readable answer can have: plain data. `reading.py` makes them, `compare.py` uses them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Number:
    """An exact rational number; `unit` is a canonical unit, "%" for per cent, or None."""

    value: Fraction
    unit: str | None = None


@dataclass(frozen=True)
class Symbolic:
    """A checked LaTeX expression that only a worker may evaluate; `unit` as in `Number`."""

    latex: str
    unit: str | None = None


@dataclass(frozen=True)
class Text:
    """Words, a choice letter, or a constant that is compared by name (infinity, the empty set)."""

    words: str


@dataclass(frozen=True)
class BaseNumber:
    """Digits with a base as subscript. Two of them are equal if digits and base are: the base is part of the task."""

    digits: str
    base: int


@dataclass(frozen=True)
class Sequence:
    """Ordered items in round or square brackets: a point, a tuple, an interval."""

    opening: str
    closing: str
    items: tuple[Form, ...]


@dataclass(frozen=True)
class Collection:
    """Unordered items: a list without brackets, a set in braces, the values of ±."""

    items: tuple[Form, ...]


@dataclass(frozen=True)
class SetOperation:
    """A union, intersection (unordered) or difference (ordered) of sets; `operator` is the LaTeX command."""

    operator: str
    items: tuple[Form, ...]


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple[Form, ...], ...]


@dataclass(frozen=True)
class Relation:
    """An equation or inequality: `sides` joined by `operators` out of "=", "!=", "<", "<=" (">" is turned round)."""

    operators: tuple[str, ...]
    sides: tuple[str, ...]


@dataclass(frozen=True)
class Named:
    """A value under a name: "x = 5", "f(x) = 2x", "x > 3" as an interval. `relation` where it is also an equation."""

    name: str
    value: Form
    relation: Relation | None = None


Form = Number | Symbolic | Text | BaseNumber | Sequence | Collection | SetOperation | Matrix | Relation | Named


def needs_worker(form: Form) -> bool:
    """Whether some part of the form can only be evaluated with SymPy."""
    if isinstance(form, (Symbolic, Relation)):
        return True
    if isinstance(form, (Sequence, Collection, SetOperation)):
        return any(map(needs_worker, form.items))
    if isinstance(form, Matrix):
        return any(needs_worker(item) for row in form.rows for item in row)
    return isinstance(form, Named) and needs_worker(form.value)
