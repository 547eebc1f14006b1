"""Feedback Friction: LLMs Struggle to Fully Incorporate External Feedback. Dongwei Jiang, Alvin Zhang, Andrew Wang,
Nicholas Andrews, Daniel Khashabi, arXiv 2506.11930, NeurIPS 2025 (version 2).

Idea. A solver gets feedback on each wrong attempt from someone who knows the solution, until it is right. Accuracy
rises for a few rounds and then stays below what it would be if the solver did what it is told: many of the last errors
were named and are repeated. Where the answers after feedback vary, it helps more; rejecting answers that were tried
helps, a rising temperature alone hardly does.

Reproduced. Nothing is trained. Greedy dialogues of up to six attempts with feedback F1 (it is wrong), F2 (the solver
reads the reference, names the first wrong step and writes a right one) and F3 (an exact critic does). Rising
temperature without and with rejection, semantic entropy behind the first feedback. Controls, which the paper hasn't:
independent samples for as many tokens, feedback on another problem's attempt, the solver's critique without the
reference, feedback on the place alone, and the last attempt alone in the context.

How this differs from the paper and why.
- F3 is exact where F2's model errs, in place of a stronger model; on tasks other than the built-in one it shows the
  reference without the answer. A step that would say the answer is named only (its text is masked, in F2).
- The context is a conversation, which the paper found to be as good as one long message.
- An unsolved problem resists if the last attempt ends at the same answer again, or repeats the very line that was named
  wrong. The paper has a model judge that. Its target counts these as solved, as here (the formula is inferred).
- A step in the wrong place isn't counted as bad feedback. Whether the solver says that it understood, and questions
  with letters, aren't here: the built-in model knows no such requests.
- F2's critic and the own one read the last attempt alone (paper: the whole history).
- Greedy dialogues are the same in every seed: seeds draw the samples of the controls, of the rejection, of the entropy.
  Independent samples are drawn at the run's temperature, behind the greedy first attempt.
- The claim on entropy counts answers; their probabilities, at its sampling temperature, are the other reading.

Commands.
    repro run feedback_friction --seeds 5            # tiny model
    repro run feedback_friction --arms base grpo     # and after training on single turns
    repro run feedback_friction --preset small       # Qwen2.5-0.5B-Instruct on GSM8K, CPU or GPU
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from repro import POLICY, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, number, script_main, share, standard
from repro.config import ConfigError
from repro.methods.critic import Critic, exact, exact_critic, leaks, own_critic, reference_critic, shuffled, step_named
from repro.methods.multiturn import Answer, Dialogue, at_equal_tokens, dialogues, final_answers, repeats, solved_within
from repro.model.sampling import Completion
from repro.results.metrics import over_all, semantic_entropy
from repro.tasks import prompts
from repro.tasks.prompts import Chat, split_steps


@dataclass(frozen=True)
class Config(RunConfig):
    """Settings of the dialogues."""

    turns: int = 6
    """Attempts at a problem, the first one included (paper: 10)."""
    dialogue_problems: int = 256
    """Held-out problems with dialogues (paper: 30 to 450)."""
    candidates: int = 8
    """Samples that rejection chooses from (paper: 25)."""
    entropy_samples: int = 16
    """Samples behind the first feedback, for its semantic entropy (paper: 50)."""
    entropy_temperature: float = 0.7
    """Their temperature (paper: 0.7)."""

    PRESETS = {  # noqa: RUF012
        "smol": {"turns": 3},
        "small": {"turns": 4, "dialogue_problems": 100},
        "gpu": {"turns": 4},
    }

    def check(self) -> None:
        super().check()
        if self.turns < 2:
            raise ConfigError(f"--turns {self.turns}: at least 2, or there is no feedback")


# --- definitions (sections 3 and 5) -----------------------------------------------------------------------------------


def warming(attempt: int) -> float:
    """Temperature of an attempt, counted from 0 (code: at most 1.5)."""
    return min(0.15 * attempt, 1.5)


def untried(tried: Sequence[str], candidates: Sequence[Completion]) -> list[Completion]:
    """Candidates with an answer that no attempt had; all of them if there are none."""
    answers = final_answers([*tried, *(c.text for c in candidates)])
    old, new = {None, *answers[: len(tried)]}, answers[len(tried) :]
    return [c for c, a in zip(candidates, new, strict=True) if a not in old] or list(candidates)


def resists(dialogue: Dialogue) -> bool:
    """Unsolved, and the last attempt has the answer of the one before again, or the line that was named wrong."""
    if dialogue.right or len(dialogue.attempts) < 2:
        return False
    before, last = (c.text for c in dialogue.attempts[-2:])
    one, other = final_answers([before, last])
    step, lines = step_named(dialogue.words[-1]), split_steps(before)
    named = lines[step - 1] if step and step <= len(lines) else None
    return (one is not None and one == other) or named in split_steps(last)


def target(solved: np.ndarray, resisting: np.ndarray) -> np.ndarray:
    """What would be solved if no problem resisted (section 5; inferred), [problems]."""
    return solved + (1 - solved) * resisting


# --- dialogues ------------------------------------------------------------------------------------------------------


def greedy(attempt: int) -> float:
    return 0.0


class Mode(NamedTuple):
    """One sort of dialogue: who gives feedback, and how the next attempt is made."""

    critic: Critic
    full: bool = True  # the context holds all attempts
    temperature: Callable[[int], float] = greedy  # of an attempt's number
    candidates: int = 1  # several: one of those that weren't tried is taken


def modes(config: Config) -> dict[str, Mode]:
    best = exact_critic("step")
    return {
        "F1": Mode(exact_critic("verdict")),
        "F2": Mode(reference_critic("step", POLICY, temperature=0.0)),
        "F3": Mode(best),
        "place": Mode(exact_critic("place")),
        "own": Mode(own_critic(temperature=0.0)),
        "shuffled": Mode(shuffled(best)),
        "last only": Mode(best, full=False),
        "warming": Mode(best, temperature=warming),
        "rejection": Mode(best, temperature=warming, candidates=config.candidates),
    }


def answers_in(run: Run, mode: Mode, generator: torch.Generator) -> Answer:
    """Next attempts, all of the same number."""
    rng = random.Random(run.seed)

    def answer(going: Sequence[Dialogue], chats: list[Chat]) -> list[Completion]:
        temperature = mode.temperature(len(going[0].attempts))
        drawn = run.sample(chats, mode.candidates, temperature, generator=generator)
        tried = [[c.text for c in d.attempts] for d in going]
        return [
            rng.choice(untried(old, new)) if len(new) > 1 else new[0] for old, new in zip(tried, drawn, strict=True)
        ]

    return answer


def described(made: list[list[Dialogue]], turns: int) -> dict[str, Metric]:
    """What is told of one sort of dialogue, one dialogue a problem."""
    every = [group[0] for group in made]
    solved = solved_within(made, turns)
    said = [(d, c.text, words) for d in every for c, words in zip(d.attempts, d.words, strict=False)]
    found = {
        **{f"solved@{t}": share(values) for t, values in enumerate(solved, 1)},
        "solved": share(solved[-1]),
        "last but one": share(solved[-2]),
        "target": share(target(solved[-1], np.array([resists(d) for d in every], dtype=float))),
        "repeats": share(repeats(made)),
    }
    if said:
        found["leaks"] = share(np.mean([leaks(w, d.problem.answer, f"{d.problem.question}\n{c}") for d, c, w in said]))
    placed = [(step_named(exact(d.problem, c, "place")), step_named(w)) for d, c, w in said]
    if known := [step == named for step, named in placed if step and named]:
        found["located"] = share(np.mean(known))
    return found


def by_entropy(run: Run, config: Config, made: list[list[Dialogue]], generator: torch.Generator) -> dict[str, Metric]:
    """Of the problems that were wrong at first, the share that is mended, by the entropy behind the first feedback."""
    rows = [i for i, (d,) in enumerate(made) if d.words]
    told = [Dialogue(d.problem, d.attempts[:1], False, d.words[:1]).chat() for (d,) in (made[i] for i in rows)]
    groups = run.sample(told, config.entropy_samples, config.entropy_temperature, generator=generator)
    answers = [final_answers([c.text for c in group]) for group in groups]
    likely = [[sum(c.logprobs) for c in group] for group in groups]
    mended, metrics = np.array([float(made[i][0].right) for i in rows]), {}
    for suffix, weights in (("", [None] * len(rows)), (", by probability", likely)):
        values = np.array([semantic_entropy(*pair) for pair in zip(answers, weights, strict=True)])
        metrics[f"entropy{suffix}"] = number(values.mean())
        high = values.argsort(kind="stable").argsort() >= len(values) // 2
        for half, of in (("high", high), ("low", ~high)):
            if of.any():
                among = over_all(mended[of], np.array(rows)[of].tolist(), len(made))
                metrics[f"mended, {half} entropy{suffix}"] = share(among)
    return metrics


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Dialogues of every sort from the same greedy attempts, and independent samples for the tokens that each took."""
    generator = torch.Generator(run.policy.device).manual_seed(20_000 + run.seed)
    pool = rollouts.part(config.dialogue_problems, config.eval_samples)
    begun = run.sample([prompts.solve(p) for p in pool.problems], 1, temperature=0.0)
    first = Rollouts(pool.problems, begun, run.rewards(pool.problems, begun))
    fresh = torch.cat([first.rewards, pool.rewards], 1).double().numpy()
    drawn = [list(chain(*pair)) for pair in zip(begun, pool.completions, strict=True)]
    lengths = np.array([[len(c.ids) for c in group] for group in drawn], dtype=float)
    shown = run.sample([prompts.solve_with_reference(p) for p in pool.problems], 1, temperature=0.0)
    metrics = {"with the reference": share(run.rewards(pool.problems, shown)[:, 0])}
    for name, mode in modes(config).items():
        before = run.budget["sampled_tokens"]
        made = dialogues(run, first, config.turns, mode.critic, mode.full, answers_in(run, mode, generator))
        tokens = lengths[:, 0].mean() + (run.budget["sampled_tokens"] - before) / len(made)
        found = described(made, config.turns) | {"tokens": number(tokens)}
        if mode.candidates == 1:  # or the pool has too few
            found["equal tokens"] = share(at_equal_tokens(fresh, lengths, tokens))
        for stem, at, turn in (key.partition("@") for key in found):
            metrics[f"{stem}, {name}{at}{turn}"] = found[f"{stem}{at}{turn}"]
        if name == "F3" and any(d.words for (d,) in made):
            metrics |= by_entropy(run, config, made, generator)
    return metrics


