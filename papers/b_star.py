"""B-STaR: Monitoring and Balancing Exploration and Exploitation in Self-Taught Reasoners. Weihao Zeng, Yuzhen Huang,
Lulu Zhao, Yijun Wang, Zifei Shan, Junxian He, arXiv 2412.17256, ICLR 2025.

Idea. What self-training can still gain depends on exploration (does the policy find several right solutions?) and
exploitation (does the reward tell them from wrong ones?), and both move. The balance score measures them together:
enough right solutions per problem, few wrong ones among those selected. In every round B-STaR takes the sampling
temperature and the reward threshold that score highest on a part of the problems.

Reproduced. ReST-EM (from the base each time), online RFT at temperatures 1 and 0.6, and B-STaR, with both monitors in
every round. By name: star (one solution a problem, from the base each time), the grid's other temperature,
online_rft_process (the combined reward at tau = 0) and b_star_temperature (answers only: tau is inert, T adapts).

How this differs from the paper and why.
- Process reward: the kit's base as verifier, 2 P(Yes) - 1 for the whole solution, in place of a trained model's minimum
  over steps. It stays within [-1, 1], so that no wrong answer outranks a right one.
- No supervised warm-up: the presets' models answer in the form that is asked for, and write more than one solution.
- The search is paid for: all arms draw the protocol's completions, those without a search more per problem.
- Solutions without an answer are dropped, as in the code; those which go on after it too (ours).
- New problems in each round, no reference solutions in the pool, a fixed cap per problem; STaR has no hints, which
  would bring in references that no other arm sees.
- STaR and ReST-EM make as many updates in each round, from the base, as the online arms in all of theirs together.
- Between settings that score alike the last round's temperature is kept.

Commands.
    repro run b_star                               # tiny model, seed 0; --seeds 5: with intervals
    repro run b_star --preset gpu                  # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from repro import BASE, Arm, Batch, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, number, script_main, share
from repro.config import ConfigError
from repro.methods.judge import judged
from repro.methods.sft import draws, nll
from repro.model.sampling import Completion
from repro.model.training import cosine
from repro.tasks import prompts


@dataclass(frozen=True)
class Config(RunConfig):
    """B-STaR's hyperparameters."""

    rounds: int = 4
    """Rounds of sampling and training, which share the protocol's completions (paper: 9)."""
    temperatures: tuple[float, ...] = (0.6, 1.0, 1.4)
    """Grid of sampling temperatures (paper: 0.5 to 1.2 in steps of 0.1). Fixed settings are arms of their own."""
    thresholds: tuple[float, ...] = (-0.2, -0.1, 0.0, 0.1, 0.2, 0.8, 0.9, 1.0, 1.1)
    """Grid of reward thresholds tau; it needs no sampling. Between 0.2 and 0.8 there is nothing to separate."""
    dev_problems: int = 8
    """Problems of each round on which the setting is chosen (paper: about 600 of 11,500)."""
    n_star: int = 1
    """Wanted number of distinct right solutions per problem (code: 8 of 64 samples; like M/N, about 1 here)."""
    per_problem: int = 6
    """At most so many solutions of a problem are kept (paper: the cap that makes 67,500 of 11,500 problems, 5.9)."""
    updates: int = 15
    """Optimiser steps per round (paper: 500); those of all rounds for arms whose last round alone counts (ours)."""
    batch_size: int = 16
    """Solutions per optimiser step (paper: 128)."""
    final_rate: float = 0.05
    """Learning rate at the end of the cosine, as a share (code: 2e-7 of 4.12e-6)."""

    PRESETS = {  # noqa: RUF012
        "tiny": {"learning_rate": 2e-3},  # from validation problems
        "smol": {"dev_problems": 8, "n_star": 2, "updates": 8},
        "small": {"dev_problems": 4, "n_star": 2, "updates": 32},
        "gpu": {"rounds": 6, "n_star": 4, "dev_problems": 16, "updates": 30},
    }


