"""Figures from results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from repro.results.summary import measured, sizes


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw(card: dict, results: Sequence[dict], target: Any) -> None:
    """The paper's figure to a path or file, three panels a line: means over seeds, with their range around them."""
    plt = _pyplot()
    curve = {"kind": "curve", "x": "step", "arms": ()}
    panels = card["panels"] or [{**curve, "label": name, "names": (name,)} for name in card["curves"]]
    every = [arm["name"] for arm in card["arms"]]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    width = 4.6 if all(panel["kind"] == "curve" for panel in panels) else 5.8  # the others' legends stand beside them
    figure, axes = plt.subplots(lines, columns, figsize=(width * columns, 3.4 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    kinds = {"curve": _curve, "bars": _bars, "turns": _turns, "sizes": _sizes, "points": _points}
    for axis, panel in zip(axes.flat, panels, strict=False):
        by_arm = {
            arm: mine
            for arm in panel["arms"] or every
            if (mine := [r for r in results if r["arm"] == arm and r["status"] == "ok"])
        }
        kinds[panel["kind"]](axis, panel, by_arm)
        axis.set_ylabel(panel["label"])
        axis.spines[["top", "right"]].set_visible(False)
        beside = {} if panel["kind"] == "curve" else {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8, **beside)
    figure.tight_layout()
    figure.savefig(target, dpi=110, format="png", metadata={"Software": None})
    plt.close(figure)


def _curve(axis: Any, panel: dict, by_arm: dict[str, list[dict]]) -> None:
    styles = ("-", "--", ":", "-.")
    for number, (arm, mine) in enumerate(by_arm.items()):
        for style, name in zip(styles, panel["names"], strict=False):
            runs = [[(row[panel["x"]], row[name]) for row in r["history"] if name in row] for r in mine]
            length = min(map(len, runs))
            if not length:
                continue
            x, y = np.moveaxis(np.asarray([run[:length] for run in runs], dtype=float), 2, 0)
            label = arm if len(panel["names"]) == 1 else f"{arm}, {name}"
            axis.plot(x.mean(0), y.mean(0), style, color=f"C{number}", label=label)
            axis.fill_between(x.mean(0), y.min(0), y.max(0), color=f"C{number}", alpha=0.15, linewidth=0)
    axis.set_xlabel(panel["x"].replace("_", " "))
    axis.xaxis.get_major_locator().set_params(integer=True, nbins=7)


def _bars(axis: Any, panel: dict, by_arm: dict[str, list[dict]]) -> None:
    width = 0.8 / max(1, len(by_arm))
    for number, (arm, mine) in enumerate(by_arm.items()):
        found = [(i, _ends(mine, name)) for i, name in enumerate(panel["names"])]
        place = [i + number * width for i, value in found if value]
        mean, low, high = np.asarray([value for _, value in found if value]).reshape(-1, 3).T
        axis.bar(place, mean, width, yerr=_error(mean, low, high), label=arm, color=f"C{number}")
    ticks = np.arange(len(panel["names"])) + 0.4 - width / 2
    narrow = len(panel["names"]) > 6
    axis.set_xticks(ticks, [name.replace(", ", "\n") for name in panel["names"]], fontsize=6 if narrow else 8)


def _turns(axis: Any, panel: dict, by_arm: dict[str, list[dict]]) -> None:
    for number, (arm, mine) in enumerate(by_arm.items()):
        found = [(i, _ends(mine, name)) for i, name in enumerate(panel["names"], 1)]
        x = [i for i, value in found if value]
        mean, low, high = np.asarray([value for _, value in found if value]).reshape(-1, 3).T
        axis.plot(x, mean, "o-", color=f"C{number}", label=arm)
        axis.fill_between(x, low, high, color=f"C{number}", alpha=0.15, linewidth=0)
    axis.set_xticks(range(1, len(panel["names"]) + 1))
    axis.set_xlabel("turn")


def _sizes(axis: Any, panel: dict, by_arm: dict[str, list[dict]]) -> None:
    number, smallest = 0, 1
    for arm, mine in by_arm.items():
        for stem in panel["names"]:
            if not (named := sizes(mine, stem)):
                continue
            mean, low, high = np.asarray([_ends(mine, name) for _, name in named]).T
            x, label = [k for k, _ in named], stem if len(by_arm) == 1 else f"{arm}, {stem}"
            axis.plot(x, mean, "o-", color=f"C{number}", label=label, markersize=3)
            axis.fill_between(x, low, high, color=f"C{number}", alpha=0.1, linewidth=0)
            number, smallest = number + 1, min(smallest, *x)
    if smallest > 0:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel(panel["x"].replace("_", " "))


def _points(axis: Any, panel: dict, by_arm: dict[str, list[dict]]) -> None:
    for number, (arm, mine) in enumerate(by_arm.items()):
        up, across = (_ends(mine, name) for name in panel["names"])
        if up and across:
            y, x = (_error(*np.reshape(ends, (3, 1))) for ends in (up, across))
            axis.errorbar(across[0], up[0], y, x, "o", color=f"C{number}", label=arm, elinewidth=1)
    axis.set_xlabel(panel["names"][1])


def _ends(rows: Sequence[dict], metric: str) -> tuple[float, float, float] | None:
    """Mean and interval; NaN ends for a single number."""
    entry = measured(rows, metric)
    return entry and tuple(float("nan") if entry[n] is None else entry[n] for n in ("value", "low", "high"))


def _error(mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Lengths of error bars from [n] each, [2, n]; none for a single number."""
    return np.maximum(np.nan_to_num([mean - low, high - mean]), 0)
