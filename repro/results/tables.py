"""Tables from results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repro.paper import Claim, Paper
from repro.results.claims import check_claim
from repro.results.metrics import interval

PERCENT = (
    "accuracy",
    "greedy",
    "pass@",
    "maj@",
    "vote@",
    "any@",
    "acc@",
    "delta",
    "i_to_c",
    "c_to_i",
    "changed",
    "truncated",
)

TOKENS = ("sampled_tokens", "trained_tokens")


def measured(results: Sequence[dict], metric: str) -> tuple[float, float, float] | None:
    """Mean over seeds and its 95 % interval, or None where no seed has the metric."""
    rows = [r["per_problem"].get(metric) or [r["metrics"][metric]["value"]] for r in results if metric in r["metrics"]]
    if not rows:
        return None
    values = np.asarray(rows, dtype=float)
    return float(values.mean()), *interval(values)


def _cell(results: Sequence[dict], metric: str) -> str:
    found = measured(results, metric)
    if found is None:
        return "-"
    mean, low, high = found
    scale, digits = (100, 1) if metric.startswith(PERCENT) else (1, 3)
    half = "" if np.isnan(low) else f" ± {scale * (high - low) / 2:.{digits}f}"
    return f"{scale * mean:.{digits}f}{half}"


def arm_rows(paper: Paper, results: Sequence[dict]) -> list[list[str]]:
    """Header and one row per arm, in the paper's order."""
    published = ["paper"] if paper.published else []
    rows = [["arm", *paper.columns, "completions", "trained tokens", "minutes", *published]]
    for arm in paper.all_arms:
        mine = [r for r in results if r["arm"] == arm and r["status"] == "ok"]
        if not mine:
            continue
        completions = np.mean([r["budget"]["completions"] for r in mine])
        trained = np.mean([r["budget"]["trained_tokens"] for r in mine])
        minutes = np.mean([r["seconds"] for r in mine]) / 60
        cells = [_cell(mine, column) for column in paper.columns]
        told = [paper.published.get(arm, "")] if published else []
        rows.append([arm, *cells, f"{completions:,.0f}", f"{trained:,.0f}", f"{minutes:.1f}", *told])
    return rows


def claims(paper: Paper, results: Sequence[dict]) -> list[dict]:
    """All claims of a paper that these results can answer."""
    preset = results[0]["preset"]
    checked = [check_claim(claim, results) for claim in paper.claims]
    return [{"paper": paper.slug, "preset": preset, **c} for c in checked if c is not None]


def claim_rows(checked: Sequence[dict]) -> list[list[str]]:
    """Header and one row per claim."""
    rows = [["claim", "published", "here", "seeds", "verdict"]]
    for c in checked:
        both = c["left"].partition("/")[2], c["right"].partition("/")[2]
        scale, digits = (100, 1) if all(m.startswith(PERCENT) for m in both) else (1, 3)
        here = f"{scale * c['difference']:+.{digits}f}"
        if c["interval"]:
            low, high = (scale * v for v in c["interval"])
            here += f" [{low:+.{digits}f}, {high:+.{digits}f}]"
        needed = f" (needs > {scale * c['threshold']:+.{digits}f})" if c["threshold"] else ""
        rows.append([c["text"], c["published"], here + needed, str(c["seeds"]), c["verdict"]])
    return rows


def budget_rows(groups: Sequence[tuple[Paper, list[dict]]]) -> list[list[str]]:
    """Across papers, header and one row per trained arm: what was gained over the base, and what it cost."""
    rows = [["paper", "preset", "arm", "gain", "pass@8 gain", "completions", "sampled tokens", "trained tokens"]]
    rows[0] += ["minutes", "peak GB", "seeds"]
    for paper, results in groups:
        for arm in paper.all_arms:
            mine = [r for r in results if r["arm"] == arm and r["status"] == "ok"]
            if arm == "base" or not mine:
                continue
            budget = [np.mean([r["budget"][name] for r in mine]) for name in ("completions", *TOKENS)]
            minutes = np.mean([r["seconds"] for r in mine]) / 60
            peak = max(entry["peak_memory_bytes"] for r in mine for entry in r["phases"].values()) / 1e9
            gains = [_gain(results, arm, metric) for metric in (None, "pass@8")]
            shown = [f"{value:,.0f}" for value in budget]
            costs = [f"{minutes:.1f}", f"{peak:.1f}", str(len(mine))]
            rows.append([paper.slug, mine[0]["preset"], arm, *gains, *shown, *costs])
    return rows


def gain(results: Sequence[dict], arm: str, metric: str | None = None) -> dict | None:
    """The difference of an arm to the base, paired by problem and seed; None where one of them lacks the metric.

    Without a ``metric``: of the accuracy, of that of the second attempt in a paper that has no other.
    """
    if metric is None:
        metric = "accuracy" if any("accuracy" in r["metrics"] for r in results) else "acc@t2"
    pair = [r for r in results if r["arm"] in (arm, "base")]
    if any(metric not in r["metrics"] for r in pair):
        return None
    return check_claim(Claim("gain", "", (arm, metric), ("base", metric)), pair)


def _gain(results: Sequence[dict], arm: str, metric: str | None) -> str:
    found = gain(results, arm, metric)
    if found is None:
        return "-"
    half = "" if found["interval"] is None else f" ± {50 * (found['interval'][1] - found['interval'][0]):.1f}"
    return f"{100 * found['difference']:+.1f}{half}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def headline(paper: Paper, results: Sequence[dict]) -> str:
    """What was run: arXiv id, preset, model, task, seeds, size of the evaluation."""
    settings = results[0]["settings"]
    seeds = len({r["seed"] for r in results})
    return (
        f"(arXiv {paper.arxiv}): preset {results[0]['preset']}, model {settings['model']}, "
        f"task {settings['task']}, {seeds} seed{'s' * (seeds > 1)}, {settings['eval_problems']} "
        f"{settings['eval_split']} problems x {settings['eval_samples']} samples"
    )


def describe(paper: Paper, results: Sequence[dict]) -> str:
    """Title, arms and claims of one paper as Markdown; percentages are in points."""
    failed = [f"{r['arm']} seed {r['seed']}" for r in results if r["status"] != "ok"]
    parts = [f"**{paper.title}** {headline(paper, results)}", markdown(arm_rows(paper, results))]
    if paper.published:
        parts.append(f"Column paper: {paper.published_setting}; other model and data, not to be compared as numbers.")
    checked = claims(paper, results)
    if checked:
        parts.append(markdown(claim_rows(checked)))
    if failed:
        parts.append(f"Failed: {', '.join(failed)}.")
    return "\n\n".join(parts)
