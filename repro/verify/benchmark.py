"""Accuracy and speed of the grader beside Math-Verify alone: `python -m repro.verify.benchmark [--data FOLDER]`.

Always used: the pairs of `tests/verify/data/verify_pairs.jsonl`. With `--data`, also the references of
`gsm8k/test.jsonl` (fields question, answer with `#### N`) and `math500/test.jsonl` (field answer): each against itself
and against the one of the next problem. With `--solutions`, GSM8K's labelled `example_model_solutions.jsonl`. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from repro.verify.extract import extract_answer
from repro.verify.grader import Grader
from repro.verify.outcome import Outcome
from repro.verify.pairs import Pair, PairsError, load_pairs, summarise
from repro.verify.reading import read

COMMITTED_PAIRS = Path(__file__).resolve().parents[2] / "tests" / "verify" / "data" / "verify_pairs.jsonl"
HANGS_AFTER = 20.0  # seconds; Math-Verify's own limits are 5 for each of three steps


class MathVerifyAlone:
    """Math-Verify in a process of its own, which is replaced when a pair hangs it."""

    def __init__(self) -> None:
        self.hung = 0
        self._process: subprocess.Popen | None = None

    def verdict(self, answer: str, reference: str) -> tuple[bool, float]:
        """Whether it calls the pair equal, and the seconds it took by its own clock."""
        process = self._process or self._start()
        process.stdin.write(json.dumps([answer, reference]) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], HANGS_AFTER)[0]:
            self.hung += 1
            self.close()
            return False, HANGS_AFTER
        line = process.stdout.readline()
        if not line:
            self.hung += 1
            self.close()
            return False, 0.0
        return tuple(json.loads(line))

    def _start(self) -> subprocess.Popen:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "repro.verify.math_verify_alone"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._process.stdout.readline()  # it has imported SymPy
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def accuracy(name: str, pairs: list[Pair], grader: Grader, alone: MathVerifyAlone) -> dict:
    """Agreement, precision and recall of both graders on labelled pairs, and our symmetry; wrong pairs are printed."""
    ours = grader.grade_many([(pair.answer, pair.reference) for pair in pairs])
    swapped = grader.grade_many([(pair.reference, pair.answer or "") for pair in pairs])
    unequal = sum((x is Outcome.EQUAL) != (y is Outcome.EQUAL) for x, y in zip(ours, swapped, strict=True))
    before = alone.hung
    theirs = [alone.verdict(pair.answer or "", pair.reference)[0] for pair in pairs]
    their_outcomes = [Outcome.EQUAL if equal else Outcome.DIFFERENT for equal in theirs]
    result = {
        "grader": summarise(pairs, ours),
        "math_verify_alone": summarise(pairs, their_outcomes) | {"hung_or_died": alone.hung - before},
        "asymmetric_pairs": unequal,
    }
    print(f"\n{name}: {len(pairs)} pairs, {unequal} with a verdict that depends on the order")
    for label, row in (("grader", result["grader"]), ("Math-Verify alone", result["math_verify_alone"])):
        shown = "  ".join(f"{key} {_percent(row.get(key))}" for key in ("agreement", "precision", "recall"))
        print(f"  {label:18} {shown}")
    for pair, outcome in zip(pairs, ours, strict=True):
        if pair.equal != (outcome is Outcome.EQUAL):
            print(f"  wrong: {pair.answer!r} against {pair.reference!r} is {outcome}, labelled equal={pair.equal}")
    return result


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def speed(name: str, pairs: Sequence[tuple[str, str]], alone: MathVerifyAlone) -> dict:
    """Pairs a second of both graders on the same pairs, nothing cached, workers started beforehand."""
    grader = Grader()
    warm = [(rf"\sqrt{{{n}}}", rf"{n}") for n in range(2, 2 + 2 * grader.pool.size)]
    grader.grade_many(warm)
    _forget_readings()
    start = time.perf_counter()
    grader.grade_many(pairs)
    ours = time.perf_counter() - start
    grader.close()
    theirs = sum(alone.verdict(*pair)[1] for pair in pairs)
    result = {
        "pairs": len(pairs),
        "grader_pairs_per_second": round(len(pairs) / ours, 1),
        "math_verify_alone_pairs_per_second": round(len(pairs) / theirs, 1),
        "ratio": round(theirs / ours, 2),
    }
    print(
        f"\nspeed, {name}: {result['grader_pairs_per_second']} pairs/s, Math-Verify alone "
        f"{result['math_verify_alone_pairs_per_second']} pairs/s, ratio {result['ratio']}"
    )
    return result


def _forget_readings() -> None:
    from repro.verify import reading

    reading._read_whole.cache_clear()


def number_pairs(references: list[str]) -> list[tuple[str, str]]:
    """Each reference against itself in another spelling, and against a wrong number."""
    rng = random.Random(0)
    pairs = []
    for reference in references:
        number = reference.replace(",", "")
        pairs.append((rng.choice([number, f"{number}.0", f"${number}", f"{number}.00", reference]), reference))
        pairs.append((str(float(number) + rng.choice([-1, 0.5, 1, 10])), reference))
    return pairs


def consecutive(references: list[str]) -> list[Pair]:
    """Every reference against itself, and against the next one, which is equal only if the two read the same.

    Whether two neighbours are equal is labelled by their text; the exceptions, equal values in different spellings,
    show up as wrong pairs and are to be looked at.
    """
    itself = [Pair(text, text, True, "itself") for text in references]
    following = zip(references, references[1:] + references[:1], strict=True)
    return itself + [Pair(a, b, a == b, "next problem") for a, b in following]


def load_field(path: Path, field: str) -> list[str]:
    """One text field of a JSON Lines file. Raises `PairsError`."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise PairsError(f"{path}: {error.strerror or error}") from None
    values = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values.append(json.loads(line)[field])
        except (ValueError, KeyError, TypeError):
            raise PairsError(f"{path}:{number}: not a JSON object with the field {field}") from None
    return values


