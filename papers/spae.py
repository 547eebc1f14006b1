"""Step Potential Advantage Estimation: Harnessing Intermediate Confidence and Correctness for Efficient Mathematical
Reasoning. Fei Wu, Zhenrong Zhang et al., arXiv 2601.03823, 2026.

Idea. A thinking model goes on checking long after it has the answer, and now and then talks itself out of it. A probe
behind every step (ask for the answer at once) tells how sure the model is, and how likely the right answer: together
the step's potential. Steps that raise it get more credit, and credit decays once the answer is settled.

Reproduced. On the request to think: DAPO, advantages over the batch (RF-B), SPAE, and SPAE without each of its two
parts; looks back at a right answer, answers that turn from right to wrong, tokens before and after the right answer;
where the probe and the text place the step that solves the problem.

How this differs from the paper and why.
- A step is a line, as the built-in model writes them (paper: a full stop and a blank line). At most six of a solution
  are probed, evenly, and what lies between two belongs to the later one.
- The probe's cue is the box alone. Confidence is that of one greedy answer (paper: five samples).
- The threshold of a settled answer is the example's 0.9; the paper's isn't known to us. Smallest and largest changes of
  the potential are those of the whole step's batch, over steps (inferred).
- Checks, flips and solving steps are read off the text in the words that the built-in model knows; other models' checks
  aren't seen. The paper counts by the probe and by a stronger model.
- Groups without signal are dropped, not replaced. LoRA; 4 optimiser steps a rollout (paper: 20).

Commands.
    repro run spae --seeds 5                       # tiny model, with intervals over seeds
    repro run spae --arms rfb spae --alpha 1       # a faster decay
    repro run spae --preset gpu                    # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from repro import Batch, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, script_main, share
from repro.methods.behaviours import solved_at, think, thought_metrics
from repro.methods.grpo import GRPO, advantages, from_outcomes, over_tokens, train_grpo, whiten
from repro.model.logprobs import logprob_and_entropy
from repro.model.sampling import Completion
from repro.tasks import prompts
from repro.tasks.problem import Problem

CUE = "\\boxed{"
ALIKE = 64  # states of similar length that are probed side by side: padding costs more than the answers


@dataclass(frozen=True)
class Config(RunConfig):
    """SPAE's hyperparameters."""

    learning_rate: float = 2e-3
    """Of all arms: as the standard arms' (the paper's isn't known to us)."""
    minibatches: int = 4
    """Optimiser steps per rollout step (paper: 20)."""
    alpha: float = 0.5
    """Strength of the decay once the answer is settled (paper: 0.5)."""
    xi: float = 0.5
    """Weight of the changes of the potential (paper: 0.5)."""
    settled: float = 0.9
    """Potential above which the answer counts as settled (example code: 0.9)."""
    most_probes: int = 6
    """Steps of a solution that are probed (paper: all)."""
    probe_tokens: int = 8
    """Limit of the probe's answer (example code: 10)."""
    think_tokens: int = 256
    """Limit of a thought solution, in training and evaluation."""
    think_samples: int = 2
    """Solutions of each held-out problem (paper: 16)."""
    probed_problems: int = 64
    """Held-out problems on which probe and text are compared (ours)."""

    PRESETS = {  # noqa: RUF012
        "smol": {"think_tokens": 128},
        "small": {"think_tokens": 512},
        "gpu": {"think_tokens": 1024},
    }


# --- the advantage (section 3); a solution's steps are [K] -----------------------------------------------------------


def confidence(entropy: torch.Tensor) -> torch.Tensor:
    """Conf = exp(-mean entropy of the probe's answer); entropy [tokens], nats -> scalar."""
    return (-entropy.mean()).exp()


def accuracy(logp: torch.Tensor) -> torch.Tensor:
    """Acc, the mean probability of the tokens of the right answer; logp [tokens] -> scalar."""
    return logp.exp().mean()


def potential(acc: torch.Tensor, conf: torch.Tensor) -> torch.Tensor:
    """From -1, sure and wrong, to 1, sure and right; unsure is 0 to 0.5."""
    return 1.5 * acc * conf + 0.5 * acc - conf


def decay(phi: torch.Tensor, settled: float, alpha: float) -> torch.Tensor:
    """f: what is left of the group's advantage after so many earlier steps with a settled answer, [K]."""
    over = (phi > settled).double()
    return 1 - alpha * (1 - (-(over.cumsum(0) - over)).exp())


def changes(phi: torch.Tensor) -> torch.Tensor:
    """Change of the potential by each step, 0 for the first, [K]."""
    return torch.cat([phi.new_zeros(min(1, len(phi))), phi.diff()])


