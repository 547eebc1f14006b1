"""Measure the tiny model in every role: ``python -m repro.tiny.profile`` prints the table of README.md here."""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Sequence

import numpy as np
import torch

from repro.config import RunConfig
from repro.model.logprobs import completion_values
from repro.model.policy import BASE, Policy
from repro.model.sampling import Completion, Decoding, sample
from repro.results.metrics import auroc, pass_at_k
from repro.results.tables import markdown
from repro.tasks import prompts
from repro.tasks.arithmetic import KINDS, LEVELS, ArithmeticProblem, make_problem
from repro.tasks.problem import Problem, split_of
from repro.tasks.prompts import Chat
from repro.tasks.rewards import score
from repro.tiny.corpus import as_problem, text_of
from repro.verify import extract_answer


class Subject:
    """The model under test with its held-out problems; every question keeps the data it was made from."""

    def __init__(self, model: str, size: int, seed: int):
        self.policy = Policy(RunConfig(model=model))
        self.generator = torch.Generator(self.policy.device).manual_seed(seed)
        rng = random.Random(f"profile {seed}")
        raw: dict[str, ArithmeticProblem] = {}
        while len(raw) < size:
            problem = make_problem(rng.choice(KINDS), rng.choice(LEVELS), rng)
            if split_of(problem.question) == "test":
                raw[problem.question] = problem
        self.raw = list(raw.values())
        self.problems = [as_problem(r) for r in self.raw]

    def ask(self, chats: Sequence[Chat], samples: int = 1, temperature: float = 1.0) -> list[list[Completion]]:
        encoded = [self.policy.encode(chat) for chat in chats]
        decoding = Decoding(temperature=temperature, max_new_tokens=128)
        model = self.policy.sampler(BASE)
        return sample(model, self.policy.tokenizer, encoded, samples, decoding, self.policy.stop_ids, self.generator)

    def texts(self, chats: Sequence[Chat], temperature: float = 1.0) -> list[str]:
        return [group[0].text for group in self.ask(chats, 1, temperature)]

    def right(self, texts: Sequence[str], problems: Sequence[Problem] | None = None) -> np.ndarray:
        return np.asarray(score(problems or self.problems, texts))

    def verdict_probability(self, chats: Sequence[Chat]) -> np.ndarray:
        """P(Yes) / (P(Yes) + P(No)) as the first token."""
        tokenizer, model = self.policy.tokenizer, self.policy.sampler(BASE)
        encoded = [self.policy.encode(chat) for chat in chats]
        logs = []
        for word in ("Yes", "No"):
            ids = tokenizer(word, add_special_tokens=False).input_ids[:1]
            with torch.no_grad():
                logs.append(completion_values(model, [(e, ids) for e in encoded], pad_id=tokenizer.pad_token_id))
        return torch.sigmoid(logs[0] - logs[1]).cpu().numpy()


def solving(s: Subject, rows: list) -> list[str]:
    """Accuracy at temperature 1, greedy, pass@8, by level; returns one attempt per problem."""
    groups = s.ask([prompts.solve(p) for p in s.problems], 8)
    right = np.asarray([s.right([g[k].text for g in groups]) for k in range(8)]).T
    greedy = s.right(s.texts([prompts.solve(p) for p in s.problems], 0.0))
    rows.append(("solve, temperature 1", f"{100 * right.mean():.1f}", "30-50"))
    for name, keys in (("level", LEVELS), ("kind", KINDS)):
        parts = [(k, [i for i, p in enumerate(s.problems) if getattr(p, name) == k]) for k in keys]
        rows.append((f"- by {name}", ", ".join(f"{k}: {100 * right[i].mean():.0f}" for k, i in parts), "spread"))
        rows.append((f"- greedy by {name}", ", ".join(f"{k}: {100 * greedy[i].mean():.0f}" for k, i in parts), ""))
    rows.append(("solve, greedy", f"{100 * greedy.mean():.1f}", "40-60"))
    pass8 = np.mean([pass_at_k(8, int(c), 8) for c in right.sum(1)])
    rows.append(("pass@8", f"{100 * pass8:.1f}", "30 above pass@1"))
    given = s.right(s.texts([prompts.solve_with_reference(p) for p in s.problems]))
    rows.append(("solve with the reference", f"{100 * given.mean():.1f}", "at least 95"))
    return [g[0].text for g in groups]


