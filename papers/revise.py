"""ReVISE: Learning to Refine at Test-Time via Intrinsic Self-Verification. Hyunseok Lee, Seunghyuk Oh, Jaehyung Kim,
Jinwoo Shin, Jihoon Tack, arXiv 2502.14565, ICML 2025.

Idea. After a solution the model itself decides by one token: the end token, or [refine], after which the same answer
goes on with another attempt. Stage 1 teaches the decision on own samples (end after right ones, [refine] after wrong
ones), stage 2 the correction too ([refine], then the reference solution). Both are a preference loss on pairs that
share the sampled solution, plus cross-entropy on the chosen side. P(end) is a confidence that weighs votes.

Reproduced. base, SFT on reference solutions, RFT and ReVISE, with the claims below. Ablations by settings:
--verify-steps 0 (no curriculum) or that of --steps (stage 1 alone), --preference-weight 0.

How this differs from the paper and why.
- No SFT warm-up (stage 0), as in the paper's runs with instruct models: the presets' models solve already.
- [refine] is a trained word of one token (CUE_WRONG in the built-in model, else "Wait"; --refine takes another), not a
  reserved token: LoRA leaves embedding and head as they are, and untrained rows are too much alike for any hidden state
  to single one out. The word has a meaning already: the built-in corpus has attempts with it or its opposite behind.
- Samples are drawn step by step from a frozen copy of the stage's initial policy: the same data, nothing to keep. They
  end at [refine]. At most 2 pairs of one class for 1 of the other (ours): else a weak model always refines.
- "accuracy" is that of whole answers, where the sampled token decides as often as there is room. In the numbers by
  attempt (acc@tN) and in the votes the likelier of both tokens decides.
- The confidence in a second attempt is read behind the question alone, as in training (see ``votes``).
- Temperature 1 without top-p (paper: 0.7 and 0.9 for training data, not known for the test). Constant learning rate in
  place of a cosine; the last checkpoint, not the one with the best loss.
- RFT and SFT are the kit's, with fewer optimiser steps of more examples; rft_as_long takes as many as ReVISE, of as
  many right solutions. To RFT the cue is a word like any other.

Commands.
    repro run revise --seeds 5                       # tiny model, intervals over seeds
    repro run revise --arms revise --rounds 4        # more refinements at test time
    repro run revise --preset gpu                    # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import torch

from repro import Batch, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, number, script_main, share, standard
from repro.methods.dpo import dpo_loss
from repro.methods.multiturn import Attempts, final_answers, turn_metrics
from repro.methods.rft import train_rft
from repro.model.sampling import Completion
from repro.results.metrics import auroc, majority_at_k
from repro.tasks import prompts


@dataclass(frozen=True)
class Config(RunConfig):
    """ReVISE's hyperparameters."""

    learning_rate: float = 2e-3
    """Of both stages; chosen on validation problems (paper: 1e-4 or 1e-5, full fine-tuning)."""
    refine: str = prompts.CUE_WRONG
    """The decision token [refine]: any text that is one trained token of the model's tokenizer (paper: reserved)."""
    verify_steps: int = 5
    """Of the ``steps``, those of stage 1; the others are stage 2 (paper: one epoch each)."""
    minibatches: int = 16
    """Optimiser steps per rollout step, of about 15 pairs each; chosen on validation problems (code: 32 pairs)."""
    rft_batch: int = 16
    """Solutions in a step of rft_as_long: about as many as ReVISE has pairs (ours)."""
    preference_weight: float = 0.1
    """lambda, weight of the preference term beside the SFT term (paper: 0.1)."""
    beta: float = 0.1
    """Scale of the log-ratios in the preference term (code: TRL's default 0.1)."""
    max_ratio: float = 2.0
    """At most so many pairs of the larger class, right or wrong, for each of the smaller (ours)."""
    rounds: int = 3
    """Refinements at test time; all numbers but acc@t3, acc@t4, ... are after at most one, as trained."""
    refined_problems: int = 256
    """Problems of the evaluation on which decisions, refinements and votes are measured."""

    PRESETS = {  # noqa: RUF012
        "smol": {"refine": "Wait", "verify_steps": 8},
        "small": {"refine": "Wait", "verify_steps": 16, "learning_rate": 1e-4},
        "gpu": {"refine": "Wait", "verify_steps": 30, "learning_rate": 5e-5},
    }


