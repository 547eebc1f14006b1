"""Conversations of several attempts: metrics by turn on worked examples, and what the policy is asked."""

from types import SimpleNamespace

import pytest
import torch

from repro.config import RunConfig
from repro.methods.multiturn import Attempts, converse, retry, self_refine, turn_metrics
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
