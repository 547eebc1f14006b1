"""What a thought solution does besides calculating, in the words of ``repro.tasks.prompts``: looks back, turns back."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch

from repro.model.sampling import Completion
from repro.results.metric import Metric, number, share
from repro.results.metrics import ratio
from repro.run import Rollouts, Run
from repro.tasks import prompts
from repro.tasks.linear import value_of
from repro.tasks.problem import Problem
from repro.tasks.prompts import CHECK, FAILS, HOLDS, split_steps
from repro.verify import extract_answer


@dataclass(frozen=True)
class Behaviours:
    """Of one solution. An answer *stands* once a line holds nothing but a number, until another one replaces it."""

    checks: int = 0
    """Looks back."""
    backtracks: int = 0
    """Times that something was found wrong."""
    redundant: int = 0
    """Looks back at a right answer."""
    settled: int | None = None
    """Number of lines until the right answer stood for the first time; None if it never did."""
    flipped: bool = False
    """A right answer stood, and the final one is wrong or missing."""


def is_right(found: str | None, answer: str) -> bool:
    """The same text, or the same value."""
    value = value_of(found or "")
    return found == answer or (value is not None and value == value_of(answer))


def read(text: str, answer: str) -> Behaviours:
    """Follow a solution line by line. What a look back finds stands only if the solution says that it was wrong."""
    checks = backtracks = redundant = 0
    settled, right, looking, seen = None, False, False, None
    for place, line in enumerate(map(str.strip, split_steps(text)), 1):
        if line == CHECK:
            checks, redundant = checks + 1, redundant + right
            looking, seen = True, None
        elif line == FAILS:
            backtracks, looking = backtracks + 1, False
            right = right if seen is None else is_right(seen, answer)
        elif line == HOLDS:
            looking = False
        elif re.fullmatch(r"-?\d+(/\d+)?", line):
            if looking:
                seen = line
            else:
                right = is_right(line, answer)
        elif line.startswith("\\boxed"):
            right = is_right(extract_answer(line), answer)
        if right and settled is None:
            settled = place
    final = is_right(extract_answer(text), answer)
    return Behaviours(checks, backtracks, redundant, settled, settled is not None and not final)


def solved_at(run: Run, completion: Completion, answer: str) -> int | None:
    """Tokens until the right answer first stands; None if it never does."""
    lines = read(completion.text, answer).settled
    if lines is None:
        return None
    text = "\n".join(split_steps(completion.text)[:lines])
    return len(run.policy.tokenizer(text, add_special_tokens=False).input_ids)


def think(run: Run, problems: list[Problem], samples: int, max_new_tokens: int) -> Rollouts:
    """Thought solutions of the evaluation's problems; the common evaluation asks for terse ones."""
    generator = torch.Generator(run.policy.device).manual_seed(20_000 + run.seed)
    chats = [prompts.think(p) for p in problems]
    completions = run.sample(chats, samples, generator=generator, max_new_tokens=max_new_tokens)
    return Rollouts(problems, completions, run.rewards(problems, completions))


def thought_metrics(run: Run, thought: Rollouts) -> dict[str, Metric]:
    """Accuracy, tokens, those behind the right answer, and behaviours; one value a problem, the mean of its samples."""
    rows: list[np.ndarray] = []
    for problem, group in zip(thought.problems, thought.completions, strict=True):
        values = []
        for c in group:
            seen, at = read(c.text, problem.answer), solved_at(run, c, problem.answer)
            checking = 0 if at is None else len(c.ids) - at
            found = seen.checks, seen.redundant, seen.backtracks, seen.flipped
            values.append((len(c.ids), checking, at is not None, *found))
        rows.append(np.mean(values, axis=0))
    tokens, checking, stood, checks, redundant, backtracks, flipped = np.array(rows).T
    return {
        "think accuracy": share(thought.rewards.mean(1)),
        "think tokens": number(tokens),
        "checking tokens": number(checking),
        "checking tokens of solved": number(ratio(checking, stood)),
        "checks": number(checks),
        "redundant checks": number(redundant),
        "backtracks": number(backtracks),
        "right to wrong": share(flipped),
    }
