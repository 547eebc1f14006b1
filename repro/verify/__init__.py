r"""The grader: is this final answer equal to the reference?

    from repro.verify import extract_answer, grade
    grade(extract_answer(completion), r"\frac{1}{2}")        # Outcome.EQUAL, DIFFERENT, UNREADABLE_...

It is safe (no text is ever executed), total (every pair of strings gets one of four outcomes, within a time limit),
symmetric (`equivalent(a, b)` is `equivalent(b, a)`), exact (1/2^99 is not 1/2^98) and conservative: what cannot be
shown to be equal is not equal. `repro/verify/README.md` says what counts as equal and how cases of doubt were decided.

Importing this package imports neither SymPy nor Math-Verify nor torch; only the worker processes do.
"""

from collections.abc import Sequence

from repro.verify.extract import extract_answer
from repro.verify.grader import Grader, default_grader
from repro.verify.outcome import Outcome

__all__ = ["Grader", "Outcome", "equivalent", "extract_answer", "grade", "grade_many"]


def grade(answer: str | None, reference: str) -> Outcome:
    """Grade one final answer (None: there is none) against a reference; raises nothing on any pair of strings.

    Both are final answers: use `extract_answer` on a completion first.
    """
    return default_grader().grade(answer, reference)


def grade_many(pairs: Sequence[tuple[str | None, str]]) -> list[Outcome]:
    """Grade (answer, reference) pairs, in order; expressions are worked on by several processes at a time."""
    return default_grader().grade_many(pairs)


def equivalent(a: str, b: str) -> bool:
    """Whether two final answers are equal. The order of the arguments makes no difference."""
    return default_grader().equivalent(a, b)
