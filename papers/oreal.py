"""Exploring the Limit of Outcome Reward for Learning Mathematical Reasoning (OREAL). Chengqi Lyu, Songyang Gao,
Yuzhe Gu, Wenwei Zhang et al., arXiv 2502.06781, 2025.

Idea. With rewards that are right or wrong, right samples can be cloned: they are all equally good, and best-of-N
sampling makes them the optimum of the KL-regularised objective. Wrong samples keep a policy gradient, with a reward
that is shaped by how often the problem is solved. A reward model that knows outcomes alone weighs the tokens of both.

Reproduced. The ladder from REINFORCE with a leave-one-out baseline, over advantages that are shaped by the group's std,
to pairs of a right and a wrong sample of which the right one is cloned, and OREAL, with token weights; GRPO, RFT and
online RFT at as many completions. By name: clones without their advantage as a factor, as the authors describe it.

How this differs from the paper and why.
- The token reward model is a linear head on the base's hidden states (paper: a whole copy of the policy is trained).
- One optimiser step on each rollout, as in the code. So that arms take as many steps as the others of the kit, each of
  the protocol's rollouts is drawn in four parts.
- The gradient of -log pi and of pi / sg(pi) is that of the surrogate at ratio 1: both losses are advantages for the
  kit's policy gradient. All arms have the KL term.
- REINFORCE and its shaping by the group are our reading of the paper's ladder.
- No top-p in training (code: 0.9), no balancing of problems by their success rate, no judge for final answers.

Commands.
    repro run oreal --seeds 5                      # tiny model, with intervals over seeds
    repro run oreal --arms clone clone_plain       # what the factor on positives does
    repro run oreal --preset gpu                   # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from repro import Arm, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, script_main, share, standard
from repro.config import ConfigError
from repro.methods.grpo import GRPO, from_outcomes, leave_one_out, train_grpo
from repro.methods.judge import hidden_states
from repro.results.metrics import auroc
from repro.tasks.problem import Problem


@dataclass(frozen=True)
class Config(RunConfig):
    """OREAL's hyperparameters."""

    learning_rate: float = 2e-3
    """Of all arms, chosen on validation problems (paper: 5e-7, full fine-tuning)."""
    parts: int = 4
    """Rollouts that each of the protocol's is drawn in, one optimiser step each (ours)."""
    eta: float = 0.5
    """Weight of wrong samples (code: 0.5)."""
    beta: float = 0.01
    """Weight of the KL to the base (paper: 0.01)."""
    head_learning_rate: float = 1e-2
    """Of the token reward model's head; chosen on validation problems (paper: 2e-6, the whole model)."""
    frozen: int = 4
    """Optimiser steps in which only the token reward model learns (paper: 10 of 90)."""
    scored_problems: int = 128
    """Held-out problems on which the token reward model is measured (ours)."""

    PRESETS = {"smol": {"frozen": 6}, "small": {"frozen": 12}, "gpu": {"frozen": 24}}  # noqa: RUF012

    def check(self) -> None:
        super().check()
        if self.prompts % self.parts:
            raise ConfigError(f"--parts {self.parts}: must divide --prompts, {self.prompts}")


# --- the paper's advantages, pairs and weights -----------------------------------------------------------------------


def signed(rewards: torch.Tensor) -> torch.Tensor:
    """RLOO of +1 for right and -1 for wrong, [groups, samples]."""
    return leave_one_out(2 * rewards - 1)


def pairs(rollouts: Rollouts, rng: torch.Generator) -> tuple[Rollouts, torch.Tensor]:
    """Of each problem that has both, one right and one wrong sample, and their advantages in the whole group."""
    mixed = rollouts.mixed()
    if not mixed.problems:
        return mixed, mixed.rewards
    right = torch.multinomial(mixed.rewards, 1, generator=rng)
    wrong = torch.multinomial(1 - mixed.rewards, 1, generator=rng)
    chosen = torch.cat([right, wrong], 1)
    completions = [[group[i] for i in row] for group, row in zip(mixed.completions, chosen.tolist(), strict=True)]
    kept = Rollouts(mixed.problems, completions, mixed.rewards.gather(1, chosen))
    return kept, signed(mixed.rewards).gather(1, chosen)


