"""Self-Evolving Curriculum for LLM Reasoning. Xiaoyin Chen, Jiarui Lu, Minsu Kim, Dinghuai Zhang et al., arXiv
2505.14970, 2025.

Idea. Which problems reinforcement learning should see next is learnt along with the policy. Categories of problems (by
difficulty, or by type and difficulty) are the arms of a bandit, and its reward is the mean absolute advantage of the
category's samples: largest where half of the answers are right, zero where all or none are. Shares of the batch follow
the arms' values and drift from easy problems to hard ones.

Reproduced. GRPO on problems in random order, from easy to hard, from hard to easy, and with shares by the bandit over
levels (SEC) and over kinds and levels (SEC-2D); accuracy on a level that no arm was trained on. By name: the official
code's rule, by which the value of an arm decays in a step that drew none of its problems.

How this differs from the paper and why.
- The random order is the standard GRPO arm; the other arms take the same number of problems from the same pool, but not
  the same ones: choosing them is what is studied.
- Arithmetic of levels 1 to 4, and level 5 is never seen (paper: three levels and the next one, of Countdown, Zebra
  puzzles and ARC-1D): the built-in model hardly knows Countdown, and only one level of it. On MATH levels are those of
  the data; on other data the quarters of the pool by the length of the reference. There the hardest level is seen.
- Rewards are right or wrong. The paper's reward for the format of Countdown makes the bandit chase the format.
- 32 problems a step (paper: 256), so that values are noisy; SEC-2D has more arms than that allows to see in each step.
- The loss is the standard arm's, a mean over sequences (paper: over tokens). The last policy is evaluated (paper: the
  best checkpoint), with one alpha and temperature.

Commands.
    repro run sec --seeds 5                        # tiny model, with intervals over seeds
    repro run sec --arms random sec --tau 0.2      # a sharper choice
    repro run sec --preset gpu --task math         # Qwen2.5-1.5B-Instruct in NF4 on the levels of MATH
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from repro import Arm, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, number, script_main, share, standard
from repro.methods.curriculum import Pools, boltzmann, draw_keys, means_by_key, moved
from repro.methods.grpo import GRPO, advantages, train_grpo
from repro.results.metrics import over_all
from repro.tasks import prompts
from repro.tasks.arithmetic import FAR
from repro.tasks.generated import arithmetic
from repro.tasks.problem import Problem

Key = Callable[[Problem], str]  # the arm of the bandit that a problem belongs to


@dataclass(frozen=True)
class Config(RunConfig):
    """SEC's hyperparameters. Rate and mini-batches are the standard GRPO arm's."""

    learning_rate: float = 2e-3
    """Of all arms that choose their problems: as the standard arms' (paper: 1e-6, full fine-tuning)."""
    minibatches: int = 4
    """Optimiser steps per rollout step (paper: 4)."""
    alpha: float = 0.5
    """Rate of the values (scripts: 0.5; default of the code: 0.1)."""
    tau: float = 1.0
    """Temperature of the shares over levels; chosen on validation problems (scripts: 1.0 and, in mathematics, 0.4)."""
    tau_2d: float = 0.2
    """Temperature over kinds and levels; chosen on validation problems (scripts: 0.2)."""
    hard_problems: int = 384
    """Held-out problems of the level that isn't trained on (ours)."""
    hard_samples: int = 4
    """Samples of each (paper: 8)."""


# --- arms of the bandit, and their values ----------------------------------------------------------------------------


def by_level(pool: Sequence[Problem]) -> Key:
    """The level, where the pool has several; else the quarter of the pool, by the length of the reference."""
    if len({p.level for p in pool}) > 1:
        return lambda p: str(p.level)
    edges = np.quantile([len(p.solution) for p in pool], (0.25, 0.5, 0.75))
    return lambda p: str(1 + np.searchsorted(edges, len(p.solution)))


def by_kind_and_level(pool: Sequence[Problem]) -> Key:
    """The same within each kind (SEC-2D)."""
    level = by_level(pool)
    return lambda p: f"{p.kind} {level(p)}"


def bandit_reward(keys: Sequence[str], advantage: torch.Tensor) -> dict[str, float]:
    """r(c): mean |A| over the samples of each arm in the batch; advantage [problems, samples], keys [problems]."""
    return means_by_key(keys, advantage.abs().mean(1).tolist())


def decayed(values: dict[str, float], rewards: dict[str, float], alpha: float) -> dict[str, float]:
    """The values as the official code moves them: the target of an arm that isn't in the batch is 0."""
    return moved(values, dict.fromkeys(values, 0.0) | rewards, alpha)


# --- training --------------------------------------------------------------------------------------------------------


def sec(
    run: Run, config: Config, arms: Callable[[Sequence[Problem]], Key] = by_level, update: Callable = moved
) -> None:
    """Algorithm 1. ``arms``: of the bandit; ``update``: what the rewards of a step do to their values."""
    key, level = arms(run.problems), by_level(run.problems)
    tau = config.tau if arms is by_level else config.tau_2d
    pools = Pools(run, run.problems, key)
    values = run.kept.setdefault("values", dict.fromkeys(pools.keys, 0.0))

    def draw(run: Run, count: int) -> list[Problem]:
        shares = boltzmann(values, tau)
        problems = [pools.next(k) for k in draw_keys(shares, count, run.rng)]
        log_drawn(run, problems, level)
        if arms is by_level:
            run.log(**{f"share {k}": p for k, p in shares.items()}, **{f"value {k}": v for k, v in values.items()})
            run.log(expected=sum(p * int(k) for k, p in shares.items()))
        return problems

    def advantage(run: Run, rollouts: Rollouts, settings: GRPO) -> torch.Tensor:
        found = advantages(rollouts.rewards, settings.variant)
        rewards = bandit_reward([key(p) for p in rollouts.problems], found)
        values.update(update(values, rewards, config.alpha))
        return found

    train(run, config, draw, advantage=advantage)


