"""What a card does, in six steps: ``repro selftest --gpu`` prints one JSON document that can be sent to others.

1 a paper's arm from sampling to result; 2 a static step that must not wait, and the merged copy; 3 sampling against
``generate``; 4 one update with and without autocast, against the plan; 5 slots and graphs at several sizes; 6 a run
under a memory limit that is killed and resumed. A step that fails says so, and the others go on.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from repro.bench.bench import PeakMemory, sampling_rates, seconds, training_batch
from repro.bench.plan import plan
from repro.config import ConfigError, RunConfig
from repro.launch.record import machine
from repro.methods.grpo import GRPO, grpo_loss
from repro.model import static
from repro.model.policy import Policy
from repro.model.sampling import Decoding, sample
from repro.model.training import Trainer
from repro.tasks import prompts as roles
from repro.tasks.loading import load

ARM = "--arms grpo --steps 2 --prompts 4 --samples 4 --max-new-tokens 64 --eval-problems 4 --eval-samples 2 --workers 1"
PROMPTS = (16, 64)  # of eight samples each
TOKENS = (1024, 4096, 8192)
ROWS = (64, 128, 256, 512)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is tested: a preset with the user's model and task."""

    config: RunConfig
    out: Path
    new_tokens: int
    memory_limit: float = 8.0

    def command(self, *more: str, out: str = "runs") -> list[str]:
        """A paper's arm with the smallest settings, in a process of its own."""
        words = ["--preset", self.config.preset, "--model", self.config.model, "--task", self.config.task]
        words += ["--data", self.config.data] if self.config.data else []
        device = ["--device", "cuda", "--out", str(self.out / out)]
        return [sys.executable, "-m", "repro.cli", "run", "nft", *words, *ARM.split(), *device, *more]

    def prompts(self, policy: Policy, count: int) -> list[list[int]]:
        problems = load(self.config.task, "train", count, 0, self.config.data)
        return [policy.encode(roles.solve(p)) for p in problems]


def _last_line(done: subprocess.CompletedProcess) -> str:
    return (done.stderr.strip() or "no output").splitlines()[-1]


def _result(folder: Path) -> dict:
    (file,) = folder.rglob("grpo-seed0/result.json")
    return json.loads(file.read_text())


