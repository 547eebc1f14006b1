"""Confidence v.s. Critique: A Decomposition of Self-Correction Capability for LLMs. Zhe Yang, Yichang Zhang, Yudong
Wang, Ziyao Xu, Junyang Lin, Zhifang Sui, arXiv 2412.19513, ACL 2025.

Idea. Whether a second answer is better than the first says little about a model: it may keep right answers (confidence
level, CL) and mend wrong ones (critique score, CS), and Acc2 = Acc1 CL + (1 - Acc1) CS. Prompts trade one for the
other. Fine-tuning on second turns (CCT), right answers behind right first ones (CLT) and wrong ones (CST), lifts both.

Reproduced. The decomposition by samples and by the probabilities of labels; four follow-ups on the base; SFT, CLT, CST,
CCT with 40 % CLT, and half plain SFT, half CCT. By name: CCT with other shares of CLT.

How this differs from the paper and why.
- The follow-up in training and evaluation asks for another solution without a verdict (paper: the same question again).
  The confidence and critique prompts are the kit's verdicts right and wrong, said without knowing the truth; "doubt"
  asks whether there is an error, as the paper's critique prompt does. The built-in model knows these words and no
  others. To it a verdict was always true: "right" it learnt to copy, behind "wrong" it errs less than otherwise.
- First attempts in training are the base's own: right ones for CLT (the reference solution where none is right), wrong
  ones for CST (a problem without any gives no example). Their source for GSM8K isn't known to us. The loss is on the
  second turn alone (inferred).
- All arms take as many optimiser steps and examples as SFT, so that SFT + CCT sees half of each (paper: all of both);
  the completions of the protocol are spent on first attempts at the same problems.
- As a control, a second answer that is a fresh sample and reads no first one.
- Labels are Yes and No of "is this solution right", asked twice (paper: MMLU, BoolQ, CommonsenseQA). The second time
  is no role of the built-in model. In-context examples are left out: no preset's model reads four conversations.
- LoRA at the standard SFT arm's rate (paper: LoRA, 5e-5). The paper's table was not available: signs are compared.

Commands.
    repro run conf_critique --seeds 5              # tiny model, intervals over seeds
    repro run conf_critique --arms clt cst cct cct_20 cct_60 cct_80   # the mixing sweep
    repro run conf_critique --preset small         # Qwen2.5-0.5B-Instruct on GSM8K, CPU or GPU
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from repro import Arm, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, script_main, standard
from repro.config import ConfigError
from repro.methods.judge import choice_logprobs
from repro.methods.multiturn import go_on, retry, turn_metrics
from repro.methods.rft import train_on_kept
from repro.methods.sft import solution_batch
from repro.results.metric import number, share
from repro.results.metrics import Chances, chances_by_labels, chances_by_samples, decompose
from repro.tasks import prompts
from repro.tasks.problem import Problem

LABELS = ("Yes", "No")


@dataclass(frozen=True)
class Config(RunConfig):
    """Settings of the arms with second turns."""

    learning_rate: float = 2e-3
    """Of CLT, CST and CCT: the standard SFT arm's (paper: 5e-5)."""
    share_clt: float = 0.4
    """Share of CLT examples in CCT (paper: best on BoolQ)."""
    attempts: int = 2
    """First attempts that are sampled for a training problem (ours): with 2 each problem is used about once."""
    updates: int = 40
    """Optimiser steps, as many as the standard SFT arm's (paper: one or two epochs)."""
    batch: int = 32
    """Examples in each of them, as many as that arm's (not known of the paper)."""
    retried_samples: int = 2
    """Of the evaluation's samples of a problem, those that get a second turn (code: 10)."""

    PRESETS = {  # noqa: RUF012
        "smol": {"updates": 64, "batch": 8},
        "small": {"updates": 128, "batch": 8, "retried_samples": 1},  # a second turn takes long on a CPU
        "gpu": {"updates": 240, "batch": 16, "learning_rate": 1e-4},
    }

    def check(self) -> None:
        super().check()
        if not 0 <= self.share_clt <= 1:
            raise ConfigError(f"--share-clt {self.share_clt}: is a share of the examples, from 0 to 1")
        if self.attempts > self.prompts * self.samples:
            raise ConfigError(f"--attempts {self.attempts}: at most --prompts x --samples, a step's completions")


