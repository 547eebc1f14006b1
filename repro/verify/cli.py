"""`repro verify`: grade one pair, or every pair of a file."""

from __future__ import annotations

import argparse
import json
import sys

from repro.verify.extract import extract_answer


def main(argv: list[str]) -> int:
    """Run the command with the arguments behind `repro verify`. Returns 0; exits with 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog="repro verify",
        description="Is a final answer equal to the reference? Outcomes: equal, different, unreadable_answer, "
        "unreadable_reference.",
    )
    parser.add_argument(
        "answer", nargs="?", help="the final answer, for example '\\frac{1}{2}', or a solution that marks it"
    )
    parser.add_argument("reference", nargs="?", help="the reference, for example 0.5")
    parser.add_argument("--pairs", metavar="FILE.jsonl", help="grade every line (fields answer, reference, equal)")
    parser.add_argument(
        "--time-limit", type=_seconds, default=3.0, metavar="SECONDS", help="CPU time for one pair (default 3)"
    )
    # Two arguments are a pair even where the answer starts with a minus sign.
    pair_only = len(argv) == 2 and not argv[0].startswith("--")
    options = parser.parse_args(["--", *argv] if pair_only else argv)
    if (options.pairs is None) == (options.reference is None) or (options.pairs and options.answer is not None):
        parser.error("give either ANSWER and REFERENCE or --pairs FILE.jsonl")

    from repro.verify.grader import Grader

    grader = Grader(seconds=options.time_limit)
    try:
        if options.pairs is None:
            answer, note = _final(options.answer)
            outcome, how = grader.explain(answer, options.reference)
            print(f"{outcome}  ({note}{how})")
        else:
            _grade_file(grader, options.pairs)
    finally:
        grader.close()
    return 0


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError("must be above 0 and below 3600")
    return value


def _final(answer: str | None) -> tuple[str | None, str]:
    """The final answer that a whole solution marks, as in training, with a note on it; else the text as it is."""
    found = extract_answer(answer or "")
    return (answer, "") if found in (None, answer) else (found, f"final answer of the solution: {found}; ")


def _grade_file(grader, path: str) -> None:
    """Print one JSON line for each pair, in the order of the file, and a summary as the last line."""
    from repro.verify.pairs import PairsError, load_pairs, summarise

    try:
        pairs = load_pairs(path)
    except PairsError as error:
        print(f"repro verify: {error}", file=sys.stderr)
        sys.exit(2)
    outcomes = []
    for start in range(0, len(pairs), 500):
        chunk = pairs[start : start + 500]
        finals = [_final(pair.answer) for pair in chunk]
        graded = grader.explain_many([(answer, p.reference) for p, (answer, _) in zip(chunk, finals, strict=True)])
        for pair, (_, note), (outcome, how) in zip(chunk, finals, graded, strict=True):
            row = {"answer": pair.answer, "reference": pair.reference, "outcome": str(outcome), "how": note + how}
            if pair.equal is not None:
                row["equal"] = pair.equal
            print(json.dumps(row))
            outcomes.append(outcome)
    print(json.dumps({"summary": summarise(pairs, outcomes)}))
