"""Per-token quantities over a large vocabulary, in chunks: log-probs, entropies, divergences between two policies.

The logits of 8,192 tokens at a vocabulary of 152 k take 15-20 GB if they are made at once. Here only the hidden states
of the wanted tokens pass the head, some at a time, and their gradient is made while their logits are there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from repro.model.attention import is_plain, unmasked, upload

CHUNK_ELEMENTS = 2**25  # logits at once: 128 MiB in float32
ROW = 256  # tokens of a packed row, more for a model that is wider: attention costs more the longer it is
TokenFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Divergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # student logits, teacher logits
TaughtFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # logits, targets, teacher logits
Support = Literal["student", "teacher"]


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


# --- divergences: student logits, teacher logits, both [tokens, vocabulary] -> [tokens] -------------------------------


def _contributions(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Entries of KL(p || q) from log-probs, [tokens, vocabulary]; p = 0 contributes 0."""
    return p.exp() * (p - q).masked_fill(p == -torch.inf, 0.0)


def _sum(entries: torch.Tensor, clip: float | None) -> torch.Tensor:
    return (entries if clip is None else entries.clamp(max=clip)).sum(-1)


def forward_kl(student: torch.Tensor, teacher: torch.Tensor, clip: float | None = None) -> torch.Tensor:
    """KL(teacher || student). ``clip`` bounds each vocabulary entry from above before the sum (OPSD, 2601.18734).

    A clipped entry has no gradient through its own term, only through the softmax of the others: its sign can turn.
    """
    return _sum(_contributions(teacher.log_softmax(-1), student.log_softmax(-1)), clip)


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor, clip: float | None = None) -> torch.Tensor:
    """KL(student || teacher), clipped per entry like ``forward_kl``."""
    return _sum(_contributions(student.log_softmax(-1), teacher.log_softmax(-1)), clip)


def jensen_shannon(
    student: torch.Tensor, teacher: torch.Tensor, beta: float = 0.5, clip: float | None = None
) -> torch.Tensor:
    """beta KL(teacher || m) + (1 - beta) KL(student || m) with m = beta teacher + (1 - beta) student, 0 < beta < 1."""
    s, t = student.log_softmax(-1), teacher.log_softmax(-1)
    m = torch.logaddexp(t + math.log(beta), s + math.log(1 - beta))
    return _sum(beta * _contributions(t, m) + (1 - beta) * _contributions(s, m), clip)


def mixed_kl(student: torch.Tensor, teacher: torch.Tensor, weight: float = 0.5) -> torch.Tensor:
    """weight KL(teacher || student) + (1 - weight) KL(student || teacher) (SD-Zero, 2604.12002)."""
    return weight * forward_kl(student, teacher) + (1 - weight) * reverse_kl(student, teacher)


def between(divergence: Divergence) -> TaughtFunction:
    """A divergence as a function of a student's logits, the targets, which it doesn't look at, and a teacher's."""
    return lambda student, targets, teacher: divergence(student, teacher)


def on_top_k(
    student: torch.Tensor, teacher: torch.Tensor, divergence: Divergence, k: int, support: Support = "teacher"
):
    """``divergence`` of both distributions renormalised over the ``k`` likeliest tokens of one of them, [tokens].

    Logits outside the set get no gradient: mass that the student has there isn't seen.
    """
    ids = (teacher if support == "teacher" else student).topk(min(k, teacher.shape[-1]), -1).indices
    return divergence(student.gather(-1, ids), teacher.gather(-1, ids))


def top_k_reverse_kl(
    student: torch.Tensor, teacher: torch.Tensor, k: int, form: Literal["raw", "stop_gradient", "tail"] = "tail"
) -> torch.Tensor:
    """Terms of KL(student || teacher) at the student's ``k`` likeliest tokens, without renormalisation, [tokens].

    raw: as it stands; biased, since its gradient drives mass out of the set. stop_gradient: the student's log-prob is a
    constant, its probability isn't: the true gradient restricted to the set. tail: raw, with everything outside the
    set as one more token (2605.11182). The renormalised form is ``on_top_k(..., reverse_kl, k, "student")``.
    """
    s, t = student.log_softmax(-1), teacher.log_softmax(-1)
    ids = s.topk(min(k, s.shape[-1]), -1).indices
    s, t = s.gather(-1, ids), t.gather(-1, ids)
    if form == "stop_gradient":
        return (s.exp() * (s.detach() - t)).sum(-1)
    inside = (s.exp() * (s - t)).sum(-1)
    if form == "raw":
        return inside
    tiny = torch.finfo(s.dtype).tiny
    p, q = ((1 - x.exp().sum(-1)).clamp(min=tiny) for x in (s, t))
    return inside + p * (p / q).log()


