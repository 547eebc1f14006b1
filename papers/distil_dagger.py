"""DistIL: Reinforcement Learning from Rich Feedback with Distributional DAgger. Rishabh Agrawal, Jacob Fein-Ashley,
Paria Rashidinejad, arXiv 2606.05152, 2026.

Idea. The policy is its own teacher once the feedback on a rollout is in the context. The student minimises the forward
cross-entropy to that teacher on its own trajectories, and since a token decides which states come next, it is also
charged with all cross-entropies that follow it. The local part alone has no gradient where teacher and student agree
on a token; the future part tells which of the two ways leads to where the teacher knows on.

Reproduced. The cross-entropy alone (ce; ce_same_rate as fast as the others), with future credit discounted, baselined
and scaled (distil) and in the formula's literal form; self-distillation with the Jensen-Shannon divergence (sdpo), GRPO
and RFT. The feedback is a successful sibling, shown as a reference solution; a rollout without one is left out. By
name: the reference solution as feedback, a teacher that follows slowly or at once, reverse KL, the teacher's K
likeliest tokens and a bucket.

How this differs from the paper and why.
- How the paper scales its future term isn't known: discount, baseline, scale and weight are ours. The baseline is the
  mean cost-to-go of the problem's other rollouts at the same position, 0 for those that are over.
- One update a batch, strictly on-policy, with small batches in place of clipped ratios.
- The teacher is the base, as OPSD's: with the weights of the moment, as the formula has it, and with SDPO's moving
  average, student and teacher drift off together. SDPO's ratio clip isn't here.
- The toy environment of the equations is in the tests, exactly.

Commands.
    repro run distil_dagger --seeds 5                        # tiny model, with intervals
    repro run distil_dagger --arms ce ce_top_k --top-k 8     # the tail bucket
    repro run distil_dagger --preset gpu                     # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Literal

import torch

from repro import Arm, Batch, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, script_main, share, standard
from repro.methods.distill import traits
from repro.methods.grpo import leave_one_out
from repro.model.logprobs import Divergence, jensen_shannon, reverse_kl, token_entropy, token_logprob
from repro.model.policy import BASE, POLICY, Policy
from repro.tasks import prompts
from repro.tasks.problem import Problem

Credit = Literal["", "practical", "literal"]


@dataclass(frozen=True)
class Config(RunConfig):
    """Settings of all arms."""

    learning_rate: float = 1e-3
    """Not known (SDPO: 1e-5, full fine-tuning); chosen on validation problems."""
    ce_learning_rate: float = 1e-4
    """Of the cross-entropy alone, chosen in the same way."""
    updates: int = 40
    """Optimiser steps, one on each batch of rollouts."""
    groups: int = 8
    """Problems of a step, ``samples`` rollouts each: with the default ``updates`` the protocol's completions."""
    weight: float = 10.0
    """Of the future term where it is baselined and scaled (ours, from validation; the literal form has 1)."""
    discount: float = 0.99
    """Of later cross-entropies there (ours; the literal form has 1)."""
    feedback: Literal["sibling", "reference"] = "sibling"
    """What the teacher reads: a successful rollout of the same problem (SDPO's rule), or the reference solution."""
    teacher: Literal["current", "average", "base"] = "base"
    """Whose weights read the feedback: those of the moment (formula), their average (SDPO), the base's (validation)."""
    average_rate: float = 0.05
    """Share of the policy in the moving average after each step (SDPO: 0.05)."""
    top_k: int = 20
    """Of the arm that keeps only the teacher's likeliest tokens and a bucket for the rest (SDPO: 100)."""
    aided_problems: int = 160
    """Problems on which the teacher itself is measured (ours)."""

    PRESETS = {  # noqa: RUF012
        "smol": {"updates": 32, "groups": 4, "learning_rate": 2e-4, "ce_learning_rate": 2e-5},
        "small": {"updates": 64, "groups": 8, "learning_rate": 5e-5, "ce_learning_rate": 5e-6},
        "gpu": {"updates": 100, "groups": 16, "learning_rate": 2e-5, "ce_learning_rate": 2e-6, "top_k": 100},
    }


# --- the paper's losses -----------------------------------------------------------------------------------------------


