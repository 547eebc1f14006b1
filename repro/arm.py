"""One arm with one seed: train, evaluate, write the result. Standard arms are made once and shared by all papers."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from repro.config import RunConfig
from repro.evaluation import evaluate
from repro.launch.blocks import EVALUATION, as_rows, from_rows
from repro.launch.record import command, data_identity, dump, machine, model_identity
from repro.launch.samples import ROLLOUTS
from repro.launch.storage import load_checkpoint, only_process, write_atomically
from repro.launch.task import Task
from repro.launch.track import Log, tracking
from repro.methods import standard
from repro.model.policy import check_model, pick_device
from repro.model.training import NonFiniteLoss
from repro.paper import Paper
from repro.results.metric import Metric, number
from repro.results.metrics import interval
from repro.run import Rollouts, Run, say
from repro.scripts import STANDARD, load_script
from repro.tasks.loading import load


def preflight(config: RunConfig) -> None:
    """Find what a user can put right before any work begins: device, model folder, task, data files."""
    check_model(config, pick_device())
    load(config.task, "train", config.train_problems, 0, config.data)
    load(config.task, config.eval_split, config.eval_problems, 0, config.data)


def run_folder(paper: Paper, config: RunConfig, arm: str, seed: int, out: str) -> Path:
    """Other settings, other folder: an old run is never mixed with changed settings."""
    return Path(out) / paper.slug / f"{config.preset}-{digest(paper, config, arm)}" / f"{arm}-seed{seed}"


def digest(paper: Paper, config: RunConfig, arm: str) -> str:
    """What an arm reads, in eight hexadecimal digits."""
    return standard.digest(arm, config) if paper.slug == standard.PAPER.slug else config.digest()


def tasks_of(
    paper: Paper, script: Path, config: RunConfig, arms: Sequence[str], seeds: Sequence[int], out: str
) -> list[Task]:
    """What is to be run, seed by seed: own arms, standard arms, and what the paper measures on standard arms."""

    def task(p: Paper, s: Path, c: RunConfig, arm: str, seed: int, needs: Path | None = None) -> Task:
        return Task(s, p.slug, arm, seed, asdict(c), run_folder(p, c, arm, seed, out), out, needs)

    tasks = []
    for seed in seeds:
        for name in arms:
            shared, needs = paper.arms[name].standard, None
            if shared:
                tasks.append(task(standard.PAPER, STANDARD, standard.settings_for(config), shared, seed))
                needs = tasks[-1].folder
            if not shared or paper.measure:
                tasks.append(task(paper, script, config, name, seed, needs))
    return tasks


def work(script: Path, settings: dict, arm: str, seed: int, out: str) -> dict:
    """``run_arm`` for a process that has the script's path and plain settings."""
    paper = load_script(script)
    return run_arm(paper, paper.config(**settings), arm, seed, out)


def run_arm(paper: Paper, config: RunConfig, arm: str, seed: int, out: str) -> dict:
    """The result of one arm with one seed; what is finished isn't made again.

    Of a standard arm that a paper shows: what the paper's ``measure`` finds on it.
    """
    folder = run_folder(paper, config, arm, seed, out)
    result_file = folder / "result.json"
    if result_file.exists():
        result = json.loads(result_file.read_text())
        if result["status"] == "ok":
            say(f"{paper.slug}/{arm} seed {seed}: finished before")
            return result
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{paper.slug}-{folder.parent.name}-{arm}-seed{seed}"
    with only_process(folder), tracking(name, asdict(config)) as track:
        run = Run(paper, arm, seed, config, folder)
        began = time.monotonic()
        result = _measure_shared(run, out) if paper.arms[arm].standard else _train_and_evaluate(run, track)
        write_atomically(result_file, lambda file: file.write(dump(result).encode()))
        for file in folder.glob(f"{EVALUATION}*.pt"):
            file.unlink()
    say(f"{paper.slug}/{arm} seed {seed}: {result['status']} after {time.monotonic() - began:.0f} s")
    return result


