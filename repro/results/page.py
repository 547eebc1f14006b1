"""One self-contained HTML page of all results: tables, claims, figures and settings. It needs no network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from repro.launch.samples import FILE, read
from repro.paper import Paper
from repro.results.figures import draw, draw_pareto
from repro.results.tables import arm_rows, budget_rows, claim_rows, claims, headline

Results = Sequence[tuple[Paper, list[dict]]]

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1.5rem; }
.scroll { overflow-x: auto; } img { width: max(100%, 44rem); height: auto; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } .text td, .text th { text-align: left; white-space: normal; }
th button { all: unset; cursor: pointer; font-weight: 600; } th button:focus-visible { outline: 2px solid; }
.holds, .fails, .undecided { border-radius: 1rem; padding: .1rem .6rem; font-weight: 600; white-space: nowrap; }
.holds { background: #1a7f3733; } .fails { background: #cf222e33; } .undecided { background: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: .5rem 1rem; } nav a { white-space: nowrap; }
.note { opacity: .8; font-size: .9rem; }
pre { overflow-x: auto; background: var(--soft); padding: 1rem; white-space: pre-wrap; }
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


def figure(write: Callable[[io.BytesIO], None], text: str) -> str:
    """A PNG that ``write`` draws, inside the page."""
    buffer = io.BytesIO()
    write(buffer)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<div class="scroll"><img alt="{html.escape(text)}" src="data:image/png;base64,{data}"></div>'


def transcripts(paper: Paper, results: Sequence[dict], folder: Path) -> str:
    """Of each arm's first run whose rollouts are below ``folder``: the last right and the last wrong one."""
    parts = []
    for arm in paper.all_arms:
        runs = [folder / paper.slug / f"{r['preset']}-{r['digest']}" / f"{arm}-seed{r['seed']}" / FILE for r in results]
        rows = next((read(file) for file in runs if file.is_file()), [])
        for right in (True, False):
            row = next((row for row in reversed(rows) if (row["reward"] > 0) == right), None)
            if row:
                head = f"{arm}, step {row['step']}, {'right' if right else 'wrong'} (the answer is {row['reference']})"
                text = f"{row['prompt']}\n>>> {''.join(row['tokens'])}"
                parts.append(f"<h4>{html.escape(head)}</h4><pre>{html.escape(text)}</pre>")
    return f"<details><summary>Transcripts</summary>{''.join(parts)}</details>" if parts else ""


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
        rows = [[row[i] for i in (0, 4, 2, 1, 3)] for row in claim_rows(checked)]  # the verdict where a phone shows it
        parts.append(table(rows, "text"))
    parts.append(figure(partial(draw, paper, results), f"Figure of {paper.slug}"))
    parts.append(transcripts(paper, results, folder))
    parts.append(settings(results))
    return "\n".join(parts)


def page(groups: Results, folder: Path) -> str:
    """The whole page. ``folder`` is where runs with their rollouts may lie (``--out``)."""
    links = "".join(f'<a href="#{p.slug}-{r[0]["preset"]}">{p.slug} ({r[0]["preset"]})</a>' for p, r in groups)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Papers on self-improving language models, run and measured</title><style>{STYLE}</style></head><body>
<h1>Papers on self-improving language models, run and measured</h1>
<nav>{links}</nav>
<h2 id="budget">What a budget buys</h2>
<p>Gain is the accuracy above the base model of the same paper, seeds and test problems, in points (score: that of the
second attempt); ± is half the width of a 95 % interval. Completions, tokens and minutes are means over seeds. A click
on a column's head sorts.</p>
{table(budget_rows(groups))}
{figure(partial(draw_pareto, groups), "Accuracy gained against sampled tokens")}
{"".join(section(paper, results, folder) for paper, results in groups)}
<script>{SCRIPT}</script></body></html>
"""
