"""Units and nouns behind a number.

A unit is compared by its canonical name and never converted: "100 cm" is not "1 m" here, and "5 cm" is not "5 m".
A unit that only one side has is left out of the comparison (`compare.py`).
"""

import re

_ALIASES = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "m": "meter metre",
    "km": "kilometer kilometre kms",
    "inch": "in inches",
    "foot": "ft feet",
    "yard": "yd",
    "mile": "mi",
    "mg": "milligram",
    "g": "gram gm",
    "kg": "kilogram kilo",
    "lb": "pound lbs",
    "ounce": "oz",
    "ml": "milliliter millilitre",
    "l": "liter litre",
    "gallon": "gal",
    "second": "s sec",
    "minute": "min mins",
    "hour": "h hr hrs",
    "day": "",
    "week": "wk",
    "month": "mo",
    "year": "yr yrs",
    "km/hour": "kmh kph kmph",
    "mile/hour": "mph",
    "degree": "deg °",
    "degree celsius": "°c",
    "degree fahrenheit": "°f",
    "radian": "rad",
    "dollar": "$ usd buck",
    "cent": "¢",
    "euro": "€ eur",
    "pound sterling": "£ gbp",
    "yen": "¥",
    "rupee": "₹",
    "%": "percent percentage pct",
    "square": "sq",
    "cubic": "cu",
    "people": "person",
    "child": "children",
    "man": "men",
    "woman": "women",
}
_CANONICAL = {alias: unit for unit, aliases in _ALIASES.items() for alias in (unit, *aliases.split())}

# Words that change the value, or that make the text something other than a number with a noun.
_NO_NOUN_LIST = """
and or not plus minus times over by to point less more than greater fewer least most about approximately except but if
half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths
ninth ninths tenth tenths hundredth hundredths thousandth thousandths negative positive double triple twice factorial
zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty seventy eighty
ninety hundred thousand million billion trillion dozen score infinity inf nan base equals equal is are
sin cos tan cot sec csc log ln lg exp sqrt root pi max gcd lcm mod arcsin arccos arctan sinh cosh tanh
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron rho sigma tau upsilon phi chi psi omega
import eval exec
"""
_NO_NOUN = frozenset(_NO_NOUN_LIST.split())
_SMALL_WORDS = frozenset(["of", "per", "the", "a", "an", "in", "each"])
_TOKEN = re.compile(r"[a-z°$€£¥¢₹%]+|\^[23]|/")
_SHAPE = re.compile(r"(?:[a-z°$€£¥¢₹% ./-]|\^ ?[23])+")
_TEXT_COMMAND = re.compile(r"\\text ?\{([^{}]*)\}")


def canonical_unit(tail: str) -> str | None:
    r"""The canonical name of the unit that `tail`, the text behind a number, spells; None if it is no unit.

    Accepts known units, `\text{...}` with any noun, and bare nouns behind a space ("5 apples"). A bare single letter
    is a variable ("5m" is 5 times m). "units" counts as no unit at all and gives "".
    """
    words = _TEXT_COMMAND.sub(r" \1 ", tail).lower()
    words = re.sub(r"\^ ?\{ ?([23]) ?\}", r"^\1", words).replace("^ ", "^").replace("°", " °")
    words = words.replace("° c", "°c").replace("° f", "°f")
    spaced, words = words[:1] == " ", words.strip(" .")
    if not words or len(words) > 60 or not _SHAPE.fullmatch(words):
        return None
    tokens = _TOKEN.findall(words)
    if not 1 <= len(tokens) <= 8 or tokens[0] in ("squared", "cubed") or not _NO_NOUN.isdisjoint(tokens):
        return None
    bare = _TOKEN.findall(_TEXT_COMMAND.sub(" ", tail).lower())
    if not all(_plausible(bare, position, spaced) for position in range(len(bare))):
        return None
    tokens = ["/" if token == "per" else _singular(token) for token in tokens if token not in ("the", "a", "an")]
    return _with_powers(tokens)


def _plausible(tokens: list[str], position: int, spaced: bool) -> bool:
    """Whether an unmarked word is a unit or a noun rather than a product of variables."""
    token = tokens[position]
    if token[0] in "^/°$€£¥¢₹%":
        return True
    if _singular(token) in _ALIASES and (len(token) > 1 or "/" in tokens):
        return True
    if position > 0 and token in _SMALL_WORDS:
        return True
    alphabetical = "".join(sorted(set(token))) == token
    return spaced and len(token) >= 4 and not alphabetical and re.search("[aeiou]", token) is not None


def _singular(token: str) -> str:
    if token in _CANONICAL:
        return _CANONICAL[token]
    for ending in ("es", "s"):
        if token.endswith(ending) and token[: -len(ending)] in _CANONICAL:
            return _CANONICAL[token[: -len(ending)]]
    if len(token) > 3 and token.endswith("s") and not token.endswith("ss"):
        return token[:-1]
    return token


def _with_powers(tokens: list[str]) -> str:
    """ "square cm", "cm squared" and "cm^2" become "cm^2"; the word "unit" carries no information."""
    result: list[str] = []
    power = ""
    for token in tokens:
        if token in ("square", "cubic"):
            power = "^2" if token == "square" else "^3"
        elif token in ("squared", "cubed"):
            result[-1:] = [result[-1] + ("^2" if token == "squared" else "^3")] if result else []
        elif token[0] == "^":
            result[-1:] = [result[-1] + token] if result else []
        else:
            result.append(token + power)
            power = ""
    result = [token for token in result if token.split("^")[0] != "unit"]
    if power:
        result.append("square" if power == "^2" else "cubic")
    return " ".join(result).replace(" / ", "/")
