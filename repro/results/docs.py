"""The generated pages of a folder of results: summaries, the board, a page per paper, the index of the papers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from repro.results.files import load_rows, read_summaries, replace_file
from repro.results.tables import (
    arm_rows,
    board_rows,
    claim_rows,
    headline,
    leaderboard,
    markdown,
    notes,
    seeds_cell,
    side_by_side,
    verdict_cell,
)

MADE = "<!-- made by repro docs; what is written by hand is in findings.md -->"
BEGIN, END = "<!-- board -->", "<!-- end board -->"
HOW = """Accuracies in percent, ± half the width of a 95 % interval (bootstrap over problems and seeds). A claim is a
difference, paired by problem and seed, with its interval at the level of the look (1.94 %). *holds*: the interval is
above the threshold; *fails*: below; *equivalent*: within the margin; *undecided*: none of them. *toy*: on the built-in
model; *small*: on a real one. Survives BH: also when all claims of the preset are counted (Benjamini-Hochberg, 5 %);
Holm: also when all primary claims are."""


def renew(results: Path, cards: dict[str, dict] | None = None, draw: bool = True) -> list[dict]:
    """Make the summaries of a folder of results anew where rows or cards have changed, then every page; all of them.

    ``cards``: of papers whose declaration is to be read anew; else the stored one counts. Call it within ``locked``.
    """
    from repro.results.figures import draw as draw_figure
    from repro.results.summary import corrected, fingerprint, merged, summarise

    stored = {(s["paper"], s["preset"]): s for s in read_summaries(results)}
    summaries = []
    for file in sorted(results.glob("*/*.jsonl")):
        slug, preset = file.parent.name, file.stem
        before = stored.get((slug, preset))
        own, card = load_rows(file), (cards or {}).get(slug)
        if before and card and card["digests"][preset] not in {row["digest"] for row in own}:
            card = None  # rows of other settings than today's keep the declaration that they were made with
        card = card or (before and before["card"])
        if slug == "standard" or card is None:
            continue
        kit = results / "standard" / file.name
        rows = merged(card, own + (load_rows(kit) if kit.exists() else []))
        if not rows:
            continue
        card = json.loads(json.dumps(card))
        fresh = before is not None and before["digest"] == fingerprint(card, rows)
        summaries.append(before if fresh else summarise(card, rows))
        if draw and not (fresh and file.with_suffix(".png").exists()):
            file.with_suffix(".png").unlink(missing_ok=True)
            draw_figure(card, rows, file.with_suffix(".png"))
    summaries = corrected(summaries)
    for summary in summaries:
        replace_file(results / summary["paper"] / f"{summary['preset']}.json", dump_summary(summary))
    for path, text in pages(results).items():
        replace_file(path, text)
    return summaries


def dump_summary(summary: dict) -> str:
    """A summary with a line per entry, so that a change can be read."""
    lines = []
    for key, value in summary.items():
        several = isinstance(value, list) and value and isinstance(value[0], dict)
        rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in value) if several else ""
        lines.append(f" {json.dumps(key)}: " + (f"[\n{rows}\n ]" if several else json.dumps(value, ensure_ascii=False)))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def pages(results: Path) -> dict[Path, str]:
    """Every generated page of a folder of results and its text. Nothing is written.

    Beside it, where they are there: the index in ../papers, and the board in ../README.md between its marks.
    """
    summaries = read_summaries(results)
    made = {results / "README.md": board(summaries)}
    for slug in dict.fromkeys(s["paper"] for s in summaries):
        mine = [s for s in summaries if s["paper"] == slug]
        made[results / slug / "README.md"] = paper_page(mine, (results / slug / "findings.md").exists())
    scripts, readme = results.parent / "papers", results.parent / "README.md"
    if scripts.is_dir():
        made[scripts / "README.md"] = index(summaries, scripts)
    if readme.is_file() and BEGIN in (old := readme.read_text(encoding="utf-8")):
        table = markdown(board_rows(summaries, "results/{paper}/README.md"))
        before, _, rest = old.partition(BEGIN)
        made[readme] = f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"
    return made


def stale(results: Path) -> list[Path]:
    """The generated pages that aren't what the summaries say."""
    found = pages(results).items()
    return [path for path, text in found if not path.is_file() or path.read_text(encoding="utf-8") != text]


