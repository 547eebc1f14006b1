"""One optimiser step from a loss on tokens, in micro-batches that give the same gradient as one big batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Literal

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from repro.model.attention import upload
from repro.model.logprobs import (
    TaughtFunction,
    TokenFunction,
    completion_hidden,
    completion_taught,
    completion_values,
    token_logprob,
)
from repro.model.policy import Policy
from repro.model.static import forget


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient isn't a finite number; the policy still has its last good weights."""


Mean = Literal["token", "sequence"] | float | torch.Tensor
TokenLoss = Callable[[torch.Tensor, SimpleNamespace], torch.Tensor]


@dataclass(frozen=True)
class Reading:
    """What is read off the model at each completion token before the loss sees it.

    ``function(logits, targets)``, or with a ``teacher`` (an adapter that reads the batch's ``contexts``)
    ``function(logits, targets, teacher's logits)``. ``temperature`` divides all logits. ``last``: only at the last
    token of each completion, without a teacher.
    """

    function: TokenFunction | TaughtFunction = token_logprob
    temperature: float = 1.0
    teacher: str = ""
    last: bool = False


LOGPROBS = Reading()


def as_they_are(values: torch.Tensor, fields: SimpleNamespace) -> torch.Tensor:
    """The loss that what was read already is."""
    return values


@dataclass
class Batch:
    """Completions with what the loss needs to know of their tokens.

    ``sequences``: (prompt ids, completion ids) pairs. ``fields``: one tensor [tokens] each, in their order.
    ``contexts``: prompts under which a teacher sees the same completions, one for each.
    """

    sequences: list[tuple[Sequence[int], Sequence[int]]]
    fields: dict[str, torch.Tensor] = field(default_factory=dict)
    contexts: list[Sequence[int]] | None = None

    @property
    def lengths(self) -> list[int]:
        """Completion tokens of each sequence."""
        return [len(completion) for _, completion in self.sequences]

    def spread(self, values: Sequence[float] | torch.Tensor) -> torch.Tensor:
        """One value a sequence, repeated over its tokens: [sequences] -> [tokens]."""
        return torch.as_tensor(values, dtype=torch.float32).repeat_interleave(torch.tensor(self.lengths))

    def select(self, rows: Sequence[int]) -> Batch:
        """The sequences ``rows`` in this order, with their tokens' fields."""
        ends = [0, *torch.tensor(self.lengths, dtype=torch.long).cumsum(0).tolist()]
        tokens = torch.cat([torch.arange(ends[r], ends[r + 1]) for r in rows]) if rows else torch.empty(0, dtype=int)
        contexts = None if self.contexts is None else [self.contexts[r] for r in rows]
        fields = {k: v[upload(tokens, v.device)] for k, v in self.fields.items()}
        return Batch([self.sequences[r] for r in rows], fields, contexts)

    def seen_by_teacher(self) -> list[tuple[Sequence[int], Sequence[int]]]:
        """The completions after the teacher's prompts."""
        return [(context, c) for context, (_, c) in zip(self.contexts or [], self.sequences, strict=True)]

    def size(self, row: int) -> int:
        """Tokens of a sequence with the longest of its prompts."""
        prompt, completion = self.sequences[row]
        return max(len(prompt), len(self.contexts[row]) if self.contexts else 0) + len(completion)

    def split(self, parts: int, rng: torch.Generator) -> list[Batch]:
        """Shuffled mini-batches of almost equal numbers of sequences; none is empty."""
        order = torch.randperm(len(self.sequences), generator=rng)
        return [self.select(part.tolist()) for part in order.tensor_split(parts) if len(part)]

    def micro_batches(self, tokens: int, together: int = 1) -> list[list[int]]:
        """Rows in micro-batches of at most ``tokens`` tokens with padding: same prompts together, similar lengths too.

        ``together`` neighbours are never separated (2 for the pairs of a preference loss). One that is too long by
        itself is still a micro-batch.
        """
        units = [range(i, i + together) for i in range(0, len(self.sequences), together)]
        size = [max(map(self.size, unit)) for unit in units]
        prompts = [tuple(self.sequences[unit[0]][0]) for unit in units]
        most: dict[tuple, int] = {}  # of the sequences of a prompt
        for prompt, needed in zip(prompts, size, strict=True):
            most[prompt] = max(needed, most.get(prompt, 0))
        groups: list[list[int]] = []
        longest = 0
        for i in sorted(range(len(units)), key=lambda i: (most[prompts[i]], prompts[i], size[i])):
            longest = max(longest, size[i])
            if not groups or (len(groups[-1]) + together) * longest > tokens:
                groups.append([])
                longest = size[i]
            groups[-1].extend(units[i])
        return groups


