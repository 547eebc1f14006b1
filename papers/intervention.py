"""InT: Self-Proposed Interventions Enable Credit Assignment in LLM Reasoning. Matthew Y. R. Yang, Hao Bai, Ian Wu,
Gene Yang, Amrith Setlur, Aviral Kumar, arXiv 2601.14209, ICLR 2026.

Idea. On problems that the base never solves RL has no signal. The base itself compares its wrong attempt with the
reference solution, names the first wrong step and writes one step in its place, the intervention. From some it reaches
the right answer: right prefix + intervention is then a fine-tuning target after the bare problem, nothing of what
follows. RL goes on from there with more prompts that have right rollouts.

Reproduced. base; RL (GRPO) on a hard pool, the training problems that the base gets wrong in all samples; the same
after SFT on their reference solutions (sft_reference_rl) and after InT (int, int_rl). Arms with RL sample the
protocol's completions, pool and data included. By name: SFT ablations (int_no_prefix, int_with_suffix, int_no_filter);
sft_terse_rl (last step only).

How this differs from the paper and why.
- Steps are lines, and the location and the new step are asked for in two turns that show the reference; the paper has
  the model solve with the reference first and answer in one tagged object.
- Pool: all of 8 samples wrong (paper: 64 or 128), one attempt and 4 continuations a problem (paper: 4 and 32): all is
  paid for here, and more would leave nothing for RL.
- Leak filter: the answer as a number, or a box; as substrings the short answers here would be in most steps.
- What the base decides (pool, interventions, never-solved problems) is sampled once per seed and charged to each arm.

Commands.
    repro run int                                  # tiny model, seed 0; --seeds 5: with intervals (also: intervention)
    repro run int --preset gpu                     # Qwen2.5-1.5B-Instruct in NF4 on GSM8K
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from repro import BASE, Arm, Batch, Claim, Metric, Panel, Paper, Rollouts, Run, RunConfig, number, script_main, share
from repro.config import ConfigError
from repro.methods.critic import leaks, step_named
from repro.methods.grpo import GRPO, train_grpo
from repro.methods.sft import nll
from repro.tasks import prompts
from repro.tasks.problem import Problem

Target = Literal["intervention", "no_prefix", "with_suffix", "no_filter", "reference", "terse"]


@dataclass(frozen=True)
class Config(RunConfig):
    """InT's hyperparameters."""

    pool_problems: int = 384
    """Training problems among which the base's unsolved ones are looked for (ours)."""
    pool_samples: int = 8
    """A problem is hard if so many samples of the base are all wrong (paper: 64 or 128)."""
    attempts: int = 1
    """Wrong attempts at a hard problem, each with one intervention (code: 4)."""
    continuations: int = 4
    """Continuations of prefix + intervention; one right one is enough to keep it (paper: 32)."""
    sft_steps: int = 24
    """Optimiser steps of fine-tuning (paper: 4 epochs)."""
    sft_batch: int = 16
    """Targets per step (paper: 64)."""
    sft_learning_rate: float = 1e-4
    """Constant after the warm-up (paper: 1e-6, full fine-tuning)."""
    minibatches: int = 2
    """Optimiser steps per rollout step (paper: batch 32, mini-batch 16)."""
    hard_problems: int = 1024
    """Held-out problems among which those that the base never solves are looked for (ours)."""
    hard_samples: int = 64
    """Never solved: so many samples of the base are all wrong (paper: 128)."""

    PRESETS = {  # noqa: RUF012
        "tiny": {"steps": 20, "learning_rate": 2e-3, "sft_learning_rate": 1e-3},  # rates: from validation problems
        "smol": {"pool_problems": 48, "pool_samples": 4, "hard_problems": 40, "hard_samples": 8},
        "small": {"pool_problems": 96, "pool_samples": 4, "hard_problems": 200, "hard_samples": 8},
        "gpu": {"pool_problems": 512, "attempts": 2, "sft_learning_rate": 1e-5},
    }


def intervene(attempt: str, location: int, content: str) -> dict | None:
    """The steps before step ``location`` (from 1), that wrong step, and the one in its place; None beyond the end."""
    steps = prompts.split_steps(attempt)
    if not content or not 1 <= location <= len(steps):
        return None
    return {"prefix": steps[: location - 1], "wrong": steps[location - 1], "content": content, "location": location}


