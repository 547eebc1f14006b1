"""Feedback in words on wrong attempts: an exact critic in grades, critiques by the model, and their controls.

A critic gives words for each attempt; "" says no more than that it is wrong. Attempts are taken for wrong: whether one
is right is the verifier's business, and a right one gets no feedback.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal

import torch

from repro.model.policy import BASE, POLICY
from repro.run import Run
from repro.tasks import prompts
from repro.tasks.arithmetic import first_wrong, right_lines, way_of
from repro.tasks.generated import from_problem
from repro.tasks.problem import Problem
from repro.tasks.prompts import Chat

Grade = Literal["verdict", "hint", "place", "step"]
Critic = Callable[[Run, Sequence[Problem], Sequence[str]], list[str]]  # problems, an attempt at each -> words
MASK = "[masked]"
NUMBER = re.compile(
    r"\\[dt]?frac\{(?P<top>-?\d+)\}\{(?P<bottom>\d+)\}"
    r"|(?<![\w.])(?P<whole>-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)(?:/(?P<under>\d+))?(?!\w|[./]\d)"
)


def feedback(chat: Chat, attempt: str, words: str) -> Chat:
    """The conversation with a wrong attempt, what is said of it, and the request for another one."""
    return prompts.revise_with_feedback(chat, attempt, words) if words else prompts.revise(chat, attempt, right=False)


# --- what must not be said ------------------------------------------------------------------------------------------


def _value(found: re.Match) -> Fraction | None:
    top, bottom = found["top"] or found["whole"].replace(",", ""), found["bottom"] or found["under"] or "1"
    return Fraction(top) / int(bottom) if int(bottom) else None


def _stated(text: str, answer: str) -> list[tuple[int, int]]:
    """Places where the answer stands by itself: as it is written, or as a number of the same value."""
    written = rf"(?<![\w.]){re.escape(answer)}(?!\w|[./]\d)"
    places = {found.span() for found in re.finditer(written, text)} if answer else set()
    if wanted := NUMBER.fullmatch(answer):
        places |= {found.span() for found in NUMBER.finditer(text) if _value(found) == _value(wanted)}
    outer = [p for p in places if not any(q != p and q[0] <= p[0] and p[1] <= q[1] for q in places)]
    return sorted(outer)


def mask(text: str, answer: str) -> str:
    """The text without the answer. The number in "Step N" is a place and stays."""
    named = [found.span() for found in re.finditer(r"(?i)\bstep \d+", text)]
    hidden, end = "", 0
    for start, stop in _stated(text, answer):
        if not any(a <= start and stop <= b for a, b in named):
            hidden, end = hidden + text[end:start] + MASK, stop
    return hidden + text[end:]


def leaks(words: str, answer: str, known: str = "") -> bool:
    """Do the words say the answer, where what is ``known`` already (question, attempt) doesn't?"""
    return mask(words, answer) != words and not _stated(known, answer)


# --- an exact critic ------------------------------------------------------------------------------------------------


def exact(problem: Problem, attempt: str, grade: Grade) -> str:
    """What is wrong with an attempt at a built-in problem.

    hint: the sort of the first error. place: its step. step: also a right step in its place, one that goes on from the
    line before. No grade below ``step`` says more than the number of a step, and a step that would say the answer is
    left at its place. For other tasks no first error is known: ``step`` shows the reference without the answer, all
    else is no more than the verdict.
    """
    if grade == "verdict":
        return ""
    raw = from_problem(problem)
    if raw is None:
        shown = f"{prompts.REFERENCE}\n{mask(problem.solution, problem.answer)}"
        return shown if grade == "step" and problem.solution else ""
    number = first_wrong(problem.question, attempt)
    if number is None:  # what is wrong stands behind a right box
        return ""
    if grade == "hint":
        return prompts.HINTS.get(way_of(raw, attempt, number), prompts.HINTS["slip"])
    if grade == "step":
        step = random.Random(attempt).choice(right_lines(raw, attempt, number))
        words = prompts.feedback_on_step(number, step)
        if not leaks(words, problem.answer, f"{problem.question}\n{attempt}") and not step.startswith("\\boxed"):
            return words
    return prompts.feedback_on_place(number)


