"""The command ``repro``: list, run, all, table, claims, publish, samples, bench, verify."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repro.config import Launch, RunConfig
    from repro.launch.task import Task
    from repro.paper import Paper

ROOT = Path(__file__).parent.parent
ALIASES = {"int": "intervention"}  # names of papers that are no good module names
USAGE = """repro: papers on self-improving language models, run and measured

  repro list                    the papers, their arms and what was measured
  repro run PAPER [settings]    reproduce one paper (repro run PAPER --help lists every setting)
  repro all [PAPER ...]         several papers, or all, then their tables   [--seeds N] [--preset P] [--dry-run]
  repro table [PAPER ...]       tables of the results         [--results FOLDER] [--format markdown|json|csv|html]
  repro claims [PAPER ...]      the claims and their verdicts [--results FOLDER] [--json]
  repro publish PAPER           copy finished runs with default settings to results/ and renew table and figure
  repro samples FOLDER          some rollouts of a run with rewards, unlikely tokens coloured   [--step N] [--reward R]
  repro bench                   speed and memory of sampling and training against plain baselines (repro bench --help)
  repro verify ANSWER REFERENCE grade an answer               (repro verify --help)
"""


class UsageError(ValueError):
    """Something that the user asked for and that doesn't exist; one line."""


def paper_scripts() -> dict[str, Path]:
    """Script of each paper by its name."""
    return {p.stem: p for p in sorted((ROOT / "papers").glob("*.py"))}


def script_name(name: str) -> str:
    """The script that a name or alias stands for. Raises UsageError for an unknown name."""
    known = ALIASES.get(name, name)
    if known not in paper_scripts():
        raise UsageError(f"unknown paper {name!r}; there are {', '.join(paper_scripts())}")
    return known


def load_paper(name: str) -> Paper:
    """The PAPER of a script in papers/. Raises UsageError for an unknown name."""
    return load_script(paper_scripts()[script_name(name)])


