"""Bootstrapping Task Spaces for Self-Improvement (ExIt, exploratory iteration). Minqi Jiang, Andrei Lupu, Yoram
Bachrach, arXiv 2509.04575, 2025 (version 1).

Idea. A model that shall improve its answer over many turns need not be trained on so many: one step is enough, if its
own answers become new instances of the task. A buffer holds problems, plain or with an earlier answer to improve; those
on which returns vary most are drawn most. Now and then the request is for another approach (divergence), and a bonus
raises the advantages of answers that differ from their group.

Reproduced. base, GRPO, and one after another added to it: the buffer of plain problems (curriculum), earlier answers to
improve (improve), divergence (diverge), the bonus (exit). All of them improve their answers four times in the
evaluation, and see the last one only. GRPO stands at its own best rate and (grpo_same_rate) at that of the others,
since the gain over the turns depends on it.

How this differs from the paper and why.
- The requests are the kit's for another attempt without a verdict; to diverge, for another way. Both are plain words
  (paper: a template with a summary of the approach).
- The bonus takes distances between counts of token pairs: no encoder of mathematics is at hand, nor would it know these
  solutions. It is bounded, and 1 where answers are equally far from their mean.
- kappa, the variance (that of the population) and which answer becomes an instance (a random one) aren't stated in the
  paper. No KL term (paper: 0.001). Tool use and machine-learning tasks with graded rewards aren't here.
- The buffer begins to be used with the second of ten rollout steps, so that depths stay small; four updates a step.

Commands.
    repro run exit --seeds 5                       # tiny model, with intervals
    repro run exit --arms exit --kappa 20          # a sharper choice
    repro run exit --preset gpu                    # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch

from repro import Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, number, script_main, share, standard
from repro.config import ConfigError
from repro.methods.grpo import GRPO, advantages, train_grpo
from repro.methods.multiturn import go_on, turn_metrics
from repro.tasks import prompts
from repro.tasks.problem import Problem
from repro.tasks.prompts import Chat

Item = dict  # an instance: problem (its number), depth, attempt (the last one, "" at depth 0), score


@dataclass(frozen=True)
class Config(RunConfig):
    """ExIt's hyperparameters."""

    learning_rate: float = 1e-3
    """Of all arms but the standard GRPO (paper: 1e-6, full fine-tuning)."""
    minibatches: int = 4
    """Optimiser steps per rollout step, as that arm's (paper: 1)."""
    buffer_size: int = 128
    """Instances in the buffer (paper: 512); four times ``prompts``, as in the paper."""
    iterate: float = 0.5
    """Probability that an instance is taken from the buffer, once it holds ``prompts`` (paper: 0.5); 0 is GRPO."""
    deepen: bool = True
    """Answers become instances; without, the buffer is a curriculum of plain problems."""
    diverge: float = 0.2
    """Probability of the request for another approach (paper: 0.2)."""
    bonus: bool = True
    """Advantages are multiplied with the diversity bonus."""
    most_bonus: float = 5.0
    """Its bound (ours)."""
    kappa: float = 10.0
    """Sharpness of the choice by scores (inferred: the score is at most 0.25)."""
    improvements: int = 4
    """Improvements in the evaluation (paper: 16)."""

    PRESETS = {  # noqa: RUF012
        "smol": {"buffer_size": 32},
        "small": {"buffer_size": 32, "improvements": 2},
        "gpu": {"buffer_size": 64, "improvements": 2},
    }

    def check(self) -> None:
        super().check()
        for name in ("iterate", "diverge"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: is a probability, from 0 to 1")


# --- the buffer and the bonus (section 4) ---------------------------------------------------------------------------


def learnability(rewards: torch.Tensor) -> torch.Tensor:
    """Variance of a group's returns, that of the population: [groups, samples] -> [groups]."""
    return rewards.var(1, correction=0)


def chances(scores: Sequence[float], kappa: float) -> torch.Tensor:
    """Probability that an instance is drawn, proportional to exp(kappa score)."""
    return (kappa * torch.tensor(scores, dtype=torch.float64)).softmax(0)


def admit(buffer: list[Item], item: Item, size: int) -> None:
    """A full buffer takes what scores at least as much as its lowest, which leaves; one that it has is scored anew."""
    same = [i for i, old in enumerate(buffer) if (old["problem"], old["attempt"]) == (item["problem"], item["attempt"])]
    if same:
        buffer[same[0]] = item
    elif len(buffer) < size:
        buffer.append(item)
    else:
        lowest = min(range(size), key=lambda i: buffer[i]["score"])  # the oldest of equals
        if item["score"] >= buffer[lowest]["score"]:
            del buffer[lowest]
            buffer.append(item)


def pair_counts(answers: Sequence[Sequence[int]]) -> torch.Tensor:
    """Counts of neighbouring tokens as vectors of length 1, [answers, pairs]: what stands for an embedding."""
    counts = [Counter(pairwise(ids)) for ids in answers]
    columns = {pair: i for i, pair in enumerate(dict.fromkeys(pair for count in counts for pair in count))}
    vectors = torch.zeros(len(answers), max(1, len(columns)))
    for row, count in enumerate(counts):
        for pair, n in count.items():
            vectors[row, columns[pair]] = n
    return torch.nn.functional.normalize(vectors, dim=1)


def diversity(distances: torch.Tensor, most: float) -> torch.Tensor:
    """Distances from the group's mean over their range, at most ``most``; 1 where they don't differ; same shape."""
    spread = distances.amax(1, keepdim=True) - distances.amin(1, keepdim=True)
    return torch.where(spread < 1e-8, torch.ones_like(distances), (distances / spread.clamp(min=1e-8)).clamp(max=most))


def from_mean(rollouts: Rollouts) -> torch.Tensor:
    """How far each answer is from the mean of its group, [problems, samples]."""
    groups = [pair_counts([c.ids for c in group]) for group in rollouts.completions]
    return torch.stack([(vectors - vectors.mean(0)).norm(dim=1) for vectors in groups])


# --- training -------------------------------------------------------------------------------------------------------


def choose(run: Run, config: Config, problems: Sequence[Problem]) -> list[Item]:
    """For each problem itself, or an instance of the buffer in its place."""
    buffer, chosen = run.kept["buffer"], []
    place = {p.question: i for i, p in enumerate(run.problems)}
    for problem in problems:
        if len(buffer) >= config.prompts and torch.rand((), generator=run.rng) < config.iterate:
            drawn = torch.multinomial(chances([b["score"] for b in buffer], config.kappa), 1, generator=run.rng)
            chosen.append(dict(buffer[int(drawn)]))
        else:
            chosen.append({"problem": place[problem.question], "depth": 0, "attempt": "", "score": 0.0})
    return chosen


def request(problem: Problem, attempt: str, diverge: bool) -> Chat:
    """The plain problem, or its last answer with the request to improve it or to take another way."""
    chat = prompts.solve(problem)
    if not attempt:
        return chat
    return prompts.another(chat, attempt) if diverge else prompts.retry(chat, attempt)


def remember(run: Run, config: Config, chosen: Sequence[Item], rollouts: Rollouts) -> None:
    """Scores of the instances, and one answer to each as a new instance that begins with its score."""
    scores = learnability(rollouts.rewards).tolist()
    for item, score, group in zip(chosen, scores, rollouts.completions, strict=True):
        admit(run.kept["buffer"], {**item, "score": score}, config.buffer_size)
        if config.deepen:
            answer = group[int(torch.randint(len(group), (), generator=run.rng))].text
            child = {"problem": item["problem"], "depth": item["depth"] + 1, "attempt": answer, "score": score}
            admit(run.kept["buffer"], child, config.buffer_size)


def exploratory(run: Run, config: Config, **changes) -> None:
    """GRPO on instances; ``changes``: with other settings."""
    config = replace(config, **changes)
    run.kept.setdefault("buffer", [])

    def rollout(run: Run, problems: list[Problem], samples: int) -> Rollouts:
        if not config.iterate:
            return run.rollout(problems, samples)
        chosen = choose(run, config, problems)
        asked = [run.problems[item["problem"]] for item in chosen]
        other = (torch.rand(len(chosen), generator=run.rng) < config.diverge).tolist()
        chats = iter([request(p, item["attempt"], d) for p, item, d in zip(asked, chosen, other, strict=True)])
        rollouts = run.rollout(asked, samples, ask=lambda _: next(chats))  # it asks in this order
        remember(run, config, chosen, rollouts)
        depths = [item["depth"] for item in chosen]
        run.log(depth=np.mean(depths), deepest=max(depths), learnability=learnability(rollouts.rewards).mean())
        return rollouts

    def advantage(run: Run, rollouts: Rollouts, settings: GRPO) -> torch.Tensor:
        values = advantages(rollouts.rewards, settings.variant)
        distances = from_mean(rollouts)
        run.log(distance=distances.mean())
        return values * diversity(distances, config.most_bonus) if config.bonus else values

    sizes = config.steps, config.prompts, config.samples
    train_grpo(run, *sizes, GRPO(minibatches=config.minibatches), rollout=rollout, advantage=advantage)


# --- evaluation -----------------------------------------------------------------------------------------------------


def improve(problem: Problem, attempts: Sequence[str]) -> Chat:
    """The last answer alone, and the request to improve it."""
    return request(problem, attempts[-1], diverge=False)


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """One sample of each problem, improved again and again without a verifier."""
    generator = torch.Generator(run.policy.device).manual_seed(20_000 + run.seed)
    turns = config.improvements + 1
    attempts = go_on(run, rollouts.part(len(rollouts.problems), 1), turns, improve, generator=generator)
    first, last = attempts.rewards[0, :, 0], attempts.rewards[-1, :, 0]
    half = attempts.rewards[config.improvements // 2, :, 0]
    metrics = turn_metrics(attempts)
    kept = {name: metrics[name] for name in ("CL", "CS", "changed", *(f"acc@t{t}" for t in range(1, turns + 1)))}
    return kept | {
        **{"improved": share(last), "halfway": share(half), "gain": share(last - first)},
        "late gain": share(last - half),
        **{"mended": share((1 - first) * last), "broken": share(first * (1 - last))},
        "net corrections": number((last - first).sum()),
    }


over, SAME_RATE, LAST = Claim.over, "grpo_same_rate", "improved"

PAPER = Paper(
    slug="exit",
    title="Bootstrapping Task Spaces for Self-Improvement",
    arxiv="2509.04575",
    family="self-correction",
    departs="chooses its problems, from the same pool and for as many samples",
    config=Config,
    arms={
        "grpo": standard("grpo"),
        SAME_RATE: partial(exploratory, iterate=0.0, bonus=False),
        "curriculum": partial(exploratory, deepen=False, bonus=False),
        "improve": partial(exploratory, diverge=0.0, bonus=False),
        "diverge": partial(exploratory, bonus=False),
        "exit": exploratory,
    },
    measure=measure,
    claims=(
        over("exit", "grpo", LAST, text="ExIt's improved answers end above GRPO's", published="+1.7", primary=True),
        over("exit", SAME_RATE, "gain", text="ExIt gains more over the turns", published="+0.9"),
        over("exit", "exit", LAST, "acc@t1", text="ExIt's improved answers are above its first", published="+2.0"),
        over("improve", SAME_RATE, "gain", text="Earlier answers raise the gain over GRPO's", published="+0.1"),
        over("improve", "curriculum", LAST, text="Earlier answers add to the curriculum", published="+0.8"),
        over("diverge", "improve", LAST, text="Divergence adds to improvement", published="+0.5"),
        over("exit", "diverge", LAST, text="The bonus adds to divergence", published="+0.3"),
        over("exit", "diverge", "training distance", text="The bonus keeps answers further apart", published="so"),
        over("exit", "exit", LAST, "halfway", text="ExIt's answers still rise in the second half of the turns"),
        over("exit", "grpo", threshold=-0.02, text="ExIt's first answer isn't worse by more than 2 points"),
    ),
    columns=("accuracy", "acc@t1", "acc@t2", "improved", "gain", "late gain", "mended", "broken", "changed", "pass@8"),
    published={"base": "17.4 (-0.4)", "grpo": "18.7 (+1.1)", "curriculum": "18.8 (+0.9)", "improve": "19.6 (+1.2)"}
    | {"diverge": "20.1 (+1.6)", "exit": "20.4 (+2.0)"},
    published_setting="Llama-3.2-3B-Instruct, mathematics, after 16 improvements (gain over the first answer)",
    curves=("reward", "depth", "entropy"),
    panels=(
        Panel("accuracy after improvements", tuple(f"acc@t{t}" for t in range(1, 6)), "turns"),
        Panel("depth of instances", ("depth",), x="completions"),
        Panel("distance of answers from their mean", ("distance",), x="completions"),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
