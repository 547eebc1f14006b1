"""ReVISE: Learning to Refine at Test-Time via Intrinsic Self-Verification. Hyunseok Lee, Seunghyuk Oh, Jaehyung Kim,
Jinwoo Shin, Jihoon Tack, arXiv 2502.14565, ICML 2025.

Idea. After a solution the model itself decides by one token: the end token, or a [refine] token, after which the same
answer goes on with another attempt. Stage 1 teaches the decision (on the model's own samples: end after right ones,
[refine] after wrong ones), stage 2, from new samples, the correction too ([refine], then the reference solution). Both
are a preference loss on pairs that share the sampled solution, plus cross-entropy on the chosen side. At test time the
probability of the end token is a confidence that weighs votes.

Reproduced. base, SFT on reference solutions, RFT and ReVISE, the last two after the same SFT warm-up. Claims: [refine]
follows wrong solutions more often than right ones; the end token's probability tells them apart better than the
solution's likelihood; refinement raises accuracy above the first attempt; ReVISE ends above SFT and RFT; the
confidence-weighted vote beats the plain one. By name: no_curriculum, no_preference, stage_one_only.

How this differs from the paper and why.
- [refine] is a word that the tokenizer has as one token (CUE_WRONG in the built-in model, else "Wait"), not a reserved
  token: LoRA on linear layers leaves embedding and head as they are, and rows that were never trained are equal to one
  another (in the built-in model 239 with cosines above 0.995: with hidden states of that size [refine] could get at
  most 5 % of the probability; in SmolLM2 eleven with cosine 1.00). No hidden state can single one of them out.
  Such a word has a meaning already: 7 % of the built-in model's corpus are attempts with CUE_WRONG or its opposite
  behind them. With --refine another trained token takes its place.
- Samples of a stage are drawn step by step from a frozen copy of its initial policy: the same data as if all were drawn
  before, and nothing to keep. At most 2 pairs of one class for 1 of the other (ours): else a weak model always refines.
- Temperature 1 without top-p (paper: 0.7 and 0.9 for training data, not known for the test). At the verification
  position the likelier of the two tokens decides.
- Constant learning rate after the warm-up in place of a cosine; the last checkpoint, not the one with the best loss.
- RFT draws a second round from the policy after the first, as ReVISE does; the paper's draws once.

Commands.
    repro run revise                                 # tiny model, seed 0
    repro run revise --seeds 5                       # with intervals over seeds
    repro run revise --arms revise --rounds 4        # more refinements at test time
    repro run revise --preset gpu                    # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch

from repro import Claim, Panel, Paper, Run, RunConfig, baselines, prompts, script_main
from repro.experiment import Metrics, Rollouts
from repro.metrics import auroc, majority_at_k, pass_at_k
from repro.multiturn import Attempts, final_answers, turn_metrics
from repro.tasks import Problem, load
from repro.training import Batch

Pair = tuple[list[int], list[int]]  # chosen and rejected completion of one prompt, token ids
VERIFY, CORRECT = "verify", "correct"  # what the pairs of stage 1 and of stage 2 teach


@dataclass(frozen=True)
class Config(RunConfig):
    """ReVISE's hyperparameters."""

    refine: str = prompts.CUE_WRONG
    """The decision token [refine]: any text that is one trained token of the model's tokenizer (paper: reserved)."""
    sft_steps: int = 40
    """Updates of the SFT warm-up, stage 0, ``prompts`` problems each (code: 3 epochs; none for instruct models)."""
    verify_iterations: int = 10
    """Of the ``iterations``, those of stage 1; the others are stage 2 (paper: one epoch each)."""
    samples: int = 4
    """Completions per problem (code: 10)."""
    minibatches: int = 4
    """Optimiser steps per rollout step, about 32 pairs each as in the code."""
    stage_learning_rate: float = 5e-4
    """Learning rate of stages 1 and 2 (ours; code: that of the SFT)."""
    preference_weight: float = 0.1
    """lambda, weight of the preference term beside the SFT term (paper: 0.1)."""
    beta: float = 0.1
    """Scale of the log-ratios in the preference term (code: TRL's default 0.1)."""
    max_ratio: float = 2.0
    """At most so many pairs of the larger class, right or wrong, for each of the smaller (ours)."""
    decision: Literal["likelier", "sampled"] = "likelier"
    """End or refine at the verification position: the likelier of both, or as the sampler drew (ours)."""
    renormalise: bool = False
    """Confidence P(end) / (P(end) + P(refine)) in place of P(end) (paper: P(end))."""
    rounds: int = 3
    """Refinements at test time; all numbers but acc@t3, acc@t4, ... are after at most one, as trained."""

    PRESETS = {  # noqa: RUF012
        "tiny": {"iterations": 30, "learning_rate": 1e-3},
        "smol": {"refine": "Wait", "sft_steps": 0, "verify_iterations": 3, "stage_learning_rate": 1e-4},
        "gpu": {"refine": "Wait", "sft_steps": 0, "verify_iterations": 20, "stage_learning_rate": 2e-5},
    }


