"""SCoRe: Training Language Models to Self-Correct via Reinforcement Learning. Aviral Kumar, Vincent Zhuang, Rishabh
Agarwal, Yi Su, John D. Co-Reyes, Avi Singh et al., arXiv 2409.12917, ICLR 2025.

Idea. Asked to check their own answer, models break as many answers as they mend. Fine-tuning on corrections teaches
them to leave the first attempt alone, and so does plain two-turn RL: the best first attempt, repeated, is a solution of
it too. SCoRe decouples the attempts. Stage I raises the second one alone while a KL term keeps the first at the base.
Stage II rewards both, each for its own answer, and adds a bonus for progress from the first attempt to the second.

Reproduced. base, Pair-SFT (a wrong sample paired with a right one), STaR (its own two-turn traces that end right),
plain two-turn RL (both attempts rewarded, neither stage I nor bonus) and SCoRe. Claims: SCoRe gains more between the
attempts than the others, breaks fewer right answers than the base, and goes on changing answers. By name: no_stage_one,
no_bonus, second_attempt_rl (the reward on the second attempt alone, as in the paper's figure 5) and single_turn_rl (the
first attempt alone, evaluated on both).

How this differs from the paper.
- A step takes all its samples into one update (RLOO over the samples of a problem). The paper doesn't state its number
  of samples, nor how its steps are divided between the stages: here 8 and one half, with a new optimiser for stage II.
- alpha = 5 and beta2 = 0.3 on the tiny model, 10 and 0.1 in the paper: an attempt here has about 30 tokens, so that the
  same shift of a token's distribution makes a smaller sum of log-ratios.
- The first attempts are always the policy's own; the paper mixes stored ones of the base in for some experiments.
- STaR and Pair-SFT learn the second attempt only: with a loss on the first, wrong->right traces would teach mistakes.
- LoRA and a higher learning rate in place of full fine-tuning at 5e-6; 36 steps in place of 3000.
- The last checkpoint is reported, not the one with the best training reward.

Commands.
    repro run score                                # tiny model, seed 0
    repro run score --seeds 5                      # with intervals over seeds
    repro run score --arms score no_stage_one no_bonus second_attempt_rl single_turn_rl
    repro run score --preset gpu                   # Qwen2.5-1.5B-Instruct in NF4 on GSM8K

Expected (tiny, two cores): 5 minutes for one seed and 22 for five, under 1.5 GB a process; greedy, first -> second
attempt: base 50 -> 47 %, Pair-SFT 69 -> 77 %, STaR 72 -> 78 %, plain two-turn RL 80 -> 81 %, SCoRe 75 -> 79 %
(results/score).

What was found. Among the RL methods it is as in the paper: the base loses 3 +- 3 points at its second attempt, plain
two-turn RL raises both attempts and hardly gains between them (+1.1; answers changed at temperature 1: 52 to 25 %),
SCoRe gains 4.1 (32 % changed) and breaks 0.9 % of the answers in place of 7.0.
- Not as in the paper: Pair-SFT and STaR gain no less (+7.4 and +5.9). All second attempts end at 77 to 81 %, and
  the gain is largest where the first has been trained least: those two learn the second attempt alone. A gain by
  itself is no merit: plain two-turn RL has the smallest one and the best second attempt (2.4 points above SCoRe's).
- Stage I and bonus, on validation problems (one seed, 100, 40 steps; gain greedy / at temperature 1, changed): neither
  -1.0 / +3.0, 24 %; bonus alone +1.8 / +6.4, 25 %; both +3.1 / +10.2, 34 %. With the last reward as the return of both
  turns nothing collapsed: +5.1 / +9.9 (48 steps of 12 problems at 5e-4, where SCoRe had +4.3 / +7.7).
- The bonus can't do what its name says. A turn learns from its own reward alone, and given the first attempt -alpha r1
  is a constant: on average the bonus only multiplies the second turn's reward by 1 + alpha (tests/test_score.py). What
  it does is give most of the clipped gradient to the second turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from repro import Claim, Panel, Paper, Run, RunConfig, script_main
from repro.config import ConfigError
from repro.methods.multiturn import Attempts, converse, turn_metrics
from repro.methods.sft import nll, token_mean
from repro.model.sampling import Completion
from repro.model.training import Batch
from repro.paper import Metrics
from repro.run import entropy
from repro.tasks import prompts
from repro.tasks.loading import load
from repro.tasks.problem import Problem

CORRECTION = ("acc@t1", "acc@t2", "delta", "i_to_c", "c_to_i", "changed")
Trace = tuple[list[int], list[int]]  # ids of a second turn: the conversation before it, and the attempt


@dataclass(frozen=True)
class Config(RunConfig):
    """SCoRe's hyperparameters."""

    alpha: float = 10.0
    """Weight of the progress bonus in stage II (paper: 10; tiny: 5)."""
    beta1: float = 0.01
    """KL weight of the default objective, on log-ratios summed over a whole attempt (paper: 0.01)."""
    beta2: float = 0.1
    """KL weight that keeps the first attempt at the base in stage I (paper: 0.1 on MATH, 0.25 on MBPP; tiny: 0.3)."""
    stage_one: float = 0.5
    """Share of the steps that stage I gets (not stated in the paper)."""
    rounds: int = 3
    """STaR's iterations of sampling and fine-tuning the base anew (paper: 3)."""
    star_right: bool = True
    """STaR also keeps traces that were right from the start (paper: D+ with them, Delta +0.4; without, -14.2)."""
    sft_batch: int = 32
    """Traces in one optimiser step of STaR and Pair-SFT (ours)."""

    PRESETS = {  # noqa: RUF012
        "tiny": {
            "alpha": 5.0,
            "beta2": 0.3,
            "iterations": 36,
            "prompts": 8,
            "learning_rate": 1e-3,
            "eval_problems": 384,
            "eval_samples": 2,
        },
        "smol": {"sft_batch": 16},
        "gpu": {"iterations": 200, "samples": 4},
    }

    def check(self) -> None:
        super().check()
        if self.samples < 2:
            raise ConfigError(f"--samples {self.samples}: a leave-one-out baseline needs at least 2")
        if not 0 <= self.stage_one <= 1:
            raise ConfigError(f"--stage-one {self.stage_one}: is a share of the steps, from 0 to 1")


