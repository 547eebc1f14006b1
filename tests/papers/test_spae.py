"""SPAE: potentials and advantages on worked numbers, the probe against brute force, arms for a few steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from papers.spae import (
    CUE,
    PAPER,
    Config,
    accuracy,
    by_steps,
    changes,
    confidence,
    decay,
    ends_of,
    per_token,
    potential,
    potentials,
    probe,
    shaping,
    step_advantages,
    step_ends,
)
from repro.arm import run_arm
from repro.methods.grpo import GRPO, over_tokens
from repro.model.logprobs import completion_values, logprob_and_entropy
from repro.model.sampling import Completion
from repro.run import Rollouts, Run
from repro.tasks import prompts

TINY = Config(
    steps=2,
    prompts=3,
    samples=4,
    minibatches=1,
    most_probes=3,
    think_tokens=48,
    think_samples=2,
    probed_problems=4,
    train_problems=8,
    eval_problems=4,
    eval_samples=2,
    max_new_tokens=32,
    monitors=1,
)
GROUP = torch.tensor([0.5, -0.5], dtype=torch.float64)
PHI = [torch.tensor(phi, dtype=torch.float64) for phi in ([0.2, 0.95, 0.97], [0.1, -0.3])]
ONE_EACH = [[1, 2, 3], [1, 2]]


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(PAPER, "spae", 0, TINY, tmp_path)


def advantages_of(ends, alpha=0.5, xi=0.5):
    steps = step_advantages(GROUP, PHI, 0.9, alpha, xi)
    return per_token(GROUP, steps, ends, [e[-1] for e in ends]).tolist()


# --- the worked checks -----------------------------------------------------------------------------------------------


def test_potential():  # 1
    acc = torch.tensor([1, 0, 0, 1, 0.5, 0.9, 0.2])
    conf = torch.tensor([1, 1, 0, 0, 0.5, 0.95, 0.9])
    assert potential(acc, conf).tolist() == pytest.approx([1, -1, 0, 0.5, 0.125, 0.7825, -0.53])


def test_decay():  # 2
    phi = torch.tensor([0.95] * 5)
    assert decay(phi, 0.9, 0.5).tolist() == pytest.approx([1, 0.683940, 0.567668, 0.524894, 0.509158], abs=1e-6)
    assert decay(phi, 0.9, 0.0).tolist() == [1.0] * 5
    assert decay(torch.tensor([0.2, 0.95, 0.1, 0.97]), 0.9, 0.5).tolist() == pytest.approx([1, 1, 0.68394, 0.68394])


def test_shaping():  # 3
    found = shaping(torch.tensor([0.0, 0.8, -0.2]).double())
    assert found.tolist() == pytest.approx([-0.425159, 1.071720, -0.646562], abs=1e-6)
    assert shaping(torch.full((3,), 0.4)).tolist() == [0.0] * 3
    assert shaping(torch.zeros(0)).tolist() == changes(torch.zeros(0)).tolist() == []


def test_advantages_of_steps():  # 4
    assert [decay(p, 0.9, 0.5).tolist() for p in PHI] == [pytest.approx([1, 1, 0.683940], abs=1e-6), [1, 1]]
    assert [changes(p).tolist() for p in PHI] == [pytest.approx([0, 0.75, 0.02]), pytest.approx([0, -0.4])]
    right, wrong = step_advantages(GROUP, PHI, 0.9, 0.5, 0.5)
    assert right.tolist() == pytest.approx([0.408885, 1.060033, 0.263275], abs=1e-6)
    assert wrong.tolist() == pytest.approx([-0.591115, -0.799108], abs=1e-6)
    expected = [0.499345, 1.454281, 0.285802, -0.967198, -1.272229]
    assert advantages_of(ONE_EACH) == pytest.approx(expected, abs=1e-5)


def test_steps_of_several_tokens():  # 5
    values, lengths = [0.696353, 1.775517, 0.455031, -0.960973, -1.305685], [2, 1, 3, 2, 2]
    expected = [v for v, n in zip(values, lengths, strict=True) for _ in range(n)]
    assert advantages_of([[2, 3, 6], [2, 4]]) == pytest.approx(expected, abs=1e-5)


def test_without_both_parts_it_is_rf_b():  # 6
    assert advantages_of(ONE_EACH, 0.0, 0.0) == pytest.approx([0.816497] * 3 + [-1.224745] * 2, abs=1e-6)
    groups = [[Completion((1,), tuple(range(n)), (0.0,) * n, "", False) for n in (3, 2)]]
    plain = over_tokens(None, Rollouts(["p"], groups, torch.tensor([[1.0, 0.0]])), GRPO())
    assert plain.tolist() == pytest.approx(advantages_of(ONE_EACH, 0.0, 0.0), abs=1e-6)


def test_confidence_and_accuracy():  # 7; the mean over several answers is that of one here
    entropies = [torch.tensor([0.0, 0.2]), torch.tensor([0.4])]
    assert np.mean([confidence(h).item() for h in entropies]) == pytest.approx(0.787579, abs=1e-6)
    assert accuracy(torch.tensor([0.9, 0.5]).log()).item() == pytest.approx(0.7)


def test_tokens_behind_the_last_step_have_the_groups_advantage():
    steps = [torch.tensor([5.0]).double(), torch.zeros(0).double()]
    found = per_token(GROUP, steps, [[2], []], [3, 1])
    raw = np.array([5, 5, 0.5, -0.5])
    assert found.tolist() == pytest.approx(((raw - raw.mean()) / raw.std()).tolist())


# --- steps and the probe ---------------------------------------------------------------------------------------------


def test_steps_are_lines():
    pieces = ["a", "\n", "b", "c", "\n", "d\n\n", "e"]
    assert step_ends(pieces, 5) == [2, 5, 6]
    assert step_ends(pieces, 2) == [2, 6]
    assert step_ends(pieces, 1) == [6]
    assert step_ends(["a"], 3) == []


def test_probe_is_what_the_formulas_say(run):  # 8: no gradient, one state after the other
    problem = run.problems[0]
    state = (*run.policy.encode(prompts.think(problem)), *run.policy.tokenizer("3+4\n7\n").input_ids)
    other = state[:-2]
    found = probe(run, TINY, [state, other], [problem.answer] * 2)
    assert not found.requires_grad
    cue, gold = (run.policy.tokenizer(text).input_ids for text in (CUE, problem.answer))
    for value, ids in zip(found, (state, other), strict=True):
        asked = [*ids, *cue]
        (c,) = run.sample([asked], 1, temperature=0.0, stop=[run.policy.token("}")], max_new_tokens=8)[0]
        model = run.policy.model.get_base_model()
        with torch.no_grad():
            entropy = completion_values(model, [(asked, c.answer)], logprob_and_entropy)[:, 1]
            logp = completion_values(model, [(asked, gold)])
        assert value.item() == pytest.approx(potential(logp.exp().mean(), (-entropy.mean()).exp()).item(), abs=1e-4)


def test_common_states_are_probed_once(run, monkeypatch):
    asked = []

    def counted(run, config, states, answers):
        asked.extend(states)
        return torch.arange(len(states)).double()

    monkeypatch.setattr("papers.spae.probe", counted)
    ids = run.policy.tokenizer("3+4\n7\n").input_ids
    group = [Completion((1,), tuple(ids[:n]), (), "", True) for n in (len(ids), len(ids), len(ids) - 2)]
    rollouts = Rollouts(run.problems[:1], [group], torch.tensor([[1.0, 0, 0]]))
    ends = [ends_of(run, c, 8) for c in group]
    assert [len(e) for e in ends] == [2, 2, 1]
    found = potentials(run, TINY, rollouts, ends)
    assert len(asked) == 2 and [p.tolist() for p in found] == [[0, 1], [0, 1], [0]]


def test_the_cue_is_in_no_trained_token(run):
    rollouts = run.rollout(run.next_problems(3), 4, ask=prompts.think, max_new_tokens=32)
    before = [c.ids for group in rollouts.completions for c in group]
    found = by_steps(run, rollouts, GRPO(), config=TINY)
    assert [ids for _, ids in rollouts.batch().sequences] == before
    assert len(found) == sum(map(len, before)) and found.mean().item() == pytest.approx(0, abs=1e-5)


# --- whole arms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["spae", "rfb"])
def test_arms(arm, tmp_path, monkeypatch):
    monkeypatch.setattr(Rollouts, "mixed", lambda rollouts: rollouts)  # few samples: groups without signal, too
    result = run_arm(PAPER, replace(TINY, think_tokens=96), arm, 0, str(tmp_path))
    assert result["status"] == "ok"
    rollouts = TINY.steps * TINY.prompts * TINY.samples
    spent = result["budget"]["completions"]
    assert spent == rollouts if arm == "rfb" else spent > rollouts
    values = {name: metric["value"] for name, metric in result["metrics"].items()}
    assert 0 <= values["checking tokens"] <= values["think tokens"]
    assert values["redundant checks"] <= values["checks"]
    if "probe, there" in values:
        parts = values["probe, there"], values["probe, earlier"] + values["probe, later"]
        assert sum(parts) == pytest.approx(1) and parts[1] == pytest.approx(values["probe, elsewhere"])
