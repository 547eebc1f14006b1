"""Sampling in slots of static shape: a decode step is one function of buffers that stay where they are.

On a GPU a small model's step is bound by the launches of its thousand kernels. Here a step reads nothing back and
allocates nothing that outlives it, so that it is captured once as a CUDA graph and launched as a whole. The host looks
every few steps at which slots are over and gives them the next sample. On a CPU the same step runs as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from repro.config import ConfigError
from repro.model.attention import unmasked, upload
from repro.model.cache import SlotLayer
from repro.model.logprobs import TokenFunction, columns, lm_head, tempered

Decoded = tuple[list[int], list[float], list[float]]  # ids, log-probs, sums of scores

LENGTH = 128  # lengths that attention looks at are multiples of this: one graph each
FEWEST = 8  # rows of the smallest graph; the others double
LOOK = 8  # steps between two looks at which slots are over
PREFILL = 16_384  # tokens of prompts at once


class Graph:
    """A step on a GPU as one CUDA graph."""

    def __init__(self, step: Callable[[], None], pool: object):
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            step()

    def replay(self) -> None:
        self.graph.replay()


class Slots:
    """Completions under way, one per slot, and the step that gives each its next token.

    at, token, made [slots]: where the next token goes, which it is, how many were sampled. done [slots]. ids, logps,
    u [slots, limit]: what was sampled, its log-probs, and the uniform number that each draw uses. sums [slots, scores].
    """

    keep: ClassVar[bool] = True  # between calls, graphs and all

    def __init__(
        self,
        model: PreTrainedModel,
        slots: int,
        room: int,
        limit: int,
        temperature: float,
        stop: Sequence[int],
        score: TokenFunction | None = None,
    ):
        device, config = model.device, model.config
        self.decoder, self.head = model.get_decoder(), lm_head(model)  # not the model: see _kept
        self.temperature, self.score = temperature, score
        self.at, self.token, self.made = (torch.zeros(slots, dtype=torch.long, device=device) for _ in range(3))
        self.done = torch.ones(slots, dtype=torch.bool, device=device)
        self.ids = torch.zeros(slots, limit, dtype=torch.long, device=device)
        self.logps, self.u = (torch.zeros(slots, limit, device=device) for _ in range(2))
        self.sums = torch.zeros(slots, columns(score), dtype=torch.float64, device=device)
        self.slot, self.place = torch.arange(slots, device=device), torch.arange(room, device=device)
        self.stop = upload(list(stop), device)
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        like = model.get_input_embeddings().weight
        heads = config.num_key_value_heads
        self.layers = [SlotLayer(like, self.at, heads, room, width) for _ in range(config.num_hidden_layers)]
        self.buffers = [self.at, self.token, self.made, self.done, self.ids, self.logps, self.u, self.sums]
        self.buffers += [t for layer in self.layers for t in (layer.keys, layer.values)]
        self.graphs: dict[tuple[int, int], Graph | None] = {}

    def step(self, rows: int, length: int) -> None:
        """One token for each of the first ``rows`` slots, none of which holds ``length`` tokens or more.

        What a slot that is over does is lost: it stays at its place.
        """
        at, token, made, done = self.at[:rows], self.token[:rows], self.made[:rows], self.done[:rows]
        for layer in self.layers:
            layer.seen = length
        out = self.decoder(
            input_ids=token[:, None],
            attention_mask=(self.place[:length] <= at[:, None])[:, None, None],
            position_ids=at[:, None],
            past_key_values=Cache(layers=self.layers),
            use_cache=True,
        )
        raw = self.head(out.last_hidden_state[:, -1])
        logits = tempered(raw, self.temperature)
        slot, here = self.slot[:rows], made.clamp(max=self.ids.shape[1] - 1)
        total = logits.logsumexp(-1, keepdim=True)
        if self.temperature == 0:
            chosen = logits.argmax(-1, keepdim=True)
        else:
            cumulative = (logits - total).exp().cumsum(-1)
            wanted = self.u[slot, here][:, None] * cumulative[:, -1:]
            chosen = torch.searchsorted(cumulative, wanted, right=True).clamp(max=logits.shape[-1] - 1)
        logp = (logits.gather(-1, chosen) - total)[:, 0]
        chosen = chosen[:, 0]
        if self.score:
            self.sums[:rows].add_(self.score(raw, chosen).double().masked_fill(done[:, None], 0.0))
        self.ids[slot, here] = torch.where(done, self.ids[slot, here], chosen)
        self.logps[slot, here] = torch.where(done, self.logps[slot, here], logp.float())
        live = (~done).long()
        at.add_(live)
        made.add_(live)
        token.copy_(torch.where(done, token, chosen))
        done.logical_or_((chosen[:, None] == self.stop).any(-1) | (made >= self.ids.shape[1]))

    def run(self, rows: int, length: int) -> None:
        """A step; on a GPU, from the second of its kind on, as a graph."""
        key = rows, length
        if self.at.device.type == "cpu" or key not in self.graphs:  # the first one sets up what a graph can't
            self.graphs[key] = None
            return self.step(rows, length)
        if self.graphs[key] is None:
            pool = next((g.graph.pool() for g in self.graphs.values() if g), None)
            try:
                self.graphs[key] = Graph(lambda: self.step(rows, length), pool)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                raise ConfigError(f"--sampler static: this model's step can't be a graph ({reason})") from error
        self.graphs[key].replay()

    def move(self, source: list[int], target: list[int]) -> None:
        """Slots ``target`` become what slots ``source`` are."""
        device = self.at.device
        here, there = upload(source, device), upload(target, device)
        for buffer in self.buffers:
            buffer[there] = buffer[here]
        self.done[here] = True

    def fill(self, slots: list[int], prompts: list[list[int]], held: list[tuple], u: torch.Tensor) -> None:
        """Begin completions of prompts in ``slots``; ``held``: the prompt's row of prefilled layers."""
        device = self.at.device
        slot = upload(slots, device)
        self.at[slot] = upload([len(p) - 1 for p in prompts], device)
        self.token[slot] = upload([p[-1] for p in prompts], device)
        self.made[slot] = 0
        self.sums[slot] = 0
        self.done[slot] = False
        self.u[slot] = u
        for read in {id(layers): layers for _, layers in held}.values():  # together
            mine = [(j, row) for j, (row, layers) in zip(slots, held, strict=True) if layers is read]
            there, rows = (upload(part, device) for part in zip(*mine, strict=True))
            for layer, (keys, values) in zip(self.layers, read, strict=True):
                layer.keys[there, :, : keys.shape[2]] = keys[rows]
                layer.values[there, :, : values.shape[2]] = values[rows]


