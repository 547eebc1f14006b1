"""ATESD: Adaptive Teacher Exposure for Self-Distillation in LLM Reasoning. Zihao Han, Tiangang Zhang, Huaibin Wang,
Yilun Sun, arXiv 2605.11458, 2026.

Idea. A self-teacher that reads the whole reference solution can be too far from the student to be followed. How much of
it the teacher reads, the first floor(alpha m) of m steps and always the answer, is a decision: a small network draws
alpha from a Beta distribution every few steps, and is rewarded later by how much the student's loss on held-out
reference solutions has fallen, and by how likely the exposed teacher finds the reference.

Reproduced. How far student and teacher are apart by exposure, on the base's own solutions; self-distillation at full
and half exposure, at a random one, and at the learned one. By name: other fixed exposures, the controller with a
one-step reward, and without the teacher's likelihood in it.

How this differs from the paper and why.
- Window, look-ahead, discount, batch and size of the controller aren't known; ours are scaled to the number of steps,
  so that the controller is updated a handful of times.
- The tracked loss is the student's on reference solutions that it never trains on: the distillation loss itself falls
  whenever less is shown.
- Full exposure shows all steps and the answer in the words of the partial exposures, not in those of OPSD's prompt.
- Forward KL with OPSD's clip, since the paper builds on it.

Commands.
    repro run atesd --seeds 5                                    # tiny model, with intervals
    repro run atesd --arms base                                  # how far they are apart, nothing is trained
    repro run atesd --arms atesd one_step ungrounded --seeds 5   # what the controller is rewarded for
    repro run atesd --preset gpu                                 # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy import stats
from torch import nn

from repro import BASE, Arm, Batch, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, number, script_main, share
from repro.methods.distill import follow, of_problem, read_by_teacher, traits
from repro.methods.sft import solution_batch
from repro.model.logprobs import forward_kl
from repro.tasks import prompts
from repro.tasks.loading import load
from repro.tasks.problem import Problem

EXPOSURES = (0.0, 0.25, 0.5, 0.75, 1.0)
STATE = ("exposure", "probe", "loss", "gap", "entropy")  # their recent means; the controller sees progress, too
RECENT = 8  # steps
MARGIN = 1e-4  # from 0 and 1, where a Beta density can be infinite
Choose = Callable[[int], float]  # the exposure of a step


@dataclass(frozen=True)
class Config(RunConfig):
    """Settings of all arms."""

    learning_rate: float = 1e-3
    """As OPSD's (paper: not known)."""
    updates: int = 40
    """Optimiser steps, ``prompts`` problems each, one rollout a problem (paper: not known)."""
    clip: float = 0.3
    """Upper bound of each vocabulary entry's contribution to forward KL, as OPSD's."""
    hold: int = 2
    """Steps for which an exposure is held (paper: not known)."""
    look_ahead: int = 4
    """Steps after which a decision is rewarded (paper: not known)."""
    discount: float = 0.9
    """Of later steps in that reward (paper: not known)."""
    grounding: float = 0.05
    """Weight of the exposed teacher's mean log-prob of reference tokens in it (paper: not known)."""
    decisions: int = 3
    """Rewarded decisions of a controller update (paper: not known)."""
    controller_rate: float = 1e-2
    """Adam's learning rate for the controller (paper: not known)."""
    penalty: float = 0.1
    """Weight of the squared excess of the Beta distribution's entropy (paper: not known)."""
    entropy_target: float = -0.2
    """That entropy's bound in nats (paper: not known)."""
    probe_problems: int = 32
    """Reference solutions that the student's loss is tracked on; they are never trained on (ours)."""
    aside_problems: int = 160
    """Problems of the evaluation on which teacher and student are compared (ours)."""

    PRESETS = {  # noqa: RUF012
        "smol": {"updates": 32, "clip": 0.05, "learning_rate": 2e-4},
        "small": {"updates": 120, "hold": 4, "look_ahead": 8, "clip": 0.05, "learning_rate": 5e-5},
        "gpu": {"updates": 120, "hold": 4, "look_ahead": 8, "prompts": 32, "clip": 0.05, "learning_rate": 1e-5},
    }


# --- exposure, reward, controller ------------------------------------------------------------------------------------


def exposed(problem: Problem, exposure: float) -> prompts.Chat:
    """The problem with the first floor(alpha m) of its reference's m steps, and its answer once."""
    steps = len(prompts.split_steps(problem.solution)) - 1  # the last line is the answer's
    return prompts.solve_with_part(problem, int(exposure * steps), answer=True)


def reward(losses: Sequence[float], grounded: Sequence[float], discount: float, grounding: float) -> float:
    """Discounted decreases of the loss, L+1 values, and the weighted mean of the L values ``grounded`` (section 3)."""
    weights = [discount**i for i in range(len(grounded))]
    falls = sum(w * max(0.0, a - b) for w, a, b in zip(weights, losses, losses[1:], strict=False))
    return falls + grounding * sum(w * g for w, g in zip(weights, grounded, strict=True)) / sum(weights)


