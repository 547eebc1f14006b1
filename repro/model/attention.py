"""Attention without masks that the host makes and looks at: for batches that are padded on the right, and for slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

UNMASKED = "unmasked"
ROPES_BY_LENGTH = {"dynamic", "longrope"}  # their frequencies depend on the longest sequence, which the host reads


def _unmasked(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Causal attention, or with a mask [rows, 1, 1, length] that of one token each to what its slot holds.

    query [rows, heads, tokens, width]; key, value [rows, fewer heads, length, width] -> [rows, tokens, heads, width].
    For one token, the query heads of a group stand in the place of tokens: keys and values aren't repeated.
    """
    if attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, **kwargs)
    rows, heads, _, width = query.shape
    grouped = query.view(rows, key.shape[1], heads // key.shape[1], width)
    out = torch.nn.functional.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return out.view(rows, heads, 1, width).transpose(1, 2), None


AttentionInterface.register(
    UNMASKED, _unmasked
)  # transformers makes no mask for an implementation that it doesn't know


def sees_all(model: PreTrainedModel) -> bool:
    """Whether every layer attends to all tokens before, without a sliding window."""
    config = model.config
    if types := getattr(config, "layer_types", None):
        return set(types) == {"full_attention"}
    return not (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True))


def is_plain(model: PreTrainedModel) -> bool:
    """Whether attention is PyTorch's own, causal and nothing else, at positions that don't depend on the batch."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    return (
        model.config._attn_implementation == "sdpa"
        and sees_all(model)
        and rope.get("rope_type") not in ROPES_BY_LENGTH
        and getattr(model.config, "attn_logit_softcapping", None) is None
    )


@contextmanager
def unmasked(model: PreTrainedModel) -> Iterator[None]:
    """Within the block a plain model makes no masks: padding stands on the right, or the caller gives the mask."""
    before = model.config._attn_implementation
    model.config._attn_implementation = UNMASKED
    try:
        yield
    finally:
        model.config._attn_implementation = before


def upload(values: Sequence[int] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Whole numbers, or a tensor, on the device; the host doesn't wait until they are there."""
    made = values if isinstance(values, torch.Tensor) else torch.tensor(values, dtype=torch.long)
    return made.to(device) if device.type == "cpu" else made.pin_memory().to(device, non_blocking=True)
