"""The results as static pages (``repro site``): they need neither a server nor the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from repro.results.files import read_rows, replace_file
from repro.results.tables import (
    WORDS,
    arm_rows,
    cell,
    counted,
    difference_cell,
    gain_cell,
    headline,
    notes,
    primary,
    ranking,
    seeds_cell,
    survives_cell,
)

ROOT = Path(__file__).parents[2]
FILES = ("style.css", "site.js")
WIDEST = 0.25  # of a drawn difference in accuracy; what lies beyond is cut off at the edge


def write_site(summaries: Sequence[dict], out: Path, results: Path | None = None, runs: Path | None = None) -> None:
    """Write all pages to a folder. ``results``: with figures and findings; ``runs``: of one's own, with rollouts.

    Figures that aren't in ``results`` are drawn from the rows in ``runs``. The pages are
    index.html (the board), leaderboard.html, papers/NAME.html, and beside them a style sheet, a script and figures.
    """
    pages = Environment(
        loader=PackageLoader("repro.results"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    pages.globals |= {"bar": bar, "cell": cell, "gain_cell": gain_cell, "seeds": seeds_cell, "survives": survives_cell}
    pages.globals["counted"] = counted
    for name in FILES:
        replace_file(out / name, pages.get_template(name).render())
    board = [_board_entry(s) for s in summaries]
    words = {
        "families": sorted({s["card"]["family"] for s in summaries}),
        "verdicts": [w for w in (*WORDS, "none") if any(b["verdict"] == w for b in board)],
        "scales": sorted({s["scale"] for s in summaries}, reverse=True),
    }
    every = [claim for s in summaries for claim in s["claims"]]
    replace_file(
        out / "index.html", pages.get_template("index.html").render(root="", board=board, claims=every, **words)
    )
    ranks = ranking(summaries)
    known = {s["paper"] for s in summaries}
    replace_file(
        out / "leaderboard.html", pages.get_template("leaderboard.html").render(root="", arms=ranks, known=known)
    )
    template = pages.get_template("paper.html")
    for slug in dict.fromkeys(s["paper"] for s in summaries):
        mine = [s for s in summaries if s["paper"] == slug]
        sections = [_section(s, out, results, runs) for s in mine]
        page = template.render(
            root="../",
            slug=slug,
            card=mine[0]["card"],
            sections=sections,
            findings=_findings(results / slug / "findings.md") if results else "",
            source=_text(ROOT / "papers" / f"{slug}.py"),
        )
        replace_file(out / "papers" / f"{slug}.html", page)


def bar(entry: dict | None, lowest: float, highest: float, mark: float | None = None) -> Markup:
    """A value with its interval as a line with a dot, between two ends; ``mark``: a value to compare with."""
    if entry is None or entry.get("value") is None:
        return Markup("")
    span = (highest - lowest) or 1.0

    def place(value: float) -> str:
        return f"{2 + 116 * min(1.0, max(0.0, (value - lowest) / span)):.1f}"

    parts = ['<svg class="interval" viewBox="0 0 120 16" width="120" height="16" aria-hidden="true">']
    if mark is not None:
        parts.append(f'<line class="mark" x1="{place(mark)}" x2="{place(mark)}" y1="0" y2="16"/>')
    if entry.get("low") is not None:
        parts.append(f'<line class="range" x1="{place(entry["low"])}" x2="{place(entry["high"])}" y1="8" y2="8"/>')
    parts.append(f'<circle cx="{place(entry["value"])}" cy="8" r="3.5"/></svg>')
    return Markup("".join(parts))


def _drawn(claim: dict) -> Markup:
    """The difference of a claim against its threshold; shares all on one scale."""
    if claim["difference"] is None:
        return Markup("")
    low, high = claim["interval"] or (None, None)
    entry = {"value": claim["difference"], "low": low, "high": high}
    ends = [abs(v) for v in (claim["difference"], low, high, claim["threshold"]) if v is not None]
    reach = WIDEST if claim["unit"] == "share" else 1.1 * max(ends)
    return bar(entry, -reach, reach, claim["threshold"])


def _claim(claim: dict) -> dict:
    told = difference_cell(claim).partition(" (")[::2]
    early = claim["verdict"] is not None and claim["look"] is None
    return {**claim, "drawn": _drawn(claim), "word": claim["verdict"] or "none", "told": told, "provisional": early}


def _board_entry(summary: dict) -> dict:
    claim = primary(summary)
    told = _claim(claim) if claim else None
    return {"summary": summary, "card": summary["card"], "claim": told, "verdict": told["word"] if told else "none"}


def _section(summary: dict, out: Path, results: Path | None, runs: Path | None) -> dict[str, Any]:
    slug, preset = summary["paper"], summary["preset"]
    figure = f"figures/{slug}-{preset}.png"
    (out / "figures").mkdir(parents=True, exist_ok=True)
    there = _copied(results, summary, out / figure) or _drawn_anew(runs, summary, out / figure)
    made = summary["made"]
    settings = {
        **summary["settings"],
        "model hash": made["model"]["hash"],
        "training problems' hash": made["data"]["hash"],
        "device": ", ".join(made["devices"]),
        "commits": ", ".join(made["commits"]),
        "dates": " to ".join(made["dates"]),
        **made["versions"],
    }
    return {
        "preset": preset,
        "scale": summary["scale"],
        "headline": headline(summary).partition(": ")[2],
        "rows": arm_rows(summary),
        "notes": notes(summary),
        "claims": [_claim(claim) for claim in summary["claims"]],
        "figure": figure if there else None,
        "transcripts": _transcripts(summary, runs) if runs else [],
        "settings": settings,
    }


def _copied(results: Path | None, summary: dict, target: Path) -> bool:
    picture = results and results / summary["paper"] / f"{summary['preset']}.png"
    if not picture or not picture.is_file():
        return False
    shutil.copyfile(picture, target)
    return True


def _drawn_anew(runs: Path | None, summary: dict, target: Path) -> bool:
    """Draw the figure from the very rows that the summary was made of, where they are."""
    if runs is None or not (rows := read_rows(runs, summary["paper"])):
        return False
    from repro.results.figures import draw
    from repro.results.summary import fingerprint, groups

    card = summary["card"]
    for _, mine in groups(rows + read_rows(runs, "standard"), lambda _: card):
        if mine and fingerprint(card, mine) == summary["digest"]:
            draw(card, mine, target)
            return True
    return False


def _transcripts(summary: dict, runs: Path) -> list[dict]:
    """Of each arm's first run whose rollouts are there: the last right and the last wrong one."""
    found = []
    for entry in summary["table"]:
        paper, arm = ("standard" if entry["standard"] else summary["paper"]), entry["standard"] or entry["arm"]
        files = sorted(runs.glob(f"{paper}/{summary['preset']}-{entry['digest']}/{arm}-seed*/rollouts.jsonl"))
        rows = _rollouts(files[0]) if files else []
        for right in (True, False):
            row = next((row for row in reversed(rows) if (row["reward"] > 0) == right), None)
            if row:
                head = f"{entry['arm']}, step {row['step']}, {'right' if right else 'wrong'}"
                text = f"{row['prompt']}\n>>> {''.join(row['tokens'])}"
                found.append({"head": f"{head} (the answer is {row['reference']})", "text": text})
    return found


def _rollouts(file: Path) -> list[dict]:
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # a line that an interruption has cut off
    return rows


def _findings(file: Path) -> Markup:
    """What was written by hand, as HTML; its own title and link to the tables are left out."""
    text = _text(file).partition("\n")[2].replace("[README.md](README.md)", "above")
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""
