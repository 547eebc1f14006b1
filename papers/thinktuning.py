"""ThinkTuning: Instilling Cognitive Reflections without Distillation. Aswin RRV, Jacob Dineen, Divij Handa, Md Nayem
Uddin, Mihir Parmar, Chitta Baral, Ben Zhou, arXiv 2508.07616, EMNLP 2025.

Idea. GRPO strengthens what a model does already. Here one answer of a group is gone on with by a teacher, the model as
it was before training, which looks back at the answer in the first person without knowing the reference. The longer
answer takes the place of the shorter one in the group, for a first part of the training. Its tokens aren't the
policy's: in place of PPO's ratio they get a weight that is damped or raised where they are unlikely, depending on the
advantage (advantage-aware shaping). So looking back becomes a habit, without a larger model to learn it from.

Reproduced. base, GRPO, the same loop without guidance, cross-entropy on guided answers that are right, ThinkTuning, the
same without shaping (gamma 0), and with guidance until the end. By name: gamma 0.1 for all advantages.

How this differs from the paper and why.
- The teacher goes on with the answer behind "Wait, let me check." and nothing else: the built-in model knows this look
  back (its corpus holds some of them behind plain requests, so the base reflects already, in a share that is reported).
  The paper's teacher writes verdict, reflection and a continuation in blocks, after four examples. What has no end or
  no box is dropped.
- One update per rollout step: PPO's ratio is 1 then, and shaping is a factor of a token's advantage. Without several
  updates its plain ratio and gamma 0 are one arm.
- The released code clamps gamma to a constant by an error. Here it is what the formula says, 0.001 A / 4 within
  +-0.001, and weights are at most 2. Unlikely tokens with negative advantages keep the plain ratio, as in the code.
- One answer of a group is guided in the first sixth of the steps; the code's share, at five answers, means the same.
- The teacher's completions are charged: arms stop at the protocol's number. Groups of equal rewards are left out of
  the token mean, in all arms alike.

Commands.
    repro run thinktuning --seeds 5                # tiny model, with intervals
    repro run thinktuning --arms tt tt_damped      # another shaping
    repro run thinktuning --preset gpu             # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from repro import BASE, Arm, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, script_main, share, standard
from repro.config import ConfigError
from repro.methods.grpo import GRPO, advantages, train_grpo
from repro.methods.multiturn import affordable
from repro.methods.rft import right_solutions, train_on_kept
from repro.model.sampling import Completion
from repro.tasks import prompts
from repro.tasks.problem import Problem
from repro.tasks.rewards import score

BOX = re.compile(r"\\boxed\{[^{}]*\}")
LOOKS_BACK = re.compile(r"(?i)\b(wait|check|verify|mistake|wrong|doubt)")


@dataclass(frozen=True)
class Config(RunConfig):
    """ThinkTuning's hyperparameters."""

    learning_rate: float = 2e-3
    """Of all arms but GRPO; as the standard arms' (paper: 1e-6, full fine-tuning)."""
    updates: int = 40
    """Rollout steps with one update each (code: 50 steps, four updates each)."""
    step_problems: int = 8
    """Problems of a step (code: 128), ``samples`` answers each (code: 5)."""
    guidance: float = 0.16
    """Share of the steps in which one answer of each group is guided (code: 8 of 50)."""
    gamma: float = 0.001
    """Bound of the shaping's gamma, reached at an advantage of 4 (code: 0.001)."""
    constant: bool = False
    """gamma for all advantages alike (LUFFY's damping)."""
    most_weight: float = 2.0
    """Bound of a token's weight (ours: at a negative gamma it has none)."""
    batch: int = 32
    """Answers in an update of cross-entropy, as the standard arms'."""

    PRESETS = {  # noqa: RUF012
        "smol": {"updates": 32, "step_problems": 4},
        "small": {"step_problems": 7},
        "gpu": {"updates": 60, "step_problems": 16},
    }

    def check(self) -> None:
        super().check()
        if not 0 <= self.guidance <= 1:
            raise ConfigError(f"--guidance {self.guidance}: is a share of the steps, from 0 to 1")


# --- advantage-aware shaping (section 3), all [tokens] ----------------------------------------------------------------


