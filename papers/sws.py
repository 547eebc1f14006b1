"""SwS: Self-aware Weakness-driven problem Synthesis in Reinforcement Learning for LLM Reasoning. Xiao Liang,
Zhong-Zhi Li, Yeyun Gong, Yang Wang et al., arXiv 2506.08989, NeurIPS 2025.

Idea. Reinforcement learning on a small set of problems leaves some categories behind. A first stage of training records
each problem's accuracy: those that stay below one half and don't rise are weaknesses. New problems are written for the
categories in proportion to their share of weaknesses, from the concepts of the failed problems, labelled, and kept
where the model solves them sometimes. Then training goes on with both sets.

Reproduced. After a common first stage on few problems: training that goes on with them for as many steps (the paper's
baseline) or for as many completions as the synthesis took; with new problems for weak kinds (SwS); with as many for all
kinds alike. By name: labels by the majority of the model's own answers, its self-evolving form.

How this differs from the paper and why.
- The policy itself writes the problems, by kind and level: to the built-in model no other request for problems is
  known. A level stands for the concepts; one is drawn by its frequency among a kind's weak problems, so that neither
  co-occurrence nor embeddings come in.
- Labels of arithmetic are exact (paper: majority of a model's answers), so that a problem must be readable. No model
  judges problems in words; they must be new, and of the training split by the kit's hash.
- The difficulty is measured on fresh samples, not on those of the label.
- Tasks with one kind (GSM8K) have no weak ones: there sws and uniform are the same arm.
- A problem is seen about twice in the first stage, which leaves little of a slope.
- Groups without signal are dropped, not replaced (paper: sampling goes on until the batch is full).

Commands.
    repro run sws --seeds 5                        # tiny model, with intervals over seeds
    repro run sws --arms sws sws_majority          # what the model's own labels do
    repro run sws --preset small --task math       # Qwen2.5-0.5B-Instruct on MATH, majority labels
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch

from repro import Arm, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, number, script_main, share, standard
from repro.config import ConfigError
from repro.methods.curriculum import Pools, draw_keys, means_by_key
from repro.methods.grpo import GRPO, train_grpo
from repro.methods.multiturn import final_answers
from repro.results.metrics import over_all
from repro.tasks import prompts
from repro.tasks.linear import value_of
from repro.tasks.problem import Problem, split_of

BAND = 0.25, 0.75  # problems that are solved less or more often than this are dropped (paper)


@dataclass(frozen=True)
class Config(RunConfig):
    """SwS's hyperparameters."""

    learning_rate: float = 2e-3
    """Of all arms: as the standard arms', kept on validation problems (paper: 5e-7, code: 1e-6; full fine-tuning)."""
    minibatches: int = 4
    """Optimiser steps per rollout step (paper: 4)."""
    seed_problems: int = 64
    """Problems of the first stage: the first of the training problems (paper: 12,000)."""
    first_steps: int = 4
    """Rollout steps of the first stage, of ``steps`` in all (paper: 200 of 800): each problem is seen about twice."""
    rounds: int = 3
    """Parts in which problems are proposed (ours)."""
    proposals: int = 32
    """Problems that are proposed in a round (paper: a million in all)."""
    proposal_temperature: float = 0.6
    """Temperature of the proposals (code)."""
    label_samples: int = 8
    """Samples of a proposed problem, for its difficulty and for a majority label (paper: 8)."""

    PRESETS = {  # noqa: RUF012
        "smol": {"seed_problems": 24, "first_steps": 6, "proposals": 8},
        "small": {"seed_problems": 48, "first_steps": 12, "proposals": 16},
        "gpu": {"seed_problems": 192, "first_steps": 24, "proposals": 64},
    }

    def check(self) -> None:
        super().check()
        if self.first_steps >= self.steps:
            raise ConfigError(f"--first-steps {self.first_steps}: must be below --steps, {self.steps}")

    @property
    def steps_of_synthesis(self) -> int:
        """Rollout steps that take as many completions as the synthesis at most does."""
        each = 1 + self.label_samples * (1 if self.task == "arithmetic" else 2)  # other tasks: for the label, too
        return -(-self.rounds * self.proposals * each // (self.prompts * self.samples))


# --- weaknesses and what is asked for --------------------------------------------------------------------------------


def slope(accuracies: Sequence[float]) -> float:
    """Least-squares slope over the visits; 0 for a single one."""
    visits = np.arange(len(accuracies)) - (len(accuracies) - 1) / 2
    return float(visits @ np.asarray(accuracies) / (visits @ visits)) if len(accuracies) > 1 else 0.0


def is_weak(accuracies: Sequence[float]) -> bool:
    """Never above one half, and not rising (the records' rule; the text's, strictly below, loses the never solved)."""
    return len(accuracies) > 0 and max(accuracies) <= 0.5 and slope(accuracies) <= 0


def failure_ratios(kinds: Sequence[str], weak: Sequence[int]) -> dict[str, float]:
    """Weak problems of each kind over all of it; ``weak``: rows of ``kinds``."""
    return dict(sorted(means_by_key(kinds, [float(i in set(weak)) for i in range(len(kinds))]).items()))


def apportion(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """``total`` in proportion to the weights, by the largest remainder; nothing where all weights are 0."""
    if not (whole := sum(weights.values())):
        return dict.fromkeys(weights, 0)
    exact = {key: total * weight / whole for key, weight in weights.items()}
    found = {key: int(value) for key, value in exact.items()}
    for key in sorted(exact, key=lambda key: found[key] - exact[key])[: total - sum(found.values())]:
        found[key] += 1
    return found


# --- labels ----------------------------------------------------------------------------------------------------------


def exact_answer(question: str) -> str | None:
    """The answer of a readable problem of the built-in arithmetic, None of any other text."""
    found = re.fullmatch(r"(?:Compute|Solve) (.+)\.", question)
    value = value_of(found[1]) if found else None
    return None if value is None else str(value)


def majority_label(texts: Sequence[str]) -> str | None:
    """The final answer that half of the texts or more give; equal answers count together."""
    votes = Counter(answer for answer in final_answers(texts) if answer is not None).most_common(1)
    return votes[0][0] if votes and 2 * votes[0][1] >= len(texts) else None


def labelled(run: Run, config: Config, problems: Sequence[Problem], exact: bool) -> list[Problem]:
    """The problems that get an answer, with it; ``exact``: without asking the model."""
    if exact:
        answers = [exact_answer(p.question) for p in problems]
    else:
        groups = run.sample([prompts.solve(p) for p in problems], config.label_samples) if problems else []
        answers = [majority_label([c.text for c in group]) for group in groups]
    pairs = zip(problems, answers, strict=True)
    return [Problem(p.question, answer, "", p.kind, p.level) for p, answer in pairs if answer is not None]


def in_band(rewards: torch.Tensor) -> list[int]:
    """Rows of the problems that are solved neither too often nor too seldom; rewards [problems, samples]."""
    return [i for i, mean in enumerate(rewards.mean(1).tolist()) if BAND[0] <= mean <= BAND[1]]


# --- training --------------------------------------------------------------------------------------------------------


def seeds_of(run: Run, config: Config) -> list[Problem]:
    """The problems of the first stage."""
    return run.problems[: config.seed_problems]


def weak_rows(run: Run) -> list[int]:
    """Rows of the first stage's problems that it left weak."""
    return [i for i, accuracies in enumerate(run.kept["seen"]) if is_weak(accuracies)]


def first_stage(run: Run, config: Config) -> None:
    """GRPO on the seed problems, with a record of the accuracy at each visit."""
    seeds = seeds_of(run, config)
    seen = run.kept.setdefault("seen", [[] for _ in seeds])
    rows = {p.question: i for i, p in enumerate(seeds)}

    def rollout(run: Run, problems: list[Problem], samples: int) -> Rollouts:
        rollouts = run.rollout(problems, samples)
        for problem, accuracy in zip(problems, rollouts.rewards.mean(1).tolist(), strict=True):
            seen[rows[problem.question]].append(accuracy)
        return rollouts

    train(run, config, config.first_steps, Pools(run, seeds, name="seeds"), keep_uniform=True, rollout=rollout)


def train(run: Run, config: Config, steps: int, pool: Pools, keep_uniform: bool = False, **hooks) -> None:
    """GRPO in DAPO's form on the problems of one pool; all are seen before one comes again."""
    settings = GRPO("dapo", config.minibatches, clip_high=0.28, keep_uniform=keep_uniform)
    sizes = config.prompts, config.samples
    train_grpo(run, steps, *sizes, settings, draw=lambda _, count: [pool.next() for _ in range(count)], **hooks)


def proposed(run: Run, config: Config, weakness: bool) -> list[Problem]:
    """A round of problems without answers: so many of each kind, of levels as frequent as among what is weak."""
    seeds, weak = seeds_of(run, config), weak_rows(run)
    ratios = failure_ratios([p.kind for p in seeds], weak)
    asked: list[tuple[str, int]] = []
    for kind, count in apportion(ratios if weakness else dict.fromkeys(ratios, 1.0), config.proposals).items():
        source = [seeds[i] for i in weak if seeds[i].kind == kind] if weakness else seeds
        levels = Counter(str(p.level) for p in source)
        asked += [(kind, int(level)) for level in draw_keys(levels, count, run.rng)] if count else []
    chats = [prompts.propose(*words) for words in asked]
    groups = run.sample(chats, 1, config.proposal_temperature) if chats else []
    written = [(c.text.strip(), words) for (c,), words in zip(groups, asked, strict=True) if not c.truncated]
    return [Problem(question, "", "", *words) for question, words in written]


def synthesise(run: Run, config: Config, weakness: bool, exact: bool) -> None:
    """Problems by the policy, labelled and of middling difficulty, in ``run.kept``."""
    made: list[dict] = run.kept.setdefault("made", [])
    for _ in run.stage("synthesise", config.rounds):
        known = {p.question for p in run.problems} | {problem["question"] for problem in made}
        written = {p.question: p for p in proposed(run, config, weakness)}
        new = [p for q, p in written.items() if q not in known and split_of(q) == "train"]
        problems = labelled(run, config, new, exact)
        attempts = run.sample([prompts.solve(p) for p in problems], config.label_samples) if problems else []
        kept = in_band(run.rewards(problems, attempts)) if problems else []
        made += [asdict(problems[i]) for i in kept]
        run.log(new=len(new), labelled=len(problems), made=len(kept))
        if problems and config.task == "arithmetic":
            run.log(right_labels=np.mean([exact_answer(p.question) == p.answer for p in problems]))


def sws(run: Run, config: Config, weakness: bool = True, own_labels: bool = False) -> None:
    """All three stages. ``weakness``: more problems for weak kinds; ``own_labels``: the model's majority."""
    first_stage(run, config)
    synthesise(run, config, weakness, exact=config.task == "arithmetic" and not own_labels)
    problems = [*seeds_of(run, config), *(Problem(**fields) for fields in run.kept["made"])]
    train(run, config, config.steps - config.first_steps, Pools(run, problems, name="all"))


def continued(run: Run, config: Config, longer: bool = False) -> None:
    """The first stage's problems to the end; ``longer``: also for what the synthesis costs."""
    first_stage(run, config)
    steps = config.steps - config.first_steps + longer * config.steps_of_synthesis
    train(run, config, steps, Pools(run, seeds_of(run, config), name="all"))


# --- evaluation ------------------------------------------------------------------------------------------------------


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Accuracy on kinds with more weak problems than the mean, on the weak problems themselves, numbers of problems."""
    if "seen" not in run.kept:
        return {}
    seeds, weak = seeds_of(run, config), weak_rows(run)
    ratios = failure_ratios([p.kind for p in seeds], weak)
    rows = [i for i, p in enumerate(rollouts.problems) if ratios.get(p.kind, 0.0) >= len(weak) / len(seeds)]
    metrics = {
        "accuracy, weak kinds": share(over_all(rollouts.rewards[rows].mean(1).numpy(), rows, len(rollouts.problems))),
        "weak problems": number(len(weak)),
        "problems made": number(len(run.kept.get("made", []))),
    }
    if weak:
        problems = [seeds[i] for i in weak]
        generator = torch.Generator(run.policy.device).manual_seed(20_000 + run.seed)
        completions = run.sample([prompts.solve(p) for p in problems], config.eval_samples, generator=generator)
        metrics["weak problems solved"] = share(run.rewards(problems, completions).mean())
    return metrics


over = Claim.over
WEAK = "accuracy, weak kinds"

PAPER = Paper(
    slug="sws",
    title="SwS: Self-aware Weakness-driven Problem Synthesis in Reinforcement Learning for LLM Reasoning",
    arxiv="2506.08989",
    family="reinforcement learning",
    config=Config,
    departs="the problems are the first few of the protocol's and new ones; the completions of the synthesis come on "
    "top of the protocol's, and continued_longer spends as many on further steps",
    arms={
        "grpo": standard("grpo"),
        "continued": continued,
        "continued_longer": partial(continued, longer=True),
        "uniform": partial(sws, weakness=False),
        "sws": sws,
        "sws_majority": Arm(partial(sws, own_labels=True), by_name=True),
    },
    measure=measure,
    claims=(
        over(
            *("sws", "continued", WEAK),
            text="SwS ends above training that goes on with the same problems, on held-out problems of weak kinds",
            published="up to 20 % more of the failed problems are solved",
            primary=True,
        ),
        over("sws", "continued", text="On all kinds, too, at equal steps", published="+10.0 (7B), +2.5 (3B)"),
        over("sws", "continued_longer", text="And at equal completions"),
        over("sws", "uniform", WEAK, text="Problems for weak kinds help them more than as many for all kinds"),
        over("sws", "continued", "weak problems solved", text="More of the weak problems themselves are solved"),
    ),
    columns=("accuracy", WEAK, "weak problems solved", "weak problems", "problems made", "entropy"),
    published={"base": "27.1", "continued": "40.4", "sws": "42.9"},
    published_setting="Qwen2.5-3B, average of eight mathematics benchmarks",
    curves=("reward", "mixed", "made"),
    panels=(
        Panel("accuracy (validation)", ("validation",), x="completions"),
        Panel("shares of groups", ("mixed", "all_wrong"), x="completions", arms=("sws", "continued")),
        Panel("accuracy", ("accuracy", WEAK, "weak problems solved"), "bars"),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
