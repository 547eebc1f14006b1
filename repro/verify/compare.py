"""Comparison of two forms. What SymPy has to decide is left to two functions that a worker supplies."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from repro.verify.forms import (
    BaseNumber,
    Collection,
    Form,
    Matrix,
    Named,
    Number,
    Relation,
    Sequence,
    SetOperation,
    Symbolic,
    Text,
)

Value = Number | Symbolic
SameValue = Callable[[Value, Value, Fraction], bool]
SameRelation = Callable[[Relation, Relation], bool]


def same_number(a: Value, b: Value, factor: Fraction) -> bool:
    """Whether a is `factor` times b exactly, for two forms that are numbers."""
    return isinstance(a, Number) and isinstance(b, Number) and a.value == factor * b.value


def never(a: Relation, b: Relation) -> bool:
    return False


def same(a: Form, b: Form, same_value: SameValue = same_number, same_relation: SameRelation = never) -> bool:
    """Whether two forms are equal.

    Names are left out if only one side has one ("x = 5" and "5"), and so are units; everything else has to agree:
    kind, brackets, order (except in collections and unions), number of items.
    """

    def equal(left: Form, right: Form) -> bool:
        return same(left, right, same_value, same_relation)

    if isinstance(a, Named) or isinstance(b, Named):
        return _same_named(a, b, equal, same_relation)
    if isinstance(a, (Number, Symbolic)) and isinstance(b, (Number, Symbolic)):
        return _same_quantity(a, b, same_value)
    if isinstance(a, Collection) or isinstance(b, Collection):
        left = a.items if isinstance(a, Collection) else (a,)
        right = b.items if isinstance(b, Collection) else (b,)
        return _same_unordered(left, right, lambda x, y: _both_named_or_neither(x, y) and equal(x, y))
    if type(a) is not type(b):
        return False
    if isinstance(a, (Text, BaseNumber)):
        return a == b
    if isinstance(a, Relation):
        return same_relation(a, b)
    if isinstance(a, Matrix):
        return [len(row) for row in a.rows] == [len(row) for row in b.rows] and all(
            equal(x, y) for left, right in zip(a.rows, b.rows, strict=True) for x, y in zip(left, right, strict=True)
        )
    if isinstance(a, Sequence):
        return (a.opening, a.closing) == (b.opening, b.closing) and _same_ordered(a.items, b.items, equal)
    assert isinstance(a, SetOperation) and isinstance(b, SetOperation)
    ordered = a.operator == r"\setminus"
    return a.operator == b.operator and (_same_ordered if ordered else _same_unordered)(a.items, b.items, equal)


def _same_named(a: Form, b: Form, equal: Callable[[Form, Form], bool], same_relation: SameRelation) -> bool:
    if isinstance(a, Named) and isinstance(b, Named):
        if a.name == b.name and equal(a.value, b.value):
            return True
        return bool(a.relation and b.relation) and same_relation(a.relation, b.relation)
    named, other = (a, b) if isinstance(a, Named) else (b, a)
    if isinstance(other, Relation):
        return named.relation is not None and same_relation(named.relation, other)
    return equal(named.value, other)


def _both_named_or_neither(a: Form, b: Form) -> bool:
    """Inside a list a name counts: "x = 1, y = 2" is not "2, 1"."""
    return isinstance(a, Named) == isinstance(b, Named)


def _same_quantity(a: Value, b: Value, same_value: SameValue) -> bool:
    if a.unit == b.unit:
        return same_value(a, b, Fraction(1))
    if a.unit and b.unit:
        return False
    # One side has no unit.
    if "%" not in (a.unit, b.unit):
        return same_value(a, b, Fraction(1))
    if same_value(a, b, Fraction(100) if a.unit == "%" else Fraction(1, 100)):
        return True
    # "50%" is the value 1/2, and is also how people write the answer 50 to "what per cent". Up to 1 that is no longer
    # clear: 0.25% against 0.25 stays different.
    return isinstance(a, Number) and isinstance(b, Number) and a.value == b.value and abs(a.value) > 1


def _same_ordered(a: tuple[Form, ...], b: tuple[Form, ...], equal: Callable[[Form, Form], bool]) -> bool:
    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


def _same_unordered(a: tuple[Form, ...], b: tuple[Form, ...], equal: Callable[[Form, Form], bool]) -> bool:
    """Whether the items can be paired off; an item that occurs twice on one side occurs twice on the other."""
    rest = list(b)
    for item in a:
        partner = next((position for position, other in enumerate(rest) if equal(item, other)), None)
        if partner is None:
            return False
        del rest[partner]
    return not rest
