"""The roles that papers give to one model, as chat messages. The same words serve every model.

A *conversation* is a list of ``{"role": "user" | "assistant", "content": str}``. One that ends with a user turn asks
for a new assistant turn; one that ends with an assistant turn is a partial answer that the model goes on with
(``repro.model.policy.Policy.encode`` leaves that turn open). Multi-turn methods extend a conversation: ``retry(chat,
attempt)`` appends the attempt and the next request. Wording: ours.
"""

from __future__ import annotations

from repro.tasks.problem import Problem

Chat = list[dict[str, str]]

SOLVE = "Reason step by step, one step a line. Put the final answer in \\boxed{}."
RETRY = "There might be an error in the solution above. Fix it if there is one and rewrite the whole solution."
VERDICT_WRONG = "The solution above is wrong. Find the error and rewrite the whole solution."
VERDICT_RIGHT = "The solution above is right. Write it again."
FEEDBACK = "Here is feedback on the solution above:"
REVISE = "Rewrite the whole solution with the help of the feedback."
REFERENCE = "Here is a reference solution:"
RESOLVE = "Understand the reference solution, then solve the problem in your own words."
ATTEMPT = "Here is a solution by a student, with numbered steps:"
VERIFY = "Is this solution right? Answer Yes or No."
FIND_ERROR = "Compare it with the reference. Name the first wrong step as 'Step N'."
CORRECT_STEP = "Write one right step to take the place of this step:"
PROPOSE = "Write one new problem of this kind and difficulty. Write the problem only."
CUE_WRONG = "Wait, this solution is wrong. I will correct it."
CUE_RIGHT = "This solution is right. I will write it again in other words."

THINK = "Think it over. Check your work and go back where you must. Put the final answer in \\boxed{}."
CHECK = "Wait, let me check."
HOLDS = "This is right."
FAILS = "Something is wrong. I go back."
VERIFY_STEPS = "Are these first steps right? Answer Yes or No."
SOLUTION_A, SOLUTION_B = "Solution A:", "Solution B:"
COMPARE = "Which solution is right? Answer A or B."
BEGINNING = "Here is the beginning of a reference solution:"
ANSWER = "The right answer is:"
SIBLING = "Here is a solution by another student. It may be wrong:"
ANOTHER = "Solve the problem again in another way."
CRITICIZE = "Find the first error in the solution above. Name the step and what it should be."
PROPOSE_ANSWERED = "Write one new problem of this kind and difficulty, and its answer."
HINTS = {
    "order": "Mind what must be done first.",
    "sign": "Mind the signs.",
    "drop": "Something got lost.",
    "slip": "There is a slip in a calculation.",
}
METHODS = {"left": "Work from the left.", "right": "Work from the right.", "free": "Work in any order."}
NUMBERED, BARE = "Number the steps.", "Write the final answer only."

PHRASES = (
    *(SOLVE, RETRY, VERDICT_WRONG, VERDICT_RIGHT, FEEDBACK, REVISE, REFERENCE, RESOLVE),
    *(ATTEMPT, VERIFY, FIND_ERROR, CORRECT_STEP, PROPOSE, CUE_WRONG, CUE_RIGHT),
    *(THINK, CHECK, HOLDS, FAILS, VERIFY_STEPS, SOLUTION_A, SOLUTION_B, COMPARE, BEGINNING, ANSWER, SIBLING),
    *(ANOTHER, CRITICIZE, PROPOSE_ANSWERED, *HINTS.values(), *METHODS.values(), NUMBERED, BARE),
)


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def split_steps(text: str) -> list[str]:
    """The steps of a solution: its non-empty lines."""
    return [line for line in text.split("\n") if line.strip()]


def number_steps(text: str) -> str:
    """The solution with ``N: `` before each step, counted from 1."""
    return "\n".join(f"{i}: {step}" for i, step in enumerate(split_steps(text), 1))


def solve(problem: Problem) -> Chat:
    """The problem alone."""
    return [_user(f"{problem.question}\n{SOLVE}")]


def solve_with_reference(problem: Problem) -> Chat:
    """The problem with its reference solution in the context (the teacher of self-distillation)."""
    return [_user(f"{problem.question}\n{REFERENCE}\n{problem.solution}\n{RESOLVE}\n{SOLVE}")]


def think(problem: Problem) -> Chat:
    """The problem with the request to reason at length."""
    return [_user(f"{problem.question}\n{THINK}")]


def solve_by(problem: Problem, rule: str) -> Chat:
    """The problem with one of METHODS, NUMBERED or BARE before the request."""
    return [_user(f"{problem.question}\n{rule}\n{SOLVE}")]