def board(summaries: Sequence[dict]) -> str:
    """results/README.md: a row per paper, the leaderboard, all claims."""
    claims = [["paper", "preset", *claim_rows([])[0]]]
    claims += [[c["paper"], c["preset"], *claim_rows([c])[1]] for s in summaries for c in s["claims"]]
    parts = [
        "# Results",
        MADE,
        HOW,
        "## Papers",
        markdown(board_rows(summaries)),
        "## Leaderboard",
        "All arms that have the base, the problems, the evaluation and the number of completions in common. Gain: "
        "accuracy above the base in points; entropy kept: share of the base's.",
        markdown(leaderboard(summaries)),
    ]
    for family, rows in side_by_side(summaries).items():
        told = "Collapsed: below half of the base's accuracy on validation problems during training."
        parts += [f"## {family[0].upper()}{family[1:]}, side by side", told, markdown(rows)]
    parts += ["## All claims", markdown(claims)]
    return "\n\n".join(parts) + "\n"


def paper_page(summaries: Sequence[dict], findings: bool) -> str:
    """results/PAPER/README.md: identity, then table, claims and figure of each preset."""
    card = summaries[0]["card"]
    slug = card["slug"]
    links = [f"[arXiv {card['arxiv']}](https://arxiv.org/abs/{card['arxiv']})", f"[script](../../papers/{slug}.py)"]
    links += ["[findings](findings.md)"] * findings + ["[all results](../README.md)"]
    parts = [f"# {card['title']}", MADE, f"{card['family']} · {' · '.join(links)}"]
    for summary in summaries:
        preset, made = summary["preset"], summary["made"]
        parts += [f"## Preset {preset}", headline(summary).partition(": ")[2] + ".", markdown(arm_rows(summary))]
        parts += notes(summary)
        if summary["claims"]:
            parts.append(markdown(claim_rows(summary["claims"])))
        parts.append(f"![Figure of {slug}, preset {preset}]({preset}.png)")
        parts.append(
            f"Rows: [{preset}.jsonl]({preset}.jsonl), made with commit {', '.join(made['commits'])} on "
            f"{', '.join(made['devices'])}, {made['dates'][1]}, from the model {summary['settings']['model']}."
        )
    parts.append(HOW)
    return "\n\n".join(parts) + "\n"


def index(summaries: Sequence[dict], scripts: Path) -> str:
    """papers/README.md: the papers by family; those without results come last, with their script's title."""
    from repro.results.verbs import declared

    parts = ["# Papers", MADE]
    measured = {s["paper"]: s for s in reversed(summaries)}
    for family in sorted({s["card"]["family"] for s in measured.values()}):
        rows = [["script", "paper", "arms", "primary claim", "verdict"]]
        for slug, s in sorted(measured.items()):
            if s["card"]["family"] == family:
                rows.append(_index_row(slug, s))
        parts += [f"## {family[0].upper()}{family[1:]}", markdown(rows)]
    others = [path for path in sorted(scripts.glob("*.py")) if path.stem not in measured]
    if others:
        rows = [["script", "paper", "family"]]
        for path in others:
            paper = declared(path)
            named = f"{paper['title']}, arXiv {paper['arxiv']}" if paper["arxiv"] else paper["title"]
            rows.append([f"[{path.name}]({path.name})", named, paper["family"]])
        parts += ["## Not measured yet", markdown(rows)]
    parts.append(
        "Verdicts of all claims: `repro claims`, or the [board](../results/README.md). The order inside a script is "
        "always the same: docstring, settings, losses, arms, `PAPER`."
    )
    return "\n\n".join(parts) + "\n"


def _index_row(slug: str, summary: dict) -> list[str]:
    card = summary["card"]
    arms = ", ".join(a["name"] for a in card["arms"] if not a["by_name"])
    named = ", ".join(a["name"] for a in card["arms"] if a["by_name"])
    told = next((c for c in summary["claims"] if c["primary"]), None)
    verdict = f"{verdict_cell(told)} ({seeds_cell(told)} seeds)" if told else "-"
    paper = f"[{card['title']}](../results/{slug}/README.md), arXiv {card['arxiv']}"
    arms += f" (by name: {named})" if named else ""
    return [f"[{slug}.py]({slug}.py)", paper, arms, told["text"] if told else "-", verdict]


def dead_links(path: Path) -> list[str]:
    """Relative links of a Markdown page that lead nowhere."""
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    return [link for link in links if "://" not in link and not (path.parent / link).exists()]
