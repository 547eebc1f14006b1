"""Self-Distillation Zero: Self-Revision Turns Binary Rewards into Dense Supervision. Yinghui He, Simran Kaur, Adithya
Bhaskar, Yongjin Yang et al., arXiv 2604.12002, 2026.

Idea. One model is generator and reviser. Phase 1 (self-revision training, SRT): draft an answer, verify it, go on after
a fixed phrase that says whether it was right, keep the revisions that are right, and fine-tune on them. Phase 2: the
frozen SRT model reads an answer of the student with that phrase behind it, and its prediction of the same answer once
more is a target at every token: a binary reward has become dense supervision. No reference solution is used.

Reproduced. base, RFT, online RFT, GRPO, SDFT (the teacher reads the reference solution), SRT, SD-Zero, and SD-Zero with
the teacher synchronised half-way, all with the same number of sampled completions; generate-then-revise; and where on
an answer the reviser's signal lies, against the first wrong step. By name: sd_zero_from_srt (the paper's start of phase
2), sd_only (phase 2 without phase 1).

How this differs from the paper and why.
- Phase 2's student begins as the base, not as the SRT model; the teacher is the SRT model. SRT's answers are draft,
  phrase and revision. A reviser who learned on single drafts wants a blank line behind a second phrase (p = 0.997): 6
  to 9 nats on the first token of every such answer, which say nothing on the solution.
- The divergence is KL(student || teacher), the paper's equation, over the teacher's 64 likeliest tokens; the code mixes
  it half and half with KL(teacher || student). Behind a wrong step the reviser has to go on with what it would not have
  written and predicts it badly; teacher-first, all of that reaches the gradient.
- The two losses of SRT are summed as in the text; the code trains them one after the other. The phrase stands in the
  assistant's turn in both phases. Revisions are not cleaned (the code cuts repeated endings and greetings).
- Phase 1 has a quarter of the samples (paper: 40 of 49 k): the built-in model is a fair reviser from the start.
- As in the paper, RFT and GRPO draw 4 answers a problem and phase 2 one: at equal samples it sees more problems. 4
  optimiser steps per rollout step; in RFT and SRT epochs over what the base gave. Online RFT is not in the paper: it
  samples from the policy at every step and is the stronger bar.

Commands.
    repro run sd_zero                              # tiny model, seed 0
    repro run sd_zero --seeds 5                    # with intervals over seeds
    repro run sd_zero --arms sd_zero --kl-weight 0.5   # the code's divergence
    repro run sd_zero --preset gpu                 # Qwen2.5-1.5B-Instruct in NF4 on GSM8K

Expected (tiny, two cores): 8 minutes of one core for a seed, 20 minutes for five on both, under 2.1 GB a process; base
41 %, RFT 68 %, GRPO 69 %, SRT 71 %, online RFT 74 %, SD-Zero 78 %, SDFT 79 % (results/sd_zero).

What was found. At equal samples, and about equal sampled tokens, SD-Zero ends above RFT (+9.2 points), GRPO (+8.6), SRT
(+6.5) and online RFT (+3.8), and level with SDFT, whose teacher reads solutions and whose rollouts are as good after
half of the samples.
- SRT doubles its answers (35 to 70 tokens), SD-Zero's stay at 36. SRT's lead over RFT (+2.7) is within the interval.
  That it corrects more of its own wrong answers doesn't hold (27 %, base 48 %): nearly all are revised already, so that
  the wrong ones are hard, and the reviser reads them behind a second phrase.
- A second round with the student as the teacher gains 5.7 points; with SRT's teacher the same steps gain more, and
  synchronising ends 2.2 points lower. The likely cause: the student half-way was never trained as a reviser.
- At SD-Zero's end the reviser's signal at the first wrong step is five times that elsewhere (0.11 and 0.02 nats); on
  wrong answers 5 % of the tokens carry 92 % of it. With the base as its own reviser right answers carry as much: it is
  half inclined to the habit, and the phrase says that the answer was right.
- Validation problems, one seed, 2,304 samples. Learning rate 1e-3: start of phase 2 from the base 77.5 %, from SRT 70.6
  % (with the reviser reading only an answer's last solution below 50 % while it trained). At 5e-4: from the base 75.9
  %, from an SRT with L_rev alone 75.3 %, without phase 1 (sd_only) 76.0 %: the built-in model is a fair reviser before
  phase 1, and the paper's need for it doesn't show. Online RFT 75.0 %, at 1e-3 73.8 %. Teacher-first KL: 24 updates at
  2e-4 took first attempts of one SRT model from 45 to 38 %, student-first to 50 %.
- Set after a look at results: the claims on the signal moved from SRT to SD-Zero's end when a first seed had shown the
  blank line. The start from the base was chosen on validation after test seeds 3 and 4 with the paper's start and a
  quarter more samples (77 and 79 %, online RFT 77 and 76 %). The claims on online RFT, SDFT and SRT over RFT came
  before these results but after those; the claim on right answers before training came with these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from repro import Claim, Panel, Paper, Run, RunConfig, evaluation, script_main
from repro.methods.grpo import GRPO, train_grpo
from repro.methods.rft import train_rft
from repro.methods.sft import nll, token_mean
from repro.model.logprobs import Divergence, mixed_kl, on_top_k
from repro.model.sampling import Completion
from repro.model.training import Batch
from repro.paper import Metrics
from repro.run import Rollouts
from repro.tasks import prompts
from repro.tasks.loading import load
from repro.verify import extract_answer


@dataclass(frozen=True)
class Config(RunConfig):
    """SD-Zero's hyperparameters."""

    samples: int = 4
    """Completions per problem of RFT and GRPO (paper: 4). Phase 1: one draft and samples - 1 revisions (paper: 3)."""
    srt_iterations: int = 4
    """Rollout steps of all iterations that phase 1 of SD-Zero takes; the rest is phase 2 (chosen on validation)."""
    epochs: int = 4
    """Epochs on what SRT or RFT collected (code of SRT: 3 + 3)."""
    batch: int = 16
    """Traces per optimiser step on what was collected (code of SRT: one per GPU)."""
    generation_weight: float = 1.0
    """Weight of L_gen in L_SRT (paper: 1)."""
    revision_weight: float = 1.0
    """Weight of L_rev in L_SRT (paper: 1)."""
    kl_weight: float = 0.0
    """Share of KL(teacher || student) in the divergence of phase 2 (paper's equation: 0, code: 0.5)."""
    top_k: int = 64
    """The divergence sees the teacher's likeliest tokens, renormalised (code: 64)."""
    minibatches: int = 4
    """Optimiser steps per rollout step (code of phase 2: 1, of 128 prompts)."""
    sft_learning_rate: float = 1e-3
    """On what SRT or RFT collected; ``learning_rate`` is that of phase 2 and SDFT (code: 5e-6 for both, no LoRA)."""
    online_learning_rate: float = 5e-4
    """Of GRPO and online RFT (ours; at 1e-3 on validation GRPO had 70.5 %, not 71.6, online RFT 73.8, not 75.0)."""
    clip: float = 0.2
    """GRPO's clip range (its paper doesn't state one; 0.2 as in public trainers)."""

    # An SRT answer is draft, phrase and revision: with less room, truncation would look like a loss of accuracy
    PRESETS = {  # noqa: RUF012
        "tiny": {
            **{"iterations": 16, "prompts": 36, "max_new_tokens": 192, "learning_rate": 1e-3},
            **{"eval_problems": 256, "eval_samples": 4},
        },
        "smol": {
            **{"max_new_tokens": 160, "srt_iterations": 2},
            **{"sft_learning_rate": 1e-4, "online_learning_rate": 1e-4},
        },
        "gpu": {
            **{"max_new_tokens": 1024, "prompts": 32, "srt_iterations": 15},
            **{"sft_learning_rate": 1e-4, "online_learning_rate": 2e-5},
        },
    }


