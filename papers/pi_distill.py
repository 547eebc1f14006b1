"""pi-Distill: Privileged Information Distillation for Language Models. Emiliano Penaloza, Dheeraj Vattikonda, Nicolas
Gontier, Alexandre Lacoste, Laurent Charlin, Massimo Caccia, arXiv 2602.04942, 2026.

Idea. One set of weights is student and teacher: the teacher reads privileged information, which will not be there at
test time. All rollouts are the teacher's, which finds reward where the student finds none. The teacher learns to be
right and to stay near what the student would write (alpha); the student learns from the teacher's rollouts by a policy
gradient with an importance ratio, and by their likelihood (1 - alpha). A second method draws the rollouts from the
student and lowers their reward where the teacher wouldn't follow.

Reproduced. GRPO, RFT on the teacher's right rollouts, the method with the student's rollouts (opsd_r), pi-Distill with
alpha 0, 0.5 and 1, and with alpha 1 and beta 0. The information is the final answer; by name: the first half of the
reference solution, and all of it.

How this differs from the paper and why.
- Problems with one answer in place of agents with tools; the information is made from the reference, not from another
  model's trajectories, and problems aren't filtered by how often the base solves them: the protocol's are used.
- The answer, as the more the teacher knows, the less the student can follow it, and the fewer groups are mixed.
- beta multiplies the mean log-ratio of a rollout's tokens (the released trainer sums them over an episode).
- The student's importance ratio is per token and clipped as in the released losses, not that of the whole rollout.
- The student's advantage is that of the reward alone, since its own KL term is explicit.

Commands.
    repro run pi_distill --seeds 5                                  # tiny model, with intervals
    repro run pi_distill --arms pi_distill pi_half pi_full          # more and more is known
    repro run pi_distill --preset gpu                               # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Literal

import torch

from repro import Arm, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, number, script_main, share, standard
from repro.methods.distill import of_problem, read_by_teacher, traits
from repro.methods.grpo import GRPO, advantages, surrogate, train_grpo
from repro.methods.rft import right_solutions, train_on_kept
from repro.model.logprobs import forward_kl, reverse_kl
from repro.model.policy import POLICY
from repro.model.training import Batch
from repro.tasks import prompts
from repro.tasks.problem import Problem

LEAK = re.compile(r"\b(reference|given) solution\b|\bhint\b", re.IGNORECASE)


@dataclass(frozen=True)
class Config(RunConfig):
    """Settings of all arms."""

    learning_rate: float = 2e-3
    """Chosen on validation problems (released configuration: 1e-6, full fine-tuning)."""
    minibatches: int = 4
    """Optimiser steps per rollout step."""
    information: Literal["answer", "half", "full"] = "answer"
    """What the teacher reads of the reference (paper: a trajectory in three densities; validation)."""
    beta: float = 0.25
    """Weight of the KL terms, of the mean log-ratio a token (paper: 0.1 to 0.5, as a sum or mean that isn't said)."""
    clip: float = 0.2
    """Of both importance ratios (released losses: 0.8 to 1.2)."""
    updates: int = 40
    """Optimiser steps of rft_pi: as many as the others take with the default ``steps``."""
    batch: int = 32
    """Solutions in one of these steps."""
    aided_problems: int = 160
    """Problems on which teacher and student are compared (ours)."""

    PRESETS = {  # noqa: RUF012
        "smol": {"updates": 64, "batch": 8, "learning_rate": 2e-4},
        "small": {"updates": 128, "batch": 8, "learning_rate": 5e-5},
        "gpu": {"updates": 240, "batch": 16, "learning_rate": 2e-5},
    }


def halved(problem: Problem) -> prompts.Chat:
    """The problem with the first half of the reference's lines."""
    return prompts.solve_with_part(problem, len(prompts.split_steps(problem.solution)) // 2)


INFORMED = {
    "answer": partial(prompts.solve_with_part, steps=0, answer=True),
    "half": halved,
    "full": prompts.solve_with_reference,
}

# --- losses and rewards -----------------------------------------------------------------------------------------------


def log_ratio(of: torch.Tensor, to: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Mean of log p_of - log p_to over each rollout's tokens: the sampled KL a token, [tokens] x 2 -> [rollouts]."""
    return torch.stack([part.mean() for part in (of - to).split(lengths)])


def shaped(rewards: torch.Tensor, gaps: torch.Tensor, beta: float) -> torch.Tensor:
    """R' = R - beta k, the KL to the other reader as a part of the reward; all [problems, samples]."""
    return rewards - beta * gaps.view_as(rewards)


def both_losses(logp: torch.Tensor, fields: SimpleNamespace, clip: float) -> torch.Tensor:
    """Clipped policy gradient of either reader against the teacher's old log-probs, and the student's likelihood.

    ``share`` is alpha or 1 - alpha; ``pull`` is beta on the student's tokens, whose gradient is that of
    KL(sg teacher || student) on the teacher's samples. [tokens]
    """
    policy_gradient = surrogate(logp, fields.old_logp, fields.advantage, clip, clip)
    return fields.share * (policy_gradient - fields.pull * logp)


def as_student(run: Run, rollouts: Rollouts) -> Rollouts:
    """The same completions behind the problem alone."""
    asked = [tuple(run.policy.encode(prompts.solve(p))) for p in rollouts.problems]
    groups = zip(asked, rollouts.completions, strict=True)
    return replace(rollouts, completions=[[replace(c, prompt=ids) for c in group] for ids, group in groups])


def of_both(teacher: Batch, student: Batch, alpha: float, beta: float, fields: dict[str, torch.Tensor]) -> Batch:
    """The rollouts behind the teacher's and the student's prompts in one batch; a reader without a share is left out.

    ``fields``: old_logp [tokens], and the advantages of the teacher and of the student, [rollouts] each. The mean over
    the batch's sequences is then that of alpha J_T + (1 - alpha) J_S.
    """
    halves = [("teacher", teacher, alpha, 0.0), ("student", student, 1 - alpha, beta)]
    halves = [half for half in halves if half[2]]
    columns: dict[str, list[torch.Tensor]] = {"old_logp": [], "advantage": [], "share": [], "pull": []}
    for name, batch, share_of, pull in halves:
        tokens = sum(batch.lengths)
        columns["old_logp"].append(fields["old_logp"])
        columns["advantage"].append(batch.spread(fields[name]))
        columns["share"].append(torch.full((tokens,), share_of * len(halves)))
        columns["pull"].append(torch.full((tokens,), pull))
    sequences = [pair for _, batch, _, _ in halves for pair in batch.sequences]
    return Batch(sequences, {name: torch.cat(parts) for name, parts in columns.items()})


# --- the arms -------------------------------------------------------------------------------------------------------


def pi_distill(run: Run, config: Config, alpha: float = 0.5, **changes) -> None:
    """The training loop: the teacher's rollouts teach both readers. ``changes``: with other settings."""
    config, temperature = replace(config, **changes), config.temperature
    for _ in run.stage("train", config.steps):
        rollouts = run.rollout(run.next_problems(config.prompts), config.samples, ask=INFORMED[config.information])
        teacher, student = rollouts.batch(), as_student(run, rollouts).batch()
        old = run.logprobs(teacher, temperature=temperature).cpu()
        gaps = log_ratio(old, run.logprobs(student, temperature=temperature).cpu(), teacher.lengths)
        run.log(gap=gaps.mean())
        fields = {
            "old_logp": old,
            "teacher": advantages(shaped(rollouts.rewards, gaps, config.beta), "grpo").flatten(),
            "student": advantages(rollouts.rewards, "grpo").flatten(),
        }
        batch = of_both(teacher, student, alpha, config.beta, fields)
        for mini in batch.split(config.minibatches, run.rng):
            run.update(mini, partial(both_losses, clip=config.clip), "sequence", temperature)


def opsd_r(run: Run, config: Config) -> None:
    """GRPO on the student's rollouts, whose reward falls where the teacher, the current policy, wouldn't follow."""

    def advantage(run: Run, rollouts: Rollouts, settings: GRPO) -> torch.Tensor:
        batch = read_by_teacher(run, rollouts, of_problem(INFORMED[config.information]))
        old = run.logprobs(batch, temperature=config.temperature)
        taught = run.logprobs(Batch(batch.seen_by_teacher()), temperature=config.temperature)
        gaps = log_ratio(old, taught, batch.lengths).cpu()
        run.log(gap=gaps.mean())
        return advantages(shaped(rollouts.rewards, gaps, config.beta), settings.variant)

    sizes = config.steps, config.prompts, config.samples
    train_grpo(run, *sizes, GRPO("grpo", config.minibatches, config.clip, config.clip), advantage=advantage)


def rft_pi(run: Run, config: Config) -> None:
    """Cross-entropy on the teacher's right rollouts behind the problem alone."""
    for _ in run.stage("collect", config.steps):
        drawn = run.next_problems(config.prompts)
        rollouts = run.rollout(drawn, config.samples, ask=INFORMED[config.information])
        run.kept.setdefault("solutions", []).extend(right_solutions(as_student(run, rollouts)))
    train_on_kept(run, config.updates, config.batch, config.learning_rate)


# --- evaluation -----------------------------------------------------------------------------------------------------


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Accuracy of the hardest level, the teacher's own, both KLs on the student's answers, and how often they leak."""
    levels = torch.tensor([p.level for p in rollouts.problems])
    hardest, part = rollouts.rewards[levels == levels.max()], rollouts.part(config.aided_problems, 1)
    batch = read_by_teacher(run, part, of_problem(INFORMED[config.information]))
    to_student = run.divergences(batch, forward_kl, POLICY).mean()
    to_teacher = run.divergences(batch, reverse_kl, POLICY).mean()
    generator = torch.Generator(run.policy.device).manual_seed(20_000 + run.seed)
    aided = run.sample([INFORMED[config.information](p) for p in part.problems], 1, generator=generator)
    leaks = [bool(LEAK.search(c.text)) for group in rollouts.completions for c in group]
    return {
        "accuracy, hardest": share(hardest.mean()),
        "aided": share(run.rewards(part.problems, aided)[:, 0]),
        "KL(teacher || student)": number(to_student),
        "KL(student || teacher)": number(to_teacher),
        "leaks": share(sum(leaks) / len(leaks)),
    }


over = Claim.over
HARD, GAP = "accuracy, hardest", "KL(teacher || student)"

PAPER = Paper(
    slug="pi_distill",
    title="pi-Distill: Privileged Information Distillation for Language Models",
    arxiv="2602.04942",
    family="self-distillation",
    config=Config,
    arms={
        "grpo": standard("grpo"),
        "rft_pi": rft_pi,
        "opsd_r": opsd_r,
        "pi_alpha_0": partial(pi_distill, alpha=0.0),
        "pi_distill": pi_distill,
        "pi_alpha_1": partial(pi_distill, alpha=1.0),
        "pi_beta_0": partial(pi_distill, alpha=1.0, beta=0.0),
        "pi_half": Arm(partial(pi_distill, information="half"), by_name=True),
        "pi_full": Arm(partial(pi_distill, information="full"), by_name=True),
    },
    measure=measure,
    claims=(
        over("pi_distill", "grpo", HARD, text="On the hardest level it ends above GRPO", primary=True),
        over("pi_distill", "grpo", published="+9.8 (SFT with CoT + RL, TravelPlanner)"),
        over("pi_distill", "rft_pi", text="It ends above RFT on the same teacher's rollouts"),
        over("pi_distill", "opsd_r", threshold=-0.02, published="+3.6 (TravelPlanner)"),
        over("opsd_r", "grpo", text="The student's rollouts with the teacher's KL end above GRPO", published="+5.2"),
        Claim(
            *("fewer_dead_groups", "Fewer of the teacher's groups are all wrong"),
            *(("grpo", "training all_wrong"), ("pi_distill", "training all_wrong")),
        ),
        Claim(
            *("beta_holds_the_teacher", "Without beta the teacher ends further from the student (nats a token)"),
            *(("pi_beta_0", GAP), ("pi_alpha_1", GAP)),
        ),
    ),
    traits={
        "rft_pi": traits("answer", "SFT on the teacher's right rollouts"),
        "opsd_r": traits("answer", "GRPO, KL to the teacher in the reward"),
        "pi_alpha_0": traits("answer", "GRPO on the teacher's rollouts, as the student"),
        "pi_distill": traits("answer", "GRPO on the teacher's rollouts, as both"),
        "pi_alpha_1": traits("answer", "GRPO on the teacher's rollouts, as the teacher"),
        "pi_beta_0": traits("answer", "the same without KL"),
    },
    columns=("accuracy", HARD, "aided", GAP, "KL(student || teacher)", "training mixed", "training all_wrong"),
    published={"base": "23.6", "opsd_r": "37.5", "pi_alpha_0": "40.7", "pi_distill": "41.1", "pi_alpha_1": "44.1"},
    published_setting="Qwen3-8B, TravelPlanner; SFT with CoT then RL reaches 32.3",
    curves=("reward", "entropy", "gap", "mixed", "all_wrong"),
    panels=(
        Panel("accuracy (validation)", ("validation",), x="sampled_tokens"),
        Panel("log-ratio a token between the readers", ("gap",)),
        Panel("groups that are neither all right nor all wrong", ("mixed",)),
        Panel("accuracy without and with the information", ("accuracy", "aided"), "bars"),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
