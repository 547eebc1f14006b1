"""What the host waits for in training, on a machine that seems to have a GPU; and bfloat16 autocast there."""

import pytest
import torch
from conftest import perturb
from pretend_gpu import pretend

from repro.config import RunConfig
from repro.methods.sft import nll
from repro.model.logprobs import completion_values
from repro.model.policy import Policy
from repro.model.training import Batch, Trainer

PAIRS = [([5, 6, 7], [8, 9, 10]), ([4], [10, 11, 12, 13]), ([20] * 9, [21, 22]), ([30, 31], [32, 33, 34])]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_no_micro_batch_waits(monkeypatch, dtype, checkpointed):
    """A step waits as often with four micro-batches as with one: for its loss and for the gradient's norm.

    The norm is moved once more here, since torch groups gradients by the device that they truly are on.
    """
    monkeypatch.setattr(Policy, "on", "cuda")
    found = []
    with pretend() as waits:
        policy = Policy(RunConfig(dtype=dtype))
        for tokens in (64, 8):
            batch = Batch(PAIRS)
            trainer = Trainer(policy, 1e-3, tokens_per_batch=tokens)
            trainer.checkpointed = checkpointed
            waits.clear()
            batch.fields["old_logp"] = trainer.values(batch)
            assert not waits
            trainer.step(batch, nll)
            found.append(dict(waits))
        assert [len(Batch(PAIRS).micro_batches(tokens)) for tokens in (64, 8)] == [1, 4]
    assert found[0] == found[1]
    assert sorted(kind for kind, _ in found[0]) == ["download", "item", "item"] and sum(found[0].values()) == 3


def kept(policy: Policy) -> int:
    """Bytes that a forward pass of the trainer keeps for the backward pass, weights apart."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        Trainer(policy, 1e-3)._forward(Batch([([5] * 64, [6] * 64)]), Trainer(policy, 1e-3).values.__defaults__[0])
    weights = {p.untyped_storage()._cdata for p in policy.model.parameters()}
    return sum(s.nbytes() for key, s in storages.items() if key not in weights)


def test_autocast_keeps_less_and_adapters_stay_in_float32(monkeypatch):
    """And the log-probs stay those of bfloat16, to its rounding."""
    plain = Policy(RunConfig(dtype="bfloat16"))
    perturb(plain)
    state = plain.adapter_state()
    with torch.no_grad():
        expected = completion_values(plain.model.get_base_model(), PAIRS)
    monkeypatch.setattr(Policy, "on", "cuda")
    with pretend():
        policy = Policy(RunConfig(dtype="bfloat16"))
        policy.load_adapter_state(state)
        values = Trainer(policy, 1e-3).values(Batch(PAIRS)).cpu()
        less = kept(policy)
        Trainer(policy, 1e-3).step(Batch(PAIRS), nll)
        assert {p.dtype for p in policy.parameters} == {torch.float32}
    assert (values - expected).abs().mean() < 0.05
    assert less < 0.9 * kept(plain)