_kept: WeakKeyDictionary[PreTrainedModel, tuple[tuple, Slots]] = WeakKeyDictionary()  # as long as there is the model


def forget() -> bool:
    """Give back the memory of the slots that were kept, and keep none any more; whether there were any."""
    Slots.keep = False
    had = bool(_kept)
    _kept.clear()
    return had


def _slots(model: PreTrainedModel, *shape) -> Slots:
    """The slots that the last call had, graphs and all, if they are of this shape, else new ones.

    A model with adapters isn't the same function from call to call.
    """
    key, kept = _kept.pop(model, (None, None))
    if key != shape:
        kept = None  # before there are new ones
        kept = Slots(model, *shape)
    if Slots.keep and not any(isinstance(module, LoraLayer) for module in model.modules()):
        _kept[model] = shape, kept
    return kept


def _prefill(model: PreTrainedModel, prompts: list[list[int]]) -> list[tuple]:
    """Row and layers' (keys, values) of each prompt without its last token, padded on the right."""
    longest = max(1, *(len(p) - 1 for p in prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt) - 1] = torch.tensor(prompt[:-1], dtype=torch.long)
    made = DynamicCache()
    model.get_decoder()(input_ids=upload(ids, model.device), past_key_values=made, use_cache=True)
    layers = [(layer.keys, layer.values) for layer in made.layers]
    return [(row, layers) for row in range(len(prompts))]


