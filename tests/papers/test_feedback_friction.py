"""Friction: entropy, rejection, schedule and target on worked numbers, who sees what, a short run of all dialogues."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from papers.feedback_friction import (
    PAPER,
    Config,
    Mode,
    answers_in,
    described,
    modes,
    resists,
    target,
    untried,
    warming,
)
from repro.arm import run_arm
from repro.config import ConfigError
from repro.methods.multiturn import Dialogue, dialogues
from repro.model.sampling import Completion
from repro.results.metrics import semantic_entropy
from repro.run import Rollouts, Run
from repro.tasks import prompts
from repro.tasks.problem import Problem


def completion(text: str) -> Completion:
    return Completion((), (), (), text, False)


def test_semantic_entropy():  # C2
    assert semantic_entropy(["a"] * 40 + ["b"] * 10) == pytest.approx(0.500402, abs=1e-6)
    answers, logprobs = ["a", "b", "b"], [-10.0, -10.0, -12.0]
    assert semantic_entropy(answers, logprobs) == pytest.approx(0.691137, abs=1e-6)
    assert semantic_entropy(answers, [v - 5000 for v in logprobs]) == pytest.approx(0.691137, abs=1e-6)
    p = np.array([0.468311, 0.531689])
    assert -(p * np.log(p)).sum() == pytest.approx(0.691137, abs=1e-6)
    assert semantic_entropy(["a"] * 3, logprobs) == semantic_entropy([None, None]) == 0
    assert semantic_entropy(["a", "b"], [0.0, -2000.0]) == 0


def test_target_and_gain():  # C3
    solved, resisting = np.array([1.0] * 80 + [0.0] * 20), np.zeros(100)
    resisting[80:] = 0.628
    assert target(solved, resisting).mean() == pytest.approx(0.9256)


def test_the_schedule():  # C5
    assert [warming(k) for k in (0, 1, 2, 10, 11)] == pytest.approx([0, 0.15, 0.30, 1.5, 1.5])


@pytest.mark.parametrize(
    ("tried", "drawn", "left"),
    [
        (["7"], ["7", "7", "9"], ["9"]),
        (["7"], ["7", "7", "7"], ["7", "7", "7"]),
        (["1/2"], ["0.5", "3"], ["3"]),
        (["7", "8"], ["8", None, "9"], ["9"]),
        (["7"], [None], [None]),
    ],
)
def test_rejection(tried, drawn, left):  # C6
    def text(answer: str | None) -> str:
        return "I give up" if answer is None else f"\\boxed{{{answer}}}"

    found = untried([text(a) for a in tried], [completion(text(a)) for a in drawn])
    assert [c.text for c in found] == [text(a) for a in left]


def dialogue(*texts: str, words: str = "", right: bool = False) -> Dialogue:
    return Dialogue(Problem("q", "1"), [completion(t) for t in texts], right, [words] * (len(texts) - 1))


def test_what_resists():
    named = "Step 1 is wrong."
    assert resists(dialogue("7*3\n\\boxed{21}", "7*3\n3\n\\boxed{3}", words=named))  # the line that was named
    assert not resists(dialogue("7*3\n\\boxed{21}", "6*3\n\\boxed{18}", words=named))
    assert resists(dialogue("7*3\n\\boxed{21}", "6*3+3\n\\boxed{21}", words=named))  # the same answer
    assert not resists(dialogue("no", "no"))
    assert not resists(dialogue("\\boxed{2}", "\\boxed{2}", "\\boxed{1}", right=True))
    assert not resists(dialogue("\\boxed{2}"))
    assert resists(dialogue("\\boxed{3}", "\\boxed{2}", "\\boxed{2}", words="Step 9 is wrong."))
    every = [[dialogue("\\boxed{2}", "\\boxed{2}")], [dialogue("\\boxed{2}", "\\boxed{1}", right=True)]]
    found = described([*every, [dialogue("\\boxed{2}", "\\boxed{4}")], [dialogue("\\boxed{1}", right=True)]], 2)
    assert {name: found[name].value for name in ("solved@1", "solved@2", "target")} == {
        "solved@1": 0.25,
        "solved@2": 0.5,
        "target": 0.75,
    }
    assert found["repeats"].value == pytest.approx(1 / 3)


TINY = Config(
    turns=3,
    dialogue_problems=6,
    candidates=3,
    entropy_samples=4,
    train_problems=16,
    eval_problems=6,
    eval_samples=2,
    max_new_tokens=64,
)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(PAPER, "base", 0, TINY, tmp_path)


def test_who_sees_the_reference(run, monkeypatch):  # C8
    problems = [p for p in run.problems if p.level > 1]
    begun = Rollouts(problems[:4], [[completion("1\n\\boxed{1}")]] * 4, torch.zeros(4, 1))
    asked, sample = [], run.sample
    monkeypatch.setattr(run, "sample", lambda chats, *a, **k: asked.extend(chats) or sample(chats, *a, **k))
    generator = torch.Generator().manual_seed(0)
    for name, mode in modes(TINY).items():
        asked.clear()
        dialogues(run, begun, 2, mode.critic, mode.full, answers_in(run, mode, generator))
        solver = [chat for chat in asked if prompts.SOLVE in chat[0]["content"]]
        assert len(solver) >= 4 and not any(prompts.REFERENCE in str(chat) for chat in solver)
        assert (len(solver) < len(asked)) == (name == "F2")
        for chat in asked:
            if prompts.SOLVE not in chat[0]["content"]:
                assert prompts.REFERENCE in chat[0]["content"]


def test_temperatures_by_attempt(run, monkeypatch):
    seen = []

    def sample(chats, n, temperature, generator=None):
        seen.append((n, temperature))
        return [[completion(f"\\boxed{{{i}}}") for i in range(n)] for _ in chats]

    monkeypatch.setattr(run, "sample", sample)
    mode = Mode(modes(TINY)["F1"].critic, temperature=warming, candidates=2)
    begun = Rollouts(run.problems[:1], [[completion("\\boxed{0}")]], torch.zeros(1, 1))
    monkeypatch.setattr(run, "rewards", lambda problems, groups: torch.zeros(len(problems), 1))
    ((made,),) = dialogues(run, begun, 4, mode.critic, True, answers_in(run, mode, None))
    assert seen == [(2, pytest.approx(0.15 * k)) for k in (1, 2, 3)]
    assert made.attempts[1].text == "\\boxed{1}"  # the only new one; then all were tried
    assert random.Random(0).choice(untried(["\\boxed{0}"], made.attempts[:2])).text == "\\boxed{1}"


def test_a_short_run(tmp_path):
    result = run_arm(PAPER, TINY, "base", 0, str(tmp_path))
    values = {name: found["value"] for name, found in result["metrics"].items()}
    assert result["status"] == "ok"
    for name, mode in modes(TINY).items():
        rising = [values[f"solved, {name}@{t}"] for t in (1, 2, 3)]
        assert rising == sorted(rising) and rising[0] == values["solved, F1@1"]
        assert (rising[-2], rising[-1]) == (values[f"last but one, {name}"], values[f"solved, {name}"])
        assert values[f"target, {name}"] >= values[f"solved, {name}"]
        assert (f"equal tokens, {name}" in values) == (mode.candidates == 1)
        assert len(result["per_problem"][f"solved, {name}"]) == 6
    assert values.get("leaks, F3", 0) == 0 and values.get("located, F3", 1) == 1
    assert {claim.left[1] for claim in PAPER.claims if "entropy" not in claim.name} <= values.keys()


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError):
        replace(TINY, turns=1).check()
