"""When memory is short: smaller micro-batches, checkpointed layers, fewer rows, no merged copy; and the gpu path."""

import dataclasses
import json

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import perturb, random_model
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from papers.nft import PAPER, Config
from repro.arm import run_arm
from repro.bench.plan import GIB, kept_bytes, plan
from repro.cli import main
from repro.config import RunConfig
from repro.methods.sft import nll
from repro.model.policy import BASE, POLICY, Policy, merged_bytes
from repro.model.sampling import Decoding, sample
from repro.model.training import Batch, Trainer, checkpointed_layers
from repro.tiny import MODEL

PAIRS = [([5, 6, 7], [8, 9, 10]), ([4], [10, 11, 12, 13]), ([20] * 9, [21, 22]), ([30, 31], [32, 33, 34])]


def batch() -> Batch:
    made = Batch(PAIRS)
    return made


def saved_bytes(policy: Policy) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.data_ptr() for p in policy.model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        policy.model(input_ids=torch.full((4, 128), 7), use_cache=False).logits.sum()
    return sum(size for pointer, size in kept.items() if pointer not in weights)


def test_checkpointed_layers_keep_little(tiny):
    plain = saved_bytes(tiny)
    with checkpointed_layers(tiny.model):
        assert saved_bytes(tiny) < 0.3 * plain
    assert saved_bytes(tiny) == pytest.approx(plain, rel=0.05)
    assert not any(module.training for module in tiny.model.modules())


def test_out_of_memory_halves_the_micro_batch_then_checkpoints_then_is_an_error(tiny, monkeypatch):
    """A machine with room for 9 tokens, or 14 with checkpointed layers; the result is that of a large one."""
    lines: list[str] = []
    perturb(tiny)
    tiny.model.double()
    start = tiny.adapter_state()
    Trainer(tiny, 1e-3).step(batch(), nll)
    expected = tiny.adapter_state()
    forward = Trainer._forward

    def short(self, part, function):
        room = 14 if self.checkpointed else 9
        if sum(len(p) + len(c) for p, c in part.sequences) > room:
            raise torch.OutOfMemoryError
        return forward(self, part, function)

    monkeypatch.setattr(Trainer, "_forward", short)
    tiny.load_adapter_state(start)
    trainer = Trainer(tiny, 1e-3, tokens_per_batch=64, say=lines.append)
    trainer.step(batch(), nll)
    for key, value in tiny.adapter_state().items():
        assert torch.allclose(value, expected[key], atol=1e-6)
    assert trainer.checkpointed and trainer.tokens_per_batch == 16
    assert lines[0].endswith("micro-batches of 32 tokens") and "made twice" in lines[-1]
    resumed = Trainer(tiny, 1e-3)
    resumed.load_state(trainer.state())
    assert resumed.checkpointed and resumed.tokens_per_batch == 16
    with pytest.raises(torch.OutOfMemoryError):
        trainer.step(Batch([([5] * 20, [6])], {}), nll)


def test_sampling_goes_on_with_fewer_rows(tiny, monkeypatch):
    import repro.model.sampling

    prompts = [tiny.encode([{"role": "user", "content": f"Compute {n}+5."}]) for n in (1, 23, 456)]
    args = Decoding(temperature=0.0, max_new_tokens=24), tiny.stop_ids, torch.Generator()
    expected = sample(tiny.sampler(), tiny.tokenizer, prompts, 3, *args)
    decode, sizes = repro.model.sampling._decode, []

    def short(model, prompts, samples, *rest):
        sizes.append(len(prompts) * samples)
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError
        return decode(model, prompts, samples, *rest)

    monkeypatch.setattr("repro.model.sampling._decode", short)
    found = sample(tiny.sampler(), tiny.tokenizer, prompts, 3, *args)
    assert [[c.ids for c in group] for group in found] == [[c.ids for c in group] for group in expected]
    assert max(sizes) == 9 and sum(size for size in sizes if size <= 2) == 9
    sizes.clear()
    assert sample(tiny.sampler(), tiny.tokenizer, prompts, 3, *args) == found
    assert max(sizes) <= 2 and sum(sizes) == 9  # it is remembered
    repro.model.sampling._room.clear()
    monkeypatch.setattr("repro.model.sampling._decode", lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError))
    with pytest.raises(torch.OutOfMemoryError):
        sample(tiny.sampler(), tiny.tokenizer, prompts, 3, *args)


def test_without_room_for_a_merged_copy_the_same_is_sampled(monkeypatch):
    """And with --merge always or never, whatever the room."""
    texts = {}
    cases = {("auto", True): True, ("auto", False): False, ("always", False): True, ("never", True): False}
    for (merge, fits), merged in cases.items():
        policy = Policy(RunConfig())
        perturb(policy, 0.05)
        policy.freeze_copy("old")
        perturb(policy, 0.05, seed=1)
        monkeypatch.setattr(Policy, "merge", merge)
        monkeypatch.setattr(Policy, "_merged_fits", lambda self, fits=fits: fits)
        prompts = [policy.encode([{"role": "user", "content": f"Compute {n}+5."}]) for n in (1, 23)]
        args = Decoding(temperature=0.0, max_new_tokens=24), policy.stop_ids, torch.Generator()
        for adapter in (POLICY, "old", BASE):
            with policy.sampling(adapter) as model:
                groups = sample(model, policy.tokenizer, prompts, 1, *args)
            texts.setdefault(adapter, []).append([c.text for group in groups for c in group])
        assert (policy._sampler is not None) == merged
        assert policy.model.active_adapter == "policy"
    assert all(text == every[0] for every in texts.values() for text in every)
    assert texts["policy"] != texts["base"]


