"""B-STaR: Monitoring and Balancing Exploration and Exploitation in Self-Taught Reasoners. Weihao Zeng, Yuzhen Huang,
Lulu Zhao, Yijun Wang, Zifei Shan, Junxian He, arXiv 2412.17256, ICLR 2025.

Idea. Self-training samples solutions, keeps the good ones, trains on them, and begins again. What it can still gain
depends on exploration (does the policy find several different right solutions?) and exploitation (does the reward tell
them from wrong ones?), and both move while the policy trains. The balance score measures them together: enough right
solutions per problem, and few wrong ones among those selected. In every iteration B-STaR takes the sampling temperature
and the reward threshold with the highest score on a small part of the problems.

Reproduced. base, STaR (one solution per problem, from the base each time), ReST-EM (all, from the base each time),
online RFT at every temperature of the grid, and B-STaR, with both monitors in every iteration. By name:
online_rft_process (the combined reward at tau = 0) and b_star_temperature (answers only: tau is inert, T adapts).

How this differs from the paper and why.
- Process reward: the base itself as verifier, 2 P(Yes) - 1 for the whole solution (AUROC 76), in place of a trained
  model's minimum over steps. It stays within [-1, 1], so that no wrong answer outranks a right one.
- The base is a short supervised warm-up of the built-in model, as the paper starts from one, on its own samples in two
  orders of a+b and a*b: it writes a right solution in one way only otherwise, and there would be nothing to explore.
- The search is paid for. The other arms draw as many completions in all, more per problem (equal_samples).
- New problems in each iteration, no reference solutions in the pool, a fixed cap per problem; STaR has no hints, since
  they would bring in references that no other arm sees.
- STaR and ReST-EM make 48 updates from the base in each iteration, the online arms 24 that add up.

Commands.
    repro run b_star                               # tiny model, seed 0
    repro run b_star --seeds 5                     # with intervals over seeds
    repro run b_star --preset gpu                  # Qwen2.5-1.5B-Instruct in NF4 on GSM8K

Expected (tiny): 6 to 9 minutes of one core for a seed, 1.5 GB a process; base 34 % greedy, online RFT 73 % at T = 1,
74 % at 0.6, 52 % at 1.4, B-STaR 76 % (results/b_star).

What was found. B-STaR is the best arm on average, but only its lead over T = 1.4 and over ReST-EM is beyond doubt: over
T = 1.0 it is +2.6 points [-2.8, +8.5], over T = 0.6 +1.6 [-3.6, +6.5], with 8 samples per problem to train on and not
12. Its samples solve more problems than those of T = 1, as many as those of T = 0.6: the noisy base needs a low
temperature. The search sees that. It takes 0.6 first with every seed, then 0.92 on average; at the end it is 0.68,
since the scores of 0.6 and 1.0 are (nearly) equal on 16 problems by then and ties go to the lower one. (ReST-EM's last
policy is 48 updates from the base, B-STaR's 120: part of that lead may be updates, not balance.)
- The threshold does one thing: 0.2 is the lowest that no wrong answer passes, and the search finds it 24 times of 25.
  Then n' = n, and with n* = 1 the balance score is pass@K. With n* = 2 (validation, one seed, other settings too) the
  search was lured to high temperatures early, and B-STaR ended below online RFT (61 and 72 %).
- Pass@K doesn't fall with a fixed setting, it rises with accuracy. What narrows at T = 1 is the variety of equations:
  the share that repeats another one goes from 36 to 69 %. B-STaR narrows it more (60 to 79 %): many different equations
  of the noisy base are wrong ones. So it explores more in terms of problems solved, and less in terms of diversity.
- pass@K-2 after training counts texts, and a solution that is written twice passes for a second way; arms that restart
  have more of those. The monitors leave them out, and so does training: trained on, they take over.
- n*, the number of problems and that of development problems were chosen for B-STaR on validation problems (one seed);
  the fixed settings had no such choice. The claim on the variety of equations was added after the results.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from repro import Claim, Panel, Paper, Run, RunConfig, script_main
from repro.evaluation import evaluate
from repro.launch.storage import write_atomically
from repro.methods.sft import batches, nll
from repro.model.sampling import Completion
from repro.model.training import Batch, cosine
from repro.paper import Metrics
from repro.tasks import prompts
from repro.tasks.loading import load
from repro.tasks.problem import Problem


@dataclass(frozen=True)
class Config(RunConfig):
    """B-STaR's hyperparameters."""

    iterations: int = 5
    """Self-training iterations (paper: 9)."""
    prompts: int = 64
    """Problems per iteration (paper: all 11,500 again each time; ours are new ones)."""
    temperatures: tuple[float, ...] = (0.6, 1.0, 1.4)
    """Grid of sampling temperatures (paper: 0.5 to 1.2 in steps of 0.1). Fixed settings are arms of their own."""
    thresholds: tuple[float, ...] = (-0.2, -0.1, 0.0, 0.1, 0.2, 0.8, 0.9, 1.0, 1.1)
    """Grid of reward thresholds tau; it needs no sampling. Between 0.2 and 0.8 there is nothing to separate."""
    dev_problems: int = 16
    """Problems of each iteration on which the setting is chosen (paper: about 600 of 11,500)."""
    n_star: int = 1
    """Wanted number of distinct right solutions per problem (code: 8 of 64 samples; like M/N, about 1 here)."""
    per_problem: int = 6
    """At most so many solutions of a problem are kept (paper: the cap that makes 67,500 of 11,500 problems, 5.9)."""
    updates: int = 24
    """Optimiser steps per iteration (paper: 500)."""
    restart_updates: int = 48
    """The same for arms that start from the base in every iteration (ours: only the last iteration's count)."""
    batch_size: int = 16
    """Solutions per optimiser step (paper: 128)."""
    final_rate: float = 0.05
    """Learning rate at the end of the cosine, as a share (code: 2e-7 of 4.12e-6)."""
    warmup_problems: int = 384
    """Problems of the supervised warm-up that makes the base; 0: none."""
    warmup_updates: int = 40
    """Optimiser steps of the warm-up (paper: one epoch)."""
    commuted: float = 0.5
    """Probability that a commutative step of a warm-up solution is turned round (ours)."""

    PRESETS = {  # noqa: RUF012
        "tiny": {"eval_problems": 256},
        "smol": {"iterations": 3, "prompts": 12, "dev_problems": 3, "n_star": 2, "updates": 8, "warmup_problems": 0},
        "gpu": {"iterations": 6, "prompts": 256, "dev_problems": 64, "n_star": 4, "warmup_problems": 0},
    }


