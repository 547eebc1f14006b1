"""A paper's arms on several seeds: rollouts and updates with their budget, checkpoints, results, and claims."""

from __future__ import annotations

import datetime
import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from repro import prompts
from repro.config import RunConfig
from repro.logprobs import Divergence, TokenFunction, token_logprob
from repro.metrics import interval, pass_at_k, verdict
from repro.policy import Policy, check_model, pick_device
from repro.prompts import Chat
from repro.record import data_identity, dump, machine, model_identity
from repro.samples import Recorder
from repro.sampling import Completion, Decoding, sample
from repro.storage import load_checkpoint, only_process, save_checkpoint, write_atomically
from repro.tasks import Problem, load, score
from repro.track import Log, tracking
from repro.training import Batch, NonFiniteLoss, TokenLoss, Trainer

Metrics = dict[str, "float | list[float]"]  # one number, or one number per evaluation problem


@dataclass(frozen=True)
class Claim:
    """What a paper claims, as a difference of two measured numbers that must be above a threshold.

    ``left`` and ``right`` are (arm, metric); their difference is paired by problem and seed. A threshold below 0 makes
    "on par" a claim: not worse by more than this.
    """

    name: str
    text: str
    left: tuple[str, str]
    right: tuple[str, str]
    threshold: float = 0.0
    published: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel of a paper's figure.

    curve: ``names`` of the training history over ``x`` ("step", or a budget spent until then: "completions",
    "sampled_tokens"), one line per arm and name. bars: metrics of the finished arms side by side. turns: metrics in
    their order as one line per arm. ``arms``: only these.
    """

    label: str
    names: tuple[str, ...]
    kind: Literal["curve", "bars", "turns"] = "curve"
    x: str = "step"
    arms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paper:
    """Identity, arms and claims of a paper."""

    slug: str
    title: str
    arxiv: str
    config: type[RunConfig]
    arms: dict[str, Callable[[Run, RunConfig], None]]
    claims: tuple[Claim, ...]
    columns: tuple[str, ...] = ("accuracy", "pass@8", "greedy", "entropy")
    extra_arms: dict[str, Callable[[Run, RunConfig], None]] = field(default_factory=dict)  # run only by name
    published: dict[str, str] = field(default_factory=dict)  # of the arms, as the paper prints them
    published_setting: str = ""  # their model and data
    evaluate: Callable[[Run, RunConfig], Metrics] | None = None
    curves: tuple[str, ...] = ("reward", "entropy")  # of the history: shown while running, their means are metrics
    panels: tuple[Panel, ...] = ()  # of the figure; without any, the curves

    @property
    def all_arms(self) -> dict[str, Callable[[Run, RunConfig], None]]:
        return {**self.arms, **self.extra_arms}


@dataclass
class Rollouts:
    """Completions of some problems with their rewards [problems, samples]."""

    problems: list[Problem]
    completions: list[list[Completion]]
    rewards: torch.Tensor

    def mixed(self) -> Rollouts:
        """Only the problems with right and wrong completions; the others carry no signal for group methods."""
        mean = self.rewards.mean(1)
        return self.select(((mean > 0) & (mean < 1)).nonzero()[:, 0].tolist())

    def select(self, rows: Sequence[int]) -> Rollouts:
        return Rollouts([self.problems[i] for i in rows], [self.completions[i] for i in rows], self.rewards[list(rows)])

    def batch(self) -> Batch:
        """All completions as one batch, a problem's samples side by side."""
        return Batch([(c.prompt, c.ids) for group in self.completions for c in group])