# --- the paper's rewards ----------------------------------------------------------------------------------------------

# rewards and log_ratio (of policy to reference, summed over the tokens of an attempt) are [turns, problems, samples]
Objective = Callable[[torch.Tensor, torch.Tensor, Config], torch.Tensor]


def stage_one_returns(rewards: torch.Tensor, log_ratio: torch.Tensor, config: Config) -> torch.Tensor:
    """Equation 3: the second attempt's reward, while the first attempt is only held at the reference.

    The log-ratio of a turn belongs to the return of that same turn. Subtracted from the second turn's reward it would
    never reach the first turn's tokens, and nothing would be anchored.
    """
    return torch.stack([-config.beta2 * log_ratio[0], rewards[1] - config.beta1 * log_ratio[1]])


def stage_two_returns(rewards: torch.Tensor, log_ratio: torch.Tensor, config: Config) -> torch.Tensor:
    """Equation 4 with the progress bonus on the second turn.

    Each turn has its own reward alone (gamma = 0, appendix A.4), or the bonus could be earned by a bad first attempt.
    So -alpha r1 is the same for whatever follows a first attempt: on average the bonus only multiplies the second
    turn's reward by 1 + alpha, and what it changes is the weight of the second turn against the first.
    """
    bonus = config.alpha * (rewards[1] - rewards[0])
    return torch.stack([rewards[0], rewards[1] + bonus]) - config.beta1 * log_ratio


def own_returns(rewards: torch.Tensor, log_ratio: torch.Tensor, config: Config) -> torch.Tensor:
    """Equation 2: each turn's own reward."""
    return rewards - config.beta1 * log_ratio


def leave_one_out(returns: torch.Tensor) -> torch.Tensor:
    """RLOO: each return minus the mean of the other samples of its problem and turn (2402.14740), same shape."""
    others = returns.shape[-1] - 1
    return (returns - returns.mean(-1, keepdim=True)) * (others + 1) / others


# --- reinforcement learning -------------------------------------------------------------------------------------------


def rollout(run: Run, problems: list[Problem], samples: int, turns: int = 2) -> Attempts:
    """Conversations by the policy, with what happens between the attempts in the history."""
    attempts = converse(run, problems, samples, turns)
    every = [c for turn in attempts.completions for group in turn for c in group]
    run.log(entropy=entropy(every), truncated=sum(c.truncated for c in every) / len(every))
    if turns == 2:
        values = turn_metrics(attempts)
        run.log(**{name: sum(values[name]) / len(problems) for name in CORRECTION})
    return attempts


