"""Measure the tiny model in every role: ``python -m repro.tiny.profile`` prints the table of README.md here."""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from repro.config import RunConfig
from repro.model.logprobs import completion_values
from repro.model.policy import BASE, Policy
from repro.model.sampling import Completion, Decoding, sample
from repro.results.metrics import auroc, pass_at_k
from repro.results.tables import markdown
from repro.tasks import prompts, ways
from repro.tasks.arithmetic import (
    FAR,
    KINDS,
    LEVELS,
    ArithmeticProblem,
    draw_problem,
    first_wrong,
    right_lines,
    way_of,
)
from repro.tasks.generated import as_problem
from repro.tasks.linear import value_of
from repro.tasks.loading import load
from repro.tasks.problem import Problem
from repro.tasks.prompts import Chat
from repro.tasks.rewards import score
from repro.verify import extract_answer

Rows = list[tuple[str, str, str]]
SAMPLES = 16


class Subject:
    """The model under test with its held-out problems; every question keeps the data it was made from."""

    def __init__(self, model: str, size: int, seed: int, split: str = "test"):
        self.policy = Policy(RunConfig(model=model))
        self.generator = torch.Generator(self.policy.device).manual_seed(seed)
        self.rng = random.Random(f"profile {seed}")
        self.split = split
        self.raw = self.draw(size, LEVELS)
        self.problems = [as_problem(r) for r in self.raw]

    def draw(self, size: int, levels: Sequence[int], coincidences: bool = False) -> list[ArithmeticProblem]:
        """Different held-out problems, kinds and levels in equal shares."""
        found: dict[str, ArithmeticProblem] = {}
        while len(found) < size:
            problem = draw_problem(KINDS, levels, self.rng, self.split, coincidences)
            found[problem.question] = problem
        return list(found.values())

    def ask(
        self, chats: Sequence[Chat], samples: int = 1, temperature: float = 1.0, longest: int = 160
    ) -> list[list[Completion]]:
        encoded = [self.policy.encode(chat) for chat in chats]
        decoding = Decoding(temperature=temperature, max_new_tokens=longest)
        model = self.policy.sampler(BASE)
        return sample(model, self.policy.tokenizer, encoded, samples, decoding, self.policy.stop_ids, self.generator)

    def texts(self, chats: Sequence[Chat], temperature: float = 1.0) -> list[str]:
        return [group[0].text for group in self.ask(chats, 1, temperature)]

    def right(self, texts: Sequence[str], problems: Sequence[Problem] | None = None) -> np.ndarray:
        return np.asarray(score(problems or self.problems, texts))

    def margin(self, chats: Sequence[Chat], words: tuple[str, str] = ("Yes", "No")) -> np.ndarray:
        """log P(first word) - log P(second) as the first token."""
        tokenizer, model = self.policy.tokenizer, self.policy.sampler(BASE)
        encoded = [self.policy.encode(chat) for chat in chats]
        logs = []
        for word in words:
            ids = tokenizer(word, add_special_tokens=False).input_ids[:1]
            with torch.no_grad():
                logs.append(completion_values(model, [(e, ids) for e in encoded], pad_id=tokenizer.pad_token_id))
        return (logs[0] - logs[1]).cpu().numpy()


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def by(problems: Sequence, values: np.ndarray, name: str, keys: Sequence) -> str:
    """Means of ``values`` by a field of the problems."""
    parts = {key: [i for i, p in enumerate(problems) if getattr(p, name) == key] for key in keys}
    return ", ".join(f"{key}: {100 * values[i].mean():.0f}" for key, i in parts.items() if i)


def vote(texts: Sequence[str]) -> str:
    """The commonest answer, in a box."""
    answers = Counter(extract_answer(text) for text in texts)
    return f"\\boxed{{{answers.most_common(1)[0][0]}}}"


# --- solving ---------------------------------------------------------------------------------------------------------


