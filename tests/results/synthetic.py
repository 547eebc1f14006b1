"""Rows and cards as runs and scripts make them."""

from __future__ import annotations

import numpy as np

from repro import Claim, Paper, RunConfig, standard
from repro.results.metrics import pass_at_k


def row(arm: str, seed: int, accuracy: list[float], paper: str = "x", **more) -> dict:
    """A finished row with one metric of problems and one number."""
    trained = arm != "base"
    counts = {"completions": 640, "sampled_tokens": 20_000, "trained_tokens": 10_000, "optimizer_steps": 5}
    mean = round(float(np.mean(accuracy)), 6)
    return {
        "paper": paper,
        "preset": "tiny",
        "arm": arm,
        "seed": seed,
        "status": "ok",
        "error": None,
        "digest": "00000000",
        "of": None,
        "standard": {},
        "metrics": {
            "accuracy": {"value": mean, "low": mean, "high": mean, "unit": "share"},
            "entropy": {"value": round(0.05 + seed / 1000, 3), "low": None, "high": None, "unit": "number"},
        },
        "per_problem": {"accuracy": list(accuracy)},
        "history": [{"step": 1, "completions": 320, "reward": 0.25}, {"step": 2, "completions": 640}] * trained,
        "budget": {name: value * trained for name, value in counts.items()},
        "phases": {"train": {"seconds": 60.0, "peak_memory_bytes": 2_000_000_000 + seed}},
        "seconds": 90.0,
        "settings": {
            **{"model": "tiny", "task": "t", "data": None, "prompts": 4, "samples": 8, "steps": 20},
            **{"eval_problems": len(accuracy), "eval_split": "test", "eval_samples": 8},
        },
        "model": {"hash": "h", "parameters": 7},
        "data": {"hash": "d", "problems": 9},
        "machine": {"device": "cpu", "threads": 1, "versions": {"torch": "2"}, "commit": "abc", "changed_files": 0},
        "command": "repro run x",
        "date": f"2026-01-0{1 + seed % 9}T00:00:00+00:00",
        "tokens_per_batch_used": 2048,
        **more,
    }


def drawn(arm: str, seeds: int, mean: float, paper: str = "x", problems: int = 40, **more) -> list[dict]:
    """Rows whose accuracies are shares of 8 samples."""
    rng = np.random.default_rng(sum(map(ord, arm + paper)))
    rates = [np.clip(mean + 0.01 * rng.normal(), 0.01, 0.99) for _ in range(seeds)]
    return [row(arm, s, (rng.binomial(8, rate, problems) / 8).tolist(), paper, **more) for s, rate in enumerate(rates)]


def whole(arm: str, seed: int, paper: str, mean: float) -> dict:
    """A row with all that the common evaluation and twenty steps write, as much as a real one has."""
    rng = np.random.default_rng([seed, *map(ord, arm + paper)])
    right = rng.binomial(8, np.clip(rng.beta(1, 1, 512) * mean * 2, 0, 1))
    values = {"accuracy": (right / 8).tolist(), "greedy": rng.integers(0, 2, 512).astype(float).tolist()}
    for k in (2, 4, 8):
        values[f"pass@{k}"] = [round(pass_at_k(8, int(c), k), 6) for c in right]
    made = row(arm, seed, values["accuracy"], paper)
    names = ["length", "truncated", "training reward", "training entropy", *(f"accuracy, level {i}" for i in range(4))]
    numbers = {n: {"value": rng.random(), "low": None, "high": None, "unit": "number"} for n in ["entropy", *names]}
    shares = {
        n: {"value": float(np.mean(v)), "low": rng.random(), "high": 1.0, "unit": "share"} for n, v in values.items()
    }
    columns = ("reward", "entropy", "length", "truncated", "loss", "norm")
    history = [{"step": i, "completions": 256 * i} | {n: round(rng.random(), 6) for n in columns} for i in range(20)]
    settings = {**made["settings"], **{f"setting_{i}": i for i in range(25)}}
    return made | {"metrics": shares | numbers, "per_problem": values, "history": history, "settings": settings}


PAPER = Paper(
    "x",
    "A <paper>",
    "0000.00000",
    RunConfig,
    {"new": lambda run, config: None, "absent": lambda run, config: None},
    (
        Claim.over("new", "base", text="new ends above base", published="+3", primary=True),
        Claim("par", "new is not worse by more than 2 points", ("new", "accuracy"), ("base", "accuracy"), -0.02),
        Claim.over("new", "absent"),
        Claim.over("new", "base", "auroc"),
    ),
    family="self-training",
    columns=("accuracy", "entropy", "auroc"),
    published={"new": "51.7"},
    published_setting="a model",
)
CARD = PAPER.card()
SHARING = Paper(
    "y",
    "Another",
    "0000.00001",
    RunConfig,
    {"rl": standard("grpo"), "own": lambda run, config: None},
    (),
    "self-training",
)
