"""What a result file says of its making, and how it is written."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from repro.config import folder_name
from repro.model.policy import Policy
from repro.tasks.problem import Problem


def dump(result: dict) -> str:
    """JSON with one line per entry, long lists on one line."""
    lines = []
    for key, value in result.items():
        if key == "history":
            rows = ",\n    ".join(json.dumps({k: round(v, 6) for k, v in row.items()}) for row in value)
            lines.append(f'  "{key}": [\n    {rows}\n  ]')
        elif isinstance(value, dict):
            rows = ",\n    ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            lines.append(f'  "{key}": {{\n    {rows}\n  }}')
        else:
            lines.append(f'  "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def model_identity(policy: Policy) -> dict:
    """Parameters and a hash over 64 weights of every tensor of the base."""
    base = policy.model.get_base_model()
    digest, count = hashlib.sha256(), 0
    for name, parameter in sorted(base.named_parameters()):
        if ".lora_" not in name:
            packed = getattr(parameter, "quant_state", None)  # of 4-bit weights, two in a byte
            count += parameter.numel() if packed is None else packed.shape.numel()
            some = parameter.detach().flatten()[:: max(1, parameter.numel() // 64)]
            digest.update(some.float().cpu().numpy().tobytes())
    return {"parameters": count, "type": base.config.model_type, "hash": digest.hexdigest()[:16]}


def data_identity(problems: Sequence[Problem]) -> dict:
    """Size and hash of the training problems."""
    text = "\n".join(p.question for p in problems)
    return {"problems": len(problems), "hash": hashlib.sha256(text.encode()).hexdigest()[:16]}


def remember_command(words: Sequence[str]) -> None:
    """Keep a command line for this process and its workers: without --out, and with folders' names for their paths."""
    split = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    kept = [w for w, before in zip(split, ("", *split), strict=False) if w != "--out" != before]
    os.environ["REPRO_COMMAND"] = shlex.join(map(folder_name, kept))


def command() -> str:
    """The command line that this run comes from; worker processes are told by their parent."""
    return os.environ.get("REPRO_COMMAND") or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def machine(device: torch.device) -> dict:
    """Device, versions and commit: what is needed to make a result again."""
    packages = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "sympy", "math-verify", "numpy")
    root = Path(__file__).parents[2]

    def git(*words: str) -> str | None:
        if not shutil.which("git"):
            return None
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {p: importlib.metadata.version(p) for p in packages},
        "commit": git("rev-parse", "HEAD"),
        "changed_files": len((git("status", "--porcelain", "--", "repro", "papers") or "").splitlines()),
    }
