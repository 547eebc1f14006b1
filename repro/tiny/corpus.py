"""The corpus that makes the tiny model: conversations in every role of ``tasks.prompts`` on the built-in arithmetic.

What the model is good and bad at is decided here and by the temptations of ``tasks.ways``. Second attempts without a
verdict are drawn afresh, so that the base gains nothing by retrying; what a request knows (a verdict, a place, a step,
a reference) lowers the temptations of the attempt that follows. Verdicts err as often as NOTICED says.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from repro.tasks import prompts
from repro.tasks.arithmetic import KINDS, LEVELS, SLIP, STYLES, ArithmeticProblem, Attempt, make_problem
from repro.tasks.countdown import draw_try, make_countdown, solutions
from repro.tasks.generated import as_problem, countdown_problem
from repro.tasks.problem import solution_text, split_of
from repro.tasks.prompts import Chat

HESITATION = 1.1  # temptations of a retry: what the roles with a verdict teach leaks into it
# temptations once the verdict, a hint, the place, the step is known
TOLD, HINTED, PLACED, CORRECTED = 0.5, 0.4, 0.35, 0.2
CUED = 0.3  # the same after a control phrase in the turn
STUBBORN = ("fraction",)  # kinds in which feedback is followed less
# probability of the verdict No by the first wrong way
NOTICED = {"order": 0.72, "sign": 0.8, "drop": 0.9, "fact": 0.4, "slip": 0.8}
BLIND = {"mixed": 0.35, "fraction": 0.45}  # kinds whose wrong grouping mostly passes
RIGHT_REJECTED = 0.1
CHECK_NOTICED, CHECK_REJECTED = 0.6, 0.05  # the same for a look back inside a solution
MALFORMED, PROPOSED_WRONG = 0.05, 0.3
COUNTDOWN_RIGHT = 0.12  # share of right terse answers
EASY = 12_288  # so many documents ask to solve problems of the lower levels, before anything else
SKILL = 60_000  # up to this one, only CORE roles: most of their tokens are attempts, which is what takes long to learn
CORE = ("solve", "retry", "revise", "in_turn", "check", "think")
# from this one on, GIVEN_MORE times as many documents that compare with a reference: what is learnt last
LATE = 178_900
GIVEN = ("reference", "part", "verify_given", "find_error")
GIVEN_MORE = 3
ROLES = {  # share of the documents
    "solve": 0.36,
    "retry": 0.09,
    "revise": 0.06,
    "feedback": 0.06,
    "in_turn": 0.05,
    "check": 0.05,
    "think": 0.03,
    "reference": 0.05,
    "part": 0.03,
    "verify": 0.07,
    "verify_given": 0.03,
    "compare": 0.02,
    "find_error": 0.06,
    "criticize": 0.01,
    "propose": 0.02,
    "rule": 0.01,
    "countdown": 0.02,
}


@dataclass(frozen=True)
class Document:
    """A conversation that ends with an assistant turn; what that turn begins with in ``given`` isn't learnt."""

    chat: Chat
    given: str = ""


def text_of(attempt: Attempt) -> str:
    return solution_text(attempt.steps, attempt.answer)


def right_step(raw: ArithmeticProblem, attempt: Attempt, rng: random.Random) -> str:
    """What the first wrong line should have been, in the attempt's own style."""
    before = attempt.first_error - 2
    start = attempt.states[before] if before >= 0 else raw.data
    right = raw.attempt(rng, attempt.style, scale=0.0, slip=0.0, start=start)
    return prompts.split_steps(text_of(right))[0]


