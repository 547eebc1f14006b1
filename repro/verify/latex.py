r"""Cleaning of answer text, and the check that every text passes before a LaTeX parser may see it.

`tidy` removes what carries no meaning (sizes, spaces, `$`, `\left`), gives one spelling to what has several (`\dfrac`,
`\mathrm`, `<=`, `×`), and puts arguments in braces (`\frac12`). `is_safe` is a whitelist: ASCII only, known commands
only, balanced and shallow, no word that is not a known function.
"""

import re

MAX_ANSWER = 1000  # characters; the longest reference of MATH has fewer than 200
MAX_EXPRESSION = 400
MAX_DEPTH = 12
MAX_POWERS = 4  # nested exponents; the parser's time grows exponentially with them

_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "π": r"\pi ",
        "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ",
        "∓": r"\mp ", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "θ": r"\theta ", "α": r"\alpha ",
        "β": r"\beta ", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "²": "^{2}", "³": "^{3}",
        "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\t": " ", "\n": " ", "\r": " ", "’": "'", "º": "°",
    }
)  # fmt: skip

_FUNCTIONS = "sin|cos|tan|cot|sec|csc|log|ln|arcsin|arccos|arctan"

# Applied in this order.
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"√ ?([0-9]+)", r"\\sqrt{\1}"),
        (r"√", r"\\sqrt "),
        (r"\\(?:left|right|middle|[bB]ig[glr]?|displaystyle|textstyle|limits|nolimits)(?![a-zA-Z])\.?", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\dbinom|\\tbinom", r"\\binom"),
        (r"\\(?:text(?:rm|bf|it|normal|tt)|[mh]box|math(?:rm|bf|it)|operatorname\*?)(?![a-zA-Z])", r"\\text"),
        (r"\\(?:leq|leqslant|leqq)(?![a-zA-Z])", r"\\le"),
        (r"\\(?:geq|geqslant|geqq)(?![a-zA-Z])", r"\\ge"),
        (r"\\neq(?![a-zA-Z])", r"\\ne"),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\[lr]vert(?![a-zA-Z])", "|"),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\lbrack(?![a-zA-Z])", "["),
        (r"\\rbrack(?![a-zA-Z])", "]"),
        (r"\\(?:varnothing|O)(?![a-zA-Z])", r"\\emptyset"),
        (r"\\backslash(?![a-zA-Z])", r"\\setminus"),
        (r"\^ ?\{? ?\\circ ?\}?|\\degree(?![a-zA-Z])", "°"),
        (r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))", ""),  # 58\,500
        (r",? ?\\! ?(?=[0-9]{3}(?![0-9]))", ","),  # 10,\!080
        (r"\{ ?, ?\}", ","),
        (r"\\!", ""),
        (r"(?<!\\)\\[,;: ]|\\q?quad(?![a-zA-Z])|(?<!\\)~", " "),
        (r"\\%", "%"),
        (r"\*\*", "^"),
        (r"\*", r"\\cdot "),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"!=", r"\\ne "),
        (r"\+/-", r"\\pm "),
        (rf"\\text ?\{{ ?({_FUNCTIONS}|exp|sinh|cosh|tanh|gcd|lcm|max|min) ?\}}", r"\\\1 "),
        (rf"(?<![\\a-zA-Z])(sqrt|pi|{_FUNCTIONS})(?![a-zA-Z])", r"\\\1 "),
        (r"(?<![\\a-zA-Z])(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
        (r" +", " "),
    ]
]  # fmt: skip
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_LEAD = re.compile(r"^(?:=|:|\\approx(?![a-zA-Z])|\\implies(?![a-zA-Z])) ?")

_COMMAND_LIST = """
frac sqrt binom cdot times div pi infty overline lfloor rfloor lceil rceil max min gcd lcm
alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi varphi chi psi omega
Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega
sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp
"""
_COMMANDS = frozenset(_COMMAND_LIST.split())
_CHARACTERS = re.compile(r"[0-9A-Za-z+\-^_!{}()\[\]|/.,\\ ]+")
_COMMAND = re.compile(r"\\([a-zA-Z]+|.|$)")
# Long words, long numbers, and what the parser would misread: a subscript of a number or group (ignored), a double
# factorial (taken for the factorial of a factorial), numbers side by side (multiplied), a point without decimals, and
# "+-", which may mean ±.
_REFUSED = re.compile(r"[A-Za-z]{5,}|[0-9]{300,}|[0-9)}\]_] ?_|! ?!|[0-9.] +[0-9.]|\.(?![0-9])|\+ ?-")