def test_the_gpu_presets_path_runs_on_a_small_random_model(tmp_path):
    """NF4 weights, bfloat16, checkpointed layers, chunked head, merged sampler: from sampling to the result file."""
    folder = tmp_path / "model"
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    random_model(vocabulary=320, dtype=torch.bfloat16).save_pretrained(folder)
    config = dataclasses.replace(
        Config.for_preset("gpu"),
        preset="tiny",  # the gpu preset wants a GPU
        model=str(folder),
        task="arithmetic",
        steps=1,
        prompts=2,
        samples=2,
        max_new_tokens=8,
        eval_problems=2,
        eval_samples=2,
        tokens_per_batch=64,
    )
    assert config.quantization == "nf4" and config.dtype == "bfloat16"
    with pytest.MonkeyPatch.context() as patch:
        init = Trainer.__init__

        def checkpointed(self, *args, **kwargs):
            init(self, *args, **kwargs)
            self.checkpointed = True

        patch.setattr(Trainer, "__init__", checkpointed)
        patch.setattr("repro.model.logprobs.CHUNK_ELEMENTS", 320 * 4)
        patch.setattr("repro.run.Run.rewards", lambda self, problems, groups: torch.tensor([[1.0, 0.0]] * 2))
        result = run_arm(PAPER, config, "nft", 0, str(tmp_path / "runs"))
    assert result["status"] == "ok" and result["budget"]["optimizer_steps"] > 0
    assert json.loads(json.dumps(result["history"]))[0]["loss"] is not None


# --- plans ------------------------------------------------------------------------------------------------------------


def nf4_bytes(model: torch.nn.Module) -> int:
    """Bytes of the quantised weights with their scales, as bitsandbytes holds them."""
    total = 0
    for module in model.modules():
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state
            total += module.weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    return total


def test_a_plan_counts_what_a_loaded_model_has(tmp_path):
    shapes = Qwen2Config(
        vocab_size=320,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(tmp_path)
    Qwen2ForCausalLM(shapes).to(torch.bfloat16).save_pretrained(tmp_path)
    config = RunConfig(model=str(tmp_path), quantization="nf4", dtype="bfloat16")
    found, policy = plan(config), Policy(config)
    base = policy.model.get_base_model()
    small = [p for n, p in base.named_parameters() if "lora_" not in n and p.dtype == torch.bfloat16]
    assert found.weights == pytest.approx(nf4_bytes(base) + sum(p.nbytes for p in small), rel=0.01)
    assert found.adapter == 20 * sum(p.numel() for p in policy.parameters)
    assert found.merged == merged_bytes(base)
    plain = Policy(dataclasses.replace(config, quantization="none"))
    for checkpointed, expected in ((False, found.kept), (True, found.kept_checkpointed)):
        # which scores an attention keeps depends on its kernel
        assert kept_bytes(plain.model, 16, checkpointed) / 16 == pytest.approx(expected, rel=0.15)
    assert found.cache == 3 * 2 * 2 * 64 * 2


def test_what_fits_grows_with_the_card(capsys, tmp_path):
    Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
    ).save_pretrained(tmp_path)
    found = []
    for memory in (4, 12, 24):
        assert main(["bench", "--plan", str(tmp_path), "--memory", str(memory)]) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert [f["fits"] for f in found] == [False, True, True]
    assert found[2]["parameters"] == pytest.approx(7.6e9, rel=0.01)
    assert found[1]["tokens"] < found[2]["tokens_checkpointed"] and found[1]["rows"] > 0
    assert [f["merged_copy"] for f in found] == [False, False, True]
    assert main(["bench", "--plan", str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err.startswith("repro: --model")


@pytest.mark.parametrize(("memory", "tokens", "checkpointed"), [(8, 4096, True), (12, 1024, False), (16, 2048, False)])
def test_smaller_cards_come_to_smaller_micro_batches(memory, tokens, checkpointed, tmp_path):
    """Qwen2.5-1.5B with the preset gpu; a card of 24 GB has room for its micro-batches as they are."""
    Qwen2Config(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    ).save_pretrained(tmp_path)
    preset = RunConfig.for_preset("gpu")
    found, longest = plan(dataclasses.replace(preset, model=str(tmp_path))), preset.max_new_tokens + 256
    assert found.micro_batch(24 * GIB, preset.tokens_per_batch, longest) == (preset.tokens_per_batch, False)
    assert found.micro_batch(memory * GIB, preset.tokens_per_batch, longest) == (tokens, checkpointed)
    kept = found.kept_checkpointed if checkpointed else found.kept
    assert longest <= tokens and found.resident(memory * GIB)[0] + tokens * kept < memory * GIB
    assert found.rows(memory * GIB, longest) >= preset.rows_per_batch
    assert found.micro_batch(2 * GIB, preset.tokens_per_batch, longest) == (0, True)
