"""Improving Interactive In-Context Learning from Natural Language Feedback (RL2F). Martin Klissarov, Jonathan Cook,
Diego Antognini, Hao Sun, Jingling Li, Natasha Jaques, Claudiu Musat, Edward Grefenstette, arXiv 2602.16066, 2026.

Idea. A student solves problems in dialogue with a teacher who knows the solution and speaks only after wrong attempts.
Policy gradient on whole dialogues, rewarded for a right attempt (the sooner the better), makes the student better at
learning from words in its context: the outer loop trains what the inner loop does. If it also predicts what the teacher
says, from what the student sees, it can be its own teacher.

Reproduced. base, single-turn GRPO, cross-entropy on dialogues that end right, RL2F, RL2F with critique prediction.
Controls: RL2F with a teacher that only says that it is wrong; in the evaluation such a teacher, one that speaks of
other attempts, and independent samples for as many tokens. Own critiques without a verifier. By name: a teacher that
speaks of other attempts in training, and no discount.

How this differs from the paper and why.
- The teacher is exact: it names the first wrong step and a right one, unless that says the answer. On other tasks the
  base reads the reference. Optimiser, turns and group size of the paper aren't known: what is said to be of SML is from
  the companion paper (2602.16488).
- Critiques are predicted from the problem and the attempt alone, as they are asked for (paper: from the dialogue so
  far). They are further sequences of the policy-gradient step; how the paper mixes them in isn't known.
- A reward is 0.7 to the power of the attempts before, one advantage for all of a dialogue's attempts (the discount's
  place is inferred). The mean is over attempts of their tokens' means.
- Arms with dialogues stop at the protocol's completions (on other tasks the teacher's count as well); GRPO spends the
  same on first attempts. Equal first attempts can't be had for all arms: they are reported, and so is what is mended of
  wrong ones, since a better first attempt leaves less to gain. The claims are on three attempts, as the paper's table.
- LoRA, 40 updates. Problems aren't filtered. Clarifying questions and the probe for sycophancy aren't here.

Commands.
    repro run interactive_icl --seeds 5            # tiny model, with intervals
    repro run interactive_icl --arms rl2f rl2f_shuffled rl2f_undiscounted
    repro run interactive_icl --preset gpu         # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from repro import Arm, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, script_main, share, standard
from repro.config import ConfigError
from repro.methods.critic import Critic, critic_for, exact_critic, own_critic, samples_critiques, shuffled, to_predict
from repro.methods.grpo import GRPO, advantages, train_grpo
from repro.methods.multiturn import (
    Conversations,
    affordable,
    at_equal_tokens,
    conversations,
    dialogues,
    repeats,
    self_feedback,
    solved_within,
)
from repro.methods.rft import train_on_kept
from repro.results.metrics import ratio
from repro.tasks.problem import Problem

Teacher = Literal["informed", "empty", "shuffled"]
COMPARED = 3  # attempts, as in the paper's table


@dataclass(frozen=True)
class Config(RunConfig):
    """RL2F's hyperparameters."""

    learning_rate: float = 1e-3
    """Of RL2F (not known of the paper)."""
    sft_learning_rate: float = 2e-3
    """Of cross-entropy on kept dialogues."""
    updates: int = 40
    """Steps with one update each, and those of cross-entropy on kept dialogues (ours)."""
    conversation_problems: int = 4
    """Problems of a step, ``samples`` dialogues each (SML: 8 dialogues); fewer once completions run out."""
    turns: int = 3
    """Attempts of a dialogue in training (SML: 4)."""
    eval_turns: int = 5
    """Attempts of a dialogue with the teacher in the evaluation (paper: 3 and 10); with the controls three."""
    dialogue_problems: int = 256
    """Held-out problems with dialogues (ours)."""
    discount: float = 0.7
    """Of the reward, for each attempt before the right one (SML: 0.7); 1: none."""
    critique_weight: float = 0.0
    """Weight of critique prediction; 0.1 in the arm rl2f_wm (inferred)."""
    batch: int = 32
    """Attempts in an update of cross-entropy (ours)."""

    PRESETS = {  # noqa: RUF012
        "smol": {"updates": 32, "conversation_problems": 2, "sft_learning_rate": 2e-4},
        "small": {"sft_learning_rate": 1e-4},
        "gpu": {"updates": 60, "conversation_problems": 9, "sft_learning_rate": 2e-5},
    }

    def check(self) -> None:
        super().check()
        if self.eval_turns < COMPARED:
            raise ConfigError(f"--eval-turns {self.eval_turns}: at least {COMPARED}, where the paper compares")
        if not 0 < self.discount <= 1:
            raise ConfigError(f"--discount {self.discount}: must be above 0 and at most 1")