# --- the paper's data -----------------------------------------------------------------------------------------------


def attempt_of(answer: Sequence[int], refine: int) -> list[int]:
    """y_hat: what stands behind the last [refine] of an answer, its ids without the stop token."""
    return list(answer[len(answer) - answer[::-1].index(refine) :] if refine in answer else answer)


def make_pair(attempt: list[int], right: bool, solution: list[int] | None, end: int, refine: int) -> Pair:
    """Chosen and rejected completion (sections 3.2 and 3.3); ``solution``: reference y in stage 2, None in stage 1.

    Ids are appended to ids: tokenising the text anew could change the last tokens of y_hat, and the shared prefix
    would no longer cancel. Nothing stands behind a rejected [refine], or stopping there would be learnt.
    """
    if right:
        return [*attempt, end], [*attempt, refine]
    return [*attempt, refine, *([] if solution is None else [*solution, end])], [*attempt, end]


def imitated(ids: Sequence[int], refine: int) -> list[float]:
    """1 for the tokens of a chosen completion that the SFT term imitates: none before the last [refine]."""
    start = len(ids) - 1 - list(ids)[::-1].index(refine) if refine in ids else 0
    return [float(i >= start) for i in range(len(ids))]


def balanced(right: Sequence[bool], max_ratio: float, rng: torch.Generator) -> list[int]:
    """Shuffled rows with at most ``max_ratio`` of the larger class for each of the smaller (as if it had one)."""
    order = torch.randperm(len(right), generator=rng).tolist()
    classes = [[i for i in order if right[i] == value] for value in (True, False)]
    limit = int(max_ratio * max(1, min(map(len, classes))))
    kept = {i for rows in classes for i in rows[:limit]}
    return [i for i in order if i in kept]


# --- the paper's loss -----------------------------------------------------------------------------------------------


def preference_loss(logp: torch.Tensor, start_logp: torch.Tensor, row: torch.Tensor, beta: float) -> torch.Tensor:
    """-log sigma(r(chosen) - r(rejected)) with r = beta log(M / M_start), sums over tokens; [tokens] -> [pairs].

    ``row`` numbers the tokens' sequences; even ones are chosen, the next one is rejected. The shared y_hat cancels.
    """
    ratio = logp.new_zeros(int(row[-1]) + 1).index_add(0, row, logp - start_logp)
    return -torch.nn.functional.logsigmoid(beta * (ratio[0::2] - ratio[1::2]))


def revise_loss(logp: torch.Tensor, fields: SimpleNamespace, pairs: int, config: Config) -> torch.Tensor:
    """L_SFT + lambda L_pref of a micro-batch; ``weight`` (token mean) and ``pairs`` are those of the whole batch."""
    preference = preference_loss(logp, fields.start_logp, fields.row, config.beta).sum() / pairs
    return baselines.nll(logp, fields).sum() + config.preference_weight * preference


# --- the decision and the loop at test time -------------------------------------------------------------------------


