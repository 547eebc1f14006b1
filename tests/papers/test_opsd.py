"""OPSD: worked numbers of its losses, normalisation, and every arm for two steps.

The divergences themselves, the teacher pass and the alignment of both prompts are in test_divergences.py.
"""

import pytest
import torch
from conftest import own_arms

from papers.opsd import PAPER, Config, divergence_of, sampled_token_loss
from repro.arm import run_arm
from repro.model.training import token_weights

STUDENT = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
TEACHER = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"divergence": "forward", "clip": 0.0}, 0.085123),
        ({"divergence": "forward", "clip": 0.05}, -0.100408),
        ({"divergence": "reverse", "clip": 0.0}, 0.092033),
        ({"divergence": "jsd", "clip": 0.0}, 0.021901),
        # on the teacher's two likeliest tokens: (7/9, 2/9) against (5/8, 3/8)
        ({"divergence": "forward", "clip": 0.0, "top_k": 2}, 7 / 9 * 0.218689 + 2 / 9 * -0.523248),
    ],
)
def test_settings_choose_the_divergence(settings, expected):
    assert divergence_of(Config(**settings))(STUDENT, TEACHER).item() == pytest.approx(expected, abs=1e-6)


def test_the_sampled_token_gradient_is_on_average_that_of_reverse_kl():
    logits = STUDENT[0].clone().requires_grad_()
    logp = logits.log_softmax(-1)
    total = torch.zeros(3, dtype=torch.float64)
    for token in range(3):
        loss = sampled_token_loss(logp[token], TEACHER[0, token] - logp[token])
        total += logp[token].exp().item() * torch.autograd.grad(loss, logits, retain_graph=True)[0]
    assert total.tolist() == pytest.approx([-0.214253, 0.094030, 0.120223], abs=1e-6)
    reverse = divergence_of(Config(divergence="reverse", clip=0.0))(logits[None], TEACHER).sum()
    assert total.tolist() == pytest.approx(torch.autograd.grad(reverse, logits)[0].tolist(), abs=1e-9)


def test_token_and_sequence_means():  # one token at 1.0, three at 0.2
    values = torch.tensor([1.0, 0.2, 0.2, 0.2])
    assert (values * token_weights([1, 3], "token")).sum().item() == pytest.approx(0.4)
    assert (values * token_weights([1, 3], "sequence")).sum().item() == pytest.approx(0.6)


TINY = Config(
    updates=2,
    steps=2,
    prompts=4,
    samples=4,
    train_problems=64,
    eval_problems=8,
    eval_samples=2,
    max_new_tokens=40,
    monitors=1,
)


@pytest.mark.parametrize("arm", own_arms(PAPER))
def test_every_arm_runs(arm, tmp_path):
    result = run_arm(PAPER, TINY, arm, 0, str(tmp_path))
    assert result["status"] == "ok"
    assert result["budget"]["completions"] == 8 and result["budget"]["optimizer_steps"] == 2
    assert all(row["gap"] > 0 for row in result["history"])
    assert result["history"][-1]["validation"] >= 0


def test_it_samples_half_of_the_protocol():
    config = Config()
    assert 2 * config.updates * config.prompts == config.steps * config.prompts * config.samples
