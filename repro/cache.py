"""Keys and values of completions under way, in buffers made once: appending to a growing cache costs most of a step.

Two forms. ``RoomyLayer`` is what the model's own attention reads, on any device. ``SharedPrefixLayer`` also is the
attention: a CPU reads a prompt's keys once for all its samples, and the others in long runs over the rows, 4 times as
fast as ``scaled_dot_product_attention`` with one query a row (256 rows, 5 heads of 32, 20 + 64 tokens, one thread).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

SHARED_PREFIX = "shared_prefix"
PLAIN_ATTENTION = ("llama", "qwen2", "qwen3", "mistral", "smollm3")  # softmax(q k / sqrt(d)) v and nothing else


class _Layer(CacheLayerMixin):
    """What transformers wants to know of a layer's cache that has a fixed room."""

    is_sliding = False

    def __init__(self, length: int, room: int):
        super().__init__()
        self.length, self.room = length, room
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the buffers exist from the start."""

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return self.room


class RoomyLayer(_Layer):
    """keys, values [prompts, heads, length, width] of the prompts, copied for each of their samples, with room."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, samples: int, room: int):
        length = keys.shape[2]
        super().__init__(length, length + room)
        self.keys, self.values = (self._roomy(t, samples, room) for t in (keys, values))

    @staticmethod
    def _roomy(prefix: torch.Tensor, samples: int, room: int) -> torch.Tensor:
        prompts, heads, length, width = prefix.shape
        buffer = prefix.new_empty(prompts * samples, heads, length + room, width)
        buffer[:, :, :length] = prefix.repeat_interleave(samples, 0)
        return buffer

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, rows: torch.Tensor) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]


@dataclass
class Slots:
    """Where rows stand among all samples of all prompts, the same for every layer.

    bias [prompts, 1, 1, length]: 0 at a prompt's tokens, -inf at its padding. rows [rows]: prompt * samples + sample.
    """

    samples: int
    bias: torch.Tensor
    rows: torch.Tensor

    def spread(self, per_row: torch.Tensor) -> torch.Tensor:
        """[rows, heads, n, width] -> [prompts, heads, samples * n, width]; samples that have ended are zeros."""
        _, heads, n, width = per_row.shape
        prompts = len(self.bias)
        if len(self.rows) < prompts * self.samples:
            whole = per_row.new_zeros(prompts * self.samples, heads, n, width)
            per_row = whole.index_copy_(0, self.rows, per_row)
        split = per_row.reshape(prompts, self.samples, heads, n, width)
        return split.transpose(1, 2).reshape(prompts, heads, self.samples * n, width)

    def gather(self, per_prompt: torch.Tensor, n: int) -> torch.Tensor:
        """[prompts, heads, samples * n, width] -> [rows, heads, n, width]: the reverse of ``spread``."""
        prompts, heads, _, width = per_prompt.shape
        split = per_prompt.reshape(prompts, heads, self.samples, n, width).transpose(1, 2)
        whole = split.reshape(prompts * self.samples, heads, n, width)
        return whole if len(self.rows) == len(whole) else whole[self.rows]


class SharedPrefixLayer(_Layer):
    """A prompt's keys and values once for all its samples, those of new tokens as [tokens, rows, heads, width]."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, slots: Slots, room: int):
        super().__init__(keys.shape[2], keys.shape[2] + room)
        self.slots, self.count = slots, 0
        self.prefix_keys, self.prefix_values = keys, values
        shape = room, len(slots.rows), keys.shape[1], keys.shape[3]
        self.keys, self.values = keys.new_empty(shape), values.new_empty(shape)
        self.exact = torch.promote_types(keys.dtype, torch.float32)
        self.products = torch.empty(shape, dtype=self.exact)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        self.keys[self.count], self.values[self.count] = key_states[:, :, 0], value_states[:, :, 0]
        self.count += 1
        self.length += 1
        return self, self  # as key and value of ``_attention``

    def attend(self, query: torch.Tensor, scaling: float) -> torch.Tensor:
        """query [rows, query heads, 1, width] -> [rows, 1, query heads, width]; sums are made in float32 or better."""
        rows, heads, _, width = query.shape
        groups = heads // self.keys.shape[2]
        query = (query * scaling).reshape(rows, -1, groups, width)
        prefix = self.slots.spread(query) @ self.prefix_keys.transpose(-1, -2)
        scores = [self.slots.gather(prefix + self.slots.bias, groups).to(self.exact)]
        keys, values = self.keys[: self.count], self.values[: self.count]
        products = self.products[: self.count, :rows]
        new = [torch.mul(keys, query[:, :, g].to(self.exact), out=products).sum(-1) for g in range(groups)]
        scores.append(torch.stack(new, -1).permute(1, 2, 3, 0))
        weights = torch.cat(scores, -1).softmax(-1)  # [rows, heads, groups, tokens]
        length = prefix.shape[-1]
        before = self.slots.spread(weights[..., :length].to(query.dtype)) @ self.prefix_values
        after = weights[..., length:].permute(3, 0, 1, 2)
        new = [torch.mul(values, after[..., g, None], out=products).sum(0) for g in range(groups)]
        out = self.slots.gather(before, groups).to(self.exact) + torch.stack(new, 2)
        return out.to(query.dtype).reshape(rows, 1, heads, width)

    def keep(self, rows: torch.Tensor) -> None:
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.products = self.products[:, : len(rows)].contiguous()


def _attention(module, query, key: SharedPrefixLayer, value, attention_mask, scaling: float, **kwargs):
    return key.attend(query, scaling), None


AttentionInterface.register(SHARED_PREFIX, _attention)


def sees_all(model: PreTrainedModel) -> bool:
    """Whether every layer attends to all tokens before, without a sliding window."""
    config = model.config
    if types := getattr(config, "layer_types", None):
        return set(types) == {"full_attention"}
    return not (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True))


def shares_prefix(model: PreTrainedModel) -> bool:
    """Whether ``SharedPrefixLayer`` serves this model: on a CPU, with plain attention to all tokens before."""
    exact = model.dtype in (torch.float32, torch.float64)  # in bfloat16 the products take longer than the attention
    return exact and model.device.type == "cpu" and model.config.model_type in PLAIN_ATTENTION and sees_all(model)


@contextmanager
def attention_of_cache(model: PreTrainedModel) -> Iterator[None]:
    """Within the block the model's attention is that of its cache's ``SharedPrefixLayer``."""
    before = model.config._attn_implementation
    model.config._attn_implementation = SHARED_PREFIX
    try:
        yield
    finally:
        model.config._attn_implementation = before
