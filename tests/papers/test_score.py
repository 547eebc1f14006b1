"""SCoRe: worked numbers of its rewards and estimator, which turn learns from what, and every arm for a few steps."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import own_arms, perturb

from papers.score import (
    LEARNING,
    PAPER,
    Config,
    reinforce,
    score,
    stage_one_returns,
    stage_two_returns,
    star_traces,
    wrong_right_pairs,
)
from repro.arm import run_arm, run_folder
from repro.config import ConfigError
from repro.methods.grpo import leave_one_out
from repro.methods.multiturn import converse
from repro.model.logprobs import completion_values
from repro.model.sampling import Completion
from repro.results.metrics import confidence_critique, self_correction
from repro.run import Run
from repro.tasks import prompts

PLAIN = Config(beta1=0.0, beta2=0.0)


def draw(problems: int = 3, samples: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random rewards and log-ratios of two turns."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(0, 2, (2, problems, samples), generator=generator).double()
    return rewards, torch.randn(2, problems, samples, generator=generator, dtype=torch.float64)


# --- rewards and estimator --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("r1", "r2", "shaped"), [(0, 0, 0), (0, 1, 11), (1, 0, -10), (1, 1, 1)])
def test_shaped_reward_of_the_second_turn(r1, r2, shaped):
    rewards = torch.tensor([[[float(r1)]], [[float(r2)]]])
    returns = stage_two_returns(rewards, torch.zeros(2, 1, 1), PLAIN)
    assert returns.flatten().tolist() == [r1, shaped]


@pytest.mark.parametrize(
    ("returns", "advantages"),
    [
        ([1, 0, 0, 1], [2 / 3, -2 / 3, -2 / 3, 2 / 3]),
        ([11, 0, 1, -10], [14, -2 / 3, 2 / 3, -14]),
        ([5, 5, 5, 5], [0, 0, 0, 0]),
        ([1, 0], [1, -1]),
    ],
)
def test_leave_one_out(returns, advantages):
    assert leave_one_out(torch.tensor([returns]).double())[0].tolist() == pytest.approx(advantages)


def test_leave_one_out_against_its_definition_for_each_turn_and_problem():
    _, returns = draw(5, 6)
    found = leave_one_out(returns)
    for t, i, k in np.ndindex(2, 5, 6):
        others = [returns[t, i, m].item() for m in range(6) if m != k]
        assert found[t, i, k].item() == pytest.approx(returns[t, i, k].item() - np.mean(others))
    assert found.sum(-1).abs().max() < 1e-12


def test_the_kl_of_a_turn_is_in_the_return_of_that_turn():
    rewards, log_ratio = draw()
    config = Config(beta1=0.01, beta2=0.1, alpha=10.0)
    one, two = stage_one_returns(rewards, log_ratio, config), stage_two_returns(rewards, log_ratio, config)
    assert torch.allclose(one[0], -0.1 * log_ratio[0]) and torch.allclose(one[1], rewards[1] - 0.01 * log_ratio[1])
    assert torch.allclose(two[0], rewards[0] - 0.01 * log_ratio[0])
    assert torch.allclose(two[1], rewards[1] + 10 * (rewards[1] - rewards[0]) - 0.01 * log_ratio[1])


def test_stage_one_without_its_kl_leaves_the_first_turn_alone():
    rewards, log_ratio = draw()
    advantage = leave_one_out(stage_one_returns(rewards, log_ratio, replace(PLAIN, beta1=0.5)))
    assert advantage[0].abs().max() == 0 and advantage[1].abs().max() > 0
    at_the_base = leave_one_out(stage_one_returns(rewards, torch.zeros_like(log_ratio), Config()))
    assert at_the_base[0].abs().max() == 0


@pytest.mark.parametrize("objective", [stage_one_returns, stage_two_returns])
def test_the_first_turn_is_blind_to_what_the_second_earns(objective):
    rewards, log_ratio = draw()
    flipped = torch.stack([rewards[0], 1 - rewards[1]])
    before, after = (leave_one_out(objective(r, log_ratio, Config())) for r in (rewards, flipped))
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


def test_without_the_bonus_the_second_turn_is_plain_rloo():
    rewards, log_ratio = draw()
    plain = leave_one_out(rewards[1])
    no_bonus = stage_two_returns(rewards, log_ratio, replace(PLAIN, alpha=0.0))
    assert torch.equal(no_bonus, rewards)
    assert torch.equal(leave_one_out(no_bonus)[1], plain)
    same_first = torch.stack([torch.ones_like(rewards[0]), rewards[1]])  # alike in a group: a common factor is left
    bonus = leave_one_out(stage_two_returns(same_first, log_ratio, PLAIN))
    assert torch.allclose(bonus[1], 11 * plain)
    repeated = torch.stack([rewards[1], rewards[1]])  # no progress anywhere: the bonus is silent
    assert torch.allclose(leave_one_out(stage_two_returns(repeated, log_ratio, PLAIN))[1], plain)


def test_the_detached_log_ratio_gives_the_gradient_of_reverse_kl():
    reference = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(-1)
    kl = (logp.exp() * (logp - reference)).sum()
    assert kl.item() == pytest.approx(0.143841, abs=1e-6)
    (exact,) = torch.autograd.grad(kl, logits, retain_graph=True)
    assert exact.tolist() == pytest.approx([0.274653, -0.274653], abs=1e-6)
    # the expectation over all groups of two samples of stage I's estimate with beta2 = 1
    estimate = torch.zeros(2, dtype=torch.float64)
    for a, b in np.ndindex(2, 2):
        log_ratio = (logp - reference).detach()[[a, b]]
        returns = stage_one_returns(torch.zeros(2, 1, 2), torch.stack([log_ratio, log_ratio])[:, None], Config(beta2=1))
        loss = -(leave_one_out(returns)[0, 0] * logp[[a, b]]).mean()
        estimate += 0.25 * torch.autograd.grad(loss, logits, retain_graph=True)[0]
    assert estimate.tolist() == pytest.approx(exact.tolist(), abs=1e-9)


def test_the_bonus_weighs_the_second_turn_and_changes_no_direction():
    """Given the first attempt -alpha r1 is a constant, so that on average only the factor 1 + alpha is left of it."""
    first = torch.tensor([0.3, 0.7], dtype=torch.float64)
    logits = torch.tensor([[0.2, -0.1], [0.5, 0.4]], dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(-1)  # of the second answer after each first one; answer 1 is right
    gradients = []
    for alpha in (0.0, 10.0):
        total = torch.zeros_like(logits)
        for a1, b1, a2, b2 in np.ndindex(2, 2, 2, 2):  # two conversations, (a1, a2) and (b1, b2)
            rewards = torch.tensor([[[a1, b1]], [[a2, b2]]]).double()
            advantage = leave_one_out(stage_two_returns(rewards, torch.zeros(2, 1, 2), replace(PLAIN, alpha=alpha)))
            probability = first[a1] * first[b1] * (logp[a1, a2] + logp[b1, b2]).exp().item()
            objective = (advantage[1, 0] * torch.stack([logp[a1, a2], logp[b1, b2]])).mean()
            total += probability * torch.autograd.grad(objective, logits, retain_graph=True)[0]
        gradients.append(total)
    expected = (first[:, None] * logp.exp())[:, 1].sum()
    (exact,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(gradients[0], exact) and torch.allclose(gradients[1], 11 * exact)


# --- the paper's table ------------------------------------------------------------------------------------------------

MATH = [  # Acc@t1, Acc@t2, delta, i->c, c->i in percent
    (52.6, 41.4, -11.2, 4.6, 15.8),
    (52.8, 51.8, -1.0, 3.2, 4.2),
    (55.4, 41.2, -14.2, 5.4, 19.6),
    (53.6, 54.0, 0.4, 2.6, 2.2),
    (52.4, 54.2, 1.8, 5.4, 3.6),
    (55.0, 55.0, 0.0, 0.0, 0.0),
    (60.0, 64.4, 4.4, 5.8, 1.4),
]


@pytest.mark.parametrize("row", MATH)
def test_the_metrics_give_back_the_paper_s_table(row):
    acc1, acc2, delta, fixed, broken = row
    counts = [round(10 * v) for v in (acc1 - broken, broken, fixed, 100 - acc1 - fixed)]  # of 1,000 problems
    first, second = np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)
    means = {name: 100 * values.mean() for name, values in self_correction(first, second, first != second).items()}
    expected = {"acc@t1": acc1, "acc@t2": acc2, "delta": delta, "i_to_c": fixed, "c_to_i": broken}
    assert {name: means[name] for name in expected} == pytest.approx(expected, abs=0.1001)
    parts = confidence_critique(first, second)
    assert acc1 / 100 * parts["CL"] + (1 - acc1 / 100) * parts["CS"] == pytest.approx(acc2 / 100, abs=1e-3)


# --- data of the baselines --------------------------------------------------------------------------------------------


def completions(texts: list[str]) -> list[Completion]:
    return [Completion((1, 2), (i, 1), (0.0, 0.0), text, False) for i, text in enumerate(texts)]


def test_pairs_join_a_wrong_with_a_right_sample_each_used_once():
    solutions = completions(["a", "b", "c", "d", "e"])
    rewards = [1.0, 0.0, 0.0, 1.0, 0.0]
    pairs = wrong_right_pairs(solutions, rewards, torch.Generator().manual_seed(0))
    assert len(pairs) == 2
    assert all(rewards[solutions.index(w)] == 0 and rewards[solutions.index(r)] == 1 for w, r in pairs)
    assert len({w.text for w, _ in pairs}) == len({r.text for _, r in pairs}) == 2
    assert wrong_right_pairs(solutions, [1.0] * 5, torch.Generator()) == []


TINY = Config(
    steps=4,
    prompts=4,
    conversation_problems=2,
    samples=4,
    rounds=2,
    updates=2,
    batch=8,
    train_problems=64,
    eval_problems=8,
    eval_samples=2,
    max_new_tokens=48,
    monitors=1,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return Run(PAPER, "score", 0, TINY, tmp_path_factory.mktemp("run"))


def test_star_keeps_second_turns_that_end_right(run):
    attempts = converse(run, run.next_problems(2), 2, 2)
    attempts.rewards = torch.tensor([[[0, 1], [0, 1]], [[1, 1], [0, 0]]]).float()
    a, b = attempts.completions[1][0]
    assert star_traces(attempts, True) == [(list(c.prompt), list(c.ids)) for c in (a, b)]
    assert star_traces(attempts, False) == [(list(a.prompt), list(a.ids))]


# --- conversations and updates on the tiny model ----------------------------------------------------------------------


def test_both_turns_carry_loss_and_the_first_is_only_context_in_the_second(run, monkeypatch):
    seen = []
    monkeypatch.setattr(run, "update", lambda batch, loss, mean, temperature: seen.append(mean))
    attempts = converse(run, run.next_problems(2), 3, 2)
    reinforce(run, attempts, stage_two_returns, TINY)
    every = [c for turn in attempts.completions for group in turn for c in group]
    assert len(seen[0]) == sum(len(c.ids) for c in every)
    assert all(c.ids[-1] in run.policy.stop_ids for c in every if not c.truncated)
    for i, problem in enumerate(attempts.problems):
        for k in range(3):
            y1, y2 = (turn[i][k] for turn in attempts.completions)
            shown = run.policy.tokenizer.decode(list(y2.prompt))
            assert y1.text in shown and shown.rindex(y1.text) > shown.index(problem.question)
    y2 = attempts.completions[1][0][0]
    other = run.policy.encode(prompts.retry(prompts.solve(attempts.problems[0]), "1+1=3\n\\boxed{3}"))
    model = run.policy.model.get_base_model()
    with torch.no_grad():
        values = completion_values(model, [(y2.prompt, y2.ids), (other, y2.ids)])
    assert not torch.allclose(*values.chunk(2), atol=1e-3)


def test_weights_are_advantages_over_the_number_of_conversations(run, monkeypatch):
    seen = []
    monkeypatch.setattr(run, "update", lambda batch, loss, mean, temperature: seen.append(mean.split(batch.lengths)))
    attempts = converse(run, run.next_problems(2), 4, 2)
    attempts.rewards = torch.tensor([[[0, 1, 1, 0], [1, 1, 0, 0]], [[1, 1, 0, 0], [0, 1, 0, 1]]]).float()
    reinforce(run, attempts, stage_two_returns, TINY)
    (weights,) = seen
    per_sequence = torch.stack([w[0] for w in weights])
    assert all((w == w[0]).all() for w in weights)  # a sum over tokens: every token has its sequence's whole advantage
    expected = leave_one_out(stage_two_returns(attempts.rewards, torch.zeros(2, 2, 4), TINY)) / 8  # still at the base
    assert torch.allclose(per_sequence, expected.flatten())


def test_the_reference_is_the_base(run):
    history = []
    run.log = lambda **values: history.append(values)
    attempts = converse(run, run.next_problems(2), 4, 2)
    run.update = lambda batch, loss, mean, temperature: None
    reinforce(run, attempts, stage_one_returns, TINY)
    state = run.policy.adapter_state()
    perturb(run.policy, 0.1)
    reinforce(run, attempts, stage_one_returns, TINY)
    run.policy.load_adapter_state(state)
    del run.log, run.update
    assert history[0]["kl@t1"] == history[0]["kl@t2"] == 0
    assert abs(history[1]["kl@t1"]) > 0.01 and abs(history[1]["kl@t2"]) > 0.01


def table_rl(seed: int, score: bool, answers: int = 4, samples: int = 32, steps: int = 40) -> np.ndarray:
    """A table in place of a model, with one problem for each right answer: the answer at turn 2 leans on a preference
    shared with turn 1, on one of its own and on a wish to repeat the first. Change rate and accuracies, [steps, 3]."""
    torch.manual_seed(seed)
    right = torch.arange(answers)[:, None]
    shared, own = (torch.zeros(answers, answers, requires_grad=True) for _ in range(2))
    repeat = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([shared, own, repeat], lr=0.1)
    history = []
    for step in range(steps):
        first = shared.log_softmax(-1)
        y1 = torch.multinomial(first.exp().detach(), samples, replacement=True)
        stay = repeat * torch.nn.functional.one_hot(y1, answers)
        second = ((shared + own)[:, None] + stay).log_softmax(-1)
        y2 = torch.multinomial(second.exp().detach().flatten(0, 1), 1).view_as(y1)
        logp = torch.stack([first.gather(1, y1), second.gather(2, y2[..., None])[..., 0]])
        rewards = torch.stack([y1 == right, y2 == right]).float()
        objective = stage_one_returns if score and step < steps // 2 else stage_two_returns
        log_ratio = logp.detach() + np.log(answers)  # the reference is uniform
        advantage = leave_one_out(objective(rewards, log_ratio, Config(alpha=10.0 if score else 0.0, beta2=1.0)))
        optimizer.zero_grad()
        (-advantage * logp).sum(0).mean().backward()
        optimizer.step()
        history.append([(y1 != y2).float().mean().item(), *rewards.mean((1, 2)).tolist()])
    return np.array(history)


def test_score_decouples_the_attempts_where_plain_rl_repeats_the_first():
    plain, score = (np.mean([table_rl(seed, kind) for seed in range(3)], 0) for kind in (False, True))
    end_of_stage_one, stage_two = slice(15, 20), slice(20, 40)
    assert score[end_of_stage_one, 2].mean() > score[end_of_stage_one, 1].mean() + 0.4
    assert score[end_of_stage_one, 1].mean() < 0.45 < plain[end_of_stage_one, 1].mean()
    assert score[stage_two, 0].mean() > plain[stage_two, 0].mean() + 0.1
    assert score[-5:, 1].mean() > 0.6  # stage II raises the first attempt, too: the bonus isn't earned by spoiling it


# --- whole arms -------------------------------------------------------------------------------------------------------


SMALL = replace(TINY, steps=2, eval_problems=4)


def check_turns(metrics: dict) -> dict[str, float]:
    values = {name: found["value"] for name, found in metrics.items()}
    for suffix in ("", ", sampled"):
        acc1, acc2, fixed, broken = (values[f"{n}{suffix}"] for n in ("acc@t1", "acc@t2", "i_to_c", "c_to_i"))
        assert acc2 - acc1 == pytest.approx(values[f"delta{suffix}"]) == pytest.approx(fixed - broken)
    return values


@pytest.mark.parametrize("arm", own_arms(PAPER))
def test_every_arm_trains_on_the_protocol_s_completions(arm, tmp_path):
    result = run_arm(PAPER, SMALL, arm, 0, str(tmp_path))
    assert result["status"] == "ok"
    assert result["budget"]["completions"] == SMALL.steps * SMALL.prompts * SMALL.samples
    steps = result["budget"]["optimizer_steps"]
    assert steps <= 4 if arm == "star" else steps == 2  # a round of STaR may find no trace
    values = check_turns(result["metrics"])
    if arm in LEARNING:
        assert 0 <= values["training changed"] <= 1


@pytest.mark.parametrize(
    ("preset", "steps", "conversations"),
    [("tiny", 20, 1280), ("smol", 8, 512), ("gpu", 60, 3840)],
)
def test_conversations_are_half_of_the_protocol_s_completions(preset, steps, conversations):
    config = Config.for_preset(preset)
    assert config.conversation_steps == steps
    assert steps * config.conversation_problems * config.samples == conversations


@pytest.mark.parametrize(("share", "first"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_stages_divide_the_steps(share, first, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr("papers.score.conversations", lambda run, config: None)
    monkeypatch.setattr("papers.score.reinforce", lambda run, attempts, objective, config: used.append(objective))
    config = replace(TINY, stage_one=share, monitors=0)
    score(Run(PAPER, "score", 0, config, tmp_path), config)
    assert used == [stage_one_returns] * first + [stage_two_returns] * (4 - first)


def test_the_common_evaluation_s_samples_are_gone_on_with(tmp_path):
    config = replace(SMALL, eval_samples=3, retried_samples=2)
    run_arm(PAPER, config, "base", 0, str(tmp_path))
    measured = json.loads((run_folder(PAPER, config, "base", 0, str(tmp_path)) / "result.json").read_text())
    values = check_turns(measured["metrics"])
    (file,) = tmp_path.rglob("evaluation.pt")
    rewards = torch.load(file, weights_only=True)["rewards"]
    assert measured["per_problem"]["acc@t1, sampled"] == rewards[:, :2].mean(1).tolist()
    assert "accuracy" not in values  # that is the standard arm's own


@pytest.mark.parametrize(("arm", "stop"), [("score", 2), ("score", 3), ("star", 1), ("star", 4)])
def test_stopped_within_a_stage_it_ends_like_an_uninterrupted_run(arm, stop, tmp_path, monkeypatch):
    """Stopped after the work of a step and before it is saved: where a stage has just begun, or later."""

    config = replace(TINY if arm == "score" else SMALL, eval_problems=4)

    def finish(out) -> dict:
        run_arm(PAPER, config, arm, 0, str(out))
        return torch.load(run_folder(PAPER, config, arm, 0, str(out)) / "checkpoint.pt", weights_only=True)

    whole = finish(tmp_path / "whole")
    save = Run._save

    def save_or_stop(run):
        if run.step == stop + 1:
            raise KeyboardInterrupt
        save(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_save", save_or_stop)
        with pytest.raises(KeyboardInterrupt):
            finish(tmp_path / "stopped")
    stopped = finish(tmp_path / "stopped")
    assert stopped["step"] == whole["step"] and stopped["budget"] == whole["budget"]
    assert all(torch.equal(whole["adapter"][k], stopped["adapter"][k]) for k in whole["adapter"])
    if arm == "score":  # two steps a stage, each with an optimiser of its own
        assert whole["step"] == 4 and whole["trainer"]["steps"] == 2


@pytest.mark.parametrize("settings", [{"samples": 1}, {"stage_one": 1.5}, {"conversation_problems": 321}])
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ConfigError):
        Config(**settings).check()