def token_weights(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """omega of a right and of a wrong sample, from the reward model's logits of one sequence, [tokens] each."""
    sigma = (z.cumsum(0) / torch.arange(1, len(z) + 1)).sigmoid()
    return (2 * sigma - 1).clamp(min=0), (1 - 2 * sigma).clamp(min=0)


def reward_loss(z: torch.Tensor, lengths: list[int], right: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the outcome by each sequence's mean logit; z [tokens], right [sequences]."""
    means = torch.stack([part.mean() for part in z.split(lengths)])
    return binary_cross_entropy_with_logits(means, right)


def token_advantages(
    advantage: torch.Tensor, right: torch.Tensor, omega: torch.Tensor, lengths: list[int], eta: float
) -> torch.Tensor:
    """What the surrogate's mean over all tokens needs for OREAL's means over right and over wrong ones, [tokens].

    advantage and right (1 or 0) [sequences]; omega [tokens].
    """
    length = torch.tensor(lengths)
    of_right, tokens = (right * length).sum(), length.sum()
    scale = torch.where(right > 0, tokens / of_right.clamp(min=1), eta * tokens / (tokens - of_right).clamp(min=1))
    return (advantage * scale).repeat_interleave(length) * omega


# --- the token reward model ------------------------------------------------------------------------------------------


def scores(run: Run, rollouts: Rollouts) -> torch.Tensor:
    """Logits of the token reward model at the places that predict the completions' tokens, [tokens]."""
    return hidden_states(run, rollouts.batch()).float() @ run.kept["head"]


def learn(run: Run, config: Config, kept: Rollouts) -> torch.Tensor:
    """One step of the reward model on the pairs; its logits before, [tokens]."""
    hidden = hidden_states(run, kept.batch()).float()
    head = torch.nn.Parameter(run.kept.get("head", torch.zeros(hidden.shape[1])).clone())
    optimizer = torch.optim.AdamW([head], lr=config.head_learning_rate, weight_decay=0.01)
    if "optimizer" in run.kept:
        optimizer.load_state_dict(run.kept["optimizer"])
    z, lengths, right = hidden @ head, kept.batch().lengths, kept.rewards.flatten()
    reward_loss(z, lengths, right).backward()
    optimizer.step()
    run.kept["head"], run.kept["optimizer"] = head.detach(), optimizer.state_dict()
    sure = torch.stack([part.mean() for part in z.detach().split(lengths)])
    run.log(reward_accuracy=((sure > 0) == (right > 0)).float().mean())
    return z.detach()


# --- training --------------------------------------------------------------------------------------------------------


def train(run: Run, config: Config, **hooks) -> None:
    """The policy gradient, one step on each rollout."""
    settings = GRPO("dapo", kl=config.beta, keep_uniform=True)
    train_grpo(run, config.steps * config.parts, config.prompts // config.parts, config.samples, settings, **hooks)


def rloo(run: Run, config: Config) -> None:
    """REINFORCE on all samples."""
    train(run, config, advantage=lambda run, rollouts, settings: signed(rollouts.rewards))


def shaped(run: Run, config: Config) -> None:
    """The same, over the group's std."""
    train(run, config, advantage=from_outcomes)


def oreal(run: Run, config: Config, weighted: bool = True, factor: bool = True) -> None:
    """Pairs. ``weighted``: by the token reward model; ``factor``: clones are multiplied with their advantage."""
    held: dict[str, torch.Tensor] = {}  # of this step, from the rollout to the advantage

    def rollout(run: Run, problems: list[Problem], samples: int) -> Rollouts:
        kept, advantage = pairs(run.rollout(problems, samples), run.rng)
        if not kept.problems:
            return kept
        lengths, right = kept.batch().lengths, kept.rewards.flatten()
        omega = torch.ones(sum(lengths))
        if weighted:
            parts = zip(learn(run, config, kept).split(lengths), right, strict=True)
            omega = torch.cat([token_weights(z)[0 if r else 1] for z, r in parts])
            run.log(omega=omega.mean(), weighed=(omega > 0).float().mean())
            if run.step < config.frozen:
                return kept.select([])
        each = advantage.flatten() if factor else torch.where(right > 0, 1.0, advantage.flatten())
        held["advantage"] = token_advantages(each, right, omega, lengths, config.eta)
        return kept

    train(run, config, rollout=rollout, advantage=lambda run, rollouts, settings: held["advantage"])


# --- evaluation ------------------------------------------------------------------------------------------------------


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """How well the token reward model's mean logit tells right samples from wrong ones."""
    if "head" not in run.kept:
        return {}
    part = rollouts.part(config.scored_problems, 2)
    means = [z.mean().item() for z in scores(run, part).split(part.batch().lengths)]
    return {"reward AUROC": share(auroc(means, part.rewards.flatten() > 0)), "chance": share(0.5)}


over = Claim.over

PAPER = Paper(
    slug="oreal",
    title="Exploring the Limit of Outcome Reward for Learning Mathematical Reasoning",
    arxiv="2502.06781",
    family="reinforcement learning",
    config=Config,
    arms={
        "rft": standard("rft"),
        "rft_online": standard("rft_online"),
        "grpo": standard("grpo"),
        "rloo": rloo,
        "shaped": shaped,
        "clone": partial(oreal, weighted=False),
        "oreal": oreal,
        "clone_plain": Arm(partial(oreal, weighted=False, factor=False), by_name=True),
    },
    measure=measure,
    claims=(
        over("oreal", "rloo", text="OREAL ends above REINFORCE at equal samples", published="+3.2 (7B)", primary=True),
        over("shaped", "rloo", text="Shaping by the group's std raises REINFORCE", published="+0.8"),
        over("clone", "shaped", text="Cloning right samples of pairs ends above it", published="+1.0"),
        over(
            *("oreal", "clone"),
            threshold=-0.02,
            text="Token weights don't lower that by more than 2 points",
            published="+1.4",
        ),
        over("clone", "rloo", text="Cloning with shaped negatives ends above REINFORCE", published="+1.8"),
        over("oreal", "rft_online", text="OREAL ends above online RFT, which has right samples only"),
        Claim.within(
            *("oreal", "reward_over_chance", "The token reward model ranks right samples above wrong ones"),
            *("reward AUROC", "chance"),
        ),
    ),
    columns=("accuracy", "pass@8", "greedy", "entropy", "reward AUROC"),
    published={"rloo": "85.8", "shaped": "86.6", "clone": "87.6", "oreal": "89.0"},
    published_setting="a 7B model that was fine-tuned on long solutions (84.8), MATH-500",
    curves=("reward", "entropy", "omega"),
    panels=(
        Panel("accuracy (validation)", ("validation",), x="completions"),
        Panel("entropy", ("entropy",), x="completions"),
        Panel("weights of tokens", ("omega", "reward_accuracy"), arms=("oreal",)),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
