"""The command ``repro``. Each verb is one line here; what it does stands below, and is loaded when it is asked for."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repro.paper import Paper

USAGE = """repro: papers on self-improving language models, run and measured

  repro list                    the papers, their arms and what was measured
  repro run PAPER [settings]    reproduce one paper (repro run PAPER --help lists every setting)
  repro all [PAPER ...]         several papers, or all, then their tables   [--seeds N] [--preset P] [--dry-run]
                                both on a cluster: ... --slurm [options of sbatch]
  repro status                  what is finished, runs, waits, has stopped or failed   [--out FOLDER]
  repro new SLUG                the skeleton of a new paper: script, test, findings
  repro table [PAPER ...]       tables of the results         [--results FOLDER] [--format markdown|json|csv]
  repro claims [PAPER ...]      the claims and their verdicts [--results FOLDER] [--json]
  repro publish PAPER           take finished runs with default settings into results/ and renew what shows them
  repro docs                    make summaries, board and the pages of the papers in results/ anew
  repro site --out DIR          all results as static pages   [--results FOLDER]
  repro samples FOLDER          rollouts of a run, unlikely tokens coloured   [--step N] [--reward R] [--pool FILE]
  repro bench                   speed and memory of sampling and training against plain baselines (repro bench --help)
  repro selftest --gpu          what a GPU does with the kit, as one JSON document (25 minutes; repro selftest --help)
  repro verify ANSWER REFERENCE grade an answer               (repro verify --help)
  repro fetch smol              install the model of the preset smol, SmolLM2-135M-Instruct
"""
VERBS = {  # where each is done: a function of the words behind it that returns the exit code
    "list": "repro.results.verbs:list_papers",
    "run": "repro.reproduce:run",
    "all": "repro.reproduce:run_all",
    "status": "repro.launch.status:main",
    "new": "repro.skeleton:main",
    "table": "repro.results.verbs:table",
    "claims": "repro.results.verbs:claims",
    "publish": "repro.results.verbs:publish",
    "docs": "repro.results.verbs:docs",
    "site": "repro.results.verbs:site",
    "samples": "repro.launch.samples:main",
    "bench": "repro.bench.bench:main",
    "selftest": "repro.bench.selftest:main",
    "verify": "repro.verify.cli:main",
    "fetch": "repro.model.fetch:main",
}


def verb(name: str) -> Callable[[Sequence[str]], int]:
    """The function that does a verb."""
    module, _, function = VERBS[name].partition(":")
    return getattr(importlib.import_module(module), function)


def guarded(action: Callable[[], int]) -> int:
    """Run an action; what the user can put right becomes one line and exit code 2."""
    from repro.config import ConfigError
    from repro.tasks.problem import TaskError

    try:
        return action()
    except (ConfigError, TaskError) as error:
        print(f"repro: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("repro: stopped; the same command goes on from the last finished step", file=sys.stderr)
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command ``repro``."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if argv[0] not in VERBS:
        print(f"repro: unknown command {argv[0]!r}; there are {', '.join(VERBS)}", file=sys.stderr)
        return 2
    with contextlib.suppress(BrokenPipeError):
        return guarded(lambda: verb(argv[0])(argv[1:]))
    return 0


def script_main(paper: Paper, script: str) -> None:
    """Entry point of a paper's script: ``python papers/nft.py`` does the same as ``repro run nft``."""
    from repro.reproduce import run_paper

    sys.exit(guarded(lambda: run_paper(paper, Path(script).resolve(), sys.argv[1:])))


if __name__ == "__main__":
    sys.exit(main())
