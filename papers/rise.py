"""RISE: Recursive Introspection, Teaching Language Model Agents How to Self-Improve. Yuxiao Qu, Tianjun Zhang, Naman
Garg, Aviral Kumar, arXiv 2407.18219, NeurIPS 2024.

Idea. Solving a problem in several attempts is a decision process: the state is the problem with the attempts so far,
each answered by "this is wrong, try again", the action is a whole new attempt. The model collects its own wrong
attempts, at the last state something better takes their place (the best of n of its own tries, or a teacher's), and the
model is fine-tuned on all attempts, weighted by their reward. At test time it tries five times without being told
whether it was right, and the majority of its answers counts.

Reproduced. base; Self-Refine, where the base judges its own attempts; RFT on right first attempts; RISE after one
iteration and after two, with self-distillation (best of n); the claims below. By name: rise_teacher (the base with the
reference solution in its prompt improves), rise_adv (the paper's centred weight) and rise_unweighted.

How this differs from the paper and why.
- The tiny preset asks for another look, without a verdict: the built-in model was made to give up its habits when told
  "wrong", so that the paper's follow-up (--follow-up wrong) lifts the untrained base by itself.
- The follow-up doesn't repeat the question, which the window of two keeps in the prompt anyway.
- Every arm samples the same number of completions: RISE's second attempts cost it first attempts at other problems, and
  two iterations share what one has. The paper's second iteration adds new ones.
- Two turns a trajectory in every iteration (the official command), so that the window of two is never left.
- The teacher is the base with privileged information, not a stronger model. Self-Refine's feedback is Yes or No.
- Rewards are 0 and 1; the code gives -1 to GSM8K answers that can't be read. LoRA in place of full fine-tuning.

Commands.
    repro run rise --seeds 5                         # tiny model, intervals over seeds
    repro run rise --arms base rise_1 rise_teacher   # another source of the improved attempt
    repro run rise --preset gpu                      # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Literal

import torch

from repro import BASE, Arm, Batch, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, script_main, share, standard
from repro.methods.multiturn import Attempts, go_on, self_refine, turn_metrics
from repro.methods.sft import draws
from repro.model.training import cosine
from repro.tasks import prompts

TURNS = 5  # attempts in the evaluation (paper)
TEACHER_TEMPERATURE = 0.7  # paper
Example = dict  # problem (its question), turn, prompt and response (token ids), text, reward: plain, for checkpoints


@dataclass(frozen=True)
class Config(RunConfig):
    """RISE's hyperparameters; ``steps`` x ``prompts`` x ``samples`` are the completions of an arm in all."""

    learning_rate: float = 1e-3
    """At the start of the cosine; chosen on validation problems (paper: 1e-5, full fine-tuning)."""
    turns: int = 2
    """Attempts of a trajectory in the data; the last one is the improved one (official command: 2)."""
    candidates: int = 4
    """The n of best-of-n (README: 16)."""
    window: int = 2
    """Attempts that a prompt can show or ask for: the last window - 1 and the new one (2 after the first iteration)."""
    follow_up: Literal["wrong", "retry"] = "wrong"
    """What is said after an attempt: that it is wrong (paper), or that there might be an error (no verdict)."""
    weight: Literal["exp", "adv", "none"] = "exp"
    """Weight of an example: equation 2 (code), equation 3 (paper), or 1."""
    tau: float = 0.4
    """Temperature of the weights (code: 0.4)."""
    criteria: Literal["all", "success"] = "all"
    """Attempts that are trained on: all of them (README), or right ones alone."""
    updates: int = 40
    """Optimiser steps of each fine-tuning from the base, as many as RFT takes (paper: epochs)."""
    batch: int = 32
    """Examples per optimiser step, as many as RFT's (code: 64)."""
    turn_problems: int = 256
    """Problems of the evaluation that are tried over five turns (ours)."""
    turn_samples: int = 2
    """Of the evaluation's samples of each of them, those that are gone on with (paper: greedy ones)."""

    PRESETS = {  # noqa: RUF012
        "tiny": {"follow_up": "retry"},
        # a vote over five parallel attempts needs as many samples
        "smol": {"candidates": 8, "updates": 64, "batch": 8, "learning_rate": 2e-4, "eval_samples": TURNS},
        "small": {"candidates": 8, "updates": 128, "batch": 8, "learning_rate": 1e-4, "eval_samples": TURNS},
        "gpu": {"candidates": 8, "updates": 240, "batch": 16, "learning_rate": 1e-4, "eval_samples": TURNS},
    }


