"""Behaviours of solutions that were written by hand, in the words of the corpus."""

import pytest

from repro.methods.behaviours import Behaviours, is_right, read
from repro.tasks.prompts import CHECK, FAILS, HOLDS
from repro.tiny.corpus import Writer

PLAIN = ("1+2*3", "1+6", "7")


def thought(*lines: str, box: str = "7") -> str:
    return "\n".join((*lines, f"\\boxed{{{box}}}"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (thought(*PLAIN), Behaviours(settled=3)),
        (thought("3*3", "9", box="9"), Behaviours()),
        # two looks at a right answer
        (
            thought(*PLAIN, CHECK, *PLAIN, HOLDS, CHECK, *PLAIN, HOLDS),
            Behaviours(checks=2, redundant=2, settled=3),
        ),
        # a look at a wrong answer finds the right one; the next look is one too many
        (
            thought("3*3", "9", CHECK, *PLAIN, FAILS, CHECK, *PLAIN, HOLDS),
            Behaviours(checks=2, backtracks=1, redundant=1, settled=7),
        ),
        # a look at a right answer ends in a wrong one
        (
            thought(*PLAIN, CHECK, "3*3", "9", FAILS, box="9"),
            Behaviours(checks=1, backtracks=1, redundant=1, settled=3, flipped=True),
        ),
        # a look finds another answer, which doesn't stand
        (thought(*PLAIN, CHECK, "3*3", "9"), Behaviours(checks=1, redundant=1, settled=3)),
        # back before there was an answer
        (thought("3*3", CHECK, FAILS, "1+6", "7"), Behaviours(checks=1, backtracks=1, settled=5)),
        # no box: what stood is lost
        ("\n".join(PLAIN), Behaviours(settled=3, flipped=True)),
        # right in the box only
        (thought("1+6"), Behaviours(settled=2)),
        ("", Behaviours()),
    ],
)
def test_behaviours(text, expected):
    assert read(text, "7") == expected


@pytest.mark.parametrize(
    ("found", "answer", "right"),
    [
        ("7", "7", True),
        ("2/4", "1/2", True),
        ("-3", "3", False),
        (None, "7", False),
        ("a", "7", False),
        ("a", "a", True),
    ],
)
def test_right(found, answer, right):
    assert is_right(found, answer) is right


def test_solutions_of_the_corpus_are_understood():
    writer, seen = Writer(0, 100_000), []
    for _ in range(200):
        raw = writer.problem()
        text = writer.think(raw)[-1]["content"]
        found = read(text, raw.reference.answer)
        seen.append(found)
        assert found.checks == text.count(CHECK) and found.backtracks == text.count(FAILS)
        assert found.redundant <= found.checks
        if found.settled is None:
            assert not found.redundant and not found.flipped
    assert any(s.redundant for s in seen) and any(s.flipped for s in seen)