def reinforce(run: Run, attempts: Attempts, objective: Objective, config: Config) -> None:
    """One policy-gradient step on fresh conversations: every turn is a sequence with its own prompt and advantage.

    In a second turn's prompt the first attempt is context and carries no loss. The sum over tokens, not their mean: the
    betas belong to log-ratios of whole attempts.
    """
    batch = Batch([(c.prompt, c.ids) for turn in attempts.completions for group in turn for c in group])
    per_token = run.values(batch) - run.values(batch, adapter=None)  # the reference is the base in both stages
    log_ratio = torch.stack([tokens.sum() for tokens in per_token.split(batch.lengths)]).cpu().view_as(attempts.rewards)
    run.log(**{f"kl@t{turn}": values.mean() for turn, values in enumerate(log_ratio, 1)})
    advantage = leave_one_out(objective(attempts.rewards, log_ratio, config))
    conversations = attempts.rewards[0].numel()
    batch.fields["weight"] = batch.spread(advantage.flatten() / conversations)
    run.update(batch, nll)  # -A log pi; one step on samples of this very policy: no ratio, nothing to clip


def score(run: Run, config: Config) -> None:
    """Stage I, then stage II from where it ended."""
    second_stage = round(config.stage_one * config.iterations)
    for step in run.steps(config.iterations):
        if step == second_stage:
            run.trainer.new_optimizer()
        attempts = rollout(run, run.next_problems(config.prompts), config.samples)
        reinforce(run, attempts, stage_one_returns if step < second_stage else stage_two_returns, config)


def no_stage_one(run: Run, config: Config) -> None:
    """Stage II from the start, for as many steps."""
    score(run, replace(config, stage_one=0.0))


def no_bonus(run: Run, config: Config) -> None:
    """Both stages without the progress bonus."""
    score(run, replace(config, alpha=0.0))


def multi_turn_rl(run: Run, config: Config) -> None:
    """Equation 4 from the start and without the bonus: each attempt is rewarded for its own answer."""
    score(run, replace(config, stage_one=0.0, alpha=0.0))


def second_attempt_rl(run: Run, config: Config) -> None:
    """Only the second attempt is rewarded and the first is free to follow: the collapse in the paper's figure 5."""
    score(run, replace(config, stage_one=1.0, beta2=0.0))


def single_turn_rl(run: Run, config: Config) -> None:
    """RLOO on the first attempt; twice the samples, since no second attempt is drawn."""
    for _ in run.steps(config.iterations):
        attempts = rollout(run, run.next_problems(config.prompts), 2 * config.samples, turns=1)
        reinforce(run, attempts, own_returns, config)


# --- fine-tuning on corrections ---------------------------------------------------------------------------------------


def star_traces(attempts: Attempts, keep_right: bool) -> list[Trace]:
    """The second turns that are right, after a wrong first attempt or (``keep_right``) any."""
    first, second = attempts.rewards
    kept = (second > 0) & (keep_right | (first == 0))
    chosen = [attempts.completions[1][i][k] for i, k in kept.nonzero().tolist()]
    return [(list(c.prompt), list(c.ids)) for c in chosen]


def wrong_right_pairs(
    solutions: list[Completion], rewards: list[float], rng: torch.Generator
) -> list[tuple[Completion, Completion]]:
    """Wrong samples of one problem, each with another right one, as many as there are of both."""
    order = torch.randperm(len(solutions), generator=rng).tolist()
    wrong, right = ([solutions[i] for i in order if bool(rewards[i]) is kind] for kind in (False, True))
    return list(zip(wrong, right, strict=False))


def fine_tune(run: Run, config: Config) -> None:
    """One step of cross-entropy on some of the traces collected so far; only second attempts carry a loss."""
    traces = run.state["traces"]
    if not traces:
        return
    chosen = torch.randperm(len(traces), generator=run.rng)[: config.sft_batch].tolist()
    batch = Batch([traces[i] for i in chosen])
    batch.fields["weight"] = token_mean(batch)
    run.update(batch, nll)


def star(run: Run, config: Config) -> None:
    """Rounds of sampling conversations, keeping those that end right, and fine-tuning the base on them.

    All rounds together see each problem once. As each round begins at the base, it gets all the optimiser steps that
    the other arms have.
    """
    parts = torch.arange(config.iterations).tensor_split(config.rounds)
    schedule = [word for part in parts for word in ["sample"] * len(part) + ["train"] * config.iterations]
    for step in run.steps(len(schedule)):
        turning = step == 0 or schedule[step] != schedule[step - 1]
        if schedule[step] == "sample":
            kept = [] if turning else run.state["traces"]
            attempts = rollout(run, run.next_problems(config.prompts), config.samples)
            run.state["traces"] = kept + star_traces(attempts, config.star_right)
            continue
        if turning:
            run.policy.reset()
            run.trainer.new_optimizer()
        fine_tune(run, config)