class Writer:
    """Draws one document after another: EASY short ones, CORE roles, every role, and LATE more with a reference."""

    def __init__(self, seed: int, written: int = 0):
        self.rng = random.Random(f"corpus {seed} {written}")
        self.written = written

    @property
    def levels(self) -> tuple[int, ...]:
        return LEVELS if self.written > EASY else LEVELS[:2]

    def problem(self) -> ArithmeticProblem:
        return make_problem(self.rng.choice(KINDS), self.rng.choice(self.levels), self.rng, "train")

    def hard(self, raw: ArithmeticProblem) -> tuple[ArithmeticProblem, Attempt]:
        """A problem and a wrong attempt at it."""
        while True:
            for _ in range(20):
                attempt = raw.attempt(self.rng)
                if not attempt.right:
                    return raw, attempt
            raw = self.problem()

    def again(self, raw: ArithmeticProblem, scale: float, style: str = "") -> Attempt:
        """Another attempt with so many of the temptations and slips."""
        return raw.attempt(self.rng, style, scale, SLIP * min(1.0, scale))

    def document(self) -> Document:
        self.written += 1
        roles = ("solve",) if self.written <= EASY else CORE if self.written <= SKILL else tuple(ROLES)
        more = GIVEN_MORE if self.written > LATE else 1
        role = self.rng.choices(roles, [ROLES[role] * (more if role in GIVEN else 1) for role in roles])[0]
        made = getattr(self, role)(self.problem())
        return made if isinstance(made, Document) else Document(made)

    # --- attempts ---------------------------------------------------------------------------------------------------

    def solve(self, raw: ArithmeticProblem) -> Chat:
        return prompts.go_on(prompts.solve(as_problem(raw)), text_of(raw.attempt(self.rng)))

    def retry(self, raw: ArithmeticProblem) -> Chat:
        chat = prompts.solve(as_problem(raw))
        follow = prompts.retry if self.rng.random() < 0.8 else prompts.another
        for _ in range(self.rng.choice((1, 1, 1, 2))):
            chat = follow(chat, text_of(raw.attempt(self.rng)))
        return prompts.go_on(chat, text_of(self.again(raw, HESITATION)))

    def revise(self, raw: ArithmeticProblem) -> Chat:
        chat, attempt = prompts.solve(as_problem(raw)), raw.attempt(self.rng)
        for _ in range(self.rng.choice((1, 1, 1, 2, 3))):
            chat = prompts.revise(chat, text_of(attempt), attempt.right)
            if not attempt.right:
                attempt = self.again(raw, TOLD)
        return prompts.go_on(chat, text_of(attempt))

    def feedback(self, raw: ArithmeticProblem) -> Chat:
        """Up to three rounds of place, hint or right step."""
        raw, attempt = self.hard(raw)
        chat = prompts.solve(as_problem(raw))
        for _ in range(self.rng.choice((1, 1, 1, 2, 3))):
            if attempt.right or attempt.first_error is None:
                break
            words, scale = self.critique(raw, attempt)
            chat = prompts.revise_with_feedback(chat, text_of(attempt), words)
            attempt = self.again(raw, scale, attempt.style if self.rng.random() < 0.6 else "")
        return prompts.go_on(chat, text_of(attempt))

    def critique(self, raw: ArithmeticProblem, attempt: Attempt) -> tuple[str, float]:
        number = attempt.first_error
        drawn, stubborn = self.rng.random(), 0.3 * (raw.kind in STUBBORN)
        if drawn < 0.5:
            return prompts.feedback_on_step(number, right_step(raw, attempt, self.rng)), CORRECTED + stubborn
        if drawn < 0.75:
            return prompts.feedback_on_place(number), PLACED + stubborn
        return prompts.HINTS.get(attempt.ways[number - 1], prompts.HINTS["slip"]), HINTED + stubborn

    def in_turn(self, raw: ArithmeticProblem) -> Chat:
        first = raw.attempt(self.rng)
        second = first if first.right else self.again(raw, CUED)
        chat = prompts.revise_in_turn(prompts.solve(as_problem(raw)), text_of(first), first.right)
        chat[-1]["content"] += text_of(second)
        return chat

    def check(self, raw: ArithmeticProblem) -> Chat:
        """A look back that must find out by itself."""
        first = raw.attempt(self.rng)
        noticed = self.rng.random() < (CHECK_REJECTED if first.right else CHECK_NOTICED)
        chat = prompts.check_in_turn(prompts.solve(as_problem(raw)), text_of(first))
        if noticed:
            chat[-1]["content"] += f"{prompts.FAILS}\n\n{text_of(self.again(raw, CUED))}"
        else:
            chat[-1]["content"] += f"{prompts.HOLDS}\n\n\\boxed{{{first.answer}}}"
        return chat

    def think(self, raw: ArithmeticProblem) -> Chat:
        """Backtracking on the way, then up to four more looks at an answer that is mostly settled."""
        style = self.rng.choice(("left", "right"))
        attempt = self.again(raw, 0.9, style)
        lines = [*attempt.steps, attempt.answer]
        if attempt.first_error is not None and self.rng.random() < 0.4:
            kept = attempt.first_error
            start = attempt.states[kept - 2] if kept > 1 else raw.data
            rest = raw.attempt(self.rng, style, 0.4, start=start)
            lines = [*lines[:kept], prompts.CHECK, prompts.FAILS, *rest.steps, rest.answer]
            answer, right = rest.answer, rest.right
        else:
            answer, right = attempt.answer, attempt.right
        for _ in range(self.rng.choices(range(5), (2, 3, 3, 2, 1))[0]):
            look = self.again(raw, 0.6 if right else 0.8, self.rng.choice(("left", "right")))
            lines += [prompts.CHECK, *look.steps, look.answer]
            changes = (look.right and not right) or (right and not look.right and self.rng.random() < 0.1)
            if look.answer == answer:
                lines.append(prompts.HOLDS)
            elif changes:
                answer, right = look.answer, look.right
                lines.append(prompts.FAILS)
        return prompts.go_on(prompts.think(as_problem(raw)), solution_text(lines, answer))

    # --- with more in the context ------------------------------------------------------------------------------------

    def reference(self, raw: ArithmeticProblem) -> Document:
        """The teacher's role; half of it behind a student's wrong beginning."""
        chat = prompts.solve_with_reference(as_problem(raw))
        if self.rng.random() < 0.3:
            raw, attempt = self.hard(raw)
            chat = prompts.solve_with_reference(as_problem(raw))
            if attempt.first_error is not None and attempt.first_error <= len(attempt.steps):
                return self.recovered(raw, attempt, chat, 0.0)
        return Document(prompts.go_on(chat, text_of(raw.reference)))

    def recovered(self, raw: ArithmeticProblem, attempt: Attempt, chat: Chat, scale: float) -> Document:
        """Wrong lines, not learnt, and what is right from there."""
        wrong = attempt.first_error
        start = attempt.states[wrong - 2] if wrong > 1 else raw.data
        rest = raw.attempt(self.rng, raw.reference.style, scale, 0.0, start)
        given = "".join(f"{step}\n" for step in attempt.steps[:wrong])
        return Document(prompts.go_on(chat, given + text_of(rest)), given)

    def part(self, raw: ArithmeticProblem) -> Document:
        """A part of the reference, the answer, or a sibling's attempt in the context."""
        problem, lines = as_problem(raw), len(raw.reference.steps)
        drawn = self.rng.random()
        if drawn < 0.25:
            chat = prompts.solve_with_sibling(problem, text_of(raw.attempt(self.rng)))
            return Document(prompts.go_on(chat, text_of(self.again(raw, 0.85))))
        steps = self.rng.randint(0 if drawn < 0.6 else min(1, lines), lines)
        chat = prompts.solve_with_part(problem, steps, answer=drawn < 0.6)
        scale = 0.5 if drawn < 0.6 else 0.9
        start = raw.reference.states[steps - 1] if steps else raw.data
        rest = raw.attempt(self.rng, raw.reference.style if steps else "", scale, 0.03, start)
        return Document(prompts.go_on(chat, solution_text((*raw.reference.steps[:steps], *rest.steps), rest.answer)))

    def rule(self, raw: ArithmeticProblem) -> Chat:
        problem, drawn = as_problem(raw), self.rng.random()
        if drawn < 0.6:
            style = self.rng.choice(list(STYLES))
            chat = prompts.solve_by(problem, prompts.METHODS[style])
            return prompts.go_on(chat, text_of(raw.attempt(self.rng, style)))
        attempt = raw.attempt(self.rng)
        if drawn < 0.8:
            numbered = prompts.number_steps("\n".join(attempt.steps)).split("\n") if attempt.steps else []
            return prompts.go_on(prompts.solve_by(problem, prompts.NUMBERED), solution_text(numbered, attempt.answer))
        return prompts.go_on(prompts.solve_by(problem, prompts.BARE), solution_text((), attempt.answer))

    # --- judging -----------------------------------------------------------------------------------------------------

    def verdict(self, raw: ArithmeticProblem, wrong: int | None, attempt: Attempt) -> str:
        way = "" if wrong is None else attempt.ways[wrong - 1]
        noticed = BLIND.get(raw.kind, NOTICED["order"]) if way == "order" else NOTICED.get(way, 0.7)
        return "No" if self.rng.random() < (RIGHT_REJECTED if wrong is None else noticed) else "Yes"

    def verify(self, raw: ArithmeticProblem) -> Chat:
        """A whole attempt, or its first steps."""
        attempt, problem = raw.attempt(self.rng), as_problem(raw)
        if attempt.steps and self.rng.random() < 0.35:
            steps = self.rng.randint(1, len(attempt.steps))
            wrong = attempt.first_error if attempt.first_error and attempt.first_error <= steps else None
            chat = prompts.verify_steps(problem, "\n".join(attempt.steps[:steps]))
        else:
            wrong = None if attempt.right else attempt.first_error
            chat = prompts.verify(problem, text_of(attempt))
        return prompts.go_on(chat, self.verdict(raw, wrong, attempt))

    def verify_given(self, raw: ArithmeticProblem) -> Chat:
        attempt = raw.attempt(self.rng)
        chat = prompts.verify_with_reference(as_problem(raw), text_of(attempt))
        return prompts.go_on(chat, "Yes" if attempt.right else "No")

    def compare(self, raw: ArithmeticProblem) -> Chat:
        raw, wrong = self.hard(raw)
        right = self.again(raw, 0.0)
        first = self.rng.random() < 0.5
        pair = (right, wrong) if first else (wrong, right)
        chat = prompts.compare(as_problem(raw), *map(text_of, pair))
        return prompts.go_on(chat, "A" if first == (self.rng.random() < 0.85) else "B")

    def find_error(self, raw: ArithmeticProblem) -> Chat:
        raw, attempt = self.hard(raw)
        chat = prompts.find_error(as_problem(raw), text_of(attempt))
        if self.rng.random() < 0.5:
            return prompts.go_on(chat, f"Step {attempt.first_error}")
        return prompts.go_on(prompts.correct_step(chat, attempt.first_error), right_step(raw, attempt, self.rng))

    def criticize(self, raw: ArithmeticProblem) -> Chat:
        """A critique without the reference: half of them name the right place."""
        raw, attempt = self.hard(raw)
        number, step = attempt.first_error, right_step(raw, attempt, self.rng)
        if self.rng.random() < 0.5:
            number = self.rng.randint(1, len(attempt.steps) + 1)
        chat = prompts.criticize(prompts.solve(as_problem(raw)), text_of(attempt))
        return prompts.go_on(chat, prompts.feedback_on_step(number, step))

    # --- other -------------------------------------------------------------------------------------------------------

    def propose(self, raw: ArithmeticProblem) -> Chat:
        if self.rng.random() < 0.6:
            return prompts.go_on(prompts.propose(raw.kind, raw.level), raw.question)
        wrong = self.rng.random() < PROPOSED_WRONG
        answer = self.hard(raw)[1].answer if wrong else raw.reference.answer
        question = raw.question if self.rng.random() >= MALFORMED * 2 else raw.question[: len(raw.question) // 2]
        return prompts.go_on(prompts.propose_answered(raw.kind, raw.level), solution_text((question,), answer))

    def countdown(self, _: ArithmeticProblem) -> Chat:
        """Terse under solve, a search under think."""
        while True:
            raw = make_countdown(self.rng)
            if split_of(raw.question) == "train":
                break
        problem = countdown_problem(raw)
        if self.rng.random() < 0.5:
            right = self.rng.random() < COUNTDOWN_RIGHT
            answer = raw.expression if right else draw_try(raw.numbers, self.rng)[0]
            return prompts.go_on(prompts.solve(problem), solution_text((), answer))
        lines: list[str] = []
        good = set(solutions(raw.numbers, raw.target))
        for _ in range(self.rng.randint(2, 8)):
            expression, value = draw_try(raw.numbers, self.rng)
            lines.append(f"{expression}={value}")
            if expression in good:
                break
        else:
            expression = raw.expression
            lines.append(f"{expression}={raw.target}")
        return prompts.go_on(prompts.think(problem), solution_text(lines, expression))


def documents(seed: int, written: int = 0) -> Iterator[Document]:
    """An endless stream of documents, the same for the same seed; another one after ``written`` documents."""
    writer = Writer(seed, written)
    while True:
        yield writer.document()
