"""OTR's loss on worked gradients, its identity with DFT, the sampled form against the exact one, short runs."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from papers.otr import PAPER, Config, exact_loss, sampled_loss
from repro.arm import run_arm
from repro.config import ConfigError
from repro.methods.sft import solution_batch
from repro.methods.standard import settings_for
from repro.model.logprobs import token_logprob
from repro.run import Run

LOGITS = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
TARGET = torch.tensor([2])


def slope(loss, logits: torch.Tensor = LOGITS, target: torch.Tensor = TARGET) -> torch.Tensor:
    leaf = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf, target).sum(), leaf)
    return found


def exact(kappa: float, beta: float):
    return partial(exact_loss, kappa=kappa, beta=beta)


@pytest.mark.parametrize(
    ("kappa", "beta", "expected"),
    [
        (1.0, 0.0, [0.10, 0.06, -0.16]),
        (1.0, -0.1, [0.110, 0.066, -0.176]),
        (1.3, 0.0, [0.113907, 0.068344, -0.182252]),
        (1.3, -0.1, [0.121397, 0.076299, -0.197695]),
        (2.0, 0.0, [0.131376, 0.078825, -0.210201]),
        (2.0, -0.1, [0.136058, 0.088888, -0.224946]),
        (1.0, 1.0, [0.0, 0.0, 0.0]),
    ],
)
def test_worked_gradients(kappa, beta, expected):  # checks 2 to 5
    found = slope(exact(kappa, beta))[0]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert found.sum().item() == pytest.approx(0.0, abs=1e-12)


def test_sft_has_weight_one():  # check 1
    assert slope(lambda z, x: -token_logprob(z, x))[0].tolist() == pytest.approx([0.5, 0.3, -0.8])


def test_tempered_probabilities():  # checks 3 and 4
    assert (LOGITS / 1.3).softmax(-1)[0].tolist() == pytest.approx([0.460988, 0.311198, 0.227815], abs=1e-6)
    assert (LOGITS / 2).softmax(-1)[0].tolist() == pytest.approx([0.415446, 0.321803, 0.262751], abs=1e-6)


def drawn_logits(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 7, generator=generator, dtype=torch.float64), torch.randint(7, (5,), generator=generator)


def test_without_tempering_it_is_dft_and_beta_a_factor():  # check 2
    logits, targets = drawn_logits()

    def dft(z, x):
        logp = token_logprob(z, x)
        return -logp.detach().exp() * logp

    for beta in (0.0, -0.1, -0.5):
        assert torch.allclose(slope(exact(1.0, beta), logits, targets), (1 - beta) * slope(dft, logits, targets))
    ratios = slope(exact(2.0, -0.1)) / slope(exact(2.0, 0.0))
    assert ratios.max() - ratios.min() > 0.01  # with it, beta is no factor


def test_the_gradient_is_w_pi_minus_w():
    logits, targets = drawn_logits(1)
    reward = torch.full_like(logits, -0.3).scatter(1, targets[:, None], 1.0)
    w = (logits / 1.3).softmax(-1) * reward
    wanted = w.sum(-1, keepdim=True) * logits.softmax(-1) - w
    assert torch.allclose(slope(exact(1.3, -0.3), logits, targets), wanted)


@pytest.mark.parametrize(("draws", "rows"), [(200_000, 1), (4, 50_000)])
def test_the_sampled_form_tends_to_the_exact_one(draws, rows):  # check 6
    generator = torch.Generator().manual_seed(0)
    loss = partial(sampled_loss, kappa=1.3, beta=-0.1, draws=draws, generator=generator)
    found = slope(loss, LOGITS.expand(rows, -1), TARGET.expand(rows)).mean(0)
    assert found.tolist() == pytest.approx(slope(exact(1.3, -0.1))[0].tolist(), abs=0.005)


def test_nothing_flows_through_what_is_drawn():  # check 7
    kappa = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    for loss in (exact_loss, partial(sampled_loss, draws=8, generator=generator)):
        leaf = LOGITS.clone().requires_grad_()
        of_logits, of_kappa = torch.autograd.grad(
            loss(leaf, TARGET, kappa=kappa, beta=-0.1).sum(), (leaf, kappa), allow_unused=True
        )
        assert of_logits.abs().max() > 0 and of_kappa is None
    weights = (LOGITS / 1.3).softmax(-1) * torch.tensor([[-0.1, -0.1, 1.0]], dtype=torch.float64)
    fixed = slope(lambda z, x: -(weights * z.log_softmax(-1)).sum(-1))
    assert torch.allclose(fixed, slope(exact(1.3, -0.1)))


def test_unlikely_tokens_hardly_ever_hit():
    logits = torch.tensor([[0.0, -20.0]], dtype=torch.float64)
    loss = partial(sampled_loss, kappa=1.0, beta=0.0, draws=256, generator=torch.Generator().manual_seed(0))
    assert slope(loss, logits, torch.tensor([1])).abs().max() == 0


TINY = Config(
    updates=2, batch=4, train_problems=16, eval_problems=6, eval_samples=2, max_new_tokens=64, monitors=1, draws=16
)


@pytest.mark.parametrize("arm", ["otr", "dft", "base"])
def test_arms(arm, tmp_path):
    result = run_arm(PAPER, TINY, arm, 0, str(tmp_path))
    values = {name: found["value"] for name, found in result["metrics"].items()}
    assert result["status"] == "ok"
    roles = [values[name] for name in ("revising", "thinking", "judging") if name in values]
    assert len(roles) >= 2 and values["other roles"] == pytest.approx(sum(roles) / len(roles))
    assert len(result["per_problem"]["other roles"]) == TINY.eval_problems
    assert 0 < values["p(reference)"] < 1 and values["NLL"] > 0 and 0 <= values["out of reach"] < 1
    if arm != "base":
        assert result["budget"]["optimizer_steps"] == TINY.updates and result["budget"]["completions"] == 0


def test_padding_changes_nothing(tmp_path):  # check 8
    whole = Run(PAPER, "otr", 0, TINY, tmp_path / "a")
    split = Run(PAPER, "otr", 0, replace(TINY, tokens_per_batch=64), tmp_path / "b")
    losses = []
    for run in (whole, split):
        run.update_on_logits(solution_batch(run, run.next_problems(4)), exact(1.3, -0.1))
        losses.append(run._logged["loss"][0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("preset", ["tiny", "smol", "small", "gpu"])
def test_as_much_as_the_standard_sft_arm_sees(preset):
    config = Config.for_preset(preset)
    config.check()
    sft = settings_for(config)
    assert (config.updates, config.batch) == (sft.updates, sft.batch)


@pytest.mark.parametrize("settings", [{"kappa": 0.0}, {"beta": 1.5}])
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ConfigError):
        replace(TINY, **settings).check()
