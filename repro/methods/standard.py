"""The kit's own arms: what papers compare with, at the protocol's budget, each made once for all of them.

Every arm begins at the same base and sees the same problems in the same order. Those that sample draw ``steps`` x
``prompts`` x ``samples`` completions; those that train on data that stays take as many optimiser steps as the others.

    repro run standard                             # all of them
    repro run standard --arms grpo --learning-rate 1e-3 --eval-split validation --first-seed 100
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import partial

from repro.config import RunConfig
from repro.methods.dpo import train_dpo
from repro.methods.grpo import GRPO, train_grpo
from repro.methods.rft import train_rft, train_rft_online
from repro.methods.sft import train_sft
from repro.paper import Arm, Paper
from repro.run import Run

WORLD = (  # what every arm reads: the base, the problems, the evaluation
    *("model", "quantization", "dtype", "task", "data", "max_new_tokens", "temperature"),
    *("eval_problems", "eval_split", "eval_samples"),
)
TRAINED = ("lora_rank", "lora_alpha", "train_problems", "prompts", "warmup", "max_grad_norm", "monitors")
SAMPLED = (*TRAINED, "steps", "samples")
MEMORY = ("tokens_per_batch", "rows_per_batch")  # no part of what an arm is
SHARED = (*WORLD, *SAMPLED, *MEMORY)  # taken from the settings of the paper that asks for an arm; all else is the kit's


@dataclass(frozen=True)
class Config(RunConfig):
    """The standard arms' hyperparameters; each rate was chosen on validation problems (ours)."""

    learning_rate: float = 2e-3
    """Of rft_online, grpo and dr_grpo."""
    minibatches: int = 4
    """Optimiser steps per rollout step of rft_online, grpo and dr_grpo."""
    updates: int = 40
    """Optimiser steps of sft, rft and dpo: as many as the others take with the default ``steps``."""
    batch: int = 32
    """Solutions, or pairs of them, in one of these steps."""
    sft_learning_rate: float = 2e-3
    """Of sft and rft."""
    dpo_learning_rate: float = 1e-4
    """Of dpo: preference losses at the rates of the others destroy the policy."""
    beta: float = 0.1
    """DPO's beta."""

    PRESETS = {  # noqa: RUF012
        "smol": {"updates": 64, "batch": 8, "sft_learning_rate": 2e-4, "dpo_learning_rate": 5e-5},
        "small": {"updates": 128, "batch": 8, "sft_learning_rate": 1e-4, "dpo_learning_rate": 1e-5},
        "gpu": {"updates": 240, "batch": 16, "sft_learning_rate": 1e-4, "dpo_learning_rate": 1e-5},
    }


def base(run: Run, config: Config) -> None:
    """Nothing is trained."""


def sft(run: Run, config: Config) -> None:
    """Cross-entropy on the reference solutions."""
    train_sft(run, config.updates, config.batch, config.sft_learning_rate)


def rft(run: Run, config: Config) -> None:
    """Cross-entropy on the base's own right solutions."""
    sizes = config.steps, config.prompts, config.samples, config.updates, config.batch
    train_rft(run, *sizes, config.sft_learning_rate)


def rft_online(run: Run, config: Config) -> None:
    """Cross-entropy on right solutions that the policy has just sampled."""
    train_rft_online(run, config.steps, config.prompts, config.samples, config.minibatches)


def grpo(run: Run, config: Config, variant: str = "grpo") -> None:
    """Group-relative policy gradient."""
    train_grpo(run, config.steps, config.prompts, config.samples, GRPO(variant, config.minibatches))


def dpo(run: Run, config: Config) -> None:
    """Preference of the base's own right solutions over its wrong ones."""
    sizes = config.steps, config.prompts, config.samples, config.updates, config.batch
    train_dpo(run, *sizes, config.dpo_learning_rate, config.beta)


READS = {  # beside WORLD: other settings than these change nothing in an arm
    "base": (),
    "sft": (*TRAINED, "updates", "batch", "sft_learning_rate"),
    "rft": (*SAMPLED, "updates", "batch", "sft_learning_rate"),
    "rft_online": (*SAMPLED, "minibatches", "learning_rate"),
    "grpo": (*SAMPLED, "minibatches", "learning_rate"),
    "dr_grpo": (*SAMPLED, "minibatches", "learning_rate"),
    "dpo": (*SAMPLED, "updates", "batch", "dpo_learning_rate", "beta"),
}


def settings_for(config: RunConfig) -> Config:
    """The standard arms' settings in a paper's world: its base, problems, evaluation and budget, the kit's rates."""
    if isinstance(config, Config):
        return config
    return dataclasses.replace(Config.for_preset(config.preset), **{name: getattr(config, name) for name in SHARED})


def digest(arm: str, config: Config) -> str:
    """Eight hexadecimal digits that name what a standard arm reads; equal ones are the same run."""
    read = {name: getattr(config, name) for name in (*WORLD, *READS[arm])}
    return hashlib.sha256(json.dumps([arm, read], sort_keys=True).encode()).hexdigest()[:8]


PAPER = Paper(
    slug="standard",
    title="The kit's standard arms",
    arxiv="",
    config=Config,
    arms={
        "base": Arm(base),
        "sft": sft,
        "rft": rft,
        "rft_online": rft_online,
        "grpo": grpo,
        "dr_grpo": partial(grpo, variant="dr_grpo"),
        "dpo": dpo,
    },
    claims=(),
    family="standard arms",
)