def combined_reward(right: torch.Tensor, process: torch.Tensor) -> torch.Tensor:
    """r(x, y) = 1[right] + process / 5, any shape; float64, as 1 / 5 in float32 is above a threshold of 0.2."""
    return right.double() + process.double() / 5


def select(texts: list[str], rewards: list[float], threshold: float, cap: int) -> list[int]:
    """One problem's samples with r > tau, best first, at most ``cap`` distinct ones (code: duplicates count)."""
    best = sorted((i for i, r in enumerate(rewards) if r > threshold), key=lambda i: -rewards[i])
    first = {texts[i]: i for i in reversed(best)}  # sorting is stable: the first of equals stays
    return [i for i in best if first[texts[i]] == i][:cap]


def balance_score(selected: int, right: int, n_star: int) -> float:
    """bs_i = min(n'/n*, 1) n'/n; 0 where nothing is selected, or a high tau would gain by emptying hard problems."""
    return min(right / n_star, 1.0) * right / selected if selected else 0.0


@dataclass
class Pool(Rollouts):
    """Rollouts with the reward r of each sample as ``score`` [problems, samples]; what isn't complete has -inf."""

    score: torch.Tensor

    def selected(self, threshold: float, cap: int) -> list[list[int]]:
        """The chosen samples of each problem."""
        rewards = self.score.tolist()
        return [select([c.text for c in g], r, threshold, cap) for g, r in zip(self.completions, rewards, strict=True)]

    def balance(self, threshold: float, config: Config) -> float:
        """Mean balance score over all problems."""
        rows = self.selected(threshold, config.per_problem)
        counts = ((len(chosen), int(r[chosen].sum())) for r, chosen in zip(self.rewards, rows, strict=True))
        return sum(balance_score(n, right, config.n_star) for n, right in counts) / len(rows)


def complete(completion: Completion) -> bool:
    """Does the solution end with its first final answer? The code drops what has none; what goes on after it: ours."""
    text = completion.text.rstrip()
    return not completion.truncated and text.count("\\boxed{") == 1 and text.endswith("}")


def process_reward(run: Run, rollouts: Rollouts) -> torch.Tensor:
    """2 P(Yes) - 1 of the base as a verifier of whole solutions, [problems, samples]."""
    odds = judged(run, rollouts.problems, [[c.text for c in group] for group in rollouts.completions], adapter=BASE)
    return torch.tanh(odds / 2)  # 2 sigmoid(x) - 1


def draw(run: Run, problems: list, samples: int, temperature: float, process: bool) -> Pool:
    """Sample and reward; without ``process`` the reward is the answer alone."""
    completions = run.sample([prompts.solve(p) for p in problems], samples, temperature)
    ends = torch.tensor([[complete(c) for c in group] for group in completions])
    rollouts = Rollouts(problems, completions, run.rewards(problems, completions) * ends)
    run.log(complete=ends.float().mean())
    score = combined_reward(rollouts.rewards, process_reward(run, rollouts)) if process else rollouts.rewards
    return Pool(problems, completions, rollouts.rewards, score.masked_fill(~ends, -torch.inf))


def explored(completions: list[Completion], right: list[float]) -> dict[str, float]:
    """Exploration on one problem's K samples; pass@K-S: at least S distinct right ones."""
    distinct = len({c.text for c, r in zip(completions, right, strict=True) if r})
    steps = [line for c in completions for line in prompts.split_steps(c.text)]
    found = {"pass@K": distinct >= 1, "pass@K-2": distinct >= 2, "distinct right": distinct}
    found["repeated steps"] = 1 - len(set(steps)) / len(steps) if steps else 0.0
    return {name: float(value) for name, value in found.items()}


