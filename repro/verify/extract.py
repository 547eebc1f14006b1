"""The final answer of a completion.

The marks are tried in this order, and the last occurrence of the first mark that is present wins:

1. `\\boxed{...}` or `\\fbox{...}` with balanced braces (an unfinished box is no box),
2. `#### ...` to the end of the line (GSM8K),
3. `answer is ...`, `answer: ...` (also `**Final answer:** ...`) to the end of the line,
4. the last number of the text, only where the caller asks for it.

Every step is linear in the length of the text (no pattern backtracks over a long run): a completion is model output
and may be hostile.
"""

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"####")
_PHRASE = re.compile(r"\banswer(?:\s+is\b[ \t]*:?|[ \t]*\**[ \t]*:)", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}.])-[ \t]?)?"  # a minus sign, but not that of "10-5"
    r"(?:\\?\$[ \t]?)?"
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3}){1,9}(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:/[0-9]+(?![0-9./]))?"
    r"(?:[ \t]?\\?%)?"
)
_HOPE = re.compile(r"\bI hope (?:it|this) is correct.*$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[^\s.])\.\s+[A-Z].*$")


def extract_answer(text: str, last_number: bool = False) -> str | None:
    """Return the final answer that `text` states, or None if it states none.

    `last_number` allows the last number of the text to stand for an answer that no mark announces. That suits
    word problems with a number as the answer, and is wrong for everything else.
    """
    found = _last_box(text)
    if found is None:
        found = _last_line(_HASHES, text)
    if found is None:
        found = _last_line(_PHRASE, text)
    if found is None and last_number:
        numbers = _NUMBER.findall(text)
        found = numbers[-1] if numbers else None
    return found or None


def _last_box(text: str) -> str | None:
    starts = {match.end(): match.end() + 1 for match in _BOX.finditer(text)}
    if not starts:
        return None
    best = None
    open_braces: list[int] = []
    for match in _BRACE.finditer(text):
        if match.group() == "{":
            open_braces.append(match.start())
        elif match.group() == "}" and open_braces:
            start = open_braces.pop()
            # The box that starts last, so that the inner one of two nested boxes wins.
            if start in starts and (best is None or start > best[0]):
                best = (start, match.start())
    return text[best[0] + 1 : best[1]].strip() if best else None


def _last_line(pattern: re.Pattern, text: str) -> str | None:
    """The rest of the line behind the last mark that has something behind it, without the sentence round the answer."""
    ends = [match.end() for match in pattern.finditer(text)]
    lines = (text[end:].split("\n", 1)[0].strip(" \t\r*") for end in reversed(ends))
    rest = next((line for line in lines if line), None)
    if rest is None:
        return None
    rest = _HOPE.sub("", rest).rstrip()
    math = re.match(r"\$\$.+?\$\$|\$[^$]+\$", rest)  # "the answer is $x^2$. Done", but not "$5 a day"
    if math:
        return math.group()
    return _SENTENCE_END.sub("", rest).removesuffix(".").strip(" \t*") or None