def solving(s: Subject, rows: Rows) -> list[str]:
    """Accuracy, variety and errors of the attempts; returns one attempt per problem."""
    chats = [prompts.solve(p) for p in s.problems]
    groups = s.ask(chats, SAMPLES)
    texts = [[c.text for c in g] for g in groups]
    right = np.asarray([s.right([t[k] for t in texts]) for k in range(SAMPLES)]).T
    greedy = s.right(s.texts(chats, 0.0))
    majority = s.right([vote(t) for t in texts])
    pass8 = np.mean([pass_at_k(SAMPLES, int(c), 8) for c in right.sum(1)])
    rows.append(("solve, temperature 1", percent(right.mean()), "30-45"))
    rows.append(("solve, greedy", percent(greedy.mean()), "40-55"))
    for name, keys in (("level", LEVELS), ("kind", KINDS)):
        rows.append((f"- by {name}", by(s.problems, right.mean(1), name, keys), "spread"))
        rows.append((f"- greedy by {name}", by(s.problems, greedy, name, keys), ""))
    rows.append(("pass@8", percent(pass8), "30 above temperature 1"))
    rows.append((f"majority@{SAMPLES}", percent(majority.mean()), ""))
    rows.append(("- by kind", by(s.problems, majority, "kind", KINDS), "right in 60 for four kinds"))
    gain = by(s.problems, majority - greedy, "kind", KINDS)
    rows.append(("- above greedy by kind", gain, "at least 6 for some, below 0 for others"))
    lengths = [len(c.ids) for g in groups for c in g]
    cut = np.mean([len(c.ids) > 96 or c.truncated for g in groups for c in g])
    rows.append(("tokens of an answer", f"{np.mean(lengths):.1f} (above 96: {percent(cut)} %)", "below 70"))
    errors(s, texts, right, rows)
    return [t[0] for t in texts]


def errors(s: Subject, texts: list[list[str]], right: np.ndarray, rows: Rows) -> None:
    """Where attempts go wrong, in how many ways."""
    first, slips, top, variety, coincidences = [], [], [], [], []
    for raw, group, marks in zip(s.raw, texts, right, strict=True):
        wrong = Counter(extract_answer(t) for t, mark in zip(group, marks, strict=True) if not mark)
        if wrong:
            top.append(max(wrong.values()) / sum(wrong.values()))
        variety.append(len({t.split("\n")[0] for t in group[:8]}))
        for text, mark in zip(group[:8], marks, strict=False):
            number = first_wrong(raw.question, text)
            if mark:
                coincidences.append(number is not None)
            elif number is not None:
                first.append(number)
                slips.append(way_of(raw, text, number) == "slip")
    rows.append(("first errors at step 1", percent(np.mean(np.asarray(first) == 1)), "at most 50"))
    rows.append(("commonest wrong answer, share of the wrong", percent(np.mean(top)), "below 40"))
    rows.append(("slips, share of the first errors", percent(np.mean(slips)), "about 25"))
    rows.append(("distinct first steps of 8", f"{np.mean(variety):.1f}", "at least 4"))
    rows.append(("right answers with a wrong step", percent(np.mean(coincidences)), "few"))


def reach(s: Subject, rows: Rows, size: int) -> None:
    """What many samples find on hard problems, and what coincidences hide."""
    for level, wanted in ((4, "pass@64 below 90"), (6, "fail@64 at least 15")):
        raw = s.draw(size, (level,))
        problems = [as_problem(r) for r in raw]
        groups = s.ask([prompts.solve(p) for p in problems], 64)
        right = np.asarray([s.right([c.text for c in g], [p] * 64) for p, g in zip(problems, groups, strict=True)])
        shown = f"T=1 {percent(right.mean())}, pass@64 {percent(right.any(1).mean())}"
        rows.append((f"level {level}", shown, wanted))
    raw = s.draw(2 * size, LEVELS, coincidences=True)
    found = []
    for r, g in zip(raw, s.ask([prompts.solve(as_problem(r)) for r in raw], 8), strict=True):
        marks = s.right([c.text for c in g], [as_problem(r)] * 8)
        found += [first_wrong(r.question, c.text) is not None for c, mark in zip(g, marks, strict=True) if mark]
    rows.append(("coincidences: right answers with a wrong step", percent(np.mean(found)), "10-20"))


# --- contexts and second attempts ------------------------------------------------------------------------------------


