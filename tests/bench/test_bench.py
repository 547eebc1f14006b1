"""The benchmark: both sides compute the same update, and the command reports what it measured."""

import json
from functools import partial

import pytest
import torch
from conftest import perturb

from repro.bench.bench import PeakMemory, plain_loss, training_batch
from repro.cli import main
from repro.methods.grpo import GRPO, grpo_loss
from repro.model.policy import reuse_memory
from repro.model.training import LOGPROBS, Batch, Trainer


@pytest.mark.parametrize("samples", [1, 2])
def test_ours_and_the_plain_loop_have_the_same_loss_and_gradient(tiny, samples):
    """Prompts and completions of several lengths, padded in the plain loop, in micro-batches in ours; float32."""
    perturb(tiny)
    whole = training_batch(tiny, 6, 96, samples)
    assert len({tuple(prompt) for prompt, _ in whole.sequences}) == 6 / samples
    assert len({tuple(completion) for _, completion in whole.sequences}) == 6
    prompts, completions = (32, 5, 9, 20, 1, 30), (64, 9, 33, 1, 60, 21)
    lengths = [(prompts[i - i % samples], n) for i, n in enumerate(completions)]
    batch = Batch([(p[:n], c[:m]) for (p, c), (n, m) in zip(whole.sequences, lengths, strict=True)])
    batch.fields["old_logp"] = torch.linspace(-6, -5, sum(batch.lengths))
    batch.fields["advantage"] = batch.spread([1.0, -1.0, 0.5, -0.5, 2.0, -2.0])
    batch.fields["weight"] = torch.full((sum(batch.lengths),), 1 / sum(batch.lengths))
    loss = plain_loss(tiny, batch)
    loss.backward()
    expected = torch.cat([p.grad.flatten().clone() for p in tiny.parameters])
    trainer = Trainer(tiny, 1e-3, tokens_per_batch=150)
    total = trainer._accumulate(batch, partial(grpo_loss, settings=GRPO()), LOGPROBS, 1)
    found = torch.cat([p.grad.flatten() for p in tiny.parameters])
    assert total == pytest.approx(loss.item(), rel=1e-5)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_peak_memory_sees_what_a_block_needs():
    reuse_memory()
    before = torch.ones(60_000_000)
    del before  # is still the process's
    with PeakMemory(torch.device("cpu")) as peak:
        block = torch.ones(50_000_000)
        block.sum().item()
    assert 0.8 * 200e6 < peak.bytes < 2 * 200e6


def test_the_command_prints_a_card_and_one_line_of_json(capsys):
    words = "--prompts 2 --samples 2 --new-tokens 4 --sequences 2 --length 64 --runs 1"
    assert main(["bench", *words.split()]) == 0
    *card, line = capsys.readouterr().out.strip().splitlines()
    found = json.loads(line)
    assert (found["model"], found["rows"], found["new_tokens"]) == ("tiny", 4, 4)
    for name in ("sampling_ratio", "training_time_ratio", "sampling_share_of_ceiling"):
        assert found[name] > 0
    assert found["training_memory_ratio"] >= 0
    assert any("times generate" in row for row in card)
    assert any("2 x 64 tokens, 2 of a prompt" in row for row in card)
