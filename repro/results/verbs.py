"""The verbs that read and publish results: list, table, claims, docs, publish, site."""

from __future__ import annotations

import argparse
import ast
import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from repro.results.files import read_rows, read_summaries
from repro.results.tables import claim_rows, counted, describe, leaderboard, markdown

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"


def declared(script: Path) -> dict[str, str]:
    """Title, arXiv number and family that a script gives its ``Paper``, read without running the script."""
    found = {"title": script.stem, "arxiv": "", "family": ""}
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Paper":
            found |= {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg in found}
    return found


def _known(name: str) -> str:
    """The paper's name that a word stands for. Raises ConfigError for an unknown one."""
    if (ROOT / "papers" / f"{name}.py").is_file():
        return name
    from repro.scripts import find_script

    return find_script(name).stem


def load(folder: Path, slugs: Sequence[str] = ()) -> list[dict]:
    """Summaries of a folder: those stored in results, or made from the rows of a folder of runs.

    Raises ConfigError where there is no such folder.
    """
    if not folder.is_dir():
        from repro.config import ConfigError

        raise ConfigError(f"--results {folder}: no such folder")
    if found := read_summaries(folder, slugs):
        return found
    rows = read_rows(folder)
    if not rows:
        return []
    from repro.results.summary import corrected, groups, summarise
    from repro.scripts import find_script, load_script

    cards = {r["paper"]: None for r in rows if not slugs or r["paper"] in slugs}
    cards = {slug: load_script(find_script(slug)).card() for slug in cards}
    wanted = [r for r in rows if r["paper"] in cards or r["paper"] == "standard"]
    made = [summarise(card, mine) for card, mine in groups(wanted, cards.__getitem__) if mine]
    return corrected(made)


def _asked(argv: Sequence[str], what: str, options: Callable[[argparse.ArgumentParser], None]) -> tuple:
    parser = argparse.ArgumentParser(prog=f"repro {what}")
    parser.add_argument("papers", nargs="*", metavar="PAPER")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results, or of runs")
    options(parser)
    args = parser.parse_args(argv)
    return args, load(args.results, [_known(name) for name in args.papers])


def table(argv: Sequence[str]) -> int:
    """Tables of each paper and the leaderboard."""

    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--format", choices=("markdown", "json", "csv"), default="markdown")

    args, summaries = _asked(argv, "table", options)
    if args.format == "json":
        print(json.dumps(summaries, indent=1))
    elif args.format == "csv":
        csv.writer(sys.stdout).writerows(leaderboard(summaries))
    elif not summaries:
        print("no results yet")
    else:
        print("\n\n".join(map(describe, summaries)))
        print("\n**Leaderboard**: the same base, problems and number of completions; gain in points\n")
        print(markdown(leaderboard(summaries)))
    return 0


def claims(argv: Sequence[str]) -> int:
    """All claims with their verdicts."""
    args, summaries = _asked(argv, "claims", lambda parser: parser.add_argument("--json", action="store_true"))
    checked = [claim for summary in summaries for claim in summary["claims"]]
    if args.json:
        print(json.dumps(checked, indent=1))
    elif checked:
        names = [["paper", "preset", *claim_rows([])[0]]]
        print(markdown(names + [[c["paper"], c["preset"], *claim_rows([c])[1]] for c in checked]))
    else:
        print("no results yet")
    return 0


def list_papers(argv: Sequence[str]) -> int:
    """Every script: title, arms, and what was measured."""
    summaries = load(RESULTS)
    rows = [["paper", "arXiv", "title", "family", "arms", "minutes a seed", "claims"]]
    for script in sorted((ROOT / "papers").glob("*.py")):
        mine = [s for s in summaries if s["paper"] == script.stem]
        if not mine:
            paper = declared(script)
            rows.append([script.stem, paper["arxiv"], paper["title"], paper["family"], "", "", "not yet"])
            continue
        card = mine[0]["card"]
        arms = " ".join(arm["name"] for arm in card["arms"] if not arm["by_name"])
        minutes = f"{sum(arm['seconds'] for arm in mine[0]['table']) / 60:.0f} ({mine[0]['preset']})"
        told = "; ".join(f"{s['preset']}: {counted(s['claims'])}" for s in mine)
        rows.append([script.stem, card["arxiv"], card["title"], card["family"], arms, minutes, told])
    print(markdown(rows))
    return 0


def docs(argv: Sequence[str]) -> int:
    """Make the summaries and all generated pages anew, with what the scripts declare now."""
    from repro.results.docs import renew
    from repro.results.files import locked
    from repro.scripts import load_script, paper_scripts

    parser = argparse.ArgumentParser(prog="repro docs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    scripts = {slug: path for slug, path in paper_scripts().items() if list((args.results / slug).glob("*.jsonl"))}
    cards = {slug: load_script(path).card() for slug, path in scripts.items()}
    with locked(args.results):
        made = renew(args.results, cards)
    print(f"{len(made)} tables of {len(cards)} papers")
    return 0


def publish(argv: Sequence[str]) -> int:
    """Take a paper's finished runs with a preset's default settings into the results, and renew what shows them."""
    from repro.results.publishing import publish_paper
    from repro.scripts import find_script, load_script

    parser = argparse.ArgumentParser(prog="repro publish")
    parser.add_argument("paper", metavar="PAPER")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    for summary in publish_paper(load_script(find_script(args.paper)), args.runs, args.results):
        print(describe(summary))
    return 0


def site(argv: Sequence[str]) -> int:
    """Static pages of all results."""
    from repro.results.site import write_site

    parser = argparse.ArgumentParser(prog="repro site")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results, or of runs")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs, for transcripts")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pages")
    args = parser.parse_args(argv)
    summaries = load(args.results)
    own = not read_summaries(args.results)  # a folder of runs
    write_site(summaries, args.out, None if own else args.results, args.results if own else args.runs)
    print(f"{len(summaries)} tables: {args.out / 'index.html'}")
    return 0
