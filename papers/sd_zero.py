"""Self-Distillation Zero: Self-Revision Turns Binary Rewards into Dense Supervision. Yinghui He, Simran Kaur, Adithya
Bhaskar, Yongjin Yang et al., arXiv 2604.12002, 2026.

Idea. One model is generator and reviser. Phase 1 (self-revision training, SRT): draft an answer, verify it, go on after
a fixed phrase that says whether it was right, and fine-tune on the revisions that are right. Phase 2: the frozen SRT
model reads an answer of the student with that phrase behind it; its prediction of the same answer once more is a target
at every token. A binary reward has become dense supervision, and no reference solution is used.

Reproduced. base, RFT, online RFT, GRPO, SDFT (the teacher reads the reference solution), SRT, SD-Zero, and SD-Zero with
the teacher synchronised half-way, at equal samples; generate-then-revise; where on an answer the reviser's signal lies,
against the first wrong step. By name: sd_zero_from_srt (the paper's start of phase 2), sd_only (without phase 1).

How this differs from the paper and why.
- Phase 2's student begins as the base, not as the SRT model (see ``sd_zero``).
- The divergence is the paper's KL(student || teacher), over the teacher's 64 likeliest tokens; the code mixes it half
  and half with KL(teacher || student). Behind a wrong step the reviser goes on with what it would not have written and
  predicts it badly; teacher-first, all of that reaches the gradient.
- The official teacher's first copy of an answer keeps its end token. Here the phrase follows the text, as in phase 1.
- SRT's two losses are summed as in the text; the code trains one after the other. The phrase stands in the assistant's
  turn in both phases. Revisions are not cleaned (the code cuts repeated endings and greetings).
- Phase 1 has a fifth of the samples (paper: 40 of 49 k): the built-in model is a fair reviser from the start.
- RFT and GRPO draw 8 answers a problem (paper: 4), phase 2 one: at equal samples it sees more problems. Phase 2 has 4
  optimiser steps a rollout step, SRT epochs over what the base gave. Online RFT, the stronger bar, is not in the paper.

Commands.
    repro run sd_zero                              # tiny model, seed 0; with intervals: --seeds 5
    repro run sd_zero --arms sd_zero --kl-weight 0.5   # the code's divergence
    repro run sd_zero --preset gpu                 # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from repro import BASE, POLICY, Arm, Batch, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, script_main, standard
from repro.config import ConfigError
from repro.methods.distill import Context, of_problem, read_by_teacher, train_distill, traits
from repro.methods.steps import first_wrong_step, steps_of_tokens
from repro.model.logprobs import Divergence, mixed_kl, on_top_k
from repro.results.metric import number, share
from repro.tasks import prompts
from repro.tasks.problem import Problem
from repro.verify import extract_answer


@dataclass(frozen=True)
class Config(RunConfig):
    """SD-Zero's hyperparameters."""

    learning_rate: float = 2e-3
    """Of phase 2; all three were chosen on validation problems (code: 5e-6, no LoRA)."""
    sdft_learning_rate: float = 1e-3
    """Of SDFT."""
    srt_learning_rate: float = 2e-3
    """Of phase 1 (code: 5e-6, no LoRA)."""
    phase_one: float = 0.2
    """Share of the completions that SD-Zero's phase 1 takes (paper: 0.8; chosen on validation)."""
    revisions: int = 3
    """Revisions of each draft in phase 1 (paper: 3)."""
    epochs: int = 4
    """Epochs of SRT on the revisions that are right (code: 3 + 3)."""
    batch: int = 16
    """Traces per optimiser step of SRT (code: one per GPU)."""
    generation_weight: float = 1.0
    """Weight of L_gen in L_SRT (paper: 1)."""
    revision_weight: float = 1.0
    """Weight of L_rev in L_SRT (paper: 1)."""
    kl_weight: float = 0.0
    """Share of KL(teacher || student) in the divergence of phase 2 (paper's equation: 0, code: 0.5)."""
    top_k: int = 64
    """The divergence sees the teacher's likeliest tokens, renormalised (code: 64)."""
    minibatches: int = 4
    """Optimiser steps per rollout step of phase 2 (code: 1, of 128 prompts)."""

    # an SRT answer is draft, phrase and revision: with less room, truncation would look like a loss of accuracy
    PRESETS = {  # noqa: RUF012
        "smol": {"max_new_tokens": 160, "phase_one": 0.125, "srt_learning_rate": 1e-4, "sdft_learning_rate": 2e-4},
        "small": {"max_new_tokens": 640, "srt_learning_rate": 1e-4, "sdft_learning_rate": 1e-4},
        "gpu": {"max_new_tokens": 1024, "srt_learning_rate": 1e-4, "sdft_learning_rate": 2e-5},
    }

    def check(self) -> None:
        super().check()
        if (each := self.prompts * self.samples) % (1 + self.revisions):
            raise ConfigError(f"--revisions {self.revisions}: 1 + revisions must divide --prompts x --samples, {each}")
        if not 0 <= self.phase_one <= 1:
            raise ConfigError(f"--phase-one {self.phase_one}: is a share of the completions, from 0 to 1")


