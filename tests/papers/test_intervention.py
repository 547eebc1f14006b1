"""InT's data pipeline, its fine-tuning targets, its budget and the paper's worked numbers."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from papers.intervention import (
    PAPER,
    Config,
    guided,
    intervene,
    intervention_examples,
    interventions,
    measure,
    propose,
    target_batch,
    unsolved,
)
from repro.arm import run_arm, run_folder
from repro.config import ConfigError
from repro.methods.sft import nll
from repro.model.policy import BASE, POLICY
from repro.results.metrics import pass_at_k
from repro.run import Rollouts, Run
from repro.tasks import prompts
from repro.tasks.problem import Problem

ATTEMPT = "2+3=5\n5+4=9\n9+1=11\n11+6=17\n\\boxed{17}"


def y_int(location: int) -> str | None:
    found = intervene(ATTEMPT, location, "9+1=10")
    return found and guided(found)


def test_the_intervention_takes_the_place_of_the_first_wrong_step():
    assert y_int(3) == "2+3=5\n5+4=9\n9+1=10"  # L - 1 steps are kept; L would keep the wrong one
    assert y_int(1) == "9+1=10"
    assert intervene(ATTEMPT, 3, "9+1=10")["wrong"] == "9+1=11"
    assert y_int(5) is not None
    for location in (0, 6, 9):  # no step of the attempt
        assert y_int(location) is None
    assert intervene(ATTEMPT, 3, "") is None


def test_published_numbers():
    assert np.mean([25.62, 49.77, 36.16, 28.22]) == pytest.approx(34.9425)
    assert np.mean([11.68, 41.61, 26.24, 20.79]) == pytest.approx(25.08)
    assert pass_at_k(128, 1, 8) == pytest.approx(0.0625)


# --- fine-tuning targets --------------------------------------------------------------------------------------------

PROBLEM = Problem("Compute 2+3+4+1+6.", "16", "2+3=5\n5+4=9\n9+1=10\n10+6=16\n\\boxed{16}")
EXAMPLE = {"problem": 0, "suffix": "\n10+6=16\n\\boxed{16}", **intervene(ATTEMPT, 3, "9+1=10")}


@pytest.fixture
def run(tiny):
    return SimpleNamespace(policy=tiny, problems=[PROBLEM])


def test_the_target_is_prefix_and_intervention_without_an_end(run, tiny):
    batch = target_batch(run, [EXAMPLE], "intervention")
    ((prompt, completion),) = batch.sequences
    assert tiny.tokenizer.decode(completion) == y_int(3)
    assert completion[-1] not in tiny.stop_ids
    # the solver's prompt alone: neither the reference nor the request for an error
    assert prompt == tiny.encode(prompts.solve(PROBLEM))
    # what the sampler continues from is what was trained on
    assert prompt + completion == tiny.encode(prompts.go_on(prompts.solve(PROBLEM), y_int(3)))
    assert batch.fields["share"].tolist() == pytest.approx([1 / len(completion)] * len(completion))


def test_uniform_logits_give_log_of_the_vocabulary(run):
    batch = target_batch(run, [EXAMPLE, {**EXAMPLE, "content": "9+1=10+0"}], "intervention")
    logp = torch.full((sum(batch.lengths),), -math.log(50))
    assert (nll(logp, None) * batch.fields["share"]).sum().item() == pytest.approx(math.log(50), rel=1e-5)


def test_the_wrong_rest_of_the_attempt_changes_nothing(run):
    other = {**EXAMPLE, **intervene("2+3=5\n5+4=9\n9+1=19\n19+6=25\n\\boxed{25}", 3, "9+1=10")}
    for kind in ("intervention", "no_prefix"):
        a, b = (target_batch(run, [example], kind) for example in (EXAMPLE, other))
        assert a.sequences == b.sequences and torch.equal(a.fields["share"], b.fields["share"])


def test_masks_of_the_ablations(run, tiny):
    prefix = len(tiny.tokenizer("2+3=5\n5+4=9\n", add_special_tokens=False).input_ids)
    for kind, trained in (("intervention", True), ("no_prefix", False)):
        batch = target_batch(run, [EXAMPLE], kind)
        logp = torch.zeros(sum(batch.lengths), requires_grad=True)
        (nll(logp, None) * batch.fields["share"]).sum().backward()
        assert bool((logp.grad[:prefix] != 0).all()) == trained and (logp.grad[prefix:] < 0).all()
        assert trained or not logp.grad[:prefix].any()
        assert logp.grad.sum().item() == pytest.approx(-1)
    for kind in ("with_suffix", "reference"):  # whole solutions, which do end
        ((_, completion),) = target_batch(run, [EXAMPLE], kind).sequences
        assert tiny.tokenizer.decode(completion[:-1]) == PROBLEM.solution
        assert completion[-1] == tiny.tokenizer.eos_token_id
    ((_, completion),) = target_batch(run, [EXAMPLE], "terse").sequences
    assert tiny.tokenizer.decode(completion[:-1]) == "10+6=16\n\\boxed{16}"


# --- the data -------------------------------------------------------------------------------------------------------


class Scripted:
    """A run whose samples and rewards are written down."""

    def __init__(self, replies, rewards, **what):
        self.replies, self.scores = iter(replies), iter(rewards)
        self.adapter = BASE  # what the data comes from
        self.policy, self.seed, self.asked = SimpleNamespace(device="cpu"), 0, []
        self.__dict__.update(what)

    def sample(self, chats, samples, temperature=None, adapter=POLICY, generator=None):
        assert adapter == self.adapter
        self.asked.append((chats, samples))
        replies = next(self.replies)
        words = replies if isinstance(replies, list) else [replies] * len(chats)
        return [[SimpleNamespace(text=word, truncated=False)] * samples for word in words]

    def rewards(self, problems, completions):
        return torch.tensor(next(self.scores), dtype=torch.float32).view(len(problems), -1)


def test_one_right_continuation_keeps_an_intervention_and_none_drops_it():
    one, none = [0.0] * 32, [0.0] * 32
    one[17] = 1.0
    replies = [["Step 3", "Step 3", "Step 3", "no idea", "Step 4"], ["9+1=10", "9+1=8", "9+2=10", "9+1=16"], "..."]
    attempts = [[ATTEMPT], [ATTEMPT, ATTEMPT], [ATTEMPT, ATTEMPT]]
    run = Scripted(replies, [[*one, *none, *one]], problems=[PROBLEM] * 3, kept={"attempts": attempts})
    made = interventions(run, Config(attempts=2, continuations=32))
    assert [(e["problem"], e["content"], e["suffix"]) for e in made["examples"]] == [
        (0, "9+1=10", "..."),
        (1, "9+1=8", None),
        (1, "9+2=10", "..."),
    ]
    assert made["measured"]["parse rate"] == 0.8 and made["measured"]["leak rate"] == pytest.approx(1 / 4)
    continued = run.asked[-1][0][0]
    assert continued == [*prompts.solve(PROBLEM), {"role": "assistant", "content": y_int(3)}]  # the same turn goes on
    for filtered, contents in ((True, {"9+1=10", "9+2=10"}), (False, {"9+1=10", "9+1=8"})):  # the first of a problem
        run.stage, run.shared = lambda *_: [0], lambda *_: made
        assert {e["content"] for e in intervention_examples(run, Config(), filtered)} == contents
    made["examples"] = made["examples"][1:2]
    with pytest.raises(ConfigError, match="no intervention led"):
        intervention_examples(run, Config(), True)


def test_an_intervention_with_a_box_is_no_step():
    """Whatever number stands in it."""
    run = Scripted([["Step 3", "Step 3"], ["\\boxed{7}", "9+1=10"]], [])
    proposals, measured = propose(run, [(PROBLEM, ATTEMPT)] * 2, None)
    assert list(proposals) == [1] and measured["leak rate"] == 0.5


def test_the_pool_is_what_no_sample_solves():
    rewards = [[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1], [0] * 8]
    run = Scripted(["a", "b", "a"], rewards)
    left = unsolved(run, [PROBLEM] * 3, 16, seed=0)
    assert left == {0: ["a", "b"]}  # different attempts once
    assert [(len(chats), samples) for chats, samples in run.asked] == [(3, 4), (2, 4), (1, 8)]


def test_never_solved_problems_of_the_evaluation_are_not_sampled_again():
    held_out = [replace(PROBLEM, question=f"Problem {i}.") for i in range(8)]
    found = [{"problem": i, **intervene(ATTEMPT, 3, "9+1=10")} for i in (1, 5)]
    config = Config(hard_problems=8, eval_samples=2)
    run = Scripted(["a"] * 4, [[1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 1]], kept={}, config=config)
    run.adapter, run.shared = POLICY, lambda *_: {"rows": [1, 5], "found": found}
    run.held_out = lambda size: held_out[:size]
    evaluated = [held_out[i] for i in (3, 1, 0)]  # of another order
    rollouts = Rollouts(evaluated, [[]] * 3, torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]]))
    metrics = measure(run, config, rollouts)
    assert [(len(chats), samples) for chats, samples in run.asked] == [(1, 2), (2, 2), (2, 2), (2, 2)]
    values = {name: metric.values for name, metric in metrics.items()}
    assert values["accuracy, never solved"] == (0.5, 0.5) and values["pass@2, never solved"] == (1.0, 1.0)
    assert values["accuracy, wrong step"] == (0.5, 0.0) and values["accuracy, correct prefix"] == (0.0, 0.0)
    assert values["accuracy, intervention"] == (1.0, 0.5)
    begun = [chats[0][-1]["content"] for chats, _ in run.asked[1:]]
    assert begun == ["2+3=5\n5+4=9", "2+3=5\n5+4=9\n9+1=11", "2+3=5\n5+4=9\n9+1=10"]
    run.shared = lambda *_: {"rows": [], "found": []}  # a base that solves all of them
    assert all(not metric.values for metric in measure(run, config, rollouts).values())


# --- whole runs -----------------------------------------------------------------------------------------------------

SMALL = Config(
    prompts=4,
    samples=4,
    train_problems=24,
    eval_problems=8,
    eval_samples=2,
    max_new_tokens=48,
    monitors=1,
    pool_problems=24,
    pool_samples=4,
    sft_steps=2,
    sft_batch=4,
    steps=12,
    hard_problems=16,
    hard_samples=4,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("runs"))
    return out, {arm: run_arm(PAPER, SMALL, arm, 0, out) for arm in PAPER.arms}


def test_every_arm_trains_within_one_budget(finished):
    _, results = finished
    assert all(r["status"] == "ok" for r in results.values())
    for arm in ("rl", "sft_reference_rl", "int_rl", "sft_terse_rl"):
        spent = results[arm]["budget"]["completions"]
        assert 11 * SMALL.prompts * SMALL.samples < spent <= 12 * SMALL.prompts * SMALL.samples
    assert len({str(results[arm]["data"]) for arm in results if arm != "base"}) == 1  # the same hard pool
    assert results["int"]["data"]["problems"] < SMALL.pool_problems
    for arm in ("int", "int_no_prefix", "int_with_suffix", "int_no_filter", "sft_terse_rl"):
        assert results[arm]["metrics"]["target NLL"]["value"] > 0
    for result in results.values():  # the same held-out problems for all
        names = ("never solved", "correct prefix", "wrong step", "intervention")
        lengths = [len(result["per_problem"][f"accuracy, {name}"]) for name in names]
        assert lengths == [len(results["base"]["per_problem"][f"accuracy, {name}"]) for name in names]
    for arm in ("rl", "int_rl"):
        assert "all_wrong" in results[arm]["history"][-1]


def test_stopped_in_each_stage_it_ends_as_without_a_stop(finished, tmp_path, monkeypatch):
    out, results = finished
    work, calls = Run.update, []

    def failing(self, *args, **more):
        calls.append(1)
        if len(calls) in (2, 5):  # within fine-tuning, within RL
            raise KeyboardInterrupt
        work(self, *args, **more)

    monkeypatch.setattr(Run, "update", failing)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_arm(PAPER, SMALL, "int_rl", 0, str(tmp_path))
    result = run_arm(PAPER, SMALL, "int_rl", 0, str(tmp_path))
    assert (result["metrics"], result["history"]) == (results["int_rl"]["metrics"], results["int_rl"]["history"])
    assert result["budget"] == results["int_rl"]["budget"]
    whole, stopped = (
        torch.load(run_folder(PAPER, SMALL, "int_rl", 0, str(folder)) / "checkpoint.pt", weights_only=True)["adapter"]
        for folder in (out, tmp_path)
    )
    assert all(torch.equal(whole[k], stopped[k]) for k in whole)