# --- the paper's rewards and its balance score ----------------------------------------------------------------------


def combined_reward(right: torch.Tensor, process: torch.Tensor) -> torch.Tensor:
    """r(x, y) = 1[right] + process / 5, any shape. With process within [-1, 1], right ones are above 0.8."""
    return right + process / 5


def select(texts: Sequence[str], rewards: Sequence[float], threshold: float, cap: int) -> list[int]:
    """One problem's samples with r > tau, best first, without exact duplicates, at most ``cap``.

    The code caps before it drops duplicates; here the cap counts distinct ones.
    """
    chosen: dict[str, int] = {}
    for i in sorted(range(len(texts)), key=lambda i: -rewards[i]):  # stable: the first of equals stays
        if rewards[i] > threshold:
            chosen.setdefault(texts[i], i)
    return list(chosen.values())[:cap]


def balance_score(selected: int, right: int, n_star: int) -> float:
    """bs_i = min(n'/n*, 1) n'/n; 0 where nothing is selected, or a high tau would gain by emptying hard problems."""
    return min(right / n_star, 1.0) * right / selected if selected else 0.0


@dataclass
class Pool:
    """Samples of some problems with ``right`` (1 or 0) and reward ``r``, both [problems, samples]."""

    problems: list[Problem]
    completions: list[list[Completion]]
    right: torch.Tensor
    reward: torch.Tensor

    def selected(self, threshold: float, cap: int) -> list[list[int]]:
        """The chosen samples of each problem."""
        rewards = self.reward.tolist()
        return [select([c.text for c in g], r, threshold, cap) for g, r in zip(self.completions, rewards, strict=True)]

    def balance(self, threshold: float, config: Config) -> float:
        """Mean balance score over all problems."""
        rows = self.selected(threshold, config.per_problem)
        right = [int(r[chosen].sum()) for r, chosen in zip(self.right, rows, strict=True)]
        return sum(balance_score(len(n), k, config.n_star) for n, k in zip(rows, right, strict=True)) / len(rows)


# --- sampling and scoring -------------------------------------------------------------------------------------------


