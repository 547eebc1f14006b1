"""One arm with one seed: train, evaluate, write the result."""

from __future__ import annotations

import datetime
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from repro.config import RunConfig
from repro.evaluation import evaluate
from repro.launch.record import data_identity, dump, machine, model_identity
from repro.launch.storage import only_process, write_atomically
from repro.launch.track import Log, tracking
from repro.model.policy import check_model, pick_device
from repro.model.training import NonFiniteLoss
from repro.paper import Metrics, Paper
from repro.results.metrics import interval
from repro.run import Run, say
from repro.tasks.loading import load


def preflight(config: RunConfig) -> None:
    """Find what a user can put right before any work begins: device, model folder, task, data files."""
    check_model(config, pick_device())
    load(config.task, "train", config.train_problems, 0, config.data)
    load(config.task, config.eval_split, config.eval_problems, 0, config.data)


def run_folder(paper: Paper, config: RunConfig, arm: str, seed: int, out: str) -> Path:
    """Other settings, other folder: an old run is never mixed with changed settings."""
    return Path(out) / paper.slug / f"{config.preset}-{config.digest()}" / f"{arm}-seed{seed}"


def run_arm(paper: Paper, config: RunConfig, arm: str, seed: int, out: str) -> dict:
    """Train and evaluate one arm with one seed, or return its result if it is finished."""
    folder = run_folder(paper, config, arm, seed, out)
    result_file = folder / "result.json"
    if result_file.exists():
        result = json.loads(result_file.read_text())
        if result["status"] == "ok":
            say(f"{paper.slug}/{arm} seed {seed}: finished before")
            return result
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{paper.slug}-{config.preset}-{config.digest()}-{arm}-seed{seed}"
    with only_process(folder), tracking(name, asdict(config)) as track:
        result = _train_and_evaluate(paper, config, arm, seed, folder, track)
        write_atomically(result_file, lambda file: file.write(dump(result).encode()))
    return result


def _train_and_evaluate(paper: Paper, config: RunConfig, arm: str, seed: int, folder: Path, track: Log) -> dict:
    run = Run(paper, arm, seed, config, folder)
    run.track = track
    began = time.monotonic()
    metrics: Metrics = {}
    status, error = "ok", None
    try:
        paper.all_arms[arm](run, config)
        training = {k: int(run.budget[k]) for k in ("completions", "sampled_tokens", "trained_tokens")}
        training["optimizer_steps"] = int(run.budget["optimizer_steps"])
        phases = {name: dict(entry) for name, entry in run.phases.items()}
        with run.phase("evaluate"):
            metrics = (paper.evaluate or evaluate)(run, config)
        run.recorder.flush()
        phases["evaluate"] = run.phases["evaluate"]
        for name in paper.curves:  # the mean over all rollout steps: how the training went, not only where it ended
            if values := [row[name] for row in run.history if name in row]:
                metrics[f"training {name}"] = float(np.mean(values))
    except NonFiniteLoss as problem:
        status, error = "failed", str(problem)
        training, phases = dict(run.budget), run.phases
        say(f"{paper.slug}/{arm} seed {seed}: stopped: {problem}")
    metrics = {name: value for name, value in metrics.items() if not np.isnan(np.mean(value))}  # NaN: not defined here
    numbers = {name: float(np.mean(value)) for name, value in metrics.items()}
    track({"step": run.step, **{f"final {name}": value for name, value in numbers.items()}})
    run.policy.save_adapter(folder / "adapter")
    say(f"{paper.slug}/{arm} seed {seed}: {status} after {time.monotonic() - began:.0f} s")
    return {
        "paper": paper.slug,
        "arxiv": paper.arxiv,
        "preset": config.preset,
        "arm": arm,
        "seed": seed,
        "status": status,
        "error": error,
        "metrics": {name: _summary(value) for name, value in metrics.items()},
        "budget": training,
        "phases": phases,
        "seconds": sum(entry["seconds"] for entry in phases.values()),
        "settings": asdict(config),
        "digest": config.digest(),
        "tokens_per_batch_used": run.trainer.tokens_per_batch,
        "model": model_identity(run.policy),
        "data": data_identity(run.problems),
        "machine": machine(run.policy.device),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "history": run.history,
        "per_problem": {name: _rounded(value) for name, value in metrics.items() if isinstance(value, list)},
    }


def _summary(value: float | list[float]) -> dict:
    values = np.atleast_1d(np.asarray(value, dtype=float))
    low, high = interval(values[None, :]) if len(values) > 1 else (None, None)
    return {"value": float(values.mean()), "low": low, "high": high}


def _rounded(values: list[float]) -> list[float]:
    return [round(v, 6) for v in values]