# --- the paper's data, loss and loop at test time -------------------------------------------------------------------


def attempt_of(answer: Sequence[int], refine: int) -> list[int]:
    """y_hat: what stands behind the last [refine] of an answer, its ids without the stop token."""
    return list(answer[len(answer) - answer[::-1].index(refine) :] if refine in answer else answer)


def make_pair(y_hat: list[int], right: bool, y: list[int] | None, end: int, refine: int) -> tuple[list[int], list[int]]:
    """Ids of the chosen and the rejected completion; ``y``: the reference solution in stage 2, None in stage 1."""
    # ids behind ids: text tokenised anew could end y_hat otherwise, and the shared prefix would no longer cancel
    # nothing stands behind a rejected [refine], or stopping there would be learnt
    if right:
        return [*y_hat, end], [*y_hat, refine]
    return [*y_hat, refine, *([] if y is None else [*y, end])], [*y_hat, end]


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


def revise_loss(logp: torch.Tensor, f: SimpleNamespace, pairs: int, config: Config) -> torch.Tensor:
    """L_SFT + lambda L_pref of both stages, summed over a micro-batch; chosen and rejected sequences take turns."""
    # L_SFT: mean over imitated tokens, ``weight`` is a token's share; L_pref: mean over ``pairs`` of
    # -log sigma(r(chosen) - r(rejected)), r = beta log(M / M_start), where the shared y_hat cancels
    return -(f.weight * logp).sum() + config.preference_weight * dpo_loss(logp, f, config.beta, pairs).sum()