class _Queue:
    """Samples that wait for a slot, prompt by prompt; each prompt is read once, when its first sample is taken."""

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], samples: int, u: torch.Tensor):
        self.model, self.prompts, self.samples, self.u = model, prompts, samples, u
        self.next, self.held = 0, {}

    def __bool__(self) -> bool:
        return self.next < len(self.prompts) * self.samples

    def take(self, slots: Slots, free: list[int], owner: dict[int, int]) -> None:
        """Give the next samples to free slots."""
        while free and self:
            first = self.next
            self.next = min(first + len(free), len(self.prompts) * self.samples)
            taken = list(range(first, self.next))
            wanted = list(dict.fromkeys(k // self.samples for k in taken))
            new = [i for i in wanted if i not in self.held]
            many = max(1, PREFILL // max((len(self.prompts[i]) for i in new), default=1))
            if len(new) > many:  # only what can be read at once
                self.next = new[many] * self.samples
                taken, new = list(range(first, self.next)), new[:many]
            if new:
                self.held |= dict(zip(new, _prefill(self.model, [self.prompts[i] for i in new]), strict=True))
            mine, free = free[: len(taken)], free[len(taken) :]
            of = [k // self.samples for k in taken]
            slots.fill(mine, [self.prompts[i] for i in of], [self.held[i] for i in of], self.u[first : self.next])
            owner.update(zip(mine, taken, strict=True))
            self.held = {i: held for i, held in self.held.items() if (i + 1) * self.samples > self.next}


def bucket(rows: int, most: int) -> int:
    """Rows of the smallest graph for so many."""
    size = FEWEST
    while size < rows:
        size *= 2
    return min(size, most)


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    prompts: list[list[int]],
    samples: int,
    temperature: float,
    limit: int,
    stop: Sequence[int],
    score: TokenFunction | None,
    generator: torch.Generator,
    most: int,
) -> list[Decoded]:
    """Ids, log-probs and sums of scores of ``samples`` completions of each prompt, in order, ``most`` side by side.

    All random numbers are drawn first, one per sample and token: what a sample becomes doesn't depend on what shares
    its batch. Raises ValueError for NaN, ConfigError for a model whose step can't be captured.
    """
    total, device = len(prompts) * samples, model.device
    most = min(most, bucket(total, most))
    room = -(-(max(map(len, prompts)) + limit) // LENGTH) * LENGTH
    u = torch.rand(total, limit, generator=generator, device=device) * (1 - 2**-23)
    ids, logps = torch.zeros(total, limit, dtype=torch.long, device=device), torch.zeros(total, limit, device=device)
    made = torch.zeros(total, dtype=torch.long, device=device)
    sums = torch.zeros(total, columns(score), dtype=torch.float64, device=device)
    with unmasked(model):
        slots = _slots(model, most, room, limit, temperature, tuple(stop), score)
        queue, rows, owner, began, steps = _Queue(model, prompts, samples, u), most, {}, {}, 0
        slots.done.fill_(True)
        while queue or owner:
            queue.take(slots, [j for j in range(rows) if j not in owner], owner)
            rows = _compact(slots, rows, owner, most)
            longest = max(len(prompts[k // samples]) - began.setdefault(k, steps) for k in owner.values())
            for _ in range(LOOK):
                slots.run(rows, min(room, -(-(longest + steps) // LENGTH) * LENGTH))
                steps += 1
            over = [j for j, done in enumerate(slots.done[:rows].tolist()) if done and j in owner]
            if over:
                here, there = upload(over, device), upload([owner.pop(j) for j in over], device)
                for kept, mine in ((ids, slots.ids), (logps, slots.logps), (made, slots.made), (sums, slots.sums)):
                    kept[there] = mine[here]
    if logps.isnan().any():
        raise ValueError("the model's logits are not numbers")
    found = zip(ids.tolist(), logps.tolist(), sums.tolist(), made.tolist(), strict=True)
    return [(row[:n], logp[:n], scores) for row, logp, scores, n in found]


def _compact(slots: Slots, rows: int, owner: dict[int, int], most: int) -> int:
    """Move what is under way into fewer rows, where a smaller graph does; how many rows there are then."""
    fewer = bucket(len(owner), most)
    if fewer >= rows:
        return rows
    behind = [j for j in owner if j >= fewer]
    free = [j for j in range(fewer) if j not in owner][: len(behind)]
    if behind:
        slots.move(behind, free)
        for source, target in zip(behind, free, strict=True):
            owner[target] = owner.pop(source)
    return fewer
