"""What several test files share: random models, and the committed tiny policy."""

import os
import sys
from pathlib import Path

# Tests compare with CPU tensors: a GPU of the machine is used only where it is asked for. A worker of pytest-xdist
# doesn't see the options here; it has the environment already.
if "--gpu" not in sys.argv and "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Before torch is imported, and for the processes that tests start: two threads wait for each other at every small
# product, busily, which takes many times as long once anything else runs on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from repro.config import RunConfig
from repro.model.policy import Policy
from repro.model.sampling import Decoding
from repro.paper import Paper

ROOT = Path(__file__).parent.parent
TIMED = ("seconds", "phases", "date", "machine")  # of a result: what differs from run to run
sys.path.insert(0, str(ROOT))  # tests import papers.nft


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes or many GB")
    parser.addoption("--gpu", action="store_true", help="also run the tests that need a CUDA device")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))


def own_arms(paper: Paper) -> list:
    """For parametrize: a paper's own arms; those that users run by name are tried with --slow."""
    own = {name: arm for name, arm in paper.arms.items() if not arm.standard}
    return [pytest.param(name, marks=[pytest.mark.slow] * arm.by_name) for name, arm in own.items()]


def random_model(vocabulary: int = 50, dtype: torch.dtype = torch.float64, seed: int = 0) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = Qwen2ForCausalLM(config).to(dtype).eval()
    model.lm_head.requires_grad_(False)  # as in every policy
    return model


@pytest.fixture
def tiny() -> Policy:
    return Policy(RunConfig())


def perturb(policy: Policy, scale: float = 0.02, seed: int = 0) -> None:
    """Make the adapter differ from the base, as after some training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters:
            p.add_(torch.randn(p.shape, generator=generator) * scale)


@pytest.fixture(autouse=True)
def launched_anew(monkeypatch):
    """What a command sets for its whole process (device, merge, sampler) ends with the test."""
    for owner, name in ((Policy, "on"), (Policy, "merge"), (Decoding, "sampler")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
