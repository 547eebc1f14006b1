"""Exact critics in grades, what must not be said, critiques by the model and their controls."""

import random
import re
from types import SimpleNamespace

import pytest

from repro.methods.critic import (
    MASK,
    critic_for,
    exact,
    exact_critic,
    feedback,
    leaks,
    mask,
    own_critic,
    reference_critic,
    shuffled,
    step_named,
)
from repro.model.sampling import Completion
from repro.tasks import prompts
from repro.tasks.arithmetic import KINDS, LEVELS, make_problem
from repro.tasks.generated import as_problem
from repro.tasks.linear import value_of
from repro.tasks.problem import Problem, solution_text


def wrong_attempts(count: int, seed: int = 0) -> list[tuple]:
    """Built-in problems of all kinds and levels, each with a wrong attempt at it and its text."""
    rng, found = random.Random(seed), []
    while len(found) < count:
        raw = make_problem(KINDS[len(found) % len(KINDS)], rng.choice(LEVELS), rng)
        attempt = raw.attempt(rng)
        if not attempt.right and attempt.first_error is not None:
            found.append((raw, attempt, solution_text(attempt.steps, attempt.answer)))
    return found


ATTEMPTS = wrong_attempts(240)


# --- the answer isn't said ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer", "masked"),
    [
        (r"It is 42, so \boxed{42}, not 420.", "42", rf"It is {MASK}, so \boxed{{{MASK}}}, not 420."),
        (r"half: \frac{1}{2}", r"\frac{1}{2}", f"half: {MASK}"),
        ("half: 0.5 or 1/2, not 1/20", r"\frac{1}{2}", f"half: {MASK} or {MASK}, not 1/20"),
        ("(B) by Bob", "B", f"({MASK}) by Bob"),
        ("3-5, but (-5)", "-5", f"3-5, but ({MASK})"),
        ("1,000 = 1000", "1000", f"{MASK} = {MASK}"),
        ("at x=(3,4)", "(3,4)", f"at x={MASK}"),
        ("Step 5 is wrong. It should be: 5*x=10", "5", f"Step 5 is wrong. It should be: {MASK}*x=10"),
        ("42/7 and 6.42", "42", "42/7 and 6.42"),
        ("6*70=420, 142-1=141", "42", "6*70=420, 142-1=141"),
        ("3/6-1/6=1/3", "1/3", f"3/6-1/6={MASK}"),
        ("11/3=22/6", "1/3", "11/3=22/6"),
        ("so the answer is 42", "42", f"so the answer is {MASK}"),
        ("42.", "42", f"{MASK}."),
        ("7/0", "7", "7/0"),
    ],
)
def test_the_answer_is_masked(text, answer, masked):
    assert mask(text, answer) == masked
    assert leaks(text, answer) == (masked != text)


def test_what_the_student_wrote_is_no_leak():
    assert leaks("It should be: 5*x=25", "5")
    assert not leaks("It should be: 5*x=25", "5", known="Solve 5*x+1=26.")
    assert leaks("It should be: 5*x=25", "5", known="15*x=75")


@pytest.mark.parametrize("grade", ["verdict", "hint", "place"])
def test_no_grade_below_the_right_step_names_the_answer_or_the_step(grade):
    for raw, attempt, text in ATTEMPTS:
        words = exact(as_problem(raw), text, grade)
        assert not leaks(words, attempt.answer) and not leaks(words, as_problem(raw).answer)
        assert not re.search(r"\d|x", re.sub(r"^Step \d+ is wrong\.$", "", words))  # no line of a derivation
        said = feedback(prompts.solve(as_problem(raw)), text, words)[-1]["content"]
        assert not re.search(r"\d", said.replace(f"Step {attempt.first_error} ", ""))


def test_nor_does_the_right_step_name_the_answer():
    stated = 0
    for raw, _, text in ATTEMPTS:
        problem = as_problem(raw)
        words = exact(problem, text, "step")
        assert not leaks(words, problem.answer, f"{problem.question}\n{text}") and "boxed" not in words
        stated += "should be" in words
    assert stated > len(ATTEMPTS) / 2


# --- the exact critic -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        *(("Step 4", 4), ("4", 4), ("Substep 4", 4), ("Step 2: 3+4=8", 2), ("Step 3 is wrong, step 4 isn't", 3)),
        *(("none", None), ("Step x", None), ("3+4=8", None), ("", None)),
    ],
)
def test_the_step_that_a_reply_names(reply, number):
    assert step_named(reply) == number