def load_script(path: Path) -> Paper:
    spec = importlib.util.spec_from_file_location(f"papers.{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.PAPER


# --- repro run --------------------------------------------------------------------------------------------------------


def run_paper(paper: Paper, script: Path, argv: Sequence[str]) -> int:
    """Run a paper's arms and print its table; the last line of standard output is one JSON document."""
    from repro.arm import preflight
    from repro.config import ConfigError, parse
    from repro.launch.many import run_tasks
    from repro.results.tables import claims, describe, measured

    prog = f"repro run {script.stem}"
    config, launch = parse(paper.config, list(argv), prog, f"{paper.title} (arXiv {paper.arxiv})")
    unknown = [arm for arm in launch.arms if arm not in paper.all_arms]
    if unknown:
        raise ConfigError(f"--arms {' '.join(unknown)}: unknown arm; there are {', '.join(paper.all_arms)}")
    preflight(config)
    tasks = tasks_of(paper, script, config, launch)
    made = run_tasks(tasks, load_script, launch)
    results = [result for result in made if result]
    if not results:
        return 1
    print("\n" + describe(paper, results) + "\n")
    arms = {
        arm: {m: measured(mine, m)[0] for m in paper.columns if measured(mine, m)}
        for arm in paper.all_arms
        if (mine := [r for r in results if r["arm"] == arm and r["status"] == "ok"])
    }
    summary = {
        "paper": paper.slug,
        "preset": config.preset,
        "seeds": launch.seeds,
        "arms": arms,
        "claims": claims(paper, results),
        "status": "ok" if all(r and r["status"] == "ok" for r in made) else "failed",
    }
    print(json.dumps(summary))
    return 0 if summary["status"] == "ok" else 1


def tasks_of(paper: Paper, script: Path, config: RunConfig, launch: Launch) -> list[Task]:
    """Every arm with every seed, seed by seed."""
    from repro.launch.task import Task

    seeds = range(launch.first_seed, launch.first_seed + launch.seeds)
    arms = launch.arms or paper.arms
    return [Task(script, paper, config, arm, seed, launch.out) for seed in seeds for arm in arms]


def run_all(argv: Sequence[str]) -> int:
    """Several papers, or all: what is finished is skipped, tables come last, 1 if something failed."""
    from repro.arm import preflight
    from repro.config import Launch, RunConfig
    from repro.launch.many import default_workers, run_tasks
    from repro.launch.overview import plan
    from repro.launch.storage import write_atomically
    from repro.results.files import read_results
    from repro.results.page import page
    from repro.results.tables import budget_rows, describe, markdown

    parser = argparse.ArgumentParser(prog="repro all")
    parser.add_argument("papers", nargs="*", metavar="PAPER", help="only these papers")
    parser.add_argument("--preset", choices=tuple(RunConfig.PRESETS), default="tiny")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="arms side by side; 0: one per core or GPU")
    parser.add_argument("--out", default=Launch.out, help="folder of checkpoints, adapters and results")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: tiny on the CPU")
    parser.add_argument("--memory-limit", type=float, default=0, help="GB of GPU memory for a process; 0: all")
    parser.add_argument("--dry-run", action="store_true", help="what would be run, how long, how much memory")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        raise UsageError(f"--seeds {args.seeds}: must be at least 1")
    launch = Launch(args.seeds, workers=args.workers, out=args.out, memory_limit=args.memory_limit, device=args.device)
    launch = launch.for_preset(args.preset)
    workers = args.workers or default_workers(launch.device)
    tasks: list[Task] = []
    for name in map(script_name, args.papers or paper_scripts()):
        paper = load_paper(name)
        tasks += tasks_of(paper, paper_scripts()[name], paper.config.for_preset(args.preset), launch)
    known = [r for results in read_results(ROOT / "results").values() for r in results]
    rows, summary = plan(tasks, known, workers)
    print(markdown(rows), summary, sep="\n\n", flush=True)
    if args.dry_run:
        return 0
    for config in {task.config.digest(): task.config for task in tasks}.values():
        preflight(config)
    results = run_tasks(tasks, load_script, launch)
    made = [
        (p, [r for r in results if r and r["paper"] == p.slug]) for p in {t.paper.slug: t.paper for t in tasks}.values()
    ]
    made = [(paper, mine) for paper, mine in made if mine]
    for paper, mine in made:
        print("\n" + describe(paper, mine))
    if made:
        print("\n" + markdown(budget_rows(made)))
        file = Path(args.out) / "report.html"
        write_atomically(file, lambda out: out.write(page(made, Path(args.out)).encode()))
        print(f"\nall of this as one page: {file}")
    failed = [t.name for t, r in zip(tasks, results, strict=True) if r is None or r["status"] != "ok"]
    if failed:
        print(f"repro: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


# --- results ----------------------------------------------------------------------------------------------------------


def _results(
    argv: Sequence[str], what: str, options: Callable[[argparse.ArgumentParser], None]
) -> tuple[argparse.Namespace, list]:
    """The parsed options and (paper, its results) for every group that was asked for."""
    from repro.results.files import read_results

    parser = argparse.ArgumentParser(prog=f"repro {what}")
    parser.add_argument("papers", nargs="*", metavar="PAPER")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of result files")
    options(parser)
    args = parser.parse_args(argv)
    args.papers = [script_name(name) for name in args.papers]
    if not args.results.is_dir():
        raise UsageError(f"--results {args.results}: no such folder")
    groups = read_results(args.results)
    wanted = [key for key in groups if not args.papers or key[0] in args.papers]
    return args, [(load_paper(key[0]), groups[key]) for key in wanted]


def table(argv: Sequence[str]) -> int:
    """Tables of each paper and across papers: to the screen as Markdown, or all results in another format."""
    import csv

    from repro.results.tables import arm_rows, budget_rows, claims, describe, markdown

    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--format", choices=("markdown", "json", "csv", "html"), default="markdown")

    args, groups = _results(argv, "table", options)
    if not groups:
        print("no results yet")
    elif args.format == "html":
        from repro.results.page import page

        print(page(groups, args.results))
    elif args.format == "json":
        rows = {f"{p.slug}/{r[0]['preset']}": {"arms": arm_rows(p, r), "claims": claims(p, r)} for p, r in groups}
        print(json.dumps({"papers": rows, "budget": budget_rows(groups)}, indent=1))
    elif args.format == "csv":
        csv.writer(sys.stdout).writerows(budget_rows(groups))
    else:
        print("\n\n".join(describe(paper, results) for paper, results in groups))
        print("\n**What a budget buys**: accuracy above the base in points, and what it cost\n")
        print(markdown(budget_rows(groups)))
    return 0


def claims_command(argv: Sequence[str]) -> int:
    from repro.results.tables import claim_rows, claims, markdown

    args, groups = _results(argv, "claims", lambda parser: parser.add_argument("--json", action="store_true"))
    checked = [claim for paper, results in groups for claim in claims(paper, results)]
    if args.json:
        print(json.dumps(checked, indent=1))
    elif checked:
        names = [["paper", "preset", *claim_rows([])[0]]]
        print(markdown(names + [[c["paper"], c["preset"], *claim_rows([c])[1]] for c in checked]))
    else:
        print("no results yet")
    return 0


def list_papers(argv: Sequence[str]) -> int:
    from repro.results.files import read_results
    from repro.results.tables import claims, markdown

    groups = read_results(ROOT / "results")
    rows = [["paper", "arXiv", "title", "arms", "claims measured"]]
    for name in paper_scripts():
        paper = load_paper(name)
        shown = []
        for (slug, preset, _), results in groups.items():
            if slug == name and (verdicts := [c["verdict"] for c in claims(paper, results)]):
                counts = (f"{verdicts.count(v)} {v}" for v in ("holds", "fails", "undecided") if v in verdicts)
                shown.append(f"{preset}: {', '.join(counts)}")
        rows.append([name, paper.arxiv, paper.title, " ".join(paper.arms), "; ".join(shown) or "not yet"])
    print(markdown(rows))
    return 0


def publish(argv: Sequence[str]) -> int:
    """Copy finished runs with a preset's default settings from runs/ to results/, with their table and figure."""
    from repro.launch.record import dump
    from repro.results.figures import draw
    from repro.results.files import read_results
    from repro.results.tables import describe

    parser = argparse.ArgumentParser(prog="repro publish")
    parser.add_argument("paper", metavar="PAPER")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    args = parser.parse_args(argv)
    paper = load_paper(args.paper)
    done = False
    for (slug, preset, digest), results in read_results(args.runs / paper.slug).items():
        if slug != paper.slug or digest != paper.config.for_preset(preset).digest():
            continue
        changed = [r for r in results if r["machine"]["changed_files"] or not r["machine"]["commit"]]
        if changed:
            raise UsageError(f"{len(changed)} {preset} runs were made with uncommitted code; commit and run again")
        folder = args.results / paper.slug
        folder.mkdir(parents=True, exist_ok=True)
        for result in results:
            (folder / f"{preset}-{result['arm']}-seed{result['seed']}.json").write_text(dump(result))
        text = describe(paper, results)
        (folder / f"{preset}.md").write_text(text + "\n")
        draw(paper, results, folder / f"{preset}.png")
        if preset == "tiny":
            renew_readme(ROOT / "README.md", paper.slug, text)
        print(text)
        done = True
    if not done:
        raise UsageError(f"no finished runs of {paper.slug} with default settings in {args.runs}")
    return 0


def renew_readme(path: Path, slug: str, text: str) -> None:
    """Replace what stands between the README's markers for a paper."""
    begin, end = f"<!-- results {slug} -->", f"<!-- end {slug} -->"
    old = path.read_text()
    if begin in old:
        new = re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{text}\n{end}", old, flags=re.DOTALL)
        path.write_text(new)


# --- entry ------------------------------------------------------------------------------------------------------------


def run_command(argv: Sequence[str]) -> int:
    if not argv or argv[0].startswith("-"):
        raise UsageError(f"repro run needs a paper; there are {', '.join(paper_scripts())}")
    return run_paper(load_paper(argv[0]), paper_scripts()[script_name(argv[0])], argv[1:])


def samples(argv: Sequence[str]) -> int:
    from repro.launch.samples import main as samples_main

    return samples_main(argv)


def bench(argv: Sequence[str]) -> int:
    from repro.bench.bench import main as bench_main

    return bench_main(argv)


def verify(argv: Sequence[str]) -> int:
    from repro.verify.cli import main as verify_main

    return verify_main(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "list": list_papers,
    "run": run_command,
    "all": run_all,
    "table": table,
    "claims": claims_command,
    "publish": publish,
    "samples": samples,
    "bench": bench,
    "verify": verify,
}


def guarded(action: Callable[[], int]) -> int:
    """Run an action; what the user can put right becomes one line and exit code 2."""
    from repro.config import ConfigError
    from repro.tasks.problem import TaskError

    try:
        return action()
    except (UsageError, ConfigError, TaskError) as error:
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
    if argv[0] not in COMMANDS:
        print(f"repro: unknown command {argv[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    with contextlib.suppress(BrokenPipeError):
        return guarded(lambda: COMMANDS[argv[0]](argv[1:]))
    return 0


def script_main(paper: Paper, script: str) -> None:
    """Entry point of a paper's script: ``python papers/nft.py`` does the same as ``repro run nft``."""
    sys.exit(guarded(lambda: run_paper(paper, Path(script), sys.argv[1:])))


if __name__ == "__main__":
    sys.exit(main())