def informed(s: Subject, rows: Rows) -> None:
    """With the reference, a part of it, or the answer in the context."""
    given = s.right(s.texts([prompts.solve_with_reference(p) for p in s.problems]))
    rows.append(("solve with the reference", percent(given.mean()), "at least 95"))
    shown = []
    for part in (0.25, 0.5, 0.75, 1.0):
        chats = []
        for p in s.problems:
            lines = prompts.split_steps(p.solution)
            chats.append(prompts.solve_with_part(p, round(part * len(lines)) or 1))
        shown.append(percent(s.right(s.texts(chats)).mean()))
    rows.append(("- with 25, 50, 75, 100 % of it", ", ".join(shown), "60, 75, 90, 98"))
    answer = s.right(s.texts([prompts.solve_with_part(p, 0, answer=True) for p in s.problems]))
    rows.append(("- with the answer only", percent(answer.mean()), "about 60"))


def correcting(s: Subject, first: list[str], rows: Rows) -> None:
    """Second attempts without a verdict, with one, with feedback, and looks back in the same turn."""
    solve = [prompts.solve(p) for p in s.problems]
    before = s.right(first)
    second = s.texts([prompts.retry(c, a) for c, a in zip(solve, first, strict=True)])
    after = s.right(second)
    changed = np.mean([extract_answer(a) != extract_answer(b) for a, b in zip(first, second, strict=True)])
    shown = f"{percent(before.mean())} -> {percent(after.mean())}, changed {100 * changed:.0f}"
    rows.append(("retry without feedback", shown, "within 3"))
    wrong = np.flatnonzero(before == 0)
    problems = [s.problems[i] for i in wrong]

    def fixed(chats: Sequence[Chat]) -> float:
        return s.right(s.texts(chats), problems).mean()

    rows.append(("wrong ones: retry", percent(after[wrong].mean()), ""))
    told = fixed([prompts.revise(solve[i], first[i], False) for i in wrong])
    rows.append(("wrong ones: told that it is wrong", percent(told), "above retry"))
    place, step = [], []
    for i in wrong:
        number = first_wrong(s.raw[i].question, first[i]) or 1
        line = right_lines(s.raw[i], first[i], number)[0]
        place.append(prompts.revise_with_feedback(solve[i], first[i], prompts.feedback_on_place(number)))
        step.append(prompts.revise_with_feedback(solve[i], first[i], prompts.feedback_on_step(number, line)))
    rows.append(("wrong ones: told which step", percent(fixed(place)), "above told"))
    rows.append(("wrong ones: given feedback on the step", percent(fixed(step)), "above told"))
    turn = fixed([prompts.revise_in_turn(solve[i], first[i], False) for i in wrong])
    rows.append(("wrong ones: control phrase in the same turn", percent(turn), "above told"))
    checks = s.texts([prompts.check_in_turn(c, a) for c, a in zip(solve, first, strict=True)])
    checked = s.right(checks)
    noticed = np.asarray([prompts.FAILS in text for text in checks])
    shown = (
        f"fixes {percent(checked[wrong].mean())}, breaks {percent(1 - checked[before == 1].mean())}"
        f" (doubts {percent(noticed[wrong].mean())} and {percent(noticed[before == 1].mean())})"
    )
    rows.append(("a look back in the same turn", shown, "fixes 30, breaks at most 10"))
    thought = [group[0] for group in s.ask([prompts.think(p) for p in s.problems], longest=256)]
    shown = (
        f"{percent(s.right([c.text for c in thought]).mean())} in {np.mean([len(c.ids) for c in thought]):.0f} tokens"
    )
    rows.append(("asked to think", shown, "longer, right more often"))


# --- judging ---------------------------------------------------------------------------------------------------------


def judging(s: Subject, first: list[str], rows: Rows) -> None:
    """Verification of wholes and prefixes, first-error search with the reference, correction of one step."""
    right = s.right(first) == 1
    margin = s.margin([prompts.verify(p, a) for p, a in zip(s.problems, first, strict=True)])
    rows.append(("verify its own solution, balanced accuracy", balanced(margin, right), "65-80"))
    steps, states = [], []
    for i, text in enumerate(first):
        lines = prompts.split_steps(text)
        if len(lines) > 1:
            kept = s.rng.randint(1, len(lines) - 1)
            number = first_wrong(s.raw[i].question, text)
            steps.append(prompts.verify_steps(s.problems[i], "\n".join(lines[:kept])))
            states.append(number is None or number > kept)
    rows.append(("verify first steps, AUROC", percent(auroc(s.margin(steps), np.asarray(states))), "65-80"))
    margin = s.margin([prompts.verify_with_reference(p, a) for p, a in zip(s.problems, first, strict=True)])
    rows.append(("verify with the reference, balanced accuracy", balanced(margin, right), "at least 90"))
    wrong = np.flatnonzero(~right)
    pairs = [(s.problems[i], s.problems[i].solution, first[i]) for i in wrong]
    ahead = s.margin([prompts.compare(p, a, b) for p, a, b in pairs], ("A", "B"))
    behind = s.margin([prompts.compare(p, b, a) for p, a, b in pairs], ("A", "B"))
    shown = f"{percent((ahead > behind).mean())} (in one order {percent((ahead > 0).mean())})"
    rows.append(("tell the right one of two, both orders", shown, ""))
    locating(s, first, wrong, rows)


