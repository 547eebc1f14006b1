"""Prompts in, completions out: a prompt is computed once for all its samples, finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from repro.cache import RoomyLayer, SharedPrefixLayer, Slots, attention_of_cache, sees_all, shares_prefix
from repro.logprobs import lm_head, pad

KEEP = 0.9  # rows that are over leave when so few are left


@dataclass(frozen=True)
class Completion:
    """One sampled answer. ``ids`` holds the stop token or string where there was one; ``truncated``: there was none.

    ``logprobs`` are those of the sampling temperature before top-k and top-p, one per id.
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    truncated: bool

    @property
    def answer(self) -> tuple[int, ...]:
        """The ids without the stop token, of a completion that doesn't end with a stop string."""
        return self.ids if self.truncated else self.ids[:-1]

    @property
    def written(self) -> tuple[int, ...]:
        """Prompt and answer: what another completion can go on from."""
        return (*self.prompt, *self.answer)


@dataclass(frozen=True)
class Decoding:
    """How to sample. temperature 0 is greedy; top_k 0 and top_p 1 are off.

    A completion also ends with the token that completes one of ``stop_strings``; its text ends before the string.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    stop_strings: tuple[str, ...] = ()


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
        token = _draw(probs, generator)
    return token, logp.gather(-1, token[:, None])[:, 0]


def _cut(text: str, decoding: Decoding) -> int:
    """Where the first stop string begins, else the length."""
    found = [text.find(string) for string in decoding.stop_strings]
    return min((at for at in found if at >= 0), default=len(text))


def _draw(probs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One index per row of unnormalised probabilities [rows, vocabulary], where they are above 0.

    One random number per row: ``torch.multinomial`` draws one per entry, a twentieth of a step on a CPU.
    """
    cumulative = probs.cumsum(-1)
    fraction = torch.rand(len(probs), 1, generator=generator, device=probs.device) * (1 - 2**-23)
    found = torch.searchsorted(cumulative, fraction * cumulative[:, -1:], right=True)[:, 0]
    return found.clamp(max=probs.shape[-1] - 1)  # NaN is found behind the last


def _prefill(
    model: PreTrainedModel, prompts: list[list[int]], samples: int, room: int, pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[SharedPrefixLayer] | list[RoomyLayer]]:
    """Each prompt once: for all its samples the last hidden state [rows, width], the mask with ``room`` further tokens
    [rows, tokens], the position of the next token [rows], and the caches of the layers."""
    ids, mask = pad(prompts, pad_id, device)
    out = model.get_decoder()(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=DynamicCache(),  # whole, also where a window slides
        use_cache=True,
    )
    made = out.past_key_values.layers
    hidden = out.last_hidden_state[:, -1].repeat_interleave(samples, 0)
    if shares_prefix(model):
        bias = torch.zeros(mask.shape, dtype=hidden.dtype).masked_fill(~mask, -torch.inf)[:, None, None, :]
        slots = Slots(samples, bias, torch.arange(len(hidden)))
        layers = [SharedPrefixLayer(layer.keys, layer.values, slots, room) for layer in made]
    else:
        layers = [RoomyLayer(layer.keys, layer.values, samples, room) for layer in made]
    mask = mask.repeat_interleave(samples, 0)
    return hidden, torch.cat([mask, mask.new_ones(len(mask), room)], 1), mask.sum(1), layers