def guided(example: dict) -> str:
    """y_int, prefix + intervention. Steps are lines here (paper: separated by a blank line)."""
    return "\n".join([*example["prefix"], example["content"]])


def target_batch(run: Run, examples: list[dict], kind: Target) -> Batch:
    """Targets after the problem alone; the field ``share``: each token's in the mean over the trained ones.

    Prefix + intervention has no end token: with one the model would learn to stop in the middle of a solution.
    """
    tokenizer, pairs, trained = run.policy.tokenizer, [], []
    for example in examples:
        problem, prefix = run.problems[example["problem"]], ""
        if kind == "reference":
            rest = problem.solution
        elif kind == "terse":
            rest = "\n".join(prompts.split_steps(problem.solution)[-2:])
        else:
            prefix = "".join(f"{step}\n" for step in example["prefix"])
            rest = example["content"] + (example["suffix"] if kind == "with_suffix" else "")
        first, rest = (tokenizer(text, add_special_tokens=False).input_ids for text in (prefix, rest))
        rest += [tokenizer.eos_token_id] * (kind in ("reference", "terse", "with_suffix"))
        pairs.append((run.policy.encode(prompts.solve(problem)), first + rest))
        trained += [float(kind != "no_prefix")] * len(first) + [1.0] * len(rest)
    return Batch(pairs, {"share": torch.tensor(trained) / sum(trained)})


def unsolved(run: Run, problems: list[Problem], samples: int, seed: int) -> dict[int, list[str]]:
    """Problems that the base gets wrong in all samples, by number, with its attempts; a right one ends a search."""
    generator = torch.Generator(run.policy.device).manual_seed(seed)
    left: dict[int, list[str]] = {i: [] for i in range(len(problems))}
    done = 0
    while done < samples and left:
        count, rows = min(samples - done, max(4, done)), list(left)
        completions = run.sample([prompts.solve(problems[i]) for i in rows], count, None, BASE, generator)
        right = run.rewards([problems[i] for i in rows], completions).sum(1)
        for i, group, solved in zip(rows, completions, right.tolist(), strict=True):
            left[i] += [c.text for c in group if not c.truncated]
            if solved:
                del left[i]
        done += count
    return {i: list(dict.fromkeys(texts)) for i, texts in left.items()}


def hard_pool(run: Run, config: Config) -> None:
    """Step 1: from here on the arm trains on the problems that the base didn't solve."""
    for _ in run.stage("pool", 1):
        candidates = run.problems[: config.pool_problems]
        left = run.shared(f"pool-{run.seed}", unsolved, candidates, config.pool_samples, run.seed)
        if not left:
            raise ConfigError(f"--pool-problems {config.pool_problems}: the base solves all of them; more are needed")
        run.kept["pool"], run.kept["attempts"] = [int(i) for i in left], list(left.values())
        run.log(pool=len(left))
        if run.budget["completions"] > (config.steps - 1) * config.prompts * config.samples:
            raise ConfigError(f"--pool-problems {config.pool_problems}: finding the hard ones leaves nothing for RL")
    run.problems = [run.problems[i] for i in run.kept["pool"]]


def propose(run: Run, pairs: list[tuple[Problem, str]], generator: torch.Generator) -> tuple[dict[int, dict], dict]:
    """The base compares each attempt with the reference, names the first wrong step and writes one in its place."""
    chats = [prompts.find_error(problem, attempt) for problem, attempt in pairs]
    named = [step_named(c.text) for (c,) in run.sample(chats, 1, None, BASE, generator)]
    usable = [i for i, n in enumerate(named) if n is not None and intervene(pairs[i][1], n, "?")]
    replies = run.sample([prompts.correct_step(chats[i], named[i]) for i in usable], 1, None, BASE, generator)
    steps = {i: " ".join(c.text.split()) for i, (c,) in zip(usable, replies, strict=True)}  # one line, one step
    clean = {i: s for i, s in steps.items() if "\\boxed" not in s and not leaks(s, pairs[i][0].answer)}
    proposals = {i: p for i, step in clean.items() if (p := intervene(pairs[i][1], named[i], step))}
    leaked = len(steps) - len(clean)
    return proposals, {"parse rate": len(usable) / max(1, len(pairs)), "leak rate": leaked / max(1, len(usable))}


