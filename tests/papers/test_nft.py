"""The properties of NFT: the worked numbers of the paper's equations, and its equality with Dr. GRPO on-policy."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from papers.nft import Config, max_v, negative_ratio, nft_loss, prompt_weight
from repro.config import RunConfig
from repro.methods.grpo import GRPO, advantages, grpo_loss
from repro.methods.sft import nll
from repro.model.policy import Policy
from repro.model.training import LOGPROBS, Batch, Trainer, token_weights

PLAIN = Config(omega="1")


def coefficient(ratio: float, right: float, r_hat: float, config: Config) -> tuple[float, float]:
    """Value and gradient with respect to log pi of one token's loss."""
    logp = torch.tensor([ratio], dtype=torch.float64).log().requires_grad_()
    old, r, rate = (torch.tensor([v], dtype=torch.float64) for v in (0.0, right, r_hat))
    loss = nft_loss(logp, old, r, rate, config)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    return loss.item(), gradient.item()


@pytest.mark.parametrize(
    ("omega", "r_hat", "right", "wrong"),
    [
        ("1", 0.25, -1.0, 0.333333),
        ("1-r", 0.25, -0.75, 0.25),
        ("sqrt", 0.25, -1.732051, 0.577350),
        ("sqrt", 0.5, -1.0, 1.0),
        ("sqrt", 0.75, -0.577350, 1.732051),
    ],
)
def test_on_policy_coefficients(omega, r_hat, right, wrong):
    config = Config(omega=omega)
    assert coefficient(1.0, 1.0, r_hat, config)[1] == pytest.approx(right, abs=1e-6)
    assert coefficient(1.0, 0.0, r_hat, config)[1] == pytest.approx(wrong, abs=1e-6)


@pytest.mark.parametrize("samples_right", [1, 2, 3])
def test_on_policy_coefficients_are_minus_the_group_advantages(samples_right):
    rewards = torch.tensor([[1.0] * samples_right + [0.0] * (4 - samples_right)], dtype=torch.float64)
    r_hat = samples_right / 4
    for omega, variant, ddof in (("1-r", "dr_grpo", 1), ("sqrt", "grpo", 0)):
        advantage = advantages(rewards, variant, ddof=ddof, delta=0.0)[0]
        for reward, a in zip(rewards[0].tolist(), advantage.tolist(), strict=True):
            assert coefficient(1.0, reward, r_hat, Config(omega=omega))[1] == pytest.approx(-a, abs=1e-9)


@pytest.mark.parametrize(
    ("eps", "ratio", "value", "gradient"),
    [
        (1.0, 0.5, -0.154151, 0.142857),
        (1.0, 2.0, 0.0, 0.666667),
        (1.0, 4.0, 0.0, 1.333333),
        (0.1, 2.0, 0.405465, 1.0),
        (0.1, 4.0, 2.302585, 13.33333),
    ],
)
def test_wrong_tokens_off_policy(eps, ratio, value, gradient):
    measured = coefficient(ratio, 0.0, 0.25, replace(PLAIN, eps=eps))
    assert measured == pytest.approx((value, gradient), abs=1e-5)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_right_tokens_have_no_ratio_in_the_gradient(ratio):
    for omega in ("1", "1-r", "sqrt"):
        weight = prompt_weight(torch.tensor(0.25, dtype=torch.float64), omega).item()
        assert coefficient(ratio, 1.0, 0.25, Config(omega=omega))[1] == pytest.approx(-weight)


def test_max_v_keeps_the_gradient_below_the_bound():
    x = torch.tensor([-3.0, 0.5, 2.0], requires_grad=True)
    value = max_v(x, 1.0)
    value.sum().backward()
    assert value.tolist() == [1.0, 1.0, 2.0]
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


def test_policy_split():
    old, policy = torch.tensor([0.25, 0.75]), torch.tensor([0.7, 0.3])
    negative = negative_ratio(policy / old, torch.tensor(0.25)) * old
    assert negative.tolist() == pytest.approx([0.1, 0.9])


