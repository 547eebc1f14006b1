"""Grading of pairs: the exact path in this process, the rest in the pool, verdicts kept in a cache."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from repro.verify.compare import same
from repro.verify.forms import needs_worker
from repro.verify.outcome import Outcome
from repro.verify.pool import Pool, Reply
from repro.verify.reading import read

CACHE_PAIRS = 100_000
_NO_ANSWER = ""  # what a missing answer is graded as; it is never readable


class Grader:
    """Grades answers; `seconds` limits a pair's CPU time, `megabytes` the memory of one worker."""

    def __init__(self, seconds: float = 3.0, megabytes: int = 1024, workers: int | None = None) -> None:
        self.pool = Pool(workers or min(4, os.cpu_count() or 1), seconds, megabytes)
        self._cache: dict[tuple[str, str], tuple[Outcome, str]] = {}

    def grade(self, answer: str | None, reference: str) -> Outcome:
        return self.explain(answer, reference)[0]

    def explain(self, answer: str | None, reference: str) -> tuple[Outcome, str]:
        """The outcome and one line on how it was reached."""
        pair = (_NO_ANSWER if answer is None else answer, reference)
        return self._decide_here(pair) or self._cache.get(pair) or self._decide_in_worker(pair)

    def grade_many(self, pairs: Sequence[tuple[str | None, str]]) -> list[Outcome]:
        return [outcome for outcome, _ in self.explain_many(pairs)]

    def explain_many(self, pairs: Sequence[tuple[str | None, str]]) -> list[tuple[Outcome, str]]:
        """`explain` for many pairs at once; a pair that occurs several times is decided once."""
        found: dict[tuple[str, str], tuple[Outcome, str]] = {}
        open_pairs: dict[tuple[str, str], None] = {}
        keys = [(_NO_ANSWER if answer is None else answer, reference) for answer, reference in pairs]
        for pair in keys:
            if pair not in found and pair not in open_pairs:
                decided = self._decide_here(pair) or self._cache.get(pair)
                if decided:
                    found[pair] = decided
                else:
                    open_pairs[pair] = None
        if open_pairs:
            with ThreadPoolExecutor(min(self.pool.size, len(open_pairs))) as threads:
                found.update(zip(open_pairs, threads.map(self._decide_in_worker, open_pairs), strict=True))
        return [found[pair] for pair in keys]

    def equivalent(self, a: str, b: str) -> bool:
        # One order, so that both orders share one verdict even where the time limit decides.
        return self.grade(*sorted((a, b))) is Outcome.EQUAL

    def close(self) -> None:
        """End the workers; the next pair that needs one starts them again."""
        self.pool.close()

    def _decide_here(self, pair: tuple[str, str]) -> tuple[Outcome, str] | None:
        answer, reference = map(read, pair)
        if reference is None:
            return Outcome.UNREADABLE_REFERENCE, "the reference is no number, expression or text that can be read"
        if needs_worker(reference):
            return None
        if answer is None:
            return Outcome.UNREADABLE_ANSWER, "the answer is no number, expression or text that can be read"
        if needs_worker(answer):
            return None
        # Always in the same order, so that the verdict cannot depend on it.
        ordered = (answer, reference) if pair[0] <= pair[1] else (reference, answer)
        outcome = Outcome.EQUAL if same(*ordered) else Outcome.DIFFERENT
        return outcome, f"exact path: {type(answer).__name__} against {type(reference).__name__}"

    def _decide_in_worker(self, pair: tuple[str, str]) -> tuple[Outcome, str]:
        decided = self._interpret(self.pool.ask(*pair))
        if len(self._cache) >= CACHE_PAIRS:
            self._cache.clear()
        self._cache[pair] = decided
        return decided

    def _interpret(self, reply: Reply) -> tuple[Outcome, str]:
        limit = f"within {self.pool.seconds:g} s of CPU time and {self.pool.megabytes} MiB"
        if reply.died:
            limit += " (two workers died of it)"
        if reply.reference is None:
            return Outcome.UNREADABLE_REFERENCE, f"worker: the reference could not be worked out {limit}"
        if not reply.reference:
            return Outcome.UNREADABLE_REFERENCE, "worker: the reference has no value that can be worked out"
        if reply.answer is None:
            return Outcome.UNREADABLE_ANSWER, f"worker: the answer could not be worked out {limit}"
        if not reply.answer:
            return Outcome.UNREADABLE_ANSWER, "worker: the answer has no value that can be worked out"
        if reply.equal is None:
            return Outcome.DIFFERENT, f"worker: equality could not be shown {limit}"
        outcome = Outcome.EQUAL if reply.equal else Outcome.DIFFERENT
        return outcome, "worker: Math-Verify's parser and exact comparison"


_default: Grader | None = None
_default_lock = threading.Lock()


def default_grader() -> Grader:
    """The grader behind `repro.verify.grade` and the other functions of the package."""
    global _default
    if _default is None:
        with _default_lock:
            _default = _default or Grader()
    return _default
