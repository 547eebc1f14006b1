"""Adapters: the reference, frozen copies, merged sampling, PEFT's format, and NF4 training on the CPU."""

import pytest
import torch
from conftest import perturb, random_model
from peft import PeftModel
from transformers import AutoModelForCausalLM

from repro.config import ConfigError, RunConfig
from repro.methods.sft import nll
from repro.model.logprobs import completion_values
from repro.model.policy import BASE, Policy, load_base
from repro.model.training import Batch, NonFiniteLoss, Trainer
from repro.tiny import MODEL

PAIRS = [([10, 20, 30], [11, 12, 13]), ([40, 41], [14, 15])]


def logp(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return completion_values(policy.model.get_base_model(), PAIRS)


def test_reference_is_the_base_and_frozen_copies_keep_their_weights(tiny):
    base = logp(tiny)
    perturb(tiny)
    old = logp(tiny)
    tiny.freeze_copy("old")
    perturb(tiny, seed=1)
    new = logp(tiny)
    assert not torch.allclose(base, old) and not torch.allclose(old, new)
    with tiny.using(BASE):
        assert torch.equal(logp(tiny), base)
    with tiny.using("old"):
        assert torch.equal(logp(tiny), old)
    assert torch.equal(logp(tiny), new)
    trained = [p for p in tiny.model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in tiny.parameters}


def test_the_active_adapter_comes_back_after_an_exception(tiny):
    perturb(tiny)
    tiny.freeze_copy("old")
    perturb(tiny, seed=1)
    before = logp(tiny)
    for name in ("old", BASE):
        with pytest.raises(KeyError), tiny.using(name):
            raise KeyError
        assert torch.equal(logp(tiny), before)


def test_merged_sampler_follows_the_adapter(tiny):
    for seed in range(2):
        perturb(tiny, seed=seed)
        with torch.no_grad():
            merged = completion_values(tiny.sampler(), PAIRS)
        assert torch.allclose(merged, logp(tiny), atol=1e-5)
    with torch.no_grad(), tiny.using(BASE):
        assert torch.equal(completion_values(tiny.sampler(BASE), PAIRS), logp(tiny))


def test_same_seed_same_adapter():
    a, b, c = (Policy(RunConfig(), seed).adapter_state() for seed in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_saved_adapter_loads_with_plain_peft(tiny, tmp_path):
    perturb(tiny)
    tiny.save_adapter(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        values = completion_values(loaded.get_base_model(), PAIRS)
    assert torch.allclose(values, logp(tiny), atol=1e-6)


def test_nf4_with_lora_trains_on_the_cpu(tmp_path):
    policy = Policy(RunConfig(quantization="nf4", dtype="bfloat16"))
    weight = policy.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    assert weight.dtype == torch.uint8 and weight.quant_state.quant_type == "nf4" and weight.quant_state.nested
    frozen = weight.data.clone()
    batch = Batch(PAIRS)
    trainer = Trainer(policy, 1e-2)
    losses = [trainer.step(batch, nll)["loss"] for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]
    assert torch.equal(weight.data, frozen)
    # the merged, dequantised copy that is sampled from is the same policy, up to bfloat16
    with torch.no_grad():
        merged = completion_values(policy.sampler(), PAIRS)
    assert (merged - logp(policy)).abs().mean() < 0.1


def test_non_finite_loss_changes_nothing(tiny):
    batch = Batch(PAIRS)
    before = tiny.adapter_state()
    with pytest.raises(NonFiniteLoss):
        Trainer(tiny, 1e-2).step(batch, lambda values, fields: values * float("nan"))
    after = tiny.adapter_state()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_micro_batched_optimiser_step_equals_the_whole_one():
    states = []
    for tokens in (10_000, 8):
        policy = Policy(RunConfig())
        policy.model.double()
        batch = Batch(PAIRS * 3)
        trainer = Trainer(policy, 1e-3, tokens_per_batch=tokens)
        trainer.optimizer.param_groups[0]["eps"] = 1e-4  # or AdamW makes the last bits of tiny gradients large
        for _ in range(2):
            trainer.step(batch, nll)
        states.append(policy.adapter_state())
    for key in states[0]:
        assert (states[0][key] - states[1][key]).abs().max() < 1e-6


def test_pairs_are_never_separated():
    batch = Batch([([1] * n, [2] * n) for n in (1, 9, 2, 8, 3, 7)])
    groups = batch.micro_batches(20, together=2)
    assert sorted(r for g in groups for r in g) == list(range(6))
    for group in groups:
        assert all(group[i] + 1 == group[i + 1] and group[i] % 2 == 0 for i in range(0, len(group), 2))


def test_a_folder_without_a_model_and_a_missing_gpu_are_config_errors(tmp_path):
    with pytest.raises(ConfigError, match="not a model folder"):
        load_base(RunConfig(model=str(tmp_path)), torch.device("cpu"))
    with pytest.raises(ConfigError, match="no GPU"):
        load_base(RunConfig.for_preset("gpu"), torch.device("cpu"))


def test_base_models_without_pad_token_or_chat_template(tmp_path):
    """A folder with a plain model: padding and a template are supplied, the prompt is the text itself."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.chat_template, tokenizer.pad_token = None, None
    tokenizer.save_pretrained(tmp_path)
    random_model(vocabulary=320, dtype=torch.float32).save_pretrained(tmp_path)
    policy = Policy(RunConfig(model=str(tmp_path)))
    ids = policy.encode([{"role": "user", "content": "Compute 1+2."}])
    assert policy.tokenizer.decode(ids) == "Compute 1+2.\n\n"
    assert policy.tokenizer.pad_token_id is not None


def test_a_text_that_is_one_token(tiny):
    assert tiny.token(tiny.tokenizer.eos_token) == tiny.tokenizer.eos_token_id
    with pytest.raises(ConfigError, match="must be one token"):
        tiny.token("two words")