# --- phase 1: self-revision training ----------------------------------------------------------------------------------

Trace = list[list[int]]  # token ids of prompt x, of draft and phrase (y0, P_r), and of revision y1 with its end token


def revision_chats(rollouts: Rollouts) -> list[prompts.Chat]:
    """The assistant's turn goes on behind each answer with the phrase for its reward."""
    rows = zip(rollouts.problems, rollouts.completions, rollouts.rewards.bool().tolist(), strict=True)
    return [
        prompts.revise_in_turn(prompts.solve(problem), completion.text, right)
        for problem, group, verdicts in rows
        for completion, right in zip(group, verdicts, strict=True)
    ]


def revise(run: Run, config: Config, drafts: Rollouts) -> list[Trace]:
    """Revise one draft per problem with the phrase for its reward; keep what is right, each revision once."""
    right = drafts.rewards[:, 0].bool()
    attempts = [group[0] for group in drafts.completions]
    revisions = run.sample(revision_chats(drafts), config.samples - 1)
    rewards = run.rewards(drafts.problems, revisions)
    for name, rows in (("corrected", ~right), ("kept", right)):
        if rows.any():
            run.log(**{name: rewards[rows].mean()})
    traces = []
    for attempt, group, kept in zip(attempts, revisions, rewards, strict=True):
        x = len(attempt.prompt)  # a revision's prompt is the draft's with draft and phrase behind it
        for ids in {c.ids: None for c, r in zip(group, kept, strict=True) if r}:
            traces.append([list(attempt.prompt), list(group[0].prompt[x:]), list(ids)])
    return traces