def tidy(text: str) -> str:
    """One plain spelling of an answer; "" for text longer than `MAX_ANSWER` characters or with control characters."""
    if len(text) > MAX_ANSWER:
        return ""
    text = text.translate(_UNICODE)
    if not text.isprintable():
        return ""
    text = _unwrap(text)
    # Inner dollar signs are delimiters if they come in pairs, money if there is one.
    if text.count("$") - text.count(r"\$") > 1:
        text = re.sub(r"(?<!\\)\$", "", text)
    text = text.replace(r"\$", "$")
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(" ,;")
    if not text.endswith(".."):  # "0.333..." is not 0.333
        text = text.removesuffix(".")
    text = _LEAD.sub("", text)
    return _unwrap(text).strip()


def _unwrap(text: str) -> str:
    """Remove delimiters round the whole text: `$`, `\\(`, `\\boxed{}`, a plain pair of braces."""
    for _ in range(6):
        before = text = text.strip()
        for opening, closing in _WRAPPERS:
            inner = text[len(opening) : -len(closing)]
            if inner and text.startswith(opening) and text.endswith(closing) and closing not in inner:
                text = inner.strip()
        for opening in (r"\boxed{", r"\fbox{", "{"):
            if text.startswith(opening) and group_end(text, len(opening) - 1) == len(text):
                text = text[len(opening) : -1].strip()
        if text == before:
            break
    return text


def group_end(text: str, start: int) -> int:
    """The position behind the brace group that opens at `start`, or -1 if it does not close."""
    depth = 0
    position = start
    while position < len(text):
        if text[position] == "\\":
            position += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        position += 1
        if depth == 0:
            return position
    return -1


def brace_arguments(text: str) -> str:
    r"""Put every argument of `\frac`, `\binom`, `\sqrt`, `^` and `_` in braces, as in `\frac12`, `\sqrt2`, `x^10`."""
    result: list[str] = []
    command = ""
    waiting = 0  # arguments of `command` still to come
    position = 0
    while position < len(text):
        if text[position] == " ":
            result.append("" if waiting else " ")
            position += 1
        elif waiting and text[position] != "[":
            end, argument = _argument(text, position, command)
            result.append("{" + brace_arguments(argument) + "}")
            position, waiting = end, waiting - 1
        elif waiting:  # the optional argument of a root
            end = text.find("]", position) + 1 or len(text)
            result.append(text[position:end])
            position = end
        else:
            token = _COMMAND.match(text, position)
            end = token.end() if token else position + 1
            command = text[position:end]
            result.append(command)
            waiting = {r"\frac": 2, r"\binom": 2, r"\sqrt": 1, "^": 1, "_": 1}.get(command, 0)
            position = end
    return "".join(result)


def _argument(text: str, position: int, command: str) -> tuple[int, str]:
    """End and content of the argument of `command` at `position`."""
    if text[position] == "{":
        end = group_end(text, position)
        return (end, text[position + 1 : end - 1]) if end > 0 else (len(text), text[position:])
    if text[position] == "(":
        end = closing_bracket(text, position)
        if end > 0:
            return end, text[position:end]
    # Nobody who writes "\sqrt16" or "x^10" means what LaTeX makes of it.
    number = re.compile({"\\frac": "[0-9]", "\\binom": "[0-9]"}.get(command, "-?[0-9]+")).match(text, position)
    token = number or _COMMAND.match(text, position)
    end = token.end() if token else position + 1
    return end, text[position:end]


def closing_bracket(text: str, start: int) -> int:
    """The position behind the bracket that closes the one at `start`, all kinds counted alike; -1 if there is none."""
    depth = 0
    for position in range(start, len(text)):
        if text[position] in "([{":
            depth += 1
        elif text[position] in ")]}":
            depth -= 1
            if depth <= 0:
                return position + 1 if depth == 0 else -1
    return -1


def is_safe(text: str) -> bool:
    """Whether a LaTeX expression may go to the parser: short, shallow, balanced, and made of known parts only."""
    if not 0 < len(text) <= MAX_EXPRESSION or not _CHARACTERS.fullmatch(text):
        return False
    if any(command not in _COMMANDS for command in _COMMAND.findall(text)):
        return False
    bare = _COMMAND.sub("~", text)
    if _REFUSED.search(bare) or bare.count("|") % 2:
        return False
    stack: list[str] = []
    powers: list[bool] = []
    before = ""
    for character in bare:
        if character in "([{":
            stack.append({"(": ")", "[": "]", "{": "}"}[character])
            powers.append(before == "^")
        elif character in ")]}":
            if not stack or stack.pop() != character:
                return False
            powers.pop()
        if len(stack) > MAX_DEPTH or sum(powers) > MAX_POWERS:
            return False
        before = character
    return not stack