def shaping(change: torch.Tensor) -> torch.Tensor:
    """g of all steps of the batch: exp of the changes scaled to [0, 1], less its mean; 0 where all are equal."""
    if not len(change) or change.max() == change.min():
        return torch.zeros_like(change)
    scaled = ((change - change.min()) / (change.max() - change.min())).exp()
    return scaled - scaled.mean()


def step_advantages(
    group: torch.Tensor, phi: Sequence[torch.Tensor], settled: float, alpha: float, xi: float
) -> list[torch.Tensor]:
    """A f + xi g for each step of each solution; group [solutions], phi: [K] each. Not yet standardised."""
    shaped = shaping(torch.cat([changes(p) for p in phi])).split([len(p) for p in phi])
    return [a * decay(p, settled, alpha) + xi * g for a, p, g in zip(group, phi, shaped, strict=True)]


def per_token(
    group: torch.Tensor, steps: Sequence[torch.Tensor], ends: Sequence[Sequence[int]], lengths: Sequence[int]
) -> torch.Tensor:
    """Every token gets its step's advantage, those behind the last step the group's; standardised, [tokens].

    ends: behind which token each step of each solution ends.
    """
    spread = []
    for a, values, places, length in zip(group, steps, ends, lengths, strict=True):
        counts = torch.tensor([0, *places, length]).diff()
        spread.append(torch.cat([values, a[None]]).repeat_interleave(counts))
    return whiten(torch.cat(spread)).float()


# --- steps and the probe ---------------------------------------------------------------------------------------------


