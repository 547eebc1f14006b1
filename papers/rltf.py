"""Expanding the Capabilities of Reinforcement Learning via Text Feedback (RLTF). Yuda Song, Lili Chen, Fahim Tajwar,
Rémi Munos, Deepak Pathak, J. Andrew Bagnell, Aarti Singh, Andrea Zanette, arXiv 2602.02482, 2026.

Idea. Feedback in words is at hand in training, not at test time. A wrong first answer gets a critique and a second
answer. Self-distillation (SD) raises the likelihood of second answers without the critique in the context, weighted by
how much better they are than first answers were. Feedback modelling (FM) has the policy predict the critique. Both
stand beside two-turn policy gradient and shall lift the first answer alone.

Reproduced. base, GRPO, two-turn RL, the same with cross-entropy on right second answers, SD and FM. Control: SD with
critiques of other attempts. By name: SD with the mean of second answers as its baseline, and with the verdict alone.
Second answers after a critique, and rounds of the policy's own critiques without a verifier.

How this differs from the paper and why.
- The critic is exact and names the first wrong step. It never says the right one, or second answers would copy it. On
  other tasks the base reads the reference and names the step.
- The second request goes on with the conversation and asks for the whole solution anew (paper: one fresh message with
  banned words): answers here never speak of their critique.
- One rule for all arms: right first answers get no second turn. So the completions of a run aren't fixed; all arms of
  two turns stop at the protocol's, and see fewer problems. On other tasks the critic's completions count as well.
- Sums over tokens are divided by their number of sequences in a step, which keeps their weights in it. FM is predicted
  at the sampling temperature, as all terms are one step of one loop. SD's weight is constant (paper: rising for
  mathematics).
- GRPO is the kit's: several updates a step, advantages divided by the std. LoRA, 40 updates, a higher rate.

Commands.
    repro run rltf --seeds 5                       # tiny model, with intervals
    repro run rltf --arms sd sd_verdict            # a critic that names nothing
    repro run rltf --preset gpu                    # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch

from repro import Arm, Batch, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, script_main, share, standard
from repro.methods.critic import (
    critic_for,
    exact,
    exact_critic,
    own_critic,
    samples_critiques,
    shuffled,
    step_named,
    to_predict,
)
from repro.methods.grpo import GRPO, train_grpo
from repro.methods.multiturn import (
    Conversations,
    affordable,
    conversations,
    dialogues,
    self_feedback,
    solved_within,
)
from repro.results.metrics import ratio
from repro.tasks import prompts
from repro.tasks.problem import Problem

Teaches = Literal["", "sd", "sft", "fm"]
Critiques = Literal["place", "verdict", "shuffled"]
Baseline = Literal["first", "second"]


@dataclass(frozen=True)
class Config(RunConfig):
    """RLTF's hyperparameters."""

    learning_rate: float = 2e-3
    """Of all arms with two turns; as the standard arms' (paper: 2e-5, LoRA)."""
    updates: int = 40
    """Steps, one update each (paper: one; their number isn't known)."""
    conversation_problems: int = 5
    """Problems of a step (paper: 32), ``samples`` conversations each (paper: 8); fewer once completions run out."""
    gamma: float = 0.1
    """Weight of the second answer's reward in the first one's return (paper: 0.1)."""
    alpha: float = 0.1
    """Weight of SD, and of cross-entropy on right second answers (paper: 0.1)."""
    least_logprob: float = -5.0
    """SD leaves out tokens that are less likely without the critique (code: -5)."""
    feedback_weight: float = 0.1
    """Weight of FM, lambda (paper: 0.1); 0 is two-turn RL."""
    box_penalty: float = 0.1
    """Taken off an answer without a box (paper: 0.1)."""
    own_turns: int = 3
    """Attempts in the evaluation with own critiques (paper: up to 6)."""
    dialogue_problems: int = 256
    """Held-out problems that get further turns, one sample each (ours)."""

    PRESETS = {  # noqa: RUF012
        "smol": {"updates": 32, "conversation_problems": 2},
        "small": {"conversation_problems": 4},
        "gpu": {"updates": 60, "conversation_problems": 10},
    }


# --- rewards and advantages (section 3), [turns, problems, samples] or [problems, samples] ----------------------------


