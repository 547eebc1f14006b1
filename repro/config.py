"""Settings: what every paper shares, the presets, and the checks on what a user asks for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro


class ConfigError(ValueError):
    """A setting that can't work. The text is one line that says what is wrong and what would be right."""


def folder_name(path: str | None) -> str | None:
    """The name of a folder that is there; what isn't one (a hub id, a built-in model) stays as it is."""
    return Path(path).expanduser().resolve().name if path and Path(path).expanduser().is_dir() else path


@dataclass(frozen=True)
class RunConfig:
    """The settings of one arm: same values, same result. Papers add theirs in a subclass."""

    preset: Literal["tiny", "smol", "small", "gpu"] = "tiny"
    """tiny: built-in model and arithmetic, CPU. smol: SmolLM2-135M-Instruct. small: Qwen2.5-0.5B-Instruct, GSM8K, CPU
    or GPU. gpu: Qwen2.5-1.5B-Instruct, NF4, GSM8K."""
    model: str = "tiny"
    """tiny, smol, a local folder in transformers' format, or a hub id."""
    quantization: Literal["none", "nf4"] = "none"
    """nf4: 4-bit base weights with double quantisation (QLoRA)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the base weights, and of the computation under nf4. Adapters are trained in float32."""
    lora_rank: int = 16
    """Rank of the LoRA adapters on all linear layers (ours). Dropout is 0, or log-probs would not be on-policy."""
    lora_alpha: int = 32
    """LoRA scale is alpha / rank (ours)."""
    task: str = "arithmetic"
    """arithmetic, one_step, gsm_symbolic, countdown, gsm8k or math."""
    data: str | None = None
    """A folder with train.jsonl and test.jsonl in place of the hub (gsm8k and math)."""
    train_problems: int = 1024
    """Problems of the train split that are cycled through."""
    eval_problems: int = 512
    """Held-out problems of the evaluation."""
    eval_split: Literal["test", "validation"] = "test"
    """Choose hyperparameters on validation, report on test."""
    eval_samples: int = 8
    """Samples per evaluation problem, for accuracy (mean over samples) and pass@k."""
    max_new_tokens: int = 192
    """Limit of one completion; a truncated completion is wrong."""
    temperature: float = 1.0
    """Sampling temperature of rollouts and of the evaluation."""
    steps: int = 10
    """Rollout steps; with prompts and samples the protocol's budget of completions."""
    prompts: int = 32
    """Problems per rollout step."""
    samples: int = 8
    """Completions per problem."""
    learning_rate: float = 5e-4
    """AdamW, constant after the warm-up, weight decay 0 (ours; LoRA wants more than full fine-tuning)."""
    warmup: int = 5
    """Optimiser steps of linear warm-up."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    tokens_per_batch: int = 2048
    """Token budget of one micro-batch, prompts and padding included; it changes memory and speed, not results."""
    rows_per_batch: int = 1024
    """Completions that are decoded side by side."""
    monitors: int = 5
    """Measurements of the accuracy on validation problems over each stage of a training, outside its budget."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {},
        "smol": {
            "model": "smol",
            "dtype": "bfloat16",
            "task": "one_step",
            "train_problems": 300,
            "eval_problems": 40,
            "eval_samples": 4,
            "max_new_tokens": 64,
            "temperature": 0.5,  # at 1 this model writes noise, 2 nats a token
            "prompts": 8,
            "steps": 16,
            "learning_rate": 2e-4,
            "tokens_per_batch": 4096,
            "rows_per_batch": 64,
        },
        "small": {
            "model": "Qwen/Qwen2.5-0.5B-Instruct",
            "dtype": "bfloat16",
            "task": "gsm8k",
            "eval_problems": 200,
            "eval_samples": 16,
            "max_new_tokens": 320,
            "temperature": 0.7,
            "prompts": 8,
            "steps": 32,
            "learning_rate": 1e-4,
            "tokens_per_batch": 4096,
            "rows_per_batch": 64,
        },
        "gpu": {
            "model": "Qwen/Qwen2.5-1.5B-Instruct",
            "quantization": "nf4",
            "dtype": "bfloat16",
            "lora_rank": 32,
            "lora_alpha": 64,
            "task": "gsm8k",
            "train_problems": 4096,
            "eval_samples": 4,
            "max_new_tokens": 512,
            "steps": 60,
            "prompts": 16,
            "learning_rate": 2e-5,
            "tokens_per_batch": 4096,  # what a card of 24 GB has room for (repro bench --plan)
            "rows_per_batch": 128,
        },
    }

    @classmethod
    def for_preset(cls, name: str) -> RunConfig:
        """The defaults of a preset. A subclass overrides some of them in its own ``PRESETS``."""
        values: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            values.update(base.__dict__.get("PRESETS", {}).get(name, {}))
        return cls(**{**values, "preset": name})

    def check(self) -> None:
        """Raise ConfigError for values that can't work."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            zero = field.default == 0 or field.name in ("steps", "monitors") or field.name.startswith("warmup")
            if type(value) is int and value < 1 and not zero:
                raise ConfigError(f"--{field.name.replace('_', '-')} {value}: must be at least 1")
            if type(value) is int and value < 0:
                raise ConfigError(f"--{field.name.replace('_', '-')} {value}: must not be negative")
        for name in ("temperature", "learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be above 0")

    def told(self) -> dict[str, Any]:
        """The settings as results tell them: of folders the name alone."""
        named = {name: folder_name(getattr(self, name)) for name in ("model", "data")}
        return dataclasses.asdict(self) | named

    def digest(self) -> str:
        """Eight hexadecimal digits that name these settings: runs with other settings never share a folder."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Launch:
    """What is run where; nothing here changes a result."""

    seeds: int = 1
    """Number of seeds, each with every arm."""
    first_seed: int = 0
    """The first of them. Choose hyperparameters on other seeds than the reported 0, 1, 2, ..."""
    until_decided: bool = False
    """Add seeds, up to 5, 10 and 20, until the primary claim is decided; --seeds is not used then."""
    arms: tuple[str, ...] = ()
    """Only these arms; without it, all."""
    workers: int = 0
    """Processes side by side; 0: one per CPU core or GPU."""
    out: str = "runs"
    """Folder of checkpoints, adapters and result files."""
    dry_run: bool = False
    """Only say what would be run, how long it takes and how much memory; before --slurm: print its script."""
    track: Literal["none", "trackio", "wandb"] = "none"
    """Also show the progress in this tracker (installed by you; nothing needs an account)."""
    memory_limit: float = 0
    """GB of GPU memory that a process may use; 0: all. What doesn't fit is made smaller, and a line says how."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one, but the CPU for the preset tiny: its model is too small for a GPU."""
    sampler: Literal["auto", "shared", "static"] = "auto"
    """shared: samples that agree share a row. static: slots and CUDA graphs. auto: static on a GPU. Random numbers
    differ between them, as between devices."""
    merge: Literal["auto", "always", "never"] = "auto"
    """Sample from a plain copy with the adapter merged in, or through base and adapter; auto: the copy if it fits."""

    def for_preset(self, preset: str) -> Launch:
        """With the device that ``auto`` stands for where the preset says so."""
        return dataclasses.replace(self, device="cpu") if (self.device, preset) == ("auto", "tiny") else self