# --- training -------------------------------------------------------------------------------------------------------


def dialogue_rewards(made: Conversations, discount: float) -> torch.Tensor:
    """discount ** (attempts before the right one), 0 for what isn't solved, [problems, samples]."""
    rewards = torch.zeros_like(made.rewards)
    for i, group in enumerate(made.dialogues):
        for k, dialogue in enumerate(group):
            rewards[i, k] = discount ** (dialogue.solved_at - 1) if dialogue.right else 0.0
    return rewards


def teacher_of(config: Config, teacher: Teacher = "informed") -> Critic:
    informed = critic_for(config.task, "step")
    return {"informed": informed, "empty": exact_critic("verdict"), "shuffled": shuffled(informed)}[teacher]


def student_draw(config: Config) -> Callable[[Run, int], list[Problem]]:
    """Problems as long as the protocol's completions have room for their dialogues."""
    said = (config.turns - 1) * samples_critiques(config.task)
    return affordable(config.steps * config.prompts * config.samples, (config.turns + said) * config.samples)


def rl2f(run: Run, config: Config, teacher: Teacher = "informed", **changes) -> None:
    """GRPO over dialogues: only attempts carry a loss, and with a weight the teacher's words. ``changes``: settings."""
    config = replace(config, **changes)
    critic = teacher_of(config, teacher)

    def rollout(run: Run, problems: list[Problem], samples: int) -> Conversations:
        made = conversations(run, problems, samples, config.turns, critic)
        for dialogue in (d for group in made.dialogues for d in group) if config.critique_weight else ():
            for attempt, words in zip(dialogue.attempts, dialogue.words, strict=False):
                if words:
                    pair = to_predict(run, dialogue.problem, attempt.text, words)
                    made.more.append((*pair, config.critique_weight))
        return made

    def advantage(run: Run, made: Conversations, settings: GRPO) -> torch.Tensor:
        values = advantages(dialogue_rewards(made, config.discount), settings.variant)
        return made.weights(values.expand(config.turns, *values.shape))

    sizes = config.updates, config.conversation_problems, config.samples
    train_grpo(run, *sizes, GRPO(), draw=student_draw(config), rollout=rollout, advantage=advantage)


def attempts_that_lead(made: Conversations) -> list[list[list[int]]]:
    """[prompt ids, completion ids] of all attempts of the dialogues that end right."""
    batch = made.batch()
    solved = [made.dialogues[i][k].right for _, i, k in made.attempts]
    return [[list(prompt), list(ids)] for (prompt, ids), right in zip(batch.sequences, solved, strict=True) if right]


def sft(run: Run, config: Config) -> None:
    """The base's dialogues that end right, then cross-entropy on their attempts."""
    draw, critic = student_draw(config), teacher_of(config)
    for _ in run.stage("collect", config.updates):
        made = conversations(run, draw(run, config.conversation_problems), config.samples, config.turns, critic)
        run.kept.setdefault("solutions", []).extend(attempts_that_lead(made))
    train_on_kept(run, config.updates, config.batch, config.sft_learning_rate)