def balanced(margin: np.ndarray, right: np.ndarray) -> str:
    yes = margin > 0
    accuracy = (yes[right].mean() + (~yes[~right]).mean()) / 2
    return f"{percent(accuracy)} (AUROC {percent(auroc(margin, right))})"


def locating(s: Subject, first: list[str], wrong: np.ndarray, rows: Rows) -> None:
    """Name the first wrong step, and write a right one in its place."""
    truth = {i: first_wrong(s.raw[i].question, first[i]) or 1 for i in wrong}
    chats = [prompts.find_error(s.problems[i], first[i]) for i in wrong]
    named = s.texts(chats, 0.0)
    hits = np.mean([text.strip() == f"Step {truth[i]}" for i, text in zip(wrong, named, strict=True)])
    rows.append(("name the first wrong step, with the reference", percent(hits), "at least 70"))
    steps = s.texts([prompts.correct_step(c, truth[i]) for c, i in zip(chats, wrong, strict=True)], 0.0)
    fixed = []
    for i, text in zip(wrong, steps, strict=True):
        line = re.sub(r"\\boxed\{(.*)\}", r"\1", text.strip())
        fixed.append(value_of(line) == s.raw[i].truth)
    rows.append(("a right step in its place", percent(np.mean(fixed)), "at least 70"))


def other(s: Subject, rows: Rows) -> None:
    """Proposals, rules and Countdown."""
    asked = [(kind, level) for kind in KINDS for level in LEVELS for _ in range(8)]
    proposals = s.texts([prompts.propose(kind, level) for kind, level in asked])
    good = []
    for (kind, _), text in zip(asked, proposals, strict=True):
        verb, _, line = text.strip().rstrip(".").partition(" ")
        fits = verb == ("Solve" if kind == "equation" else "Compute") and ways.read(kind, line) is not None
        good.append(fits and value_of(line) is not None)
    rows.append(("propose a problem: well-formed", percent(np.mean(good)), "at least 90"))
    numbered = s.texts([prompts.solve_by(p, prompts.NUMBERED) for p in s.problems[:256]])
    obeyed = np.mean([all(re.match(r"\d+: |\\boxed", line) for line in prompts.split_steps(t)) for t in numbered])
    rows.append(("numbers its steps when told", percent(obeyed), "95"))
    problems = load("countdown", s.split, 192, 0)
    terse = s.right([g[0].text for g in s.ask([prompts.solve(p) for p in problems])], problems)
    searched = s.right([g[0].text for g in s.ask([prompts.think(p) for p in problems], longest=256)], problems)
    shown = f"{percent(terse.mean())}, asked to think {percent(searched.mean())}"
    rows.append(("Countdown", shown, "about 10, more when asked to think"))
    far = s.draw(96, FAR)
    solved = s.right(s.texts([prompts.solve(as_problem(r)) for r in far]), [as_problem(r) for r in far])
    rows.append(("levels 5 and 6, temperature 1", percent(solved.mean()), ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--problems", type=int, default=768)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--part", default="all", choices=("all", "solving"), help="solving: the first rows only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    subject = Subject(args.model, args.problems, args.seed, args.split)
    rows: Rows = [("ability (held-out problems, %)", "measured", "wanted")]
    first = solving(subject, rows)
    if args.part == "all":
        reach(subject, rows, max(24, args.problems // 8))
        informed(subject, rows)
        correcting(subject, first, rows)
        judging(subject, first, rows)
        other(subject, rows)
    print(markdown(rows))


if __name__ == "__main__":
    main()