def exact_critic(grade: Grade) -> Critic:
    """``exact`` in one grade."""
    return lambda run, problems, attempts: [exact(p, text, grade) for p, text in zip(problems, attempts, strict=True)]


# --- critiques by the model, and controls ---------------------------------------------------------------------------


def own_critic(
    adapter: str = POLICY, temperature: float | None = None, generator: torch.Generator | None = None
) -> Critic:
    """The model's own critique, which knows no more than the conversation."""

    def critic(run: Run, problems: Sequence[Problem], attempts: Sequence[str]) -> list[str]:
        asked = [prompts.criticize(prompts.solve(p), text) for p, text in zip(problems, attempts, strict=True)]
        return [c.text.strip() for (c,) in run.sample(asked, 1, temperature, adapter, generator)]

    return critic


def to_predict(run: Run, problem: Problem, attempt: str, words: str) -> tuple[list[int], list[int]]:
    """The request for an own critique and a critic's words as its reply, as ids: what teaches a policy to criticise."""
    tokenizer = run.policy.tokenizer
    reply = tokenizer(words, add_special_tokens=False).input_ids
    return run.policy.encode(prompts.criticize(prompts.solve(problem), attempt)), [*reply, tokenizer.eos_token_id]


def step_named(text: str) -> int | None:
    """The first "Step N" of a critique, or a reply that is only a number."""
    found = re.search(r"(?i)step\s*(\d+)", text) or re.fullmatch(r"\s*(\d+)\s*", text)
    return int(found[1]) if found else None


def reference_critic(
    grade: Literal["place", "step"] = "step",
    adapter: str = BASE,
    temperature: float | None = None,
    generator: torch.Generator | None = None,
) -> Critic:
    """The model compares with the reference, names the first wrong step and writes a right one; the answer is masked.

    Where it names no step of the attempt, the words are "".
    """

    def critic(run: Run, problems: Sequence[Problem], attempts: Sequence[str]) -> list[str]:
        asked = [prompts.find_error(p, text) for p, text in zip(problems, attempts, strict=True)]
        named = [step_named(c.text) for (c,) in run.sample(asked, 1, temperature, adapter, generator)]
        rows = [i for i, n in enumerate(named) if n and n <= len(prompts.split_steps(attempts[i]))]
        words = [""] * len(named)
        if grade == "place":
            return [prompts.feedback_on_place(n) if i in set(rows) else "" for i, n in enumerate(named)]
        chats = [prompts.correct_step(asked[i], named[i]) for i in rows]
        written = run.sample(chats, 1, temperature, adapter, generator) if chats else []
        for i, (c,) in zip(rows, written, strict=True):
            step = " ".join(c.text.split())  # one line, one step
            words[i] = prompts.feedback_on_step(named[i], mask(step, problems[i].answer))
        return words

    return critic


def samples_critiques(task: str) -> bool:
    """Is the critic of a task (``critic_for``) a model, whose completions an arm pays for?"""
    return task != "arithmetic"


def critic_for(task: str, grade: Literal["place", "step"], adapter: str = BASE) -> Critic:
    """Exact on the built-in task; elsewhere a model that reads the reference."""
    return reference_critic(grade, adapter) if samples_critiques(task) else exact_critic(grade)


def shuffled(critic: Critic) -> Critic:
    """The control: each attempt gets the words on an attempt at another problem, the next one in order."""

    def moved(run: Run, problems: Sequence[Problem], attempts: Sequence[str]) -> list[str]:
        words, n = critic(run, problems, attempts), len(problems)
        others = (
            next((j % n for j in range(i + 1, i + n) if problems[j % n].question != problems[i].question), None)
            for i in range(n)
        )
        return ["" if j is None else words[j] for j in others]

    return moved