def gamma_of(advantage: torch.Tensor, bound: float, far: float = 4.0) -> torch.Tensor:
    """gamma(A), from -bound at A = -far to bound at A = far: rare tokens are damped when they are reinforced."""
    return (bound * advantage / far).clamp(-bound, bound)


def shaped(p: torch.Tensor, gamma: torch.Tensor, most: float = float("inf")) -> torch.Tensor:
    """p / (p + gamma), the denominator kept between 0 and 1 as in the code: the weight of -A grad log p."""
    below = p + gamma
    below = torch.where(below <= 0, p / 1.0001, torch.where(below > 1, p / 0.9999, below))
    return (p / below).clamp(max=most)


def weights(p: torch.Tensor, advantage: torch.Tensor, guided: torch.Tensor, config: Config) -> torch.Tensor:
    """1 for the policy's own answers and for unlikely tokens with a negative advantage, else the shaped weight."""
    gamma = torch.full_like(p, config.gamma) if config.constant else gamma_of(advantage, config.gamma)
    plain = ~guided | ((advantage < 0) & (p < 0.01))
    return torch.where(plain, torch.ones_like(p), shaped(p, gamma, config.most_weight))


# --- guidance -------------------------------------------------------------------------------------------------------


class Guided(Completion):
    """An answer that the teacher has gone on with."""


def spliced(answer: Completion, link: Sequence[int], said: str, more: Completion) -> Guided:
    """The answer without its end, the link, and the teacher's part with its end."""
    ids = (*answer.answer, *link, *more.ids)
    logprobs = (*answer.logprobs[: len(answer.answer)], *(0.0 for _ in link), *more.logprobs)
    return Guided(answer.prompt, ids, logprobs, answer.text + said + more.text, False)


def guide(run: Run, rollouts: Rollouts, count: int) -> Rollouts:
    """Up to ``count`` answers of each problem, of those that ended, with the teacher's look back in their place."""
    said = f"\n\n{prompts.CHECK}\n\n"
    link = run.policy.tokenizer(said, add_special_tokens=False).input_ids
    places = []
    for i, group in enumerate(rollouts.completions):
        ended = [k for k, c in enumerate(group) if not c.truncated]
        places += [(i, ended[n]) for n in torch.randperm(len(ended), generator=run.rng)[:count].tolist()]
    asked = [[*rollouts.completions[i][k].written, *link] for i, k in places]
    replies = run.sample(asked, 1, temperature=0.0, adapter=BASE) if asked else []
    completions, rewards = [list(group) for group in rollouts.completions], rollouts.rewards.clone()
    taken = [(i, k, more) for (i, k), (more,) in zip(places, replies, strict=True) if fits(more)]
    for i, k, more in taken:
        completions[i][k] = spliced(completions[i][k], link, said, more)
        rewards[i, k] = run.rewards(rollouts.problems[i : i + 1], [[completions[i][k]]])[0, 0]
    if taken:
        before, after = (torch.stack([r[i, k] for i, k, _ in taken]) for r in (rollouts.rewards, rewards))
        run.log(fixed=((1 - before) * after).mean(), broken=(before * (1 - after)).mean())
    run.log(rejected=1 - len(taken) / max(1, len(places)))
    return Rollouts(rollouts.problems, completions, rewards)


def fits(more: Completion) -> bool:
    """Does the teacher's part come to an end and to an answer?"""
    return not more.truncated and BOX.search(more.text) is not None


# --- the arms -------------------------------------------------------------------------------------------------------


def think(run: Run, config: Config, **changes) -> None:
    """Policy gradient on groups with a guided answer, token mean; ``changes``: with other settings."""
    config = replace(config, **changes)
    guided_steps = round(config.guidance * config.updates)

    def rollout(run: Run, problems: list[Problem], samples: int) -> Rollouts:
        if not problems:
            return Rollouts([], [], torch.zeros(0, samples))
        rollouts = run.rollout(problems, samples)
        return guide(run, rollouts, 1) if run.step < guided_steps else rollouts

    def advantage(run: Run, rollouts: Rollouts, settings: GRPO) -> torch.Tensor:
        values = advantages(rollouts.rewards, settings.variant)
        guided = torch.tensor([[float(isinstance(c, Guided)) for c in group] for group in rollouts.completions])
        if not guided.any():
            return values
        batch = rollouts.batch()
        tokens, marked = (batch.spread(v.flatten()) for v in (values, guided))
        p = run.logprobs(batch, temperature=config.temperature).cpu().exp()
        return tokens * weights(p, tokens, marked > 0, config)

    most = config.samples + (1 if guided_steps else 0)
    draw = affordable(config.steps * config.prompts * config.samples, most)
    sizes = config.updates, config.step_problems, config.samples
    train_grpo(run, *sizes, GRPO("dapo"), draw=draw, rollout=rollout, advantage=advantage)


