"""What an arm works with: problems, rollouts and updates with their budget, stages that survive a kill, history."""

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
from repro.launch.blocks import Calls, as_rows, from_rows, in_blocks
from repro.launch.samples import Recorder
from repro.launch.storage import load_checkpoint, save_checkpoint, write_atomically
from repro.launch.track import Log
from repro.model.logprobs import Divergence, TaughtFunction, TokenFunction, between, token_logprob
from repro.model.policy import BASE, POLICY, Policy
from repro.model.sampling import Completion, Decoding, sample
from repro.model.training import Batch, Mean, Reading, TokenLoss, Trainer, as_they_are
from repro.paper import Paper
from repro.results.files import locked
from repro.tasks import prompts
from repro.tasks.loading import load
from repro.tasks.problem import Problem
from repro.tasks.prompts import Chat
from repro.tasks.rewards import score

BATCHES = 4  # of the sampler in a block that is saved


@dataclass
class Rollouts:
    """Completions of some problems with their rewards [problems, samples]."""

    problems: list[Problem]
    completions: list[list[Completion]]
    rewards: torch.Tensor

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of each completion, its end included, [problems, samples]."""
        return torch.tensor([[len(c.ids) for c in group] for group in self.completions])

    def mixed(self) -> Rollouts:
        """Only the problems with right and wrong completions; the others carry no signal for group methods."""
        mean = self.rewards.mean(1)
        return self.select(((mean > 0) & (mean < 1)).nonzero()[:, 0].tolist())

    def select(self, rows: Sequence[int]) -> Rollouts:
        return Rollouts([self.problems[i] for i in rows], [self.completions[i] for i in rows], self.rewards[list(rows)])

    def part(self, problems: int, samples: int) -> Rollouts:
        """The first samples of the first problems: for further measurements that would cost too much on all of them."""
        rows = [group[:samples] for group in self.completions[:problems]]
        return Rollouts(self.problems[:problems], rows, self.rewards[:problems, :samples])

    def batch(self) -> Batch:
        """All completions as one batch, a problem's samples side by side."""
        return Batch([(c.prompt, c.ids) for group in self.completions for c in group])


