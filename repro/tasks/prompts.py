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

PHRASES = (
    *(SOLVE, RETRY, VERDICT_WRONG, VERDICT_RIGHT, FEEDBACK, REVISE, REFERENCE, RESOLVE),
    *(ATTEMPT, VERIFY, FIND_ERROR, CORRECT_STEP, PROPOSE, CUE_WRONG, CUE_RIGHT),
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


def revise_in_turn(chat: Chat, attempt: str, right: bool) -> Chat:
    """The same assistant turn goes on after the attempt with a control phrase for the verdict (SD-Zero)."""
    return [*chat, _assistant(f"{attempt}\n\n{CUE_RIGHT if right else CUE_WRONG}\n\n")]


def go_on(chat: Chat, partial: str) -> Chat:
    """The same assistant turn goes on after ``partial``."""
    return [*chat, _assistant(partial)]


def verify(problem: Problem, attempt: str) -> Chat:
    """Is the attempt right? The answer is Yes or No."""
    return [_user(f"{problem.question}\n{ATTEMPT}\n{number_steps(attempt)}\n{VERIFY}")]


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
