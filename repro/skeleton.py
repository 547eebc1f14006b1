"""``repro new SLUG``: the skeleton of a paper, which runs at once: script, test, findings."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from repro.config import ConfigError
from repro.scripts import ROOT, find_script, paper_scripts

SCRIPT = '''"""TITLE. AUTHORS, arXiv ARXIV.

Idea. What the method does, and why it should help, in five lines.

Reproduced. The arms, and what is compared with what.

How this differs from the paper and why.
- A line for each difference.

Commands.
    repro run SLUG                                 # tiny model, seed 0
    repro run SLUG --seeds 5                       # with verdicts
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch

from repro import Claim, Paper, Run, RunConfig, script_main, standard


@dataclass(frozen=True)
class Config(RunConfig):
    """SLUG's hyperparameters, each with its source."""

    scale: float = 1.0
    """Weight of each right solution (ours)."""


# --- the paper's loss -----------------------------------------------------------------------------------------------


def loss(logp: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    """Equation 1: -scale log p of right solutions; all [tokens]."""
    return -scale * right * logp


# --- the arms -------------------------------------------------------------------------------------------------------


def SLUG(run: Run, config: Config) -> None:
    """Algorithm 1."""

    def weighted(logp: torch.Tensor, f: SimpleNamespace) -> torch.Tensor:
        return loss(logp, f.right, config.scale)

    for _ in run.stage("train", config.steps):
        rollouts = run.rollout(run.next_problems(config.prompts), config.samples)
        batch = rollouts.batch()
        batch.fields["right"] = batch.spread(rollouts.rewards.flatten())
        run.update(batch, weighted, mean="token")


PAPER = Paper(
    slug="SLUG",
    title="TITLE",
    arxiv="ARXIV",
    family="FAMILY",
    config=Config,
    arms={"grpo": standard("grpo"), "SLUG": SLUG},
    claims=(Claim.over("SLUG", "grpo", primary=True),),
)

if __name__ == "__main__":
    script_main(PAPER, __file__)
'''
TEST = '''"""SLUG: the loss on worked numbers, and a short run."""

import torch

from papers.SLUG import PAPER, Config, loss
from repro.arm import run_arm


def test_the_loss_of_a_worked_example():
    logp, right = torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 0.0])
    assert loss(logp, right, scale=0.5).tolist() == [0.5, 0.0]


def test_a_short_run_ends_with_a_result(tmp_path):
    config = Config(steps=2, prompts=4, samples=2, train_problems=16, eval_problems=4, eval_samples=2)
    result = run_arm(PAPER, config, "SLUG", 0, str(tmp_path))
    assert result["status"] == "ok" and result["budget"]["completions"] == 2 * 4 * 2
'''
FINDINGS = "Nothing was run yet. Here stands what was found, what was tried on validation problems, and why.\n"


def main(argv: Sequence[str]) -> int:
    """Entry point of ``repro new``. Raises ConfigError for a name that is taken or can't be a module's."""
    parser = argparse.ArgumentParser(prog="repro new", description=__doc__)
    parser.add_argument("slug", help="short name: lower-case letters, digits, underscores")
    parser.add_argument("--title", default="The paper's title")
    parser.add_argument("--authors", default="Its authors")
    parser.add_argument("--arxiv", default="0000.00000")
    parser.add_argument("--family", default="reinforcement learning")
    args = parser.parse_args(argv)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", args.slug):
        raise ConfigError(f"{args.slug!r} can't be a paper's name: lower-case letters, digits and underscores")
    if args.slug in paper_scripts() or args.slug == "standard":
        raise ConfigError(f"{args.slug} is there already: {find_script(args.slug).relative_to(ROOT)}")
    words = {"SLUG": args.slug, "TITLE": args.title, "AUTHORS": args.authors, "ARXIV": args.arxiv}
    words["FAMILY"] = args.family
    for name, text in (
        (f"papers/{args.slug}.py", SCRIPT),
        (f"tests/papers/test_{args.slug}.py", TEST),
        (f"results/{args.slug}/findings.md", FINDINGS),
    ):
        file = ROOT / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(re.sub("|".join(words), lambda found: words[found[0]], text))
        print(name)
    print(f"next: repro run {args.slug} --steps 2 --eval-problems 16, then docs/adding_a_paper.md")
    return 0