def test_the_exact_critic_knows_place_sort_and_right_step():
    told = 0
    for raw, attempt, text in ATTEMPTS:
        problem, number = as_problem(raw), attempt.first_error
        assert exact(problem, text, "verdict") == ""
        assert exact(problem, text, "place") == prompts.feedback_on_place(number)
        way = attempt.ways[number - 1]  # which some other way may end at, too
        assert exact(problem, text, "hint") in prompts.HINTS.values()
        told += exact(problem, text, "hint") == prompts.HINTS.get(way, prompts.HINTS["slip"])
        words = exact(problem, text, "step")
        assert step_named(words) == number
        if "should be" in words:
            assert value_of(words.partition("be: ")[2]) == raw.truth
    assert told > 0.9 * len(ATTEMPTS)


def test_worked_critique():
    problem = Problem("Compute 9-2*3+4.", "7", kind="mixed", level=1)
    text = "7*3+4\n25\n\\boxed{25}"
    assert exact(problem, text, "hint") == prompts.HINTS["order"]
    assert exact(problem, text, "step") == "Step 1 is wrong. It should be: 9-6+4"
    late = "9-6+4\n3+4\n\\boxed{8}"  # the right step is the answer: only its place is named
    assert exact(problem, late, "step") == exact(problem, late, "place") == "Step 3 is wrong."
    assert exact(problem, "9-6+4\n3+4", "place") == "Step 3 is wrong."  # no box
    assert exact(problem, "(3)+4\n8", "step") == "Step 2 is wrong."  # worth the same, but no line of a derivation
    assert exact(problem, "9-6+4\n3+4\n\\boxed{7}\n\nWait: \\boxed{8}", "place") == ""


def test_elsewhere_it_knows_the_verdict_and_the_reference():
    problem = Problem("How many?", "7", "3 + 4 = 7 apples\n\\boxed{7}", "gsm8k")
    assert [exact(problem, "\\boxed{8}", grade) for grade in ("verdict", "hint", "place")] == [""] * 3
    shown = exact(problem, "\\boxed{8}", "step")
    assert shown == f"{prompts.REFERENCE}\n3 + 4 = {MASK} apples\n\\boxed{{{MASK}}}"
    assert exact(Problem("How many?", "7"), "\\boxed{8}", "step") == ""


def test_without_words_the_verdict_is_said():
    problem = Problem("q", "7")
    assert feedback(prompts.solve(problem), "a", "")[-1]["content"] == prompts.VERDICT_WRONG
    assert "Mind" in feedback(prompts.solve(problem), "a", "Mind the signs.")[-1]["content"]


# --- critiques by the model, and controls ---------------------------------------------------------------------------

PROBLEMS = [Problem(f"q{i}", "7", f"secret {i}\n\\boxed{{7}}") for i in range(3)]
TEXTS = ["1\n2", "3\n4", "5\n6"]


def stub(replies: list[str]):
    """A run whose samples are these, in order, and what it was asked."""
    left, asked = iter(replies), []

    def sample(chats, n, temperature=None, adapter="", generator=None):
        asked.append(list(chats))
        return [[Completion((), (), (), next(left), False)] for _ in chats]

    return SimpleNamespace(sample=sample), asked


def test_the_own_critique_reads_no_reference():
    run, asked = stub(["Step 1 is wrong. \n", "b", "c"])
    assert own_critic()(run, PROBLEMS, TEXTS) == ["Step 1 is wrong.", "b", "c"]
    assert "secret" not in str(asked) and "\\boxed{7}" not in str(asked)


def test_the_reference_critic_names_a_step_and_masks_the_answer():
    run, asked = stub(["Step 2", "none", "Step 9", "7 or\n8"])
    words = reference_critic()(run, PROBLEMS, TEXTS)
    assert words == [f"Step 2 is wrong. It should be: {MASK} or 8", "", ""]
    assert "secret 0" in str(asked[0][0]) and len(asked[1]) == 1
    run, asked = stub(["Step 2", "none", "Step 9"])
    assert reference_critic("place")(run, PROBLEMS, TEXTS) == ["Step 2 is wrong.", "", ""]
    assert len(asked) == 1


def test_critics_by_task():
    raw, attempt, text = ATTEMPTS[0]
    said = critic_for("arithmetic", "place")(None, [as_problem(raw)], [text])
    assert said == [prompts.feedback_on_place(attempt.first_error)]
    run, _ = stub(["Step 1"] * 3)
    assert critic_for("gsm8k", "place")(run, PROBLEMS, TEXTS) == ["Step 1 is wrong."] * 3


def test_shuffled_words_are_about_another_problem():
    problems = [PROBLEMS[i] for i in (0, 0, 1, 2, 2)]
    moved = shuffled(lambda run, asked, texts: [f"{p.question} {t}" for p, t in zip(asked, texts, strict=True)])
    words = moved(None, problems, list("abcde"))
    assert words == ["q1 c", "q1 c", "q2 d", "q0 a", "q0 a"]
    assert shuffled(exact_critic("place"))(None, PROBLEMS[:1], TEXTS[:1]) == [""]
