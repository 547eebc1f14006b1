"""Exact comparison of expressions; runs in a worker only, because it needs SymPy and can take for ever.

Reading is Math-Verify's LaTeX parser (`latex2sympy2_extended`), which builds SymPy objects from a grammar. Only text
that passed `latex.is_safe` gets here. The parser has one place that executes text: `parse_number` gives each literal to
`sympy.Number`, which calls `sympify`, `parse_expr` and `eval` even for "12". `_Parser` replaces it by a checked pattern
of digits, and the worker's audit hook refuses to compile text, should another such place exist. Math-Verify's `parse`
(which gives plain expressions to `parse_expr`) is not used. Neither is its `verify`: it compares 15 digits, so that
1/2^99 equals 1/2^98, and its verdict depends on the order of the arguments.

Two expressions are equal if a proof is found: their difference is not clearly different from zero at a few points, and
SymPy reduces it to zero exactly. No proof means not equal.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import lru_cache

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from sympy.core.function import AppliedUndef

from repro.verify.forms import (
    Collection,
    Form,
    Matrix,
    Named,
    Number,
    Relation,
    Sequence,
    SetOperation,
    Symbolic,
)

MAX_BITS = 200_000  # of a number that is worked out; 2004! has 19,000
MAX_BINOMIAL = 5_000
MAX_OPERATIONS = 2_000  # nodes of an expression tree

_CONFIG = ConversionConfig(lowercase_symbols=False)  # R and r are two variables
_DECIMAL = re.compile(r"([0-9]*)\.([0-9]+)")
_MIXED = re.compile(r"(?<![0-9.}^_)])([0-9]+) ?\\frac\{([0-9]+)\}\{([0-9]+)\}")
_PRODUCT = re.compile(r"(\\(?:pi|theta|alpha|beta)|(?<![a-zA-Z])[ei]) ?(?=\()")  # not a function call
_CAPITAL_I = re.compile(r"(?<![\\a-zA-Z])I|(?<=[A-HJ-Z])I(?![a-z])")
_UNDEFINED = (sympy.nan, sympy.zoo, sympy.oo, -sympy.oo)
_IMAGINARY = sympy.Symbol("i", real=True)


class _Parser(_Latex2Sympy):
    """Math-Verify's parser without what executes text, and without readings that make different things equal."""

    def parse_number(self, text: str) -> sympy.Integer:
        """An integer literal; decimals became fractions before."""
        if not re.fullmatch("[0-9]{1,400}", text):
            raise ValueError("not an integer")
        return sympy.Integer(int(text))

    def convert_binom(self, binom) -> sympy.Expr:
        """A binomial coefficient, which SymPy works out at once, so its size is checked here."""
        upper, lower = self.convert_expr(binom.upper), self.convert_expr(binom.lower)
        if not all(value.is_Symbol or (value.is_Integer and abs(value) <= MAX_BINOMIAL) for value in (upper, lower)):
            raise ValueError("binomial coefficient too large")
        return sympy.binomial(upper, lower)

    def convert_postfix_list(self, arr, i=0) -> sympy.Expr:
        """Factors side by side. The original reads 2(3) as a mixed number, 5; those are taken out before."""
        factors = [self.convert_postfix(factor) for factor in arr]
        if not all(isinstance(factor, sympy.Expr) for factor in factors):
            raise ValueError("not a product of expressions")
        return factors[0] if len(factors) == 1 else sympy.Mul(*factors, evaluate=False)

    def convert_postfix(self, postfix) -> sympy.Expr:
        """The original drops a transposition, so that x^T would be x."""
        if any(not operator.BANG() for operator in postfix.postfix_op()):
            raise ValueError("only factorials are known here")
        return super().convert_postfix(postfix)


class UnreadableError(Exception):
    """The expression has no value here: no grammar for it, undefined, or too large to work out."""


@lru_cache(maxsize=4096)
def value_of(latex: str) -> sympy.Expr:
    """The SymPy value of a checked LaTeX expression. Raises `UnreadableError`."""
    text = _DECIMAL.sub(lambda m: rf"(\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}})", latex)
    text = _MIXED.sub(lambda m: rf"(\frac{{{int(m[1]) * int(m[3]) + int(m[2])}}}{{{m[3]}}})", text)
    text = _PRODUCT.sub(r"\1 \\cdot ", text)
    text = _CAPITAL_I.sub(r"\\Xi ", text)  # the parser takes I, with any subscript, for the imaginary unit
    try:
        tree = _Parser(is_real=True, config=_CONFIG).parse(text)
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # the parser raises plain Exception
        raise UnreadableError(str(error)[:100]) from None
    if (
        not isinstance(tree, sympy.Expr)
        or tree.has(sympy.Derivative)
        or any(len(f.func.__name__) > 1 for f in tree.atoms(AppliedUndef))
    ):
        raise UnreadableError("not an expression")
    _check_size(tree)
    value = tree.subs(_IMAGINARY, sympy.I).doit()
    if not isinstance(value, sympy.Expr) or value.has(*_UNDEFINED):
        raise UnreadableError("undefined")
    return value


