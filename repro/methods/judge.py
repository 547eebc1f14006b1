"""What a model says of texts: Yes or No of a solution, one of several choices. Read in one pass, nothing is sampled.

Scores are at temperature 1, whatever the sampling temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from repro.model.logprobs import completion_hidden
from repro.model.policy import BASE, POLICY
from repro.model.training import Batch
from repro.run import Run
from repro.tasks import prompts
from repro.tasks.problem import Problem
from repro.tasks.prompts import Chat


def choice_logprobs(
    run: Run, chats: Sequence[Chat], choices: Sequence[str], adapter: str = POLICY, alike: int = 1
) -> torch.Tensor:
    """log P of each choice, one token each, as the next token of each conversation, [chats, choices].

    Not renormalised over the choices; equal conversations are read once. ``alike``: so many neighbours begin alike, and
    share what they begin with. Raises ConfigError for a choice that isn't one token.
    """
    tokens = [run.policy.token(choice) for choice in choices]
    if not chats:
        return torch.zeros(0, len(tokens))
    encoded = [tuple(run.policy.encode(chat)) for chat in chats]
    cuts = [_shared(encoded[i : i + alike]) for i in range(0, len(encoded), alike)]
    once = {ids: cuts[i // alike] for i, ids in enumerate(encoded)}
    batch = Batch([(ids[:cut], [*ids[cut:], tokens[0]]) for ids, cut in once.items()])
    read = run.values(batch, lambda logits, _: logits.log_softmax(-1)[:, tokens], adapter, last=True).cpu()
    place = {ids: i for i, ids in enumerate(once)}
    return read[[place[ids] for ids in encoded]]


def _shared(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens that all of them begin with."""
    first, last = min(sequences), max(sequences)  # in order, so that the others lie between
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


def log_odds(
    run: Run, chats: Sequence[Chat], yes: str = "Yes", no: str = "No", adapter: str = POLICY, alike: int = 1
) -> torch.Tensor:
    """log P(yes) - log P(no), [chats]; its sigmoid is P(yes) among the two. ``alike``: as in ``choice_logprobs``."""
    read = choice_logprobs(run, chats, (yes, no), adapter, alike)
    return read[:, 0] - read[:, 1]


def judged(
    run: Run,
    problems: Sequence[Problem],
    texts: Sequence[Sequence[str]],
    ask: Callable[[Problem, str], Chat] = prompts.verify,
    adapter: str = POLICY,
) -> torch.Tensor:
    """Log-odds that each text of each problem is right, in the model's own words, [problems, texts].

    ``ask``: ``prompts.verify``, ``verify_steps`` (of the first steps) or ``verify_with_reference``.
    """
    chats = [ask(problem, text) for problem, group in zip(problems, texts, strict=True) for text in group]
    return log_odds(run, chats, adapter=adapter, alike=len(texts[0]) if texts else 1).view(len(problems), -1)


def preferred(
    run: Run, pairs: Sequence[tuple[Problem, str, str]], both_orders: bool = True, adapter: str = POLICY
) -> torch.Tensor:
    """P(the first of two solutions is the right one), [pairs]; mean of both orders unless one is asked for."""
    asked = [prompts.compare(problem, first, second) for problem, first, second in pairs]
    shown_first = log_odds(run, asked, "A", "B", adapter).sigmoid()
    if not both_orders:
        return shown_first
    swapped = [prompts.compare(problem, second, first) for problem, first, second in pairs]
    return (shown_first + log_odds(run, swapped, "B", "A", adapter).sigmoid()) / 2


def hidden_states(run: Run, batch: Batch, adapter: str = BASE) -> torch.Tensor:
    """The last hidden states that predict each completion token, no gradient, [tokens, width], on the CPU."""
    model, pad_id = run.policy.model.get_base_model(), run.policy.tokenizer.pad_token_id
    found: dict[int, torch.Tensor] = {}
    with torch.no_grad(), run.policy.using(adapter):
        for rows in batch.micro_batches(run.config.tokens_per_batch):
            part = batch.select(rows)
            hidden, _ = completion_hidden(model, part.sequences, pad_id)
            found.update(zip(rows, hidden.cpu().split(part.lengths), strict=True))
    return torch.cat([found[i] for i in range(len(batch.sequences))])
