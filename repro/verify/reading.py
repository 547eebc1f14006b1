"""From answer text to a form (`forms.py`), without evaluating anything: brackets, lists, names, units, numbers, words.

Whatever is left over and passes `latex.is_safe` becomes `Symbolic`, for the workers. None means unreadable.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import product

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
from repro.verify.latex import MAX_ANSWER, brace_arguments, closing_bracket, group_end, is_safe, tidy
from repro.verify.numbers import read_number, read_plain
from repro.verify.units import canonical_unit

MAX_ITEMS = 64
_MAX_NESTING = 40

_CONSTANTS = {
    r"\infty": "infinity",
    r"+\infty": "infinity",
    r"-\infty": "-infinity",
    r"\emptyset": "empty set",
    r"\{\}": "empty set",
    r"\{ \}": "empty set",
    r"\mathbb{R}": "real numbers",
    r"\mathbb{Z}": "integers",
    r"\mathbb{Q}": "rational numbers",
    r"\mathbb{N}": "natural numbers",
    r"\mathbb{C}": "complex numbers",
}
_NAME = r"[a-zA-Z](?:_\{?[a-zA-Z0-9]+\}?)?"
_GREEK = "alpha|beta|gamma|delta|epsilon|theta|lambda|mu|rho|sigma|tau|phi|varphi|omega|Delta|Sigma"
_NAMES = rf"{_NAME}(?: ?, ?{_NAME})*"
_NAME_SIDE = re.compile(rf"(?:{_NAME}|\\(?:{_GREEK})|[a-zA-Z]'?(?:\^\{{-1\}})? ?\({_NAMES}\)|\( ?{_NAMES} ?\))")
_WORDS_SIDE = re.compile(r"(?:\\text ?\{[A-Za-z .'-]+\}|[A-Za-z '-])+")
_SEPARATOR = re.compile(r"[,;]| ?\\text ?\{ ?,? ?(?:and|or) ?\} ?|,? (?:and|or) ")
_OPERATOR = re.compile(r"\\(?:le|ge|ne|in)(?![a-zA-Z])|[=<>]")
_SET_OPERATOR = re.compile(r"\\(?:cup|cap|setminus)(?![a-zA-Z])")
_BASE = re.compile(
    r"(?P<sign>-?) ?\{?(?P<digits>[0-9][0-9A-Z]*|[A-Z][0-9A-Z]*[0-9][0-9A-Z]*)\}? ?"
    r"_ ?(?:\{ ?(?P<base>[0-9]{1,2}) ?\}|(?P<base2>[0-9]{1,2})|\{? ?\\text ?\{ ?(?P<name>[a-z]+) ?\} ?\}?)"
)
_BASE_LIST = "zero one two three four five six seven eight nine ten eleven twelve"
_BASE_NAMES = {name: base for base, name in enumerate(_BASE_LIST.split())} | {"sixteen": 16}
_MATRIX = re.compile(r"\\begin ?\{([pbB]?matrix)\}(.*)\\end ?\{\1\}", re.DOTALL)
_TEXT = re.compile(r"\\text ?\{([^{}]*)\}")
_TRAILING_UNIT = re.compile(
    r"(.*?[^\s\\])"
    r"(?:( ?(?:\\text ?\{[^{}]*\}[ ./]*)+(?:\^ ?\{?[23]\}?)?)|( ?(?:°|%|[a-z]{2,}(?:\^\{?[23]\}?)?)))"
)
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_DEGREES = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?°")
_SET_BUILDER = re.compile(
    rf" ?(?P<name>{_NAME}) ?(?:\\in ?\\mathbb\{{R\}})? ?(?:\||:|\\mid(?![a-zA-Z]))(?P<condition>.*)"
)
_PROSE = re.compile(r"[\w .,:'&/()-]*[^\W\d_]{2}[\w .,:'&/()-]*")
_CLOCK = re.compile(r"[0-9]+ ?: ?[0-9]+(?: ?: ?[0-9]+)*")


def read(text: str) -> Form | None:
    """The form of a final answer, or None if it cannot be read. Takes at most `latex.MAX_ANSWER` characters."""
    # The length is checked outside the cache, which must not keep strings of a megabyte.
    return _read_whole(text) if 0 < len(text) <= MAX_ANSWER else None


@lru_cache(maxsize=50_000)
def _read_whole(text: str) -> Form | None:
    number = read_plain(text.strip())
    if number is not None:
        return number
    if _nesting(text) > _MAX_NESTING:
        return None
    tidied = tidy(text)
    return _read(tidied, 0) if tidied else None


def _nesting(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest


def _read(text: str, level: int) -> Form | None:
    """`read` for tidied text and for parts of it; the readers below are tried from the outermost structure inwards."""
    text = text.strip()
    if not text or level > 6 or text.casefold() == "nan":
        return None
    number = read_number(text)
    if number is not None:
        return number
    if text in _CONSTANTS:
        return Text(_CONSTANTS[text])
    exact, mark, _ = text.partition(r"\approx")
    if mark:  # "2\sqrt{3} \approx 3.46" is the exact value; "x \approx 3.46" has none
        return None if _NAME_SIDE.fullmatch(exact.strip()) else _read(exact, level + 1)
    if text[0] == "{" and group_end(text, 0) == len(text):
        return _read(text[1:-1], level + 1)
    inner = _TEXT.fullmatch(text)
    if inner:
        return _read(inner[1], level + 1) or _prose(inner[1])
    for reader in (_matrix, _base_number, _list, _set_operation, _relation, _bracket, _plus_minus):
        done, form = reader(text, level)
        if done:
            return form
    return _prose(text) or read_number(brace_arguments(text)) or _symbolic(text)


def _split(text: str, pattern: re.Pattern) -> tuple[list[str], list[str]] | None:
    """Parts of the text between top-level matches of the pattern, and the matches; None if brackets do not match."""
    parts, separators = [], []
    depth = start = position = 0
    while position < len(text):
        match = pattern.match(text, position) if depth == 0 else None
        if match:
            parts.append(text[start : match.start()])
            separators.append(match.group().strip())
            start = position = match.end()
            continue
        step = 1
        if text[position] == "\\" and text[position + 1 : position + 2] not in ("{", "}"):
            step = 2
        elif text[position] in "([{":
            depth += 1
        elif text[position] in ")]}":
            depth -= 1
        if depth < 0:
            return None
        position += step
    parts.append(text[start:])
    return (parts, separators) if depth == 0 else None


def _all(parts: list[str], level: int) -> tuple[Form, ...] | None:
    if len(parts) > MAX_ITEMS:
        return None
    forms = tuple(_read(part, level + 1) for part in parts)
    return None if any(form is None for form in forms) else forms


def _has_sets(parts: list[str]) -> bool:
    """Whether a set is a member of something, which is not supported: members of members would be mixed up."""
    return any(part.lstrip().startswith((r"\{", r"\emptyset")) for part in parts)


def _matrix(text: str, level: int) -> tuple[bool, Form | None]:
    match = _MATRIX.fullmatch(text)
    if not match:
        return "\\begin" in text, None
    rows = [_all(row.split("&"), level) for row in match[2].strip().removesuffix("\\\\").split("\\\\")]
    if any(row is None or len(row) != len(rows[0] or ()) for row in rows):
        return True, None
    return True, Matrix(tuple(rows))


def _base_number(text: str, level: int) -> tuple[bool, Form | None]:
    match = _BASE.fullmatch(text)
    if not match:
        return False, None
    base = _BASE_NAMES.get(match["name"], 0) if match["name"] else int(match["base"] or match["base2"])
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in match["digits"]):
        return False, None
    digits = match["sign"] + (match["digits"].lstrip("0") or "0")
    return True, read_number(digits) if base == 10 else BaseNumber(digits, base)


def _list(text: str, level: int) -> tuple[bool, Form | None]:
    split = _split(text, _SEPARATOR)
    if split is None:
        return True, None
    parts, separators = split
    if not separators:
        return False, None
    words_only = all(_clean_prose(part) for part in parts) and any(len(part.strip(" ()")) > 1 for part in parts)
    if words_only and not any(separator in ",;" for separator in separators):
        return False, None  # "Tom and Jerry" is a phrase
    parts = _join_thousands(text, [part for part in parts if part.strip()])
    forms = None if _has_sets(parts) else _all(parts, level)
    if forms is None:
        return True, None
    return True, _collect(forms, any("or" in separator for separator in separators))


def _join_thousands(text: str, parts: list[str]) -> list[str]:
    """With ", " as the separator, a comma without space belongs to a number: "1,000, 2,000" has two items."""
    if ", " not in text:
        return parts
    joined: list[str] = []
    for part in parts:
        if joined and re.fullmatch("[0-9]{3}", part) and re.search(r"(?<![0-9])[0-9]{1,3}(?:,[0-9]{3})*$", joined[-1]):
            joined[-1] += "," + part
        else:
            joined.append(part)
    return joined


def _collect(forms: tuple[Form, ...], alternatives: bool) -> Form | None:
    """A collection; "x = 1 or 2" and "x = 1, x = 2" become one name with several values."""
    names = [form.name for form in forms if isinstance(form, Named)]
    if names and isinstance(forms[0], Named):
        same_name = len(set(names)) == 1
        if same_name and (len(names) == len(forms) or len(names) == 1):
            values = tuple(form.value if isinstance(form, Named) else form for form in forms)
            if any(isinstance(value, (Sequence, Relation)) for value in values):
                # "x < 1 or x > 3" is a union, "x > 1, x < 3" an intersection that nobody has to evaluate here.
                return Named(names[0], SetOperation(r"\cup", values)) if alternatives else Collection(forms)
            return Named(names[0], Collection(_flat(values)))
    return Collection(_flat(forms))


def _flat(forms: tuple[Form, ...]) -> tuple[Form, ...]:
    """Nested collections dissolve: "1 ± √5, -2" has three values."""
    return tuple(item for form in forms for item in (form.items if isinstance(form, Collection) else (form,)))


def _set_operation(text: str, level: int) -> tuple[bool, Form | None]:
    parts, separators = _split(text, _SET_OPERATOR) or ([], [])
    if not separators:
        return False, None
    forms = _all(parts, level)
    if forms is None or len(set(separators)) > 1 or (separators[0] == r"\setminus" and len(forms) > 2):
        return True, None
    return True, SetOperation(separators[0], forms)


def _relation(text: str, level: int) -> tuple[bool, Form | None]:
    parts, found = _split(text, _OPERATOR) or ([], [])
    if not found:
        return False, None
    sides = [part.strip() for part in parts]
    if found[0] == r"\in" or (found == ["="] and sides[1][:1] in ("[", "(", "\\{")):
        value = _read(sides[1], level + 1) if len(sides) == 2 and _NAME_SIDE.fullmatch(sides[0]) else None
        return True, value and Named(sides[0], value)
    if not all(sides):
        return True, None
    interval = _interval(sides, found, level)
    if interval is not None:
        return True, interval
    if set(found) == {"="} and (_NAME_SIDE.fullmatch(sides[0]) or _is_words(sides[0])):
        value = _read(sides[-1], level + 1)
        plain = len(sides) == 2 and isinstance(value, (Number, Symbolic))
        relation = _as_relation(sides, found) if plain and _NAME_SIDE.fullmatch(sides[0]) else None
        return True, value and Named(_plain_name(sides[0]), value, relation)
    return True, _as_relation(sides, found)


def _is_words(text: str) -> bool:
    """Whether the left side of an equation is a name in words, "Total cost" or "\\text{Area}"."""
    return _WORDS_SIDE.fullmatch(text) is not None and len(re.findall("[A-Za-z]", _TEXT.sub(r"\1", text))) >= 3


def _plain_name(name: str) -> str:
    name = _TEXT.sub(r"\1", name).strip()
    return name.casefold() if len(name) > 2 and name.isalpha() else name.replace(" ", "")


def _as_relation(sides: list[str], found: list[str]) -> Relation | None:
    """A relation with all inequalities pointing to the larger side; None for mixed directions or unsafe sides."""
    names = {"=": "=", "<": "<", ">": "<", r"\le": "<=", r"\ge": "<=", r"\ne": "!="}
    turned = [operator in (">", r"\ge") for operator in found]
    if r"\in" in found or (any(turned) and not all(turn or op == "=" for turn, op in zip(turned, found, strict=True))):
        return None
    sides = [brace_arguments(side) for side in sides]
    if not all(map(is_safe, sides)):
        return None
    operators = [names[operator] for operator in found]
    if any(turned):
        sides, operators = sides[::-1], operators[::-1]
    return Relation(tuple(operators), tuple(sides))


def _interval(sides: list[str], found: list[str], level: int) -> Named | None:
    """ "a < x \\le b", "x > a" and "a \\ge x" as an interval with the name of its variable."""
    if len(set(found) & {"<", r"\le"}) + len(set(found) & {">", r"\ge"}) == 0 or {"=", r"\ne", r"\in"} & set(found):
        return None
    ascending = found[0] in ("<", r"\le")
    if not ascending:
        sides, found = sides[::-1], [{">": "<", r"\ge": r"\le"}.get(operator, "") for operator in found[::-1]]
    if any(operator not in ("<", r"\le") for operator in found):
        return None
    if len(sides) == 2:
        sides, found = (
            (["", *sides], ["<", *found]) if _NAME_SIDE.fullmatch(sides[0]) else ([*sides, ""], [*found, "<"])
        )
    if len(sides) != 3 or not _NAME_SIDE.fullmatch(sides[1]) or _letters(sides[0]) or _letters(sides[2]):
        return None
    low = _read(sides[0], level + 1) if sides[0] else Text("-infinity")
    high = _read(sides[2], level + 1) if sides[2] else Text("infinity")
    if low is None or high is None:
        return None
    opening = "[" if found[0] == r"\le" else "("
    return Named(sides[1], Sequence(opening, "]" if found[1] == r"\le" else ")", (low, high)))


def _letters(text: str) -> bool:
    """Whether the text has a variable in it, so that it is no end of an interval."""
    return re.search("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", text)) is not None


def _bracket(text: str, level: int) -> tuple[bool, Form | None]:
    braces = text.startswith(r"\{")
    if not braces and text[0] not in "([":
        return False, None
    if closing_bracket(text, 1 if braces else 0) != len(text):
        return False, None
    inner = text[2:-2] if braces else text[1:-1]
    builder = _SET_BUILDER.fullmatch(inner) if braces else None
    if builder:
        condition = _read(builder["condition"], level + 1)
        named = isinstance(condition, Named) and condition.name == builder["name"]
        return True, condition.value if named and isinstance(condition.value, (Sequence, SetOperation)) else None
    split = _split(inner, re.compile("[,;]"))
    if split is None or (braces and not text.endswith(r"\}")):
        return True, None
    parts = _join_thousands(inner, split[0])
    if len(parts) == 1 and text[0] == "(":
        # A bracket round one thing: "(C)" is C, "(x+1)" is x+1.
        return True, _read(inner, level + 1)
    forms = None if _has_sets(parts) else _all(parts, level)
    if forms is None:
        return True, None
    return True, Collection(_flat(forms)) if braces else Sequence(text[0], text[-1], forms)


def _plus_minus(text: str, level: int) -> tuple[bool, Form | None]:
    r"""`\pm` as the collection of its values; with `\mp` all signs go together, several `\pm` are independent."""
    pieces = re.split(r"\\(pm|mp)(?![a-zA-Z])", text)
    signs = pieces[1::2]
    if not signs:
        return False, None
    if len(signs) > 3:
        return True, None
    choices = list(product("+-", repeat=len(signs)))
    if "mp" in signs:
        flipped = {"pm": ("+", "-"), "mp": ("-", "+")}
        choices = [tuple(flipped[sign][side] for sign in signs) for side in (0, 1)]
    variants = [
        "".join(part + sign for part, sign in zip(pieces[::2], (*choice, ""), strict=True)) for choice in choices
    ]
    forms = _all([re.sub(r"^ *\+|(?<=[({]) *\+", "", variant) for variant in variants], level)
    return True, forms and Collection(_flat(forms))


def _clean_prose(text: str) -> str | None:
    """The words of a text answer in one spelling, or None if it is no text."""
    words = " ".join(_TEXT.sub(r" \1 ", text).split()).strip(" .,:;'")
    choice = re.fullmatch(r"\(?([A-Z])[).]?", words)
    if choice:
        return choice[1]
    if not (_PROSE.fullmatch(words) or _CLOCK.fullmatch(words)):
        return None
    # Short runs of letters are products of variables unless they were marked as text.
    if "\\text" not in text and not re.search(r"[^\W\d_]{3}", words) and not _CLOCK.fullmatch(words):
        return None
    if re.search("[0-9]", words) and "\\text" not in text and not re.search(r"[^\W\d_]{4}|:", words):
        return None
    return words.casefold().replace(" :", ":").replace(": ", ":")


def _prose(text: str) -> Text | None:
    words = _clean_prose(text)
    return Text(words) if words else None


def _symbolic(text: str) -> Symbolic | None:
    if _TRIGONOMETRIC.search(text):  # a degree sign inside belongs to the argument, not to the value
        text = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)
    braced = brace_arguments(text)
    if is_safe(braced):
        return Symbolic(braced)
    match = _TRAILING_UNIT.fullmatch(text)
    if not match:
        return None
    unit = canonical_unit(match[2] or match[3])
    braced = brace_arguments(match[1].strip())
    if unit is None or not is_safe(braced):
        return None
    return Symbolic(braced, unit or None)
