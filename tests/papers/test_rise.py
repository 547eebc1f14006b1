"""RISE: worked numbers of its weights and loss, its data on scripted models, its states, and every arm."""

from types import SimpleNamespace

import pytest
import torch

from papers import rise
from papers.rise import (
    PAPER,
    Config,
    best_of_n,
    example_batch,
    in_parallel,
    kept,
    reward_weights,
    rise_loss,
    state,
    teacher,
)
from repro import BASE, Rollouts, Run, RunConfig
from repro.arm import run_arm, run_folder
from repro.methods.multiturn import turn_metrics
from repro.model.policy import Policy
from repro.model.sampling import Completion
from repro.model.training import Reading, Trainer, token_weights
from repro.tasks import prompts
from repro.tasks.problem import Problem
from repro.verify import extract_answer

PROBLEM = Problem("What is 1+1?", "2", "1+1=2\n\\boxed{2}")


# --- weights and loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "rewards", "expected"),
    [
        ("exp", [-1, 0, 1], [0.082085, 1.0, 12.182494]),
        ("adv", [1, 0], [3.490343, 0.286505]),
        ("adv", [1, 0, 0, 0], [6.520819, 0.535261, 0.535261, 0.535261]),
        ("adv", [1, 1, 1, 0], [1.868246, 1.868246, 1.868246, 0.153355]),
        ("adv", [0, 0], [1.0, 1.0]),
        ("none", [1, 0], [1.0, 1.0]),
    ],
)
def test_weights_at_tau_04(weight, rewards, expected):
    weights = reward_weights(rewards, ["x"] * len(rewards), weight, 0.4)
    assert weights.tolist() == pytest.approx(expected, abs=1e-6)


def test_rewards_are_centred_by_prompt():
    weights = reward_weights([1, 0, 1, 0], ["a", "b", "a", "b"], "adv", 0.4)
    assert weights.tolist() == [1.0] * 4  # a prompt that is always right or always wrong has no advantage
    mixed = reward_weights([1, 0, 0, 1], ["a", "b", "a", "b"], "adv", 0.4)
    assert mixed.tolist() == pytest.approx([3.490343, 0.286505, 0.286505, 3.490343], abs=1e-6)


def objective(logp: torch.Tensor, lengths: list[int], weights: torch.Tensor) -> torch.Tensor:
    """The loss that the trainer sums: equation 1 with its means over tokens and examples."""
    w = weights.to(logp.dtype).repeat_interleave(torch.tensor(lengths))
    return (rise_loss(logp, SimpleNamespace(w=w)) * token_weights(lengths, "sequence")).sum()


@pytest.mark.parametrize(("weight", "expected"), [("exp", 7.091247), ("adv", 2.031676)])
def test_loss_of_two_examples(weight, expected):  # token-mean NLL 1.0 with reward 1, and 2.0 with reward 0
    logp = -torch.tensor([0.5, 1.5, 1.0, 2.0])
    loss = objective(logp, [3, 1], reward_weights([1, 0], ["x", "x"], weight, 0.4))
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_the_gradient_grows_with_the_weights():  # they aren't divided by their sum
    logp = -torch.rand(7, dtype=torch.float64).requires_grad_()
    logp.retain_grad()
    weights, gradients = torch.tensor([3.0, 0.5]), []
    for scale in (1, 7):
        gradients.append(torch.autograd.grad(objective(logp, [2, 5], scale * weights), logp)[0])
    assert torch.allclose(gradients[1], 7 * gradients[0])


def example(turn: int, text: str, reward: float, prompt=(), response=()) -> dict:
    values = {"prompt": list(prompt), "response": list(response), "text": text, "reward": reward}
    return {"problem": PROBLEM.question, "turn": turn, **values}


