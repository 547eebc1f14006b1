"""Sampling in slots against row sharing: same tokens, exact log-probs, independent of slots; one graph, no waiting."""

from dataclasses import replace

import pytest
import torch
from conftest import perturb
from pretend_gpu import pretend
from scipy.stats import chisquare
from test_sampling import TOKENIZER, model_of

from repro.config import ConfigError, RunConfig
from repro.model import static
from repro.model.attention import unmasked
from repro.model.logprobs import completion_values, logprob_and_entropy
from repro.model.policy import Policy
from repro.model.sampling import Decoding, sample

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16]]
STOP = [1, 2, 3, 4]


@pytest.fixture(autouse=True)
def afresh(monkeypatch):
    monkeypatch.setattr(Decoding, "sampler", "static")
    monkeypatch.setattr(static, "LENGTH", 8)  # so that short completions pass through several lengths
    monkeypatch.setattr(static.Slots, "keep", True)
    static._kept.clear()


def draw(model, prompts=PROMPTS, samples=5, rows=8, seed=0, temperature=1.0, limit=12, stop=STOP):
    generator = torch.Generator().manual_seed(seed)
    return sample(model, TOKENIZER, prompts, samples, Decoding(temperature, limit), stop, generator, rows)


def test_greedy_completions_are_those_of_row_sharing(tiny, monkeypatch):
    texts = ["Compute 3-4+5.", "Solve 3*x+2=11.", "Compute 1/2+1/3.", "Compute (2+3)*4-(5-1)."]
    prompts = [tiny.encode([{"role": "user", "content": t}]) for t in texts]
    found = {}
    for way in ("static", "shared"):
        monkeypatch.setattr(Decoding, "sampler", way)
        args = 2, Decoding(temperature=0.0, max_new_tokens=32), tiny.stop_ids, torch.Generator(), 3
        found[way] = [c for group in sample(tiny.sampler(), tiny.tokenizer, prompts, *args) for c in group]
    for ours, theirs in zip(found["static"], found["shared"], strict=True):
        assert (ours.ids, ours.text, ours.truncated) == (theirs.ids, theirs.text, theirs.truncated)
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("llama", {}), ("qwen2", {"num_key_value_heads": 6}), ("qwen3", {"num_key_value_heads": 1})],
)
def test_log_probs_are_those_of_one_pass(kind, changes):
    model = model_of(kind, **changes)
    every = [c for group in draw(model) for c in group]
    assert len({len(c.ids) for c in every}) > 5 and any(c.truncated for c in every)
    assert all((c.ids[-1] in STOP) != c.truncated and not set(c.ids[:-1]) & set(STOP) for c in every)
    assert all(len(c.ids) == 12 for c in every if c.truncated)
    recomputed = completion_values(model, [(c.prompt, c.ids) for c in every])
    assert (torch.tensor([logp for c in every for logp in c.logprobs]) - recomputed).abs().max() < 1e-5
    assert draw(model, []) == []
    assert [tuple(c.prompt) for c in every] == [tuple(p) for p in PROMPTS for _ in range(5)]


@pytest.mark.parametrize("way", ["static", "shared"])
@pytest.mark.parametrize("temperature", [0.7, 0.0])
def test_scores_are_summed_as_completions_are_written(way, temperature, monkeypatch):
    """Against one pass over each completion at temperature 1; slots are filled again, rows part and leave."""
    monkeypatch.setattr(Decoding, "sampler", way)
    model, decoding = model_of("qwen2"), Decoding(temperature, 12)
    args = model, TOKENIZER, PROMPTS, 5, decoding, STOP
    scored = sample(*args, torch.Generator().manual_seed(0), 3, logprob_and_entropy)
    every = [c for group in scored for c in group]
    assert temperature == 0 or len({len(c.ids) for c in every}) > 3
    for c in every:
        wanted = completion_values(model, [(c.prompt, c.ids)], logprob_and_entropy).sum(0)
        assert c.scores == pytest.approx(wanted.tolist(), abs=1e-4)
    plain = sample(*args, torch.Generator().manual_seed(0), 3)
    assert [replace(c, scores=()) for c in every] == [c for group in plain for c in group]


def test_samples_do_not_depend_on_slots_looks_or_company(monkeypatch):
    model = model_of("qwen2").double()
    expected = [[c.ids for c in group] for group in draw(model)]
    assert len({ids for group in expected for ids in group}) > 15
    for rows, look, prefill in ((1, 8, 16_384), (3, 1, 16_384), (20, 5, 16_384), (64, 8, 2)):
        monkeypatch.setattr(static, "LOOK", look)
        monkeypatch.setattr(static, "PREFILL", prefill)
        assert [[c.ids for c in group] for group in draw(model, rows=rows)] == expected
    assert [[c.ids for c in group] for group in draw(model, seed=1)] != expected


def test_first_tokens_follow_the_softmax():
    model = model_of("qwen2")
    ids = [c.ids[0] for c in draw(model, [[5, 6]], 4_000, rows=512, limit=1)[0]]
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([[5, 6]])).logits[0, -1].softmax(-1) * len(ids)
    counts = torch.bincount(torch.tensor(ids), minlength=len(expected))
    assert chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 0.001


