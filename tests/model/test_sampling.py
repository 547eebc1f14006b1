"""The sampler against the model: distribution, log-probs, rows that part and leave."""

from types import SimpleNamespace

import pytest
import torch
from conftest import perturb
from scipy.stats import chisquare
from transformers import AutoConfig, AutoModelForCausalLM

from repro.config import RunConfig
from repro.model import sampling
from repro.model.logprobs import completion_values
from repro.model.policy import Policy
from repro.model.sampling import KEEP, Decoding, choose, sample


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


def test_prompts_that_are_computed_in_parts_give_the_same_completions(tiny, monkeypatch):
    """To the last bit, also where a part holds one prompt that is longer than it should be."""
    texts = ["Compute 3-4+5.", "Solve 3*x+2=11.", "Compute 3*(4+5)-6*(7-8)+9.", "Compute 1+1."]
    prompts = [tiny.encode([{"role": "user", "content": text}]) for text in texts]
    passes: list[int] = []
    model = tiny.sampler()
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, given: passes.append(len(given["input_ids"])) if given["input_ids"].shape[1] > 1 else None,
        with_kwargs=True,
    )

    def made(tokens: int):
        monkeypatch.setattr(sampling, "PROMPT_TOKENS", tokens)
        generator = torch.Generator().manual_seed(0)
        return sample(model, tiny.tokenizer, prompts, 4, Decoding(max_new_tokens=24), tiny.stop_ids, generator)

    whole, parts, single = made(4096), made(2 * max(map(len, prompts))), made(1)
    hook.remove()
    assert whole == parts == single
    assert passes == [4, 2, 2, 1, 1, 1, 1]


def test_same_generator_state_same_completions(tiny):
    prompt = tiny.encode([{"role": "user", "content": "Compute 3-4+5."}])
    runs = [
        sample(tiny.sampler(), tiny.tokenizer, [prompt], 8, Decoding(), tiny.stop_ids, torch.Generator().manual_seed(3))
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("rows", [1, 20_000])
def test_samples_of_one_row_are_drawn_apart_and_nothing_without_probability(rows):
    logits = torch.full((rows, 4), -torch.inf)
    logits[:, 1], logits[:, 2] = 0.0, torch.tensor(3.0).log()
    row = torch.arange(20_000) % rows
    token, logp = choose(logits, row, Decoding(), torch.Generator().manual_seed(0))
    counts = torch.bincount(token, minlength=4)
    assert counts[0] == counts[3] == 0
    assert chisquare(counts[1:3], [5_000, 15_000]).pvalue > 0.001
    neighbours = torch.bincount((token[::2] - 1) * 2 + token[1::2] - 1, minlength=4)
    assert chisquare(neighbours, [625, 1_875, 1_875, 5_625]).pvalue > 0.001
    assert torch.allclose(logp.exp(), torch.tensor([0.0, 0.25, 0.75, 0.0])[token])


def test_each_sample_is_drawn_from_its_own_row():
    logits = torch.full((3, 5), -torch.inf)
    logits[0, 4] = logits[1, 1] = logits[2, 0] = 0.0
    row = torch.tensor([2, 0, 1, 1, 0, 2, 0])
    for temperature in (0.0, 1.0):
        token, _ = choose(logits, row, Decoding(temperature=temperature), torch.Generator())
        assert token.tolist() == [0, 4, 1, 1, 4, 0, 4]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_samples_are_one_row_as_long_as_they_are_alike(tiny, temperature):
    """Rows of each step, against the different beginnings of the completions that go on."""
    model, sizes = tiny.sampler(), []
    prompts = [tiny.encode([{"role": "user", "content": t}]) for t in ("Compute 3-4+5.", "Compute 1/2+1/3.")]
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    decoding = Decoding(temperature=temperature, max_new_tokens=48)
    groups = sample(model, tiny.tokenizer, prompts, 16, decoding, tiny.stop_ids, torch.Generator().manual_seed(0))
    hook.remove()
    for t, size in enumerate(sizes):
        different = {(c.prompt, c.ids[:t]) for group in groups for c in group if len(c.ids) > t}
        assert len(different) <= size <= len(different) / KEEP
    assert len(sizes) == max(len(c.ids) for group in groups for c in group)
    assert sizes[0] == 2 and (temperature == 0 or max(sizes) > 4)


SHAPE = {
    "vocab_size": 40,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
TOKENIZER = SimpleNamespace(pad_token_id=0, batch_decode=lambda rows: [" ".join(map(str, row)) for row in rows])


def model_of(kind: str, **changes):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE | changes))
    return model.float().eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("qwen2", {"num_key_value_heads": 6}),
        ("qwen3", {"num_key_value_heads": 1}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 4}),
        ("gemma2", {"layer_types": ["full_attention"] * 2, "attn_logit_softcapping": 2.0}),
    ],
)
def test_log_probs_of_every_architecture_are_those_of_one_pass(kind, changes):
    """With padding, grouped heads, rows that part and end at different tokens, and sliding windows."""
    model = model_of(kind, **changes)
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16]]
    stop, generator = [1, 2, 3, 4], torch.Generator().manual_seed(0)
    groups = sample(model, TOKENIZER, prompts, 5, Decoding(max_new_tokens=12), stop, generator)
    every = [c for group in groups for c in group]
    assert len({len(c.ids) for c in every}) > 5 and any(c.truncated for c in every)
    recomputed = completion_values(model, [(c.prompt, c.ids) for c in every])
    sampled = torch.tensor([logp for c in every for logp in c.logprobs])
    assert (sampled - recomputed).abs().max() < 1e-5
    assert [len(group) for group in groups] == [5] * 4
    assert all(c.prompt == tuple(p) for p, group in zip(prompts, groups, strict=True) for c in group)


def test_logits_that_are_not_numbers_are_an_error():
    model = model_of("llama")
    model.get_output_embeddings().weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="not numbers"):
        sample(model, TOKENIZER, [[5, 6]], 2, Decoding(max_new_tokens=3), [1], torch.Generator())