def interventions(run: Run, config: Config) -> dict:
    """Steps 2 to 4: proposals for wrong attempts, and a right continuation of each that has one ("suffix")."""
    generator = torch.Generator(run.policy.device).manual_seed(1_000 + run.seed)
    pairs = [(i, a) for i, attempts in enumerate(run.kept["attempts"]) for a in attempts[: config.attempts]]
    proposals, measured = propose(run, [(run.problems[i], a) for i, a in pairs], generator)
    examples = [{"problem": pairs[i][0], **p} for i, p in proposals.items()]
    problems = [run.problems[e["problem"]] for e in examples]
    chats = [prompts.go_on(prompts.solve(p), guided(e)) for p, e in zip(problems, examples, strict=True)]
    completions = run.sample(chats, config.continuations, None, BASE, generator)
    rewards = run.rewards(problems, completions) if examples else ()
    for e, group, right in zip(examples, completions, rewards, strict=True):
        e["suffix"] = group[int(right.argmax())].text if right.any() else None
    measured["location"] = sum(e["location"] for e in examples) / max(1, len(examples))
    measured["kept"] = sum(e["suffix"] is not None for e in examples) / max(1, len(examples))
    return {"examples": examples, "measured": measured}


def intervention_examples(run: Run, config: Config, filtered: bool) -> list[dict]:
    """One target per problem, as the paper counts (its code keeps all)."""
    for _ in run.stage("interventions", 1):
        made = run.shared(f"interventions-{run.seed}", interventions, config)
        kept = [e for e in made["examples"] if e["suffix"] is not None or not filtered]
        if not kept:
            raise ConfigError(f"--pool-problems {config.pool_problems}: no intervention led to a right answer")
        run.kept["examples"] = list({e["problem"]: e for e in reversed(kept)}.values())
        run.kept["measured"] = made["measured"]
    return run.kept["examples"]


# --- the arms and their evaluation ----------------------------------------------------------------------------------


def fine_tune(run: Run, config: Config, kind: Target) -> None:
    """Cross-entropy on one target per hard problem."""
    if kind in ("reference", "terse"):
        examples = [{"problem": i} for i in range(len(run.problems))]
    else:
        examples = intervention_examples(run, config, filtered=kind != "no_filter")

    def surprise() -> None:
        every = target_batch(run, examples, kind)
        nats = -(run.logprobs(every, BASE).cpu() * every.fields["share"]).sum().item()
        run.kept["measured"] = {**run.kept.get("measured", {}), "target NLL": nats}

    for _ in run.stage("fine-tuning", config.sft_steps, learning_rate=config.sft_learning_rate, begin=surprise):
        chosen = torch.randperm(len(examples), generator=run.rng)[: config.sft_batch]
        batch = target_batch(run, [examples[i] for i in chosen], kind)
        run.update(batch, nll, mean=batch.fields["share"])