# --- in chunks --------------------------------------------------------------------------------------------------------


class _WithSlope(torch.autograd.Function):
    """Values of tokens whose slopes by their own hidden state are worked out at once, so that no logits are kept.

    A token's value depends on no other token's hidden state: the gradient of the sum holds every slope.
    """

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, run: Callable[..., torch.Tensor], *given: torch.Tensor) -> torch.Tensor:
        ctx.given = len(given)
        with torch.enable_grad():
            leaf = hidden.detach().requires_grad_()
            values = run(leaf, *given)
            columns = values.unsqueeze(-1) if values.dim() == 1 else values
            sums = columns.sum(0).unbind()
            slopes = [torch.autograd.grad(s, leaf, retain_graph=s is not sums[-1])[0] for s in sums]
        ctx.save_for_backward(torch.stack(slopes, -1))  # [tokens, width, values of a token]
        return values.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        grad = grad.unsqueeze(-1) if grad.dim() == 1 else grad
        return (slopes * grad[:, None].to(slopes.dtype)).sum(-1), None, *[None] * ctx.given


def per_token(
    hidden: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    function: Callable[..., torch.Tensor],
    *given: torch.Tensor,
    chunk: int = 1024,
) -> torch.Tensor:
    """``function(logits, *given)`` for all tokens, never holding more than ``chunk`` rows of logits.

    hidden [tokens, width], given [tokens, ...] -> [tokens] or [tokens, k]; head maps hidden states to float32 logits.
    The gradient goes to the hidden states alone: the head is frozen.
    """

    def run(h: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return function(head(h), *rest)

    grad = torch.is_grad_enabled() and hidden.requires_grad
    parts = zip(*(tensor.split(chunk) for tensor in (hidden, *given)), strict=True)
    return torch.cat([_WithSlope.apply(h, run, *rest) if grad else run(h, *rest) for h, *rest in parts])


def lm_head(model: PreTrainedModel, temperature: float = 1.0) -> Callable[[torch.Tensor], torch.Tensor]:
    """Hidden states to logits / temperature in float32 (float64 stays), soft-capped where the model is.

    Raises ValueError for a head that would be trained: it would get no gradient (see ``per_token``).
    """
    head: nn.Module = model.get_output_embeddings()
    if torch.is_grad_enabled() and any(p.requires_grad for p in head.parameters()):
        raise ValueError("the output head must be frozen: chunked values give it no gradient")
    cap = getattr(model.config, "final_logit_softcapping", None)

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        out = head(hidden)
        out = out if out.dtype == torch.float64 else out.float()
        if cap is not None:
            out = cap * torch.tanh(out / cap)
        return tempered(out, temperature)

    return logits


def tempered(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """logits / temperature; as they are at 1, and at 0, where the largest is taken."""
    return logits if temperature in (0, 1) else logits / temperature


def columns(function: TokenFunction | None) -> int:
    """k of a function that gives [tokens, k], or 0 without one."""
    return 0 if function is None else function(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)).shape[1]


def pad(sequences: Sequence[Sequence[int]], fill: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded ids and their mask, both [rows, longest]."""
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), fill, dtype=torch.long)
    mask = torch.zeros((len(sequences), longest), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = torch.tensor(sequence, dtype=torch.long)
        mask[row, longest - len(sequence) :] = True
    return ids.to(device), mask.to(device)


def completion_hidden(
    model: PreTrainedModel, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states [tokens, width] that predict the completion tokens of ``(prompt ids, completion ids)`` pairs, and
    those tokens [tokens], concatenated in order. Prompt and padding are left out."""
    embedded = model.get_input_embeddings().weight.device
    if is_plain(model) and embedded.type == "cpu":
        return _packed_hidden(model, sequences, pad_id)
    longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
    ids = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    places, targets = [], []
    for row, (prompt, completion) in enumerate(sequences):  # padded on the right, where nothing sees it
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor([*prompt, *completion], dtype=torch.long)
        places += range(row * longest + len(prompt) - 1, row * longest + end - 1)
        targets += completion
    packed = upload(torch.cat([ids.flatten(), torch.tensor([*places, *targets], dtype=torch.long)]), embedded)
    ids, place, target = packed.split([ids.numel(), len(places), len(targets)])
    ids = ids.view(len(sequences), longest)
    if is_plain(model):
        with unmasked(model):
            out = model.get_decoder()(input_ids=ids, use_cache=False)
    else:
        ends = upload([len(prompt) + len(completion) for prompt, completion in sequences], embedded)
        mask = torch.arange(longest, device=embedded) < ends[:, None]
        out = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False)
    return out.last_hidden_state.flatten(0, 1)[place], target


def _packed_hidden(
    model: PreTrainedModel, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """``completion_hidden`` in rows of ROW tokens or the model's width. Neighbours with the same prompt share it.

    A token sees its prompt and what stands before it in its own completion. That takes a mask of every pair of tokens,
    which flash attention on a GPU doesn't know; a CPU saves the padding and the prompts' arithmetic.
    """
    # of each token its id, position, prompt's and completion's number
    rows: list[list[tuple[int, int, int, int]]] = [[]]
    places, targets, before, last = [], [], None, 0
    room = max(ROW, model.get_input_embeddings().weight.shape[1])
    for number, (prompt, completion) in enumerate(sequences, 1):
        shared = prompt == before
        if rows[-1] and len(rows[-1]) + len(completion) + (0 if shared else len(prompt)) > room:
            rows.append([])
            shared = False
        row, length = rows[-1], len(prompt)
        if not shared:
            row += [(token, i, number, 0) for i, token in enumerate(prompt)]
            last, group, before = len(row) - 1, number, prompt
        start = len(row)
        row += [(token, i, group, number) for i, token in enumerate(completion[:-1], length)]
        places += [(len(rows) - 1, place) for place in (last, *range(start, len(row)))][: len(completion)]
        targets += completion
    longest = max(map(len, rows))
    for row in rows:
        row += [(pad_id, 0, 0, 0)] * (longest - len(row))
    ids, position, group, number = torch.tensor(rows).unbind(-1)  # [rows, longest] each
    seen = (group[:, :, None] == group[:, None]) & ((number[:, None] == 0) | (number[:, :, None] == number[:, None]))
    seen &= torch.ones(longest, longest, dtype=torch.bool).tril()
    out = model.get_decoder()(input_ids=ids, attention_mask=seen[:, None], position_ids=position, use_cache=False)
    place = torch.tensor([row * longest + column for row, column in places], dtype=torch.long)
    return out.last_hidden_state.flatten(0, 1)[place], torch.tensor(targets, dtype=torch.long)


def _chunk(model: PreTrainedModel, tensors: int = 1) -> int:
    return max(1, CHUNK_ELEMENTS // (tensors * model.get_output_embeddings().weight.shape[0]))


def completion_values(
    model: PreTrainedModel,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    function: TokenFunction = token_logprob,
    temperature: float = 1.0,
    pad_id: int = 0,
    last: bool = False,
) -> torch.Tensor:
    """``function`` at every completion token of ``(prompt ids, completion ids)`` pairs, concatenated in order.

    The logits at a position are those that predict its token. Prompt and padding never reach the head; ``last``: only
    the last token of each completion does. The model is a causal language model of transformers, without a PEFT wrapper
    around it (``PeftModel.get_base_model()``).
    """
    hidden, targets = completion_hidden(model, sequences, pad_id)
    if last:
        ends = torch.tensor([len(completion) for _, completion in sequences]).cumsum(0) - 1
        hidden, targets = (t[upload(ends, t.device)] for t in (hidden, targets))
    return per_token(hidden, lm_head(model, temperature), function, targets, chunk=_chunk(model))


def completion_taught(
    model: PreTrainedModel,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    teacher_hidden: torch.Tensor,
    function: TaughtFunction,
    temperature: float = 1.0,
    pad_id: int = 0,
) -> torch.Tensor:
    """``function(logits, targets, teacher's logits)`` at every completion token, in the order of ``sequences``.

    teacher_hidden [tokens, width]: the teacher's hidden states for the same completions, without gradient, from the
    same model under another adapter and other prompts, so that one head serves both. The temperature divides both
    logits.
    """
    hidden, targets = completion_hidden(model, sequences, pad_id)
    head = lm_head(model, temperature)

    def taught(logits: torch.Tensor, target: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            teacher = head(other)
        return function(logits, target, teacher)

    return per_token(hidden, head, taught, targets, teacher_hidden, chunk=_chunk(model, 2))
