"""The Role of Feedback Alignment in Self-Distillation. Semih Kara, Oguzhan Ersoy (Gensyn), arXiv 2606.11173, 2026.

Idea. A self-teacher that reads a reference solution would have solved the problem in another way, so it disagrees with
the student everywhere, also on right steps. One that reads the student's own solution with only its first wrong step
and what follows put right agrees up to the error and disagrees there: the signal is where the mistake is. The wrong
step must not be quoted, or the teacher copies it; the right ones must be, or the teacher forgets them.

Reproduced. Log-prob of the teacher less that of the student at each token of the base's solutions, by region (right
steps, first wrong step, what follows), for five contexts: the reference, the aligned correction, the correction behind
the quoted error, the correction without the right steps, the answer alone. Self-distillation with the reference
(refsol) and with the aligned correction (stepalign), and GRPO. By name: both with forward KL.

How this differs from the paper and why.
- The critic isn't a 32B model: on the built-in arithmetic the first wrong step and a right way on are known exactly;
  elsewhere a wrong equation is what is seen, and the reference is what follows it.
- Reverse KL, as the paper's general formula has it: its runs have forward KL, which is worse here for both contexts
  (chosen on validation problems). The forward form has OPSD's clip; the paper tells of none.
- Rollouts at temperature 1; no thinking mode, so that student and teacher differ in their context alone.
- Steps are lines, not tagged ones. All problems are used, not those of middling difficulty.

Commands.
    repro run feedback_alignment --seeds 5                # tiny model, with intervals
    repro run feedback_alignment --arms base              # the regions alone, nothing is trained
    repro run feedback_alignment --preset gpu             # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from repro import BASE, Arm, Batch, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, script_main, standard
from repro.methods.distill import Context, of_problem, read_by_teacher, train_distill, traits
from repro.methods.steps import corrected, first_wrong_step, right_from, steps_of_tokens
from repro.model.logprobs import Divergence, forward_kl, reverse_kl
from repro.results.metric import number, share
from repro.tasks import prompts
from repro.tasks.problem import Problem

Shown = Callable[[Problem, str, bool], str]  # problem, the student's solution, is it right -> what the teacher reads


@dataclass(frozen=True)
class Config(RunConfig):
    """Settings of all arms."""

    learning_rate: float = 2e-3
    """Chosen on validation problems (paper: 5e-6, LoRA of rank 64)."""
    updates: int = 40
    """Optimiser steps, ``prompts`` problems each, one rollout a problem (paper: 63 of 32)."""
    clip: float = 0.3
    """Upper bound of each vocabulary entry's contribution to forward KL, by name, as OPSD's; 0: none (paper)."""
    region_problems: int = 256
    """Problems of the evaluation whose base solutions are read by every teacher (ours)."""

    PRESETS = {  # noqa: RUF012
        "smol": {"updates": 32, "clip": 0.05, "learning_rate": 2e-4, "region_problems": 32},
        "small": {"updates": 128, "clip": 0.05, "learning_rate": 5e-5, "region_problems": 100},
        "gpu": {"updates": 100, "prompts": 32, "clip": 0.05, "learning_rate": 1e-5},
    }


# --- contexts -------------------------------------------------------------------------------------------------------


def quoted(problem: Problem, text: str, right: bool) -> str:
    """The aligned correction with the wrong step itself before what is right in its place."""
    wrong, steps = first_wrong_step(problem, text), prompts.split_steps(text)
    if wrong is None or wrong > len(steps):
        return corrected(problem, text, right)
    return "\n".join([*steps[:wrong], right_from(problem, text, wrong)])


def unquoted(problem: Problem, text: str, right: bool) -> str:
    """Only what is right in place of the wrong step and after it; of a right solution its answer."""
    wrong = first_wrong_step(problem, text)
    return right_from(problem, text, wrong) if wrong else prompts.split_steps(problem.solution)[-1]


CONTEXTS: dict[str, Shown] = {
    "reference": lambda problem, text, right: problem.solution,
    "aligned": corrected,
    "quoted": quoted,
    "unquoted": unquoted,
    "answer": lambda problem, text, right: prompts.split_steps(problem.solution)[-1],
}


def shown_to_teacher(shown: Shown) -> Context:
    """The problem with ``shown`` as its reference solution, for each completion."""

    def context(run: Run, rollouts: Rollouts) -> list[Sequence[int]]:
        rows = zip(rollouts.problems, rollouts.completions, rollouts.rewards.tolist(), strict=True)
        texts = [(p, shown(p, c.text, r > 0)) for p, group, right in rows for c, r in zip(group, right, strict=True)]
        return [run.policy.encode(prompts.solve_with_reference(replace(p, solution=text))) for p, text in texts]

    return context


# --- where the signal is --------------------------------------------------------------------------------------------

REGIONS = ("right steps", "error", "after it")


def regions(pieces: Sequence[str], wrong: int | None) -> list[str | None]:
    """The region of each token of a solution from the tokens' texts; None for white space, whose place is layout."""
    steps = steps_of_tokens(pieces)
    named = [REGIONS[0 if wrong is None or n < wrong else 1 if n == wrong else 2] for n in steps]
    return [name if piece.strip() else None for name, piece in zip(named, pieces, strict=True)]