class Run:
    """One arm with one seed: what a paper's training function works with."""

    def __init__(self, paper: Paper, arm: str, seed: int, config: RunConfig, folder: Path):
        self.paper, self.arm, self.seed, self.config, self.folder = paper, arm, seed, config, folder
        self.evaluated_in = folder  # of a standard arm's evaluation that a paper measures more on: that arm's folder
        self.policy = Policy(config, seed)
        self.trainer = Trainer(
            self.policy, config.learning_rate, config.warmup, config.max_grad_norm, config.tokens_per_batch, say
        )
        self.generator = torch.Generator(self.policy.device).manual_seed(seed)  # sampling
        self.rng = torch.Generator().manual_seed(seed)  # everything else that is random
        self.problems = load(config.task, "train", config.train_problems, seed, config.data)
        self.position = 0
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.budget: dict[str, float] = defaultdict(float)
        self.phases: dict[str, dict[str, float]] = {}
        self.kept: dict = {}  # a paper's own data; JSON-like values and tensors, kept in the checkpoint
        self._stages: list[dict] = []  # those that have begun: name, first step, number of steps
        self._entered = 0  # of them, in this process
        self._calls: Calls | None = None  # within an evaluation
        self._logged: dict[str, list[float]] = defaultdict(list)
        self._resume()
        self.recorder: Recorder | None = Recorder(folder, self.policy.tokenizer, self.step)
        self.track: Log = lambda row: None

    # --- the loop ---------------------------------------------------------------------------------------------------

    def stage(
        self,
        name: str,
        steps: int,
        *,
        learning_rate: float | None = None,
        from_base: bool = False,
        freeze: str = "",
        begin: Callable[[], None] | None = None,
    ) -> Iterator[int]:
        """Steps 0 ... steps-1 of a stage of the training; each is saved when it is over, and none is done twice.

        What a stage begins with is done once, however often the run is interrupted: ``freeze`` keeps the policy as it
        is under this name, ``from_base`` takes the policy back to the base, ``begin`` is called. A stage with
        ``learning_rate`` or ``from_base`` has a new optimiser with its own warm-up; without, training goes on.
        """
        number = self._entered
        self._entered += 1
        if number == len(self._stages):
            self._stages.append({"name": name, "first": self.step, "steps": steps})
            if freeze:
                self.policy.freeze_copy(freeze)
            if from_base:
                self.policy.reset()
            if from_base or learning_rate is not None:
                self.trainer.new_optimizer(learning_rate)
            if begin:
                begin()
        first, steps = self._stages[number]["first"], self._stages[number]["steps"]
        began, done = time.monotonic(), self.step
        while self.step < first + steps:
            updates = self.budget["optimizer_steps"]
            yield self.step - first
            self.step += 1
            self._end_step(self.step - first, steps, self.budget["optimizer_steps"] > updates)
            self._report(name, self.step - first, steps, (time.monotonic() - began) / (self.step - done))

    def _end_step(self, done: int, steps: int, updated: bool) -> None:
        every = -(-steps // self.config.monitors) if self.config.monitors else 0
        if every and done % every == 0 and updated:  # a step that only samples leaves the policy as it was
            self.monitor()
        spent = {name: self.budget[name] for name in ("completions", "sampled_tokens")}  # from the start until here
        logged = {name: float(np.mean(values)) for name, values in self._logged.items()}
        self.history.append({"step": self.step, **spent, **logged})
        self._logged.clear()
        self._save()
        self.track(self.history[-1])

    def next_problems(self, count: int) -> list[Problem]:
        """The next training problems; every arm of a seed sees the same ones in the same order."""
        size = len(self.problems)
        chosen = [self.problems[(self.position + i) % size] for i in range(count)]
        self.position += count
        return chosen

    def held_out(self, size: int | None = None) -> list[Problem]:
        """The problems of the evaluation, the same for every arm and seed; ``size``: another number of them."""
        config = self.config
        return load(config.task, config.eval_split, size or config.eval_problems, 0, config.data)

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
        adapter: str = POLICY,
        generator: torch.Generator | None = None,
        stop: Sequence[int] = (),
        max_new_tokens: int | None = None,
        score: TokenFunction | None = None,
    ) -> list[list[Completion]]:
        """``samples`` completions of each conversation, by the policy, by BASE or by a frozen copy.

        A conversation may be given as token ids: what the policy wrote before is then gone on with token by token.
        ``stop``: further tokens that end a completion. ``max_new_tokens``: another limit than that of the settings.
        ``score``: summed over each completion, in its ``scores``.
        """
        temperature = self.config.temperature if temperature is None else temperature
        generator = generator or self.generator
        encoded = [chat if isinstance(chat[0], int) else self.policy.encode(chat) for chat in chats]

        def draw(prompts: list[list[int]]) -> list[list[Completion]]:
            with self.phase("sample"), self.policy.sampling(adapter) as model:
                return sample(
                    model,
                    self.policy.tokenizer,
                    prompts,
                    samples,
                    Decoding(temperature=temperature, max_new_tokens=max_new_tokens or self.config.max_new_tokens),
                    [*self.policy.stop_ids, *stop],
                    generator,
                    self.config.rows_per_batch,
                    score,
                )

        if self._calls is None:
            completions = draw(encoded)
        else:
            settings = samples, temperature, adapter, stop, max_new_tokens, score is not None
            file = self._calls.file(encoded, settings, generator.get_state().tolist())
            completions = self._drawn_in_blocks(draw, encoded, samples, generator, file)
        if adapter == POLICY and self.policy.merge_rounds:
            self.log(merged=self.policy.merged_share())
        self.spend(completions=len(chats) * samples)
        self.spend(sampled_tokens=sum(len(c.ids) for group in completions for c in group))
        return completions

    # --- evaluation: done once, however often it is interrupted -------------------------------------------------------

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """What is sampled and read herein is kept in the run's folder where it takes long, and not done again.

        It is found again by what it was made from: conversations, settings and the state of the generator.
        """
        self._calls = Calls(self.folder)
        try:
            with self.phase("evaluate"):
                yield
        finally:
            self._calls = None

    def _drawn_in_blocks(
        self, draw: Callable, encoded: list[list[int]], samples: int, generator: torch.Generator, file: Path
    ) -> list[list[Completion]]:
        """In blocks of whole batches, so that the completions are the same."""
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))

        def make(first: int, last: int) -> list:
            return as_rows(draw([encoded[i] for i in order[first:last]]))

        done = self.in_blocks(file, len(order), samples, make, generator)
        found: list[list[Completion]] = [[] for _ in order]
        for i, group in zip(order, from_rows(done), strict=True):
            found[i] = group
        return found

    def in_blocks(
        self,
        file: Path,
        problems: int,
        samples: int,
        make: Callable[[int, int], list],
        generator: torch.Generator | None = None,
        keep: bool = False,
    ) -> list:
        """``make(first, last)`` of the problems from first to last, a value each; all blocks' values.

        See ``repro.launch.blocks``. A line for each block tells how long the rest takes. What an interrupted process
        spent on its blocks counts as time of the evaluation.
        """
        size = BATCHES * max(1, self.config.rows_per_batch // samples)

        def report(done: int, rate: float) -> None:
            self._report(file.stem.partition("-")[0], done, problems, rate, "problem")

        calls, self._calls = self._calls, None  # what a block calls has no file of its own
        done, earlier = in_blocks(file, problems, size, make, generator, keep, report)
        self._calls = calls
        self.phases.setdefault("evaluate", {"seconds": 0.0, "peak_memory_bytes": 0})["seconds"] += earlier
        return done

    def rewards(self, problems: Sequence[Problem], completions: list[list[Completion]]) -> torch.Tensor:
        """1 for a right final answer, else 0; a truncated completion is wrong. [problems, samples]."""
        with self.phase("verify"):
            pairs = [(p, c) for p, group in zip(problems, completions, strict=True) for c in group]
            right = score([p for p, _ in pairs], [c.text for _, c in pairs])
            values = [0.0 if c.truncated else r for (_, c), r in zip(pairs, right, strict=True)]
        rewards = torch.tensor(values).view(len(problems), -1) if values else torch.zeros(len(problems), 0)
        if self.recorder:
            self.recorder.add(self.step + 1, problems, completions, rewards)
        return rewards

    def rollout(
        self,
        problems: list[Problem],
        samples: int,
        adapter: str = POLICY,
        ask: Callable[[Problem], Chat] = prompts.solve,
        max_new_tokens: int | None = None,
    ) -> Rollouts:
        """Sample answers to the problems (``ask``) and reward them; log reward, entropy, length and truncation."""
        chats = [ask(p) for p in problems]
        completions = self.sample(chats, samples, adapter=adapter, max_new_tokens=max_new_tokens)
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

        Arms that want it at the same time wait for the first of them.

        Only for what depends on the base, the settings and ``name``, or results would depend on who came first.
        """
        file = self.folder.parent / f"{name}.json"
        with locked(self.folder.parent / f".{name}"):
            if not file.exists():
                with self.off_budget() as spent:
                    content = make(self, *arguments)
                write_atomically(file, lambda f: f.write(json.dumps({"spent": spent, "content": content}).encode()))
        stored = json.loads(file.read_text())
        self.spend(**stored["spent"])
        return stored["content"]

    def spend(self, **amounts: float) -> None:
        """Add to the budget that the result tells."""
        for name, amount in amounts.items():
            self.budget[name] += amount

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

    # --- what the model says of given completions -------------------------------------------------------------------

    def logprobs(self, batch: Batch, adapter: str = POLICY, temperature: float = 1.0) -> torch.Tensor:
        """log p of every completion token, no gradient, [tokens]."""
        return self.values(batch, token_logprob, adapter, temperature)

    def values(
        self,
        batch: Batch,
        function: TokenFunction | TaughtFunction,
        adapter: str = POLICY,
        temperature: float = 1.0,
        teacher: str = "",
        last: bool = False,
    ) -> torch.Tensor:
        """``function(logits, targets)`` at every completion token, no gradient, [tokens] or [tokens, k].

        With a ``teacher``, which reads the batch's ``contexts``, the function gets its logits as well. ``last``: only
        at each completion's last token, [sequences] or [sequences, k].
        """
        if adapter == POLICY and not teacher and self.policy.is_base:
            adapter = BASE  # the same values without the adapter's products; a teacher's adapter would be off, too

        def read(*_: int) -> list[torch.Tensor]:
            with self.phase("logprobs"), self.policy.using(adapter):
                return [self.trainer.values(batch, Reading(function, temperature, teacher, last))]

        if self._calls is None:
            return read()[0]
        settings = getattr(function, "__qualname__", ""), adapter, temperature, teacher, last
        file = self._calls.file(batch.sequences, batch.contexts, settings)
        (values,) = self.in_blocks(file, 1, 1, read)
        return values.to(self.policy.device)

    def divergences(self, batch: Batch, divergence: Divergence, teacher: str, temperature: float = 1.0) -> torch.Tensor:
        """``divergence(student, teacher)`` at every token of a batch with the teacher's contexts, no gradient."""
        return self.values(batch, between(divergence), POLICY, temperature, teacher)

    # --- updates: three verbs for three kinds of loss ---------------------------------------------------------------

    def update(
        self, batch: Batch, loss: TokenLoss, mean: Mean = "token", temperature: float = 1.0, together: int = 1
    ) -> None:
        """One optimiser step on ``loss(logp, f)`` of log-probs [tokens] and the batch's fields (see Trainer.step).

        ``temperature`` divides the logits: 1 for supervised losses, that of the sampling for policy gradients.
        ``together``: so many neighbours of the batch are never separated (2 for the pairs of a preference loss).
        """
        self._step(batch, Reading(token_logprob, temperature), loss, mean, together)

    def update_on_logits(
        self,
        batch: Batch,
        function: TokenFunction | TaughtFunction,
        loss: TokenLoss = as_they_are,
        mean: Mean = "token",
        temperature: float = 1.0,
        teacher: str = "",
    ) -> None:
        """One optimiser step on ``loss(values, f)`` with ``values = function(logits, targets)``, [tokens] or more.

        With a ``teacher``, which reads the batch's ``contexts``, the function gets its logits as well.
        """
        self._step(batch, Reading(function, temperature, teacher), loss, mean, 1)

    def distill(
        self,
        batch: Batch,
        divergence: Divergence,
        teacher: str,
        mean: Mean = "token",
        temperature: float = 1.0,
        loss: TokenLoss = as_they_are,
    ) -> None:
        """One optimiser step on the divergence from a teacher (BASE or a frozen copy), which reads ``contexts``."""
        self.update_on_logits(batch, between(divergence), loss, mean, temperature, teacher)

    def _step(self, batch: Batch, reading: Reading, loss: TokenLoss, mean: Mean, together: int) -> None:
        with self.phase("train"):
            self.log(**self.trainer.step(batch, loss, reading, mean, together))
        self.spend(trained_tokens=sum(batch.lengths), optimizer_steps=1)

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

    def _report(self, stage: str, done: int, steps: int, rate: float, unit: str = "step") -> None:
        last = self.history[-1] if self.history else {}
        shown = "  ".join(f"{k} {last[k]:.3f}" for k in self.paper.curves if k in last)
        left = datetime.timedelta(seconds=round(rate * (steps - done)))
        line = f"{self.paper.slug}/{self.arm} seed {self.seed}: {stage} {done}/{steps}  {shown}"
        line = f"{line}  {rate:.1f} s/{unit}, {left} left"
        (self.folder / "progress.txt").write_text(line)
        say(line)

    def _save(self) -> None:
        content = {
            "step": self.step,
            "stages": self._stages,
            "adapter": self.policy.adapter_state(),
            "copies": {name: self.policy.adapter_state(name) for name in self.policy.copies},
            "trainer": self.trainer.state(),
            "generator": self.generator.get_state(),
            "rng": self.rng.get_state(),
            "position": self.position,
            "history": self.history,
            "budget": dict(self.budget),
            "phases": self.phases,
            "kept": self.kept,
        }
        if self.recorder:
            self.recorder.flush()
        save_checkpoint(self.folder, content)

    def _resume(self) -> None:
        content = load_checkpoint(self.folder, lambda text: print(f"repro: {text}", file=sys.stderr, flush=True))
        if content is None:
            return
        self.step, self.position, self._stages = content["step"], content["position"], content["stages"]
        self.policy.load_adapter_state(content["adapter"])
        for name, state in content["copies"].items():
            self.policy.freeze_copy(name)
            self.policy.load_adapter_state(state, name)
        self.trainer.load_state(content["trainer"])
        self.generator.set_state(content["generator"])
        self.rng.set_state(content["rng"])
        self.history, self.phases, self.kept = content["history"], content["phases"], content["kept"]
        self.budget.update(content["budget"])


def entropy(completions: Sequence[Completion]) -> float:
    """Mean entropy per token in nats, estimated without bias by the mean of -log p over sampled tokens (T = 1)."""
    tokens = [-logp for c in completions for logp in c.logprobs]
    return float(np.mean(tokens))


def say(line: str) -> None:
    """A line of progress, unless an overview shows it already."""
    if "REPRO_QUIET" not in os.environ:
        print(line, file=sys.stderr, flush=True)