# --- the decomposition (section 3); its estimators are in repro/results/metrics.py -----------------------------------


def by_fresh_samples(rewards: np.ndarray) -> Chances:
    """If the second answer were another sample and read no first one: the mean over all pairs; [questions, samples]."""
    right, others = rewards.sum(1), rewards.shape[1] - 1
    return rewards.mean(1), np.maximum(right - 1, 0) / others, np.minimum(right / others, 1)


def shown(chances: Chances, suffix: str = "") -> dict[str, Metric]:
    """``decompose`` as metrics with their values of problems, and CL + CS."""
    found = decompose(*chances)
    metrics = {name: number(v) if name == "RSS" else share(v) for name, v in found.items()}
    metrics["CL + CS"] = number(found["CL"] + found["CS"])
    return {f"{name}{suffix}": metric for name, metric in metrics.items()}


# --- second turns and examples --------------------------------------------------------------------------------------


FOLLOW_UPS = {  # of the evaluation by the suffix of their metrics; "" is that of the training
    "": partial(retry, ask=prompts.another),
    ", doubt": retry,
    ", confidence": partial(retry, ask=partial(prompts.revise, right=True)),
    ", critique": partial(retry, ask=partial(prompts.revise, right=False)),
}


def first_attempt(problem: Problem, texts: Sequence[str], rewards: Sequence[float], right: bool) -> str | None:
    """The first right attempt, or the reference; the first wrong one, or None."""
    found = [text for text, reward in zip(texts, rewards, strict=True) if bool(reward) is right]
    return found[0] if found else problem.solution if right else None


def examples(run: Run, rollouts: Rollouts, share_clt: float, with_plain: bool) -> list[list[list[int]]]:
    """[prompt ids, target ids] (section 3.4): a CLT or a CST example of a problem, and the plain one if wanted.

    The target is the reference solution, the first attempt is part of the prompt: it carries no loss. A problem without
    a wrong attempt has no CST example; of the CLT ones as many are left out as keeps their share.
    """
    made: dict[bool, list[list[list[list[int]]]]] = {True: [], False: []}
    right = (torch.rand(len(rollouts.problems), generator=run.rng) < share_clt).tolist()
    for i, (prompt, target) in enumerate(solution_batch(run, rollouts.problems).sequences):
        texts, problem = [c.text for c in rollouts.completions[i]], rollouts.problems[i]
        attempt = first_attempt(problem, texts, rollouts.rewards[i].tolist(), right[i])
        if attempt is not None:
            example = [run.policy.encode(FOLLOW_UPS[""](problem, [attempt])), target]
            made[right[i]].append([example, [prompt, target]] if with_plain else [example])
    if share_clt < 1:
        del made[True][round(len(made[False]) * share_clt / (1 - share_clt)) :]
    return [example for kind in made.values() for pair in kind for example in pair]