def _check_size(tree: sympy.Expr) -> None:
    """Raise `UnreadableError` before SymPy works out a power tower or a huge factorial."""
    if sum(1 for _ in sympy.preorder_traversal(tree)) > MAX_OPERATIONS:
        raise UnreadableError("too many operations")
    _bits(tree)


def _bits(node: sympy.Basic) -> float:
    """About how many bits working out the node takes; raises `UnreadableError` where that passes `MAX_BITS`."""
    parts = [_bits(part) for part in node.args]
    if isinstance(node, sympy.Rational):
        bits = float(max(abs(node.p).bit_length(), node.q.bit_length()))
    elif isinstance(node, sympy.Pow):
        bits = max(parts[0], 1.0) * max(_magnitude(node.exp), 1.0)
    elif isinstance(node, sympy.exp):
        bits = 1.5 * _magnitude(node.exp)
    elif isinstance(node, sympy.factorial):
        bits = _magnitude(node.args[0]) * max(parts[0], 1.0)
    elif isinstance(node, sympy.Add):
        bits = max(parts) + math.log2(len(parts) + 1)
    else:
        bits = sum(parts)
    if bits > MAX_BITS:
        raise UnreadableError("too large")
    return bits


def _magnitude(node: sympy.Expr) -> float:
    """The absolute value of an exponent or argument whose own size is known to be bearable; 1 if it has variables."""
    if not node.is_number:
        return 1.0
    value = abs(node.evalf(5))
    return float(value) if value.is_Float or value.is_Rational else math.inf


def check(form: Form) -> None:
    """Evaluate every expression in the form, so that an unreadable one is known. Raises `UnreadableError`."""
    if isinstance(form, Symbolic):
        value_of(form.latex)
    elif isinstance(form, Relation):
        for side in form.sides:
            value_of(side)
    elif isinstance(form, (Sequence, Collection, SetOperation)):
        for item in form.items:
            check(item)
    elif isinstance(form, Matrix):
        for row in form.rows:
            for item in row:
                check(item)
    elif isinstance(form, Named):
        check(form.value)


def same_value(a: Number | Symbolic, b: Number | Symbolic, factor: Fraction) -> bool:
    """Whether a is `factor` times b, exactly."""
    return is_zero(_expression(a) - sympy.Rational(factor.numerator, factor.denominator) * _expression(b))


def _expression(form: Number | Symbolic) -> sympy.Expr:
    if isinstance(form, Number):
        return sympy.Rational(form.value.numerator, form.value.denominator)
    return value_of(form.latex)


def is_zero(difference: sympy.Expr) -> bool:
    """Whether an expression is proved to be zero everywhere."""
    if difference.is_Rational:
        return difference == 0
    if _clearly_not_zero(difference):
        return False
    if sympy.expand(difference) == 0 or sympy.simplify(difference) == 0:
        return True
    return difference.equals(0) is True


def _clearly_not_zero(expression: sympy.Expr) -> bool:
    """Whether the expression has a value other than 0 at one of a few points, with all digits of it certain."""
    for point in _points(expression.free_symbols):
        value = expression.subs(point).evalf(15, maxn=400)
        for part in value.as_real_imag():
            # evalf leaves precision 1 on a number whose digits are all lost to cancellation.
            if part.is_Float and part._prec > 1 and part != 0:
                return True
    return False


def _points(symbols: set[sympy.Symbol]) -> list[dict[sympy.Symbol, sympy.Rational]]:
    """A few arbitrary points, negative values among them; one empty point where there is no variable."""
    if not symbols:
        return [{}]
    return [
        {
            symbol: sympy.Rational(start + 7 * index, 5 + 2 * index)
            for index, symbol in enumerate(sorted(symbols, key=str))
        }
        for start in (9, -8, 23)
    ]


def same_relation(a: Relation, b: Relation) -> bool:
    """Whether two relations say the same: one is the other times a constant, positive for an inequality."""
    if a.operators != b.operators:
        return False
    if len(a.operators) > 1:
        return all(is_zero(value_of(x) - value_of(y)) for x, y in zip(a.sides, b.sides, strict=True))
    left, right = (value_of(r.sides[0]) - value_of(r.sides[1]) for r in (a, b))
    if is_zero(left - right):
        return True
    ratios = []
    for point in _points(left.free_symbols | right.free_symbols):
        top, bottom = left.subs(point), right.subs(point)
        if top.is_zero is not False or bottom.is_zero is not False:
            return False
        ratios.append(sympy.simplify(top / bottom))
    factor = ratios[0]
    if not factor.is_number or not factor.is_finite or not (factor.is_positive or a.operators[0] in ("=", "!=")):
        return False
    return all(ratio == factor for ratio in ratios) and is_zero(left - factor * right)
