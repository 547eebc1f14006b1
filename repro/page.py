"""One self-contained HTML page of all results: tables, claims, figures and settings. It needs no network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repro.experiment import Paper
from repro.report import arm_rows, budget_rows, claim_rows, claims, draw_pareto, headline

Results = Sequence[tuple[Paper, list[dict]]]

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1.5rem; }
.scroll { overflow-x: auto; } img { max-width: 100%; height: auto; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } .text td, .text th { text-align: left; white-space: normal; }
th button { all: unset; cursor: pointer; font-weight: 600; } th button:focus-visible { outline: 2px solid; }
.holds, .fails, .undecided { border-radius: 1rem; padding: .1rem .6rem; font-weight: 600; white-space: nowrap; }
.holds { background: #1a7f3733; } .fails { background: #cf222e33; } .undecided { background: var(--soft); }
nav a { margin-right: 1rem; } .note { opacity: .8; font-size: .9rem; }
pre { overflow-x: auto; background: var(--soft); padding: 1rem; }
"""

SCRIPT = """
document.querySelectorAll('table.sortable th').forEach((th, column) => {
  const button = document.createElement('button');
  button.textContent = th.textContent; th.replaceChildren(button);
  let up = false;
  button.addEventListener('click', () => {
    const at = [...th.parentNode.children].indexOf(th), body = th.closest('table').tBodies[0];
    const key = row => { const n = parseFloat(row.cells[at].textContent.replace(/,/g, ''));
                         return isNaN(n) ? row.cells[at].textContent : n; };
    up = !up;
    [...body.rows].sort((a, b) => { const x = key(a), y = key(b);
      const order = typeof x === typeof y ? (x > y) - (x < y) : typeof x === 'number' ? -1 : 1;
      return up ? order : -order; }).forEach(row => body.append(row));
  });
});
"""


def table(rows: Sequence[Sequence[str]], css: str = "sortable") -> str:
    """An HTML table from rows of text, the first of them its header."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f'<div class="scroll"><table class="{css}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    shown = html.escape(text)
    return f'<span class="{shown}">{shown}</span>' if text in ("holds", "fails", "undecided") else shown


def image(png: bytes, text: str) -> str:
    """A PNG inside the page."""
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def settings(results: Sequence[dict]) -> str:
    """Settings, model, data, versions and commits of a paper's results."""
    first = results[0]
    shown: dict[str, Any] = {
        **first["settings"],
        "model hash": first["model"]["hash"],
        "training problems' hash": first["data"]["hash"],
        "device": ", ".join(sorted({r["machine"]["device"] for r in results})),
        "commits": ", ".join(sorted({str(r["machine"]["commit"])[:10] for r in results})),
        **first["machine"]["versions"],
    }
    lines = "\n".join(f"{name}: {value}" for name, value in shown.items())
    return f"<details><summary>Settings, versions, commit</summary><pre>{html.escape(lines)}</pre></details>"


def section(paper: Paper, results: list[dict], folder: Path) -> str:
    """One paper: what was run, arms, claims, figure, settings."""
    preset = results[0]["preset"]
    parts = [f'<h2 id="{paper.slug}-{preset}">{html.escape(paper.title)}</h2>']
    parts.append(f"<p>{html.escape(headline(paper, results))}</p>")
    parts.append(table(arm_rows(paper, results)))
    if paper.published:
        parts.append(
            f'<p class="note">Column paper: {html.escape(paper.published_setting)}; other model and data, '
            "not to be compared as numbers.</p>"
        )
    if checked := claims(paper, results):
        parts.append(table(claim_rows(checked), "text"))
    figure = folder / paper.slug / f"{preset}.png"
    if figure.is_file():
        parts.append(image(figure.read_bytes(), f"Training curves of {paper.slug}"))
    parts.append(settings(results))
    return "\n".join(parts)


def page(groups: Results, folder: Path) -> str:
    """The whole page. ``folder`` holds the papers' figures (``PAPER/PRESET.png``)."""
    links = "".join(f'<a href="#{p.slug}-{r[0]["preset"]}">{p.slug} ({r[0]["preset"]})</a>' for p, r in groups)
    buffer = io.BytesIO()
    draw_pareto(groups, buffer)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Papers on self-improving language models, run and measured</title><style>{STYLE}</style></head><body>
<h1>Papers on self-improving language models, run and measured</h1>
<nav>{links}</nav>
<h2 id="budget">What a budget buys</h2>
<p>Gain is the accuracy above the base model of the same paper, seeds and test problems, in points; ± is half the width
of a 95 % interval. Completions, tokens and minutes are means over seeds. A click on a column's head sorts.</p>
{table(budget_rows(groups))}
{image(buffer.getvalue(), "Accuracy gained against sampled tokens")}
{"".join(section(paper, results, folder) for paper, results in groups)}
<script>{SCRIPT}</script></body></html>
"""
