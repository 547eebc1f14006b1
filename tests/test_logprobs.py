"""Chunked per-token quantities against the whole computation in float64, and the sampler against the model."""

import pytest
import torch
from conftest import perturb, random_model
from scipy.stats import chisquare

from repro.config import RunConfig
from repro.logprobs import completion_values, lm_head, logprob_and_entropy, per_token, token_logprob
from repro.policy import Policy
from repro.sampling import Decoding, choose, sample


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
    expected_grads = torch.autograd.grad((expected * weights).sum(), [hidden, model.lm_head.weight])
    for chunk in (1, 5, 37, 100):
        values = per_token(hidden, lm_head(model), targets, logprob_and_entropy, chunk)
        grads = torch.autograd.grad((values * weights).sum(), [hidden, model.lm_head.weight])
        assert (values - expected).abs().max() < 1e-9
        for grad, expected_grad in zip(grads, expected_grads, strict=True):
            assert (grad - expected_grad).abs().max() < 1e-9


def test_padded_batch_equals_single_sequences_and_keeps_their_order():
    model = random_model()
    pairs = [([5, 6, 7], [8, 9]), ([4], [10, 11, 12, 13]), ([20] * 9, [21]), ([30, 31], [32, 33, 34])]
    values = completion_values(model, pairs, logprob_and_entropy)
    expected = [torch.stack(whole(model, [*p, *c], len(p)), -1) for p, c in pairs]
    assert (values - torch.cat(expected)).abs().max() < 1e-9


def test_temperature_divides_the_logits():
    model = random_model()
    logits = model(input_ids=torch.tensor([[3, 4, 5]])).logits[0, 1] / 0.5
    value = completion_values(model, [([3, 4], [5])], temperature=0.5)
    assert value.item() == pytest.approx(logits.log_softmax(-1)[5].item(), abs=1e-9)


def test_samples_at_temperature_one_follow_the_models_own_softmax(tiny):
    """Chi-squared over the first two tokens of 20,000 completions, against exact probabilities."""
    prompt = tiny.encode([{"role": "user", "content": "Compute 3-4+5."}])
    model = tiny.sampler()
    size = 20_000
    generator = torch.Generator().manual_seed(0)
    rows = sample(
        model, tiny.tokenizer, [prompt], size, Decoding(max_new_tokens=2), tiny.stop_ids, generator, rows=size
    )
    with torch.inference_mode():
        first = model(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
        second = (
            model(input_ids=torch.tensor([[*prompt, t] for t in range(len(first))])).logits[:, -1].double().softmax(-1)
        )
    joint = (first[:, None] * second).flatten()
    stops = torch.tensor(tiny.stop_ids)
    counts = torch.zeros_like(joint)
    for completion in rows[0]:
        a, b = (*completion.ids, 0)[:2]
        if a in tiny.stop_ids:
            continue
        counts[a * len(first) + b] += 1
    joint.view(len(first), -1)[stops] = 0
    common = joint * size >= 5
    observed = torch.cat([counts[common], (size - counts[common].sum()).reshape(1)])
    expected = torch.cat([joint[common], (1 - joint[common].sum()).reshape(1)]) * size
    keep = expected > 0
    assert keep.sum() > 5
    assert chisquare(observed[keep], expected[keep] * observed[keep].sum() / expected[keep].sum()).pvalue > 0.001


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sampled_log_probs_equal_recomputed_ones(dtype):
    """The sampler's against one forward pass of its model, and against the policy with its adapter apart.

    bfloat16 has 8 bits: single tokens differ by rounding, since decoding adds up in another order than one pass; what
    must not differ is the mean over many tokens.
    """
    policy = Policy(RunConfig(dtype=dtype))
    perturb(policy)
    prompts = [policy.encode([{"role": "user", "content": text}]) for text in ("Compute 3-4+5.", "Solve 3*x+2=11.")]
    args = (Decoding(max_new_tokens=32), policy.stop_ids, torch.Generator().manual_seed(0))
    every = [c for group in sample(policy.sampler(), policy.tokenizer, prompts, 64, *args) for c in group]
    sampled = torch.tensor([logp for c in every for logp in c.logprobs])
    for model in (policy.sampler(), policy.model.get_base_model()):
        with torch.no_grad():
            recomputed = completion_values(model, [(c.prompt, c.ids) for c in every])
        if dtype == "float32":
            assert torch.allclose(sampled, recomputed, atol=1e-5, rtol=1e-5)
        else:
            assert abs((sampled - recomputed).mean()) < 1e-3


def test_finished_rows_leave_and_prompts_of_any_length_mix(tiny):
    """Greedy completions of a mixed batch equal those of each prompt alone."""
    texts = ["Compute 3-4+5.", "Solve 3*x+2=11.", "Compute 1/2+1/3.", "Compute (2+3)*4-(5-1)."]
    prompts = [tiny.encode([{"role": "user", "content": t}]) for t in texts]
    greedy = Decoding(temperature=0.0, max_new_tokens=48)
    args = (tiny.stop_ids, torch.Generator())
    together = sample(tiny.sampler(), tiny.tokenizer, prompts, 2, greedy, *args)
    for prompt, pair in zip(prompts, together, strict=True):
        alone = sample(tiny.sampler(), tiny.tokenizer, [prompt], 1, greedy, *args)[0][0]
        assert pair[0].ids == pair[1].ids == alone.ids
        assert pair[0].truncated == (alone.ids[-1] not in tiny.stop_ids)


def test_same_generator_state_same_completions(tiny):
    prompt = tiny.encode([{"role": "user", "content": "Compute 3-4+5."}])
    runs = [
        sample(tiny.sampler(), tiny.tokenizer, [prompt], 8, Decoding(), tiny.stop_ids, torch.Generator().manual_seed(3))
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_top_k_and_top_p_cut_the_tail():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]]).repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)
    token, logp = choose(logits, Decoding(top_k=2), generator)
    assert set(token.tolist()) == {0, 1}
    assert torch.allclose(logp, logits.log_softmax(-1).gather(-1, token[:, None])[:, 0])
    # softmax is 0.64, 0.23, 0.09, 0.03, 0.01: the smallest set that reaches 0.8 has two tokens
    token, _ = choose(logits, Decoding(top_p=0.8), generator)
    assert set(token.tolist()) == {0, 1}


def test_gradient_checkpointed_head_has_no_gradient_without_grad_mode():
    model = random_model()
    with torch.no_grad():
        assert not completion_values(model, [([1, 2], [3])], token_logprob).requires_grad
