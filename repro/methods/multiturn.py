"""Several attempts at one problem in one conversation, and what is measured on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from repro.methods.critic import Critic, feedback
from repro.model.policy import POLICY
from repro.model.sampling import Completion
from repro.model.training import Batch
from repro.results.metric import Metric, number, share
from repro.results.metrics import confidence_critique, cumulative, majority, ratio, self_correction
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


# --- rounds of feedback that end with the first right attempt -------------------------------------------------------


@dataclass
class Dialogue:
    """Attempts at one problem with the words on each that another one followed; only the last can be right."""

    problem: Problem
    attempts: list[Completion]
    right: bool
    words: list[str] = field(default_factory=list)

    def chat(self, full: bool = True) -> Chat:
        """Every attempt (or the last one) with its words, and the request for another attempt."""
        chat = prompts.solve(self.problem)
        for attempt, words in list(zip(self.attempts, self.words, strict=True))[0 if full else -1 :]:
            chat = feedback(chat, attempt.text, words)
        return chat

    @property
    def solved_at(self) -> float:
        """The number of the right attempt, from 1; infinite without one."""
        return len(self.attempts) if self.right else float("inf")


Answer = Callable[[Sequence[Dialogue], list[Chat]], list[Completion]]  # dialogues, what each is asked -> next attempts


def dialogues(
    run: Run,
    first: Rollouts,
    turns: int,
    critic: Critic,
    full: bool = True,
    answer: Answer | None = None,
    generator: torch.Generator | None = None,
) -> list[list[Dialogue]]:
    """Up to ``turns`` attempts by the policy, with the critic's words on each wrong one, [problem][sample].

    ``full``: a next attempt sees the whole dialogue, else the last attempt and what was said of it. ``answer``: how the
    next attempts are made, by default one sample each.
    """
    rows = zip(first.problems, first.completions, first.rewards.tolist(), strict=True)
    made = [[Dialogue(p, [c], bool(r)) for c, r in zip(group, right, strict=True)] for p, group, right in rows]
    for _ in range(turns - 1):
        going = [d for group in made for d in group if not d.right]
        if not going:
            break
        asked = [d.problem for d in going]
        for d, words in zip(going, critic(run, asked, [d.attempts[-1].text for d in going]), strict=True):
            d.words.append(words)
        chats = [d.chat(full) for d in going]
        written = answer(going, chats) if answer else [c for (c,) in run.sample(chats, 1, generator=generator)]
        rewards = run.rewards(asked, [[c] for c in written])[:, 0].tolist()
        for d, attempt, right in zip(going, written, rewards, strict=True):
            d.attempts.append(attempt)
            d.right = bool(right)
    return made


def solved_within(made: Sequence[Sequence[Dialogue]], turns: int) -> np.ndarray:
    """Cumulative accuracy: the share of a problem's dialogues solved by attempt 1, 2, ..., [turns, problems].

    It can only rise, and does so by chance as well: see ``at_equal_tokens``.
    """
    solved = np.array([[d.solved_at for d in group] for group in made])
    return np.stack([(solved <= t).mean(1) for t in range(1, turns + 1)])


def at_equal_tokens(rewards: np.ndarray, lengths: np.ndarray, tokens: float) -> np.ndarray:
    """The control by resampling: solved by independent samples at ``tokens`` a problem in the mean, [problems].

    rewards, lengths [problems, samples]. Samples are drawn in order until one is right, as in a dialogue; between two
    numbers of samples it is interpolated. With more tokens than all samples have, all of them.
    """
    solved = cumulative(rewards)
    open_ = np.concatenate([np.ones_like(solved[:, :1]), 1 - solved[:, :-1]], axis=1)
    spent = (lengths * open_).cumsum(1).mean(0)
    place = float(np.interp(tokens, spent, np.arange(len(spent))))
    low = min(int(place), len(spent) - 1)
    high = min(low + 1, len(spent) - 1)
    return solved[:, low] + (place - low) * (solved[:, high] - solved[:, low])


def repeats(made: Sequence[Sequence[Dialogue]]) -> np.ndarray:
    """How often the attempt after a wrong one ends at the same answer, [problems] (see ``ratio``)."""
    same, chances = np.zeros(len(made)), np.zeros(len(made))
    for i, group in enumerate(made):
        for d in group:
            answers = final_answers([c.text for c in d.attempts])
            same[i] += sum(a is not None and a == b for a, b in pairwise(answers))
            chances[i] += len(answers) - 1
    return ratio(same, chances)


def self_feedback(
    run: Run, first: Rollouts, turns: int, critic: Critic, generator: torch.Generator | None = None
) -> tuple[Attempts, list[list[list[str]]]]:
    """All dialogues to the last turn, whether right or not: no verifier takes part. Also the words, [problem][sample].

    With the model's own critic it is alone with its problem.
    """
    made = [[Dialogue(p, [c], False) for c in row] for p, row in zip(first.problems, first.completions, strict=True)]
    every, rewards = [d for group in made for d in group], [first.rewards]
    for _ in range(turns - 1):
        said = critic(run, [d.problem for d in every], [d.attempts[-1].text for d in every])
        for d, words in zip(every, said, strict=True):
            d.words.append(words)
        for d, (attempt,) in zip(every, run.sample([d.chat() for d in every], 1, generator=generator), strict=True):
            d.attempts.append(attempt)
        rewards.append(run.rewards(first.problems, [[d.attempts[-1] for d in group] for group in made]))
    completions = [[[d.attempts[t] for d in group] for group in made] for t in range(turns)]
    return Attempts(first.problems, completions, torch.stack(rewards)), [[d.words for d in group] for group in made]


@dataclass
class Conversations(Rollouts):
    """Rollouts of first attempts with the dialogues that go on from them, as what ``train_grpo`` trains on.

    ``more``: further sequences, prompt and completion, each with its weight: what is an advantage to an attempt.
    """

    dialogues: list[list[Dialogue]]
    more: list[tuple[Sequence[int], Sequence[int], float]] = field(default_factory=list)

    @property
    def attempts(self) -> list[tuple[int, int, int]]:
        """Turn, problem and sample of each attempt, from 0, in the batch's order."""
        rows = ((i, k, d) for i, group in enumerate(self.dialogues) for k, d in enumerate(group))
        return [(t, i, k) for i, k, d in rows for t in range(len(d.attempts))]

    def batch(self) -> Batch:
        """Every attempt after what was said before it, a dialogue's in a row, and then what there is ``more``."""
        said = (self.dialogues[i][k].attempts[t] for t, i, k in self.attempts)
        return Batch([*((c.prompt, c.ids) for c in said), *((prompt, ids) for prompt, ids, _ in self.more)])

    def weights(self, advantage: torch.Tensor) -> torch.Tensor:
        """Advantages of the attempts [turns, problems, samples] and the weights of what there is more, [tokens]."""
        values = [advantage[place].item() for place in self.attempts]
        return self.batch().spread([*values, *(weight for *_, weight in self.more)])


def conversations(run: Run, problems: list[Problem], samples: int, turns: int, critic: Critic) -> Conversations:
    """First attempts as ``Run.rollout`` makes them, and dialogues of up to ``turns`` attempts; logs what they reach."""
    if not problems:
        return Conversations([], [], torch.zeros(0, samples), [])
    first = run.rollout(problems, samples)
    made = dialogues(run, first, turns, critic)
    solved = solved_within(made, turns).mean(1)
    run.log(solved=solved[-1], mended=(solved[-1] - solved[0]) / (1 - solved[0]) if solved[0] < 1 else np.nan)
    return Conversations(first.problems, first.completions, first.rewards, made)


def affordable(completions: int, most: int) -> Callable[[Run, int], list[Problem]]:
    """A ``draw`` for ``train_grpo``: as many problems as the rest of a run's ``completions`` has room for.

    ``most``: completions that one problem can take. Dialogues end when they are right: what they take isn't fixed.
    """

    def draw(run: Run, problems: int) -> list[Problem]:
        left = max(0, completions - int(run.budget["completions"]))
        return run.next_problems(min(problems, left // most))

    return draw
