"""ReVISE: Learning to Refine at Test-Time via Intrinsic Self-Verification. Hyunseok Lee, Seunghyuk Oh, Jaehyung Kim,
Jinwoo Shin, Jihoon Tack, arXiv 2502.14565, ICML 2025.

Idea. After a solution the model itself decides by one token: the end token, or a [refine] token, after which the same
answer goes on with another attempt. Stage 1 teaches the decision (on the model's own samples: end after right ones,
[refine] after wrong ones), stage 2, from new samples, the correction too ([refine], then the reference solution). Both
are a preference loss on pairs that share the sampled solution, plus cross-entropy on the chosen side. At test time the
probability of the end token is a confidence that weighs votes.

Reproduced. base, SFT on reference solutions, RFT and ReVISE. Claims: the end token's probability tells right from wrong
better than chance, and better than the solution's likelihood; refinement raises accuracy above the first attempt;
ReVISE ends above SFT and RFT; the confidence-weighted vote beats the plain one. Ablations by settings:
--verify-iterations 0 (no curriculum) or that of --iterations (stage 1 alone), --preference-weight 0.

How this differs from the paper and why.
- No SFT warm-up (stage 0), as in the paper's experiments with instruct models: the presets' models solve already.
- [refine] is a word that the tokenizer has as one token (CUE_WRONG in the built-in model, else "Wait"), not a reserved
  token: LoRA on linear layers leaves embedding and head as they are, and the rows of tokens that were never trained are
  equal to one another (in the built-in model 239 with cosines above 0.995), so that no hidden state could single one
  out. Such a word has a meaning already: 7 % of the built-in model's corpus are attempts with CUE_WRONG or its opposite
  behind them. With --refine another trained token takes its place.
- Samples of a stage are drawn step by step from a frozen copy of its initial policy: the same data as if all were drawn
  before, and nothing to keep. They end at [refine]: each is a first attempt. At most 2 pairs of one class for 1 of the
  other (ours): else a weak model always refines.
- Temperature 1 without top-p (paper: 0.7 and 0.9 for training data, not known for the test). At the verification
  position the likelier of the two tokens decides.
- The confidence in a second attempt is read behind the question alone, as in training: where it stands, P(end) is
  near 1 whatever it says, since training shows nothing but references there.
- Constant learning rate in place of a cosine; the last checkpoint, not the one with the best loss.
- RFT draws a second round from the policy after the first, as ReVISE does; the paper's draws once. SFT passes four
  times over the references of the problems that the others sample on.

Commands.
    repro run revise                                 # tiny model, seed 0
    repro run revise --seeds 5                       # with intervals over seeds
    repro run revise --arms revise --rounds 4        # more refinements at test time
    repro run revise --preset gpu                    # Qwen2.5-1.5B-Instruct in NF4 on GSM8K

Expected (tiny): 5 minutes a seed on one core, under 1.5 GB (results/revise).

What was found. The decision is learnt: AUROC 74 (base: 46); wrong solutions are refined in 49 %, right ones in 15 %.
Refinement gains 0.5 points [-2.5, +2.8], which isn't settled: +0.9 to +1.8 in four seeds, -3.0 in the one that refines
most. It fixes 28 % of the wrong solutions that it touches and breaks 45 % of the right ones: in training what stands
before [refine] was always wrong. More rounds change nothing, a second attempt is hardly ever refined. The likelihood is
the better verifier here (93). The weighted vote doesn't gain (-0.3 [-0.9, +0.4]); solutions with a low P(end) have
already been refined. Read in the context the confidence in final solutions would be worse than chance (AUROC 41, not
73). ReVISE ends below RFT and SFT already with its first attempts (66 against 71 and 82), probably since the decision's
gradients are far larger than those of right solutions and take up most of a step of Adam; and SFT's references are in
the base's own style. Tried on validation (one seed; first -> final): learning rate 5e-4 with lambda 1 and 15 steps of
stage 1, 50.9 -> 54.8; reference solutions as further pairs of stage 2, 67.1 -> 69.4; as set here, 63.5 -> 67.6; after
an SFT warm-up of 40 steps, 77.6 -> 76.8: hardly anything but slips is left to verify.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch

from repro import Claim, Panel, Paper, Run, RunConfig, script_main
from repro.methods.multiturn import Attempts, final_answers, turn_metrics
from repro.methods.sft import nll, token_mean, train_sft
from repro.model.training import Batch
from repro.paper import Metrics
from repro.results.metrics import auroc, majority_at_k
from repro.run import Rollouts
from repro.tasks import prompts
from repro.tasks.loading import load
from repro.tasks.problem import Problem

Pair = tuple[list[int], list[int]]  # chosen and rejected completion of one prompt, token ids


@dataclass(frozen=True)
class Config(RunConfig):
    """ReVISE's hyperparameters."""

    refine: str = prompts.CUE_WRONG
    """The decision token [refine]: any text that is one trained token of the model's tokenizer (paper: reserved)."""
    verify_iterations: int = 10
    """Of the ``iterations``, those of stage 1; the others are stage 2 (paper: one epoch each)."""
    samples: int = 4
    """Completions per problem (code: 10)."""
    minibatches: int = 4
    """Optimiser steps per rollout step, about 32 pairs each as in the code."""
    preference_weight: float = 0.1
    """lambda, weight of the preference term beside the SFT term (paper: 0.1)."""
    beta: float = 0.1
    """Scale of the log-ratios in the preference term (code: TRL's default 0.1)."""
    max_ratio: float = 2.0
    """At most so many pairs of the larger class, right or wrong, for each of the smaller (ours)."""
    renormalise: bool = False
    """Confidence P(end) / (P(end) + P(refine)) in place of P(end) (paper: P(end))."""
    rounds: int = 3
    """Refinements at test time; all numbers but acc@t3, acc@t4, ... are after at most one, as trained."""

    PRESETS = {  # noqa: RUF012
        "tiny": {"iterations": 30, "learning_rate": 1e-3, "eval_problems": 256},
        "smol": {"refine": "Wait", "verify_iterations": 4},
        "gpu": {"refine": "Wait", "verify_iterations": 30, "learning_rate": 5e-5},
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
    return nll(logp, fields).sum() + config.preference_weight * preference


# --- the decision and the loop at test time -------------------------------------------------------------------------


def verdicts(run: Run, written: Sequence[Sequence[int]], refine: int) -> torch.Tensor:
    """log P(end) and log P([refine]) behind ``written`` (prompt and solution), whatever the sampler drew; [rows, 2]."""
    end = run.policy.tokenizer.eos_token_id

    def both(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return logits.log_softmax(-1)[:, [end, refine]]

    return run.values(Batch([(ids, (end,)) for ids in written]), both).cpu() if written else torch.zeros(0, 2)


def confidence(verdict: torch.Tensor, renormalise: bool) -> torch.Tensor:
    """c = P(end), or its share of both decisions; [..., 2] -> [...]."""
    return torch.sigmoid(verdict[..., 0] - verdict[..., 1]) if renormalise else verdict[..., 0].exp()


def solve(
    run: Run,
    problems: Sequence[Problem],
    samples: int,
    config: Config,
    temperature: float | None = None,
    generator: torch.Generator | None = None,
) -> Attempts:
    """Section 3.5: attempt, decide, and on [refine] go on in the same answer; one that has ended repeats its last."""
    refine = run.policy.token(config.refine)
    draw = partial(run.sample, temperature=temperature, generator=generator, stop=(refine,))
    turns = [draw([prompts.solve(p) for p in problems], samples)]
    going = [(i, k) for i in range(len(problems)) for k in range(samples)]
    for _ in range(config.rounds):
        turn = [list(row) for row in turns[-1]]
        decided = verdicts(run, [turn[i][k].written for i, k in going], refine).tolist()
        asks = [again > end and not turn[i][k].truncated for (i, k), (end, again) in zip(going, decided, strict=True)]
        going = [cell for cell, ask in zip(going, asks, strict=True) if ask]
        drawn = draw([(*turn[i][k].written, refine) for i, k in going], 1)
        for (i, k), (completion,) in zip(going, drawn, strict=True):
            turn[i][k] = completion
        turns.append(turn)
    return Attempts(list(problems), turns, torch.stack([run.rewards(problems, turn) for turn in turns]))


def flat(rows: Sequence[Sequence]) -> list:
    return [item for row in rows for item in row]


def votes(run: Run, attempts: Attempts, config: Config) -> Metrics:
    """Verification before and after refinement, and plain and weighted votes.

    The confidence in a second attempt is read behind the question alone, x + y, as in training. Where the attempt
    stands, behind another one and [refine], only right solutions were shown: there P(end) is always high.
    """
    refine, (first, final) = run.policy.token(config.refine), attempts.rewards[:2]
    once, twice = map(flat, attempts.completions[:2])
    sure = confidence(verdicts(run, [c.written for c in once], refine), config.renormalise)
    pairs = list(zip(once, twice, strict=True))
    again = [a is not b for a, b in pairs]
    metrics: Metrics = {"auroc": auroc(sure, first.flatten() > 0), "auroc, chance": 0.5}
    n = final.shape[1]
    answers = [final_answers([c.text for c in group]) for group in attempts.completions[1]]
    for name, written in (
        ("weighted", [(*a.prompt, *b.answer) for a, b in pairs if a is not b]),
        ("weighted in context", [b.written for a, b in pairs if a is not b]),
    ):
        sure[again] = confidence(verdicts(run, written, refine), config.renormalise)
        metrics[f"auroc, {name}"] = auroc(sure, final.flatten() > 0)
        rows = list(zip(answers, final.tolist(), sure.view_as(final).tolist(), strict=True))
        for k in (k for k in (3, 5, 8) if k <= n):
            metrics[f"maj@{k}"] = [majority_at_k(a, r, k) for a, r, _ in rows]
            metrics[f"maj@{k}, {name}"] = [majority_at_k(a, r, k, weights) for a, r, weights in rows]
    return metrics


def evaluate(run: Run, config: Config) -> Metrics:
    """Accuracy before and after refinement, by turn, and ``votes``."""
    problems = load(config.task, config.eval_split, config.eval_problems, 0, config.data)
    generator = torch.Generator(run.policy.device).manual_seed(10_000 + run.seed)
    attempts = solve(run, problems, config.eval_samples, config, generator=generator)
    greedy = solve(run, problems, 1, config, temperature=0.0, generator=generator).rewards
    once, twice = map(flat, attempts.completions[:2])
    refined = torch.tensor([float(a is not b) for a, b in zip(once, twice, strict=True)]).view(len(problems), -1)
    length = torch.tensor([[float(len(c.ids)) for c in turn] for turn in (once, twice)]).view(2, *refined.shape)
    right = attempts.rewards[0].bool()
    likelihood = [sum(c.logprobs[:-1]) / max(1, len(c.ids) - 1) for c in once]  # without the decision's
    metrics = turn_metrics(attempts)
    return {
        **metrics,
        "accuracy": metrics["acc@t2"],
        "greedy": greedy[1, :, 0].tolist(),
        "greedy, first": greedy[0, :, 0].tolist(),
        "refined": refined.mean(1).tolist(),
        "refined, right": refined[right].mean().item(),
        "refined, wrong": refined[~right].mean().item(),
        "auroc, likelihood": auroc(likelihood, right.flatten()),
        "truncated": sum(c.truncated for c in once) / len(once),
        "tokens": (length[0] + refined * length[1]).mean().item(),
        **votes(run, attempts, config),
    }


# --- the arms -------------------------------------------------------------------------------------------------------


def stage_of(run: Run, step: int, config: Config) -> int:
    """1 (verification) or 2 (correction).

    A stage begins with a new optimiser and a frozen copy "start" of the policy, its sampler and its reference.
    """
    if step in (0, config.verify_iterations):
        run.policy.freeze_copy("start")
        run.trainer.new_optimizer()
    return 1 if step < config.verify_iterations else 2


def first_attempts(run: Run, config: Config, refine: int) -> Rollouts:
    """Solutions of the next problems by the stage's initial policy, up to their decision token."""
    problems = run.next_problems(config.prompts)
    chats = [prompts.solve(p) for p in problems]
    completions = run.sample(chats, config.samples, adapter="start", stop=(refine,))
    rollouts = Rollouts(problems, completions, run.rewards(problems, completions))
    every, right = flat(completions), rollouts.rewards.flatten().bool()
    run.log(reward=right.float().mean(), refined=sum(c.ids[-1] == refine for c in every) / len(every))
    if right.any() and not right.all():  # of the policy as it is now, on samples that it hasn't been trained on
        run.log(auroc=auroc(verdicts(run, [c.written for c in every], refine)[:, 0], right))
    return rollouts


def pair_batch(run: Run, rollouts: Rollouts, stage: int, config: Config, refine: int) -> Batch:
    """Pairs of a step, chosen and rejected side by side, in shuffled order."""
    tokenizer = run.policy.tokenizer
    sequences, right = [], []
    for problem, group, rewards in zip(rollouts.problems, rollouts.completions, rollouts.rewards, strict=True):
        y = tokenizer(problem.solution, add_special_tokens=False).input_ids if stage == 2 else None
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
    return batch


def revise(run: Run, config: Config) -> None:
    """Section 3: verification, then correction."""
    refine = run.policy.token(config.refine)
    for step in run.steps(config.iterations):
        stage = stage_of(run, step, config)
        batch = pair_batch(run, first_attempts(run, config, refine), stage, config, refine)
        pairs = len(batch.sequences) // 2
        for rows in torch.arange(pairs).tensor_split(min(config.minibatches, pairs)) if pairs else ():
            mini = batch.select([r for i in rows.tolist() for r in (2 * i, 2 * i + 1)])
            mini.fields["weight"] /= mini.fields["weight"].sum()  # mean over the imitated tokens
            mini.fields["start_logp"] = run.values(mini, adapter="start")
            run.update(mini, partial(revise_loss, pairs=len(rows), config=config), together=2)


def rft(run: Run, config: Config) -> None:
    """Likelihood of the different right samples, in two rounds as ReVISE."""
    refine, end = run.policy.token(config.refine), run.policy.tokenizer.eos_token_id
    for step in run.steps(config.iterations):
        stage_of(run, step, config)
        rollouts = first_attempts(run, config, refine)
        every = flat(rollouts.completions)
        rows = rollouts.rewards.flatten().nonzero()[:, 0].tolist()
        right = Batch(list(dict.fromkeys((every[i].prompt, (*every[i].answer, end)) for i in rows)))
        for mini in right.split(config.minibatches, run.rng) if rows else ():
            mini.fields["weight"] = token_mean(mini)
            run.update(mini, nll)


def sft(run: Run, config: Config) -> None:
    """Reference solutions of the same problems, as many optimiser steps as the other arms; nothing is sampled."""
    run.problems = run.problems[: config.prompts * config.iterations]
    train_sft(run, config.minibatches * config.iterations, config.prompts)


def above(name: str, text: str, metric: str, other: str, published: str = "", arm: str = "revise") -> Claim:
    """ReVISE's ``metric`` against the ``other`` one, of ReVISE or another arm."""
    return Claim(name, text, ("revise", metric), (arm, other), published=published)


AUROC, FINAL, VOTE = "auroc", "accuracy", "maj@5, weighted"
VOTES = ("accuracy", *(f"maj@{k}{how}" for k in (3, 5, 8) for how in ("", ", weighted")))
ARMS = {"base": lambda run, config: None, "sft": sft, "rft": rft, "revise": revise}

PAPER = Paper(
    slug="revise",
    title="ReVISE: Learning to Refine at Test-Time via Intrinsic Self-Verification",
    arxiv="2502.14565",
    config=Config,
    arms=ARMS,
    evaluate=evaluate,
    columns=("accuracy", "acc@t1", "i_to_c", "c_to_i", "refined", "auroc", "maj@5", "maj@5, weighted", "tokens"),
    claims=(
        above("verifies", "P(end) tells right from wrong (AUROC above chance)", AUROC, "auroc, chance", "76.0 (1B)"),
        above("better_than_likelihood", "P(end) does so better than the likelihood", AUROC, "auroc, likelihood"),
        above("refinement_gains", "Accuracy ends above that of the first attempt", FINAL, "acc@t1", "positive"),
        above("revise_over_sft", "ReVISE ends above SFT", FINAL, FINAL, "+6.0 (1B), +3.4 (8B)", "sft"),
        above("revise_over_rft", "ReVISE ends above RFT at equal samples", FINAL, FINAL, "+1.9 (1B), +2.7 (8B)", "rft"),
        above("weighted_vote", "The confidence-weighted vote of 5 beats the plain one", VOTE, "maj@5", "positive"),
    ),
    published={"base": "5.7", "sft": "22.1", "rft": "26.2", "revise": "28.1"},
    published_setting="Llama-3.2-1B, GSM8K, Maj@1 (base: few-shot)",
    curves=("reward", "refined", "auroc"),
    panels=(
        Panel("AUROC of P(end), new training samples", ("auroc",), arms=("rft", "revise")),
        Panel("accuracy by attempts allowed", ("acc@t1", "acc@t2", "acc@t3", "acc@t4"), kind="turns"),
        Panel("accuracy of a vote over K samples", VOTES, kind="bars", arms=("rft", "revise")),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
