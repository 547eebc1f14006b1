"""Keys and values of completions under way, in buffers made once: appending to a growing cache costs most of a step."""

from __future__ import annotations

import torch
from transformers.cache_utils import CacheLayerMixin


class RoomyLayer(CacheLayerMixin):
    """The cache of one layer, with room for ``room`` more tokens and for ``most`` rows.

    keys, values [rows, heads, length, width] are those of the prompts.
    """

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, most: int, room: int):
        super().__init__()
        self.length, self.room = keys.shape[2], keys.shape[2] + room
        self.keys, self.values = (self._roomy(t, most, room) for t in (keys, values))
        self.is_initialized = True

    @staticmethod
    def _roomy(prefix: torch.Tensor, most: int, room: int) -> torch.Tensor:
        rows, heads, length, width = prefix.shape
        buffer = prefix.new_empty(most, heads, length + room, width)
        buffer[:rows, :, :length] = prefix
        return buffer

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append tokens [rows, heads, tokens, width] to the first rows; the keys and values of these rows."""
        rows, begin, self.length = len(key_states), self.length, self.length + key_states.shape[2]
        self.keys[:rows, :, begin : self.length] = key_states
        self.values[:rows, :, begin : self.length] = value_states
        return self.keys[:rows, :, : self.length], self.values[:rows, :, : self.length]

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Rows ``target`` become what rows ``source`` are."""
        for buffer in (self.keys, self.values):
            buffer[target, :, : self.length] = buffer[source, :, : self.length]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the buffers exist from the start."""

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return self.room


class SlotLayer(CacheLayerMixin):
    """The cache of one layer for slots that are at different lengths: each token goes to where its slot stands.

    keys, values [slots, heads, room, width]; ``at`` [slots], shared by all layers: where a slot's next token goes.
    ``seen``: positions that are looked at, of which a mask hides those behind ``at``.
    """

    is_sliding = False

    def __init__(self, like: torch.Tensor, at: torch.Tensor, heads: int, room: int, width: int):
        super().__init__()
        self.keys, self.values = (like.new_zeros(len(at), heads, room, width) for _ in range(2))
        self.at, self.slot, self.seen = at, torch.arange(len(at), device=at.device), room
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Write one token each [rows, heads, 1, width] into the first slots; what these slots hold."""
        rows = len(key_states)
        slot, at = self.slot[:rows], self.at[:rows]
        self.keys[slot, :, at] = key_states[:, :, 0]
        self.values[slot, :, at] = value_states[:, :, 0]
        return self.keys[:rows, :, : self.seen], self.values[:rows, :, : self.seen]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the buffers exist from the start."""

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen, 0

    def get_max_length(self) -> int:
        return self.keys.shape[2]
