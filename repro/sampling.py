"""Prompts in, completions out: a prompt is computed once for all its samples, finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from repro.logprobs import lm_head, pad


@dataclass(frozen=True)
class Completion:
    """One sampled answer. ``ids`` holds the stop token where there was one; ``truncated`` means there was none.

    ``logprobs`` are those of the sampling temperature before top-k and top-p, one per id.
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    truncated: bool

    @property
    def answer(self) -> tuple[int, ...]:
        """The ids without the stop token."""
        return self.ids if self.truncated else self.ids[:-1]

    @property
    def written(self) -> tuple[int, ...]:
        """Prompt and answer: what another completion can go on from."""
        return (*self.prompt, *self.answer)


@dataclass(frozen=True)
class Decoding:
    """How to sample. temperature 0 is greedy; top_k 0 and top_p 1 are off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256


class _Layer(CacheLayerMixin):
    """Keys and values of one layer in buffers made once: appending to a growing cache costs most of a decoding step."""

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, rows: torch.Tensor, room: int):
        super().__init__()
        self.length = keys.shape[2]
        self.keys, self.values = (self._roomy(t, rows, room) for t in (keys, values))
        self.is_initialized = True

    @staticmethod
    def _roomy(prefix: torch.Tensor, rows: torch.Tensor, room: int) -> torch.Tensor:
        buffer = prefix.new_empty(len(rows), prefix.shape[1], prefix.shape[2] + room, prefix.shape[3])
        buffer[:, :, : prefix.shape[2]] = prefix[rows]
        return buffer

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the buffers exist from the start."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return self.keys.shape[2]

    def keep(self, rows: torch.Tensor) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]


def choose(logits: torch.Tensor, decoding: Decoding, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row and its log-prob. logits [rows, vocabulary] are already divided by the temperature."""
    logp = logits.log_softmax(-1)
    if decoding.temperature == 0:
        token = logits.argmax(-1)
    else:
        probs = logp.exp()
        if decoding.top_k > 0 and decoding.top_k < probs.shape[-1]:
            probs = probs.masked_fill(logits < logits.topk(decoding.top_k).values[:, -1:], 0.0)
        if decoding.top_p < 1:
            ordered, index = probs.sort(-1, descending=True)
            ordered[ordered.cumsum(-1) - ordered > decoding.top_p * ordered.sum(-1, keepdim=True)] = 0.0
            probs = torch.zeros_like(probs).scatter(-1, index, ordered)
        token = torch.multinomial(probs, 1, generator=generator)[:, 0]
    return token, logp.gather(-1, token[:, None])[:, 0]


@torch.inference_mode()
def _decode(
    model: PreTrainedModel,
    prompts: list[list[int]],
    samples: int,
    decoding: Decoding,
    stop: torch.Tensor,
    pad_id: int,
    generator: torch.Generator,
) -> list[tuple[list[int], list[float]]]:
    """Ids and log-probs of ``samples`` completions of each prompt, in prompt order."""
    head = lm_head(model, decoding.temperature or 1.0)
    decoder = model.get_decoder()
    ids, mask = pad(prompts, pad_id, generator.device)
    out = decoder(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=True)
    logits = head(out.last_hidden_state[:, -1])
    origin = torch.arange(len(prompts), device=ids.device).repeat_interleave(samples)
    layers = [_Layer(layer.keys, layer.values, origin, decoding.max_new_tokens) for layer in out.past_key_values.layers]
    cache = Cache(layers=layers)
    logits, seen = logits[origin], mask.sum(1)[origin]
    room = torch.ones(len(origin), decoding.max_new_tokens, dtype=torch.bool, device=ids.device)
    mask = torch.cat([mask[origin], room], dim=1)
    full = set(getattr(model.config, "layer_types", None) or ["full_attention"]) == {"full_attention"}

    alive = torch.arange(len(origin), device=ids.device)
    tokens = torch.full((len(origin), decoding.max_new_tokens), pad_id, device=ids.device)
    logps = torch.zeros(len(origin), decoding.max_new_tokens, device=ids.device)
    lengths = torch.full((len(origin),), decoding.max_new_tokens, device=ids.device)
    for t in range(decoding.max_new_tokens):
        token, logp = choose(logits, decoding, generator)
        tokens[alive, t], logps[alive, t] = token, logp.float()
        going = ~torch.isin(token, stop)
        if not going.all():
            lengths[alive[~going]] = t + 1
            rows = going.nonzero()[:, 0]
            alive, token, seen, mask = alive[rows], token[rows], seen[rows], mask[rows]
            for layer in layers:
                layer.keep(rows)
        if len(alive) == 0 or t + 1 == decoding.max_new_tokens:
            break
        visible = mask[:, : layers[0].length + 1]
        hidden = decoder(
            input_ids=token[:, None],
            attention_mask=visible[:, None, None, :] if full else visible,
            position_ids=seen[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits, seen = head(hidden[:, -1]), seen + 1
    pairs = zip(tokens.tolist(), logps.tolist(), lengths.tolist(), strict=True)
    return [(row[:n], logp[:n]) for row, logp, n in pairs]


def sample(
    model: PreTrainedModel,
    tokenizer: object,
    prompts: Sequence[Sequence[int]],
    samples: int,
    decoding: Decoding,
    stop_ids: Sequence[int],
    generator: torch.Generator,
    rows: int = 256,
) -> list[list[Completion]]:
    """``samples`` completions of each prompt (token ids), in the order of the prompts.

    Prompts of similar length are decoded together, about ``rows`` completions side by side. Same generator state, same
    completions.
    """
    if model.training:
        raise ValueError("sampling needs a model in eval mode")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    width = max(1, rows // samples)
    stop = torch.tensor(list(stop_ids), device=generator.device)
    ends = set(stop_ids)
    results: list[list[Completion]] = [[] for _ in prompts]
    for start in range(0, len(order), width):
        block = order[start : start + width]
        decoded = _decode(
            model, [list(prompts[i]) for i in block], samples, decoding, stop, tokenizer.pad_token_id, generator
        )
        texts = tokenizer.batch_decode([ids[:-1] if ids[-1] in ends else ids for ids, _ in decoded])
        for k, (ids, logps) in enumerate(decoded):
            i = block[k // samples]
            done = ids[-1] in ends
            results[i].append(Completion(tuple(prompts[i]), tuple(ids), tuple(logps), texts[k], not done))
    return results
