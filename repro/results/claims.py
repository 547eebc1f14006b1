"""Claims, measured on rows: differences with intervals, verdicts at fixed numbers of seeds, corrections for many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from scipy import stats

from repro.results.metrics import RESAMPLES, interval, p_value

FEWEST = 3  # seeds of a verdict, where something is trained
UNTRAINED = "base"  # the arm whose seeds differ in nothing but what was sampled
LOOKS = (5, 10, 20)  # numbers of seeds at which a claim is decided, and no other
LEVEL = 0.0194  # of each look: 5 % over the three (Pocock's boundary for looks of 5, 10 and 20 seeds)
MARGIN = 0.02  # the default of a claim; for what isn't a share it says nothing
DECIDED = ("holds", "fails", "equivalent")
FIELDS = ("text", "published", "threshold", "primary")


def check_claim(claim: dict, rows: Sequence[dict], resamples: int = RESAMPLES) -> dict:
    """A claim (``Claim`` as JSON) measured on the merged rows of one paper and preset.

    Seeds that both arms finished count, in their order; the difference is paired by problem where both metrics have
    values of problems. The first look that decides stands, later seeds change nothing; without one, the last that was
    reached is shown; with 3 or 4 seeds the test of a look is shown without being one. ``p`` counts the three looks.
    Within the untrained base, where no training's luck is shared by all problems, one or two seeds are shown like 3 or
    4: the interval is over the problems of the seeds' mean.
    """
    left, right = claim["left"], claim["right"]
    found = {
        "claim": claim["name"],
        **{name: claim[name] for name in FIELDS},
        "left": "/".join(left),
        "right": "/".join(right),
        **{"margin": claim["margin"], "unit": None, "seeds": 0, "verdict": None, "reason": None, "difference": None},
        **{"interval": None, "look": None, "level": LEVEL, "p": None},
    }
    values, unit, missing = paired(left, right, rows)
    if missing:
        return found | {"reason": missing}
    found |= {"unit": unit, "seeds": len(values)}
    reached = [look for look in LOOKS if look <= len(values)] or [len(values)]
    for count in reached:
        used = values[:count]
        pool = count < FEWEST and left[0] == right[0] == UNTRAINED and used.shape[1] > 1
        if pool:
            used = used.mean(0, keepdims=True)
        low, high = interval(used, LEVEL, resamples)
        found |= {"difference": float(used.mean()), "interval": None if math.isnan(low) else [low, high]}
        found["look"] = count if count in LOOKS else None
        enough = pool or count >= FEWEST
        found["verdict"], found["reason"] = _judge(claim, unit, count, low, high, enough)
        p = p_value(used, claim["threshold"])
        found["p"] = None if math.isnan(p) or not enough else over_looks(p)
        if found["verdict"] in DECIDED:
            break
    return found


def paired(left: Sequence[str], right: Sequence[str], rows: Sequence[dict]) -> tuple[np.ndarray, str, str | None]:
    """[seeds, problems] of the difference and its unit; or why there is none."""
    by_run = {(r["arm"], r["seed"]): r for r in rows if r["status"] == "ok"}
    for arm, metric in (left, right):
        mine = [r for (name, _), r in by_run.items() if name == arm]
        if not mine:
            return np.empty((0, 0)), "number", f"no finished run of arm {arm}"
        if not any(metric in r["metrics"] for r in mine):
            return np.empty((0, 0)), "number", f"metric '{metric}' was not measured in arm {arm}"
    seeds = sorted(seed for arm, seed in by_run if arm == left[0] and (right[0], seed) in by_run)
    pairs = [(by_run[left[0], seed], by_run[right[0], seed]) for seed in seeds]
    pairs = [(a, b) for a, b in pairs if left[1] in a["metrics"] and right[1] in b["metrics"]]
    if not pairs:
        return np.empty((0, 0)), "number", "no seed that both arms have finished"
    units = {a["metrics"][left[1]]["unit"] for a, _ in pairs} | {b["metrics"][right[1]]["unit"] for _, b in pairs}
    unit = "share" if units == {"share"} else "number"
    several = [(a["per_problem"].get(left[1]), b["per_problem"].get(right[1])) for a, b in pairs]
    if len({len(v) if v else 0 for both in several for v in both}) == 1 and several[0][0]:
        return np.asarray([np.subtract(a, b) for a, b in several], dtype=float), unit, None
    single = [[a["metrics"][left[1]]["value"] - b["metrics"][right[1]]["value"]] for a, b in pairs]
    return np.asarray(single, dtype=float), unit, None


def _judge(claim: dict, unit: str, seeds: int, low: float, high: float, enough: bool) -> tuple[str | None, str | None]:
    """The verdict of an interval, and what is to be said with it."""
    if not enough:
        return None, f"no verdict from {('one seed', 'two seeds')[seeds - 1]}: run --seeds {LOOKS[0]}"
    if low == high:
        return None, "no verdict: the seeds don't differ, so that the interval has no width"
    provisional = f"provisional: a claim is decided at {', '.join(map(str, LOOKS[:-1]))} and {LOOKS[-1]} seeds"
    if seeds < FEWEST:
        provisional += f"; the interval is over the problems of {('one pool', 'two pools')[seeds - 1]}"
    word = verdict(low, high, claim["threshold"], allowed_margin(claim, unit))
    if word == "undecided":
        return word, f"excluded: {excluded(low, high, unit)}" + (f"; {provisional}" if seeds < LOOKS[0] else "")
    return word, provisional if seeds < LOOKS[0] else None


def allowed_margin(claim: dict, unit: str) -> float:
    """Within what a difference is called equivalent; 0: it never is. Two points mean something for shares only."""
    given = claim["margin"] != MARGIN
    return claim["margin"] if claim["threshold"] == 0 and (unit == "share" or given) else 0.0


def verdict(low: float, high: float, threshold: float = 0.0, margin: float = 0.0) -> str:
    """holds: the interval is above the threshold; fails: below; equivalent: within +-margin; else undecided."""
    if low > threshold:
        return "holds"
    if high < threshold:
        return "fails"
    return "equivalent" if -margin < low and high < margin else "undecided"


def excluded(low: float, high: float, unit: str) -> str:
    """What differences an interval leaves out, in words."""
    if unit == "share":
        return f"less than {100 * low:+.1f} and more than {100 * high:+.1f} points"
    return f"less than {low:+.3f} and more than {high:+.3f}"


def next_look(claims: Sequence[dict], done: int) -> int | None:
    """The number of seeds to have next after ``done`` of them; None when there is nothing left to decide.

    Decided are the primary claim, or all claims where none is primary. What no further seed can answer (a metric that
    wasn't measured, an interval without width) isn't waited for.
    """
    waited_for = [c for c in claims if c["primary"]] or list(claims)
    open_ = [c for c in waited_for if c["verdict"] == "undecided" or 0 < c["seeds"] < LOOKS[0]]
    if done >= LOOKS[0] and not open_:
        return None
    return next((look for look in LOOKS if look > done), None)


@cache
def over_looks(p: float) -> float:
    """The chance that one of the three looks gives a p as small, where nothing is to be found.

    The looks' normal scores depend on each other, since later ones hold the seeds of earlier ones: numeric integration
    from look to look (Armitage, McPherson and Rowe 1969).
    """
    bound = min(float(stats.norm.isf(p / 2)), 8.0)
    if bound <= 0:
        return 1.0
    points, weights = np.polynomial.legendre.leggauss(60)
    z = bound * points
    density = stats.norm.pdf(z)  # of the first look's score within the bound
    for before, after in pairwise(LOOKS):
        share = before / after  # score' = sqrt(share) score + sqrt(1 - share) noise
        kernel = stats.norm.pdf(z[:, None], np.sqrt(share) * z[None, :], np.sqrt(1 - share))
        density = kernel @ (density * weights * bound)
    return float(max(0.0, 1 - (density * weights * bound).sum()))


def with_corrections(claims: Sequence[dict]) -> list[dict]:
    """The claims of one preset, over all papers, with what is left of them when so many are tested.

    ``fdr`` and ``survives_fdr``: Benjamini and Hochberg's adjusted p over all claims, at most 5 %. ``holm`` and
    ``survives_holm``: Holm's over the primary claims. None where there is no p.
    """
    tested = [i for i, c in enumerate(claims) if c["p"] is not None]
    main = [i for i in tested if claims[i]["primary"]]
    adjusted = {}
    if tested:
        adjusted["fdr"] = dict(
            zip(tested, stats.false_discovery_control([claims[i]["p"] for i in tested]), strict=True)
        )
    if main:
        adjusted["holm"] = dict(zip(main, holm([claims[i]["p"] for i in main]), strict=True))
    found = []
    for i, claim in enumerate(claims):
        row = dict(claim)
        for name in ("fdr", "holm"):
            p = adjusted.get(name, {}).get(i)
            row[name] = None if p is None else float(p)
            row[f"survives_{name}"] = None if p is None else bool(p <= 0.05)
        found.append(row)
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values (1979): the i-th smallest of n, times n - i + 1, none below the one before."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values)[order] * (len(order) - np.arange(len(order)))
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return adjusted.tolist()
