"""Figures from results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from repro.paper import Panel, Paper
from repro.results.tables import gain, measured


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
