"""Chunked per-token quantities against the whole computation in float64."""

import pytest
import torch
from conftest import random_model

from repro.model.logprobs import completion_values, lm_head, logprob_and_entropy, per_token, token_logprob


def whole(model, ids: list[int], start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of ids[start:] from one plain forward pass of one sequence."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1]
    logp = logits.log_softmax(-1)
    return logp.gather(-1, torch.tensor(ids[start:])[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def test_chunked_values_and_gradients_equal_the_whole_computation():
    model = random_model()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 64, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (37,), generator=generator)
    logits = hidden @ model.lm_head.weight.T
    logp = logits.log_softmax(-1)
    expected = torch.stack([logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)], -1)
    weights = torch.randn(37, 2, generator=generator, dtype=torch.float64)
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), hidden)
    for chunk in (1, 5, 37, 100):
        values = per_token(hidden, lm_head(model), logprob_and_entropy, targets, chunk=chunk)
        (grad,) = torch.autograd.grad((values * weights).sum(), hidden)
        assert (values - expected).abs().max() < 1e-9
        assert (grad - expected_grad).abs().max() < 1e-9


def test_padded_batch_equals_single_sequences_and_keeps_their_order():
    model = random_model()
    pairs = [([5, 6, 7], [8, 9]), ([4], [10, 11, 12, 13]), ([20] * 9, [21]), ([30, 31], [32, 33, 34])]
    values = completion_values(model, pairs, logprob_and_entropy)
    expected = [torch.stack(whole(model, [*p, *c], len(p)), -1) for p, c in pairs]
    assert (values - torch.cat(expected)).abs().max() < 1e-9


def test_completions_that_share_a_prompt_have_the_values_and_gradients_of_single_sequences():
    model = random_model()
    weights = [p for n, p in model.named_parameters() if "proj" in n]
    long = list(range(40)) * 5
    pairs = [([5, 6, 7], [8, 9]), ([5, 6, 7], [8]), ([5, 6, 7], [10, 11, 12]), ([4, 4], [8, 9])]
    pairs += [(long, [1, 2, 3, *[n] * 30]) for n in range(4)]  # more than a row holds
    values = completion_values(model, pairs)
    expected = torch.cat([whole(model, [*p, *c], len(p))[0] for p, c in pairs])
    assert (values - expected).abs().max() < 1e-9
    slopes = torch.linspace(-1, 1, len(values), dtype=values.dtype)
    found, wanted = (torch.autograd.grad((v * slopes).sum(), weights) for v in (values, expected))
    for a, b in zip(found, wanted, strict=True):  # the norms compute in float32
        assert (a - b).norm() < 1e-6 * b.norm()


def test_temperature_divides_the_logits():
    model = random_model()
    logits = model(input_ids=torch.tensor([[3, 4, 5]])).logits[0, 1] / 0.5
    value = completion_values(model, [([3, 4], [5])], temperature=0.5)
    assert value.item() == pytest.approx(logits.log_softmax(-1)[5].item(), abs=1e-9)


def test_values_have_no_gradient_without_grad_mode():
    model = random_model()
    with torch.no_grad():
        assert not completion_values(model, [([1, 2], [3])], token_logprob).requires_grad


def test_a_head_that_would_get_no_gradient_is_refused():
    model = random_model()
    model.lm_head.requires_grad_(True)
    with pytest.raises(ValueError, match="head must be frozen"):
        completion_values(model, [([1, 2], [3])])