def monitor(run: Run, config: Config, pool: Pool, temperature: float, threshold: float) -> None:
    """Log both monitors on the first K samples of each problem: arms that draw more must not look more diverse."""
    k, some = config.samples, config.dev_problems
    first = Pool(pool.problems, [g[:k] for g in pool.completions], pool.rewards[:, :k], pool.score[:, :k])
    for group, right in zip(first.completions, first.rewards.tolist(), strict=True):
        run.log(reward=sum(right) / k, **explored(group, right))
    score = process_reward(run, first.select(range(some)))  # without the answer: with it, Best-of-K would be pass@K
    best = score.masked_fill(first.score[:some] == -torch.inf, -torch.inf).argsort(1, descending=True)
    ranked = first.rewards[:some].gather(1, best)
    run.log(**{"best-of-K": ranked[:, 0].mean(), "reward@K-K/2": ranked[:, : (k + 1) // 2].mean()})
    run.log(balance=first.balance(threshold, config), temperature=temperature, threshold=threshold)


def improve(run: Run, config: Config, pool: Pool, threshold: float, step: int, restart: bool, cap: int) -> None:
    """Fine-tune on what is selected: on with policy, optimiser and schedule ("online"), or from the base."""
    rows = pool.selected(threshold, cap)
    solutions = [(g[i].prompt, g[i].ids) for g, chosen in zip(pool.completions, rows, strict=True) for i in chosen]
    run.log(data=len(solutions))
    updates, done, total = config.updates, step * config.updates, config.rounds * config.updates
    if restart:  # else no new warm-up or schedule, which would make it iterative RFT
        run.policy.reset()
        run.trainer.new_optimizer(config.learning_rate)
        updates, done = total, 0
    for update, chosen in enumerate(draws(len(solutions), updates, config.batch_size, run.rng)):
        run.trainer.learning_rate = config.learning_rate * cosine(done + update, total, config.final_rate)
        run.update(Batch([solutions[i] for i in chosen]), nll)


# --- the arms -------------------------------------------------------------------------------------------------------


def shape(config: Config) -> tuple[int, int]:
    """Problems of a round and, without a search, samples of each. Raises ConfigError if the search leaves nothing."""
    completions = config.steps * config.prompts * config.samples // config.rounds
    problems = completions // config.samples - config.dev_problems * (len(config.temperatures) - 1)
    if problems <= config.dev_problems:
        most = (completions // config.samples - 1) // len(config.temperatures)
        raise ConfigError(f"--dev-problems {config.dev_problems}: at most {most} leave completions to train on")
    return problems, completions // problems


def choose(pools: dict[float, Pool], config: Config, last: float) -> tuple[float, float, dict[float, float]]:
    """Temperature and threshold with the best mean balance score, and the best score of each temperature.

    ``last``: the temperature that is kept where others score no better.
    """
    table = {(t, tau): pool.balance(tau, config) for t, pool in pools.items() for tau in config.thresholds}
    temperature, threshold = max(table, key=lambda setting: (table[setting], setting[0] == last))
    return temperature, threshold, {t: max(table[t, tau] for tau in config.thresholds) for t in pools}


def b_star(run: Run, config: Config, process: bool = True, fixed: float = 0.0, restart: bool = False, cap: int = 0):
    """Section 3: choose the setting on a part of the problems, sample the others, improve.

    ``fixed``: this temperature throughout, and tau = 0, which keeps what is right when the answer alone is rewarded.
    """
    count, samples = shape(config)
    for step in run.stage("train", config.rounds):
        problems, temperature, threshold = run.next_problems(count), fixed, 0.0
        if fixed:
            pool = draw(run, problems, samples, fixed, process)
        else:
            dev, others = problems[: config.dev_problems], problems[config.dev_problems :]
            pools = {t: draw(run, dev, config.samples, t, process) for t in config.temperatures}
            temperature, threshold, curve = choose(pools, config, run.kept.get("temperature", 0.0))
            run.kept["temperature"] = temperature
            run.log(**{f"balance at T={t}": score for t, score in curve.items()})
            a, b = pools[temperature], draw(run, others, config.samples, temperature, process)
            right, score = torch.cat([a.rewards, b.rewards]), torch.cat([a.score, b.score])
            pool = Pool(problems, a.completions + b.completions, right, score)
        monitor(run, config, pool, temperature, threshold)
        improve(run, config, pool, threshold, step, restart, cap or config.per_problem)


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """Exploration on the samples of the evaluation (temperature 1); first and last values of the course."""
    pairs = zip(rollouts.completions, rollouts.rewards.tolist(), strict=True)
    rows = [explored(g, [r * complete(c) for c, r in zip(g, right, strict=True)]) for g, right in pairs]
    metrics = {"pass@K-2": share([r["pass@K-2"] for r in rows])}
    metrics["distinct right"] = number([r["distinct right"] for r in rows])
    metrics["repeated steps"] = share([r["repeated steps"] for r in rows])
    for name in ("temperature", "threshold", "balance", "repeated steps"):
        course = [row[name] for row in run.history if name in row]
        metrics |= {f"{when} {name}": number(course[i]) for when, i in (("first", 0), ("last", -1)) if course}
    return metrics


online = partial(b_star, process=False, fixed=1.0)
over = partial(Claim.over, "b_star")
COURSE = ("online_rft", "online_rft_t0.6", "b_star")
RISES = (  # from the first round to the last
    ("temperature_rises", "The chosen temperature rises", "b_star", "temperature", "0.5 to 1.1"),
    ("balance_rises", "The balance score rises", "b_star", "balance", "0.470 to 0.679"),
    ("fixed_narrows", "At T = 1 steps repeat ever more", "online_rft", "repeated steps", "they do"),
)

PAPER = Paper(
    slug="b_star",
    title="B-STaR: Monitoring and Balancing Exploration and Exploitation in Self-Taught Reasoners",
    arxiv="2412.17256",
    family="self-training",
    config=Config,
    arms={
        "rest_em": partial(online, restart=True),
        "online_rft": online,
        "online_rft_t0.6": partial(online, fixed=0.6),
        "b_star": b_star,
        "star": Arm(partial(online, restart=True, cap=1), by_name=True),
        "online_rft_t1.4": Arm(partial(online, fixed=1.4), by_name=True),
        "online_rft_process": Arm(partial(online, process=True), by_name=True),
        "b_star_temperature": Arm(partial(b_star, process=False), by_name=True),
    },
    claims=(
        over("online_rft", "greedy", published="+7.0 GSM8K, +4.6 MATH", primary=True),
        over("online_rft_t0.6", "greedy"),
        over("rest_em", "greedy", published="+7.5 GSM8K, +3.6 MATH"),
        over("base", "greedy", published="+17.2 GSM8K, +10.8 MATH"),
        over("online_rft", "training pass@K", text="B-STaR's training samples solve more problems"),
        over("online_rft", "training distinct right", text="B-STaR's samples have more distinct right solutions"),
        over("online_rft", "pass@K-2", text="B-STaR ends solving more in two ways", published="+4.5, +3.0 (P@32-4)"),
        Claim.over("online_rft", "b_star", "training repeated steps", text="online_rft repeats more steps"),
        *(Claim(n, text, (arm, f"last {m}"), (arm, f"first {m}"), published=p) for n, text, arm, m, p in RISES),
    ),
    published={"base": "36.6", "rest_em": "46.3", "online_rft": "46.8", "b_star": "53.8"},
    published_setting="Mistral-7B trained on MATH, GSM8K greedy accuracy (base: after SFT)",
    measure=measure,
    columns=("greedy", "accuracy", "pass@8", "pass@K-2", "distinct right", "entropy"),
    curves=("reward", "pass@K", "distinct right", "repeated steps", "reward@K-K/2", "balance", "temperature"),
    panels=(
        Panel("exploration: pass@K of the samples", ("pass@K",), arms=COURSE),
        Panel("exploration: distinct right solutions", ("distinct right",), arms=COURSE),
        Panel("exploitation: reward@K-K/2", ("reward@K-K/2",), arms=COURSE),
        Panel("exploration: repeated steps", ("repeated steps",), arms=COURSE),
        Panel("chosen setting", ("temperature", "threshold"), arms=("b_star",)),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
