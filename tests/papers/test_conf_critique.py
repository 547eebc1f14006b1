"""Confidence v.s. Critique: both estimators on worked numbers, the builder of examples, arms for a few steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from papers.conf_critique import (
    FOLLOW_UPS,
    PAPER,
    Config,
    by_fresh_samples,
    examples,
    first_attempt,
    shown,
    verdicts,
)
from repro.arm import run_arm
from repro.config import ConfigError
from repro.methods.standard import settings_for
from repro.results.metrics import chances_by_labels, chances_by_samples, decompose
from repro.run import Run
from repro.tasks import prompts
from repro.tasks.rewards import score

FIRST = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=float)
SECOND = np.array([[1, 1, 0, 1], [0, 1, 0, 0], [1, 0, 0, 1]], dtype=float)


def means(chances) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in decompose(*chances).items()}


def pooled(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """CL and CS by counting over all samples."""
    return {"CL": second[first == 1].mean(), "CS": second[first == 0].mean()}


# --- the worked checks ----------------------------------------------------------------------------------------------


def test_sampling_estimator():  # C1, and pooled counting, C2
    found = means(chances_by_samples(FIRST, SECOND))
    expected = {"acc@t1": 1 / 3, "acc@t2": 0.5, "CL": 0.75, "CS": 0.375, "RSS": 0.875}
    assert found == pytest.approx(expected)
    assert pooled(FIRST, SECOND) == {"CL": pytest.approx(3 / 4), "CS": pytest.approx(3 / 8)}


@pytest.mark.parametrize("seed", range(5))
def test_the_identity_holds_and_pooled_counting_is_the_same(seed):
    rng = np.random.default_rng(seed)
    first, second = (rng.integers(0, 2, (20, 6)).astype(float) for _ in range(2))
    found = means(chances_by_samples(first, second))
    assert {name: found[name] for name in ("CL", "CS")} == pytest.approx(pooled(first, second))
    acc1, acc2 = first.mean(), second.mean()
    assert (found["acc@t1"], found["acc@t2"]) == pytest.approx((acc1, acc2))
    assert acc1 * found["CL"] + (1 - acc1) * found["CS"] == pytest.approx(acc2)


def test_the_weighted_mean_isn_t_that_of_the_questions_ratios():
    _, kept, _ = chances_by_samples(FIRST, SECOND)
    assert kept.mean() == pytest.approx(0.556, abs=1e-3)  # zeros for undefined
    assert kept[[0, 2]].mean() == pytest.approx(0.833, abs=1e-3)


def test_logit_estimator():  # C3
    first, second = np.array([[0.5, 0.3, 0.2]]), np.array([[[0.9, 0.05, 0.05], [0.4, 0.5, 0.1], [0.2, 0.2, 0.6]]])
    right, kept, mended = chances_by_labels(first, second, [0])
    assert (right[0], kept[0], mended[0]) == pytest.approx((0.5, 0.9, 0.32))
    found = means((right, kept, mended))
    assert (found["acc@t2"], found["RSS"]) == pytest.approx((0.61, 0.72))
    binary = chances_by_labels(np.array([[0.2, 0.8]]), np.array([[[0.6, 0.4], [0.3, 0.7]]]), [1])
    both = means(tuple(np.concatenate(pair) for pair in zip((right, kept, mended), binary, strict=True)))
    expected = {"acc@t1": 0.65, "CL": 0.776923, "CS": 0.342857, "acc@t2": 0.625, "RSS": 0.445055}
    assert both == pytest.approx(expected, abs=1e-6)


def test_a_certain_label_has_no_wrong_one():
    right, kept, mended = chances_by_labels(np.array([[1.0, 0.0]]), np.array([[[0.9, 0.1], [0.3, 0.7]]]), [0])
    assert (right[0], kept[0], mended[0]) == (1.0, 0.9, 0.0)


def one(acc1: float, cl: float, cs: float) -> dict[str, float]:
    return means((np.array([acc1]), np.array([cl]), np.array([cs])))


def test_bounds():  # C4
    assert (one(0.6, 0.6, 0)["acc@t2"], one(0.6, 0.6, 0)["RSS"]) == pytest.approx((0.36, 0))
    assert (one(0.6, 1, 0.6)["acc@t2"], one(0.6, 1, 0.6)["RSS"]) == pytest.approx((0.84, 1))
    for acc in (0.1, 0.5, 0.9):
        assert one(acc, acc, acc)["RSS"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("row", "expected"),
    [((60.0, 64.4, 5.8, 1.4), (0.9767, 0.1450, 0.5917)), ((52.6, 41.4, 4.6, 15.8), (0.6996, 0.0970, 0.2754))],
)
def test_score_s_table(row, expected):  # C5: Acc1, Acc2, i->c, c->i
    acc1, acc2, fixed, broken = (v / 100 for v in row)
    found = one(acc1, 1 - broken / acc1, fixed / (1 - acc1))
    assert found["acc@t2"] == pytest.approx(acc2)
    assert (found["CL"], found["CS"], found["RSS"]) == pytest.approx(expected, abs=1e-4)


def test_copying_and_flipping():  # C7
    copied = means(chances_by_samples(FIRST, FIRST))
    assert copied == pytest.approx({"acc@t1": 1 / 3, "acc@t2": 1 / 3, "CL": 1, "CS": 0, "RSS": 0.5})
    flipped = means(chances_by_samples(FIRST, 1 - FIRST))
    assert (flipped["CL"], flipped["CS"], flipped["acc@t2"]) == pytest.approx((0, 1, 2 / 3))


def test_what_never_occurs_is_not_defined():
    ones, zeros = np.ones((2, 3)), np.zeros((2, 3))
    right, wrong = means(chances_by_samples(ones, FIRST[:2, :3])), means(chances_by_samples(zeros, FIRST[:2, :3]))
    assert np.isnan([right["CS"], right["RSS"], wrong["CL"], wrong["RSS"]]).all()
    assert (right["CL"], wrong["CS"]) == (0.5, 0.5)
    assert np.isnan(shown(chances_by_samples(ones, ones))["CL + CS"].value)  # the run leaves such metrics out


def test_fresh_samples_are_the_mean_over_all_pairs():
    rewards = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=float)
    pairs = [(j, k) for j in range(4) for k in range(4) if j != k]
    first, second = rewards[:, [j for j, _ in pairs]], rewards[:, [k for _, k in pairs]]
    assert means(by_fresh_samples(rewards)) == pytest.approx(means(chances_by_samples(first, second)))
    assert means(by_fresh_samples(rewards))["acc@t2"] == pytest.approx(rewards.mean())


# --- examples -------------------------------------------------------------------------------------------------------


TINY = Config(
    steps=2,
    prompts=2,
    samples=4,
    updates=2,
    batch=4,
    train_problems=16,
    eval_problems=4,
    eval_samples=3,
    max_new_tokens=48,
    monitors=1,
)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(PAPER, "cct", 0, TINY, tmp_path)


def test_an_attempt_of_the_kind_that_is_asked_for():
    problem = prompts.Problem("Compute 1+1.", "2", "\\boxed{2}")
    assert first_attempt(problem, ["a", "b", "c"], [0, 1, 1], True) == "b"
    assert first_attempt(problem, ["a", "b", "c"], [1, 1, 0], False) == "c"
    assert first_attempt(problem, ["a", "b"], [0, 0], True) == problem.solution
    assert first_attempt(problem, ["a", "b"], [1, 1], False) is None


@pytest.mark.parametrize("share_clt", [1.0, 0.0])
def test_examples(run, share_clt, monkeypatch):  # C6
    rollouts = run.rollout(run.next_problems(6), 4)
    seen = []
    monkeypatch.setattr(
        "papers.conf_critique.first_attempt", lambda *a: seen.append((a[0], first_attempt(*a))) or seen[-1][1]
    )
    made = examples(run, rollouts, share_clt, with_plain=False)
    used = [(problem, attempt) for problem, attempt in seen if attempt is not None]
    assert len(seen) == 6 and len(made) == len(used) >= 4
    for (problem, attempt), (prompt, target) in zip(used, made, strict=True):
        assert prompt == run.policy.encode(prompts.another(prompts.solve(problem), attempt))
        written = run.policy.tokenizer.decode(target[:-1])  # what carries the loss: the last turn and its end
        assert written == problem.solution and target[-1] == run.policy.tokenizer.eos_token_id
        assert score([problem], [written]) == [1.0]
        assert score([problem], [attempt]) == [share_clt]
    assert len(examples(run, rollouts, share_clt, with_plain=True)) == 2 * len(made)


def test_the_share_is_kept_where_problems_have_no_wrong_attempt(run):
    rollouts = run.rollout(run.next_problems(16), 1)
    rollouts.rewards = torch.tensor([[float(i < 12)] for i in range(16)])  # a CST example of four problems at most
    made = examples(run, rollouts, 0.5, with_plain=False)
    shown = [run.policy.tokenizer.decode(prompt) for prompt, _ in made]
    wrong = [c.text for (c,) in rollouts.completions[12:]]
    assert made and 2 * sum(any(text in chat for text in wrong) for chat in shown) == len(made)


def test_follow_ups_show_the_first_attempt_and_differ_in_what_is_said():
    problem = prompts.Problem("Compute 1+1.", "2")
    chats = {name: ask(problem, ["\\boxed{3}"]) for name, ask in FOLLOW_UPS.items()}
    assert all(chat[:2] == chats[""][:2] and chat[1]["content"] == "\\boxed{3}" for chat in chats.values())
    said = {name: chat[2]["content"] for name, chat in chats.items()}
    assert said == {
        "": prompts.ANOTHER,
        ", doubt": prompts.RETRY,
        ", confidence": prompts.VERDICT_RIGHT,
        ", critique": prompts.VERDICT_WRONG,
    }


def test_verdicts_are_asked_twice(run, monkeypatch):
    rollouts = run.rollout(run.next_problems(3), 1)
    rollouts.rewards = torch.tensor([[1.0], [0.0], [1.0]])
    asked = []

    def choice_logprobs(run, chats, choices, alike):
        asked.extend(chats)
        likely = torch.tensor([[0.8, 0.2] if len(chat) == 1 else [0.6, 0.4] for chat in chats])
        return likely.log() - 1.0  # some of the probability is elsewhere

    monkeypatch.setattr("papers.conf_critique.choice_logprobs", choice_logprobs)
    right, kept, mended = verdicts(run, rollouts)
    assert right.tolist() == pytest.approx([0.8, 0.2, 0.8])
    assert kept.tolist() == pytest.approx([0.6, 0.4, 0.6]) and mended.tolist() == pytest.approx([0.6, 0.4, 0.6])
    assert len(asked) == 9
    assert asked[2] == [*asked[0], {"role": "assistant", "content": "No"}, *asked[0]]


# --- whole arms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["clt", "sft_cct", "base"])
def test_arms(arm, tmp_path):
    result = run_arm(PAPER, TINY, arm, 0, str(tmp_path))
    values = {name: found["value"] for name, found in result["metrics"].items()}
    assert result["status"] == "ok"
    if arm != "base":
        assert result["budget"]["completions"] == TINY.steps * TINY.prompts * TINY.samples
        assert result["budget"]["optimizer_steps"] == TINY.updates
    for suffix in FOLLOW_UPS if arm == "base" else [""]:
        acc1, acc2 = values[f"acc@t1{suffix}"], values[f"acc@t2{suffix}"]
        assert acc2 - acc1 == pytest.approx(values[f"delta{suffix}"])
        if f"CL{suffix}" in values and f"CS{suffix}" in values:
            assert acc1 * values[f"CL{suffix}"] + (1 - acc1) * values[f"CS{suffix}"] == pytest.approx(acc2)
            assert len(result["per_problem"][f"CL{suffix}"]) == TINY.eval_problems
    assert ("CS, verdict" in values) == (arm == "base")


@pytest.mark.parametrize("preset", ["tiny", "smol", "small", "gpu"])
def test_as_many_examples_as_the_standard_sft_arm_sees(preset):
    config = Config.for_preset(preset)
    config.check()
    sft = settings_for(config)
    assert (config.updates, config.batch) == (sft.updates, sft.batch)
    problems = config.prompts * config.samples // config.attempts
    assert config.steps * problems == config.updates * config.batch


@pytest.mark.parametrize("settings", [{"share_clt": 1.5}, {"attempts": 10_000}])
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ConfigError):
        replace(TINY, **settings).check()