def test_only_the_last_response_carries_loss():
    """The trainer's loss on a two-turn trajectory equals the full sequences' with everything else masked."""
    policy = Policy(RunConfig())
    first, second = "1+1=3\n\\boxed{3}", PROBLEM.solution
    config = Config(weight="adv")
    data = []
    for turn, (attempts, text, reward) in enumerate([([], first, 0.0), ([first], second, 1.0)], 1):
        prompt = policy.encode(state(PROBLEM, attempts, config))
        response = policy.tokenizer(text, add_special_tokens=False).input_ids
        data.append(example(turn, text, reward, prompt, [*response, policy.tokenizer.eos_token_id]))

    batch = example_batch(data, [0, 1], config)
    logp = Trainer(policy, 0.0).values(batch, Reading())
    losses = rise_loss(logp, SimpleNamespace(**batch.fields))
    measured = (losses * token_weights(batch.lengths, "sequence")).sum().item()

    expected, gradients = 0.0, []
    for row, weight in zip(data, [0.286505, 3.490343], strict=True):
        ids = torch.tensor([row["prompt"] + row["response"]])
        labels = torch.tensor([[-100] * len(row["prompt"]) + row["response"]])
        logits = policy.model(ids).logits[0, :-1].detach().double().requires_grad_()
        nll = torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100)
        expected += weight * nll.item() / 2
        gradients.append((torch.autograd.grad(nll, logits)[0].abs().sum(1) > 0).nonzero()[:, 0].tolist())
    assert measured == pytest.approx(expected, rel=1e-5)
    # the prompt of the second example holds the first response; its positions have no gradient
    assert first in policy.tokenizer.decode(data[1]["prompt"])
    start = len(data[1]["prompt"]) - 1
    assert gradients[1] == list(range(start, start + len(data[1]["response"])))
    assert batch.sequences[1] == (data[1]["prompt"], data[1]["response"])


# --- data -------------------------------------------------------------------------------------------------------------


def test_converter():
    wrong_right = [example(1, "a", 0.0), example(2, "b", 1.0)]
    assert [e["turn"] for e in kept(wrong_right, "all")] == [1, 2]
    assert reward_weights([0, 1], ["x", "x"], "exp", 0.4).tolist() == pytest.approx([1.0, 12.182494])
    assert [e["turn"] for e in kept(wrong_right, "success")] == [2]
    both_wrong = [example(1, "a", 0.0), example(2, "b", 0.0)]
    assert kept(both_wrong, "success") == []


def test_converter_drops_duplicates_and_empty_responses():
    assert [e["turn"] for e in kept([example(1, "a", 0.0), example(2, "a", 0.0)], "all")] == [1]
    rows = [example(1, "a", 0.0), example(2, " \n", 0.0), example(3, "a", 0.0), example(4, "b", 1.0)]
    assert [e["turn"] for e in kept(rows, "all")] == [1, 4]
    assert kept([example(1, "", 0.0)] * 3, "all") == []


class Scripted:
    """Stands for a run whose model answers with given numbers, in their order."""

    def __init__(self, *answers: list[str]):
        self.answers = list(answers)
        self.budget = {"completions": 0}
        self.asked: list[tuple[list, int, str]] = []
        self.policy = SimpleNamespace(encode=lambda chat: list(str(chat).encode()))

    def sample(self, chats, n, temperature=None, adapter="policy"):
        self.asked.append((list(chats), n, adapter))
        rows = [self.answers.pop(0) for _ in chats]
        assert all(len(row) == n for row in rows)
        self.budget["completions"] += n * len(rows)
        return [[Completion((), (7, int(a)), (0.0, 0.0), f"\\boxed{{{a}}}", False) for a in row] for row in rows]

    def rewards(self, problems, groups):
        rows = zip(problems, groups, strict=True)
        return torch.tensor([[float(extract_answer(c.text) == p.answer) for c in group] for p, group in rows])


def test_a_right_first_attempt_ends_the_trajectory():
    run = Scripted(["2"], ["3"], ["3", "2", "2"])
    made = rise.trajectories(run, Config(candidates=3), [PROBLEM, PROBLEM])
    assert [[(e["turn"], e["reward"]) for e in t] for t in made] == [[(1, 1.0)], [(1, 0.0), (2, 1.0)]]
    assert [(len(chats), n) for chats, n, _ in run.asked] == [(2, 1), (1, 3)]
    assert made[1][1]["response"] == [7, 2]


