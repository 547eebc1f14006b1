"""Rollouts of a run to look at: a few of each step are kept with their rewards and log-probs (``repro samples``)."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from repro.config import ConfigError
from repro.model.sampling import Completion
from repro.tasks.problem import Problem

FILE = "rollouts.jsonl"
ROLLOUTS = "evaluation.pt"  # a standard arm's, for the papers that measure more on them
MAKING = ("preset", "arm", "seed", "settings", "model", "data", "machine", "command", "date")  # of a result
KEPT = 2  # problems of each graded group of completions, and samples of each of them
COLOURS = ((-0.1, ""), (-0.7, "\x1b[33m"), (-2.3, "\x1b[31m"), (-float("inf"), "\x1b[1;97;41m"))
LEGEND = "probability of a token: above 0.9 plain, above 0.5 yellow, above 0.1 red, below that on red"


class Recorder:
    """Appends some rollouts of a run to its folder, step by step."""

    def __init__(self, folder: Path, tokenizer: object, step: int):
        self.file, self.tokenizer = folder / FILE, tokenizer
        self.rows: list[dict] = []
        if self.file.exists():  # what an interrupted step has written is written again
            kept = [row for row in read(self.file) if row["step"] <= step]
            self.file.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def add(self, step: int, problems: Sequence[Problem], completions: Sequence[Sequence[Completion]], rewards) -> None:
        """Keep the first samples of the first problems. ``rewards`` [problems, samples]."""
        for problem, group, row in zip(problems[:KEPT], completions, rewards, strict=False):
            for completion, reward in zip(group[:KEPT], row, strict=False):
                self.rows.append(
                    {
                        "step": step,
                        "prompt": self.tokenizer.decode(completion.prompt),
                        "reference": problem.answer,
                        "reward": float(reward),
                        "tokens": self.tokenizer.batch_decode([[i] for i in completion.ids]),
                        "logprobs": [round(v, 3) for v in completion.logprobs],
                    }
                )

    def flush(self) -> None:
        """Write what has come together."""
        if self.rows:
            with open(self.file, "a") as file:
                file.writelines(json.dumps(row) + "\n" for row in self.rows)
        self.rows = []


def read(file: Path) -> list[dict]:
    """The rollouts of a file; a line that was cut off by an interruption is left out."""
    rows = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def coloured(tokens: Sequence[str], logprobs: Sequence[float], colour: bool) -> str:
    """The completion's text; with ``colour``, tokens that were unlikely stand out."""
    parts = []
    for token, logp in zip(tokens, logprobs, strict=True):
        start = next(code for bound, code in COLOURS if logp > bound or bound == -float("inf")) if colour else ""
        parts.append(f"{start}{token}\x1b[0m" if start else token)
    return "".join(parts)


def show(rows: Sequence[dict], colour: bool) -> str:
    """The rollouts one after the other."""
    parts = [LEGEND] if colour else []
    for row in rows:
        mean = sum(row["logprobs"]) / max(1, len(row["logprobs"]))
        head = (
            f"--- step {row['step']}, reward {row['reward']:g}, reference {row['reference']}, mean log-prob {mean:.3f}"
        )
        parts.append(f"{head}\n{row['prompt']}\n>>> {coloured(row['tokens'], row['logprobs'], colour)}")
    return "\n\n".join(parts)


def write_evaluation(run: Path, file: Path) -> None:
    """A standard arm's evaluation as a file that ``read_pool`` (repro/methods/pool.py) reads.

    With how it was made, and the verdicts on the samples where a paper has read them. Raises ConfigError for a folder
    without it.
    """
    import torch

    from repro.launch.blocks import from_rows
    from repro.methods.pool import pool_of, stored_odds, write_pool
    from repro.run import Rollouts

    stored = torch.load(run / ROLLOUTS, weights_only=True) if (run / ROLLOUTS).is_file() else {}
    if "problems" not in stored:
        raise ConfigError(f"{run}: no {ROLLOUTS} in it; name the folder of a standard arm with one seed")
    problems = [Problem(**problem) for problem in stored["problems"]]
    pool = pool_of(Rollouts(problems, from_rows(stored["completions"]), stored["rewards"]))
    pool.odds = stored_odds(run, len(problems))
    result = json.loads((run / "result.json").read_text())
    write_pool(pool, file, {name: result[name] for name in MAKING})


def main(argv: Sequence[str]) -> int:
    """Entry point of ``repro samples``."""
    parser = argparse.ArgumentParser(prog="repro samples", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of one arm with one seed, as in runs/nft/tiny-.../nft-seed0")
    parser.add_argument("--step", type=int, help="only this step (counted from 1; the evaluation comes after the last)")
    parser.add_argument("--reward", type=float, help="only rollouts with this reward")
    parser.add_argument("--colour", choices=("auto", "always", "never"), default="auto")
    parser.add_argument("--pool", type=Path, help="write the evaluation of a standard arm to this file (.jsonl.gz)")
    args = parser.parse_args(argv)
    if args.pool:
        write_evaluation(args.run, args.pool)
        return 0
    file = args.run / FILE
    if not file.is_file():
        print(f"repro: {args.run}: no {FILE} in it; name the folder of one arm with one seed", file=sys.stderr)
        return 2
    rows = [row for row in read(file) if args.step in (None, row["step"]) and args.reward in (None, row["reward"])]
    if not rows:
        print("no such rollouts")
        return 0
    terminal = sys.stdout.isatty()
    text = show(rows, args.colour == "always" or (args.colour == "auto" and terminal and "NO_COLOR" not in os.environ))
    if terminal and shutil.which("less"):
        subprocess.run(["less", "-R"], input=text, text=True)
    else:
        print(text)
    return 0
