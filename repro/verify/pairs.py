"""Files of pairs: one JSON object a line with `answer` (text or null), `reference`, maybe `equal` and `note`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from repro.verify.outcome import Outcome


class PairsError(Exception):
    """A file of pairs that cannot be used; the message is one line that names file, line and reason."""


@dataclass(frozen=True)
class Pair:
    answer: str | None
    reference: str
    equal: bool | None = None
    note: str = ""


def load_pairs(path: str | Path) -> list[Pair]:
    """All pairs of a JSON Lines file; blank lines are skipped. Raises `PairsError`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise PairsError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise PairsError(f"{path}: not a UTF-8 text file") from None
    # Not splitlines(): it also splits at characters that may stand inside a JSON string.
    lines = text.split("\n")
    return [_pair(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _pair(line: str, where: str) -> Pair:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise PairsError(f"{where}: not JSON ({error})") from None
    except RecursionError:
        raise PairsError(f"{where}: nested too deeply") from None
    if not isinstance(row, dict):
        raise PairsError(f"{where}: not a JSON object with the fields answer and reference")
    for field in ("answer", "reference"):
        if field not in row:
            raise PairsError(f"{where}: the field {field} is missing")
    if not isinstance(row["answer"], (str, type(None))):
        raise PairsError(f"{where}: answer must be text or null")
    if not isinstance(row["reference"], str):
        raise PairsError(f"{where}: reference must be text")
    if not isinstance(row.get("equal"), (bool, type(None))):
        raise PairsError(f"{where}: equal must be true or false")
    return Pair(row["answer"], row["reference"], row.get("equal"), str(row.get("note", "")))


def summarise(pairs: list[Pair], outcomes: list[Outcome]) -> dict:
    """Counts of the outcomes and, over pairs with a label, agreement, precision and recall (None where undefined)."""
    counts = Counter(str(outcome) for outcome in outcomes)
    summary: dict = {"pairs": len(pairs)} | {str(outcome): counts[str(outcome)] for outcome in Outcome}
    verdicts = [
        (pair.equal, outcome is Outcome.EQUAL)
        for pair, outcome in zip(pairs, outcomes, strict=True)
        if pair.equal is not None
    ]
    if verdicts:
        both = sum(label and said for label, said in verdicts)
        labelled, positive = sum(label for label, _ in verdicts), sum(said for _, said in verdicts)
        summary |= {
            "labelled": len(verdicts),
            "agreement": sum(label == said for label, said in verdicts) / len(verdicts),
            "precision": both / positive if positive else None,
            "recall": both / labelled if labelled else None,
        }
    return summary
