r"""Numbers: integers, decimals, fractions, mixed numbers, scientific notation, per cent, money, with or without a unit.

Everything is read into an exact `Fraction`. ASCII digits only: other digits of Unicode are not numbers here.
"""

from __future__ import annotations

import re
from fractions import Fraction

from repro.verify.forms import Number
from repro.verify.units import canonical_unit

MAX_DIGITS = 1000  # of a number as written
MAX_EXPONENT = 1000  # of scientific notation

_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_PLAIN = re.compile(rf"[+-]?{_DECIMAL}")
_TOP_OVER_BOTTOM = rf"\\frac ?\{{ ?(?P<top>[+-]? ?{_DECIMAL}) ?\}} ?\{{ ?(?P<bottom>[+-]? ?{_DECIMAL}) ?\}}"
_SLASH = r"(?P<over>[0-9]+) ?/ ?(?P<under>[0-9]+)"
_SCALES = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?) ?(?P<money>[$€£¥₹]?) ?(?P<inner_sign>[+-]?) ?"
    rf"(?:(?P<repeated>[0-9]*\.[0-9]*)\\overline ?\{{(?P<period>[0-9]+)\}}"
    rf"|(?P<whole>[0-9]+)(?: ?{_TOP_OVER_BOTTOM}| {_SLASH})"
    rf"|{_TOP_OVER_BOTTOM.replace('top', 'top2').replace('bottom', 'bottom2')}"
    rf"|{_SLASH.replace('over', 'over2').replace('under', 'under2')}(?![0-9.,/])"
    rf"|(?P<decimal>{_DECIMAL})"
    rf"(?:[eE](?P<e>[+-]?[0-9]+)"
    rf"|(?: ?\\(?:times|cdot)| ?x) ?10 ?\^ ?(?:\{{ ?(?P<p>[+-]?[0-9]+) ?\}}|(?P<q>[+-]?[0-9]+)))?)"
    rf"(?P<scale> ?(?:{'|'.join(_SCALES)})(?![a-z]))?"
    r"(?P<tail>.*)",
    re.DOTALL,
)


def read_plain(text: str) -> Number | None:
    """An integer or decimal and nothing else; the path that nearly every answer of a word problem takes."""
    if len(text) <= MAX_DIGITS and _PLAIN.fullmatch(text):
        return Number(_exact(text))
    return None


def read_number(text: str) -> Number | None:
    """A number in any of the spellings above, from text that went through `latex.tidy`; None if it is no number."""
    if len(text) > MAX_DIGITS:
        return None
    match = _NUMBER.fullmatch(text)
    if match is None or (match["inner_sign"] and not match["money"]):
        return None
    value = _magnitude(match)
    if value is None:
        return None
    if (match["sign"] == "-") != (match["inner_sign"] == "-"):
        value = -value
    if match["scale"]:
        value *= _SCALES[match["scale"].strip()]
    unit = _unit(match["money"], match["tail"])
    return None if unit is None else Number(value, unit or None)


def _magnitude(match: re.Match) -> Fraction | None:
    if match["decimal"] is not None:
        exponent = int(match["e"] or match["p"] or match["q"] or 0)
        return _exact(match["decimal"]) * Fraction(10) ** exponent if abs(exponent) <= MAX_EXPONENT else None
    if match["period"] is not None:
        return _repeating(match["repeated"], match["period"])
    top, bottom = match["top"] or match["over"], match["bottom"] or match["under"]
    if match["whole"] is None:
        top, bottom = match["top2"] or match["over2"], match["bottom2"] or match["under2"]
    upper, lower = _exact(top), _exact(bottom)
    if lower == 0 or (match["whole"] is not None and (upper < 0 or lower < 0)):
        return None
    return int(match["whole"] or 0) + upper / lower


def _repeating(start: str, period: str) -> Fraction:
    places = len(start) - start.index(".") - 1
    return _exact(start + "0") + Fraction(int(period), (10 ** len(period) - 1) * 10**places)


def _exact(text: str) -> Fraction:
    """The exact value of a decimal with or without thousands separators and sign."""
    whole, _, decimals = text.replace(",", "").replace(" ", "").partition(".")
    return Fraction(int(whole + decimals or 0), 10 ** len(decimals)) if decimals else Fraction(int(whole))


def _unit(money: str, tail: str) -> str | None:
    """Canonical unit of a number with a currency sign before and `tail` behind it; "" for none, None if unreadable."""
    if not tail.strip():
        return canonical_unit(money) if money else ""
    if not money:
        return canonical_unit(tail)
    behind = canonical_unit(tail)
    before = canonical_unit(money)
    # "$5 dollars" says it twice; "$5 per hour" is a rate.
    return behind if behind is None or behind == before else f"{before} {behind}".replace(" /", "/")