def cross_entropy(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """-sum p log q with the teacher's p and the student's q; logits [tokens, vocabulary] each -> [tokens].

    Its gradient is forward KL's; as a future cost it isn't: the teacher's own entropy stays in.
    """
    return -(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1)


def top_k_cross_entropy(student: torch.Tensor, teacher: torch.Tensor, k: int) -> torch.Tensor:
    """The same over the teacher's ``k`` likeliest tokens and one bucket that holds all others, [tokens]."""
    p, log_q = teacher.softmax(-1), student.log_softmax(-1)
    ids = p.topk(min(k, p.shape[-1]), -1).indices
    p, log_q = p.gather(-1, ids), log_q.gather(-1, ids)
    tiny = torch.finfo(log_q.dtype).tiny
    rest = (1 - log_q.exp().sum(-1)).clamp(min=tiny).log()
    return -(p * log_q).sum(-1) - (1 - p.sum(-1)).clamp(min=0) * rest


def future_costs(costs: torch.Tensor, lengths: Sequence[int], discount: float = 1.0) -> torch.Tensor:
    """Discounted sums of the costs that follow each token of its own sequence, [tokens] -> [sequences, longest].

    C_t = sum over i > t of discount^(i-t-1) cost_i; 0 from the last token on.
    """
    padded = torch.nn.utils.rnn.pad_sequence(costs.split(list(lengths)), batch_first=True)
    future = torch.zeros_like(padded)
    for t in range(padded.shape[1] - 2, -1, -1):
        future[:, t] = padded[:, t + 1] + discount * future[:, t + 1]
    return future


def within_groups(future: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Each row less the mean of its group's other rows, column by column; 0 for a group of one. [rows, columns]."""
    groups = future.split(list(sizes))
    return torch.cat([leave_one_out(g.T).T if len(g) > 1 else torch.zeros_like(g) for g in groups])


def credit_of(costs: torch.Tensor, lengths: Sequence[int], sizes: Sequence[int], config: Config, form: Credit):
    """The weight of each token's log-prob in the loss, [tokens] (section 3; the scaled form is ours)."""
    own = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # [sequences, longest]: not padding
    if form == "literal":
        return future_costs(costs, lengths)[own]
    centred = within_groups(future_costs(costs, lengths, config.discount), sizes)[own]
    return config.weight * centred / centred.std().clamp(min=1e-6)


def surrogate(values: torch.Tensor, fields: SimpleNamespace) -> torch.Tensor:
    """H + credit log pi(a): its gradient has the local and the future part. values [tokens, 2] -> [tokens]."""
    return values[:, 0] + fields.credit * values[:, 1]


# --- feedback -------------------------------------------------------------------------------------------------------


def siblings(right: Sequence[float]) -> list[int | None]:
    """For each rollout of a problem the next successful one after it, never itself; None where there is none."""
    n = len(right)
    return [next(((i + j) % n for j in range(1, n) if right[(i + j) % n] > 0), None) for i in range(n)]


def informed(problem: Problem, text: str) -> prompts.Chat:
    """What the teacher reads: the problem with this text as its reference solution."""
    return prompts.solve_with_reference(replace(problem, solution=text))


def with_feedback(run: Run, rollouts: Rollouts, feedback: str) -> tuple[Batch, list[int]]:
    """The rollouts that have feedback, with what the teacher reads before each, and how many each problem has."""
    sequences, contexts, sizes = [], [], []
    for problem, group, right in zip(rollouts.problems, rollouts.completions, rollouts.rewards.tolist(), strict=True):
        texts = {i: group[j].text for i, j in enumerate(siblings(right)) if j is not None}
        if feedback == "reference":
            texts = dict.fromkeys(range(len(group)), problem.solution)
        texts = {i: text for i, text in texts.items() if not group[i].truncated}  # its costs are cut, too
        sequences += [(group[i].prompt, group[i].ids) for i in texts]
        contexts += [run.policy.encode(informed(problem, text)) for text in texts.values()]
        sizes.append(len(texts))
    return Batch(sequences, contexts=contexts), [n for n in sizes if n]


# --- the arms -------------------------------------------------------------------------------------------------------


def follow(policy: Policy, rate: float) -> None:
    """The teacher's weights move towards the policy's: (1 - rate) teacher + rate policy."""
    new = policy.adapter_state()
    old = policy.adapter_state("teacher")
    policy.load_adapter_state({name: (1 - rate) * old[name] + rate * new[name] for name in new}, "teacher")


def distil(
    run: Run,
    config: Config,
    divergence: Divergence = cross_entropy,
    credit: Credit = "practical",
    **changes,
) -> None:
    """The training loop: groups of rollouts, the teacher reads them with the feedback, one update."""
    config = replace(config, **changes)
    teacher = {"current": POLICY, "average": "teacher", "base": BASE}[config.teacher]

    def read(student: torch.Tensor, targets: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        entropy = token_entropy(taught, targets)
        return torch.stack([divergence(student, taught), token_logprob(student, targets), entropy], -1)

    more = {"learning_rate": config.learning_rate, "freeze": "teacher" if teacher == "teacher" else ""}
    for _ in run.stage("train", config.updates, **more):
        rollouts = run.rollout(run.next_problems(config.groups), config.samples)
        batch, sizes = with_feedback(run, rollouts, config.feedback)
        run.log(informed=len(batch.sequences) / rollouts.rewards.numel())
        if not batch.sequences:
            continue
        batch.fields["credit"] = torch.zeros(sum(batch.lengths))
        if credit:
            costs = run.values(batch, read, teacher=teacher)[:, 0].cpu()
            batch.fields["credit"] = credit_of(costs, batch.lengths, sizes, config, credit)

        def loss(values: torch.Tensor, fields: SimpleNamespace) -> torch.Tensor:
            run.log(local=values[:, 0].detach().mean(), teacher_entropy=values[:, 2].detach().mean())
            return surrogate(values, fields)

        run.update_on_logits(batch, read, loss, teacher=teacher)
        if teacher == "teacher":
            follow(run.policy, config.average_rate)


def ce(run: Run, config: Config, top_k: bool = False) -> None:
    """The cross-entropy alone, at its own rate. ``top_k``: at the teacher's likeliest tokens and a bucket."""
    divergence = partial(top_k_cross_entropy, k=config.top_k) if top_k else cross_entropy
    distil(run, config, divergence, credit="", learning_rate=config.ce_learning_rate)


# --- evaluation -----------------------------------------------------------------------------------------------------


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Accuracy with a successful sibling in the context, and without, on problems that have one."""
    first = rollouts.part(config.aided_problems, config.samples)
    found = [(p, siblings(r)[0], g) for p, r, g in zip(first.problems, first.rewards, first.completions, strict=True)]
    aided = [(p, informed(p, group[j].text)) for p, j, group in found if j is not None]
    if not aided:
        return {}
    generator = torch.Generator(run.policy.device).manual_seed(20_000 + run.seed)
    answers = run.sample([chat for _, chat in aided], 1, generator=generator)
    alone = [right[0] for right, (_, j, _) in zip(first.rewards.tolist(), found, strict=True) if j is not None]
    problems = [problem for problem, _ in aided]
    return {"aided": share(run.rewards(problems, answers).mean()), "unaided": share(torch.tensor(alone).mean())}


over = Claim.over
LOCAL = ("ce_same_rate", "distil")

PAPER = Paper(
    slug="distil_dagger",
    title="DistIL: Reinforcement Learning from Rich Feedback with Distributional DAgger",
    arxiv="2606.05152",
    family="self-distillation",
    config=Config,
    arms={
        "rft": standard("rft"),
        "grpo": standard("grpo"),
        "sdpo": partial(distil, divergence=jensen_shannon, credit=""),
        "ce": ce,
        "ce_same_rate": partial(distil, credit=""),
        "distil": distil,
        "distil_literal": partial(distil, credit="literal"),
        "reverse": Arm(partial(distil, divergence=reverse_kl, credit=""), by_name=True),
        "ce_top_k": Arm(partial(ce, top_k=True), by_name=True),
        "distil_reference": Arm(partial(distil, feedback="reference"), by_name=True),
        "distil_average": Arm(partial(distil, teacher="average"), by_name=True),
        "distil_current": Arm(partial(distil, teacher="current"), by_name=True),
    },
    measure=measure,
    claims=(
        over("distil", "ce", text="Future credit ends above the cross-entropy alone", primary=True),
        over("distil", "ce_same_rate", text="Future credit ends above the cross-entropy alone at the same rate"),
        over("distil", "sdpo", threshold=-0.02, published="+3.1 (Qwen3-8B, SciKnowEval)"),
        over("distil", "grpo", published="+5.0 (Qwen3-8B, SciKnowEval)"),
        over("distil", "base", "pass@8", threshold=-0.02, text="pass@8 isn't lower than the base's by 2 points"),
        Claim.within(
            "base", "teacher_is_better", "The teacher is right more often than the student", "aided", "unaided"
        ),
    ),
    traits={
        "sdpo": traits("right sibling", "Jensen-Shannon"),
        "ce": traits("right sibling", "forward KL, slowly"),
        "ce_same_rate": traits("right sibling", "forward KL"),
        "distil": traits("right sibling", "forward KL and future costs, centred"),
        "distil_literal": traits("right sibling", "forward KL and future costs"),
    },
    columns=("accuracy", "pass@8", "greedy", "entropy", "length", "aided", "unaided"),
    published={"base": "47.5", "sdpo": "73.0", "distil": "76.1"},
    published_setting="Qwen3-8B, SciKnowEval level 3, avg@16, best within five hours on four H200",
    curves=("reward", "entropy", "local", "informed"),
    panels=(
        Panel("accuracy (validation)", ("validation",), x="sampled_tokens"),
        Panel("entropy", ("entropy",), x="sampled_tokens"),
        Panel("cross-entropy a token, and the teacher's entropy", ("local", "teacher_entropy"), arms=LOCAL),
        Panel("tokens of a rollout", ("length",), x="sampled_tokens"),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