def verdicts(run: Run, written: Sequence[Sequence[int]], refine: int) -> torch.Tensor:
    """log P(end) and log P([refine]) behind ``written`` (prompt and solution), whatever the sampler drew; [rows, 2]."""
    end = run.policy.tokenizer.eos_token_id

    def both(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return logits.log_softmax(-1)[:, [end, refine]]

    return run.values(Batch([(ids, (end,)) for ids in written]), both).cpu()


def confidence(verdict: torch.Tensor, config: Config) -> torch.Tensor:
    """c = P(end), or its share of both decisions; [..., 2] -> [...]."""
    return torch.sigmoid(verdict[..., 0] - verdict[..., 1]) if config.renormalise else verdict[..., 0].exp()


@dataclass
class Paths:
    """``attempts``: a path that has ended repeats its last one. ``verdicts`` [turns, problems, samples, 2]."""

    attempts: Attempts
    verdicts: torch.Tensor
    refined: np.ndarray  # [problems, samples]: had a second attempt


def solve(
    run: Run,
    problems: Sequence[Problem],
    samples: int,
    rounds: int,
    config: Config,
    temperature: float | None = None,
    generator: torch.Generator | None = None,
) -> Paths:
    """Section 3.5: attempt, decide, and on [refine] go on in the same answer, at most ``rounds`` times."""
    refine = run.policy.token(config.refine)
    draw = partial(run.sample, temperature=temperature, generator=generator, stop=(refine,))
    grid = [(i, k) for i in range(len(problems)) for k in range(samples)]
    turns = [draw([prompts.solve(p) for p in problems], samples)]
    seen = [verdicts(run, [turns[0][i][k].written for i, k in grid], refine).view(len(problems), samples, 2)]
    for _ in range(rounds):
        turn, verdict = [list(row) for row in turns[-1]], seen[-1].clone()
        if config.decision == "sampled":
            asked = [(i, k) for i, k in grid if turn[i][k].ids[-1] == refine]
        else:
            asked = [(i, k) for i, k in grid if not turn[i][k].truncated and verdict[i, k, 1] > verdict[i, k, 0]]
        drawn = [c for (c,) in draw([(*turn[i][k].written, refine) for i, k in asked], 1)] if asked else []
        decided = verdicts(run, [c.written for c in drawn], refine) if asked else []
        for (i, k), completion, pair in zip(asked, drawn, decided, strict=True):
            turn[i][k], verdict[i, k] = completion, pair
        turns.append(turn)
        seen.append(verdict)
    rewards = torch.stack([run.rewards(problems, turn) for turn in turns])
    refined = np.array([[a is not b for a, b in zip(*rows, strict=True)] for rows in zip(*turns[:2], strict=True)])
    return Paths(Attempts(list(problems), turns, rewards), torch.stack(seen), refined)


def evaluate(run: Run, config: Config) -> Metrics:
    """Accuracy before and after refinement, verification, and votes by plain and by confidence-weighted majority."""
    problems = load(config.task, config.eval_split, config.eval_problems, 0, config.data)
    generator = torch.Generator(run.policy.device).manual_seed(10_000 + run.seed)
    n = config.eval_samples
    paths = solve(run, problems, n, config.rounds, config, generator=generator)
    greedy = solve(run, problems, 1, 1, config, temperature=0.0, generator=generator).attempts.rewards
    (first, final), refined = paths.attempts.rewards[:2], paths.refined
    once, twice = paths.attempts.completions[:2]
    right, flat = first.bool().numpy(), [c for group in once for c in group]
    sure = confidence(paths.verdicts, config)
    length = np.array([[[len(c.ids) for c in group] for group in turn] for turn in (once, twice)])
    metrics = turn_metrics(paths.attempts)
    metrics |= {
        "accuracy": metrics["acc@t2"],
        "greedy": greedy[1, :, 0].tolist(),
        "greedy, first": greedy[0, :, 0].tolist(),
        "pass@8": [pass_at_k(n, int(c), min(8, n)) for c in final.sum(1)],
        "refined": refined.mean(1).tolist(),
        "refined, right": float(refined[right].mean()),
        "refined, wrong": float(refined[~right].mean()),
        "auroc": auroc(sure[0].flatten(), right.flatten()),
        "auroc, likelihood": auroc([np.mean(c.logprobs[:-1] or [0.0]) for c in flat], right.flatten()),
        "truncated": float(np.mean([c.truncated for c in flat])),
        "tokens": float((length[0] + refined * length[1]).mean()),
    }
    answers = [final_answers([c.text for c in group]) for group in twice]
    for k in (k for k in (3, 5, 8) if k <= n):
        rows = list(zip(answers, final.tolist(), sure[1].tolist(), strict=True))
        metrics[f"maj@{k}"] = [majority_at_k(a, r, k) for a, r, _ in rows]
        metrics[f"maj@{k} weighted"] = [majority_at_k(a, r, k, weights) for a, r, weights in rows]
    return metrics


# --- the arms -------------------------------------------------------------------------------------------------------


def after_warm_up(run: Run, config: Config, lengths: Sequence[int]) -> Iterator[int]:
    """Stage 0 (SFT), then the number of the stage (0, 1, ...) at each step of the stages of these ``lengths``.

    A stage begins with a new optimiser and a frozen copy "start" of the policy, its sampler and its reference.
    """
    begins = [config.sft_steps + sum(lengths[:i]) for i in range(len(lengths))]
    for step in run.steps(config.sft_steps + sum(lengths)):
        if step < config.sft_steps:
            batch = baselines.solution_batch(run, run.next_problems(config.prompts))
            batch.fields["weight"] = baselines.token_mean(batch)
            run.update(batch, baselines.nll)
            continue
        if step in begins:
            run.policy.freeze_copy("start")
            run.trainer.new_optimizer(config.stage_learning_rate)
        yield sum(step >= begin for begin in begins) - 1


def attempts(run: Run, config: Config, refine: int) -> Rollouts:
    """Solutions of the next problems by the stage's initial policy, up to their decision token."""
    problems = run.next_problems(config.prompts)
    chats = [prompts.solve(p) for p in problems]
    completions = run.sample(chats, config.samples, adapter="start", stop=(refine,))
    rollouts = Rollouts(problems, completions, run.rewards(problems, completions))
    every, right = [c for group in completions for c in group], rollouts.rewards.flatten().bool()
    run.log(reward=right.float().mean(), refined=np.mean([c.ids[-1] == refine for c in every]))
    if right.any() and not right.all():  # of the policy as it is now, on samples that it hasn't been trained on
        run.log(auroc=auroc(verdicts(run, [c.written for c in every], refine)[:, 0], right))
    return rollouts


def pair_batch(run: Run, rollouts: Rollouts, kind: str, config: Config, refine: int) -> Batch:
    """Pairs of a step, chosen and rejected side by side, in shuffled order."""
    tokenizer = run.policy.tokenizer
    sequences, right = [], []
    for problem, group, rewards in zip(rollouts.problems, rollouts.completions, rollouts.rewards, strict=True):
        y = tokenizer(problem.solution, add_special_tokens=False).input_ids if kind == CORRECT else None
        for completion, reward in zip(group, rewards.tolist(), strict=True):
            if completion.truncated:  # wrong by the limit: it would teach to refine at a length, not at a mistake
                continue
            attempt = attempt_of(completion.answer, refine)
            pair = make_pair(attempt, bool(reward), y, tokenizer.eos_token_id, refine)
            sequences.append([(completion.prompt, ids) for ids in pair])
            right.append(bool(reward))
    batch = Batch([s for i in balanced(right, config.max_ratio, run.rng) for s in sequences[i]])
    masks = [imitated(ids, refine) if n % 2 == 0 else [0.0] * len(ids) for n, (_, ids) in enumerate(batch.sequences)]
    batch.fields["weight"] = torch.tensor([m for mask in masks for m in mask])
    batch.fields["start_logp"] = run.values(batch, adapter="start")
    return batch


def train_revise(run: Run, config: Config, stages: Sequence[tuple[str, int]]) -> None:
    """``stages``: what the pairs of each teach, and its steps."""
    refine = run.policy.token(config.refine)
    for stage in after_warm_up(run, config, [length for _, length in stages]):
        batch = pair_batch(run, attempts(run, config, refine), stages[stage][0], config, refine)
        pairs = len(batch.sequences) // 2
        for rows in torch.arange(pairs).tensor_split(min(config.minibatches, pairs)) if pairs else ():
            mini = batch.select([r for i in rows.tolist() for r in (2 * i, 2 * i + 1)])
            mini.fields["weight"] /= mini.fields["weight"].sum()  # mean over the imitated tokens
            run.update(mini, partial(revise_loss, pairs=len(rows), config=config), together=2)


def two_stages(config: Config) -> list[tuple[str, int]]:
    """Verification, then correction."""
    return [(VERIFY, config.verify_iterations), (CORRECT, config.iterations - config.verify_iterations)]


def revise(run: Run, config: Config) -> None:
    train_revise(run, config, two_stages(config))


def no_preference(run: Run, config: Config) -> None:
    """The SFT term alone: lambda = 0."""
    revise(run, replace(config, preference_weight=0.0))


def no_curriculum(run: Run, config: Config) -> None:
    """Both at once: stage 2's pairs from the warm-up policy."""
    train_revise(run, config, [(CORRECT, config.iterations)])


def stage_one_only(run: Run, config: Config) -> None:
    """Stage 1 twice, at equal samples: nothing teaches what to do behind [refine]."""
    train_revise(run, config, [(VERIFY, length) for _, length in two_stages(config)])


def rft(run: Run, config: Config) -> None:
    """Likelihood of the different right samples, in the same stages from the same warm-up."""
    refine, end = run.policy.token(config.refine), run.policy.tokenizer.eos_token_id
    for _ in after_warm_up(run, config, [length for _, length in two_stages(config)]):
        rollouts = attempts(run, config, refine)
        rows = rollouts.rewards.flatten().nonzero()[:, 0].tolist()
        every = [c for group in rollouts.completions for c in group]
        right = Batch(list(dict.fromkeys((every[i].prompt, (*every[i].answer, end)) for i in rows)))
        for mini in right.split(config.minibatches, run.rng) if rows else ():
            mini.fields["weight"] = baselines.token_mean(mini)
            run.update(mini, baselines.nll)


def sft(run: Run, config: Config) -> None:
    """As many optimiser steps as the other arms, each with new problems' reference solutions; nothing is sampled."""
    baselines.train_sft(run, config.sft_steps + config.minibatches * config.iterations, config.prompts)


ARMS = {"base": lambda run, config: None, "sft": sft, "rft": rft, "revise": revise}

PAPER = Paper(
    slug="revise",
    title="ReVISE: Learning to Refine at Test-Time via Intrinsic Self-Verification",
    arxiv="2502.14565",
    config=Config,
    arms=ARMS,
    extra_arms={"no_curriculum": no_curriculum, "no_preference": no_preference, "stage_one_only": stage_one_only},
    evaluate=evaluate,
    columns=("accuracy", "acc@t1", "i_to_c", "c_to_i", "refined", "auroc", "maj@5", "maj@5 weighted", "tokens"),
    claims=(
        Claim(
            "verifies",
            "[refine] follows wrong solutions more often than right ones",
            ("revise", "refined, wrong"),
            ("revise", "refined, right"),
            published="AUROC 76.0 (1B)",
        ),
        Claim(
            "better_than_likelihood",
            "P(end) tells right from wrong better than the mean log-probability (AUROC)",
            ("revise", "auroc"),
            ("revise", "auroc, likelihood"),
        ),
        Claim(
            "refinement_gains",
            "Accuracy after refinement is above the first attempt's",
            ("revise", "accuracy"),
            ("revise", "acc@t1"),
            published="positive",
        ),
        Claim(
            "revise_over_sft",
            "ReVISE ends above SFT",
            ("revise", "accuracy"),
            ("sft", "accuracy"),
            published="+6.0 (1B), +3.4 (8B)",
        ),
        Claim(
            "revise_over_rft",
            "ReVISE ends above RFT at equal samples",
            ("revise", "accuracy"),
            ("rft", "accuracy"),
            published="+1.9 (1B), +2.7 (8B)",
        ),
        Claim(
            "confidence_helps_votes",
            "The confidence-weighted vote of 5 beats the plain one",
            ("revise", "maj@5 weighted"),
            ("revise", "maj@5"),
            published="positive",
        ),
        Claim(
            "curriculum_helps",
            "Verification first is better than both at once",
            ("revise", "accuracy"),
            ("no_curriculum", "accuracy"),
            published="+5.5 (1B)",
        ),
        Claim(
            "stage_two_helps",
            "Stage 2 is better than stage 1 alone",
            ("revise", "accuracy"),
            ("stage_one_only", "accuracy"),
            published="about +2 (1B)",
        ),
    ),
    published={"base": "5.7", "sft": "22.1", "rft": "26.2", "revise": "28.1"},
    published_setting="Llama-3.2-1B, GSM8K, Maj@1 (base: few-shot)",
    curves=("reward", "refined", "auroc"),
    panels=(
        Panel("AUROC of P(end), new training samples", ("auroc",), arms=("rft", "revise")),
        Panel("accuracy by attempts allowed", ("acc@t1", "acc@t2", "acc@t3", "acc@t4"), kind="turns"),
        Panel("accuracy", ("acc@t1", "accuracy", "maj@5", "maj@5 weighted"), kind="bars"),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