# --- the paper's objective: reward-weighted regression ---------------------------------------------------------------
#     (1)  J = mean over examples (s, y, r) of w(r) log pi(y | s), log pi as the mean over the tokens of y
#     (2)  w(r) = exp(r / tau)              official code
#     (3)  w(r) = exp((r - r_x) / tau)      paper; r_x is the mean reward of the examples of the problem x


def reward_weights(rewards: Sequence[float], problems: Sequence[str], weight: str, tau: float) -> torch.Tensor:
    """w of equation 2 ("exp") or 3 ("adv"), or 1 ("none"), [examples]; constants without a gradient."""
    # without the centring, problems that are solved at once weigh exp(1 / tau) as much as those that never are
    r = torch.tensor(rewards, dtype=torch.float64)
    if weight == "adv":
        of_problem: dict[str, list[float]] = {}
        for problem, reward in zip(problems, rewards, strict=True):
            of_problem.setdefault(problem, []).append(reward)
        r = r - torch.tensor([sum(of_problem[p]) / len(of_problem[p]) for p in problems], dtype=torch.float64)
    return torch.ones_like(r) if weight == "none" else (r / tau).exp()


def rise_loss(logp: torch.Tensor, f: SimpleNamespace) -> torch.Tensor:
    """-J of equation 1 before the means, [tokens] of responses; the trainer's mean "sequence" makes both of them."""
    # the weights aren't divided by their sum: the step grows with them, as in the official code
    # only the response has tokens here: the attempts before it are its prompt
    return -f.w * logp


def example_batch(data: Sequence[Example], chosen: Sequence[int], config: Config) -> Batch:
    """Examples with the weights that they have among all of the data."""
    weights = reward_weights([e["reward"] for e in data], [e["problem"] for e in data], config.weight, config.tau)
    batch = Batch([(data[i]["prompt"], data[i]["response"]) for i in chosen])
    batch.fields["w"] = batch.spread(weights[list(chosen)])
    return batch


# --- states and data ------------------------------------------------------------------------------------------------


def state(problem: prompts.Problem, attempts: Sequence[str], config: Config) -> prompts.Chat:
    """What is asked after ``attempts``: the problem, the last attempts within the window, each with the follow-up.

    The verdict is always "wrong", at test time without knowing it: an oracle is only needed for collecting data.
    """
    say = partial(prompts.revise, right=False) if config.follow_up == "wrong" else prompts.retry
    chat = prompts.solve(problem)
    for attempt in attempts[max(0, len(attempts) - config.window + 1) :]:
        chat = say(chat, attempt)
    return chat


def kept(trajectory: Sequence[Example], criteria: str) -> list[Example]:
    """The attempts of a trajectory that are trained on: none empty, none twice, and only right ones for "success"."""
    texts = [e["text"] for e in trajectory]
    new = [e for i, e in enumerate(trajectory) if texts[i].strip() and texts[i] not in texts[:i]]
    return [e for e in new if criteria == "all" or e["reward"] == 1]


def best_of_n(run: Run, config: Config, problems: Sequence[prompts.Problem], chats: Sequence[prompts.Chat]) -> list:
    """Self-distillation: n further attempts by the learner itself at the same state."""
    return run.sample(chats, config.candidates)


def teacher(run: Run, config: Config, problems: Sequence[prompts.Problem], chats: Sequence[prompts.Chat]) -> list:
    """By a better model: here the base, which sees the reference solution and not the history."""
    shown = [prompts.solve_with_reference(p) for p in problems]
    return run.sample(shown, config.candidates, TEACHER_TEMPERATURE, adapter=BASE)


