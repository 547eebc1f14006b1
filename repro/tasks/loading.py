"""Problems: the built-in arithmetic, GSM8K, MATH, and generators of the package reasoning-gym.

``load(task, split, size, seed, data)`` returns problems of one split. Train, validation and test never share a
question: for generated tasks the split of a question is a hash of its text, for data sets validation is a part of the
train file that is chosen by the same hash.
"""

from __future__ import annotations

from functools import lru_cache

from repro.tasks.datasets import FROM_FILES, _from_files
from repro.tasks.generated import GENERATED
from repro.tasks.problem import Problem, TaskError

TASKS = (*GENERATED, *FROM_FILES)


@lru_cache(maxsize=16)
def _drawn(task: str, split: str, size: int, seed: int) -> list[Problem]:
    """Drawn once in a process: that no wrong way ends at the right answer takes many attempts to see."""
    return GENERATED[task](split, size, seed)


def load(task: str, split: str, size: int, seed: int = 0, data: str | None = None) -> list[Problem]:
    """``size`` problems of a split, in an order given by ``seed``.

    ``data`` is a folder with ``train.jsonl`` and ``test.jsonl`` in place of the hub (gsm8k and math only). Raises
    TaskError for an unknown task, a file that is missing or broken (with its line), and for too large a size.
    """
    if task in GENERATED:
        if data is not None:
            raise TaskError(f"--data goes with {' and '.join(FROM_FILES)}; {task} makes its own problems")
        return list(_drawn(task, split, size, seed))
    if task not in FROM_FILES:
        raise TaskError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    return _from_files(task, split, size, seed, data, *FROM_FILES[task])