def test_theorem_3_1_maximum_likelihood_of_the_split_finds_the_positive_policy():
    old, right, r = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([1.0, 1.0, 0.0]).double(), 0.8
    positive, negative = old * right / r, old * (1 - right) / (1 - r)

    def objective(policy):
        implied = negative_ratio(policy / old, torch.tensor(r).double()) * old
        return (
            r * (positive * policy.log()).nan_to_num().sum() + (1 - r) * (negative * implied.log()).nan_to_num().sum()
        )

    assert objective(positive).item() == pytest.approx(-0.529251, abs=1e-6)
    assert objective(old).item() == pytest.approx(-1.029653, abs=1e-6)


def make_batch(policy: Policy) -> Batch:
    """Three prompts with four completions each, all kinds of success rates between."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(10, 60, (n,), generator=generator).tolist() for n in (5, 8, 6)]
    lengths = torch.randint(2, 9, (12,), generator=generator).tolist()
    pairs = [
        (prompts[i // 4], torch.randint(10, 60, (n,), generator=generator).tolist()) for i, n in enumerate(lengths)
    ]
    batch = Batch(pairs)
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
    trainer = Trainer(policy, 0.0)
    batch.fields["old_logp"] = trainer.values(batch)
    batch.fields["right"] = batch.spread(rewards.flatten())
    batch.fields["r_hat"] = batch.spread(rewards.mean(1, keepdim=True).expand(3, 4).flatten())
    batch.fields["advantage"] = batch.spread(advantages(rewards, "dr_grpo").flatten())
    batch.fields["weight"] = token_weights(batch.lengths, "token")
    return batch


def adapter_gradient(policy: Policy, batch: Batch, loss) -> torch.Tensor:
    trainer = Trainer(policy, 0.0, max_grad_norm=1e9)
    trainer._accumulate(batch, loss, LOGPROBS, 1)
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters]).double()
    trainer.optimizer.zero_grad()
    return gradient


def test_one_update_per_rollout_is_dr_grpo():
    policy = Policy(RunConfig())
    batch = make_batch(policy)
    nft = adapter_gradient(policy, batch, lambda logp, f: nft_loss(logp, f.old_logp, f.right, f.r_hat, Config()))
    grpo = adapter_gradient(policy, batch, partial(grpo_loss, settings=GRPO(variant="dr_grpo")))
    assert torch.nn.functional.cosine_similarity(nft, grpo, dim=0) > 0.99999
    assert (nft.norm() / grpo.norm()).item() == pytest.approx(1.0, abs=1e-4)


def test_without_negatives_it_is_rft():
    policy = Policy(RunConfig())
    batch = make_batch(policy)
    config = replace(PLAIN, neg_weight=0.0)
    rft = adapter_gradient(policy, batch, lambda logp, f: nft_loss(logp, f.old_logp, f.right, f.r_hat, config))
    right_only = Batch(batch.sequences, {"weight": batch.fields["weight"] * batch.fields["right"]})
    likelihood = adapter_gradient(policy, right_only, nll)
    assert torch.allclose(rft, likelihood, atol=1e-7)


def test_no_gradient_reaches_wrong_tokens_without_negatives():
    logp = torch.zeros(4, requires_grad=True)
    right = torch.tensor([1.0, 0.0, 1.0, 0.0])
    loss = nft_loss(logp, torch.zeros(4), right, torch.full((4,), 0.5), replace(PLAIN, neg_weight=0.0))
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert gradient[right == 0].tolist() == [0.0, 0.0]
    assert gradient[right == 1].tolist() == [-1.0, -1.0]


def test_loss_stays_finite_where_the_implied_policy_is_negative():
    for ratio in (1e-6, 1.0, 4.0, 1e6):
        value, gradient = coefficient(ratio, 0.0, 0.98, Config())
        assert abs(value) < 1e9 and abs(gradient) < 1e9


def test_right_and_wrong_tokens_are_both_bounded_at_the_largest_ratio():
    config = replace(PLAIN, max_log_ratio=1.0)
    for right in (1.0, 0.0):
        inside, beyond = (coefficient(ratio, right, 0.25, config) for ratio in (2.0, 4.0))
        assert inside[1] != 0.0 and beyond[1] == 0.0  # log 4 > 1
    assert coefficient(4.0, 1.0, 0.25, config)[0] == pytest.approx(-1.0)