def complete(completion: Completion) -> bool:
    """Does the solution end with its first final answer? What goes on after it is discarded, as in the code."""
    text = completion.text.rstrip()
    return not completion.truncated and text.count("\\boxed{") == 1 and text.endswith("}")


def process_reward(run: Run, problems: Sequence[Problem], completions: Sequence[Sequence[Completion]]) -> torch.Tensor:
    """2 P(Yes) - 1 of the base as a verifier of whole solutions, [problems, samples]; equal texts are read once."""
    yes, no = (run.policy.tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("Yes", "No"))
    texts = list(dict.fromkeys((i, c.text) for i, group in enumerate(completions) for c in group))
    batch = Batch([(run.policy.encode(prompts.verify(problems[i], text)), [yes]) for i, text in texts])
    log_odds = run.values(batch, lambda logits, _: logits[:, yes] - logits[:, no], adapter=None)
    score = dict(zip(texts, torch.tanh(log_odds / 2).tolist(), strict=True))  # 2 sigmoid(x) - 1 = tanh(x / 2)
    return torch.tensor([[score[i, c.text] for c in group] for i, group in enumerate(completions)])


def draw(run: Run, problems: list[Problem], samples: int, temperature: float, process: bool) -> Pool:
    """Sample and reward; without ``process`` the reward is the answer alone."""
    completions = run.sample([prompts.solve(p) for p in problems], samples, temperature)
    ends = torch.tensor([[float(complete(c)) for c in group] for group in completions])
    right = run.rewards(problems, completions) * ends
    run.log(complete=ends.mean())
    reward = combined_reward(right, process_reward(run, problems, completions)) if process else right
    return Pool(problems, completions, right, reward)


def explored(completions: Sequence[Completion], right: Sequence[float]) -> dict[str, float]:
    """Exploration on one problem's K samples: pass@K-S is "at least S distinct right solutions"."""
    distinct = len({c.text for c, r in zip(completions, right, strict=True) if r})
    equations = [line for c in completions for line in c.text.split("\n") if "=" in line]
    return {
        "pass@K": float(distinct >= 1),
        "pass@K-2": float(distinct >= 2),
        "distinct right": float(distinct),
        "repeated equations": 1 - len(set(equations)) / max(1, len(equations)),
    }