def test_the_first_of_the_best_is_taken():
    candidates = ["3", "2", "02"]  # rewards 0, 1, 0
    assert rise.trajectories(Scripted(["4"], candidates), Config(candidates=3), [PROBLEM])[0][1]["text"] == "\\boxed{2}"

    class Marked(Scripted):  # rewards of the improved attempts are given: 0, 1, 1
        def rewards(self, problems, groups):
            return torch.tensor([[0.0]]) if len(groups[0]) == 1 else torch.tensor([[0.0, 1.0, 1.0]])

    assert rise.trajectories(Marked(["4"], ["5", "6", "7"]), Config(candidates=3), [PROBLEM])[0][1]["response"] == [
        7,
        6,
    ]
    none_right = rise.trajectories(Scripted(["4"], ["5", "6", "7"]), Config(candidates=3), [PROBLEM])[0]
    assert none_right[1]["response"] == [7, 5] and none_right[1]["reward"] == 0


@pytest.mark.parametrize("improve", [best_of_n, teacher])
def test_the_improved_attempt_answers_the_history(improve):
    """Whoever writes it: the example's prompt is the student's, without the reference."""
    run = Scripted(["3"], ["4"], ["2"])
    made = rise.trajectories(run, Config(turns=3, candidates=1), [PROBLEM], improve)[0]
    history = state(PROBLEM, ["\\boxed{3}", "\\boxed{4}"], Config())
    assert [e["turn"] for e in made] == [1, 2, 3]
    assert made[2]["prompt"] == run.policy.encode(history)
    chats, _, adapter = run.asked[2]
    if improve is teacher:
        assert chats == [prompts.solve_with_reference(PROBLEM)] and adapter == BASE
    else:
        assert chats == [history] and adapter == "policy"


# --- states and metrics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [1, 2, 3, 5])
@pytest.mark.parametrize(("follow_up", "said"), [("wrong", prompts.VERDICT_WRONG), ("retry", prompts.RETRY)])
def test_window_of_two(turn, follow_up, said):
    attempts = [f"attempt {t}" for t in range(1, turn)]
    chat = state(PROBLEM, attempts, Config(follow_up=follow_up))
    expected = prompts.solve(PROBLEM)
    if turn > 1:
        follow = [{"role": "assistant", "content": f"attempt {turn - 1}"}, {"role": "user", "content": said}]
        expected = expected + follow
    assert chat == expected


def test_wider_windows():
    attempts = ["a", "b", "c"]
    assert len(state(PROBLEM, attempts, Config(window=3))) == 5
    assert [m["content"] for m in state(PROBLEM, attempts, Config(window=9))[1::2]] == attempts
    assert state(PROBLEM, attempts, Config(window=1)) == prompts.solve(PROBLEM)


@pytest.mark.parametrize(
    ("first", "vote", "any_right"),
    [("122", 1.0, 1.0), ("123", 0.0, 1.0), ("213", 1.0, 1.0), ("113", 0.0, 0.0)],  # a tie: the first of equals
)
def test_parallel_attempts_are_a_vote_over_first_turns(first, vote, any_right):
    """The right answer is 2."""
    completions = [[Completion((), (), (), f"\\boxed{{{a}}}", False) for a in first]]
    rewards = torch.tensor([[float(a == "2") for a in first]])
    metrics = turn_metrics(in_parallel(Rollouts([PROBLEM], completions, rewards)))
    assert metrics["vote@t3"].values == (vote,) and metrics["any@t3"].values == (any_right,)


# --- runs -------------------------------------------------------------------------------------------------------------