def solution_pairs(path: Path) -> list[Pair]:
    """The labelled example solutions of GSM8K: the text behind the last "A: " against that of the ground truth."""
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            reference = row["ground_truth"].rsplit("A: ", 1)[1]
            solutions = [value for value in row.values() if isinstance(value, dict)]
            labelled = [(solution["solution"], solution["is_correct"]) for solution in solutions]
        except (ValueError, KeyError, IndexError, AttributeError):
            raise PairsError(f"{path}:{number}: not a row of example_model_solutions.jsonl") from None
        for text, label in labelled:
            _, mark, answer = text.rpartition("\nA: ")
            pairs.append(Pair(answer.strip() if mark else None, reference, label, "example solution"))
    return pairs


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m repro.verify.benchmark", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--pairs", type=Path, default=COMMITTED_PAIRS, help="labelled pairs (default: those of the tests)"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="holds gsm8k/test.jsonl and math500/test.jsonl")
    parser.add_argument("--solutions", type=Path, metavar="FILE", help="GSM8K's example_model_solutions.jsonl")
    options = parser.parse_args(argv)
    grader, alone = Grader(), MathVerifyAlone()
    try:
        result = _measure(options, grader, alone)
    except (PairsError, OSError) as error:
        print(f"repro.verify.benchmark: {error}", file=sys.stderr)
        return 2
    finally:
        grader.close()
        alone.close()
    print(json.dumps(result))
    return 0


def _measure(options: argparse.Namespace, grader: Grader, alone: MathVerifyAlone) -> dict:
    # All files are read before anything is measured, so that a wrong path is known at once.
    files = {"pairs": ("own pairs", load_pairs(options.pairs))}
    rng = random.Random(0)
    numbers = [str(rng.randrange(1, 10 ** rng.randrange(1, 6))) for _ in range(500)]
    readable = [pair for pair in files["pairs"][1] if pair.answer and read(pair.answer) and read(pair.reference)]
    # Power towers are left out: Math-Verify would hang on them, which says nothing about speed.
    mixed = [(pair.answer, pair.reference) for pair in readable if "^{9^" not in pair.answer]
    if options.data:
        numbers = [extract_answer(text) or "" for text in load_field(options.data / "gsm8k" / "test.jsonl", "answer")]
        files["gsm8k"] = ("GSM8K references", consecutive(numbers))
        files["math500"] = (
            "MATH-500 references",
            consecutive(load_field(options.data / "math500" / "test.jsonl", "answer")),
        )
        mixed = [(pair.answer, pair.reference) for pair in files["math500"][1]]
    if options.solutions:
        files["gsm8k_solutions"] = ("GSM8K solutions", solution_pairs(options.solutions))
    result = {key: accuracy(name, pairs, grader, alone) for key, (name, pairs) in files.items()}
    result["speed_numbers"] = speed("(a) integers and decimals", number_pairs(numbers), alone)
    result["speed_mixed"] = speed("(b) mix of kinds", mixed, alone)
    return result


if __name__ == "__main__":
    sys.exit(main())