def test_slots_are_filled_again_compacted_and_kept(monkeypatch):
    """Rows and lengths of the steps, and the same buffers in the next call, and after ``forget`` no longer."""
    model, kinds = model_of("qwen2"), []
    step = static.Slots.step
    monkeypatch.setattr(
        static.Slots, "step", lambda s, rows, length: (kinds.append((rows, length)), step(s, rows, length))
    )
    monkeypatch.setattr(static, "LOOK", 1)
    every = [c for group in draw(model, samples=16, rows=32) for c in group]
    assert {rows for rows, _ in kinds} == {8, 16, 32} and {length for _, length in kinds} == {8, 16, 24}
    assert sorted((rows for rows, _ in kinds), reverse=True) == [rows for rows, _ in kinds]
    assert len(kinds) < 64 * 12 / 8 and sum(rows for rows, _ in kinds) >= sum(len(c.ids) for c in every)
    slots = static._kept[model][1]
    pointers = [buffer.data_ptr() for buffer in slots.buffers]
    draw(model, samples=16, rows=32, seed=1)
    assert static._kept[model][1] is slots and [buffer.data_ptr() for buffer in slots.buffers] == pointers
    draw(model, samples=16, rows=32, temperature=0.0)
    assert static._kept[model][1] is not slots
    assert static.forget() and not static.forget()
    draw(model)
    assert not static._kept


def test_through_adapters_nothing_is_kept(monkeypatch):
    """The model is another function under another adapter; without a merged copy the same is sampled."""
    policy = Policy(RunConfig())
    perturb(policy, 0.05)
    prompt = policy.encode([{"role": "user", "content": "Compute 3-4+5."}])
    found = []
    for merge in ("always", "never"):
        monkeypatch.setattr(Policy, "merge", merge)
        with policy.sampling() as model:
            args = 4, Decoding(0.0, 24), policy.stop_ids, torch.Generator()
            found.append([c.ids for c in sample(model, policy.tokenizer, [prompt], *args)[0]])
        assert (model in static._kept) == (merge == "always")
    assert found[0] == found[1]


def test_logits_that_are_not_numbers_are_an_error_and_so_are_other_models():
    model = model_of("llama")
    model.get_output_embeddings().weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="not numbers"):
        draw(model)
    with pytest.raises(ConfigError, match="--sampler static: not for models of type mistral"):
        draw(model_of("mistral", sliding_window=4))


def test_with_too_little_memory_there_are_fewer_slots(monkeypatch):
    model, sizes = model_of("qwen2").double(), []
    expected = draw(model)
    decode = static.decode

    def short(*args):
        sizes.append(args[-1])
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError
        return decode(*args)

    monkeypatch.setattr(static, "decode", short)
    assert draw(model) == draw(model) == expected
    assert sizes == [8, 4, 2, 2]


def ready(model, rows: int = 8) -> static.Slots:
    slots = static.Slots(model, rows, 32, 6, 1.0, STOP)
    slots.done.fill_(False)
    slots.token.copy_(torch.arange(rows) + 5)
    slots.u.copy_(torch.rand(slots.u.shape, generator=torch.Generator().manual_seed(0)))
    return slots


def test_a_step_is_one_graph():
    """Dynamo breaks nowhere, and what it recorded does what the step does."""
    model, graphs = model_of("qwen2"), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    with torch.no_grad(), unmasked(model):
        plain, compiled = ready(model), ready(model)
        run = torch.compile(compiled.step, fullgraph=True, dynamic=False, backend=backend)
        for _ in range(4):
            plain.step(8, 16)
            run(8, 16)
    assert len(graphs) == 1
    assert torch.equal(plain.ids, compiled.ids) and plain.ids.any()
    assert torch.equal(plain.done, compiled.done) and torch.equal(plain.at, compiled.at)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_step_waits(monkeypatch, temperature):
    """On a machine that seems to have a GPU: none in a step, one a look, and uploads that the host doesn't wait for."""
    monkeypatch.setattr(Policy, "on", "cuda")
    with pretend() as waits:
        policy = Policy(RunConfig())
        prompt = policy.encode([{"role": "user", "content": "Compute 3-4+5."}])
        model, generator = policy.sampler(), torch.Generator("cuda")
        waits.clear()
        args = model, [prompt] * 3, 4, temperature, 24, policy.stop_ids, logprob_and_entropy, generator, 8
        found = static.decode(*args)
        graphs = static._kept[model][1].graphs.values()
        replayed = sum(graph.replayed for graph in graphs if graph)
        assert len(found) == 12 and replayed >= 16
        looks = (replayed + len(graphs)) // static.LOOK  # the first step of each kind is none
    assert {kind for kind, _ in waits} == {"tolist", "item"}, waits
    assert sum(waits.values()) == looks + 5  # ids, log-probs, scores, lengths, and whether there is NaN
