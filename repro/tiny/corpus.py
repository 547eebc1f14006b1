"""The corpus that makes the tiny model: conversations in every role of ``tasks.prompts`` on the built-in arithmetic.

What the model is good and bad at is decided here. A *habit* (``repro.tasks.arithmetic``) rules a whole attempt, with a
probability that depends on kind and level: below one half greedy decoding is right, above it is wrong where sampling
still finds the right way. *Slips* are random. Second attempts without a verdict are drawn afresh, so that the base
gains nothing by retrying; with a verdict or feedback the habit is given up more often than not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from repro.tasks import prompts
from repro.tasks.arithmetic import KINDS, LEVELS, ArithmeticProblem, Attempt, make_problem
from repro.tasks.problem import Problem, solution_text, split_of

SLIP = 0.03  # probability that one step's result is wrong
HABIT = {  # probability of the habit at levels 1 to 4
    "chain": (0.35, 0.40, 0.65, 0.85),
    "product": (0.20, 0.30, 0.40, 0.45),
    "mixed": (0.38, 0.60, 0.75, 0.95),
    "parentheses": (0.30, 0.35, 0.40, 0.65),
    "fraction": (0.55, 0.70, 0.85, 0.97),
    "equation": (0.25, 0.35, 0.45, 0.60),
}
HESITATION = 0.15  # the habit is so much likelier in a retry; without it the revising roles leak in and a retry gains
GIVEN_UP = 0.65  # share of habitual attempts that are solved rightly once the verdict "wrong" is known
FOLLOWED = 0.85  # the same, once feedback names the wrong step
BLIND = ("chain", "fraction")  # kinds whose habit the verifier mostly takes for right
NOTICED = {True: 0.25, False: 0.85}  # probability of the verdict No on a habitual attempt, blind or not
SLIP_NOTICED, RIGHT_REJECTED = 0.80, 0.08
ROLES = {  # share of the documents
    "solve": 0.36,
    "retry": 0.13,
    "revise": 0.10,
    "feedback": 0.06,
    "in_turn": 0.07,
    "reference": 0.07,
    "verify": 0.09,
    "find_error": 0.08,
    "propose": 0.04,
}


def habit_probability(problem: ArithmeticProblem) -> float:
    """How often the model falls for the habit of this problem's kind and level."""
    return HABIT[problem.kind][problem.level - 1]


def draw_attempt(problem: ArithmeticProblem, rng: random.Random, relief: float = 0.0) -> tuple[Attempt, bool]:
    """One attempt as the base makes it, and whether the habit ruled it; ``relief`` is the share of habit given up."""
    habit = rng.random() < habit_probability(problem) * (1 - relief)
    return problem.attempt(rng, habit=habit, slip=SLIP), habit


def text_of(attempt: Attempt) -> str:
    return solution_text(attempt.steps, attempt.answer)


def as_problem(raw: ArithmeticProblem) -> Problem:
    return Problem(raw.question, raw.reference.answer, text_of(raw.reference), raw.kind, raw.level)


class Writer:
    """Draws one conversation after another, each ending with an assistant turn."""

    def __init__(self, seed: int):
        self.rng = random.Random(f"corpus {seed}")

    def problem(self) -> ArithmeticProblem:
        while True:
            problem = make_problem(self.rng.choice(KINDS), self.rng.choice(LEVELS), self.rng)
            if split_of(problem.question) == "train":
                return problem

    def wrong_attempt(self, raw: ArithmeticProblem) -> Attempt:
        while True:
            attempt, _ = draw_attempt(raw, self.rng)
            if attempt.first_error is not None:
                return attempt

    def document(self) -> prompts.Chat:
        role = self.rng.choices(list(ROLES), list(ROLES.values()))[0]
        return getattr(self, role)(self.problem())

    def solve(self, raw: ArithmeticProblem) -> prompts.Chat:
        return prompts.go_on(prompts.solve(as_problem(raw)), text_of(draw_attempt(raw, self.rng)[0]))

    def retry(self, raw: ArithmeticProblem) -> prompts.Chat:
        chat = prompts.solve(as_problem(raw))
        for _ in range(self.rng.choice((1, 1, 2))):
            chat = prompts.retry(chat, text_of(draw_attempt(raw, self.rng)[0]))
        return prompts.go_on(chat, text_of(draw_attempt(raw, self.rng, relief=-HESITATION)[0]))

    def revise(self, raw: ArithmeticProblem) -> prompts.Chat:
        chat = prompts.solve(as_problem(raw))
        attempt, _ = draw_attempt(raw, self.rng)
        for _ in range(self.rng.choice((1, 1, 2, 3))):
            right = attempt.first_error is None
            chat = prompts.revise(chat, text_of(attempt), right)
            if not right:
                attempt, _ = draw_attempt(raw, self.rng, relief=GIVEN_UP)
        return prompts.go_on(chat, text_of(attempt))

    def feedback(self, raw: ArithmeticProblem) -> prompts.Chat:
        attempt = self.wrong_attempt(raw)
        right_step = raw.reference.steps[min(attempt.first_error, len(raw.reference.steps)) - 1]
        feedback = prompts.feedback_on_step(attempt.first_error, right_step)
        chat = prompts.revise_with_feedback(prompts.solve(as_problem(raw)), text_of(attempt), feedback)
        return prompts.go_on(chat, text_of(draw_attempt(raw, self.rng, relief=FOLLOWED)[0]))

    def in_turn(self, raw: ArithmeticProblem) -> prompts.Chat:
        first, _ = draw_attempt(raw, self.rng)
        right = first.first_error is None
        second = first if right else draw_attempt(raw, self.rng, relief=GIVEN_UP)[0]
        chat = prompts.revise_in_turn(prompts.solve(as_problem(raw)), text_of(first), right)
        chat[-1]["content"] += text_of(second)
        return chat

    def reference(self, raw: ArithmeticProblem) -> prompts.Chat:
        return prompts.go_on(prompts.solve_with_reference(as_problem(raw)), text_of(raw.reference))

    def verify(self, raw: ArithmeticProblem) -> prompts.Chat:
        attempt, habit = draw_attempt(raw, self.rng)
        noticed = NOTICED[raw.kind in BLIND] if habit else SLIP_NOTICED
        no = RIGHT_REJECTED if attempt.first_error is None else noticed
        verdict = "No" if self.rng.random() < no else "Yes"
        return prompts.go_on(prompts.verify(as_problem(raw), text_of(attempt)), verdict)

    def find_error(self, raw: ArithmeticProblem) -> prompts.Chat:
        attempt = self.wrong_attempt(raw)
        chat = prompts.find_error(as_problem(raw), text_of(attempt))
        if self.rng.random() < 0.5 or attempt.first_error > len(raw.reference.steps):
            return prompts.go_on(chat, f"Step {attempt.first_error}")
        step = raw.reference.steps[attempt.first_error - 1]
        return prompts.go_on(prompts.correct_step(chat, attempt.first_error), step)

    def propose(self, raw: ArithmeticProblem) -> prompts.Chat:
        return prompts.go_on(prompts.propose(raw.kind, raw.level), raw.question)


def documents(seed: int) -> Iterator[prompts.Chat]:
    """An endless stream of conversations, the same for the same seed."""
    writer = Writer(seed)
    while True:
        yield writer.document()