Trace = list[list[int]]  # token ids of prompt x, of draft and phrase (y0, P_r), and of revision y1 with its end token


def revision_chats(rollouts: Rollouts) -> list[prompts.Chat]:
    """One answer a problem: the assistant's turn goes on behind it with the phrase for its reward."""
    rows = zip(rollouts.problems, rollouts.completions, rollouts.rewards[:, 0].tolist(), strict=True)
    return [prompts.revise_in_turn(prompts.solve(problem), c.text, bool(r)) for problem, (c,), r in rows]


def revise(run: Run, drafts: Rollouts, revisions: int) -> list[Trace]:
    """Revise one draft per problem with the phrase for its reward; keep what is right, each revision once."""
    revised = run.sample(revision_chats(drafts), revisions)
    rewards, right = run.rewards(drafts.problems, revised), drafts.rewards[:, 0].bool()
    run.log(corrected=rewards[~right].mean(), kept=rewards[right].mean())  # of none NaN, which is left out
    return [  # a revision's prompt is the draft's with draft and phrase behind it
        [list(draft.prompt), list(group[0].prompt[len(draft.prompt) :]), list(ids)]
        for (draft,), group, kept in zip(drafts.completions, revised, rewards, strict=True)
        for ids in dict.fromkeys(c.ids for c, r in zip(group, kept, strict=True) if r)
    ]


def srt_batch(traces: Sequence[Trace], config: Config) -> Batch:
    """L_SRT = L_rev + L_gen in one forward pass. Wrong drafts are trained on too: answers get twice as long."""
    # L_gen = -log pi([y0, P_r, y1] | x) holds L_rev = -log pi(y1 | x, y0, P_r): the revision counts twice
    once, twice = config.generation_weight, config.generation_weight + config.revision_weight
    counts = [n for _, draft, revision in traces for n in [once] * len(draft) + [twice] * len(revision)]
    return Batch([(x, [*draft, *revision]) for x, draft, revision in traces], {"counts": torch.tensor(counts)})