def correct(run: Run, config: Config, with_plain: bool = False, **changes) -> None:
    """First attempts by the base, then cross-entropy on the examples. ``changes``: with other settings."""
    config = replace(config, **changes)
    for _ in run.stage("collect", config.steps):
        problems = run.next_problems(config.prompts * config.samples // config.attempts)
        made = examples(run, run.rollout(problems, config.attempts), config.share_clt, with_plain)
        run.kept.setdefault("solutions", []).extend(made)
        run.log(examples=len(run.kept["solutions"]))
    train_on_kept(run, config.updates, config.batch, config.learning_rate)


# --- evaluation -----------------------------------------------------------------------------------------------------


def verdicts(run: Run, first: Rollouts) -> Chances:
    """Logit mode on one solution of each problem: is it right? Yes or No, and the same question again."""
    chats = [prompts.verify(p, group[0].text) for p, group in zip(first.problems, first.completions, strict=True)]
    asked = [[chat, *([*prompts.go_on(chat, label), *chat] for label in LABELS)] for chat in chats]
    once = 1 + len(LABELS)  # conversations of a problem that begin alike
    read = choice_logprobs(run, [chat for group in asked for chat in group], LABELS, alike=once)
    p = read.double().softmax(-1).numpy().reshape(-1, once, len(LABELS))
    gold = [0 if right else 1 for right in first.rewards[:, 0]]
    return chances_by_labels(p[:, 0], p[:, 1:], gold)


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Second turns to some of the evaluation's solutions; on the base all follow-ups, and verdicts by logits."""
    generator = torch.Generator(run.policy.device).manual_seed(20_000 + run.seed)
    begun, metrics = rollouts.part(len(rollouts.problems), config.retried_samples), {}
    for suffix, follow_up in FOLLOW_UPS.items():
        if suffix and run.arm != "base":
            continue
        attempts = go_on(run, begun, 2, follow_up, generator=generator)
        metrics |= {f"{name}{suffix}": metric for name, metric in turn_metrics(attempts).items()}
        metrics |= shown(chances_by_samples(*attempts.rewards.double().numpy()), suffix)
    if rollouts.rewards.shape[1] > 1:
        metrics |= shown(by_fresh_samples(rollouts.rewards.double().numpy()), ", fresh")
    if run.arm == "base":
        metrics |= shown(verdicts(run, begun), ", verdict")
    return metrics


over, prompted = partial(Claim.over, "cct"), partial(Claim.within, "base", published="section 4")

PAPER = Paper(
    slug="conf_critique",
    title="Confidence v.s. Critique: A Decomposition of Self-Correction Capability for LLMs",
    arxiv="2412.19513",
    family="self-correction",
    config=Config,
    arms={
        "sft": standard("sft"),
        "clt": partial(correct, share_clt=1.0),
        "cst": partial(correct, share_clt=0.0),
        "cct": correct,
        "sft_cct": partial(correct, with_plain=True),
        **{f"cct_{p}": Arm(partial(correct, share_clt=p / 100), by_name=True) for p in (20, 60, 80)},
    },
    measure=measure,
    claims=(
        over("sft", "delta", text="CCT gains more from the first to the second answer than SFT", primary=True),
        over("sft", "CL", text="CCT keeps more right answers than SFT"),
        over("sft", "CS", text="CCT mends more wrong answers than SFT"),
        over("sft", "CL + CS", text="CCT's CL + CS is above SFT's"),
        over("sft", "acc@t2", text="CCT's second answer is above SFT's"),
        Claim.over("sft_cct", "sft", "delta", text="SFT + CCT, whose first turn is trained, gains more than SFT, too"),
        Claim.over("sft_cct", "sft_cct", "CS", "CS, fresh", text="It mends more than fresh samples of its own do"),
        Claim.over("sft_cct", "sft", "acc@t2", text="SFT + CCT's second answer is above SFT's"),
        Claim.over("sft_cct", "sft", "acc@t1", threshold=-0.02, text="Its first isn't worse by more than 2 points"),
        Claim.over("clt", "cst", "CL", text="CLT alone keeps more right answers than CST alone"),
        Claim.over("cst", "clt", "CS", text="CST alone mends more wrong answers than CLT alone"),
        prompted("confidence_lifts_CL", "The confidence prompt lifts CL", "CL, confidence", "CL"),
        prompted("confidence_lowers_CS", "The confidence prompt lowers CS", "CS", "CS, confidence"),
        prompted("critique_lifts_CS", "The critique prompt lifts CS", "CS, critique", "CS"),
        prompted("critique_lowers_CL", "The critique prompt lowers CL", "CL", "CL, critique"),
        prompted("CL_above_acc", "Right answers are kept more often than given (RSS assumes it)", "CL", "acc@t1"),
        prompted("acc_above_CS", "Wrong answers are mended less often than right ones are given", "acc@t1", "CS"),
    ),
    columns=("accuracy", "acc@t1", "acc@t2", "delta", "CL", "CS", "CL + CS", "RSS", "CL, fresh", "CS, fresh"),
    panels=(
        Panel("accuracy at both turns", ("acc@t1", "acc@t2"), "turns"),
        Panel("confidence and critique", ("CL", "CS"), "bars"),
        Panel("follow-ups", tuple(f"{m}{s}" for m in ("CL", "CS") for s in FOLLOW_UPS), "bars", arms=("base",)),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