def trajectories(run: Run, config: Config, problems: list[prompts.Problem], improve: Callable = best_of_n) -> list:
    """On-policy attempts at each problem until one is right; at the last turn the improved one. Wrong ones stay."""
    made: list[list[Example]] = [[] for _ in problems]
    going = list(range(len(problems)))
    for turn in range(1, config.turns + 1):
        if not going:
            break
        asked = [problems[i] for i in going]
        chats = [state(problems[i], [e["text"] for e in made[i]], config) for i in going]
        groups = improve(run, config, asked, chats) if turn == config.turns else run.sample(chats, 1)
        rewards = run.rewards(asked, groups)
        for i, chat, group, row in zip(going, chats, groups, rewards.tolist(), strict=True):
            reward, done = max(row), group[row.index(max(row))]  # the first one of equals
            prompt = run.policy.encode(chat)  # the learner's, whoever wrote the attempt
            ids = {"prompt": list(prompt), "response": list(done.ids)}  # as sampled: text encoded anew may differ
            made[i].append({"problem": problems[i].question, "turn": turn, **ids, "text": done.text, "reward": reward})
        going = [i for i in going if not made[i][-1]["reward"]]
    return made


# --- the arms -------------------------------------------------------------------------------------------------------


def collect(run: Run, config: Config, improve: Callable, done: int, until: int) -> None:
    """Rollout steps ``done`` ... ``until`` - 1 of the arm, each with as many problems as its completions reach for.

    How many of them a problem takes is known afterwards: what a step leaves is the next one's.
    """
    share_of_step, dearest = config.prompts * config.samples, config.turns - 1 + config.candidates
    for step in run.stage("collect", until - done):
        made: list[list[Example]] = []
        while True:
            left = (done + step + 1) * share_of_step - int(run.budget["completions"])
            if left // dearest < max(1, config.prompts // 4):  # few at once would take as long as many
                break
            made += trajectories(run, config, run.next_problems(left // dearest), improve)
        for turn in range(1, config.turns + 1):
            of_turn = [t[turn - 1]["reward"] for t in made if len(t) >= turn]
            run.log(**{f"reward@t{turn}": sum(of_turn) / len(of_turn)} if of_turn else {})
        data = run.kept.setdefault("data", [])  # pooled over the iterations
        data += [example for trajectory in made for example in kept(trajectory, config.criteria)]
        run.log(examples=len(data), revisions=sum(e["turn"] > 1 for e in data))


def fine_tune(run: Run, config: Config) -> None:
    """The base, fine-tuned on all data so far; each epoch's order is drawn anew."""

    def order() -> None:
        run.kept["order"] = list(draws(len(run.kept.get("data", ())), config.updates, config.batch, run.rng))

    for update in run.stage("train", config.updates, from_base=True, begin=order):
        if run.kept["order"]:
            run.trainer.learning_rate = config.learning_rate * cosine(update, config.updates)
            batch = example_batch(run.kept["data"], run.kept["order"][update], config)
            run.update(batch, rise_loss, mean="sequence")


def rise(run: Run, config: Config, rounds: int = 1, improve: Callable = best_of_n, **changes) -> None:
    """``rounds`` iterations: collect with the current model, then fine-tune the base. ``changes``: other settings."""
    config = replace(config, **changes)
    for k in range(rounds):
        collect(run, config, improve, config.steps * k // rounds, config.steps * (k + 1) // rounds)
        fine_tune(run, config)


# --- evaluation -----------------------------------------------------------------------------------------------------


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Five turns from the evaluation's attempts, no oracle, and votes; the control: a vote of parallel attempts."""
    first = rollouts.part(config.turn_problems, TURNS)
    begun = first.part(len(first.problems), config.turn_samples)
    generator = torch.Generator(run.policy.device).manual_seed(20_000 + run.seed)
    if run.arm == "self_refine":
        attempts = self_refine(run, begun, TURNS, generator)
    else:
        attempts = go_on(run, begun, TURNS, partial(state, config=config), generator=generator)
    metrics = turn_metrics(attempts)
    for name, last in (("delta_vote", f"vote@t{TURNS}"), ("delta_last", f"acc@t{TURNS}")):
        pairs = zip(metrics["acc@t1"].values, metrics[last].values, strict=True)
        metrics[name] = share([b - a for a, b in pairs])
    if first.rewards.shape[1] == TURNS:
        parallel = turn_metrics(in_parallel(first))
        metrics |= {f"maj@{TURNS}": parallel[f"vote@t{TURNS}"], f"pass@{TURNS}": parallel[f"any@t{TURNS}"]}
    return metrics


def in_parallel(first: Rollouts) -> Attempts:
    """First attempts at a problem as if they were the turns of one conversation."""
    turns = range(first.rewards.shape[1])
    completions = [[[group[k]] for group in first.completions] for k in turns]
    return Attempts(first.problems, completions, first.rewards.T[:, :, None])


over, GAIN = partial(Claim.over, "rise_1"), "+23.9, +5.5 (7B, teacher)"
RISES = "RISE rises more from the first turn to the fifth than the base"

PAPER = Paper(
    slug="rise",
    title="RISE: Recursive Introspection, Teaching Language Model Agents How to Self-Improve",
    arxiv="2407.18219",
    family="self-correction",
    config=Config,
    arms={
        "self_refine": standard("base"),  # it judges itself when it is measured
        "rft": standard("rft"),
        "rise_1": rise,
        "rise_2": partial(rise, rounds=2),
        "rise_teacher": Arm(partial(rise, improve=teacher, candidates=1), by_name=True),
        "rise_adv": Arm(partial(rise, weight="adv"), by_name=True),
        "rise_unweighted": Arm(partial(rise, weight="none"), by_name=True),
    },
    measure=measure,
    columns=(
        *("acc@t1", "acc@t2", "acc@t5", "delta_last", "maj@5", "vote@t5", "delta_vote", "any@t5", "i_to_c", "c_to_i"),
        "changed",
    ),
    claims=(
        over("rise_1", "acc@t5", "acc@t1", text="RISE: the fifth turn is above the first, without an oracle"),
        over("rise_1", "vote@t5", "acc@t1", text="The vote over five turns is above turn 1", published="+8.2 (8B)"),
        over("base", "delta_last", text=RISES, primary=True),  # a vote gains where single turns are unsure, too
        over("base", "delta_vote", text="RISE's vote gains more than the base's", published=GAIN),
        over("self_refine", "delta_vote", text="... than Self-Refine's", published="+15.1, -6.4 (7B, teacher)"),
        over("rft", "delta_vote", text="... than that of RFT on first attempts"),
        over("rft", "delta_last", text="RISE rises more from turn 1 to turn 5 than RFT"),
        over("rft", "vote@t5", text="RISE's vote over five turns is above RFT's"),
        over("rft", text="RISE's first turn isn't worse than RFT's by more than 2 points", threshold=-0.02),
        over("rise_1", "vote@t5", "maj@5", text="Five turns beat five in parallel", published="+1.0 (7B, teacher)"),
        Claim.over("rise_2", "rise_1", "vote@t5", text="A second iteration ends higher", published="+4.3, more data"),
    ),
    published={"base": "39.2 (+6.3)", "self_refine": "26.5 (-6.4)", "rise_1": "50.7 (+15.1)", "rise_2": "55.0 (+17.7)"},
    published_setting="vote over five turns (gain over the first), boosted Llama-2-7B on GSM8K, GPT-3.5 as teacher",
    curves=("reward@t1", "reward@t2", "loss"),
    panels=(
        Panel("accuracy at each turn", tuple(f"acc@t{t}" for t in range(1, TURNS + 1)), kind="turns"),
        Panel("one, five in parallel, five turns", ("acc@t1", "maj@5", "vote@t5", "any@t5"), kind="bars"),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