def read(run: Run, attempts: Sequence[tuple[Sequence[int], Sequence[int]]], refine: int) -> torch.Tensor:
    """At temperature 1, log P(end), log P([refine]) behind (prompt, solution), its mean log-likelihood: [rows, 3]."""
    end = run.policy.tokenizer.eos_token_id
    if not attempts:
        return torch.zeros(0, 3)

    def three(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logp = logits.log_softmax(-1)
        return torch.cat([logp[:, [end, refine]], logp.gather(-1, targets[:, None])], -1)

    batch = Batch([(prompt, (*solution, end)) for prompt, solution in attempts])
    rows = run.values(batch, three).cpu().split(batch.lengths)
    return torch.stack([torch.stack([*row[-1, :2], row[:-1, 2].sum() / max(1, len(row) - 1)]) for row in rows])


def until_refine(run: Run, completion: Completion, refine: int) -> Completion:
    """The first attempt of an answer that went on behind its decision."""
    if refine not in completion.ids:
        return completion
    ids = completion.ids[: completion.ids.index(refine) + 1]
    text, logprobs = run.policy.tokenizer.decode(ids[:-1]), completion.logprobs[: len(ids)]
    return replace(completion, ids=ids, logprobs=logprobs, text=text, truncated=False)


def solve(run: Run, first: Rollouts, verdict: torch.Tensor, config: Config) -> Attempts:
    """Section 3.5: [refine] goes on in the same answer; the ended repeat their last. ``verdict``: ``read`` of first."""
    generator = torch.Generator(run.policy.device).manual_seed(20_000 + run.seed)
    refine, turns, rewards = run.policy.token(config.refine), [first.completions], [first.rewards]
    going = [(i, k) for i, group in enumerate(first.completions) for k in range(len(group))]
    for n in range(config.rounds):
        turn = [list(row) for row in turns[-1]]
        if n:
            verdict = read(run, [(turn[i][k].prompt, turn[i][k].answer) for i, k in going], refine)
        asks = (verdict[:, 1] > verdict[:, 0]).tolist()
        going = [(i, k) for (i, k), ask in zip(going, asks, strict=True) if ask and not turn[i][k].truncated]
        drawn = run.sample([(*turn[i][k].written, refine) for i, k in going], 1, generator=generator, stop=(refine,))
        for (i, k), (completion,) in zip(going, drawn, strict=True):
            turn[i][k] = completion
        turns.append(turn)
        rewards.append(run.rewards(first.problems, turn))
    return Attempts(first.problems, turns, torch.stack(rewards))


def flat(rows: Sequence[Sequence]) -> list:
    return [item for row in rows for item in row]


def votes(run: Run, attempts: Attempts, sure: torch.Tensor, config: Config) -> dict[str, Metric]:
    """Plain and weighted votes after at most one refinement; ``sure`` is the confidence in first attempts [rows]."""
    # a second attempt is read behind the question alone, x + y, as in training: where it stands, behind another one
    # and [refine], only right solutions were shown, and P(end) is always high
    refine, final = run.policy.token(config.refine), attempts.rewards[1]
    pairs = list(zip(*map(flat, attempts.completions[:2]), strict=True))
    written = [(a.prompt, b.answer) for a, b in pairs if a is not b]
    sure = sure.clone()
    sure[[a is not b for a, b in pairs]] = read(run, written, refine)[:, 0].exp()
    metrics: dict[str, Metric] = {"auroc, final": share(auroc(sure, final.flatten() > 0))}
    answers = [final_answers([c.text for c in group]) for group in attempts.completions[1]]
    rows = list(zip(answers, final.tolist(), sure.view_as(final).tolist(), strict=True))
    for k in (k for k in (3, 5, 8) if k <= final.shape[1]):
        metrics[f"maj@{k}"] = share([majority_at_k(a, r, k) for a, r, _ in rows])
        metrics[f"maj@{k}, weighted"] = share([majority_at_k(a, r, k, weights) for a, r, weights in rows])
    return metrics


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Verification, accuracy by turn, and ``votes``; first attempts are the evaluation's, up to their [refine]."""
    refine = run.policy.token(config.refine)
    part = rollouts.part(config.refined_problems, config.eval_samples)
    completions = [[until_refine(run, c, refine) for c in group] for group in part.completions]
    first = Rollouts(part.problems, completions, run.rewards(part.problems, completions))
    verdict = read(run, [(c.prompt, c.answer) for c in flat(completions)], refine)
    attempts = solve(run, first, verdict, config)
    pairs = list(zip(*map(flat, attempts.completions[:2]), strict=True))
    refined = torch.tensor([float(a is not b) for a, b in pairs]).view_as(first.rewards)
    right, sure = first.rewards.bool(), verdict[:, 0].exp()  # c = P(end)
    return {
        **turn_metrics(attempts),
        "refined": share(refined.mean(1)),
        "refined, right": share(refined[right].mean()),
        "refined, wrong": share(refined[~right].mean()),
        "auroc": share(auroc(sure, right.flatten())),
        "auroc, chance": share(0.5),
        "auroc, likelihood": share(auroc(verdict[:, 2], right.flatten())),
        "tokens": number(torch.tensor([float(len(a.ids) + (a is not b) * len(b.ids)) for a, b in pairs]).mean()),
        **votes(run, attempts, sure, config),
    }


# --- the arm --------------------------------------------------------------------------------------------------------


def draw_pairs(run: Run, stage: int, config: Config, refine: int) -> Batch:
    """Pairs of a step, chosen and rejected side by side, from samples of the stage's initial policy."""
    problems, tokenizer = run.next_problems(config.prompts), run.policy.tokenizer
    groups = run.sample([prompts.solve(p) for p in problems], config.samples, adapter="start", stop=(refine,))
    every, right = flat(groups), run.rewards(problems, groups).flatten().bool()
    run.log(reward=right.float().mean(), refined=sum(c.ids[-1] == refine for c in every) / len(every))
    if right.any() and not right.all():  # of the policy as it is now, on samples that it hasn't been trained on
        run.log(auroc=auroc(read(run, [(c.prompt, c.answer) for c in every], refine)[:, 0], right))
    solutions = [tokenizer(p.solution, add_special_tokens=False).input_ids if stage == 2 else None for p in problems]
    rows = zip(every, right.tolist(), [y for y in solutions for _ in range(config.samples)], strict=True)
    # truncated ones are wrong by the limit: they would teach to refine at a length, not at a mistake
    rows = [row for row in rows if not row[0].truncated]
    order = balanced([is_right for _, is_right, _ in rows], config.max_ratio, run.rng)
    sequences, masks = [], []
    for c, is_right, y in (rows[i] for i in order):
        chosen, rejected = make_pair(attempt_of(c.answer, refine), is_right, y, tokenizer.eos_token_id, refine)
        sequences += [(c.prompt, chosen), (c.prompt, rejected)]
        # both sides of a pair hold y_hat whole: right for the preference, not for what is imitated
        masks += [*imitated(chosen, refine), *[0.0] * len(rejected)]
    return Batch(sequences, {"imitated": torch.tensor(masks)})


def revise(run: Run, config: Config) -> None:
    """Verification, then correction, each with a new optimiser; "start" is the stage's sampler and its reference."""
    refine = run.policy.token(config.refine)
    stages = ("verify", config.verify_steps), ("correct", config.steps - config.verify_steps)
    for stage, (name, steps) in enumerate(stages, 1):
        for _ in run.stage(name, steps, learning_rate=config.learning_rate, freeze="start"):
            batch = draw_pairs(run, stage, config, refine)
            pairs = len(batch.sequences) // 2
            for rows in torch.arange(pairs).tensor_split(min(config.minibatches, pairs)) if pairs else ():
                mini = batch.select([r for i in rows.tolist() for r in (2 * i, 2 * i + 1)])
                mini.fields["ref_logp"] = run.logprobs(mini, "start")
                mask, loss = mini.fields["imitated"], partial(revise_loss, pairs=len(rows), config=config)
                run.update(mini, loss, mean=mask / mask.sum(), together=2)


def rft_as_long(run: Run, config: Config) -> None:
    """RFT with ReVISE's number of optimiser steps and rate, on as many right solutions in each as it has pairs."""
    updates = config.steps * config.minibatches
    sizes = config.steps, config.prompts, config.samples, updates, config.rft_batch
    train_rft(run, *sizes, config.learning_rate)


within = partial(Claim.within, "revise")
WEIGHTED = "maj@5, weighted"
VOTES = ("acc@t2", *(f"maj@{k}{how}" for k in (3, 5, 8) for how in ("", ", weighted")))

PAPER = Paper(
    slug="revise",
    title="ReVISE: Learning to Refine at Test-Time via Intrinsic Self-Verification",
    arxiv="2502.14565",
    family="self-correction",
    config=Config,
    arms={"sft": standard("sft"), "rft": standard("rft"), "rft_as_long": rft_as_long, "revise": revise},
    measure=measure,
    columns=("accuracy", "acc@t1", "acc@t2", "i_to_c", "c_to_i", "refined", "auroc", "maj@5", WEIGHTED, "tokens"),
    claims=(
        within("verifies", "P(end) tells right from wrong (AUROC above chance)", "auroc", "auroc, chance", "76.0 (1B)"),
        within("better_than_likelihood", "P(end) does so better than the likelihood", "auroc", "auroc, likelihood"),
        within("refinement_gains", "Refined solutions are above the first attempts", "acc@t2", "acc@t1", "positive"),
        Claim.over("revise", "sft", text="ReVISE ends above SFT", published="+6.0 (1B), +3.4 (8B)"),
        Claim.over("revise", "rft", text="ReVISE ends above RFT", published="+1.9 (1B), +2.7 (8B)", primary=True),
        Claim.over("revise", "rft_as_long", text="It ends above RFT with as many optimiser steps"),
        within("weighted_vote", "The confidence-weighted vote of 5 beats the plain one", WEIGHTED, "maj@5", "positive"),
    ),
    published={"base": "5.7", "sft": "22.1", "rft": "26.2", "revise": "28.1"},
    published_setting="Llama-3.2-1B, GSM8K, Maj@1 (base: few-shot)",
    curves=("reward", "refined", "auroc"),
    panels=(
        Panel("AUROC of P(end), new training samples", ("auroc",), arms=("revise",)),
        Panel("accuracy by attempts allowed", ("acc@t1", "acc@t2", "acc@t3", "acc@t4"), kind="turns"),
        Panel("accuracy of a vote over K samples", VOTES, kind="bars", arms=("rft", "revise")),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