class Run:
    """One arm with one seed: what a paper's training function works with."""

    def __init__(self, paper: Paper, arm: str, seed: int, config: RunConfig, folder: Path):
        self.paper, self.arm, self.seed, self.config, self.folder = paper, arm, seed, config, folder
        self.policy = Policy(config, seed)
        self.trainer = Trainer(
            self.policy,
            config.learning_rate,
            config.warmup,
            config.max_grad_norm,
            config.tokens_per_batch,
            config.temperature,
            say,
        )
        self.generator = torch.Generator(self.policy.device).manual_seed(seed)  # sampling
        self.rng = torch.Generator().manual_seed(seed)  # everything else that is random
        self.problems = load(config.task, "train", config.train_problems, seed, config.data)
        self.position = 0
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.budget: dict[str, float] = defaultdict(float)
        self.phases: dict[str, dict[str, float]] = {}
        self.state: dict = {}  # a paper's own state; kept in the checkpoint
        self._logged: dict[str, list[float]] = defaultdict(list)
        self._resume()
        self.recorder: Recorder | None = Recorder(folder, self.policy.tokenizer, self.step)
        self.track: Log = lambda row: None

    # --- the loop ---------------------------------------------------------------------------------------------------

    def steps(self, total: int) -> Iterator[int]:
        """Steps 0 ... total-1 without those done before an interruption; each is saved when it is over."""
        began, first = time.monotonic(), self.step
        while self.step < total:
            yield self.step
            self.step += 1
            if self.config.monitors and self.step % -(-total // self.config.monitors) == 0:
                self.monitor()
            spent = {name: self.budget[name] for name in ("completions", "sampled_tokens")}  # from the start until here
            logged = {name: float(np.mean(values)) for name, values in self._logged.items()}
            self.history.append({"step": self.step, **spent, **logged})
            self._logged.clear()
            self._save()
            self.track(self.history[-1])
            rate = (time.monotonic() - began) / (self.step - first)
            self._report(total, rate)

    def next_problems(self, count: int) -> list[Problem]:
        """The next training problems; every arm of a seed sees the same ones in the same order."""
        size = len(self.problems)
        chosen = [self.problems[(self.position + i) % size] for i in range(count)]
        self.position += count
        return chosen

    def log(self, **values: float) -> None:
        """Numbers of this step; several values of one name are averaged, NaN ("not defined here") is left out."""
        for name, value in values.items():
            if not np.isnan(float(value)):
                self._logged[name].append(float(value))

    # --- rollouts ---------------------------------------------------------------------------------------------------

    def sample(
        self,
        chats: Sequence[Chat | Sequence[int]],
        samples: int,
        temperature: float | None = None,
        adapter: str | None = "policy",
        generator: torch.Generator | None = None,
        stop: Sequence[int] = (),
    ) -> list[list[Completion]]:
        """``samples`` completions of each conversation, by the policy or by another adapter (None: the reference).

        A conversation may be given as token ids: what the policy wrote before is then gone on with token by token.
        ``stop``: further tokens that end a completion.
        """
        temperature = self.config.temperature if temperature is None else temperature
        with self.phase("sample"), self.policy.sampling(adapter) as model:
            completions = sample(
                model,
                self.policy.tokenizer,
                [chat if isinstance(chat[0], int) else self.policy.encode(chat) for chat in chats],
                samples,
                Decoding(temperature=temperature, max_new_tokens=self.config.max_new_tokens),
                [*self.policy.stop_ids, *stop],
                generator or self.generator,
                self.config.rows_per_batch,
            )
        self.budget["completions"] += len(chats) * samples
        self.budget["sampled_tokens"] += sum(len(c.ids) for group in completions for c in group)
        return completions

    def rewards(self, problems: Sequence[Problem], completions: list[list[Completion]]) -> torch.Tensor:
        """1 for a right final answer, else 0; a truncated completion is wrong. [problems, samples]."""
        with self.phase("verify"):
            pairs = [(p, c) for p, group in zip(problems, completions, strict=True) for c in group]
            right = score([p for p, _ in pairs], [c.text for _, c in pairs])
            values = [0.0 if c.truncated else r for (_, c), r in zip(pairs, right, strict=True)]
        rewards = torch.tensor(values).view(len(problems), -1)
        if self.recorder:
            self.recorder.add(self.step + 1, problems, completions, rewards)
        return rewards

    def rollout(self, problems: list[Problem], samples: int) -> Rollouts:
        """Sample solutions of the problems, reward them, and log reward, entropy, length and truncation."""
        completions = self.sample([prompts.solve(p) for p in problems], samples)
        rewards = self.rewards(problems, completions)
        every = [c for group in completions for c in group]
        self.log(
            reward=rewards.mean(),
            mixed=((rewards.mean(1) > 0) & (rewards.mean(1) < 1)).float().mean(),
            all_wrong=(rewards.sum(1) == 0).float().mean(),
            entropy=entropy(every),
            length=np.mean([len(c.ids) for c in every]),
            truncated=np.mean([c.truncated for c in every]),
        )
        return Rollouts(list(problems), completions, rewards)

    def shared(self, name: str, make: Callable[..., Any], *arguments: Any) -> Any:
        """``make(run, *arguments)`` as JSON gives it back, sampled by the first arm and charged to every arm's budget.

        Only for what depends on the base, the settings and ``name``, or results would depend on who came first.
        """
        file = self.folder.parent / f"{name}.json"
        if not file.exists():
            with self.off_budget() as spent:
                content = make(self, *arguments)
            write_atomically(file, lambda f: f.write(json.dumps({"spent": spent, "content": content}).encode()))
        stored = json.loads(file.read_text())
        for k, v in stored["spent"].items():
            self.budget[k] += v
        return stored["content"]

    @contextmanager
    def off_budget(self) -> Iterator[dict[str, float]]:
        """What the block samples isn't charged to the arm; the dictionary holds it when the block is over."""
        before, spent = dict(self.budget), {}
        yield spent
        spent.update({k: self.budget[k] - before.get(k, 0.0) for k in ("completions", "sampled_tokens")})
        self.budget = defaultdict(float, before)

    def monitor(self, samples: int = 2) -> float:
        """Accuracy on validation problems at this moment, logged as "validation"; not part of the method's budget."""
        problems = min(128, max(1, self.config.eval_problems // 2))
        held_out = load(self.config.task, "validation", problems, 0, self.config.data)
        generator = torch.Generator(self.policy.device).manual_seed(1_000 * self.seed + self.step)
        phases, recorder = self.phases, self.recorder
        self.phases, self.recorder = {}, None
        with self.off_budget():
            completions = self.sample([prompts.solve(p) for p in held_out], samples, generator=generator)
            accuracy = self.rewards(held_out, completions).mean().item()
        seconds = sum(entry["seconds"] for entry in self.phases.values())
        self.phases, self.recorder = phases, recorder
        entry = self.phases.setdefault("monitor", {"seconds": 0.0, "peak_memory_bytes": 0})
        entry["seconds"] += seconds
        self.log(validation=accuracy)
        return accuracy

    # --- updates ----------------------------------------------------------------------------------------------------

    def values(
        self, batch: Batch, function: TokenFunction | Divergence = token_logprob, adapter: str | None = "policy"
    ) -> torch.Tensor:
        """``function`` at every completion token, no gradient, [tokens]; under the policy or another adapter.

        For a batch with a teacher's ``contexts``, ``function`` is a divergence between policy and teacher."""
        with self.phase("logprobs"):
            if adapter == "policy":
                return self.trainer.values(batch, function)
            with self.policy.using(adapter):
                return self.trainer.values(batch, function)

    def update(
        self, batch: Batch, loss: TokenLoss, function: TokenFunction | Divergence = token_logprob, together: int = 1
    ) -> None:
        """One optimiser step on the sum of ``loss(values, fields)`` over the batch's tokens (see Trainer.step)."""
        with self.phase("train"):
            self.log(**self.trainer.step(batch, loss, function, together))
        self.budget["trained_tokens"] += sum(batch.lengths)
        self.budget["optimizer_steps"] += 1

    # --- bookkeeping ------------------------------------------------------------------------------------------------

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Seconds and peak memory of a part of the work."""
        cuda = self.policy.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()
        try:
            yield
        finally:
            if cuda:
                torch.cuda.synchronize()
                peak = torch.cuda.max_memory_allocated()
            else:
                unit = 1 if sys.platform == "darwin" else 1024
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
            entry = self.phases.setdefault(name, {"seconds": 0.0, "peak_memory_bytes": 0})
            entry["seconds"] += time.monotonic() - began
            entry["peak_memory_bytes"] = max(entry["peak_memory_bytes"], peak)

    def _report(self, total: int, rate: float) -> None:
        last = self.history[-1]
        shown = "  ".join(f"{k} {last[k]:.3f}" for k in self.paper.curves if k in last)
        left = datetime.timedelta(seconds=round(rate * (total - self.step)))
        line = f"{self.paper.slug}/{self.arm} seed {self.seed}: step {self.step}/{total}  {shown}"
        line = f"{line}  {rate:.1f} s/step, {left} left"
        (self.folder / "progress.txt").write_text(line)
        say(line)

    def _save(self) -> None:
        content = {
            "step": self.step,
            "adapter": self.policy.adapter_state(),
            "copies": {name: self.policy.adapter_state(name) for name in self.policy.copies},
            "trainer": self.trainer.state(),
            "generator": self.generator.get_state(),
            "rng": self.rng.get_state(),
            "position": self.position,
            "history": self.history,
            "budget": dict(self.budget),
            "phases": self.phases,
            "state": self.state,
        }
        if self.recorder:
            self.recorder.flush()
        save_checkpoint(self.folder, content)

    def _resume(self) -> None:
        content = load_checkpoint(self.folder, lambda text: print(f"repro: {text}", file=sys.stderr, flush=True))
        if content is None:
            return
        self.step, self.position = content["step"], content["position"]
        self.policy.load_adapter_state(content["adapter"])
        for name, state in content["copies"].items():
            self.policy.freeze_copy(name)
            self.policy.load_adapter_state(state, name)
        self.trainer.load_state(content["trainer"])
        self.generator.set_state(content["generator"])
        self.rng.set_state(content["rng"])
        self.history, self.phases, self.state = content["history"], content["phases"], content["state"]
        self.budget.update(content["budget"])


def entropy(completions: Sequence[Completion]) -> float:
    """Mean entropy per token in nats, estimated without bias by the mean of -log p over sampled tokens (T = 1)."""
    tokens = [-logp for c in completions for logp in c.logprobs]
    return float(np.mean(tokens))


def unsolved(run: Run, problems: Sequence[Problem], samples: int, seed: int) -> dict[int, list[str]]:
    """Numbers of the problems that the base gets wrong in all of ``samples`` samples, with its different attempts.

    A problem leaves at its first right sample, so that most samples are spent on the hard ones.
    """
    generator = torch.Generator(run.policy.device).manual_seed(seed)
    left: dict[int, list[str]] = {i: [] for i in range(len(problems))}
    done = 0
    while done < samples and left:
        count, rows = min(samples - done, max(4, done)), list(left)
        completions = run.sample([prompts.solve(problems[i]) for i in rows], count, None, None, generator)
        right = run.rewards([problems[i] for i in rows], completions).sum(1)
        for i, group, solved in zip(rows, completions, right.tolist(), strict=True):
            if solved:
                del left[i]
            else:
                left[i] += [c.text for c in group if not c.truncated]
        done += count
    return {i: list(dict.fromkeys(texts)) for i, texts in left.items()}


def evaluate(
    run: Run, config: RunConfig, more: Callable[[list[list[Completion]], torch.Tensor], Metrics] | None = None
) -> Metrics:
    """Accuracy (mean over samples), pass@k and greedy accuracy on held-out problems; per-problem values.

    ``more``: further metrics from the same completions and rewards [problems, samples].
    """
    problems = load(config.task, config.eval_split, config.eval_problems, 0, config.data)
    chats = [prompts.solve(p) for p in problems]
    generator = torch.Generator(run.policy.device).manual_seed(10_000 + run.seed)
    completions = run.sample(chats, config.eval_samples, generator=generator)
    rewards = run.rewards(problems, completions)
    greedy = run.rewards(problems, run.sample(chats, 1, temperature=0.0, generator=generator))[:, 0]
    every = [c for group in completions for c in group]
    n = config.eval_samples
    metrics: Metrics = {
        "accuracy": rewards.mean(1).tolist(),
        "greedy": greedy.tolist(),
        "entropy": entropy(every),
        "length": float(np.mean([len(c.ids) for c in every])),
        "truncated": float(np.mean([c.truncated for c in every])),
    }
    k = 1
    while k < n:
        k = min(2 * k, n)
        metrics[f"pass@{k}"] = [pass_at_k(n, int(c), k) for c in rewards.sum(1)]
    for level in sorted({p.level for p in problems}):
        metrics[f"accuracy, level {level}"] = float(
            np.mean([a for a, p in zip(metrics["accuracy"], problems, strict=True) if p.level == level])
        )
    if more is not None:
        metrics.update(more(completions, rewards))
    return metrics


# --- running ----------------------------------------------------------------------------------------------------------


def say(line: str) -> None:
    """A line of progress, unless an overview shows it already."""
    if "REPRO_QUIET" not in os.environ:
        print(line, file=sys.stderr, flush=True)


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


# --- claims -----------------------------------------------------------------------------------------------------------


def check_claim(claim: Claim, results: Sequence[dict]) -> dict | None:
    """Measure a claim on the results of one paper and preset; None if an arm or a metric of this task is missing.

    Seeds that both arms finished count. The difference is paired by problem where both metrics have per-problem values.
    """
    found: dict[tuple[str, int], dict] = {(r["arm"], r["seed"]): r for r in results if r["status"] == "ok"}
    (arm_a, metric_a), (arm_b, metric_b) = claim.left, claim.right
    seeds = sorted(s for arm, s in found if arm == arm_a and (arm_b, s) in found)
    seeds = [s for s in seeds if metric_a in found[arm_a, s]["metrics"] and metric_b in found[arm_b, s]["metrics"]]
    if not seeds:
        return None
    rows = []
    for seed in seeds:
        a, b = found[arm_a, seed], found[arm_b, seed]
        if metric_a in a["per_problem"] and metric_b in b["per_problem"]:
            rows.append(np.subtract(a["per_problem"][metric_a], b["per_problem"][metric_b]))
        else:
            rows.append([a["metrics"][metric_a]["value"] - b["metrics"][metric_b]["value"]])
    difference = np.asarray(rows, dtype=float)
    low, high = interval(difference)
    return {
        "claim": claim.name,
        "text": claim.text,
        "published": claim.published,
        "left": "/".join(claim.left),
        "right": "/".join(claim.right),
        "threshold": claim.threshold,
        "verdict": verdict(low, high, claim.threshold),
        "seeds": len(seeds),
        "difference": float(difference.mean()),
        "interval": None if np.isnan(low) else [low, high],  # None: one number, one seed
    }