def _train_and_evaluate(run: Run, track: Log) -> dict:
    run.track, paper, config = track, run.paper, run.config
    metrics: dict[str, Metric] = {}
    status, error = "ok", None
    try:
        paper.arms[run.arm].train(run, config)
        budget, phases = _spent(run), {name: dict(entry) for name, entry in run.phases.items()}
        with run.evaluation():
            metrics, rollouts = evaluate(run)
            if paper.measure:
                metrics |= paper.measure(run, config, rollouts)
        run.recorder.flush()
        if paper.slug == standard.PAPER.slug:
            _keep(rollouts, run.folder / ROLLOUTS)
        phases["evaluate"] = run.phases["evaluate"]
        for name in sorted({name for row in run.history for name in row} - {"step", "completions", "sampled_tokens"}):
            # the mean over all steps: how the training went, not only where it ended
            metrics[f"training {name}"] = number(np.mean([row[name] for row in run.history if name in row]))
    except NonFiniteLoss as problem:
        status, error = "failed", str(problem)
        budget, phases = _spent(run), run.phases
        say(f"{paper.slug}/{run.arm} seed {run.seed}: stopped: {problem}")
    track({"step": run.step, **{f"final {name}": metric.value for name, metric in metrics.items()}})
    run.policy.save_adapter(run.folder / "adapter")
    return _result(run, metrics, budget, phases) | {"status": status, "error": error}


def _measure_shared(run: Run, out: str) -> dict:
    """What a paper measures on a standard arm, from that arm's policy and its rollouts of the evaluation."""
    settings, arm = standard.settings_for(run.config), run.paper.arms[run.arm].standard
    made = run_arm(standard.PAPER, settings, arm, run.seed, out)
    if made["status"] != "ok":
        raise RuntimeError(f"the standard arm {arm} with seed {run.seed} failed: {made['error']}")
    folder = run_folder(standard.PAPER, settings, arm, run.seed, out)
    if checkpoint := load_checkpoint(folder, say):
        run.policy.load_adapter_state(checkpoint["adapter"])
    run.evaluated_in, rollouts = folder, _kept(folder / ROLLOUTS, run)
    with run.evaluation():
        metrics = run.paper.measure(run, run.config, rollouts)
    run.recorder.flush()
    return _result(run, metrics, {}, {"evaluate": run.phases["evaluate"]}) | {"of": made["digest"]}


def _spent(run: Run) -> dict[str, int]:
    names = ("completions", "sampled_tokens", "trained_tokens", "optimizer_steps")
    return {name: int(run.budget[name]) for name in names}


def _keep(rollouts: Rollouts, file: Path) -> None:
    problems, completions = [asdict(p) for p in rollouts.problems], as_rows(rollouts.completions)
    content = {"problems": problems, "completions": completions, "rewards": rollouts.rewards}
    write_atomically(file, lambda f: torch.save(content, f))


def _kept(file: Path, run: Run) -> Rollouts:
    stored = torch.load(file, weights_only=True)
    return Rollouts(run.held_out(), from_rows(stored["completions"]), stored["rewards"])


def _result(run: Run, metrics: dict[str, Metric], budget: dict, phases: dict) -> dict:
    paper, config = run.paper, run.config
    metrics = {name: metric for name, metric in metrics.items() if not np.isnan(metric.value)}  # NaN: not defined here
    shared = {arm.standard for arm in paper.arms.values() if arm.standard}
    settings = standard.settings_for(config)
    return {
        "paper": paper.slug,
        "preset": config.preset,
        "arm": run.arm,
        "seed": run.seed,
        "status": "ok",
        "error": None,
        "digest": digest(paper, config, run.arm),
        "of": None,
        "standard": {arm: standard.digest(arm, settings) for arm in sorted(shared)},
        "metrics": {name: _summary(metric) for name, metric in metrics.items()},
        "budget": budget,
        "phases": phases,
        "seconds": sum(entry["seconds"] for entry in phases.values()),
        "settings": config.told(),
        "tokens_per_batch_used": run.trainer.tokens_per_batch,
        "model": model_identity(run.policy),
        "data": data_identity(run.problems),
        "machine": machine(run.policy.device),
        "command": command(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "history": run.history,
        "per_problem": {name: [round(v, 6) for v in m.values] for name, m in metrics.items() if len(m.values) > 1},
    }


def _summary(metric: Metric) -> dict:
    values = np.asarray(metric.values)
    low, high = interval(values[None, :]) if len(values) > 1 else (None, None)
    return {"value": float(values.mean()), "low": low, "high": high, "unit": metric.unit}