def normalised(rewards: torch.Tensor) -> torch.Tensor:
    """Rewards less their mean, over their population standard deviation; zeros where they are all alike."""
    spread = rewards.std(correction=0)
    return (rewards - rewards.mean()) / (spread + 1e-8) if spread > 1e-6 else torch.zeros_like(rewards)


def controller(rng: torch.Generator) -> nn.Sequential:
    """From the state to (a, b) before the softplus; the last layer is zero, so that it begins without a preference."""
    net = nn.Sequential(nn.Linear(1 + len(STATE), 16), nn.Tanh(), nn.Linear(16, 2))
    nn.init.normal_(net[0].weight, std=0.5, generator=rng)
    for parameter in (net[0].bias, net[2].weight, net[2].bias):
        nn.init.zeros_(parameter)
    return net


def beta_of(net: nn.Module, state: torch.Tensor) -> torch.distributions.Beta:
    """Beta(1 + softplus(f)): it has one peak. state [..., features]."""
    a, b = (1 + nn.functional.softplus(net(state))).unbind(-1)
    return torch.distributions.Beta(a, b)


def controller_loss(
    policy: torch.distributions.Beta, exposures: torch.Tensor, rewards: torch.Tensor, config: Config
) -> torch.Tensor:
    """-mean A log pi(alpha) + c max(0, H - target)^2: REINFORCE, and only too much exploration is punished."""
    excess = (policy.entropy() - config.entropy_target).clamp(min=0)
    return (config.penalty * excess**2 - normalised(rewards) * policy.log_prob(exposures)).mean()


def draw(policy: torch.distributions.Beta, rng: torch.Generator) -> float:
    """One exposure, kept from 0 and 1."""
    level = torch.rand((), generator=rng, dtype=torch.float64).item()
    found = stats.beta.ppf(level, policy.concentration1.item(), policy.concentration0.item())
    return min(max(float(found), MARGIN), 1 - MARGIN)


# --- the arms -------------------------------------------------------------------------------------------------------


def train(run: Run, config: Config, choose: Choose, after: Callable[[int], None] = lambda step: None) -> None:
    """OPSD at the exposure that ``choose`` holds for a while; the probe's loss is taken before each update."""
    probe = solution_batch(run, load(config.task, "validation", config.probe_problems, 0, config.data))
    for step in run.stage("train", config.updates):
        if step % config.hold == 0:
            run.kept["exposure"] = choose(step)
        drawn = run.next_problems(config.prompts)
        contexts = [run.policy.encode(exposed(problem, run.kept["exposure"])) for problem in drawn]
        references = replace(solution_batch(run, drawn), contexts=contexts).seen_by_teacher()
        grounded = run.logprobs(Batch(references), BASE).mean().item()
        for name, value in (("probe", -run.logprobs(probe).mean().item()), ("grounded", grounded)):
            run.kept.setdefault(name, []).append(value)
            run.log(**{name: value})
        run.log(exposure=run.kept["exposure"])
        after(step)
        batch = replace(run.rollout(drawn, 1).batch(), contexts=contexts)
        follow(run, batch, partial(forward_kl, clip=config.clip or None))


def fixed(run: Run, config: Config, exposure: float) -> None:
    """Always the same exposure; 1 is OPSD."""
    train(run, config, lambda step: exposure)


def at_random(run: Run, config: Config) -> None:
    """A new exposure for each window, uniform from 0 to 1."""
    train(run, config, lambda step: torch.rand((), generator=run.rng).item())


def learned(run: Run, config: Config, **changes) -> None:
    """The controller: it decides, waits for its reward, and learns."""
    config = replace(config, **changes)
    net = controller(torch.Generator().manual_seed(run.seed))
    optimizer = torch.optim.Adam(net.parameters(), config.controller_rate)
    if "controller" in run.kept:
        net.load_state_dict(run.kept["controller"]["net"])
        optimizer.load_state_dict(run.kept["controller"]["optimizer"])

    def choose(step: int) -> float:
        past = run.history[-RECENT:]
        state = [step / config.updates, *(float(np.mean([row[name] for row in past] or [0.0])) for name in STATE)]
        with torch.no_grad():
            exposure = draw(beta_of(net, torch.tensor(state)), run.rng)
        run.kept.setdefault("open", []).append({"step": step, "state": state, "exposure": exposure})
        return exposure

    def after(step: int) -> None:
        while run.kept["open"] and step >= run.kept["open"][0]["step"] + config.look_ahead:
            decision = run.kept["open"].pop(0)
            began = decision["step"]
            losses = run.kept["probe"][began : began + config.look_ahead + 1]
            grounded = run.kept["grounded"][began + 1 : began + config.look_ahead + 1]
            earned = reward(losses, grounded, config.discount, config.grounding)
            run.kept.setdefault("rewarded", []).append(decision | {"reward": earned})
            run.log(controller_reward=earned)
        if len(run.kept.get("rewarded", ())) >= config.decisions:
            columns = ([d[name] for d in run.kept["rewarded"]] for name in ("state", "exposure", "reward"))
            states, exposures, rewards = map(torch.tensor, columns)
            optimizer.zero_grad()
            controller_loss(beta_of(net, states), exposures, rewards, config).backward()
            optimizer.step()
            run.kept["rewarded"] = []
            run.log(controller_updates=1)
        run.kept["controller"] = {"net": net.state_dict(), "optimizer": optimizer.state_dict()}

    train(run, config, choose, after)