TINY = Config(
    steps=4,
    prompts=4,
    samples=3,
    candidates=2,
    updates=2,
    batch=8,
    train_problems=64,
    eval_problems=3,
    eval_samples=5,
    turn_problems=2,
    turn_samples=5,
    max_new_tokens=32,
    learning_rate=1e-3,
    monitors=1,
)
COMPLETIONS = 4 * 4 * 3
OWN = [name for name, arm in PAPER.arms.items() if not arm.standard]
ARMS = ["base", "self_refine", *OWN]  # base stands for the other standard arms: they are measured alike


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Every arm's result, and for every update of RISE: size of the data, are these the base's weights, steps done."""
    out, seen = tmp_path_factory.mktemp("runs"), {}
    original = Run.update

    def watch(run, batch, loss, **more):
        if loss is rise_loss:
            at_base = all(p.abs().max() == 0 for n, p in run.policy.model.named_parameters() if "lora_B" in n)
            seen.setdefault(run.arm, []).append((len(run.kept["data"]), at_base, run.trainer.steps))
        original(run, batch, loss, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "update", watch)
        patch.setattr("repro.results.metrics.RESAMPLES", 20)  # intervals aren't looked at here
        return out, {arm: run_arm(PAPER, TINY, arm, 0, str(out)) for arm in ARMS}, seen


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_runs(arm, results):
    result = results[1][arm]
    assert result["status"] == "ok"
    assert {f"acc@t{t}" for t in range(1, 6)} | set(PAPER.columns) | {"pass@5"} <= result["metrics"].keys()
    values = {name: result["metrics"][name]["value"] for name in ("acc@t1", "vote@t5", "delta_vote", "any@t5")}
    assert values["delta_vote"] == pytest.approx(values["vote@t5"] - values["acc@t1"])
    assert values["any@t5"] >= values["acc@t1"]
    assert len(result["per_problem"]["vote@t5"]) == 2
    if arm in OWN:
        assert result["budget"]["optimizer_steps"] == {"rise_2": 4}.get(arm, 2)
        assert len(result["per_problem"]["accuracy"]) == 3


@pytest.mark.parametrize("arm", [arm for arm in OWN if arm.startswith("rise")])
def test_the_budget_is_spent_and_not_exceeded(arm, results):
    """Up to what the dearest problem would have taken: a first attempt and all candidates for the second."""
    spent = results[1][arm]["budget"]["completions"]
    assert COMPLETIONS - (2 if arm == "rise_teacher" else 3) < spent <= COMPLETIONS


def test_first_attempts_are_those_of_the_common_evaluation(results):
    base, refine, own = (results[1][arm]["per_problem"] for arm in ("base", "self_refine", "rise_1"))
    assert base["acc@t1"] == refine["acc@t1"] and own["acc@t1"] == own["accuracy"][:2]


def test_the_second_iteration_restarts_from_the_base_with_pooled_data(results):
    seen = results[2]["rise_2"]
    first, second = seen[0][0], seen[2][0]
    assert second > first > 0
    assert [(at_base, steps) for _, at_base, steps in seen] == [(True, 0), (False, 1), (True, 0), (False, 1)]
    # data are counted when they are collected: D1 in the first two rollout steps, D1 + D2 in the two others
    counts = [row["examples"] for row in results[1]["rise_2"]["history"] if "examples" in row]
    assert len(counts) == 4 and counts[1::2] == [first, second]
    assert results[2]["rise_1"][0][0] > first  # one iteration has all of the rollout steps


def test_killed_at_any_moment_it_ends_the_same(results, tmp_path, monkeypatch):
    """Stopped in a rollout step, as the second stage begins, and in an update of the second iteration."""

    def stopping(original, at):
        calls = [0]

        def call(*args, **kwargs):
            calls[0] += 1
            if calls[0] == at:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr("repro.results.metrics.RESAMPLES", 20)  # as in the whole runs
    for owner, name, at in ((Run, "rewards", 3), (rise, "draws", 1), (Run, "update", 4)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stopping(getattr(owner, name), at))
            with pytest.raises(KeyboardInterrupt):
                run_arm(PAPER, TINY, "rise_2", 0, str(tmp_path))
    result = run_arm(PAPER, TINY, "rise_2", 0, str(tmp_path))
    whole = results[1]["rise_2"]
    for key in ("metrics", "history", "budget", "per_problem"):
        assert result[key] == whole[key]
    folders = [run_folder(PAPER, TINY, "rise_2", 0, str(out)) for out in (tmp_path, results[0])]
    one, other = (torch.load(f / "checkpoint.pt", weights_only=True)["adapter"] for f in folders)
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_batches_hold_what_was_chosen():
    data = [example(1, str(i), i % 2, [i], [i, i + 10]) for i in range(6)]
    batch = example_batch(data, [5, 0], Config(weight="exp"))
    assert batch.sequences == [([5], [5, 15]), ([0], [0, 10])]
    assert batch.fields["w"].tolist() == pytest.approx([12.182494] * 2 + [1.0] * 2)