def shaped(right: torch.Tensor, boxed: torch.Tensor, penalty: float) -> torch.Tensor:
    """1 for a right answer in a box, 0 for a wrong one, -penalty without a box."""
    return right * boxed - penalty * (1 - boxed)


def turn_rewards(made: Conversations, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards of both answers, 0 where there is no second one, and whether there is one."""
    right, boxed = torch.zeros(2, 2, *made.rewards.shape)
    reached = torch.zeros_like(made.rewards)
    for t, i, k in made.attempts:
        dialogue = made.dialogues[i][k]
        right[t, i, k] = dialogue.solved_at == t + 1
        boxed[t, i, k] = "\\boxed" in dialogue.attempts[t].text
        reached[i, k] = t
    rewards = shaped(right, boxed, penalty)
    rewards[1] *= reached
    return rewards, reached


def centred(values: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Values minus their problem's mean over the samples ``among`` which they are; 0 for the others."""
    mean = (values * among).sum(1, keepdim=True) / among.sum(1, keepdim=True).clamp(min=1)
    return (values - mean) * among


def two_turn_advantages(rewards: torch.Tensor, reached: torch.Tensor, gamma: float) -> torch.Tensor:
    """Returns minus their mean over the samples that have the turn; not divided by the std."""
    first = rewards[0] + gamma * rewards[1]
    return torch.stack([centred(first, torch.ones_like(reached)), centred(rewards[1], reached)])


def sd_advantages(rewards: torch.Tensor, reached: torch.Tensor, baseline: Baseline) -> torch.Tensor:
    """Second rewards minus the mean of all first ones: it doesn't vanish once critiques make every answer right.

    "second" (GRPO-like): minus the mean of second ones.
    """
    if baseline == "second":
        return centred(rewards[1], reached)
    return (rewards[1] - rewards[0].mean(1, keepdim=True)) * reached


def kept(logp: torch.Tensor, least: float) -> torch.Tensor:
    """1 for tokens that are likely enough without the critique, else 0, [tokens]."""
    return (logp >= least).float()


# --- the arms -------------------------------------------------------------------------------------------------------


def with_lessons(run: Run, made: Conversations, config: Config, teaches: Teaches, baseline: Baseline) -> Conversations:
    """What is learnt beside the two turns: second answers to the problem alone, or critiques."""
    rewards, reached = turn_rewards(made, config.box_penalty)
    worth = sd_advantages(rewards, reached, baseline)
    for i, k in reached.nonzero().tolist():
        dialogue = made.dialogues[i][k]
        if teaches == "sd" or (teaches == "sft" and dialogue.right):
            weight = config.alpha * (worth[i, k].item() if teaches == "sd" else 1.0)
            alone = run.policy.encode(prompts.solve(dialogue.problem))
            made.more.append((alone, dialogue.attempts[1].ids, weight))
        elif teaches == "fm" and config.feedback_weight and dialogue.words[0]:
            pair = to_predict(run, dialogue.problem, dialogue.attempts[0].text, dialogue.words[0])
            made.more.append((*pair, config.feedback_weight))
    return made


def train(
    run: Run,
    config: Config,
    teaches: Teaches = "",
    critiques: Critiques = "place",
    baseline: Baseline = "first",
) -> None:
    """Two-turn policy gradient, one update on each step's conversations, with what the arm teaches beside."""
    critic = exact_critic("verdict") if critiques == "verdict" else critic_for(config.task, "place")
    critic = shuffled(critic) if critiques == "shuffled" else critic

    def rollout(run: Run, problems: list[Problem], samples: int) -> Conversations:
        return with_lessons(run, conversations(run, problems, samples, 2, critic), config, teaches, baseline)

    def advantage(run: Run, made: Conversations, settings: GRPO) -> torch.Tensor:
        weights = made.weights(two_turn_advantages(*turn_rewards(made, config.box_penalty), config.gamma))
        if teaches == "sd" and made.more:
            distilled = Batch([(prompt, ids) for prompt, ids, _ in made.more])
            mask = kept(run.logprobs(distilled, temperature=config.temperature).cpu(), config.least_logprob)
            weights[-len(mask) :] *= mask
            run.log(masked=1 - mask.mean())
        return weights

    budget = config.steps * config.prompts * config.samples
    train_grpo(
        *(run, config.updates, config.conversation_problems, config.samples, GRPO("dr_grpo")),
        draw=affordable(budget, (2 + samples_critiques(config.task)) * config.samples),
        rollout=rollout,
        advantage=advantage,
    )


# --- evaluation -----------------------------------------------------------------------------------------------------


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Second answers after the critic's words on wrong ones, and rounds of the policy's own critiques, unverified."""
    generator = torch.Generator(run.policy.device).manual_seed(20_000 + run.seed)
    begun = rollouts.part(config.dialogue_problems, 1)
    told = dialogues(run, begun, 2, critic_for(config.task, "place"), generator=generator)
    unnamed = dialogues(run, begun, 2, exact_critic("verdict"), generator=generator)
    (first, second), (_, plain) = solved_within(told, 2), solved_within(unnamed, 2)
    attempts, words = self_feedback(run, begun, config.own_turns, own_critic(generator=generator), generator)
    metrics = {f"own, acc@t{t}": share(right.mean(1)) for t, right in enumerate(attempts.rewards, 1)}
    last = attempts.rewards[-1].mean(1) - attempts.rewards[0].mean(1)
    mended = {"mended": second, "mended, verdict": plain}
    metrics |= {name: share(ratio(after - first, 1 - first)) for name, after in mended.items()}
    metrics |= {"told": share(second), "own gain": share(last)}
    named = [
        (step_named(exact(problem, c.text, "place")), step_named(said[0]))
        for problem, group, row in zip(begun.problems, begun.completions, words, strict=True)
        for c, said in zip(group, row, strict=True)
    ]
    if found := [right == own for right, own in named if right]:
        metrics["located"] = share(np.mean(found))
    return metrics


over = Claim.over
PUBLISHED = {"base": "0.058", "grpo": "0.373", "grpo_mt": "0.352", "sd": "0.802", "fm": "0.880"}

PAPER = Paper(
    slug="rltf",
    title="Expanding the Capabilities of Reinforcement Learning via Text Feedback",
    arxiv="2602.02482",
    family="reinforcement learning",
    departs="dialogues end when right: at most the protocol's completions, on fewer problems",
    config=Config,
    arms={
        "grpo": standard("grpo"),
        "grpo_mt": train,
        "sft_y1": partial(train, teaches="sft"),
        "sd": partial(train, teaches="sd"),
        "sd_shuffled": partial(train, teaches="sd", critiques="shuffled"),
        "fm": partial(train, teaches="fm"),
        "sd_second": Arm(partial(train, teaches="sd", baseline="second"), by_name=True),
        "sd_verdict": Arm(partial(train, teaches="sd", critiques="verdict"), by_name=True),
    },
    measure=measure,
    claims=(
        over("sd", "grpo", text="SD's first answer ends above GRPO's", published="+42.9, +2.2 (MATH)", primary=True),
        over("fm", "grpo", text="FM's first answer ends above GRPO's", published="+50.7, +4.1 (MATH)"),
        over("sd", "grpo_mt", text="SD's first answer ends above that of two-turn RL", published="+45.0, +2.5 (MATH)"),
        over("fm", "grpo_mt", text="FM's first answer ends above that of two-turn RL", published="+52.8, +4.4 (MATH)"),
        over("sd", "sft_y1", text="Weighted SD ends above cross-entropy on right second answers", published="above"),
        over("sd", "sd_second", text="The mean of first answers is the better baseline", published="above"),
        over("sd", "sd_shuffled", text="SD ends above SD with critiques of other attempts"),
        over("sd", "sd_verdict", text="A critique teaches more than the verdict", published="above"),
        over("fm", "grpo", "own gain", text="Own critiques help FM more than GRPO", published="GRPO gains nothing"),
        over("fm", "grpo", "located", text="FM's own critiques name the first wrong step more often than GRPO's"),
        over("base", "base", "mended", "mended, verdict", text="The base mends more when told the place of its error"),
    ),
    columns=("accuracy", "greedy", "pass@8", "told", "mended", "own, acc@t1", "own, acc@t3", "own gain", "located"),
    published=PUBLISHED,
    published_setting="Llama-3.1-8B-Instruct on Knights & Knaves, first answers",
    curves=("reward", "mended", "entropy"),
    panels=(
        Panel("accuracy (validation)", ("validation",), x="completions"),
        Panel("mended by the critic's words", ("mended",), x="completions"),
        Panel("own critiques", tuple(f"own, acc@t{t}" for t in range(1, 4)), "turns"),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