def train(run: Run, config: Config, kind: Target | None = "intervention", rl: bool = True) -> None:
    """Fine-tuning on the hard problems (None: none), then GRPO on them until the completions are spent."""
    hard_pool(run, config)
    if kind:
        fine_tune(run, config, kind)
    if rl:
        spent = -int(-run.budget["completions"] // (config.prompts * config.samples))  # in rollout steps, rounded up
        settings = GRPO("dr_grpo", config.minibatches)  # the advantage isn't divided by the std
        sizes = config.steps - spent, config.prompts, config.samples
        train_grpo(run, *sizes, settings, learning_rate=config.learning_rate)


def never_solved(run: Run, config: Config, problems: list[Problem]) -> dict:
    """The held-out problems that the base never solves, and an intervention in one wrong attempt at each.

    The seed is fixed: every arm of every seed is measured on the same problems and interventions.
    """
    left = {i: attempts for i, attempts in unsolved(run, problems, config.hard_samples, 64).items() if attempts}
    generator = torch.Generator(run.policy.device).manual_seed(64)
    proposals, _ = propose(run, [(problems[i], attempts[0]) for i, attempts in left.items()], generator)
    rows = list(left)
    return {"rows": rows, "found": [{"problem": rows[i], **p} for i, p in proposals.items()]}


def goes_on(run: Run, problems: list[Problem], begun: list[str], generator: torch.Generator) -> torch.Tensor:
    """Rewards of continuations of these beginnings ("": the problem alone), [problems, samples]."""
    if not problems:
        return torch.empty(0, run.config.eval_samples)
    chats = [prompts.solve(p) for p in problems]
    chats = [prompts.go_on(chat, text) if text else chat for chat, text in zip(chats, begun, strict=True)]
    return run.rewards(problems, run.sample(chats, run.config.eval_samples, generator=generator))


def measure(run: Run, config: Config, rollouts: Rollouts) -> dict[str, Metric]:
    """The arm's continuations of four beginnings on never-solved problems, and its samples on its hard pool."""
    problems = run.held_out(config.hard_problems)
    hard = run.shared("never-solved", never_solved, config, problems)
    generator = torch.Generator(run.policy.device).manual_seed(20_000 + run.seed)
    alone = dict(zip((p.question for p in rollouts.problems), rollouts.rewards, strict=True))
    unseen = [problems[i] for i in hard["rows"] if problems[i].question not in alone]
    rewards = goes_on(run, unseen, [""] * len(unseen), generator)
    alone.update(zip((p.question for p in unseen), rewards, strict=True))
    continued = {"never solved": [alone[problems[i].question] for i in hard["rows"]]}
    begun = {
        "correct prefix": ["\n".join(e["prefix"]) for e in hard["found"]],
        "wrong step": ["\n".join([*e["prefix"], e["wrong"]]) for e in hard["found"]],
        "intervention": [guided(e) for e in hard["found"]],
    }
    asked = [problems[e["problem"]] for e in hard["found"]]
    continued |= {name: goes_on(run, asked, texts, generator) for name, texts in begun.items()}
    metrics = {}
    for name, rows in continued.items():
        metrics[f"accuracy, {name}"] = share([row.mean() for row in rows])
        metrics[f"pass@{config.eval_samples}, {name}"] = share([row.amax() for row in rows])
    if "pool" in run.kept:  # one number: every seed has other problems
        pool = goes_on(run, run.problems, [""] * len(run.problems), generator)
        metrics |= {"accuracy, hard pool": share(pool.mean()), "coverage": share(pool.amax(1).mean())}
    units = {"location": number, "target NLL": number}
    return metrics | {name: units.get(name, share)(v) for name, v in run.kept.get("measured", {}).items()}


BEGINNINGS = tuple(f"accuracy, {name}" for name in ("never solved", "correct prefix", "wrong step", "intervention"))

PAPER = Paper(
    slug="intervention",
    title="InT: Self-Proposed Interventions Enable Credit Assignment in LLM Reasoning",
    arxiv="2601.14209",
    config=Config,
    family="credit assignment",
    departs="other problems, which the base never solves; the search for them is paid out of the completions, on tiny "
    "twice the protocol's, or hardly any would be left for RL",
    arms={
        "rl": partial(train, kind=None),
        "sft_reference_rl": partial(train, kind="reference"),
        "int": partial(train, rl=False),
        "int_rl": train,
        **{f"int_{k}": Arm(partial(train, kind=k, rl=False), True) for k in ("no_prefix", "with_suffix", "no_filter")},
        "sft_terse_rl": Arm(partial(train, kind="terse"), by_name=True),
    },
    claims=(
        Claim.over("int_rl", "rl", text="InT + RL ends above RL on all problems", published="+2.2", primary=True),
        Claim(
            "interventions_work",
            "The base goes on rightly more often after its intervention than after its wrong step",
            *(("base", "accuracy, intervention"), ("base", "accuracy, wrong step")),
            published="1.56 against 0.07",
        ),
        Claim.over("int_rl", "rl", "accuracy, never solved", published="+5.5 (Apex, pass@8)"),
        Claim.over("int_rl", "rl", "accuracy, hard pool", published="+15.3 (training reward, implied)"),
        Claim.over("int_rl", "sft_reference_rl", published="+14.1"),
        Claim.over("rl", "int_rl", "training all_wrong", text="After InT fewer prompts have only wrong rollouts"),
    ),
    columns=("accuracy", "accuracy, never solved", "accuracy, intervention", "accuracy, hard pool", "entropy"),
    published={"base": "11.7", "rl": "23.5", "sft_reference_rl": "11.6", "int_rl": "25.6"},
    published_setting="Qwen3-4B-Instruct-2507, pass@1 on IMO-AnswerBench",
    measure=measure,
    curves=("reward", "entropy", "all_wrong"),
    panels=(
        Panel("right continuations", BEGINNINGS, "bars"),
        Panel("reward in RL", ("reward",), x="completions"),
        Panel("prompts with only wrong rollouts", ("all_wrong",), x="completions"),
    ),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