def srt_batch(traces: Sequence[Trace], config: Config) -> Batch:
    """L_SRT = L_rev + L_gen in one forward pass.

    L_gen = -log pi([y0, P_r, y1] | x) holds L_rev = -log pi(y1 | x, y0, P_r): draft and phrase count once, the
    revision twice. Wrong drafts are trained on too: answers get twice as long, until phase 2.
    """
    batch = Batch([(x, [*draft, *revision]) for x, draft, revision in traces])
    once, twice = config.generation_weight, config.generation_weight + config.revision_weight
    weights = [w for _, draft, revision in traces for w in [once] * len(draft) + [twice] * len(revision)]
    batch.fields["weight"] = torch.tensor(weights)
    return batch


def fine_tune(run: Run, config: Config, collected: int, batch_of: Callable[[list], Batch]) -> int:
    """Epochs on what the first ``collected`` steps left in the run's state; returns the number of steps that took."""
    end = collected + config.epochs
    for step in run.steps(end):
        if step == collected:
            run.trainer.new_optimizer(config.sft_learning_rate)
        batch = batch_of(run.state["traces"])
        run.log(traces=len(batch.sequences))
        for mini in batch.split(max(1, len(batch.sequences) // config.batch), run.rng):
            mini.fields["weight"] = mini.fields["weight"] * token_mean(mini)
            run.update(mini, nll)
    return end


def train_srt(run: Run, config: Config, iterations: int) -> int:
    """Drafts and revisions of the base, then L_SRT; returns the number of steps that took."""
    for _ in run.steps(iterations):
        drafts = run.rollout(run.next_problems(config.prompts), 1)
        run.state.setdefault("traces", []).extend(revise(run, config, drafts))
    return fine_tune(run, config, iterations, lambda traces: srt_batch(traces, config))


# --- phase 2: on-policy self-distillation -----------------------------------------------------------------------------


def revision_contexts(run: Run, rollouts: Rollouts) -> list[list[int]]:
    """What the reviser reads before it sees each answer y once more: x, y, and the phrase for y's reward.

    y's end token isn't in the first copy. The second copy is the student's ids themselves, so that no token is shifted.
    """
    return [run.policy.encode(chat) for chat in revision_chats(rollouts)]


def reference_contexts(run: Run, rollouts: Rollouts) -> list[list[int]]:
    """What SDFT's teacher reads: the problem with its reference solution."""
    pairs = zip(rollouts.problems, rollouts.completions, strict=True)
    return [run.policy.encode(prompts.solve_with_reference(problem)) for problem, group in pairs for _ in group]


def divergence(config: Config) -> Divergence:
    """KL_mix on the teacher's top-k, both sides renormalised; logits outside the set get no gradient."""
    return partial(on_top_k, divergence=partial(mixed_kl, weight=config.kl_weight), k=config.top_k)


def distill(run: Run, config: Config, contexts: Callable, teacher: str | None) -> None:
    """One rollout step: one answer per problem, then the divergence from the teacher at each of its tokens."""
    rollouts = run.rollout(run.next_problems(config.prompts * config.samples), 1)
    batch = rollouts.batch()
    batch.contexts, batch.teacher = contexts(run, rollouts), teacher
    for mini in batch.split(config.minibatches, run.rng):
        mini.fields["weight"] = token_mean(mini)
        run.update(mini, lambda d, f: d * f.weight, divergence(config))


# --- the arms ---------------------------------------------------------------------------------------------------------


def rft(run: Run, config: Config) -> None:
    """Rejection-sampling fine-tuning as in the paper: all samples are the base's; right ones are kept, each once."""
    for _ in run.steps(config.iterations):
        rollouts = run.rollout(run.next_problems(config.prompts), config.samples)
        for group, kept in zip(rollouts.completions, rollouts.rewards, strict=True):
            right = dict.fromkeys((c.prompt, c.ids) for c, r in zip(group, kept, strict=True) if r)
            run.state.setdefault("traces", []).extend([list(x), list(y)] for x, y in right)

    def once(traces: list) -> Batch:
        batch = Batch([(x, y) for x, y in traces])
        batch.fields["weight"] = torch.ones(sum(batch.lengths))
        return batch

    fine_tune(run, config, config.iterations, once)


def slower(run: Run, config: Config) -> None:
    """The learning rate of the arms without a teacher that train on fresh samples; a resumed run has it already."""
    if run.step == 0:
        run.trainer.new_optimizer(config.online_learning_rate)


def rft_online(run: Run, config: Config) -> None:
    """RFT with fresh samples of the policy at every step: stronger than the paper's."""
    slower(run, config)
    train_rft(run, config.iterations, config.prompts, config.samples, config.minibatches)


def grpo(run: Run, config: Config) -> None:
    """Group-relative policy gradient."""
    slower(run, config)
    settings = GRPO(minibatches=config.minibatches, clip_low=config.clip, clip_high=config.clip)
    train_grpo(run, config.iterations, config.prompts, config.samples, settings)


def sdft(run: Run, config: Config) -> None:
    """Phase 2 with the base as the teacher, which reads the reference solution in place of answer and phrase."""
    for _ in run.steps(config.iterations):
        distill(run, config, reference_contexts, None)


def srt(run: Run, config: Config) -> None:
    """Phase 1 with all samples."""
    train_srt(run, config, config.iterations)


def sd_zero(run: Run, config: Config, rounds: int = 1, start: str = "base", srt_iterations: int | None = None) -> None:
    """Phase 1, then phase 2 in ``rounds``: the first one's teacher is the SRT model, a later one's the student so far.

    ``start``: phase 2's student begins as the base or as the SRT model. The latter's answers are already draft, phrase
    and revision, and behind a second phrase the reviser, who learned on single drafts, predicts a blank line.
    """
    phase_1 = config.srt_iterations if srt_iterations is None else srt_iterations
    first = train_srt(run, config, phase_1) if phase_1 else 0
    steps = config.iterations - phase_1
    begins = [first + steps * r // rounds for r in range(rounds)]
    for step in run.steps(first + steps):
        if step in begins:
            run.policy.freeze_copy("teacher")
        if step == first:
            run.trainer.new_optimizer(config.learning_rate)
            if start == "base":
                run.policy.reset()
        distill(run, config, revision_contexts, "teacher")


# --- evaluation -------------------------------------------------------------------------------------------------------

REGIONS = ("right answers", "before the error", "first wrong step", "after the error")
SIGNALS = tuple(f"divergence, {region}" for region in REGIONS)


def regions(solution: str, pieces: Sequence[str], right: bool) -> list[str | None]:
    """The region of each token of an answer, from the tokens' texts; None behind its first final answer.

    The first wrong step is the first line that isn't the reference's: 98 to 100 % of right answers are written like it.
    Left out: answers whose draft and final answer differ in their verdict, and the decision to stop (that's of length).
    """
    before = ["".join(pieces[:i]) for i in range(len(pieces) + 1)]
    attempt = next((text for text in before if extract_answer(text) is not None), before[-1])
    if (extract_answer(attempt) == extract_answer(solution)) != right:
        return [None] * len(pieces)
    steps, reference = prompts.split_steps(attempt), prompts.split_steps(solution)
    differs = [a != b for a, b in zip(steps, reference, strict=False)]
    error = differs.index(True) if True in differs else min(len(steps), len(reference)) - 1
    labels: list[str | None] = []
    for text in before[:-1]:
        line = len(prompts.split_steps(text + ".")) - 1  # of the token that comes next
        place = REGIONS[1] if line < error else REGIONS[2] if line == error else REGIONS[3]
        labels.append(None if len(text) >= len(attempt) else REGIONS[0] if right else place)
    return labels


def signal(run: Run, config: Config, rollouts: Rollouts) -> Metrics:
    """Divergence per token from the teacher by region; without a teacher, the policy's own as a reviser."""
    batch = rollouts.batch()
    batch.contexts, batch.teacher = revision_contexts(run, rollouts), "teacher"
    if "teacher" not in run.policy.copies:
        run.policy.freeze_copy("teacher")
    values = run.values(batch, divergence(config)).cpu().numpy()
    labels: list[str | None] = []
    for problem, (c,), r in zip(rollouts.problems, rollouts.completions, rollouts.rewards[:, 0], strict=True):
        pieces = run.policy.tokenizer.batch_decode([[i] for i in c.ids], skip_special_tokens=True)
        labels += regions(problem.solution, pieces, bool(r))
    at = {region: np.asarray([label == region for label in labels]) for region in REGIONS}
    metrics: Metrics = {f"divergence, {name}": float(values[rows].mean()) for name, rows in at.items() if rows.any()}
    elsewhere = at[REGIONS[0]] | at[REGIONS[1]] | at[REGIONS[3]]
    metrics["divergence, elsewhere"] = float(values[elsewhere].mean()) if elsewhere.any() else 0.0
    for name, rows in (("right", at[REGIONS[0]]), ("wrong", at[REGIONS[1]] | at[REGIONS[2]] | at[REGIONS[3]])):
        largest = np.sort(values[rows])[::-1]
        share = largest[: len(largest) // 20 + 1].sum() / max(largest.sum(), 1e-9)
        metrics[f"share of the largest 5 %, {name}"] = float(share)
    return metrics


def revisions(run: Run, config: Config, completions: list[list[Completion]], rewards: torch.Tensor) -> Metrics:
    """Generate-then-revise with the true verdict on the first sample; its signal; the teacher's own accuracy."""
    problems = load(config.task, config.eval_split, config.eval_problems, 0, config.data)
    generator = torch.Generator(run.policy.device).manual_seed(20_000 + run.seed)
    metrics: Metrics = {}
    if "teacher" in run.policy.copies:  # the student as it was when its last round began
        drawn = run.sample([prompts.solve(p) for p in problems], 2, adapter="teacher", generator=generator)
        metrics["accuracy, teacher"] = run.rewards(problems, drawn).mean(1).tolist()
    first = Rollouts(problems, [group[:1] for group in completions], rewards[:, :1])
    right = first.rewards[:, 0]
    after = run.rewards(problems, run.sample(revision_chats(first), 1, generator=generator))[:, 0]
    metrics["acc@t1"], metrics["acc@t2"] = right.tolist(), after.tolist()
    metrics["c_to_i"] = (right * (1 - after)).tolist()  # the verdict is the true one, and still some are lost
    if (right == 0).any():
        metrics["correction rate"] = float(after[right == 0].mean())
    texts = [c.text for (c,) in first.completions]
    cues = (prompts.CUE_WRONG, prompts.CUE_RIGHT)
    metrics["self-revised"] = float(np.mean([any(cue in text for cue in cues) for text in texts]))
    written = [t.endswith(p.solution) for t, p, r in zip(texts, problems, right, strict=True) if r]
    metrics["right answers like the reference"] = float(np.mean(written)) if written else 0.0
    if config.task == "arithmetic":  # only there the first wrong step is known
        metrics.update(signal(run, config, first))
    return metrics


def evaluate(run: Run, config: Config) -> Metrics:
    """The common metrics and those of the paper, from the same completions."""
    return evaluation.evaluate(run, config, partial(revisions, run, config))


ARMS = {
    "base": lambda run, config: None,
    "rft": rft,
    "rft_online": rft_online,
    "grpo": grpo,
    "sdft": sdft,
    "srt": srt,
    "sd_zero": sd_zero,
    "sd_zero_sync": partial(sd_zero, rounds=2),
}


def over(left: str, right: str, text: str, published: str, metric: str = "accuracy") -> Claim:
    """One arm's metric is above another's."""
    name = f"{left}_over_{right}_{metric}".replace(" ", "_")
    return Claim(name, text, (left, metric), (right, metric), published=published)


def signal_over(region: str, text: str, arm: str = "sd_zero") -> Claim:
    """What an arm's reviser says: more at the first wrong step than in another region."""
    sides = (arm, f"divergence, {REGIONS[2]}"), (arm, f"divergence, {region}")
    return Claim(f"{arm}_signal_over_{region}".replace(" ", "_"), text, *sides, published="concentrated on few tokens")


ONLINE = ("rft_online", "grpo", "sdft", "sd_zero", "sd_zero_sync")  # RFT and SRT sample the base throughout

PAPER = Paper(
    slug="sd_zero",
    title="Self-Distillation Zero: Self-Revision Turns Binary Rewards into Dense Supervision",
    arxiv="2604.12002",
    config=Config,
    arms=ARMS,
    extra_arms={"sd_only": partial(sd_zero, srt_iterations=0), "sd_zero_from_srt": partial(sd_zero, start="srt")},
    claims=(
        over("sd_zero", "rft", "SD-Zero ends above RFT at equal samples", "+6.0 (4B), +4.8 (7B)"),
        over("sd_zero", "rft_online", "SD-Zero ends above online RFT at equal samples", ""),
        over("sd_zero", "grpo", "SD-Zero ends above GRPO at equal samples", "+7.2 (4B), +6.7 (7B)"),
        over("sd_zero", "srt", "SD-Zero ends above SRT at equal samples", "+2.7 (4B), +1.2 (7B)"),
        over("sd_zero", "sdft", "SD-Zero ends above SDFT, whose teacher reads solutions", "+9.1 (4B), +8.1 (7B)"),
        over("srt", "rft", "SRT ends above RFT at equal samples", "+3.3 (4B), +3.6 (7B)"),
        over("sd_zero_sync", "sd_zero", "Synchronising the teacher half-way ends higher", "+3, after a plateau"),
        Claim(
            *("second_round_gains", "The second round, with the teacher synchronised, gains again"),
            *(("sd_zero_sync", "accuracy"), ("sd_zero_sync", "accuracy, teacher")),
            published="+3, after a plateau",
        ),
        over("srt", "sd_zero", "SRT's answers are longer than SD-Zero's", "8458 and 3518 tokens", "length"),
        over("srt", "base", "SRT corrects more of its wrong answers than the base", "+0.123", "correction rate"),
        signal_over("elsewhere", "The reviser's signal is larger at the first wrong step than elsewhere"),
        signal_over(REGIONS[3], "It is larger at the first wrong step than after it"),
        signal_over(REGIONS[0], "Before training it is larger there than on right answers", "base"),
    ),
    columns=("accuracy", "pass@4", "greedy", "entropy", "length", "acc@t2", "correction rate", "accuracy, teacher"),
    published={"base": "49.8", "rft": "54.3", "grpo": "53.1", "sdft": "51.2", "srt": "57.6", "sd_zero": "60.3"},
    published_setting="Qwen3-4B-Instruct-2507, average of eight benchmarks",
    evaluate=evaluate,
    curves=("reward", "entropy", "length"),
    panels=(
        Panel("accuracy of the rollouts", ("reward",), x="sampled_tokens", arms=ONLINE),
        Panel("tokens an answer", ("length",), "bars", arms=("base", "srt", "sd_zero")),
        Panel("signal, nats a token", SIGNALS, "bars", arms=("base", "srt", "sd_zero")),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
