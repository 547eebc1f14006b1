"""Per-token quantities over a large vocabulary, in chunks: log-probs, entropies, anything made from logits.

The logits of 8,192 tokens at a vocabulary of 152 k take 15-20 GB if they are made at once. Here only the hidden states
of the wanted tokens pass the head, some at a time, and their logits are made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

CHUNK_ELEMENTS = 2**25  # logits at once: 128 MiB in float32
TokenFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def token_logprob(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log p(target). logits [tokens, vocabulary], targets [tokens] -> [tokens]."""
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)


def token_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of the next-token distribution. logits [tokens, vocabulary] -> [tokens]; targets are not used."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def logprob_and_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Both of the above, [tokens, 2]."""
    return torch.stack([token_logprob(logits, targets), token_entropy(logits, targets)], -1)


def per_token(
    hidden: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    targets: torch.Tensor,
    function: TokenFunction = token_logprob,
    chunk: int = 1024,
) -> torch.Tensor:
    """``function(logits, targets)`` for all tokens, never holding more than ``chunk`` rows of logits.

    hidden [tokens, width], targets [tokens]; head maps hidden states to float32 logits. Where gradients are wanted the
    logits of a chunk are made again in the backward pass.
    """

    def run(h: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return function(head(h), t)

    grad = torch.is_grad_enabled() and hidden.requires_grad
    pieces = [
        checkpoint(run, h, t, use_reentrant=False) if grad else run(h, t)
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(pieces)


def lm_head(model: PreTrainedModel, temperature: float = 1.0) -> Callable[[torch.Tensor], torch.Tensor]:
    """Hidden states to logits / temperature in float32 (float64 stays), soft-capped where the model is."""
    head: nn.Module = model.get_output_embeddings()
    cap = getattr(model.config, "final_logit_softcapping", None)

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        out = head(hidden)
        out = out if out.dtype == torch.float64 else out.float()
        if cap is not None:
            out = cap * torch.tanh(out / cap)
        return out / temperature

    return logits


def pad(sequences: Sequence[Sequence[int]], fill: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded ids and their mask, both [rows, longest]."""
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), fill, dtype=torch.long)
    mask = torch.zeros((len(sequences), longest), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = torch.tensor(sequence, dtype=torch.long)
        mask[row, longest - len(sequence) :] = True
    return ids.to(device), mask.to(device)


def completion_values(
    model: PreTrainedModel,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    function: TokenFunction = token_logprob,
    temperature: float = 1.0,
    pad_id: int = 0,
) -> torch.Tensor:
    """``function`` at every completion token of ``(prompt ids, completion ids)`` pairs, concatenated in order.

    The logits at a position are those that predict its token. Prompt and padding never reach the head. The model is a
    causal language model of transformers, without a PEFT wrapper around it (``PeftModel.get_base_model()``).
    """
    device = model.get_input_embeddings().weight.device
    ids, mask = pad([[*prompt, *completion] for prompt, completion in sequences], pad_id, device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    hidden = model.get_decoder()(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state
    lengths = torch.tensor([len(completion) for _, completion in sequences], device=device)
    place = torch.arange(ids.shape[1], device=device)[None, :]
    wanted = place >= ids.shape[1] - lengths[:, None]
    before = wanted.roll(-1, dims=1)
    before[:, -1] = False
    vocabulary = model.get_output_embeddings().weight.shape[0]
    chunk = max(1, CHUNK_ELEMENTS // vocabulary)
    return per_token(hidden[before], lm_head(model, temperature), ids[wanted], function, chunk)