def monitor(run: Run, config: Config, pool: Pool, temperature: float, threshold: float) -> None:
    """Log both monitors on the first K samples of each problem: arms that draw more must not look more diverse."""
    k = config.samples
    for group, right in zip(pool.completions, pool.right[:, :k].tolist(), strict=True):
        run.log(reward=sum(right) / k, **explored(group[:k], right))
    some = config.dev_problems
    score = process_reward(run, pool.problems[:some], [g[:k] for g in pool.completions[:some]])
    best = score.argsort(1, descending=True)  # the process reward alone: with the answer, Best-of-K would be pass@K
    ranked = pool.right[:some, :k].gather(1, best)
    run.log(**{"best-of-K": ranked[:, 0].mean(), "reward@K-K/2": ranked[:, : (k + 1) // 2].mean()})
    first = Pool(pool.problems, [g[:k] for g in pool.completions], pool.right[:, :k], pool.reward[:, :k])
    run.log(balance=first.balance(threshold, config), temperature=temperature, threshold=threshold)


# --- training -------------------------------------------------------------------------------------------------------


def turned_round(step: str) -> str:
    """``a+b=c`` as ``b+a=c`` and ``a*b=c`` as ``b*a=c``; other steps stay as they are."""
    found = re.fullmatch(r"(\d+(?:/\d+)?)([+*])(\d+(?:/\d+)?)=(.*)", step)
    return f"{found[3]}{found[2]}{found[1]}={found[4]}" if found else step


def base(run: Run, config: Config) -> None:
    """The warmed-up policy, the same for every arm of a seed; after an interruption the checkpoint has a later one."""
    if run.step == 0:
        to_base(run, config)


def to_base(run: Run, config: Config) -> None:
    """Back to the base with a fresh optimiser. The arm that comes first makes the base, the others read its file."""
    file = run.folder.parent / f"warmup-seed{run.seed}.pt"
    run.policy.reset()
    if config.warmup_problems:
        if not file.exists():
            warm_up(run, config)
            write_atomically(file, lambda f: torch.save(run.policy.adapter_state(), f))
        run.policy.load_adapter_state(torch.load(file, weights_only=True))
    run.trainer.new_optimizer(config.learning_rate)


def warm_up(run: Run, config: Config) -> None:
    """The paper's supervised checkpoint: on own samples, right or wrong, each in several forms.

    The built-in model writes the right solution of a problem in one way only: there would be nothing to explore. Wrong
    samples stay in, or the warm-up would take away what the arms are to learn. It isn't part of their budget.
    """
    rng = torch.Generator().manual_seed(run.seed)  # the arms' own generators stay as they are
    generator = torch.Generator(run.policy.device).manual_seed(run.seed)
    problems = load(config.task, "train", config.warmup_problems, 1_000 + run.seed, config.data)
    with run.off_budget():
        sampled = run.sample([prompts.solve(p) for p in problems], 1, 1.0, generator=generator)
    solutions = []
    for completion in (c for group in sampled for c in group if complete(c)):
        for _ in range(4):
            turn = torch.rand(completion.text.count("\n") + 1, generator=rng) < config.commuted
            steps = [turned_round(s) if t else s for s, t in zip(completion.text.split("\n"), turn, strict=True)]
            ids = run.policy.tokenizer("\n".join(steps), add_special_tokens=False).input_ids
            solutions.append((completion.prompt, [*ids, run.policy.tokenizer.eos_token_id]))
    run.trainer.new_optimizer(config.learning_rate)
    for update, batch in enumerate(batches(solutions, config.warmup_updates, config.batch_size, rng)):
        run.trainer.learning_rate = config.learning_rate * cosine(update, config.warmup_updates, config.final_rate)
        run.trainer.step(batch, nll)


def improve(run: Run, config: Config, pool: Pool, threshold: float, step: int, restart: bool, cap: int) -> None:
    """Fine-tune on what is selected: on with policy, optimiser and schedule ("online"), or from the base."""
    rows = pool.selected(threshold, cap)
    solutions = [(g[i].prompt, g[i].ids) for g, chosen in zip(pool.completions, rows, strict=True) for i in chosen]
    run.log(data=len(solutions))
    if restart:
        to_base(run, config)
        updates, done, total = config.restart_updates, 0, config.restart_updates
    else:  # a new warm-up or schedule here would make it iterative RFT
        updates, done, total = config.updates, step * config.updates, config.iterations * config.updates
    for update, batch in enumerate(batches(solutions, updates, config.batch_size, run.rng)):
        run.trainer.learning_rate = config.learning_rate * cosine(done + update, total, config.final_rate)
        run.update(batch, nll)


# --- the arms -------------------------------------------------------------------------------------------------------


def equal_samples(config: Config) -> int:
    """Completions per problem that cost a fixed setting as much as B-STaR's search and sampling together."""
    search = config.dev_problems * (len(config.temperatures) - 1) * config.samples
    return config.samples + round(search / config.prompts)


def fixed(
    run: Run, config: Config, temperature: float = 1.0, process: bool = False, restart: bool = False, cap: int = 0
) -> None:
    """The loop with one temperature and tau = 0 throughout: with the answer alone, that keeps what is right."""
    base(run, config)
    for step in run.steps(config.iterations):
        pool = draw(run, run.next_problems(config.prompts), equal_samples(config), temperature, process)
        monitor(run, config, pool, temperature, 0.0)
        improve(run, config, pool, 0.0, step, restart, cap or config.per_problem)


def choose(pools: dict[float, Pool], config: Config) -> tuple[float, float, dict[float, float]]:
    """Temperature and threshold with the best mean balance score, and the best score of each temperature."""
    table = {(t, tau): pool.balance(tau, config) for t, pool in pools.items() for tau in config.thresholds}
    temperature, threshold = max(table, key=table.__getitem__)
    return temperature, threshold, {t: max(table[t, tau] for tau in config.thresholds) for t in pools}


def b_star(run: Run, config: Config, process: bool = True) -> None:
    """Section 3 of the paper: choose the setting on a part of the problems, sample the others, improve."""
    base(run, config)
    for step in run.steps(config.iterations):
        problems = run.next_problems(config.prompts)
        dev, others = problems[: config.dev_problems], problems[config.dev_problems :]
        pools = {t: draw(run, dev, config.samples, t, process) for t in config.temperatures}
        temperature, threshold, curve = choose(pools, config)
        run.log(**{f"balance at T={t}": score for t, score in curve.items()})
        a, b = pools[temperature], draw(run, others, config.samples, temperature, process)
        right, reward = torch.cat([a.right, b.right]), torch.cat([a.reward, b.reward])
        pool = Pool(problems, a.completions + b.completions, right, reward)
        monitor(run, config, pool, temperature, threshold)
        improve(run, config, pool, threshold, step, False, config.per_problem)


def evaluation(run: Run, config: Config) -> Metrics:
    """The usual metrics with exploration on the same samples (temperature 1); first and last values of the course."""

    def exploration(completions: list[list[Completion]], right: torch.Tensor) -> Metrics:
        rows = [explored(group, r) for group, r in zip(completions, right.tolist(), strict=True)]
        return {name: [row[name] for row in rows] for name in rows[0]}

    metrics = evaluate(run, config, exploration)
    for name in ("temperature", "threshold", "balance", "repeated equations") if run.history else ():
        metrics[f"first {name}"], metrics[f"last {name}"] = run.history[0][name], run.history[-1][name]
    return metrics


FIXED = {f"online_rft_t{t}": partial(fixed, temperature=t) for t in Config.temperatures if t != 1.0}
ARMS = {
    "base": base,
    "star": partial(fixed, restart=True, cap=1),
    "rest_em": partial(fixed, restart=True),
    "online_rft": fixed,
    **FIXED,
    "b_star": b_star,
}
COURSE = ("online_rft", *FIXED, "b_star")


def ends_above(arm: str, published: str = "") -> Claim:
    text = f"B-STaR's greedy accuracy ends above {arm}'s at equal samples"
    return Claim(f"b_star_over_{arm}", text, ("b_star", "greedy"), (arm, "greedy"), published=published)


def over_online(name: str, text: str, metric: str, published: str = "") -> Claim:
    return Claim(name, f"{text} than online_rft", ("b_star", metric), ("online_rft", metric), published=published)


def change(name: str, text: str, arm: str, metric: str, published: str) -> Claim:
    """From the first iteration to the last."""
    return Claim(name, text, (arm, f"last {metric}"), (arm, f"first {metric}"), published=published)


PAPER = Paper(
    slug="b_star",
    title="B-STaR: Monitoring and Balancing Exploration and Exploitation in Self-Taught Reasoners",
    arxiv="2412.17256",
    config=Config,
    arms=ARMS,
    extra_arms={
        "online_rft_process": partial(fixed, process=True),
        "b_star_temperature": partial(b_star, process=False),
    },
    claims=(
        ends_above("online_rft", "+7.0 GSM8K, +4.6 MATH"),
        *map(ends_above, FIXED),
        ends_above("rest_em", "+7.5 GSM8K, +3.6 MATH"),
        over_online("more_coverage", "While training it solves more problems", "training pass@K"),
        over_online("more_distinct", "While training it finds more distinct solutions", "training distinct right"),
        over_online("more_ways", "At the end it solves more in two ways", "pass@K-2", "+4.5, +3.0 (P@32-4)"),
        Claim(
            "more_variety",
            "While training its samples repeat fewer equations than online_rft's",
            ("online_rft", "training repeated equations"),
            ("b_star", "training repeated equations"),
        ),
        change("temperature_rises", "The chosen temperature rises", "b_star", "temperature", "0.5 to 1.1"),
        change("balance_rises", "The balance score rises", "b_star", "balance", "0.470 to 0.679"),
        change(
            "fixed_narrows", "At T = 1 equations repeat more and more", "online_rft", "repeated equations", "they do"
        ),
    ),
    published={"base": "36.6", "rest_em": "46.3", "online_rft": "46.8", "b_star": "53.8"},
    published_setting="Mistral-7B trained on MATH, GSM8K greedy accuracy (base: SFT)",
    evaluate=evaluation,
    columns=("greedy", "accuracy", "pass@K", "pass@K-2", "distinct right", "entropy"),
    curves=(
        *("reward", "pass@K", "pass@K-2", "distinct right", "repeated equations"),
        *("best-of-K", "reward@K-K/2", "balance", "temperature", "threshold"),
    ),
    panels=(
        Panel("exploration: pass@K of the samples", ("pass@K",), arms=COURSE),
        Panel("exploration: distinct right solutions", ("distinct right",), arms=COURSE),
        Panel("exploitation: reward@K-K/2", ("reward@K-K/2",), arms=COURSE),
        Panel("exploration: repeated equations", ("repeated equations",), arms=COURSE),
        Panel("chosen setting", ("temperature", "threshold"), arms=("b_star",)),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
