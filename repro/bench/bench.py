"""Speed and memory of sampling and training, each as a ratio to a plain baseline in the same run.

Sampling: tokens/s against ``model.generate`` of the same model with the same prompts, rows and lengths. Training: one
GRPO-style update against a plain transformers + PEFT loop with whole logits. Both beside the ceiling of the machine,
from a memory bandwidth and a matrix-product rate that are measured on the spot.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace

import psutil
import torch

from repro.bench.plan import GIB, describe, plan
from repro.config import RunConfig
from repro.launch.record import machine
from repro.methods.grpo import GRPO, grpo_loss
from repro.model.logprobs import pad
from repro.model.policy import Policy, give_back_memory
from repro.model.sampling import Decoding, sample
from repro.model.training import Batch, Trainer
from repro.tasks import prompts as roles
from repro.tasks.loading import load

SETTINGS = ("model", "task", "data", "quantization", "dtype", "tokens_per_batch")  # of the run, as options


class PeakMemory:
    """Bytes that a block needs at most above what is in use when it begins: GPU memory, or the process's (sampled)."""

    def __init__(self, device: torch.device):
        self.device = device
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return self
        give_back_memory()
        self.process = psutil.Process()
        self.before = self.process.memory_info().rss
        self.over = threading.Event()
        self.watch = threading.Thread(target=self._watch)
        self.watch.start()
        return self

    def _watch(self) -> None:
        while not self.over.wait(0.002):
            self.bytes = max(self.bytes, self.process.memory_info().rss - self.before)

    def __exit__(self, *error) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated() - self.before
        else:
            self.over.set()
            self.watch.join()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the GPU's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def bandwidth(device: torch.device) -> float:
    """Bytes/s that are read when a large tensor is summed."""
    size = 2**30 if device.type == "cuda" else 2**28
    data = torch.ones(size // 4, device=device)
    return size / min(seconds(lambda: data.sum().item(), device) for _ in range(5))


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / min(seconds(lambda: a @ a, device) for _ in range(5))


# --- sampling ---------------------------------------------------------------------------------------------------------


def bench_sampling(policy: Policy, config: RunConfig, prompts: int, samples: int, new_tokens: int, runs: int) -> dict:
    """Tokens/s of the sampler and of ``generate``, medians of alternating runs, all completions of full length; and the
    ratio where they end at stop tokens, as they do in use."""
    problems = load(config.task, "train", prompts, 0, config.data)
    encoded = [policy.encode(roles.solve(p)) for p in problems]
    fast, slow = sampling_rates(policy, encoded, samples, new_tokens, [], runs)
    fast_stopping, slow_stopping = sampling_rates(policy, encoded, samples, new_tokens, policy.stop_ids, runs)
    ceiling = sampling_ceiling(policy.sampler(), prompts * samples, max(map(len, encoded)), new_tokens)
    return {
        "sampling_tokens_per_second": fast,
        "generate_tokens_per_second": slow,
        "sampling_ratio": fast / slow,
        "sampling_ratio_with_stops": fast_stopping / slow_stopping,
        "sampling_share_of_ceiling": fast / ceiling,
    }


def sampling_rates(
    policy: Policy, prompts: list[list[int]], samples: int, new_tokens: int, stop: list[int], runs: int
) -> tuple[float, float]:
    """Completion tokens/s of the sampler and of ``generate``; without ``stop`` tokens no completion ends early."""
    model, tokenizer, device = policy.sampler(), policy.tokenizer, policy.device
    ids, mask = pad(prompts, tokenizer.pad_token_id, device)
    generator = torch.Generator(device).manual_seed(0)
    decoding = Decoding(max_new_tokens=new_tokens)
    rows = len(prompts) * samples
    made: list[int] = []

    def ours() -> None:
        groups = sample(model, tokenizer, prompts, samples, decoding, stop, generator, rows)
        made.append(sum(len(c.ids) for group in groups for c in group))

    @torch.inference_mode()
    def theirs() -> None:
        out = model.generate(
            input_ids=ids,
            attention_mask=mask.long(),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=samples,
            max_new_tokens=new_tokens,
            min_new_tokens=0 if stop else new_tokens,
            eos_token_id=policy.stop_ids,
            pad_token_id=tokenizer.pad_token_id,
        )[:, ids.shape[1] :]
        ends = torch.isin(out, torch.tensor(stop, device=device, dtype=out.dtype)).long()
        made.append(int((ends.cumsum(1) - ends == 0).sum()))

    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for name, work in (("ours", ours), ("theirs", theirs)) * (runs + 1):  # the first of each only warms up
        time_ = seconds(work, device)
        rates[name].append(made[-1] / time_)
    return statistics.median(rates["ours"][1:]), statistics.median(rates["theirs"][1:])


def sampling_ceiling(model, rows: int, prompt: int, new_tokens: int) -> float:
    """Tokens/s if each step only read the weights and the cache once, or only did the products: the slower of both."""
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = next(model.parameters()).element_size()
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * head * size * (prompt + new_tokens / 2)
    weights = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    reading = rows * bandwidth(device) / (weights * size + rows * cache)
    return min(reading, matmul_rate(device, dtype) / (2 * weights))


# --- training ---------------------------------------------------------------------------------------------------------


def training_batch(policy: Policy, sequences: int, length: int, samples: int) -> Batch:
    """Random completions, ``samples`` after each short prompt, with what GRPO's loss wants to know of them."""
    generator = torch.Generator().manual_seed(0)
    prompt = 32
    words = torch.randint(10, len(policy.tokenizer) - 1, (sequences, length), generator=generator).tolist()
    batch = Batch([(words[i - i % samples][:prompt], row[prompt:]) for i, row in enumerate(words)])
    tokens = sum(batch.lengths)
    batch.fields["old_logp"] = torch.full((tokens,), -5.0)
    batch.fields["advantage"] = batch.spread([(-1.0) ** i for i in range(sequences)])
    batch.fields["weight"] = torch.full((tokens,), 1 / tokens)
    return batch


def plain_loss(policy: Policy, batch: Batch) -> torch.Tensor:
    """The loss of a plain loop: all sequences at once, whole logits, then those of the completion tokens."""
    device = policy.device
    ids, mask = pad([[*p, *c] for p, c in batch.sequences], policy.tokenizer.pad_token_id, device)
    logits = policy.model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    logp = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    place = torch.arange(ids.shape[1] - 1, device=device)
    wanted = torch.stack([place >= ids.shape[1] - 1 - n for n in batch.lengths])
    fields = SimpleNamespace(**{name: value.to(device) for name, value in batch.fields.items()})
    return (grpo_loss(logp[wanted], fields, GRPO()) * fields.weight).sum()


def plain_update(policy: Policy, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    plain_loss(policy, batch).backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()


def measure_update(config: RunConfig, mode: str, sequences: int, length: int, samples: int) -> dict:
    """Peak memory of a first update above the loaded model, and seconds of a second one, in this process."""
    policy = Policy(config)
    trainer = Trainer(policy, 1e-4, tokens_per_batch=config.tokens_per_batch)
    batch = training_batch(policy, sequences, length, samples)
    if mode == "ours":
        work = partial(trainer.step, batch, partial(grpo_loss, settings=GRPO()))
    else:
        work = partial(plain_update, policy, trainer.optimizer, batch)
    with PeakMemory(policy.device) as peak:
        work()
    return {"seconds": seconds(work, policy.device), "bytes": peak.bytes}


def bench_training(words: Sequence[str], sequences: int, length: int, runs: int) -> dict:
    """One update in processes of its own, ours and the plain loop's in turn: medians of time and memory.

    None for what an update that ran out of memory would have said. Raises RuntimeError for any other failure.
    """
    found: dict[str, list[dict]] = {"ours": [], "plain": []}
    for mode in ("ours", "plain") * runs:
        command = [sys.executable, "-m", "repro.bench.bench", "--update", mode, *words]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            found[mode].append(json.loads(done.stdout.splitlines()[-1]))
            continue
        reason = (done.stderr.strip() or "killed").splitlines()[-1]
        if "OutOfMemoryError" not in reason and done.returncode > 0:
            raise RuntimeError(f"the {mode} update failed: {reason}")
    middle = {
        (mode, key): statistics.median(row[key] for row in rows) if rows else None
        for mode, rows in found.items()
        for key in ("seconds", "bytes")
    }

    def ratio(key: str) -> float | None:
        both = [middle[mode, key] for mode in ("ours", "plain")]
        return None if None in both else both[0] / max(1e-9, both[1])

    seconds_ = middle["ours", "seconds"]
    return {
        "training_tokens_per_second": None if seconds_ is None else sequences * length / seconds_,
        "training_memory_bytes": middle["ours", "bytes"],
        "plain_memory_bytes": middle["plain", "bytes"],
        "training_time_ratio": ratio("seconds"),
        "training_memory_ratio": ratio("bytes"),
    }


# --- the command ------------------------------------------------------------------------------------------------------


def sampling_card(found: dict) -> str:
    """Machine and sampling, as lines to read."""
    return (
        f"{found['model']} on {found['device']}, {found['threads']} threads, {found['quantization']}\n"
        f"sampling  {found['rows']} rows x {found['new_tokens']} tokens: "
        f"{found['sampling_tokens_per_second']:,.0f} tokens/s, {found['sampling_ratio']:.1f} times generate's "
        f"{found['generate_tokens_per_second']:,.0f}, {found['sampling_share_of_ceiling']:.0%} of the ceiling; "
        f"{found['sampling_ratio_with_stops']:.1f} times where completions stop"
    )


def training_card(found: dict) -> str:
    """Training, as a line to read."""
    line = f"training  {found['sequences']} x {found['length']} tokens, {found['samples']} of a prompt: "
    if found["training_tokens_per_second"] is None:
        return line + "out of memory"
    line += f"{found['training_tokens_per_second']:,.0f} tokens/s, {found['training_memory_bytes'] / 1e9:.2f} GB; "
    if found["plain_memory_bytes"] is None:
        return line + "the plain loop: out of memory"
    return (
        line + f"{found['training_time_ratio']:.2f} of the plain loop's time, {found['training_memory_ratio']:.2f} of "
        f"its {found['plain_memory_bytes'] / 1e9:.2f} GB"
    )


def main(argv: Sequence[str]) -> int:
    """Entry point of ``repro bench``."""
    parser = argparse.ArgumentParser(prog="repro bench", description=__doc__)
    parser.add_argument("--preset", choices=tuple(RunConfig.PRESETS), default="tiny")
    parser.add_argument("--model", help="tiny, smol, a folder or a hub id; without it, the preset's")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--task", help="whose problems are the prompts; without it, the preset's")
    parser.add_argument("--data", metavar="FOLDER", help="train.jsonl and test.jsonl in place of the hub")
    parser.add_argument("--quantization", choices=("none", "nf4"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8, help="completions per prompt, side by side")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=8, help="of the training step")
    parser.add_argument("--length", type=int, default=512, help="tokens of each")
    parser.add_argument("--tokens-per-batch", type=int, default=1024, help="micro-batch of our training step")
    parser.add_argument("--runs", type=int, default=3, help="alternating runs; medians are reported")
    parser.add_argument(
        "--plan", metavar="MODEL", help="measure nothing: say from the shapes what fits, with the gpu preset"
    )
    parser.add_argument("--memory", type=float, default=24, help="GB of the card that --plan is for")
    parser.add_argument("--update", choices=("ours", "plain"), help="measure one training update in this process only")
    args = parser.parse_args(argv)
    if args.plan:
        args.preset, args.model = "gpu", args.plan
    config = RunConfig.for_preset(args.preset)
    chosen = {name: getattr(args, name) for name in SETTINGS}
    config = dataclasses.replace(config, **{name: value for name, value in chosen.items() if value})
    Policy.on = args.device
    if args.plan:
        text, numbers = describe(config, plan(config), args.memory * GIB)
        print(text, json.dumps(numbers), sep="\n")
        return 0
    if args.update:
        print(json.dumps(measure_update(config, args.update, args.sequences, args.length, args.samples)))
        return 0
    policy = Policy(config)
    found = {
        "model": config.model,
        "quantization": f"{config.quantization} {config.dtype}",
        "device": machine(policy.device)["device"],
        "threads": torch.get_num_threads(),
        "rows": args.prompts * args.samples,
        "new_tokens": args.new_tokens,
        "sequences": args.sequences,
        "samples": args.samples,
        "length": args.length,
        **bench_sampling(policy, config, args.prompts, args.samples, args.new_tokens, args.runs),
    }
    print(sampling_card(found), flush=True)
    del policy
    gc.collect()
    torch.cuda.empty_cache()  # the updates are measured in processes of their own
    words = ["--preset", args.preset, "--device", args.device]
    words += [f"--{name}={getattr(args, name)}" for name in ("sequences", "length", "samples")]
    for name in SETTINGS:
        if (value := getattr(config, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    found |= bench_training(words, args.sequences, args.length, args.runs)
    print(training_card(found))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
