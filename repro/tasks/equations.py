"""Wrong equations in a text: what can be seen of a solution's steps where nothing but its words is known."""

from __future__ import annotations

import re
from fractions import Fraction

from repro.tasks.linear import value_of

NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
SUM = rf"(?:\([( ]*)?{NUMBER}[) ]*(?:[-+*/][( ]*{NUMBER}[) ]*)+"
# The result ends where its number does: "3 * 4 = 12 + 5" and "5 / 50 = 10%" aren't read.
EQUATION = re.compile(rf"({SUM})= *(-?{NUMBER})(?![\w(]|[.,]\d| *[-+*/^%])")
CORRECTED = re.compile(r"\b(wait|actually|correction|mistake|sorry|recheck|let me check|should be)\b", re.IGNORECASE)
SIGNS = (
    (r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))"),
    (r" *(?:\\times|\\cdot|×|(?<=\d) ?x ?(?=\$?\d)) *", "*"),
    (r" *(?:\\div|÷) *", "/"),
    (r"[−–]", "-"),
    (r"\\%", "%"),
    (r"\\[()\[\]]", " "),
    (r"\\?\$|(?<!\d)\*\*|\*\*(?!\d)", ""),  # currency and bold print
)


def wrong_equation(text: str) -> str | None:
    """The first ``a op b = c`` of a text that is wrong and after which nothing is corrected; None if there is none.

    A result with fewer digits than its value may be rounded or cut. What isn't surely an equation of numbers (a part
    of a longer expression, one with a letter or a percentage) isn't read: most wrong steps in words aren't seen.
    """
    for pattern, sign in SIGNS:
        text = re.sub(pattern, sign, text)
    for found in EQUATION.finditer(text):
        line = text[: found.start()].rpartition("\n")[2]
        if not _begins(line) or CORRECTED.search(text, found.end()):
            continue
        value, result = _value(found[1]), _fraction(found[2])
        unit = Fraction(1, 10 ** len(found[2].partition(".")[2]))
        if value is None or value == result:
            continue
        if (value / unit).denominator == 1 or abs(value - result) >= unit:
            return found[0].strip()
    return None


def _begins(before: str) -> bool:
    """Can an expression begin after this beginning of a line? A dash or a star there may be the bullet of a list."""
    if re.search(r"[\w.,\-]$", before):
        return False
    goes_on = re.search(r"([-+*/^%)}\]\d]|\b(x|times|plus|minus|(half|third|quarter|fourth|[\d%])s? of))\s*$", before)
    return before.strip() in ("-", "*", "+") or not goes_on


def _value(expression: str) -> Fraction | None:
    """The value of numbers joined by + - * /; None where it can't be read. A bracket that isn't closed is left out."""
    while expression.count("(") > expression.count(")"):
        expression = expression.replace("(", "", 1)
    exact = re.sub(NUMBER, lambda number: f"({_fraction(number[0])})", expression.replace(" ", ""))
    return value_of(exact)


def _fraction(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))