def step_ends(pieces: Sequence[str], most: int) -> list[int]:
    """Numbers of tokens up to and with each line's end; at most so many, evenly, with the last."""
    ends = [i for i, piece in enumerate(pieces, 1) if "\n" in piece]
    if len(ends) <= most:
        return ends
    return [ends[(k + 1) * len(ends) // most - 1] for k in range(most)]


def ends_of(run: Run, completion: Completion, most: int) -> list[int]:
    """The same of a completion."""
    pieces = {i: run.policy.tokenizer.decode([i]) for i in set(completion.answer)}
    return step_ends([pieces[i] for i in completion.answer], most)


def probe(run: Run, config: Config, states: Sequence[tuple[int, ...]], answers: Sequence[str]) -> torch.Tensor:
    """Potential behind each state (prompt and a part of a solution), by the current policy, [states]; no gradient."""
    encode, stop = partial(run.policy.tokenizer, add_special_tokens=False), [run.policy.token("}")]
    asked = [(*state, *encode(CUE).input_ids) for state in states]
    found: dict[tuple[int, ...], Completion] = {}
    order = sorted(asked, key=len)
    for start in range(0, len(order), ALIKE):
        block = order[start : start + ALIKE]
        for (c,) in run.sample(block, 1, temperature=0.0, stop=stop, max_new_tokens=config.probe_tokens):
            found[c.prompt] = c
    gold = [encode(answer).input_ids for answer in answers]
    pairs = [
        (ids, part) for ids, g in zip(asked, gold, strict=True) for part in (found[ids].answer or found[ids].ids, g)
    ]
    batch = Batch(pairs)
    logp, entropy = run.values(batch, logprob_and_entropy).double().cpu().unbind(-1)
    conf = [confidence(part) for part in entropy.split(batch.lengths)[::2]]
    acc = [accuracy(part) for part in logp.split(batch.lengths)[1::2]]
    return potential(torch.stack(acc), torch.stack(conf))


def potentials(run: Run, config: Config, rollouts: Rollouts, ends: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Behind every step of every solution, [K] each; states that solutions have in common are probed once."""
    of = [(c, p.answer) for p, group in zip(rollouts.problems, rollouts.completions, strict=True) for c in group]
    wanted = [[(*c.prompt, *c.ids[:end]) for end in places] for (c, _), places in zip(of, ends, strict=True)]
    answers = {state: answer for states, (_, answer) in zip(wanted, of, strict=True) for state in states}
    if not answers:
        return [torch.zeros(0, dtype=torch.float64) for _ in wanted]
    found = dict(zip(answers, probe(run, config, list(answers), list(answers.values())), strict=True))
    return [torch.tensor([found[state] for state in states], dtype=torch.float64) for states in wanted]


# --- training --------------------------------------------------------------------------------------------------------


def by_steps(run: Run, rollouts: Rollouts, settings: GRPO, config: Config) -> torch.Tensor:
    """The advantages of SPAE, [tokens]."""
    group = advantages(rollouts.rewards, "dr_grpo").flatten().double()
    every = [c for samples in rollouts.completions for c in samples]
    ends = [ends_of(run, c, config.most_probes) for c in every]
    phi = potentials(run, config, rollouts, ends)
    for p in phi:
        if len(p):
            run.log(settled=(p > config.settled).double().mean(), settled_at_once=float(p[0] > config.settled))
    steps = step_advantages(group, phi, config.settled, config.alpha, config.xi)
    return per_token(group, steps, ends, [len(c.ids) for c in every])


def train(run: Run, config: Config, advantage=from_outcomes) -> None:
    """DAPO's loss on thought solutions."""

    def rollout(run: Run, problems: list[Problem], samples: int) -> Rollouts:
        return run.rollout(problems, samples, ask=prompts.think, max_new_tokens=config.think_tokens)

    settings = GRPO("dapo", config.minibatches, clip_high=0.28)
    sizes = config.steps, config.prompts, config.samples
    train_grpo(run, *sizes, settings, rollout=rollout, advantage=advantage)


def spae(run: Run, config: Config, **changed) -> None:
    """The same with the advantages of the steps; ``changed``: with other settings."""
    train(run, config, partial(by_steps, config=replace(config, **changed)))


# --- evaluation ------------------------------------------------------------------------------------------------------


def agreement(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Of solutions in which the right answer stood: where the probe finds it settled, against the text.

    There is the line of the answer, or the one before it, whose value the answer is.
    """
    every = [(c, p.answer) for p, (c, *_) in zip(rollouts.problems, rollouts.completions, strict=True)]
    ends = [ends_of(run, c, len(c.ids)) for c, _ in every]
    distances = []
    for (c, answer), places, phi in zip(every, ends, potentials(run, config, rollouts, ends), strict=True):
        tokens = solved_at(run, c, answer)
        line = next((k for k, end in enumerate(places) if tokens is not None and end >= tokens), None)
        if line is not None:
            found = next((k for k, value in enumerate(phi.tolist()) if value > config.settled), len(places))
            distances.append(found - line)
    d = np.array(distances)
    if not len(d):
        return {}
    there = (d == 0) | (d == -1)
    parts = {"there": there, "elsewhere": ~there, "earlier": d < -1, "later": d > 0}
    return {f"probe, {name}": share(values.mean()) for name, values in parts.items()}


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Accuracy, tokens and behaviours of thought solutions; probe and text."""
    thought = think(run, rollouts.problems, config.think_samples, config.think_tokens)
    return thought_metrics(run, thought) | agreement(run, config, thought.part(config.probed_problems, 1))


over = Claim.over
THINK, TOKENS, CHECKING = "think accuracy", "think tokens", "checking tokens of solved"

PAPER = Paper(
    slug="spae",
    title="Step Potential Advantage Estimation: Harnessing Intermediate Confidence and Correctness for Efficient "
    "Mathematical Reasoning",
    arxiv="2601.03823",
    family="reinforcement learning",
    config=Config,
    departs="the probes, of a few tokens each, come on top of the protocol's completions",
    arms={
        "dapo": train,
        "rfb": partial(train, advantage=over_tokens),
        "spae": spae,
        "spae_no_shaping": partial(spae, xi=0.0),
        "spae_no_decay": partial(spae, alpha=0.0),
    },
    measure=measure,
    claims=(
        over(
            *("rfb", "spae", CHECKING),
            text="SPAE writes fewer tokens behind a right answer that stands than RF-B",
            published="tokens of checking 1313 to 614 (7B)",
            primary=True,
        ),
        over("rfb", "spae", "right to wrong", text="Fewer answers turn from right to wrong", published="-3.6"),
        over(
            "spae", "rfb", THINK, threshold=-0.02, text="It loses at most 2 points of accuracy", published="+1.4 (7B)"
        ),
        over("rfb", "spae", TOKENS, text="Its solutions are shorter", published="-14 % (7B)"),
        over("spae_no_decay", "spae", TOKENS, text="The decay shortens", published="7517 to 6825"),
        over("spae", "spae_no_shaping", THINK, text="The changes of the potential raise accuracy", published="+1.4"),
        Claim.within(
            *("base", "probe_agrees", "Probe and text mostly find the same line that solves the problem"),
            *("probe, there", "probe, elsewhere", "86.0 against 14.0"),
        ),
    ),
    columns=(
        THINK,
        TOKENS,
        CHECKING,
        "redundant checks",
        "right to wrong",
        "checks",
        "backtracks",
        "accuracy",
    ),
    published={"base": "61.1 % / 9,023 tokens", "dapo": "62.7 / 8,213", "rfb": "62.4 / 7,964", "spae": "63.9 / 6,825"},
    published_setting="R1-Distill-Qwen-7B, mean of six benchmarks",
    curves=("reward", "length", "entropy"),
    panels=(
        Panel("reward", ("reward",)),
        Panel("tokens of a solution in training", ("length",)),
        Panel(THINK, (THINK, TOKENS), "points"),
        Panel("looks back", ("checks", "redundant checks", "backtracks"), "bars"),
        Panel("the probe's line", ("probe, earlier", "probe, there", "probe, later"), "bars"),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