def solve_with_part(problem: Problem, steps: int, answer: bool = False) -> Chat:
    """The problem with the first ``steps`` lines of its reference, and with ``answer`` its final answer, given."""
    lines = split_steps(problem.solution)[:steps]
    shown = [BEGINNING, *lines] * bool(lines) + [ANSWER, problem.answer] * answer
    return [_user("\n".join([problem.question, *shown, SOLVE]))]


def solve_with_sibling(problem: Problem, attempt: str) -> Chat:
    """The problem with somebody else's attempt in the context."""
    return [_user(f"{problem.question}\n{SIBLING}\n{attempt}\n{SOLVE}")]


def retry(chat: Chat, attempt: str) -> Chat:
    """A second try that isn't told whether the first was right (SCoRe)."""
    return [*chat, _assistant(attempt), _user(RETRY)]


def revise(chat: Chat, attempt: str, right: bool) -> Chat:
    """A second try that knows the verdict on the first (RISE with an oracle)."""
    return [*chat, _assistant(attempt), _user(VERDICT_RIGHT if right else VERDICT_WRONG)]


def revise_with_feedback(chat: Chat, attempt: str, feedback: str) -> Chat:
    """A second try that is given a critique in words."""
    return [*chat, _assistant(attempt), _user(f"{FEEDBACK}\n{feedback}\n{REVISE}")]


def feedback_on_step(number: int, step: str) -> str:
    """A critique that names the first wrong step and what it should have been."""
    return f"Step {number} is wrong. It should be: {step}"


def feedback_on_place(number: int) -> str:
    """A critique that names the first wrong step."""
    return f"Step {number} is wrong."


def criticize(chat: Chat, attempt: str) -> Chat:
    """Asks for a critique of the attempt, in the words of ``feedback_on_step``."""
    return [*chat, _assistant(attempt), _user(CRITICIZE)]


def another(chat: Chat, attempt: str) -> Chat:
    """A new attempt is asked for without any verdict."""
    return [*chat, _assistant(attempt), _user(ANOTHER)]


def check_in_turn(chat: Chat, attempt: str) -> Chat:
    """The same assistant turn goes on after the attempt with a look back that doesn't know the verdict."""
    return [*chat, _assistant(f"{attempt}\n\n{CHECK}\n\n")]


def revise_in_turn(chat: Chat, attempt: str, right: bool) -> Chat:
    """The same assistant turn goes on after the attempt with a control phrase for the verdict (SD-Zero)."""
    return [*chat, _assistant(f"{attempt}\n\n{CUE_RIGHT if right else CUE_WRONG}\n\n")]


def go_on(chat: Chat, partial: str) -> Chat:
    """The same assistant turn goes on after ``partial``."""
    return [*chat, _assistant(partial)]


def verify(problem: Problem, attempt: str) -> Chat:
    """Is the attempt right? The answer is Yes or No."""
    return [_user(f"{problem.question}\n{ATTEMPT}\n{number_steps(attempt)}\n{VERIFY}")]


def verify_steps(problem: Problem, steps: str) -> Chat:
    """Are the first steps of an attempt right? The answer is Yes or No."""
    return [_user(f"{problem.question}\n{ATTEMPT}\n{number_steps(steps)}\n{VERIFY_STEPS}")]


def verify_with_reference(problem: Problem, attempt: str) -> Chat:
    """Is the attempt right, given the reference? The answer is Yes or No."""
    shown = f"{REFERENCE}\n{problem.solution}\n{ATTEMPT}\n{number_steps(attempt)}"
    return [_user(f"{problem.question}\n{shown}\n{VERIFY}")]


def compare(problem: Problem, first: str, second: str) -> Chat:
    """Which of two attempts is right? The answer is A or B."""
    return [_user(f"{problem.question}\n{SOLUTION_A}\n{first}\n{SOLUTION_B}\n{second}\n{COMPARE}")]


def find_error(problem: Problem, attempt: str) -> Chat:
    """Which step of the attempt is the first wrong one, given the reference? The answer is 'Step N'."""
    shown = f"{REFERENCE}\n{problem.solution}\n{ATTEMPT}\n{number_steps(attempt)}"
    return [_user(f"{problem.question}\n{shown}\n{FIND_ERROR}")]


def correct_step(chat: Chat, number: int) -> Chat:
    """After ``find_error`` named step ``number``: one right step in its place."""
    return [*chat, _assistant(f"Step {number}"), _user(f"{CORRECT_STEP}\nStep {number}")]


def propose(kind: str, level: int) -> Chat:
    """A new problem of a kind and level."""
    return [_user(f"{kind}, level {level}\n{PROPOSE}")]


def propose_answered(kind: str, level: int) -> Chat:
    """A new problem of a kind and level, with its boxed answer on the next line."""
    return [_user(f"{kind}, level {level}\n{PROPOSE_ANSWERED}")]