def pair_sft(run: Run, config: Config) -> None:
    """Wrong and right solutions of the base, paired as first and second attempt; as many completions as the others."""
    for step in run.steps(2 * config.iterations):
        if step >= config.iterations:
            fine_tune(run, config)
            continue
        attempts = rollout(run, run.next_problems(config.prompts), 2 * config.samples, turns=1)
        (groups,), (rewards,) = attempts.completions, attempts.rewards.tolist()
        traces = [
            (run.policy.encode(prompts.retry(prompts.solve(problem), wrong.text)), list(right.ids))
            for problem, group, r in zip(attempts.problems, groups, rewards, strict=True)
            for wrong, right in wrong_right_pairs(group, r, run.rng)
        ]
        run.state["traces"] = run.state.get("traces", []) + traces


# --- evaluation -------------------------------------------------------------------------------------------------------


def evaluate(run: Run, config: Config) -> Metrics:
    """Two attempts at every held-out problem, greedy as in the paper, and at the temperature of the rollouts."""
    problems = load(config.task, config.eval_split, config.eval_problems, 0, config.data)
    generator = torch.Generator(run.policy.device).manual_seed(10_000 + run.seed)
    greedy = converse(run, problems, 1, 2, temperature=0.0, generator=generator)
    sampled = converse(run, problems, config.eval_samples, 2, generator=generator)
    return turn_metrics(greedy) | {f"{name}, sampled": value for name, value in turn_metrics(sampled).items()}


ARMS = {
    "base": lambda run, config: None,
    "pair_sft": pair_sft,
    "star": star,
    "multi_turn_rl": multi_turn_rl,
    "score": score,
}
LEARNING = ("multi_turn_rl", "score", "no_stage_one", "no_bonus", "second_attempt_rl")


def more_progress(arm: str, published: str, decoding: str = "") -> Claim:
    """SCoRe gains more between the attempts than another arm, greedy or ", sampled" at temperature 1."""
    text = f"SCoRe's gain between the attempts is above that of {arm}{decoding}"
    name = f"delta_over_{arm}{decoding.replace(', ', '_')}"
    return Claim(name, text, ("score", f"delta{decoding}"), (arm, f"delta{decoding}"), published=published)


PAPER = Paper(
    slug="score",
    title="SCoRe: Training Language Models to Self-Correct via Reinforcement Learning",
    arxiv="2409.12917",
    config=Config,
    arms=ARMS,
    extra_arms={
        "no_stage_one": no_stage_one,
        "no_bonus": no_bonus,
        "second_attempt_rl": second_attempt_rl,
        "single_turn_rl": single_turn_rl,
    },
    claims=(
        more_progress("base", "+4.4 against -11.2"),
        more_progress("star", "+4.4 against +0.4"),
        more_progress("pair_sft", "+4.4 against +1.8"),
        more_progress("multi_turn_rl", "attempts couple (5.2)"),
        more_progress("multi_turn_rl", "not printed", ", sampled"),
        Claim(
            "gain",
            "SCoRe's second attempt is above its first",
            ("score", "acc@t2"),
            ("score", "acc@t1"),
            published="+4.4",
        ),
        Claim(
            "second_attempt",
            "SCoRe's second attempt is above that of multi_turn_rl",
            ("score", "acc@t2"),
            ("multi_turn_rl", "acc@t2"),
            published="not printed",
        ),
        Claim(
            "fewer_broken",
            "The base breaks more right answers than SCoRe does",
            ("base", "c_to_i"),
            ("score", "c_to_i"),
            published="15.8 against 1.4",
        ),
        Claim(
            "still_changes",
            "SCoRe changes more answers than multi_turn_rl, sampled",
            ("score", "changed, sampled"),
            ("multi_turn_rl", "changed, sampled"),
            published="attempts couple (5.2)",
        ),
        more_progress("no_stage_one", "+4.4 against +2.2"),
        more_progress("no_bonus", "+4.4 against +2.6"),
        more_progress("second_attempt_rl", "it collapses (figure 5)"),
        more_progress("single_turn_rl", "+4.4 against -2.4"),
    ),
    columns=(*CORRECTION, "CL", "CS", "RSS", "delta, sampled", "changed, sampled"),
    published={
        "base": "52.6 -> 41.4",
        "pair_sft": "52.4 -> 54.2",
        "star": "53.6 -> 54.0",
        "score": "60.0 -> 64.4",
        "no_stage_one": "59.2 -> 61.4",
        "no_bonus": "60.0 -> 62.6",
        "single_turn_rl": "61.8 -> 59.4",
    },
    published_setting="Gemini 1.5 Flash, MATH500, greedy, accuracy at turns 1 and 2",
    evaluate=evaluate,
    curves=("acc@t1", "acc@t2", "changed"),
    panels=(
        Panel("accuracy, greedy", ("acc@t1", "acc@t2"), "turns"),
        Panel("gain between the attempts (training)", ("delta",), arms=LEARNING),
        Panel("answers changed (training)", ("changed",), arms=LEARNING),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
