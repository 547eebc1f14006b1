"""Conversations of several attempts: metrics by turn on worked examples, and what the policy is asked."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from repro.config import RunConfig
from repro.methods.critic import exact, exact_critic
from repro.methods.multiturn import (
    Attempts,
    Dialogue,
    affordable,
    at_equal_tokens,
    conversations,
    converse,
    dialogues,
    repeats,
    retry,
    self_feedback,
    self_refine,
    solved_within,
    turn_metrics,
)
from repro.model.sampling import Completion
from repro.paper import Paper
from repro.run import Rollouts, Run
from repro.tasks import prompts
from repro.tasks.problem import Problem


def attempts(answers: list[list[list[str | None]]], gold: str) -> Attempts:
    """answers[problem][sample][turn] -> conversations whose reward is equality with ``gold``."""
    problems = [Problem("q", gold)] * len(answers)
    turns = range(len(answers[0][0]))

    def completion(answer: str | None) -> Completion:
        return Completion((), (), (), "I give up" if answer is None else f"\\boxed{{{answer}}}", False)

    completions = [[[completion(row[k][t]) for k in range(len(row))] for row in answers] for t in turns]
    rewards = [[[float(row[k][t] == gold) for k in range(len(row))] for row in answers] for t in turns]
    return Attempts(problems, completions, torch.tensor(rewards))


def value(metrics: dict, name: str) -> float:
    return metrics[name].value


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (["1", "2", "2", "3", "2"], {"acc@t1": 0, "vote@t5": 1, "any@t5": 1, "vote@t2": 0, "changed": 1}),
        (["1", "1", "2"], {"acc@t1": 0, "vote@t3": 0, "any@t3": 1, "changed": 0}),
        (["2", None, "2"], {"acc@t1": 1, "acc@t2": 0, "c_to_i": 1, "vote@t3": 1, "changed": 1}),
        (["1", None, None, "2", "2"], {"vote@t3": 0, "vote@t5": 1}),  # no answer never votes
    ],
)
def test_votes_over_turns(turns, expected):
    metrics = turn_metrics(attempts([[turns]], "2"))
    assert {name: value(metrics, name) for name in expected} == expected


def test_answers_that_are_equal_count_as_one():
    metrics = turn_metrics(attempts([[["1/2", "0.5", "2"]]], "2"))
    assert value(metrics, "changed") == 0 and value(metrics, "vote@t3") == 0


def test_confidence_and_critique_of_the_worked_example():  # 2412.19513: three questions, four samples
    first = [[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    second = [[1, 1, 0, 1], [0, 1, 0, 0], [1, 0, 0, 1]]
    answers = [
        [[str(a), str(b)] for a, b in zip(one, two, strict=True)] for one, two in zip(first, second, strict=True)
    ]
    metrics = turn_metrics(attempts(answers, "1"))
    expected = {"acc@t1": 1 / 3, "acc@t2": 0.5, "CL": 0.75, "CS": 0.375, "RSS": 0.875, "delta": 1 / 6}
    assert {n: value(metrics, n) for n in expected} == pytest.approx(expected)
    assert value(metrics, "i_to_c") - value(metrics, "c_to_i") == pytest.approx(1 / 6)
    assert "vote@t2" not in metrics


def test_each_turn_sees_the_attempts_before_it(tmp_path):
    paper = Paper("none", "", "", RunConfig, {}, ())
    run = Run(paper, "base", 0, RunConfig(max_new_tokens=48, train_problems=8), tmp_path)
    problems = run.next_problems(3)
    made = converse(run, problems, 2, 3)
    assert made.rewards.shape == (3, 3, 2)
    assert run.budget["completions"] == 18
    for i, problem in enumerate(problems):
        for k in range(2):
            texts = made.texts(i, k)
            for t in (1, 2):
                chat = retry(problem, texts[:t])
                assert list(made.completions[t][i][k].prompt) == run.policy.encode(chat)
                assert [m["content"] for m in chat[1::2]] == texts[:t]
    assert prompts.RETRY in retry(problems[0], ["x"])[-1]["content"]


def test_an_answer_goes_on_from_its_ids_up_to_a_further_stop_token(tmp_path):
    paper = Paper("none", "", "", RunConfig, {}, ())
    run = Run(paper, "base", 0, RunConfig(max_new_tokens=48, train_problems=8), tmp_path)
    chats = [prompts.solve(p) for p in run.next_problems(3)]
    newline = run.policy.token("\n")
    whole = run.sample(chats, 1, temperature=0.0)
    first = run.sample(chats, 1, temperature=0.0, stop=(newline,))
    assert all(c.ids.index(newline) == len(c.ids) - 1 and not c.truncated for (c,) in first)
    assert [c.written for (c,) in first] == [(*c.prompt, *c.ids[:-1]) for (c,) in first]
    rest = run.sample([(*c.written, newline) for (c,) in first], 1, temperature=0.0)
    for (a,), (b,), (c,) in zip(whole, first, rest, strict=True):
        assert a.ids[: len(b.ids)] == b.ids and (*b.ids, *c.ids)[:48] == a.ids
        assert c.prompt == (*a.prompt, *b.ids)


def test_self_refine_writes_again_what_it_rejects_itself():
    """The first attempt is accepted every time; the second is rejected once, and what takes its place is accepted."""
    problem = Problem("What is 1+1?", "2")
    first = Rollouts(
        [problem], [[Completion((), (), (), text, False) for text in ("2", "3")]], torch.tensor([[1.0, 0]])
    )
    texts = iter(["Yes", "No", "2", "Yes", "Yes"])
    asked = []

    def sample(chats, n, generator=None):
        asked.append(list(chats))
        return [[Completion((), (), (), next(texts), False) for _ in range(n)] for _ in chats]

    run = SimpleNamespace(sample=sample, rewards=lambda problems, groups: torch.zeros(len(problems), 2))
    attempts = self_refine(run, first, 3)
    assert [attempts.texts(0, k) for k in (0, 1)] == [["2", "2", "2"], ["3", "2", "2"]]
    assert asked[0] == [prompts.verify(problem, "2"), prompts.verify(problem, "3")]
    assert asked[1] == [prompts.revise(prompts.solve(problem), "3", right=False)]
    assert asked[2] == [prompts.verify(problem, "2")] * 2
    assert attempts.rewards.tolist() == [[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]]


# --- rounds of feedback that end with the first right attempt -------------------------------------------------------


def scripted(solved_at: list[int], turns: int):
    """A run on problems that are solved at these attempts (0: never), its calls, and first attempts."""
    problems = [Problem(f"q{i}", "1", kind="gsm8k") for i in range(len(solved_at))]
    made, calls = dict.fromkeys((p.question for p in problems), 0), []

    def attempt(problem: Problem) -> Completion:
        made[problem.question] += 1
        right = made[problem.question] == solved_at[int(problem.question[1:])]
        return Completion((), (1, 2), (), f"\\boxed{{{1 if right else made[problem.question] + 1}}}", False)

    def sample(chats, n, temperature=None, adapter="", generator=None):
        asked = [next(p for p in problems if chat[0]["content"].startswith(p.question)) for chat in chats]
        calls.extend(chats)
        return [[attempt(p)] for p in asked]

    def rewards(problems, groups):
        return torch.tensor([[float(c.text == "\\boxed{1}") for c in group] for group in groups])

    run = SimpleNamespace(sample=sample, rewards=rewards)
    completions = run.sample([prompts.solve(p) for p in problems], 1)
    return run, calls, Rollouts(problems, completions, rewards(problems, completions))


def test_dialogues_end_at_success_and_accuracy_is_cumulative():  # 2506.11930: attempts 0, 0, 1, 3, never
    run, calls, first = scripted([1, 1, 2, 4, 0], 5)
    made = dialogues(run, first, 5, exact_critic("verdict"))
    assert solved_within(made, 5).mean(1).tolist() == pytest.approx([0.4, 0.6, 0.6, 0.8, 0.8])
    assert len(calls) == 1 + 1 + 2 + 4 + 5
    assert [len(group[0].attempts) for group in made] == [1, 1, 2, 4, 5]
    assert all(len(group[0].words) == len(group[0].attempts) - 1 for group in made)
    assert len(calls[-1]) == 9 and calls[-1][2]["content"] == prompts.VERDICT_WRONG


def test_a_dialogue_may_be_cut_to_its_last_attempt():
    run, calls, first = scripted([0], 4)
    made = dialogues(run, first, 4, lambda run, problems, texts: [f"about {t}" for t in texts], full=False)
    assert [len(chat) for chat in calls] == [1, 3, 3, 3]
    dialogue = made[0][0]
    said = [m["content"] for m in Dialogue(dialogue.problem, dialogue.attempts[:-1], False, dialogue.words).chat()]
    assert said[1::2] == [c.text for c in dialogue.attempts[:-1]]
    assert ["about " + c.text in text for c, text in zip(dialogue.attempts, said[2::2], strict=False)] == [True] * 3
    assert calls[-1][1]["content"] == dialogue.attempts[2].text and "about" in calls[-1][2]["content"]


def test_a_next_attempt_can_be_chosen():
    run, _, first = scripted([0, 0], 3)
    chosen = Completion((), (), (), "\\boxed{1}", False)
    made = dialogues(run, first, 3, exact_critic("verdict"), answer=lambda going, chats: [chosen for _ in chats])
    assert [group[0].solved_at for group in made] == [2, 2]


def test_resampling_at_equal_tokens():
    rewards = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 0]])
    lengths = np.array([[10.0, 20, 10], [10, 50, 50], [10, 10, 10]])
    # in the mean 10 tokens for one sample, 10 + 30 / 3 = 20 for up to two, 20 + 10 / 3 for up to three
    assert at_equal_tokens(rewards, lengths, 10).tolist() == [0, 1, 0]
    assert at_equal_tokens(rewards, lengths, 15).tolist() == [0.5, 1, 0]
    assert at_equal_tokens(rewards, lengths, 20).tolist() == [1, 1, 0]
    assert at_equal_tokens(rewards, lengths, 1e9).tolist() == [1, 1, 0]
    assert at_equal_tokens(rewards, lengths, 1).tolist() == [0, 1, 0]


def test_independent_attempts_reach_what_chance_gives():  # 2602.16066, check 7
    rng = np.random.default_rng(0)
    rewards, ones = (rng.random((20_000, 4)) < 0.3).astype(float), np.ones((20_000, 4))
    for t in (1, 2, 3, 4):
        spent = sum(0.7**k for k in range(t))
        assert at_equal_tokens(rewards, ones, spent).mean() == pytest.approx(1 - 0.7**t, abs=0.01)


def test_repeats_are_counted_after_wrong_attempts():
    def dialogue(*answers: str | None) -> Dialogue:
        texts = ["I give up" if a is None else f"\\boxed{{{a}}}" for a in answers]
        return Dialogue(Problem("q", "1"), [Completion((), (), (), t, False) for t in texts], answers[-1] == "1")

    made = [[dialogue("2", "2", "4/2"), dialogue("3", "1")], [dialogue("1")], [dialogue(None, None, "5")]]
    assert repeats(made).mean() == pytest.approx(2 / 5)


def test_conversations_as_a_batch(tmp_path):
    paper = Paper("none", "", "", RunConfig, {}, ())
    run = Run(paper, "base", 0, RunConfig(max_new_tokens=128, train_problems=8), tmp_path)
    drawn = affordable(40, 6)(run, 3)
    assert len(drawn) == 3
    made = conversations(run, drawn, 2, 3, exact_critic("place"))
    assert len(made.problems) == 3 and made.rewards.shape == (3, 2)
    made.more.append(([1, 2], [3, 4, 5], 0.5))
    batch = made.batch()
    assert len(batch.sequences) == len(made.attempts) + 1 == run.budget["completions"] + 1
    for (t, i, k), (prompt, ids) in zip(made.attempts, batch.sequences, strict=False):
        dialogue = made.dialogues[i][k]
        before = Dialogue(dialogue.problem, dialogue.attempts[:t], False, dialogue.words[:t]).chat()
        assert list(prompt) == run.policy.encode(before) and ids == dialogue.attempts[t].ids
        assert dialogue.words == [
            exact(dialogue.problem, c.text, "place") for c in dialogue.attempts[: len(dialogue.words)]
        ]
    advantage = torch.arange(18.0).view(3, 3, 2)
    weights = made.weights(advantage).split(batch.lengths)
    assert [w[0].item() for w in weights] == [*(advantage[place].item() for place in made.attempts), 0.5]
    assert weights[-1].tolist() == [0.5] * 3
    assert len(affordable(40, 6)(run, 9)) == (40 - run.budget["completions"]) // 6
    assert affordable(5, 6)(run, 9) == []
    assert conversations(run, [], 2, 3, exact_critic("place")).batch().sequences == []


def test_self_feedback_goes_on_whether_right_or_not():
    run, calls, first = scripted([1, 2, 0], 3)
    attempts, words = self_feedback(run, first, 3, lambda run, problems, texts: [f"on {t}" for t in texts])
    assert attempts.rewards[:, :, 0].T.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert words == [[[f"on {t}" for t in attempts.texts(i, 0)[:2]]] for i in range(3)]
    assert [len(chat) for chat in calls] == [1] * 3 + [3] * 3 + [5] * 3