def as_words(given: RunConfig | Launch, default: RunConfig | Launch) -> list[str]:
    """The options of a command line that make ``given`` out of ``default``."""
    words = []
    for field in dataclasses.fields(given):
        value, name = getattr(given, field.name), field.name.replace("_", "-")
        if value == getattr(default, field.name):
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words


def parse(config: type[RunConfig], argv: list[str], prog: str, description: str) -> tuple[RunConfig, Launch]:
    """Settings from a command line: the preset's defaults, then what the user gives. Exits with 2 on bad input."""

    Options = dataclasses.make_dataclass("Options", [("config", config), ("launch", Launch)], frozen=True)
    preset = "tiny"
    for i, word in enumerate(argv):
        if word == "--preset" and i + 1 < len(argv):
            preset = argv[i + 1]
        elif word.startswith("--preset="):
            preset = word.split("=", 1)[1]
    if preset not in RunConfig.PRESETS:
        raise ConfigError(f"--preset {preset}: unknown preset; there are {', '.join(RunConfig.PRESETS)}")
    options = tyro.cli(
        Options,
        args=argv,
        default=Options(config.for_preset(preset), Launch()),
        prog=prog,
        description=description,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    options.config.check()
    if options.launch.seeds < 1:
        raise ConfigError(f"--seeds {options.launch.seeds}: must be at least 1")
    return options.config, options.launch.for_preset(options.config.preset)
