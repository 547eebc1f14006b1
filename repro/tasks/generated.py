"""Problems that are made on the spot: the built-in ones, and a generator of reasoning-gym (the extra gym)."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence

from repro.tasks import ways
from repro.tasks.arithmetic import KINDS, LEVELS, ArithmeticProblem, draw_problem
from repro.tasks.countdown import Countdown, make_countdown
from repro.tasks.problem import Problem, TaskError, solution_text, split_of


def _unique(draw: Callable[[], Problem], split: str, size: int) -> list[Problem]:
    problems: dict[str, Problem] = {}
    tries = 0
    while len(problems) < size:
        problem = draw()
        tries += 1
        if problem.question not in problems and split_of(problem.question) == split:
            problems[problem.question] = problem
            tries = 0
        if tries > 100_000:
            raise TaskError(f"only {len(problems)} different {split} problems can be drawn, {size} were asked for")
    return list(problems.values())


def arithmetic(
    split: str, size: int, seed: int, levels: Sequence[int] = LEVELS, coincidences: bool = False
) -> list[Problem]:
    """``size`` different problems, kinds and levels in equal shares as long as each has new ones.

    ``coincidences``: only such that a wrong way can end at the right answer; without it, none that was seen to."""
    rng = random.Random(f"arithmetic {split} {seed}")

    def draw() -> Problem:
        return as_problem(draw_problem(KINDS, levels, rng, split, coincidences))

    return _unique(draw, split, size)


def as_problem(raw: ArithmeticProblem) -> Problem:
    """A problem of the built-in arithmetic with its reference solution."""
    answer = raw.reference.answer
    return Problem(raw.question, answer, solution_text(raw.reference.steps, answer), raw.kind, raw.level)


def from_problem(problem: Problem) -> ArithmeticProblem | None:
    """The built-in arithmetic that a problem is, to be executed; None for a problem of another task."""
    expression = problem.question.partition(" ")[2].rstrip(".")
    data = ways.read(problem.kind, expression) if problem.kind in KINDS else None
    return data and ArithmeticProblem(problem.question, problem.kind, problem.level, data)


def one_step(split: str, size: int, seed: int) -> list[Problem]:
    """Sum, difference or product of two numbers up to 12: for language models of about a hundred million parameters."""
    rng = random.Random(f"one_step {split} {seed}")

    def draw() -> Problem:
        sign = rng.choice("+-*")
        b, a = sorted((rng.randint(1, 12), rng.randint(1, 12))) if sign == "-" else rng.choices(range(1, 13), k=2)
        answer = str({"+": a + b, "-": a - b, "*": a * b}[sign])
        step = f"{a} {sign} {b} = {answer}"
        return Problem(f"What is {a} {sign} {b}?", answer, solution_text([step], answer), "one_step", 1)

    return _unique(draw, split, size)


def gsm_symbolic(split: str, size: int, seed: int) -> list[Problem]:
    """GSM-Symbolic templates from reasoning-gym (no download)."""

    def convert(entry: dict) -> Problem:
        steps = re.sub(r"<<.*?>>", "", entry["metadata"].get("answer_cot") or "").split("####")[0].strip().split("\n")
        return Problem(entry["question"], entry["answer"], solution_text(steps, entry["answer"]), "gsm_symbolic", 1)

    return _reasoning_gym("gsm_symbolic", convert, split, size, seed)


def countdown(split: str, size: int, seed: int) -> list[Problem]:
    """Reach a target from three numbers, each used exactly once; any right expression is accepted."""
    rng = random.Random(f"countdown {split} {seed}")
    return _unique(lambda: countdown_problem(make_countdown(rng)), split, size)


def countdown_problem(raw: Countdown) -> Problem:
    """A problem whose answer is an expression."""
    solution = solution_text((), raw.expression)
    return Problem(raw.question, str(raw.target), solution, "countdown", 1, raw.numbers)


def _reasoning_gym(name: str, convert: Callable[[dict], Problem], split: str, size: int, seed: int) -> list[Problem]:
    try:
        import reasoning_gym
    except ImportError:
        reason = "needs the package reasoning-gym, and that a C compiler"
        raise TaskError(f"--task {name} {reason}; run: pip install -c constraints.txt -e '.[gym]'") from None

    def entries() -> Iterator[dict]:
        for block in itertools.count():
            yield from reasoning_gym.create_dataset(name, seed=1_000_003 * seed + block, size=500)

    source = entries()
    return _unique(lambda: convert(next(source)), split, size)


GENERATED = {"arithmetic": arithmetic, "one_step": one_step, "gsm_symbolic": gsm_symbolic, "countdown": countdown}