def train_srt(run: Run, config: Config, steps: int = 0) -> None:
    """Phase 1: drafts and revisions of the base at the samples of ``steps`` steps (0: all), then epochs of L_SRT."""
    drafts = config.prompts * config.samples // (1 + config.revisions)
    for _ in run.stage("draft and revise", steps or config.steps, begin=lambda: run.kept.update(traces=[])):
        run.kept["traces"] += revise(run, run.rollout(run.next_problems(drafts), 1), config.revisions)
    for _ in run.stage("SRT", config.epochs, learning_rate=config.srt_learning_rate):
        batch = srt_batch(run.kept["traces"], config)
        run.log(traces=len(batch.sequences))
        for mini in batch.split(max(1, len(batch.sequences) // config.batch), run.rng):
            run.update(mini, lambda logp, f: -f.counts * logp)


def revision_contexts(run: Run, rollouts: Rollouts) -> list[list[int]]:
    """What the reviser reads before it sees an answer y once more: x, y without its end token, y's phrase."""
    return [run.policy.encode(chat) for chat in revision_chats(rollouts)]  # then y's own ids: no token is shifted


def divergence(config: Config) -> Divergence:
    """KL_mix on the teacher's top-k, both sides renormalised; logits outside the set get no gradient."""
    return partial(on_top_k, divergence=partial(mixed_kl, weight=config.kl_weight), k=config.top_k)


def phase_two(run: Run, config: Config, name: str, steps: int, context: Context, teacher: str, **stage) -> None:
    """One answer per problem, as many as the other arms draw, then the divergence from the teacher at its tokens."""
    problems = config.prompts * config.samples
    more = {"minibatches": config.minibatches, **stage}
    train_distill(run, name, steps, problems, context, divergence(config), teacher, **more)


def sdft(run: Run, config: Config) -> None:
    """Phase 2 with the base as the teacher, which reads the reference solution in place of answer and phrase."""
    reference = of_problem(prompts.solve_with_reference)
    phase_two(run, config, "distil", config.steps, reference, BASE, learning_rate=config.sdft_learning_rate)


def sd_zero(run: Run, config: Config, rounds: int = 1, start: str = "base", with_srt: bool = True) -> None:
    """Phase 1, then phase 2 in ``rounds``: the first one's teacher is the SRT model, a later one's the student so far.

    ``start``: phase 2's student begins as the base or as the SRT model. The latter's answers are draft, phrase and
    revision, and behind a second phrase the reviser, who learned on single drafts, wants a blank line: nats on the
    first token of every such answer that say nothing on the solution.
    """
    first = round(config.phase_one * config.steps) if with_srt else 0
    steps = config.steps - first
    if first:
        train_srt(run, config, first)
    for part in range(rounds):
        more = {} if part else {"learning_rate": config.learning_rate, "from_base": start == "base"}
        length = steps * (part + 1) // rounds - steps * part // rounds
        name, more["freeze"] = f"distil, round {part + 1}", "teacher"
        phase_two(run, config, name, length, revision_contexts, "teacher", **more)


REGIONS = ("right answers", "before the error", "first wrong step", "after the error")
SIGNALS = tuple(f"divergence, {region}" for region in REGIONS)


def regions(problem: Problem, pieces: Sequence[str], right: bool) -> list[str | None]:
    """The region of each token of an answer, from the tokens' texts; None behind its first final answer.

    Left out: the decision to stop (one of length), right answers with a wrong step, drafts that were revised.
    """
    before = ["".join(pieces[:i]) for i in range(len(pieces) + 1)]
    attempt = next((text for text in before if extract_answer(text) is not None), before[-1])
    error = first_wrong_step(problem, attempt)
    if right != (error is None):
        return [None] * len(pieces)
    places = [REGIONS[0 if right else 2 + (n > error) - (n < error)] for n in steps_of_tokens(pieces)]
    return [place if len(text) < len(attempt) else None for text, place in zip(before, places, strict=False)]


def signal(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Divergence per token from the teacher by region; without a teacher, the policy's own as a reviser."""
    batch = read_by_teacher(run, rollouts, revision_contexts)
    teacher = "teacher" if "teacher" in run.policy.copies else POLICY
    values = run.divergences(batch, divergence(config), teacher).cpu().numpy()
    labels: list[str | None] = []
    for problem, (c,), r in zip(rollouts.problems, rollouts.completions, rollouts.rewards[:, 0], strict=True):
        pieces = run.policy.tokenizer.batch_decode([[i] for i in c.ids], skip_special_tokens=True)
        labels += regions(problem, pieces, bool(r))
    at = {region: np.asarray([label == region for label in labels]) for region in REGIONS}
    at["elsewhere"] = at[REGIONS[0]] | at[REGIONS[1]] | at[REGIONS[3]]
    metrics = {f"divergence, {name}": number(values[rows].mean()) for name, rows in at.items() if rows.any()}
    for name, rows in (("right", at[REGIONS[0]]), ("wrong", at[REGIONS[1]] | at[REGIONS[2]] | at[REGIONS[3]])):
        most = np.sort(values[rows])[::-1]
        metrics[f"share of the largest 5 %, {name}"] = share(most[: len(most) // 20 + 1].sum() / max(most.sum(), 1e-9))
    return metrics


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Generate-then-revise with true verdicts (still some are lost, c_to_i); its signal; the teacher's own accuracy."""
    problems, generator = rollouts.problems, torch.Generator(run.policy.device).manual_seed(20_000 + run.seed)
    metrics: dict[str, Metric] = {}
    if "teacher" in run.policy.copies:  # the student as it was when its last round began
        drawn = run.sample([prompts.solve(p) for p in problems], 2, adapter="teacher", generator=generator)
        metrics["accuracy, teacher"] = share(run.rewards(problems, drawn).mean(1))
    first = rollouts.part(len(problems), 1)
    right = first.rewards[:, 0]
    after = run.rewards(problems, run.sample(revision_chats(first), 1, generator=generator))[:, 0]
    metrics |= {"acc@t1": share(right), "acc@t2": share(after), "c_to_i": share(right * (1 - after))}
    if (right == 0).any():
        metrics["correction rate"] = share(after[right == 0].mean())
    texts = [c.text for (c,) in first.completions]
    metrics["self-revised"] = share([prompts.CUE_WRONG in t or prompts.CUE_RIGHT in t for t in texts])
    if config.task == "arithmetic":  # only there the first wrong step is known
        metrics |= signal(run, config, first)
    return metrics


def signal_over(region: str, text: str, arm: str = "sd_zero") -> Claim:
    """What an arm's reviser says: more at the first wrong step than in another region."""
    sides = (arm, f"divergence, {REGIONS[2]}"), (arm, f"divergence, {region}")
    return Claim(f"{arm}_signal_over_{region}".replace(" ", "_"), text, *sides, published="concentrated on few tokens")


over = Claim.over
PAPER = Paper(
    slug="sd_zero",
    title="Self-Distillation Zero: Self-Revision Turns Binary Rewards into Dense Supervision",
    arxiv="2604.12002",
    family="self-distillation",
    config=Config,
    arms={
        **{name: standard(name) for name in ("rft", "rft_online", "grpo")},
        **{"sdft": sdft, "srt": train_srt, "sd_zero": sd_zero, "sd_zero_sync": partial(sd_zero, rounds=2)},
        "sd_only": Arm(partial(sd_zero, with_srt=False), by_name=True),
        "sd_zero_from_srt": Arm(partial(sd_zero, start="srt"), by_name=True),
    },
    claims=(
        over("sd_zero", "rft", text="SD-Zero ends above RFT", published="+6.0 (4B), +4.8 (7B)", primary=True),
        over("sd_zero", "rft_online", text="SD-Zero ends above online RFT"),
        over("sd_zero", "grpo", text="SD-Zero ends above GRPO", published="+7.2 (4B), +6.7 (7B)"),
        over("sd_zero", "srt", text="SD-Zero ends above SRT", published="+2.7 (4B), +1.2 (7B)"),
        over("sd_zero", "sdft", text="SD-Zero ends above SDFT, with solutions", published="+9.1 (4B), +8.1 (7B)"),
        over("srt", "rft", text="SRT ends above RFT", published="+3.3 (4B), +3.6 (7B)"),
        over(
            "sd_zero_sync", "sd_zero", text="A teacher synchronised half-way ends higher", published="+3, on a plateau"
        ),
        Claim(
            *("second_round_gains", "The second round, with the teacher synchronised, gains again"),
            *(("sd_zero_sync", "accuracy"), ("sd_zero_sync", "accuracy, teacher")),
            published="+3, after a plateau",
        ),
        over("srt", "sd_zero", "length", text="SRT's answers are longer than SD-Zero's", published="8458, 3518 tokens"),
        Claim(
            *("srt_corrects", "SRT corrects more of its wrong answers than the base"),
            *(("srt", "correction rate"), ("base", "correction rate")),
            published="+0.123",
        ),
        signal_over("elsewhere", "The reviser's signal is larger at the first wrong step than elsewhere"),
        signal_over(REGIONS[3], "It is larger at the first wrong step than after it"),
        signal_over(REGIONS[0], "Before training it is larger there than on right answers", "base"),
    ),
    traits={
        "sdft": traits("reference", "reverse KL"),
        "srt": traits("own answer, verdict", "SFT on right revisions"),
        "sd_zero": traits("own answer, verdict", "SFT on right revisions, then reverse KL"),
        "sd_zero_sync": traits("own answer, verdict", "the same, the teacher renewed half-way"),
    },
    columns=("accuracy", "pass@8", "greedy", "entropy", "length", "acc@t2", "correction rate", "accuracy, teacher"),
    published={"base": "49.8", "rft": "54.3", "grpo": "53.1", "sdft": "51.2", "srt": "57.6", "sd_zero": "60.3"},
    published_setting="Qwen3-4B-Instruct-2507, average of eight benchmarks",
    measure=measure,
    curves=("reward", "entropy", "length"),
    panels=(
        Panel("accuracy (validation)", ("validation",), x="sampled_tokens"),
        Panel("tokens an answer", ("length",), "bars", arms=("base", "srt", "sd_zero")),
        Panel("signal, nats a token", SIGNALS, "bars", arms=("base", "srt", "sd_zero")),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
