"""Self-Correcting Large Language Models: Generation vs. Multiple Choice. Hossein A. Rahmani, Satyapriya Krishna, Xi
Wang, Mohammadmehdi Naghiaei, Emine Yilmaz, arXiv 2511.09381, REALM workshop at EMNLP 2026.

Idea. Asked to look at its answers again and again, without being told whether they were right, a model moves most in
the first two rounds when it writes answers freely, and then mends about as much as it breaks. Where it chooses among
options it changes little, and a wrong first choice is rarely repaired.

Reproduced. Nothing is trained. Five rounds after the first answer in both formats on the same problems, all earlier
answers in the context: accuracy, flips, recovery, cumulative accuracy and answers that can't be read. Controls: fresh
samples in place of rounds, in both formats, and one round that asks for another solution without a hint at an error.

How this differs from the paper and why.
- Problems with a rule verifier in place of DisambiguationQA and tinyTruthfulQA, which need a model as judge. Options
  are the right answer and up to three different wrong ones that the model itself sampled; problems without one are left
  out, in both formats. Chance differs between them: changes are compared, not levels.
- The built-in model knows one choice only: which of two solutions is right, A or B. It chooses between a right and a
  wrong solution of its own, and is asked again behind its answer, which it never learnt. Its corpus decides how often
  it changes its mind there; the row of a real model is the one that counts.
- Follow-ups say that there might be an error, in both formats (but for the built-in model's choice, where the question
  stands alone). The generation's doesn't repeat the question, which stays in the context: nothing is cut off.
- The first answers are the evaluation's, and so are the fresh samples. No opening turns, no top-k, no top-p; the
  preset's temperature. Answers come with their steps in both formats; self-consistency in every round is left out.

Commands.
    repro run gen_vs_mc --seeds 5                  # tiny model, with intervals
    repro run gen_vs_mc --preset small             # Qwen2.5-0.5B-Instruct on GSM8K, CPU or GPU
    repro run gen_vs_mc --preset gpu               # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
import torch

from repro import Claim, Metric, Panel, Paper, Rollouts, Run, script_main, share
from repro.methods.multiturn import Attempts, final_answers, go_on, retry
from repro.methods.pool import PoolConfig
from repro.model.sampling import Completion
from repro.results.metrics import cumulative, flips, over_all, ratio
from repro.tasks import prompts
from repro.tasks.problem import Problem
from repro.verify import extract_answer

LETTERS = "ABCD"
CHOOSE = "Reason step by step, one step a line. Then name the right option: 'The final answer is (X).'"
CHOOSE_AGAIN = "There might be an error in the answer above. Look at it again.\n"
CLOSING = re.compile(r"(?:(?i:final answer is)[\s:*$]*|\\boxed\{)+\(?([A-D])\b")
SHOWN = re.compile(r"\(([A-D])\)")


@dataclass(frozen=True)
class Config(PoolConfig):
    """Settings of the rounds."""

    rounds: int = 5
    """Rounds after the first answer (paper: 5)."""
    round_problems: int = 160
    """Problems of the pool that are asked again, each in one conversation a format (paper: 95 and 120)."""
    choice: Literal["options", "solutions"] = "options"
    """What is chosen from: final answers as options (A) to (D) (paper), or a right and a wrong solution."""

    PRESETS = {  # noqa: RUF012
        "tiny": {"choice": "solutions"},
        "small": {"round_problems": 50},  # conversations of six answers take long on a CPU
    }


# --- choices --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """What is asked at first and in every later round, the right letter, and those of the options' texts."""

    first: str
    again: str
    right: str
    options: dict[str, str] = field(default_factory=dict)


def letter(text: str, options: Mapping[str, str] | None = None) -> str | None:
    """The option that a reply names: a lone letter, that of the closing phrase, or the only one in parentheses.

    A reply without a letter may end at an option's text in place of it; ``options``: their letters.
    """
    if alone := re.fullmatch(r"\(?([A-D])\)?\.?", text.strip()):
        return alone[1]
    closing, named = CLOSING.findall(text), set(SHOWN.findall(text))
    if closing or len(named) == 1:
        return closing[-1] if closing else named.pop()
    return (options or {}).get(extract_answer(text) or "")