# --- evaluation -----------------------------------------------------------------------------------------------------


def apart(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student), and whether their likeliest tokens differ, logits -> [tokens, 2]."""
    differ = (student.argmax(-1) != teacher.argmax(-1)).to(student.dtype)
    return torch.stack([forward_kl(student, teacher), differ], -1)


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """On the base's own solutions: how far each exposure's teacher is, and how often it would be right itself."""
    if run.arm != "base":
        return {}
    part, metrics = rollouts.part(config.aside_problems, 1), {}
    generator = torch.Generator(run.policy.device).manual_seed(20_000 + run.seed)
    for exposure in EXPOSURES:
        ask, name = partial(exposed, exposure=exposure), f"{round(100 * exposure)}"
        gap, differ = run.divergences(read_by_teacher(run, part, of_problem(ask)), apart, BASE).mean(0).tolist()
        answers = run.sample([ask(p) for p in part.problems], 1, adapter=BASE, generator=generator)
        metrics[f"KL of the teacher@{name}"] = number(gap)
        metrics[f"other token first@{name}"] = share(differ)
        metrics[f"teacher@{name}"] = share(run.rewards(part.problems, answers)[:, 0])
    return metrics


over, within = Claim.over, partial(Claim.within, "base")
KL, TEACHER = (tuple(f"{name}@{round(100 * e)}" for e in EXPOSURES) for name in ("KL of the teacher", "teacher"))
LEARNING = ("full", "half", "random", "atesd")

PAPER = Paper(
    slug="atesd",
    title="ATESD: Adaptive Teacher Exposure for Self-Distillation in LLM Reasoning",
    arxiv="2605.11458",
    family="self-distillation",
    config=Config,
    arms={
        "full": partial(fixed, exposure=1.0),
        "half": partial(fixed, exposure=0.5),
        "random": at_random,
        "atesd": learned,
        **{f"alpha_{round(100 * e)}": Arm(partial(fixed, exposure=e), by_name=True) for e in (0.0, 0.25, 0.75)},
        "one_step": Arm(partial(learned, look_ahead=1, grounding=0.0), by_name=True),
        "ungrounded": Arm(partial(learned, grounding=0.0), by_name=True),
    },
    measure=measure,
    claims=(
        over("atesd", "full", text="Learned exposure ends above full exposure", published="+1.0 to +2.3", primary=True),
        over("atesd", "random", published="+4.2 (1.7B, AIME24)"),
        over("atesd", "half", threshold=-0.02, published="+1.7 (1.7B, AIME24)"),
        over("half", "full", threshold=-0.02, published="+0.2 (1.7B, AIME24)"),
        within("mismatch_grows", "Full exposure is further from the student than half (nats a token)", KL[4], KL[2]),
        within("mismatch_grows_early", "Half exposure is further than the answer alone", KL[2], KL[0]),
        within("more_is_better_alone", "The teacher alone is right more often at full", TEACHER[4], TEACHER[2]),
    ),
    traits={
        "full": traits("reference", "forward KL, clipped"),
        "half": traits("half of the reference, answer", "forward KL, clipped"),
        "random": traits("a random part of the reference, answer", "forward KL, clipped"),
        "atesd": traits("a learned part of the reference, answer", "forward KL, clipped"),
    },
    columns=("accuracy", "pass@8", "greedy", "entropy", "training exposure", "training gap", "training grounded"),
    published={"base": "37.1", "full": "43.4", "atesd": "44.4"},
    published_setting="Qwen3-1.7B, Avg@12 over AIME24, AIME25 and HMMT25; full: OPSD, its best checkpoint",
    curves=("reward", "entropy", "gap", "exposure", "probe"),
    panels=(
        Panel("accuracy (validation)", ("validation",), x="sampled_tokens", arms=LEARNING),
        Panel("exposure", ("exposure",), arms=LEARNING),
        Panel("student's loss on the probe", ("probe",), arms=LEARNING),
        Panel("KL(teacher || student) a token", ("KL of the teacher",), "sizes", x="exposure, %", arms=("base",)),
        Panel("the teacher's own accuracy", ("teacher",), "sizes", x="exposure, %", arms=("base",)),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