def ordered(run: Run, config: Config, reverse: bool = False) -> None:
    """One level after the other, each for an equal part of the steps."""
    level = by_level(run.problems)
    pools = Pools(run, run.problems, level)
    keys = pools.keys[::-1] if reverse else pools.keys

    def draw(run: Run, count: int) -> list[Problem]:
        problems = [pools.next(keys[run.step * len(keys) // config.steps]) for _ in range(count)]
        log_drawn(run, problems, level)
        return problems

    train(run, config, draw)


def train(run: Run, config: Config, draw: Callable[[Run, int], list[Problem]], **hooks: Callable) -> None:
    """GRPO on the problems that ``draw`` chooses."""
    sizes = config.steps, config.prompts, config.samples
    train_grpo(run, *sizes, GRPO("grpo", config.minibatches), draw=draw, **hooks)


def log_drawn(run: Run, problems: Sequence[Problem], level: Key) -> None:
    """The mean level of the step's problems."""
    run.log(level=np.mean([int(level(p)) for p in problems]))


# --- evaluation ------------------------------------------------------------------------------------------------------


def on_hardest(run: Run, config: Config, rollouts: Rollouts) -> np.ndarray:
    """Accuracy of problems of the hardest level: of arithmetic a level that no arm was trained on."""
    if config.task == "arithmetic":
        problems = arithmetic(config.eval_split, config.hard_problems, 0, levels=FAR[:1])
        generator = torch.Generator(run.policy.device).manual_seed(20_000 + run.seed)
        chats = [prompts.solve(p) for p in problems]
        completions = run.sample(chats, config.hard_samples, generator=generator)
        return run.rewards(problems, completions).mean(1).numpy()
    level = by_level(run.problems)
    hardest = max(map(level, run.problems))
    rows = [i for i, p in enumerate(rollouts.problems) if level(p) == hardest]
    return over_all(rollouts.rewards[rows].mean(1).numpy(), rows, len(rollouts.problems))


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Accuracy on the hardest level and on the kind that is solved least; the mean level at first and at last."""
    kinds = means_by_key([p.kind for p in rollouts.problems], rollouts.rewards.mean(1).tolist())
    metrics = {
        "accuracy, hardest level": share(on_hardest(run, config, rollouts)),
        "accuracy, weakest kind": share(min(kinds.values())),
    }
    for name, key in (("level drawn", "level"), ("expected level", "expected")):  # by chance, and by the shares
        levels = [row[key] for row in run.history if key in row]
        if third := -(-len(levels) // 3):
            metrics[f"{name}, early"] = number(np.mean(levels[:third]))
            metrics[f"{name}, late"] = number(np.mean(levels[-third:]))
    return metrics


over = Claim.over
HARDEST = "accuracy, hardest level"

PAPER = Paper(
    slug="sec",
    title="Self-Evolving Curriculum for LLM Reasoning",
    arxiv="2505.14970",
    family="reinforcement learning",
    config=Config,
    departs="arms choose their problems from the pool of all arms, as many of them: that choice is the method",
    arms={
        "random": standard("grpo"),
        "ordered": ordered,
        "reverse": partial(ordered, reverse=True),
        "sec": sec,
        "sec_2d": partial(sec, arms=by_kind_and_level),
        "sec_decay": Arm(partial(sec, update=decayed), by_name=True),
    },
    measure=measure,
    claims=(
        over(
            *("sec", "random", HARDEST),
            text="SEC ends above the random order on the hardest level, of arithmetic one that wasn't trained on",
            published="+6.3 (3B, Countdown)",
            primary=True,
        ),
        over("sec", "random", threshold=-0.02, text="On the trained levels it is not worse by more than 2 points"),
        over("sec", "ordered", HARDEST, text="It ends above the order from easy to hard", published="+22 (Countdown)"),
        over("random", "reverse", HARDEST, text="The order from hard to easy ends below the random one"),
        Claim.within(
            *("sec", "shares_drift", "SEC's problems become harder from the first to the last third of the steps"),
            *("expected level, late", "expected level, early"),
        ),
        over(
            *("sec_2d", "random", "accuracy, weakest kind"),
            text="With kinds as arms, too, the kind that is solved least is solved more often than in random order",
        ),
    ),
    columns=(
        *("accuracy", HARDEST, "accuracy, level 4", "accuracy, weakest kind"),
        *("level drawn, early", "level drawn, late"),
    ),
    published={"ordered": "32", "random": "47.9", "sec": "54.2"},
    published_setting="Qwen2.5-3B on Countdown, the level that is harder than the trained ones",
    curves=("reward", "level", "mixed"),
    panels=(
        Panel("accuracy (validation)", ("validation",), x="completions"),
        Panel("mean level of the problems", ("level",)),
        Panel("shares of the levels", tuple(f"share {level}" for level in range(1, 5)), arms=("sec",)),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