def sft(run: Run, config: Config) -> None:
    """Half as many answers, all of them guided; cross-entropy on those that end right."""
    half = config.samples // 2
    draw = affordable(config.steps * config.prompts * config.samples, 2 * half)
    for _ in run.stage("collect", config.updates):
        if problems := draw(run, config.step_problems):
            guided = guide(run, run.rollout(problems, half), half)
            own = torch.tensor([[not isinstance(c, Guided) for c in group] for group in guided.completions])
            guided.rewards[own] = 0.0  # what the teacher's part didn't fit
            run.kept.setdefault("solutions", []).extend(right_solutions(guided))
    train_on_kept(run, config.updates, config.batch, config.learning_rate)


# --- evaluation -----------------------------------------------------------------------------------------------------


def before_reflection(text: str) -> str | None:
    """The text up to its first box, if it looks back behind it."""
    box = BOX.search(text)
    return text[: box.end()] if box and LOOKS_BACK.search(text[box.end() :]) else None


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """How many of the evaluation's answers look back behind a first box, and what that does to them."""
    first = [[before_reflection(c.text) for c in group] for group in rollouts.completions]
    after = rollouts.rewards.double().numpy()
    before = after.copy()
    places = [(i, k) for i, row in enumerate(first) for k, text in enumerate(row) if text is not None]
    for place, right in zip(
        places, score([rollouts.problems[i] for i, _ in places], [first[i][k] for i, k in places]), strict=True
    ):
        before[place] = right
    return {
        "reflection": share([np.mean([text is not None for text in row]) for row in first]),
        "fixed": share(((1 - before) * after).mean(1)),
        "broken": share((before * (1 - after)).mean(1)),
        "first box": share(before.mean(1)),
    }


over = Claim.over

PAPER = Paper(
    slug="thinktuning",
    title="ThinkTuning: Instilling Cognitive Reflections without Distillation",
    arxiv="2508.07616",
    family="reinforcement learning",
    config=Config,
    arms={
        "grpo": standard("grpo"),
        "unguided": partial(think, guidance=0.0),
        "sft": sft,
        "tt": think,
        "tt_gamma_0": partial(think, gamma=0.0),
        "tt_always": partial(think, guidance=1.0),
        "tt_damped": Arm(partial(think, gamma=0.1, constant=True), by_name=True),
    },
    measure=measure,
    claims=(
        over("tt", "grpo", "reflection", text="Untold, ThinkTuning looks back more often than GRPO", primary=True),
        over("tt", "base", "reflection", text="... than the base"),
        over("tt", "unguided", "reflection", text="... than the same loop without guidance"),
        over("tt", "grpo", threshold=-0.02, text="It isn't worse than GRPO by 2 points", published="+2.1 (MATH-500)"),
        over("tt", "unguided", text="It ends above the same loop without guidance"),
        over("tt", "tt_gamma_0", text="Shaping helps"),
        over("tt_always", "tt", "reflection", text="Guidance until the end makes for more looks back"),
        over("tt", "sft", text="It ends above cross-entropy on guided answers"),
        over("tt", "tt", "fixed", "broken", text="Its looks back mend more answers than they break"),
    ),
    columns=("accuracy", "greedy", "reflection", "first box", "fixed", "broken", "length", "pass@8"),
    published={"grpo": "45.5", "tt": "47.5"},
    published_setting="Llama-3.2-3B-Instruct trained on GSM8K, MATH-500",
    curves=("reward", "length", "entropy"),
    panels=(
        Panel("accuracy (validation)", ("validation",), x="completions"),
        Panel("tokens of an answer", ("length",), x="completions"),
        Panel("looks back", ("reflection", "fixed", "broken"), "bars"),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