def correcting(s: Subject, first: list[str], rows: list) -> None:
    """Second attempts without a verdict, with one, and with feedback."""
    solve = [prompts.solve(p) for p in s.problems]
    before = s.right(first)
    second = s.texts([prompts.retry(c, a) for c, a in zip(solve, first, strict=True)])
    after = s.right(second)
    changed = np.mean([extract_answer(a) != extract_answer(b) for a, b in zip(first, second, strict=True)])
    shown = f"{100 * before.mean():.1f} -> {100 * after.mean():.1f}, changed {100 * changed:.0f}"
    rows.append(("retry without feedback", shown, "within 3"))
    wrong = np.flatnonzero(before == 0)
    problems = [s.problems[i] for i in wrong]
    again = after[wrong].mean()
    told = s.right(s.texts([prompts.revise(solve[i], first[i], False) for i in wrong]), problems).mean()
    turn = s.right(s.texts([prompts.revise_in_turn(solve[i], first[i], False) for i in wrong]), problems).mean()
    chats = []
    for i in wrong:
        number, step = first_wrong_step(s.raw[i], first[i])
        chats.append(prompts.revise_with_feedback(solve[i], first[i], prompts.feedback_on_step(number, step)))
    advised = s.right(s.texts(chats), problems).mean()
    rows.append(("wrong ones: retry", f"{100 * again:.1f}", ""))
    rows.append(("wrong ones: told that it is wrong", f"{100 * told:.1f}", "clearly above retry"))
    rows.append(("wrong ones: control phrase in the same turn", f"{100 * turn:.1f}", "clearly above retry"))
    rows.append(("wrong ones: given feedback on the step", f"{100 * advised:.1f}", "clearly above retry"))


def first_wrong_step(raw: ArithmeticProblem, attempt: str) -> tuple[int, str]:
    """Number of the first step that differs from the reference, and the reference's step there."""
    reference = prompts.split_steps(text_of(raw.reference))
    steps = prompts.split_steps(attempt)
    number = next((i for i, (a, b) in enumerate(zip(steps, reference, strict=False)) if a != b), len(reference) - 1)
    number = min(number, len(reference) - 1)
    return number + 1, reference[number]


def judging(s: Subject, first: list[str], rows: list) -> None:
    """Verification, first-error search with the reference, correction of one step, and proposals."""
    right = s.right(first) == 1
    probability = s.verdict_probability([prompts.verify(p, a) for p, a in zip(s.problems, first, strict=True)])
    yes = probability > 0.5
    balanced = (yes[right].mean() + (~yes[~right]).mean()) / 2
    shown = f"{100 * balanced:.1f} (AUROC {100 * auroc(probability, right):.1f})"
    rows.append(("verify its own solution, balanced accuracy", shown, "60-80"))
    wrong = np.flatnonzero(~right)
    chats = [prompts.find_error(s.problems[i], first[i]) for i in wrong]
    truth = [first_wrong_step(s.raw[i], first[i]) for i in wrong]
    named = s.texts(chats)
    hits = np.mean([text.strip() == f"Step {number}" for text, (number, _) in zip(named, truth, strict=True)])
    rows.append(("name the first wrong step, with the reference", f"{100 * hits:.1f}", "at least 70"))
    steps = s.texts([prompts.correct_step(c, number) for c, (number, _) in zip(chats, truth, strict=True)])
    fixed = np.mean([text.strip() == step for text, (_, step) in zip(steps, truth, strict=True)])
    rows.append(("propose the right step in its place", f"{100 * fixed:.1f}", ""))
    asked = [(kind, level) for kind in KINDS for level in LEVELS for _ in range(8)]
    proposals = s.texts([prompts.propose(kind, level) for kind, level in asked])
    shape = r"(Compute [-+*/()0-9]+|Solve [-+*()0-9x]+=[-+*()0-9x]+)\."
    good = np.mean([re.fullmatch(shape, text) is not None for text in proposals])
    rows.append(("propose a problem: well-formed", f"{100 * good:.1f}", "at least 90"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--problems", type=int, default=768)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    subject = Subject(args.model, args.problems, args.seed)
    rows: list[tuple[str, str, str]] = [("ability (held-out problems, %)", "measured", "wanted")]
    first = solving(subject, rows)
    correcting(subject, first, rows)
    judging(subject, first, rows)
    print(markdown(rows))


if __name__ == "__main__":
    main()