@torch.inference_mode()
def _decode(
    model: PreTrainedModel,
    prompts: list[list[int]],
    samples: int,
    decoding: Decoding,
    stop: torch.Tensor,
    tokenizer: object,
    generator: torch.Generator,
) -> list[tuple[list[int], list[float]]]:
    """Ids and log-probs of ``samples`` completions of each prompt, in prompt order. Raises ValueError for NaN."""
    head, decoder = lm_head(model, decoding.temperature or 1.0), model.get_decoder()
    room, device, pad_id = decoding.max_new_tokens, generator.device, tokenizer.pad_token_id
    hidden, mask, seen, layers = _prefill(model, prompts, samples, room, pad_id, device)
    cache, shared = Cache(layers=layers), isinstance(layers[0], SharedPrefixLayer)
    ready = sees_all(model) and model.config._attn_implementation == "sdpa"  # others want masks of other forms
    alive = torch.arange(len(seen), device=device)

    tokens = torch.full((len(alive), room), pad_id, device=device)
    tail = max((len(text.encode()) for text in decoding.stop_strings), default=0)  # a token has a byte at least
    logps = torch.zeros(len(alive), room, device=device)
    lengths = torch.full((len(alive),), room, device=device)
    going = torch.ones_like(alive, dtype=torch.bool)
    for t in range(room):
        token, logp = choose(head(hidden), decoding, generator)
        tokens[alive, t], logps[alive, t] = token, logp.float()  # of rows that are over nothing is read later
        ends = torch.isin(token, stop)
        if tail:
            texts = tokenizer.batch_decode(tokens[alive, max(0, t + 1 - tail) : t + 1].tolist())
            ends |= torch.tensor([_cut(text, decoding) < len(text) for text in texts], device=ends.device)
        ends &= going
        lengths[alive[ends]] = t + 1
        going &= ~ends
        left = int(going.sum())
        if left == 0 or t + 1 == room:
            break
        if left <= KEEP * len(going):  # not at each end: the whole cache is copied
            rows = going.nonzero()[:, 0]
            alive, token, seen, mask, going = alive[rows], token[rows], seen[rows], mask[rows], going[rows]
            for layer in layers:
                layer.keep(rows)
            if shared:
                layers[0].slots.rows = alive  # one object for all layers
        visible = mask[:, : layers[0].length + 1]
        with attention_of_cache(model) if shared else nullcontext():
            out = decoder(
                input_ids=token[:, None],
                attention_mask=visible[:, None, None, :] if shared or ready else visible,
                position_ids=seen[:, None],
                past_key_values=cache,
                use_cache=True,
            )
        hidden, seen = out.last_hidden_state[:, -1], seen + 1
    if logps.isnan().any():
        raise ValueError("the model's logits are not numbers")
    pairs = zip(tokens.tolist(), logps.tolist(), lengths.tolist(), strict=True)
    return [(row[:n], logp[:n]) for row, logp, n in pairs]


def _decode_in_memory(model: PreTrainedModel, prompts: list[list[int]], samples: int, *rest) -> list:
    """``_decode``; when memory runs out, in two halves one after the other."""
    generator: torch.Generator = rest[-1]
    before = generator.get_state()
    try:
        return _decode(model, prompts, samples, *rest)
    except torch.OutOfMemoryError:
        if len(prompts) * samples == 1:
            raise
    torch.cuda.empty_cache()
    generator.set_state(before)
    half = len(prompts) // 2 or samples // 2
    if len(prompts) > 1:
        return [
            *_decode_in_memory(model, prompts[:half], samples, *rest),
            *_decode_in_memory(model, prompts[half:], samples, *rest),
        ]
    return [*_decode_in_memory(model, prompts, half, *rest), *_decode_in_memory(model, prompts, samples - half, *rest)]


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

    Prompts of similar length are decoded together, about ``rows`` completions side by side, fewer when memory runs out.
    Same generator state, same completions.
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
        decoded = _decode_in_memory(
            model, [list(prompts[i]) for i in block], samples, decoding, stop, tokenizer, generator
        )
        texts = tokenizer.batch_decode([ids[:-1] if ids[-1] in ends else ids for ids, _ in decoded])
        for k, (ids, logps) in enumerate(decoded):
            i = block[k // samples]
            end = _cut(texts[k], decoding)
            done = ids[-1] in ends or end < len(texts[k])
            results[i].append(Completion(tuple(prompts[i]), tuple(ids), tuple(logps), texts[k][:end], not done))
    return results
