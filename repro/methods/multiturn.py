"""Several attempts at one problem in one conversation, and what is measured on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from repro.model.policy import POLICY
from repro.model.sampling import Completion
from repro.results.metric import Metric, number, share
from repro.results.metrics import confidence_critique, majority, self_correction
from repro.run import Rollouts, Run
from repro.tasks import prompts
from repro.tasks.problem import Problem
from repro.tasks.prompts import Chat
from repro.verify import equivalent, extract_answer

FollowUp = Callable[[Problem, Sequence[str]], Chat]  # a problem and the attempts so far -> what is asked next


def final_answers(texts: Sequence[str]) -> list[str | None]:
    """The texts' final answers; equal ones are written alike (as the first of them), None where there is none."""
    found: list[str | None] = []
    for text in texts:
        answer = extract_answer(text)
        known = [a for a in found if a is not None and answer is not None]
        found.append(next((a for a in known if a == answer or equivalent(a, answer)), answer))
    return found


@dataclass
class Attempts:
    """``turns`` attempts in a row: completions[turn][problem][sample], rewards [turns, problems, samples]."""

    problems: list[Problem]
    completions: list[list[list[Completion]]]
    rewards: torch.Tensor

    def texts(self, problem: int, sample: int) -> list[str]:
        """The attempts of one conversation, in order."""
        return [turn[problem][sample].text for turn in self.completions]

    def answers(self, problem: int, sample: int) -> list[str | None]:
        """Their final answers (see ``final_answers``)."""
        return final_answers(self.texts(problem, sample))


def retry(problem: Problem, attempts: Sequence[str], ask: Callable[[Chat, str], Chat] = prompts.retry) -> Chat:
    """The whole conversation so far, each attempt followed by a request: by default one without a verdict."""
    chat = prompts.solve(problem)
    for attempt in attempts:
        chat = ask(chat, attempt)
    return chat


def converse(
    run: Run,
    problems: Sequence[Problem],
    samples: int,
    turns: int,
    follow_up: FollowUp = retry,
    temperature: float | None = None,
    adapter: str = POLICY,
    generator: torch.Generator | None = None,
) -> Attempts:
    """``samples`` independent conversations of ``turns`` attempts on each problem, all of them to the last turn."""
    first = run.sample([prompts.solve(p) for p in problems], samples, temperature, adapter, generator)
    begun = Rollouts(list(problems), first, run.rewards(problems, first))
    return go_on(run, begun, turns, follow_up, temperature, adapter, generator)


def go_on(
    run: Run,
    first: Rollouts,
    turns: int,
    follow_up: FollowUp = retry,
    temperature: float | None = None,
    adapter: str = POLICY,
    generator: torch.Generator | None = None,
) -> Attempts:
    """The same conversations where the attempts at the first turn are there already."""
    problems, samples = first.problems, first.rewards.shape[1]
    completions, rewards = [first.completions], [first.rewards]
    for _ in range(turns - 1):
        chats = [
            follow_up(problem, [turn[i][k].text for turn in completions])
            for i, problem in enumerate(problems)
            for k in range(samples)
        ]
        flat = run.sample(chats, 1, temperature, adapter, generator)
        grouped = [[flat[i * samples + k][0] for k in range(samples)] for i in range(len(problems))]
        completions.append(grouped)
        rewards.append(run.rewards(problems, grouped))
    return Attempts(problems, completions, torch.stack(rewards))


def self_refine(run: Run, first: Rollouts, turns: int, generator: torch.Generator | None = None) -> Attempts:
    """Self-Refine (2303.17651): the model judges each attempt itself and writes again what it takes for wrong."""
    problems, samples = first.problems, first.rewards.shape[1]
    asked = [p for p in problems for _ in range(samples)]
    last = [completion for group in first.completions for completion in group]
    completions, rewards = [first.completions], [first.rewards]
    for _ in range(turns - 1):
        shown = [prompts.verify(p, attempt.text) for p, attempt in zip(asked, last, strict=True)]
        verdicts = run.sample(shown, 1, generator=generator)
        rejected = [i for i, (verdict,) in enumerate(verdicts) if verdict.text.strip().lower().startswith("no")]
        chats = [prompts.revise(prompts.solve(asked[i]), last[i].text, right=False) for i in rejected]
        revised = run.sample(chats, 1, generator=generator) if chats else []
        for i, (attempt,) in zip(rejected, revised, strict=True):
            last[i] = attempt
        completions.append([last[i : i + samples] for i in range(0, len(last), samples)])
        rewards.append(run.rewards(problems, completions[-1]))
    return Attempts(problems, completions, torch.stack(rewards))


def turn_metrics(attempts: Attempts) -> dict[str, Metric]:
    """Accuracy at each turn, self-correction between turns 1 and 2, votes over turns; per problem where possible.

    acc@tN; delta, i_to_c, c_to_i and changed between turns 1 and 2 (SCoRe, 2409.12917); CL, CS and RSS (2412.19513)
    over all conversations; with more than two turns vote@tN, the majority over the answers of turns 1 to N (RISE's
    m1@tN), and any@tN, one of them right (its p1@tN). Per-problem values are means over samples.
    """
    rewards = attempts.rewards.double().numpy()
    turns, problems, samples = rewards.shape
    answers = [[attempts.answers(i, k) for k in range(samples)] for i in range(problems)]
    changed = np.array([[a[0] != a[1] for a in row] for row in answers])
    pair = self_correction(rewards[0], rewards[1], changed)
    metrics = {name: share(values.mean(1)) for name, values in pair.items()}
    metrics |= {f"acc@t{t + 1}": share(rewards[t].mean(1)) for t in range(turns)}
    metrics |= {k: number(v) for k, v in confidence_critique(rewards[0].ravel(), rewards[1].ravel()).items()}
    for t in range(2, turns + 1 if turns > 2 else 2):
        votes = np.zeros((problems, samples))
        for i, row in enumerate(answers):
            for k, found in enumerate(row):
                winner = majority(found[:t])
                votes[i, k] = 0.0 if winner is None else rewards[found.index(winner), i, k]
        metrics[f"vote@t{t}"] = share(votes.mean(1))
        metrics[f"any@t{t}"] = share(rewards[:t].max(0).mean(1))
    return metrics