def one_arm(setup: Setup) -> dict:
    """Seconds and memory of each phase of one arm, and minutes that the preset's own settings would take."""
    began = time.monotonic()
    done = subprocess.run(setup.command(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(_last_line(done))
    result = _result(setup.out / "runs")
    return {
        "seconds": time.monotonic() - began,
        "phases": result["phases"],
        "tokens_per_batch_used": result["tokens_per_batch_used"],
    }


def step_and_merge(setup: Setup) -> dict:
    """Whether a step waits nowhere (CUDA's own check), and how much of the adapter arrives in the merged copy."""
    policy = Policy(setup.config)
    with torch.no_grad():
        for p in policy.parameters:
            p.add_(torch.randn_like(p) * 1e-3)
    model = policy.sampler()
    (prompt,) = setup.prompts(policy, 1)
    slots = static.Slots(model, 8, static.LENGTH, 16, 1.0, policy.stop_ids)
    slots.done.fill_(False)
    with torch.no_grad(), static.unmasked(model):
        slots.step(8, static.LENGTH)
        torch.cuda.set_sync_debug_mode("error")
        try:
            slots.step(8, static.LENGTH)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    greedy = {}
    for way in ("static", "shared"):
        Decoding.sampler = way
        groups = sample(
            model, policy.tokenizer, [prompt], 1, Decoding(0.0, 32), policy.stop_ids, torch.Generator("cuda")
        )
        greedy[way] = groups[0][0].ids
    Decoding.sampler = "auto"
    same = sum(a == b for a, b in zip(*greedy.values(), strict=False))
    alike = f"{same} of {len(greedy['shared'])}"
    return {"waits_in_a_step": 0, "greedy_tokens_alike": alike, "merged_share": policy.merged_share()}


def against_generate(setup: Setup) -> dict:
    """Tokens/s of the sampler and of ``generate`` with 16 and 64 prompts, full length and with stops."""
    policy, rates = Policy(setup.config), {}
    for count in PROMPTS:
        prompts = setup.prompts(policy, count)
        for name, stop in (("full length", []), ("with stops", policy.stop_ids)):
            ours, theirs = sampling_rates(policy, prompts, 8, setup.new_tokens, stop, 1)
            rates[f"{count * 8} rows, {name}"] = {"ours": ours, "generate": theirs, "ratio": ours / theirs}
    return rates


def updates(setup: Setup) -> dict:
    """Seconds and peak memory of an update at several micro-batches, beside what the plan says a token keeps."""
    policy, found = Policy(setup.config), {}
    for tokens in TOKENS:
        batch = training_batch(policy, tokens // 512, 512, 1)
        trainer = Trainer(policy, 1e-5, tokens_per_batch=tokens, say=lambda line: None)
        work = partial(trainer.step, batch, partial(grpo_loss, settings=GRPO()))
        with PeakMemory(policy.device) as peak:
            work()
        used = trainer.tokens_per_batch, trainer.checkpointed
        found[f"{tokens} tokens"] = {"seconds": seconds(work, policy.device), "bytes": peak.bytes, "used": used}
    return found | {"planned_bytes_per_token": plan(setup.config).kept}


def graphs(setup: Setup) -> dict:
    """Tokens/s in slots at several sizes, with and without stops."""
    policy, rates = Policy(setup.config), {}
    model = policy.sampler()
    for rows in ROWS:
        prompts = setup.prompts(policy, max(1, rows // 8))
        for name, stop in (("full length", []), ("with stops", policy.stop_ids)):
            generator, made = torch.Generator(policy.device).manual_seed(0), []

            def work(prompts=prompts, stop=stop, rows=rows, generator=generator, made=made) -> None:
                groups = sample(
                    model, policy.tokenizer, prompts, 8, Decoding(1.0, setup.new_tokens), stop, generator, rows
                )
                made.append(sum(len(c.ids) for group in groups for c in group))

            with PeakMemory(policy.device) as peak:
                work()  # captures
            time_ = seconds(work, policy.device)
            rates[f"{rows} rows, {name}"] = {"tokens_per_second": made[-1] / time_, "bytes": peak.bytes}
    return rates


def killed_and_resumed(setup: Setup) -> dict:
    """One arm under a memory limit, killed after its first step; the same command goes on."""
    command = setup.command("--memory-limit", f"{setup.memory_limit:g}", out="killed")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((setup.out / "killed").rglob("checkpoint.pt")):
        time.sleep(0.2)
    killed = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(_last_line(done))
    return {"killed": killed, "status": _result(setup.out / "killed")["status"], "said": _said(done.stderr)}


def _said(text: str) -> list[str]:
    return [line for line in text.splitlines() if "out of memory" in line]


STEPS: dict[str, Callable[[Setup], dict]] = {
    "one arm": one_arm,
    "step and merge": step_and_merge,
    "against generate": against_generate,
    "updates": updates,
    "graphs": graphs,
    "killed and resumed": killed_and_resumed,
}


def minutes_of_a_paper(found: dict, config: RunConfig) -> float | None:
    """Of one arm with the preset's own settings, from what the steps measured: sampling and updates."""
    rates, updates_ = found["graphs"], found["updates"]
    try:
        rate = rates["128 rows, with stops"]["tokens_per_second"]
        update = updates_["4096 tokens"]["seconds"] / 4096
    except KeyError:
        return None
    tokens = config.steps * config.prompts * config.samples * config.max_new_tokens / 2
    return tokens * (1 / rate + update) / 60


def main(argv: Sequence[str]) -> int:
    """Entry point of ``repro selftest``. Raises ConfigError without a GPU."""
    parser = argparse.ArgumentParser(prog="repro selftest", description=__doc__)
    parser.add_argument("--gpu", action="store_true", required=True, help="test what needs a CUDA device")
    parser.add_argument("--preset", choices=tuple(RunConfig.PRESETS), default="gpu")
    parser.add_argument("--model", help="a folder or a hub id; without it, the preset's")
    parser.add_argument("--task", help="without it, the preset's")
    parser.add_argument("--data", metavar="FOLDER", help="train.jsonl and test.jsonl in place of the hub")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--memory-limit", type=float, default=8, help="GB for the run that is killed")
    parser.add_argument("--steps", nargs="*", choices=tuple(STEPS), default=tuple(STEPS), metavar="STEP")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise ConfigError("selftest --gpu: no GPU was found; PyTorch needs one that CUDA can use")
    chosen = {name: value for name in ("model", "task", "data") if (value := getattr(args, name))}
    config = dataclasses.replace(RunConfig.for_preset(args.preset), **chosen)
    Policy.on = "cuda"
    found: dict = {"machine": machine(torch.device("cuda", torch.cuda.current_device())), "failed": {}}
    found["memory_bytes"] = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(config, Path(folder), args.new_tokens, args.memory_limit)
        for name in args.steps:
            print(f"{name} ...", file=sys.stderr, flush=True)
            found[name] = _tried(STEPS[name], setup, found["failed"], name)
    found["minutes_of_an_arm"] = minutes_of_a_paper({"graphs": {}, "updates": {}} | found, config)
    print(json.dumps(found))
    return 1 if found["failed"] else 0


def _tried(step: Callable[[Setup], dict], setup: Setup, failed: dict, name: str) -> dict:
    began = time.monotonic()
    try:
        return step(setup) | {"seconds_of_the_step": time.monotonic() - began}
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"
        return {}
    finally:
        with contextlib.suppress(RuntimeError):  # after an error of the device itself
            static.forget()
            static.Slots.keep = True
            gc.collect()
            torch.cuda.empty_cache()
