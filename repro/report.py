"""Tables and figures from result files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repro.experiment import Claim, Panel, Paper, check_claim
from repro.metrics import interval

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
Group = tuple[str, str, str]  # paper, preset, digest of the settings


def read_results(folder: Path) -> dict[Group, list[dict]]:
    """Every result file below a folder, by paper, preset and settings."""
    groups: dict[Group, list[dict]] = defaultdict(list)
    for file in sorted(folder.rglob("*.json")):
        try:
            result = json.loads(file.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError):
            continue
        if isinstance(result, dict) and {"paper", "arm", "seed", "per_problem"} <= result.keys():
            groups[result["paper"], result["preset"], result["digest"]].append(result)
    return dict(sorted(groups.items()))


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


def draw_pareto(groups: Sequence[tuple[Paper, list[dict]]], target: Any) -> None:
    """Accuracy gained over the base against sampled tokens, a panel per paper, a point per arm; to a path or file.

    The line joins the arms that no other arm of the paper beats with as few tokens. Papers have bases and test
    problems of their own, so that points of two panels aren't to be compared.
    """
    plt = _pyplot()
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.6 * columns, 3.4 * lines), squeeze=False)
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    for axis, (paper, results) in zip(axes.flat, groups, strict=False):
        points = []
        for number, arm in enumerate(paper.all_arms):
            mine = [r for r in results if r["arm"] == arm and r["status"] == "ok"]
            found = gain(results, arm) if mine and arm != "base" else None
            if found is None:
                continue
            x, y = np.mean([r["budget"].get("sampled_tokens", 0) for r in mine]) / 1000, 100 * found["difference"]
            low, high = found["interval"] or (found["difference"],) * 2
            bar = [[y - 100 * low], [100 * high - y]]
            axis.errorbar(x, y, bar, fmt="o", color=f"C{number % 10}", ms=5, lw=1.2, label=arm)
            points.append((x, y))
        best = [(x, y) for x, y in points if not any(u <= x and v > y for u, v in points)]
        if best:
            axis.plot(*zip(*sorted(best), strict=True), color="0.6", lw=0.8, zorder=0)
        axis.axhline(0, color="0.8", lw=0.8, zorder=0)
        if points:  # from 0, so that arms with nearly as many tokens stand together
            axis.set_xlim(-0.05 * max(x for x, _ in points) - 1, 1.1 * max(x for x, _ in points) + 1)
        axis.set_title(paper.slug, fontsize=10)
        axis.set_xlabel("thousand sampled tokens")
        axis.set_ylabel("accuracy gained (points)")
        axis.spines[["top", "right"]].set_visible(False)
        if points:
            axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(target, dpi=110, format="png", metadata={"Software": None})
    plt.close(figure)


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


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw(paper: Paper, results: Sequence[dict], target: Any) -> None:
    """The paper's figure to a path or file, three panels a line: means over seeds, with their range around them."""
    plt = _pyplot()
    panels = paper.panels or tuple(Panel(name, (name,)) for name in paper.curves)
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    width = 4.6 if all(panel.kind == "curve" for panel in panels) else 5.8  # the others' legends stand beside them
    figure, axes = plt.subplots(lines, columns, figsize=(width * columns, 3.4 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        by_arm = {
            arm: mine
            for arm in panel.arms or paper.all_arms
            if (mine := [r for r in results if r["arm"] == arm and r["status"] == "ok"])
        }
        {"curve": _curve, "bars": _bars, "turns": _turns}[panel.kind](axis, panel, by_arm)
        axis.set_ylabel(panel.label)
        axis.spines[["top", "right"]].set_visible(False)
        beside = {} if panel.kind == "curve" else {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
        axis.legend(frameon=False, fontsize=8, **beside)
    figure.tight_layout()
    figure.savefig(target, dpi=110, format="png", metadata={"Software": None})
    plt.close(figure)


def _curve(axis: Any, panel: Panel, by_arm: dict[str, list[dict]]) -> None:
    styles = ("-", "--", ":", "-.")
    for number, (arm, mine) in enumerate(by_arm.items()):
        for style, name in zip(styles, panel.names, strict=False):
            runs = [[(row[panel.x], row[name]) for row in r["history"] if name in row] for r in mine]
            length = min(map(len, runs))
            if not length:
                continue
            x, y = np.moveaxis(np.asarray([run[:length] for run in runs], dtype=float), 2, 0)
            label = arm if len(panel.names) == 1 else f"{arm}, {name}"
            axis.plot(x.mean(0), y.mean(0), style, color=f"C{number}", label=label)
            axis.fill_between(x.mean(0), y.min(0), y.max(0), color=f"C{number}", alpha=0.15, linewidth=0)
    axis.set_xlabel(panel.x.replace("_", " "))
    axis.xaxis.get_major_locator().set_params(integer=True, nbins=7)


def _bars(axis: Any, panel: Panel, by_arm: dict[str, list[dict]]) -> None:
    width = 0.8 / max(1, len(by_arm))
    for number, (arm, mine) in enumerate(by_arm.items()):
        found = [(i, measured(mine, name)) for i, name in enumerate(panel.names)]
        place = [i + number * width for i, value in found if value]
        mean, low, high = np.asarray([value for _, value in found if value]).reshape(-1, 3).T
        error = np.nan_to_num([mean - low, high - mean])
        axis.bar(place, mean, width, yerr=np.maximum(error, 0), label=arm, color=f"C{number}")
    ticks = np.arange(len(panel.names)) + 0.4 - width / 2
    axis.set_xticks(ticks, [name.replace(", ", "\n") for name in panel.names], fontsize=8)


def _turns(axis: Any, panel: Panel, by_arm: dict[str, list[dict]]) -> None:
    for number, (arm, mine) in enumerate(by_arm.items()):
        found = [(i, measured(mine, name)) for i, name in enumerate(panel.names, 1)]
        x = [i for i, value in found if value]
        mean, low, high = np.asarray([value for _, value in found if value]).reshape(-1, 3).T
        axis.plot(x, mean, "o-", color=f"C{number}", label=arm)
        axis.fill_between(x, low, high, color=f"C{number}", alpha=0.15, linewidth=0)
    axis.set_xticks(range(1, len(panel.names) + 1))
    axis.set_xlabel("turn")