def localisation(error: float, right: float) -> float:
    """Share of the error in the mean sizes of the advantage there and on right steps (ours)."""
    return abs(error) / (abs(error) + abs(right))


def signal(run: Run, rollouts: Rollouts) -> dict[str, Metric]:
    """Mean advantage log p_T - log p_S by region and context, means over solutions of their tokens' means."""
    student, policy = run.logprobs(rollouts.batch(), BASE).cpu(), run.policy
    labels: list[np.ndarray] = []
    for problem, (c,) in zip(rollouts.problems, rollouts.completions, strict=True):
        pieces = policy.tokenizer.batch_decode([[i] for i in c.ids], skip_special_tokens=True)
        labels.append(np.array(regions(pieces, first_wrong_step(problem, c.text)), dtype=object))
    metrics: dict[str, Metric] = {}
    for name, shown in CONTEXTS.items():
        batch = read_by_teacher(run, rollouts, shown_to_teacher(shown))
        advantage = run.logprobs(Batch(batch.seen_by_teacher()), BASE).cpu() - student
        parts = [part.double().numpy() for part in advantage.split(batch.lengths)]
        means = {}
        for region in REGIONS:
            found = [a[of == region].mean() for a, of in zip(parts, labels, strict=True) if (of == region).any()]
            if found:
                means[region] = np.mean(found)
                metrics[f"{name}, {region}"] = number(means[region])
        if {REGIONS[0], REGIONS[1]} <= means.keys():
            metrics[f"localisation, {name}"] = share(localisation(means[REGIONS[1]], means[REGIONS[0]]))
        faultless = [
            a[a < 0].size / a.size for a, of in zip(parts, labels, strict=True) if set(of) <= {REGIONS[0], None}
        ]
        if faultless:
            metrics[f"lowered in faultless solutions, {name}"] = share(np.mean(faultless))
    return metrics


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """The signal on the base's solutions."""
    return signal(run, rollouts.part(config.region_problems, 1)) if run.arm == "base" else {}


# --- the arms -------------------------------------------------------------------------------------------------------


def distil(run: Run, config: Config, context: Context, forward: bool = False) -> None:
    """One rollout a problem; the base reads it with a context."""
    divergence: Divergence = partial(forward_kl, clip=config.clip or None) if forward else reverse_kl
    train_distill(run, "train", config.updates, config.prompts, context, divergence)


REFERENCE, ALIGNED = of_problem(prompts.solve_with_reference), shown_to_teacher(corrected)
within, over = partial(Claim.within, "base"), Claim.over
PLACES = "The aligned teacher's signal sits more at the error than the reference's reader's"

PAPER = Paper(
    slug="feedback_alignment",
    title="The Role of Feedback Alignment in Self-Distillation",
    arxiv="2606.11173",
    family="self-distillation",
    config=Config,
    arms={
        "grpo": standard("grpo"),
        "refsol": partial(distil, context=REFERENCE),
        "stepalign": partial(distil, context=ALIGNED),
        "refsol_forward": Arm(partial(distil, context=REFERENCE, forward=True), by_name=True),
        "stepalign_forward": Arm(partial(distil, context=ALIGNED, forward=True), by_name=True),
    },
    measure=measure,
    claims=(
        within("aligned_is_local", PLACES, "localisation, aligned", "localisation, reference", primary=True),
        within("lowest_at_the_error", "Its advantage is lower at the error", "aligned, right steps", "aligned, error"),
        within("quoting_kills_it", "Quoted, the error is lowered less", "quoted, error", "aligned, error"),
        within("right_steps_kept", "Right steps keep more of it", "aligned, right steps", "reference, right steps"),
        within("right_steps_needed", "Unquoted, they lose it", "aligned, right steps", "unquoted, right steps"),
        over("stepalign", "refsol", published="+5.3 (Qwen3-1.7B, avg@12)"),
        over("stepalign", "grpo", published="+16.1 (Qwen3-1.7B, avg@12)"),
        over("refsol", "base", text="Self-distillation with references ends above the base"),
    ),
    traits={
        "refsol": traits("reference", "reverse KL"),
        "stepalign": traits("own answer, corrected from its error on", "reverse KL"),
    },
    columns=("accuracy", "pass@8", "greedy", "entropy", "localisation, reference", "localisation, aligned"),
    published={"grpo": "19.7", "refsol": "30.6", "stepalign": "35.8"},
    published_setting="Qwen3-1.7B, OpenMathReasoning, 30 test problems, best checkpoint of each metric",
    curves=("reward", "entropy", "gap"),
    panels=(
        Panel("accuracy (validation)", ("validation",), x="sampled_tokens"),
        Panel("KL(teacher || student) a token", ("gap",), x="sampled_tokens"),
        *(
            Panel(f"advantage, {name}", tuple(f"{name}, {region}" for region in REGIONS), "bars", arms=("base",))
            for name in ("reference", "aligned", "quoted")
        ),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