# --- evaluation -----------------------------------------------------------------------------------------------------


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Dialogues with three teachers, as many tokens of independent samples, and own critiques to the last attempt."""
    generator = torch.Generator(run.policy.device).manual_seed(20_000 + run.seed)
    pool, turns = rollouts.part(config.dialogue_problems, config.eval_samples), config.eval_turns
    begun = pool.part(len(pool.problems), 1)
    fresh = pool.rewards.double().numpy()
    lengths = pool.lengths.double().numpy()
    made = dialogues(run, begun, turns, teacher_of(config), generator=generator)
    solved = solved_within(made, turns)
    metrics = {f"solved@{t}": share(values) for t, values in enumerate(solved, 1)}
    tries, mended = np.array([len(d.attempts) - 1.0 for (d,) in made]), solved[-1] - solved[0]
    metrics |= {"slope": share(mended), "repeats": share(repeats(made)), "mended": share(ratio(mended, tries))}
    for t in range(1, turns + 1):
        tokens = np.mean([sum(len(c.ids) for c in d.attempts[:t]) for (d,) in made])
        metrics[f"equal tokens@{t}"] = share(at_equal_tokens(fresh, lengths, tokens))
    for control in ("empty", "shuffled"):
        made = dialogues(run, begun, COMPARED, teacher_of(config, control), generator=generator)
        metrics |= {f"solved, {control}@{t}": share(v) for t, v in enumerate(solved_within(made, COMPARED), 1)}
    alone, _ = self_feedback(run, begun, COMPARED, own_critic(generator=generator), generator)
    metrics |= {f"unverified@{t}": share(values[:, 0]) for t, values in enumerate(alone.rewards, 1)}
    return metrics | {"own gain": share(alone.rewards[-1, :, 0] - alone.rewards[0, :, 0])}


over, THIRD = Claim.over, f"solved@{COMPARED}"

PAPER = Paper(
    slug="interactive_icl",
    title="Improving Interactive In-Context Learning from Natural Language Feedback",
    arxiv="2602.16066",
    family="reinforcement learning",
    departs="dialogues end when right: at most the protocol's completions, on fewer problems",
    config=Config,
    arms={
        "grpo": standard("grpo"),
        "sft": sft,
        "rl2f": rl2f,
        "rl2f_empty": partial(rl2f, teacher="empty"),
        "rl2f_wm": partial(rl2f, critique_weight=0.1),
        "rl2f_shuffled": Arm(partial(rl2f, teacher="shuffled"), by_name=True),
        "rl2f_undiscounted": Arm(partial(rl2f, discount=1.0), by_name=True),
    },
    measure=measure,
    claims=(
        over("rl2f", "grpo", THIRD, text="RL2F solves more within three attempts", published="+10", primary=True),
        over("rl2f", "base", THIRD, text="... than the base", published=".52 -> .62"),
        over("rl2f", "grpo", "slope", text="RL2F gains more over the turns than GRPO", published="steeper"),
        over("rl2f", "grpo", "mended", text="A further attempt of RL2F mends more often than one of GRPO"),
        over("grpo", "rl2f", "repeats", text="RL2F repeats a wrong answer less often than GRPO"),
        over("rl2f", "rl2f_empty", THIRD, text="Words teach more than the verdict does"),
        over("rl2f", "sft", THIRD, text="RL2F ends above cross-entropy on dialogues that end right"),
        over("rl2f", "rl2f", THIRD, "equal tokens@3", text="RL2F's dialogues beat its independent samples"),
        over("rl2f", "rl2f", THIRD, "solved, shuffled@3", text="... and its dialogues with words on other attempts"),
        over("rl2f", "grpo", threshold=-0.02, text="RL2F's first attempt isn't worse by more than 2 points"),
        over("rl2f_wm", "rl2f", "own gain", text="Critique prediction helps with own critiques", published="it does"),
        over("rl2f_wm", "base", "own gain", text="Own critiques help more than they help the base"),
    ),
    columns=(
        *("accuracy", THIRD, "equal tokens@3", "solved, empty@3", "solved, shuffled@3", "slope", "mended", "repeats"),
        *("unverified@3", "own gain"),
    ),
    published={"base": "52", "grpo": "slightly above 52", "rl2f": "62"},
    published_setting="Gemini 2.5 Flash on HardMath2, solved within three attempts, read off a plot",
    curves=("reward", "solved", "mended", "entropy"),
    panels=(
        Panel("solved within", ("solved", "equal tokens"), "sizes", x="attempts"),
        Panel("own critiques, unverified", tuple(f"unverified@{t}" for t in range(1, COMPARED + 1)), "turns"),
        Panel("solved in training", ("solved",), x="completions"),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
