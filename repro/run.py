"""What an arm works with: rollouts and updates with their budget, checkpoints, history."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repro.config import RunConfig
from repro.launch.samples import Recorder
from repro.launch.storage import load_checkpoint, save_checkpoint, write_atomically
from repro.launch.track import Log
from repro.model.logprobs import Divergence, TokenFunction, token_logprob
from repro.model.policy import Policy
from repro.model.sampling import Completion, Decoding, sample
from repro.model.training import Batch, TokenLoss, Trainer
from repro.paper import Paper
from repro.tasks import prompts
from repro.tasks.loading import load
from repro.tasks.problem import Problem
from repro.tasks.prompts import Chat
from repro.tasks.rewards import score


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


def say(line: str) -> None:
    """A line of progress, unless an overview shows it already."""
    if "REPRO_QUIET" not in os.environ:
        print(line, file=sys.stderr, flush=True)