within = partial(Claim.within, "base")
SHOWN = ("F1", "place", "F2", "F3", "shuffled", "own", "last only", "rejection")
STEP_TOLD = "With the right step told, solved problems stay more than 3 points below the target"

PAPER = Paper(
    slug="feedback_friction",
    title="Feedback Friction: LLMs Struggle to Fully Incorporate External Feedback",
    arxiv="2506.11930",
    family="self-correction",
    departs="nothing is trained",
    config=Config,
    arms={"grpo": standard("grpo", by_name=True)},
    measure=measure,
    claims=(
        within(
            "friction", STEP_TOLD, "target, F3", "solved, F3", "15-25 (AIME), 3-8 (GPQA)", threshold=0.03, primary=True
        ),
        within("plateau", "The last round adds at most 2 points", "last but one, F3", "solved, F3", threshold=-0.02),
        within("ceiling", "F3 stays below the solver that reads the reference", "with the reference", "solved, F3"),
        within("quality", "F3 is above F1", "solved, F3", "solved, F1", "+26.7 (AIME), +10.6 (GPQA)"),
        within("self_feedback", "F2 is above F1", "solved, F2", "solved, F1", "F3 > F2 > F1"),
        within("exactness", "F3 is above F2", "solved, F3", "solved, F2", "F3 > F2 > F1"),
        within("used", "F3 is above independent samples for as many tokens", "solved, F3", "equal tokens, F3"),
        within("verdict_used", "F1 is above independent samples for as many tokens", "solved, F1", "equal tokens, F1"),
        within("content", "F3 is above feedback on another problem", "solved, F3", "solved, shuffled"),
        within("reference", "F2 is above the solver's critique without the reference", "solved, F2", "solved, own"),
        within(
            "entropy", "It mends more where answers vary", "mended, high entropy", "mended, low entropy", "0 -> .4-.8"
        ),
        within("rejection", "Rejection of tried answers helps", "solved, rejection", "solved, warming", "clearly"),
        within("warming", "Temperature alone adds at most 3 points", "solved, F3", "solved, warming", threshold=-0.03),
        within("remains", "Even with rejection F3's target isn't reached", "target, F3", "solved, rejection"),
    ),
    columns=(
        *(f"solved, {mode}" for mode in SHOWN),
        *("target, F3", "repeats, F3", "equal tokens, F3", "located, F2", "leaks, F2", "with the reference"),
    ),
    published_setting="final accuracy with F3, Llama-4-Maverick: 73.3 (AIME 2024), 96.5 (GPQA)",
    panels=(
        Panel("solved within", tuple(f"solved, {mode}" for mode in SHOWN), "sizes", x="attempts", arms=("base",)),
        Panel("mended", ("mended, low entropy", "mended, high entropy"), "bars", arms=("base",)),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