def options_of(problem: Problem, answers: Sequence[str | None], rewards: Sequence[float]) -> Choice | None:
    """The right answer among up to three wrong ones of the samples; None where no sample has a wrong answer.

    The order is drawn from the problem's text: the same in every run. The right answer is written as a sample does it,
    where one does, or its form would tell it.
    """
    gold = next((a for a, r in zip(answers, rewards, strict=True) if r), None) or problem.answer
    wrong = list(dict.fromkeys(a for a, r in zip(answers, rewards, strict=True) if a is not None and not r))[:3]
    if not wrong:
        return None
    shuffled = random.Random(problem.question).sample([gold, *wrong], len(wrong) + 1)
    listed = "\n".join(f"({name}) {answer}." for name, answer in zip(LETTERS, shuffled, strict=False))
    asked = f"{problem.question}\nOptions:\n{listed}\n{CHOOSE}"
    letters = dict(zip(shuffled, LETTERS, strict=False))
    return Choice(asked, CHOOSE_AGAIN + asked, letters[gold], letters)


def solutions_of(problem: Problem, texts: Sequence[str], rewards: Sequence[float]) -> Choice | None:
    """The first right and the first wrong one of the samples, in an order drawn from the problem's text, or None."""
    if min(rewards, default=0) == max(rewards, default=0):
        return None
    right, wrong = texts[rewards.index(1)], texts[rewards.index(0)]
    shuffled = random.Random(problem.question).sample([right, wrong], 2)
    asked = prompts.compare(problem, *shuffled)[0]["content"]
    return Choice(asked, prompts.COMPARE, LETTERS[shuffled.index(right)])


def choice_of(problem: Problem, group: Sequence[Completion], rewards: Sequence[float], config: Config) -> Choice | None:
    """A choice made of the whole samples of a problem."""
    whole = [k for k, completion in enumerate(group) if not completion.truncated]
    texts, rewards = [group[k].text for k in whole], [rewards[k] for k in whole]
    if config.choice == "solutions":
        return solutions_of(problem, texts, rewards)
    return options_of(problem, final_answers(texts), rewards)


def asked_again(choice: Choice, replies: Sequence[str]) -> prompts.Chat:
    """The conversation before the next reply: all earlier ones as they were written, each with the follow-up."""
    chat = [{"role": "user", "content": choice.first}]
    for reply in replies:
        chat += [{"role": "assistant", "content": reply}, {"role": "user", "content": choice.again}]
    return chat


def choose(
    run: Run, choices: Sequence[Choice], first: Sequence[Completion], rounds: int, generator: torch.Generator
) -> list[list[Completion]]:
    """The replies of one conversation a choice, which begins with the ``first`` ones, [choices][rounds + 1]."""
    replies = [[reply] for reply in first]
    for _ in range(rounds):
        asked = [asked_again(choice, [c.text for c in said]) for choice, said in zip(choices, replies, strict=True)]
        for said, (completion,) in zip(replies, run.sample(asked, 1, generator=generator), strict=True):
            said.append(completion)
    return replies


def by_round(right: np.ndarray, answers: Sequence[Sequence[str | None]]) -> dict[str, np.ndarray]:
    """Values of problems: ``name@n`` after n answers, the first included; without @n at the end or, of rates, the mean.

    ``right`` is [problems, rounds + 1]. Flips are shares of all problems; recovery is P(right | wrong at first),
    retention P(right | right at first).
    """
    (mended, broken), first = flips(right), right[:, 0]
    changed = np.array([[a != b for a, b in pairwise(row)] for row in answers], dtype=float)
    unread = np.array([[a is None for a in row] for row in answers], dtype=float)
    rates = {"flips": mended + broken, "mended": mended, "broken": broken, "changed": changed, "unread": unread}
    series = {"accuracy": right, "cumulative": cumulative(right), "recovery": right[:, 1:], "retention": right[:, 1:]}
    weights, found = {"recovery": 1 - first, "retention": first}, {}
    for name, values in (series | rates).items():
        weight = weights.get(name, np.ones_like(first))
        for n, column in enumerate(values.T, right.shape[1] - values.shape[1] + 1):
            found[f"{name}@{n}"] = ratio(weight * column, weight)
        whole = values.mean(1) if name in rates else values[:, -1]
        found[name] = ratio(weight * whole, weight)
    return found


# --- measurement ----------------------------------------------------------------------------------------------------


def written(attempts: Attempts) -> tuple[np.ndarray, list[list[str | None]]]:
    """Of conversations, one a problem: which answers are right, [problems, rounds + 1], and what they are."""
    return attempts.rewards[:, :, 0].double().numpy().T, [attempts.answers(i, 0) for i in range(len(attempts.problems))]


