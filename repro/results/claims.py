"""Claims, measured on results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repro.paper import Claim
from repro.results.metrics import interval, verdict


def check_claim(claim: Claim, results: Sequence[dict]) -> dict | None:
    """Measure a claim on the results of one paper and preset; None if an arm or a metric of this task is missing.

    Seeds that both arms finished count. The difference is paired by problem where both metrics have per-problem values.
    """
    found: dict[tuple[str, int], dict] = {(r["arm"], r["seed"]): r for r in results if r["status"] == "ok"}
    (arm_a, metric_a), (arm_b, metric_b) = claim.left, claim.right
    seeds = sorted(s for arm, s in found if arm == arm_a and (arm_b, s) in found)
    seeds = [s for s in seeds if metric_a in found[arm_a, s]["metrics"] and metric_b in found[arm_b, s]["metrics"]]
    if not seeds:
        return None
    rows = []
    for seed in seeds:
        a, b = found[arm_a, seed], found[arm_b, seed]
        if metric_a in a["per_problem"] and metric_b in b["per_problem"]:
            rows.append(np.subtract(a["per_problem"][metric_a], b["per_problem"][metric_b]))
        else:
            rows.append([a["metrics"][metric_a]["value"] - b["metrics"][metric_b]["value"]])
    difference = np.asarray(rows, dtype=float)
    low, high = interval(difference)
    return {
        "claim": claim.name,
        "text": claim.text,
        "published": claim.published,
        "left": "/".join(claim.left),
        "right": "/".join(claim.right),
        "threshold": claim.threshold,
        "verdict": verdict(low, high, claim.threshold),
        "seeds": len(seeds),
        "difference": float(difference.mean()),
        "interval": None if np.isnan(low) else [low, high],  # None: one number, one seed
    }
