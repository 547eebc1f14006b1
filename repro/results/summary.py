"""A summary: what tables, pages and lists show of one paper and preset, made from its rows once and stored."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from repro.results.claims import check_claim, paired, with_corrections
from repro.results.metrics import interval

SPENT = ("completions", "sampled_tokens", "trained_tokens", "optimizer_steps")
ALWAYS = ("accuracy", "pass@8", "greedy", "entropy")  # of every arm, beside the paper's columns
PROTOCOL = ("model", "task", "data", "eval_problems", "eval_split", "eval_samples")


def merged(card: dict, rows: Sequence[dict]) -> list[dict]:
    """The rows of a paper's arms, of one preset and settings, from its own rows and those of the kit's arms.

    A standard arm has the kit's row, under the paper's name for it, and with it what the paper measured on that run.
    Where the paper's rows name the digests of the kit's arms, only those count. If the paper measures more, a standard
    arm that is run by name is there only with that.
    """
    own = {(r["arm"], r["seed"]): r for r in rows if r["paper"] == card["slug"]}
    kit: dict[tuple[str, int], list[dict]] = defaultdict(list)
    for row in rows:
        if row["paper"] == "standard" != card["slug"]:
            kit[row["arm"], row["seed"]].append(row)
    named = {name: digest for row in own.values() for name, digest in (row.get("standard") or {}).items()}
    measures = any(row.get("of") for row in own.values())
    found = []
    for arm in card["arms"]:
        name, standard = arm["name"], arm["standard"]
        if not standard or card["slug"] == "standard":
            found += [row for (other, _), row in own.items() if other == name]
            continue
        for (other, seed), made in kit.items():
            made = [row for row in made if row["digest"] == named.get(standard, row["digest"])]
            if other == standard and made:
                more = own.get((name, seed), {})
                more = more if more.get("of") == made[-1]["digest"] and more["status"] == "ok" else {}
                if more or not (measures and arm["by_name"]):
                    found.append(_joined(made[-1], more, card["slug"], name))
        if not any(other == standard for other, _ in kit):  # rows from before there were standard arms
            found += [row for (other, _), row in own.items() if other == name and not row.get("of")]
    return sorted(found, key=lambda row: row["seed"])


def _joined(made: dict, more: dict, slug: str, arm: str) -> dict:
    both = {key: {**made[key], **more.get(key, {})} for key in ("metrics", "per_problem")}
    by = {"measured_by": {key: more[key] for key in ("machine", "date")}} if more else {}
    return {**made, **both, **by, "paper": slug, "arm": arm}


def groups(rows: Sequence[dict], card: Callable[[str], dict]) -> list[tuple[dict, list[dict]]]:
    """(card, merged rows) of each paper, preset and settings among rows; ``card`` finds a paper's by its name."""
    own: dict[tuple[str, str, str], list[dict]] = defaultdict(list)
    for row in rows:
        if row["paper"] != "standard":
            own[row["paper"], row["preset"], row["digest"]].append(row)
    found = []
    for (slug, preset, _), mine in sorted(own.items()):
        kit = [r for r in rows if r["paper"] == "standard" and r["preset"] == preset]
        found.append((card(slug), merged(card(slug), [*mine, *kit])))
    return found


def summarise(card: dict, rows: Sequence[dict]) -> dict:
    """What is shown of merged rows: per arm means with 95 % intervals, budget and gain; claims with verdicts."""
    arms = [arm for arm in card["arms"] if any(r["arm"] == arm["name"] for r in rows)]
    table = [entry for arm in arms if (entry := _arm(card, arm, rows))]
    names = {metric for row in rows for metric in row["metrics"]}
    settings = next((r["settings"] for r in rows if r["arm"] not in _standards(card)), rows[0]["settings"])
    claims = [check_claim(claim, rows) for claim in card["claims"]]
    scale = "toy" if settings["model"] == "tiny" else "small"
    where = {"paper": card["slug"], "preset": rows[0]["preset"]}
    return {
        **where,
        "seeds": len({r["seed"] for r in rows}),
        "scale": scale,
        "arms": {e["arm"]: {c: e["metrics"][c]["value"] for c in card["columns"] if c in e["metrics"]} for e in table},
        "claims": [{**where, **claim, "scale": scale} for claim in claims],
        "table": table,
        "failed": [f"{r['arm']} seed {r['seed']}" for r in rows if r["status"] != "ok"],
        "not_measured": [column for column in card["columns"] if column not in names],
        "settings": settings,
        "made": _made(rows),
        "card": card,
        "digest": fingerprint(card, rows),
    }


def corrected(summaries: Sequence[dict]) -> list[dict]:
    """The summaries with each claim corrected for all claims of its preset."""
    found = []
    for summary in summaries:
        alike = [c for s in summaries if s["preset"] == summary["preset"] for c in s["claims"]]
        places = [i for i, c in enumerate(alike) if c["paper"] == summary["paper"]]
        found.append((summary, alike, places))
    by_preset = {s["preset"]: with_corrections(alike) for s, alike, _ in found}
    return [{**s, "claims": [by_preset[s["preset"]][i] for i in places]} for s, _, places in found]