def token_weights(lengths: Sequence[int], mean: Mean) -> torch.Tensor:
    """What each token's loss is multiplied with before the sum, [tokens].

    token: the sum becomes the mean over all tokens. sequence: the mean over sequences of their tokens' means. A number:
    the same for all (1 leaves a sum). A tensor [tokens]: as it is.
    """
    length = torch.tensor(lengths, dtype=torch.long)
    if isinstance(mean, torch.Tensor):
        return mean
    if mean == "sequence":
        return (1 / (len(length) * length.float())).repeat_interleave(length)
    return torch.full((int(length.sum()),), 1 / max(1, int(length.sum())) if mean == "token" else mean)


def cosine(done: int, total: int, final: float = 0.0) -> float:
    """Share of the learning rate before update ``done`` of ``total``: from 1 to ``final`` along half a cosine."""
    return final + (1 - final) * (1 + math.cos(math.pi * done / total)) / 2


@contextmanager
def checkpointed_layers(model: nn.Module) -> Iterator[None]:
    """Forward passes within the block keep only the layers' inputs; the backward pass makes the rest again.

    transformers does that in training mode alone. Here only the layers themselves are said to be in it: what is inside
    of them, dropout above all, stays as it is.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})  # nothing is random
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
        for layer in layers:
            layer.training = False


class Trainer:
    """AdamW on the adapter, with warm-up, gradient clipping and micro-batches by token budget."""

    def __init__(
        self,
        policy: Policy,
        learning_rate: float,
        warmup: int = 0,
        max_grad_norm: float = 1.0,
        tokens_per_batch: int = 16_384,
        say: Callable[[str], object] = print,
    ):
        self.policy = policy
        self.learning_rate, self.warmup = learning_rate, warmup
        self.max_grad_norm = max_grad_norm
        self.tokens_per_batch = self.budget = tokens_per_batch
        self.checkpointed = False
        self.say = say  # gets a line when memory runs out
        self.new_optimizer(learning_rate)

    def new_optimizer(self, learning_rate: float | None = None) -> None:
        """Forget moments and warm-up, as at the start of a stage; the learning rate stays unless one is given."""
        self.learning_rate = self.learning_rate if learning_rate is None else learning_rate
        self.optimizer = torch.optim.AdamW(self.policy.parameters, lr=self.learning_rate, weight_decay=0.0)
        self.steps = 0

    def values(self, batch: Batch, reading: Reading = LOGPROBS) -> torch.Tensor:
        """What is read at every completion token under the active adapter, no gradient, [tokens] or [tokens, k].

        ``reading.last``: one for each sequence.
        """
        pieces: dict[int, torch.Tensor] = {}
        with torch.no_grad():
            for rows in batch.micro_batches(self.tokens_per_batch):
                part = batch.select(rows)
                lengths = [1] * len(rows) if reading.last else part.lengths
                pieces.update(zip(rows, self._forward(part, reading).split(lengths), strict=True))
        return torch.cat([pieces[r] for r in range(len(batch.sequences))])

    def _forward(self, batch: Batch, reading: Reading) -> torch.Tensor:
        """On a GPU products with the float32 adapters are in the base's bfloat16: half of what they would keep."""
        half = self.policy.model.get_input_embeddings().weight.dtype == torch.bfloat16
        with torch.autocast("cuda", torch.bfloat16, enabled=half and self.policy.device.type == "cuda"):
            return self._read(batch, reading)

    def _read(self, batch: Batch, reading: Reading) -> torch.Tensor:
        model, pad_id = self.policy.model.get_base_model(), self.policy.tokenizer.pad_token_id
        if not reading.teacher:
            function, temperature = reading.function, reading.temperature
            return completion_values(model, batch.sequences, function, temperature, pad_id, reading.last)
        with torch.no_grad(), self.policy.using(reading.teacher):
            teacher, _ = completion_hidden(model, batch.seen_by_teacher(), pad_id)
        return completion_taught(model, batch.sequences, teacher, reading.function, reading.temperature, pad_id)

    def step(
        self,
        batch: Batch,
        loss: TokenLoss,
        reading: Reading = LOGPROBS,
        mean: Mean = "token",
        together: int = 1,
    ) -> dict[str, float]:
        """One optimiser step on ``loss(values, fields)``, averaged over the batch as ``mean`` says.

        ``values`` are what is read at the completion tokens of a micro-batch, ``fields`` the batch's fields for the
        same tokens, with ``row``, the number of each token's sequence in the micro-batch, and ``weight``, its share in
        the mean, added. A loss of one value a token is multiplied with that share. One of any other shape (a
        preference, one value a pair) is summed as it is. The mean is over the whole batch: micro-batches don't change
        the result. When memory runs out the micro-batch is halved and the step begins anew; when the longest sequence
        alone is too much, the layers' activations are made again in the backward pass. Raises NonFiniteLoss before any
        update.
        """
        batch = Batch(batch.sequences, batch.fields | {"weight": token_weights(batch.lengths, mean)}, batch.contexts)
        while True:
            try:
                total = self._accumulate(batch, loss, reading, together)
                break
            except torch.OutOfMemoryError:
                longest = max(map(batch.size, range(len(batch.sequences)))) * together
                if forget():
                    self.say("out of memory: from now on the sampler gives its slots back after each rollout")
                elif self.tokens_per_batch > longest:
                    self.tokens_per_batch = max(self.tokens_per_batch // 2, longest)
                elif not self.checkpointed:
                    self.tokens_per_batch, self.checkpointed = self.budget, True
                else:
                    raise
                how = ", activations made twice" if self.checkpointed else ""
                self.say(f"out of memory: going on with micro-batches of {self.tokens_per_batch} tokens{how}")
            torch.cuda.empty_cache()  # behind the exception, which holds the tensors of its frames
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters, self.max_grad_norm).item()
        if not (math.isfinite(total) and math.isfinite(norm)):
            self.optimizer.zero_grad()
            raise NonFiniteLoss(f"loss {total}, gradient norm {norm} at optimiser step {self.steps}")
        self.steps += 1
        rate = self.learning_rate * min(1.0, self.steps / (self.warmup + 1))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": total, "grad_norm": norm}

    def _accumulate(self, batch: Batch, loss: TokenLoss, reading: Reading, together: int) -> float:
        self.optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64, device=self.policy.device)  # read once: the host runs ahead
        for rows in batch.micro_batches(self.tokens_per_batch, together):
            part = batch.select(rows)
            with checkpointed_layers(self.policy.model) if self.checkpointed else nullcontext():
                values = self._forward(part, reading)
            fields = {k: v if v.is_cuda else upload(v, values.device) for k, v in part.fields.items()}
            row = upload(torch.arange(len(rows)).repeat_interleave(torch.tensor(part.lengths)), values.device)
            losses = loss(values, SimpleNamespace(row=row, **fields))
            result = (losses * fields["weight"] if losses.shape == row.shape else losses).sum()
            result.backward()
            total += result.detach()
        return total.item()

    def state(self) -> dict:
        """What a checkpoint keeps."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "tokens": self.tokens_per_batch,
            "checkpointed": self.checkpointed,
            "learning_rate": self.learning_rate,
        }

    def load_state(self, state: dict) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.tokens_per_batch = state["steps"], state["tokens"]
        self.learning_rate, self.checkpointed = state["learning_rate"], state["checkpointed"]