def picked(
    choices: Sequence[Choice], replies: Sequence[Sequence[Completion]]
) -> tuple[np.ndarray, list[list[str | None]]]:
    """The same of replies to choices; as of solutions, one that is truncated is wrong."""
    rows = zip(choices, replies, strict=True)
    letters = [[None if c.truncated else letter(c.text, choice.options) for c in row] for choice, row in rows]
    right = [[a == choice.right for a in row] for choice, row in zip(choices, letters, strict=True)]
    return np.array(right, dtype=float), letters


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Rounds in both formats and their controls, all on the problems that a choice can be made of."""
    generator = torch.Generator(run.policy.device).manual_seed(20_000 + run.seed)
    turns, pool = config.rounds + 1, rollouts.part(config.round_problems, config.eval_samples)
    every = zip(pool.problems, pool.completions, pool.rewards.tolist(), strict=True)
    made = [choice_of(problem, group, rewards, config) for problem, group, rewards in every]
    rows, choices = [i for i, choice in enumerate(made) if choice], [choice for choice in made if choice]
    metrics = {"with a choice": share([float(choice is not None) for choice in made])}
    if not rows:
        return metrics
    pool = pool.select(rows)
    first, parallel = pool.part(len(rows), 1), pool.part(len(rows), turns)
    asked = run.sample([asked_again(choice, ()) for choice in choices], turns, generator=generator)
    found = {
        "generation": written(go_on(run, first, turns, generator=generator)),
        "neutral generation": written(go_on(run, first, 2, partial(retry, ask=prompts.another), generator=generator)),
        "fresh generation": (
            parallel.rewards.double().numpy(),
            [final_answers([c.text for c in group]) for group in parallel.completions],
        ),
        "choice": picked(choices, choose(run, choices, [row[0] for row in asked], config.rounds, generator)),
        "fresh choice": picked(choices, asked),
    }
    for kind, answered in found.items():
        for name, values in by_round(*answered).items():
            stem, at, n = name.partition("@")
            metrics[f"{stem}, {kind}{at}{n}"] = share(over_all(values, rows, len(made)))
    return metrics


within = partial(Claim.within, "base")
PLATEAU = "Generation gains at most 2 points after round 2"
NOISE = "Cumulative accuracy of fresh samples isn't lower by more than 2 points"

PAPER = Paper(
    slug="gen_vs_mc",
    title="Self-Correcting Large Language Models: Generation vs. Multiple Choice",
    arxiv="2511.09381",
    family="self-correction",
    departs="nothing is trained; more samples on fewer problems in place of the common evaluation",
    config=Config,
    arms={},
    measure=measure,
    claims=(
        within("flips", "Generation flips more than choice", "flips, generation", "flips, choice", primary=True),
        within(
            "recovery", "Generation mends more of what was wrong at first", "recovery, generation", "recovery, choice"
        ),
        within("early", "Its flips become fewer from round 1 to 5", "flips, generation@2", "flips, generation@6"),
        within("plateau", PLATEAU, "accuracy, generation@3", "accuracy, generation", "72.5 -> 72.6", threshold=-0.02),
        within(
            "choice_gains", "Choice gains over all rounds", "accuracy, choice", "accuracy, choice@1", "57.5 -> 61.9"
        ),
        within("inertia", "Choice flips less than fresh choices", "flips, fresh choice", "flips, choice"),
        within("history", "Generation flips less than fresh samples", "flips, fresh generation", "flips, generation"),
        within("noise", NOISE, "cumulative, fresh generation", "cumulative, generation", threshold=-0.02),
    ),
    columns=(
        *("accuracy, generation@1", "accuracy, generation", "accuracy, choice@1", "accuracy, choice"),
        *(f"flips, {kind}" for kind in ("generation", "fresh generation", "choice", "fresh choice")),
        *("recovery, generation", "recovery, choice", "unread, generation", "unread, choice"),
    ),
    published={"base": "73.3 -> 72.6, 57.5 -> 61.9"},
    published_setting="mean of six models on tinyTruthfulQA, rounds 0 and 5: generation, multiple choice",
    panels=(
        Panel("accuracy", ("accuracy, generation", "accuracy, choice"), "sizes", x="answers"),
        Panel("cumulative accuracy", ("cumulative, generation", "cumulative, fresh generation"), "sizes", x="answers"),
        Panel(
            "flips", tuple(f"flips, {kind}" for kind in ("generation", "choice", "fresh choice")), "sizes", x="answers"
        ),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