def fingerprint(card: dict, rows: Sequence[dict]) -> str:
    """Names what a summary was made from: other rows or another card give another one."""
    read = sorted((r["arm"], r["seed"], r["digest"], r["status"], r["date"]) for r in rows)
    read += sorted((r["arm"], r["seed"], r["measured_by"]["date"]) for r in rows if "measured_by" in r)
    values = [[r["metrics"], r["per_problem"]] for r in rows]
    return hashlib.sha256(json.dumps([card, read, values], sort_keys=True).encode()).hexdigest()[:16]


def _standards(card: dict) -> set[str]:
    return {arm["name"] for arm in card["arms"] if arm["standard"]}


def _arm(card: dict, arm: dict, rows: Sequence[dict]) -> dict | None:
    mine = [r for r in rows if r["arm"] == arm["name"] and r["status"] == "ok"]
    if not mine:
        return None
    shown = dict.fromkeys([*card["columns"], *ALWAYS, *(n for p in card["panels"] for n in _panel_names(p, mine))])
    metrics = {name: entry for name in shown if (entry := measured(mine, name))}
    spent = {name: float(np.mean([r["budget"].get(name, 0) for r in mine])) for name in SPENT}
    peaks = [phase["peak_memory_bytes"] for r in mine for phase in r["phases"].values()]
    settings = mine[0]["settings"]
    budget = math.prod(settings.get(n, 1) for n in ("prompts", "samples")) * settings.get("steps", 1)
    base = arm["name"] != "base" and _gain(arm["name"], rows)
    return {
        "arm": arm["name"],
        "standard": arm["standard"],
        "digest": mine[0]["digest"],
        "seeds": len(mine),
        "metrics": metrics,
        **{name: round(value, 1) for name, value in spent.items()},
        "seconds": float(np.mean([r["seconds"] for r in mine])),
        "peak_memory_bytes": max(peaks, default=0),
        "gain": base or None,
        "collapsed": _collapsed(mine, rows),
        "protocol": {**{name: settings.get(name) for name in PROTOCOL}, "completions": budget},
    }


def _panel_names(panel: dict, rows: Sequence[dict]) -> Sequence[str]:
    if panel["kind"] == "sizes":
        return [name for stem in panel["names"] for _, name in sizes(rows, stem)]
    return () if panel["kind"] == "curve" else panel["names"]


def sizes(rows: Sequence[dict], stem: str) -> list[tuple[int, str]]:
    """The metrics ``stem@K`` of some rows as (K, name), K growing."""
    names = {name for row in rows for name in row["metrics"]}
    found = [(name.removeprefix(f"{stem}@"), name) for name in names if name.startswith(f"{stem}@")]
    return sorted((int(k), name) for k, name in found if k.isdigit())


def measured(rows: Sequence[dict], metric: str) -> dict | None:
    """Mean over seeds, its 95 % interval (None: a single number) and unit; None where no row has the metric."""
    rows = [r for r in rows if metric in r["metrics"]]
    if not rows:
        return None
    values = [r["per_problem"].get(metric) or [r["metrics"][metric]["value"]] for r in rows]
    if len({len(row) for row in values}) > 1:  # the problems of this metric differ from seed to seed
        values = [[np.mean(row)] for row in values]
    values = np.asarray(values, dtype=float)
    low, high = interval(values)
    missing = math.isnan(low)
    shown = {"low": None if missing else low, "high": None if missing else high}
    return {"value": float(values.mean()), **shown, "unit": rows[0]["metrics"][metric]["unit"]}


def _gain(arm: str, rows: Sequence[dict]) -> dict | None:
    """Accuracy above the base, paired by problem and seed, with its 95 % interval."""
    values, _, missing = paired((arm, "accuracy"), ("base", "accuracy"), rows)
    if missing:
        return None
    low, high = interval(values)
    return {"value": float(values.mean()), **({} if math.isnan(low) else {"low": low, "high": high})}


def _collapsed(mine: Sequence[dict], rows: Sequence[dict]) -> int | None:
    """Completions after which the mean validation accuracy was first below half of the base's accuracy; None: never."""
    base = [r["metrics"]["accuracy"]["value"] for r in rows if r["arm"] == "base" and "accuracy" in r["metrics"]]
    seen: dict[int, list[dict]] = defaultdict(list)
    for entry in (entry for r in mine for entry in r["history"] if "validation" in entry):
        seen[entry["step"]].append(entry)
    for _, entries in sorted(seen.items() if base else ()):
        if np.mean([e["validation"] for e in entries]) < np.mean(base) / 2:
            return round(np.mean([e["completions"] for e in entries]))
    return None


def _made(rows: Sequence[dict]) -> dict:
    """Model, data, devices, commits, versions and dates of rows, and of what was measured on them later."""
    first, parts = rows[0], [part for row in rows for part in (row, row.get("measured_by")) if part]
    machines, dates = [part["machine"] for part in parts], [part["date"] for part in parts]
    return {
        "model": first["model"],
        "data": first["data"],
        "devices": sorted({m["device"] for m in machines}),
        "commits": sorted({str(m["commit"])[:10] for m in machines}),
        "versions": machines[0]["versions"],
        "dates": [min(dates)[:10], max(dates)[:10]],
    }
