"""Prompts in, completions out. Samples of a prompt are computed once as long as they are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from repro.config import ConfigError
from repro.model import static
from repro.model.attention import is_plain, sees_all
from repro.model.cache import RoomyLayer
from repro.model.logprobs import TokenFunction, columns, lm_head, pad, tempered
from repro.model.static import Decoded

_room: WeakKeyDictionary[PreTrainedModel, int] = WeakKeyDictionary()  # tokens side by side, where more were too many
PROMPT_TOKENS = 4096  # of prompts computed together on a CPU: more don't stay in its cache
KEEP = 0.9  # rows that are over leave when so few others are left: the cache is copied


@dataclass(frozen=True)
class Completion:
    """One sampled answer. ``ids`` holds the stop token where there was one; ``truncated``: there was none.

    ``logprobs`` are those of the sampling temperature, one per id. ``scores``: sums over the ids of what was asked for
    (``sample``).
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    truncated: bool
    scores: tuple[float, ...] = ()

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
    """How to sample. temperature 0 is greedy."""

    sampler: ClassVar[str] = "auto"  # as --sampler (repro.config.Launch)

    temperature: float = 1.0
    max_new_tokens: int = 256


def choose(
    logits: torch.Tensor, row: torch.Tensor, decoding: Decoding, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token and its log-prob for each sample; ``row`` [samples] says which of the rows it is drawn from.

    logits [rows, vocabulary] are already divided by the temperature.
    """
    logp = logits.log_softmax(-1)
    token = logits.argmax(-1)[row] if decoding.temperature == 0 else _draw(logp.exp(), row, generator)
    return token, logp[row, token]


def _draw(probs: torch.Tensor, row: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """For each sample an index with a probability above 0, from its row of unnormalised ones [rows, vocabulary].

    One random number per sample: ``torch.multinomial`` draws one per entry, a twentieth of a step on a CPU.
    """
    cumulative = probs.cumsum(-1)
    fraction = torch.rand(len(row), generator=generator, device=probs.device) * (1 - 2**-23)
    order, count = row.argsort(stable=True), row.bincount(minlength=len(probs))
    place = torch.empty_like(row)  # among the samples of the same row
    place[order] = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row[order]]
    wanted = fraction.new_zeros(len(probs), int(count.max()))
    wanted[row, place] = fraction
    found = torch.searchsorted(cumulative, wanted * cumulative[:, -1:], right=True)[row, place]
    return found.clamp(max=probs.shape[-1] - 1)  # NaN is found behind the last


class _Rows:
    """What the model computes: one row for all samples of a prompt that have had the same tokens so far.

    The surer the policy, the fewer rows.
    """

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], samples: int, room: int, pad_id: int):
        ids, mask = pad(prompts, pad_id, model.device)
        self.model, self.pad_id = model, pad_id
        size = max(1, PROMPT_TOKENS // ids.shape[1]) if ids.device.type == "cpu" else len(ids)
        made = [
            model.get_decoder()(
                input_ids=some,
                attention_mask=seen,
                position_ids=(seen.cumsum(1) - 1).clamp(min=0),
                past_key_values=DynamicCache(),  # whole, also where a window slides
                use_cache=True,
            )
            for some, seen in zip(ids.split(size), mask.split(size), strict=True)
        ]
        self.hidden = torch.cat([out.last_hidden_state[:, -1] for out in made])  # [rows, width]
        self.prompt = torch.arange(len(prompts), device=ids.device)  # of each row
        self.live = torch.arange(len(prompts) * samples, device=ids.device)  # samples that aren't over
        self.row = self.live // samples  # of each of them
        self.seen = mask.sum(1) - mask.shape[1]  # of each prompt, less the length of the padded ones
        self.mask = torch.cat([mask, mask.new_ones(len(mask), room)], 1)
        layers = zip(*(out.past_key_values.layers for out in made), strict=True)
        self.layers = [
            RoomyLayer(torch.cat([p.keys for p in parts]), torch.cat([p.values for p in parts]), len(self.live), room)
            for parts in layers
        ]
        # others want masks of other forms, and make them themselves
        self.whole_mask = model.config._attn_implementation == "sdpa" and sees_all(model)

    def go_on(self, token: torch.Tensor, going: torch.Tensor) -> None:
        """Compute the next state of the samples that are ``going`` [live samples], after their ``token``."""
        ids = self._part(self.live[going], self.row[going], token[going])
        length = self.layers[0].length
        visible = self.mask[self.prompt, : length + 1]
        out = self.model.get_decoder()(
            input_ids=ids[:, None],
            attention_mask=visible[:, None, None, :] if self.whole_mask else visible,
            position_ids=(self.seen[self.prompt] + length)[:, None],
            past_key_values=Cache(layers=self.layers),
            use_cache=True,
        )
        self.hidden = out.last_hidden_state[:, -1]

    def _part(self, live: torch.Tensor, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """Each row becomes one for each of its samples' tokens; the token of each row.

        The first of them stays where the row is; the others go to where samples are over, or behind the last row.
        """
        count = len(self.prompt)
        key, group = torch.unique((row << 32) + token, return_inverse=True)  # sorted by row
        source, parts = key >> 32, torch.zeros_like(key, dtype=torch.bool)
        parts[1:] = source[1:] == source[:-1]
        target = source.clone()
        if moved := int(parts.sum()):
            unused = torch.ones(count + moved, dtype=torch.bool, device=key.device)
            unused[source] = False
            target[parts] = unused.nonzero()[:moved, 0]
            here, there = source[parts], target[parts]
            for layer in self.layers:
                layer.copy(here, there)
        count = max(count, int(target.max()) + 1)
        ids = key.new_full((count,), self.pad_id)
        ids[target] = key & 0xFFFFFFFF
        self.live, self.row = live, target[group]
        self.prompt = torch.cat([self.prompt, self.prompt.new_zeros(count - len(self.prompt))])
        self.prompt[target] = self.prompt[source]
        if len(key) <= KEEP * count:  # not at each end
            rows = target.sort().values
            first = torch.arange(len(rows), device=rows.device)
            for layer in self.layers:
                layer.copy(rows, first)
            ids, self.prompt, self.row = ids[rows], self.prompt[rows], torch.searchsorted(rows, self.row)
        return ids


@torch.inference_mode()
def _decode(
    model: PreTrainedModel,
    prompts: list[list[int]],
    samples: int,
    decoding: Decoding,
    stop: torch.Tensor,
    tokenizer: object,
    score: TokenFunction | None,
    generator: torch.Generator,
) -> list[Decoded]:
    """``samples`` completions of each prompt, in prompt order. Raises ValueError for NaN."""
    head, room, device = lm_head(model), decoding.max_new_tokens, generator.device
    rows = _Rows(model, prompts, samples, room, tokenizer.pad_token_id)
    tokens = torch.full((len(rows.live), room), tokenizer.pad_token_id, device=device)
    logps = torch.zeros(len(rows.live), room, device=device)
    lengths = torch.full((len(rows.live),), room, device=device)
    sums = torch.zeros(len(rows.live), columns(score), dtype=torch.float64, device=device)
    for t in range(room):
        live, logits = rows.live, head(rows.hidden)
        token, logp = choose(tempered(logits, decoding.temperature), rows.row, decoding, generator)
        if score:
            sums[live] += score(logits[rows.row], token).double()
        tokens[live, t], logps[live, t] = token, logp.float()
        ends = torch.isin(token, stop)
        lengths[live[ends]] = t + 1
        if t + 1 == room or ends.all():
            break
        rows.go_on(token, ~ends)
    if logps.isnan().any():
        raise ValueError("the model's logits are not numbers")
    found = zip(tokens.tolist(), logps.tolist(), sums.tolist(), lengths.tolist(), strict=True)
    return [(row[:n], logp[:n], scores) for row, logp, scores, n in found]


def _decode_in_memory(
    model: PreTrainedModel, prompts: list[list[int]], samples: int, decoding: Decoding, *more
) -> list[Decoded]:
    """``_decode``; when memory runs out, or did before at this size, in two halves one after the other."""
    generator: torch.Generator = more[-1]
    rest = (decoding, *more)
    tokens = len(prompts) * samples * (max(map(len, prompts)) + decoding.max_new_tokens)
    if len(prompts) * samples == 1 or tokens <= _room.get(model, tokens):
        before = generator.get_state()
        try:
            return _decode(model, prompts, samples, *rest)
        except torch.OutOfMemoryError:
            if len(prompts) * samples == 1:
                raise
        _room[model] = tokens // 2
        torch.cuda.empty_cache()
        generator.set_state(before)
    half = len(prompts) // 2 or samples // 2
    if len(prompts) > 1:
        return [
            *_decode_in_memory(model, prompts[:half], samples, *rest),
            *_decode_in_memory(model, prompts[half:], samples, *rest),
        ]
    return [*_decode_in_memory(model, prompts, half, *rest), *_decode_in_memory(model, prompts, samples - half, *rest)]


def _in_slots(model: PreTrainedModel) -> bool:
    """Whether completions are sampled in slots of static shape: on a GPU where the model lets us, or as asked."""
    if Decoding.sampler == "static" and not is_plain(model):
        raise ConfigError(f"--sampler static: not for models of type {model.config.model_type}; use --sampler shared")
    return Decoding.sampler == "static" or (
        Decoding.sampler == "auto" and model.device.type == "cuda" and is_plain(model)
    )


def _decode_in_slots(
    model: PreTrainedModel,
    prompts: list[list[int]],
    samples: int,
    decoding: Decoding,
    stop: Sequence[int],
    score: TokenFunction | None,
    generator: torch.Generator,
    rows: int,
) -> list[Decoded]:
    """``static.decode``; when memory runs out, or did before at this size, with fewer slots."""
    length, before = max(map(len, prompts)) + decoding.max_new_tokens, generator.get_state()
    rows = max(1, min(rows, len(prompts) * samples, _room.get(model, rows * length) // length))
    while True:
        try:
            args = decoding.temperature, decoding.max_new_tokens, stop, score, generator, rows
            return static.decode(model, prompts, samples, *args)
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        rows //= 2
        _room[model] = rows * length
        static.forget()
        torch.cuda.empty_cache()
        generator.set_state(before)


def sample(
    model: PreTrainedModel,
    tokenizer: object,
    prompts: Sequence[Sequence[int]],
    samples: int,
    decoding: Decoding,
    stop_ids: Sequence[int],
    generator: torch.Generator,
    rows: int = 256,
    score: TokenFunction | None = None,
) -> list[list[Completion]]:
    """``samples`` completions of each prompt (token ids), in the order of the prompts.

    Prompts of similar length are decoded together, about ``rows`` completions side by side, fewer when memory runs out.
    Same generator state, same completions, on a CPU to the last bit. ``score(logits, token)`` [tokens, k], at
    temperature 1, is summed over each completion as it is written: nothing has to be read a second time. Raises
    ConfigError where --sampler static can't.
    """
    if model.training:
        raise ValueError("sampling needs a model in eval mode")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    slots = _in_slots(model)
    width = max(1, len(prompts) if slots else rows // samples)
    stop = torch.tensor(list(stop_ids), device=generator.device)
    ends = set(stop_ids)
    results: list[list[Completion]] = [[] for _ in prompts]
    for start in range(0, len(order), width):
        block = order[start : start + width]
        some = [list(prompts[i]) for i in block]
        if slots:
            decoded = _decode_in_slots(model, some, samples, decoding, stop_ids, score, generator, rows)
        else:
            decoded = _decode_in_memory(model, some, samples, decoding, stop, tokenizer, score, generator)
        texts = tokenizer.batch_decode([ids[:-1] if ids[-1] in ends else ids for ids, *_ in decoded])
        for k, (ids, logps, scores) in enumerate(decoded):
            i, truncated = block[k // samples], ids[-1] not in ends
            made = Completion(tuple(prompts[i]), tuple(ids), tuple(logps), texts[k], truncated, tuple(scores))
            results[i].append(made)
    return results
