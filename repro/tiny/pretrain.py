"""Make the tiny model from nothing: ``python -m repro.tiny.pretrain``.

Trains a Qwen2-architecture network on ``repro.tiny.corpus`` with the loss on assistant tokens only, and writes weights
(bf16), tokenizer and configuration. Goes on from its checkpoint after an interruption. Two processes of one thread
each, with documents of their own and shared gradients, are nearly twice as fast as one:
``OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m repro.tiny.pretrain``. With ``--weights FOLDER`` it begins at these
weights and with documents of every role: what a change of the corpus needs.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from repro.tiny import MODEL
from repro.tiny.corpus import LATE, Document, documents
from repro.tiny.tokenizer import ASSISTANT, make_tokenizer

STEPS, WARM_UP, DECAY = 9700, 60, 2500  # linear warm-up and linear decay to zero
LEARNING_RATE, TOKENS_PER_BATCH, LONGEST = 3e-3, 2048, 640
BF16 = torch.cpu.get_capabilities().get("avx512_bf16", False)  # half again as fast where the CPU has such products


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A random Qwen2 network of about 1.1 M parameters with tied embeddings."""
    config = Qwen2Config(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def loss_mask(ids: torch.Tensor, assistant: int, end: int) -> torch.Tensor:
    """True on the tokens of assistant turns, the end token included. ids, result: [rows, length]."""
    place = torch.arange(ids.shape[1]).expand_as(ids)
    opened = torch.where(ids == assistant, place, -1).cummax(1).values
    closed = torch.where(ids == end, place, -1).cummax(1).values
    inside = opened > closed
    return torch.cat([torch.zeros_like(inside[:, :1]), inside[:, :-1]], dim=1)


def encode(tokenizer: PreTrainedTokenizerFast, batch: Sequence[Document]) -> list[tuple[list[int], int, int]]:
    """Of each document its ids, and where what its last turn begins with starts and ends (not learnt)."""
    rows = []
    texts = [tokenizer.apply_chat_template(d.chat, tokenize=False) for d in batch]
    for document, ids in zip(batch, tokenizer(texts).input_ids, strict=True):
        last = len(tokenizer(document.chat[-1]["content"]).input_ids) + 1 if document.given else 0
        start = len(ids) - last
        rows.append((ids, start, start + len(tokenizer(document.given).input_ids)))
    return rows


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, written: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Right-padded ids [rows, length] of about TOKENS_PER_BATCH tokens, alike in length, and their loss mask."""
    stream = documents(seed, written)
    rng = torch.Generator().manual_seed(seed)
    assistant, end = tokenizer.convert_tokens_to_ids(ASSISTANT), tokenizer.eos_token_id
    while True:
        rows = encode(tokenizer, list(itertools.islice(stream, 4096)))
        rows = sorted((row for row in rows if len(row[0]) <= LONGEST), key=lambda row: len(row[0]))
        pool, batch = [], []
        for row in rows:
            if (len(batch) + 1) * len(row[0]) > TOKENS_PER_BATCH:
                pool.append(batch)
                batch = []
            batch.append(row)
        for i in torch.randperm(len(pool), generator=rng).tolist():
            ids = torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(row[0]) for row in pool[i]], batch_first=True, padding_value=tokenizer.pad_token_id
            )
            mask = loss_mask(ids, assistant, end)
            for m, (_, start, stop) in zip(mask, pool[i], strict=True):
                m[start:stop] = False
            yield ids, mask


def batch_loss(model: Qwen2ForCausalLM, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the tokens of ``mask``."""
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    wanted = mask[:, 1:]
    return F.cross_entropy(model.lm_head(hidden[wanted]).float(), ids[:, 1:][wanted])


def make_optimizers(model: Qwen2ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings, biases and norms; without bf16 products, which Muon needs, AdamW."""
    if not BF16:
        return [torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, betas=(0.9, 0.95))]
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=LEARNING_RATE, weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def share_gradients(model: Qwen2ForCausalLM) -> None:
    """The mean gradient of all processes, if there are several."""
    if dist.is_initialized():
        gradients = [p.grad for p in model.parameters()]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient) / dist.get_world_size())


def train(steps: int, seed: int, checkpoint: Path, weights: Path | None = None) -> Qwen2ForCausalLM:
    """Train from nothing, from ``weights``, or from ``checkpoint`` where it exists (saved every 100 steps; new
    documents follow)."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    model = Qwen2ForCausalLM.from_pretrained(weights, dtype=torch.float32) if weights else make_model(tokenizer)
    model.set_attn_implementation("eager")  # faster than sdpa at this size
    optimizers = make_optimizers(model)
    start, written = 0, LATE if weights else 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        start, written = state["step"], state["written"]
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    began, losses, tokens = time.monotonic(), [], 0
    rank = dist.get_rank() if dist.is_initialized() else 0
    for step, (ids, mask) in zip(range(start, steps), batches(tokenizer, 1000 * rank + seed, written), strict=False):
        written += len(ids)
        rate = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP, (steps - step) / DECAY)
        for group in itertools.chain(*(o.param_groups for o in optimizers)):
            group["lr"] = rate
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=BF16):
            loss = batch_loss(model, ids, mask)
        model.zero_grad()
        loss.backward()
        share_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
        tokens += ids.numel()
        if (step + 1) % 100 == 0 and rank == 0:
            seconds = time.monotonic() - began
            mean = sum(losses[-100:]) / len(losses[-100:])
            print(f"step {step + 1}/{steps}  loss {mean:.4f}  {tokens / seconds:.0f} tokens/s", flush=True)
            optimizer_states = [o.state_dict() for o in optimizers]
            saved = {"step": step + 1, "written": written, "model": model.state_dict(), "optimizers": optimizer_states}
            torch.save(saved, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="folder of weights to begin from")
    parser.add_argument("--out", type=Path, default=MODEL, help="folder for weights, tokenizer and configuration")
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/tiny-pretraining.pt"))
    args = parser.parse_args()
    args.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    model = train(args.steps, args.seed, args.checkpoint, args.weights).to(torch.bfloat16)
    if os.environ.get("RANK", "0") != "0":
        return
    tokenizer = make_tokenizer()
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
