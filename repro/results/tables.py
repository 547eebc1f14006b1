"""Tables from summaries, as rows of text. Nothing is computed here that takes time, and nothing heavy is imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

WORDS = ("holds", "equivalent", "fails", "undecided")


def shown(value: float, unit: str, sign: str = "") -> str:
    """A share in percent or points, another number as it is."""
    return f"{100 * value:{sign}.1f}" if unit == "share" else f"{value:{sign}.3f}"


def cell(entry: dict | None, unit: str | None = None) -> str:
    """A mean and half the width of its interval; "-" where it wasn't measured."""
    if entry is None:
        return "-"
    unit = unit or entry["unit"]
    half = "" if entry.get("low") is None else f" ± {shown((entry['high'] - entry['low']) / 2, unit)}"
    return shown(entry["value"], unit) + half


def gain_cell(entry: dict | None) -> str:
    """A gain in points with its interval."""
    if entry is None:
        return "-"
    told = "" if entry.get("low") is None else f" [{100 * entry['low']:+.1f}, {100 * entry['high']:+.1f}]"
    return f"{100 * entry['value']:+.1f}{told}"


def arm_rows(summary: dict) -> list[list[str]]:
    """Header and one row per arm, in the paper's order; what no arm has is left out."""
    card = summary["card"]
    columns = [column for column in card["columns"] if column not in summary["not_measured"]]
    published = ["paper"] if card["published"] else []
    rows = [["arm", *columns, "completions", "trained tokens", "minutes", *published]]
    for entry in summary["table"]:
        cells = [cell(entry["metrics"].get(column)) for column in columns]
        spent = [f"{entry['completions']:,.0f}", f"{entry['trained_tokens']:,.0f}", f"{entry['seconds'] / 60:.1f}"]
        told = [card["published"].get(entry["arm"], "")] if published else []
        rows.append([entry["arm"], *cells, *spent, *told])
    return rows


def difference_cell(claim: dict) -> str:
    """What was measured of a claim: difference, interval, threshold."""
    if claim["difference"] is None:
        return "-"
    unit = claim["unit"]
    told = shown(claim["difference"], unit, "+")
    if claim["interval"]:
        low, high = claim["interval"]
        told += f" [{shown(low, unit, '+')}, {shown(high, unit, '+')}]"
    return told + (f" (needs > {shown(claim['threshold'], unit, '+')})" if claim["threshold"] else "")


def verdict_cell(claim: dict) -> str:
    """The verdict in a word: "none" without one, with a mark where seeds for a look are missing."""
    return (claim["verdict"] or "none") + (" (provisional)" if claim["verdict"] and claim["look"] is None else "")


def seeds_cell(claim: dict) -> str:
    """How many seeds decided, and how many there are if that is another number."""
    used = claim["look"] or claim["seeds"]
    return str(used) if used == claim["seeds"] else f"{used} of {claim['seeds']}"


def survives_cell(claim: dict) -> str:
    """Which corrections for many claims a decided difference survives."""
    if claim["verdict"] not in ("holds", "fails") or claim.get("survives_fdr") is None:
        return ""
    both = [("BH", claim["survives_fdr"]), ("Holm", claim.get("survives_holm"))]
    return ", ".join(name for name, yes in both if yes) or "no"


def claim_rows(claims: Sequence[dict]) -> list[list[str]]:
    """Header and one row per claim; the primary one is marked."""
    rows = [["claim", "published", "here", "seeds", "verdict", "survives", "reason"]]
    for c in claims:
        text = c["text"] + (" (primary)" if c["primary"] else "")
        here = [difference_cell(c), seeds_cell(c), verdict_cell(c), survives_cell(c), c["reason"] or ""]
        rows.append([text, c["published"], *here])
    return rows


def ranking(summaries: Sequence[dict]) -> list[dict]:
    """All arms that were measured on the protocol, each once, those with the highest accuracy first.

    The protocol of a preset: the base, problems, evaluation and number of completions that most arms have. Papers that
    depart from it aren't compared.
    """
    entries: dict[tuple, dict] = {}
    for summary in summaries:
        if summary["card"]["departs"]:
            continue
        for arm in summary["table"]:
            if "accuracy" in arm["metrics"]:
                paper = "standard" if arm["standard"] else summary["paper"]
                key = summary["preset"], paper, arm["standard"] or arm["arm"], arm["digest"]
                entry = {**arm, "paper": paper, "preset": summary["preset"], "arm": key[2], "scale": summary["scale"]}
                entry["family"] = "standard arms" if arm["standard"] else summary["card"]["family"]
                base = next((e["metrics"] for e in summary["table"] if e["arm"] == "base"), {})
                entry["traits"] = summary["card"].get("traits", {}).get(arm["arm"], {})
                entry["entropy_kept"] = _ratio(arm["metrics"].get("entropy"), base.get("entropy"))
                entries.setdefault(key, entry)
    counts = Counter((e["preset"], _protocol(e)) for e in entries.values())
    usual = {preset: protocol for (preset, protocol), _ in reversed(counts.most_common())}
    kept = [e for e in entries.values() if usual[e["preset"]] == _protocol(e)]
    return sorted(kept, key=lambda e: (e["preset"] != "tiny", e["preset"], -e["metrics"]["accuracy"]["value"]))


def _ratio(entry: dict | None, base: dict | None) -> float | None:
    return entry["value"] / base["value"] if entry and base and base["value"] else None


def _protocol(entry: dict) -> tuple:
    return tuple(sorted((name, str(value)) for name, value in entry["protocol"].items()))


def leaderboard(summaries: Sequence[dict]) -> list[list[str]]:
    """Header and one row per arm that was measured on the protocol."""
    rows = [["family", "paper", "arm", "preset", "accuracy", "gain over base", "pass@8", "entropy kept", "completions"]]
    rows[0] += ["sampled tokens", "trained tokens", "minutes", "seeds"]
    for e in ranking(summaries):
        spent = [f"{e[name]:,.0f}" for name in ("completions", "sampled_tokens", "trained_tokens")]
        named = [e[name] for name in ("family", "paper", "arm", "preset")]
        rows.append([*named, *_reached(e), *spent, f"{e['seconds'] / 60:.1f}", str(e["seeds"])])
    return rows


def _reached(entry: dict) -> list[str]:
    """Accuracy, gain over the base, pass@8 and the share of the base's entropy of an entry of the ranking."""
    kept = "-" if entry["entropy_kept"] is None else f"{100 * entry['entropy_kept']:.0f} %"
    metrics = entry["metrics"]
    return [cell(metrics["accuracy"]), gain_cell(entry["gain"]), cell(metrics.get("pass@8")), kept]


def side_by_side(summaries: Sequence[dict]) -> dict[str, list[list[str]]]:
    """For each family whose scripts say what sets their arms apart: header and one row per such arm, and the kit's."""
    entries = ranking(summaries)
    found = {}
    for family in sorted({e["family"] for e in entries if e["traits"]}):
        mine = [e for e in entries if e["family"] == "standard arms" or (e["family"] == family and e["traits"])]
        names = list(dict.fromkeys(name for e in mine for name in e["traits"]))
        rows = [["paper", "arm", "preset", *names, "accuracy", "gain over base", "pass@8", "entropy kept"]]
        rows[0] += ["sampled tokens", "trained tokens", "collapsed after"]
        for e in mine:
            spent = [f"{e[name]:,.0f}" for name in ("sampled_tokens", "trained_tokens")]
            collapsed = f"{e['collapsed']:,} completions" if e.get("collapsed") else "-"
            named = [e["paper"], e["arm"], e["preset"], *(e["traits"].get(name, "") for name in names)]
            rows.append([*named, *_reached(e), *spent, collapsed])
        found[family] = rows
    return found


def primary(summary: dict) -> dict | None:
    """The claim that a paper stands or falls with."""
    return next((claim for claim in summary["claims"] if claim["primary"]), None)


def counted(claims: Sequence[dict]) -> str:
    """How many claims have which verdict."""
    words = Counter(c["verdict"] or "without a verdict" for c in claims)
    return ", ".join(f"{words[word]} {word}" for word in (*WORDS, "without a verdict") if words[word])


def board_rows(summaries: Sequence[dict], link: str = "{paper}/README.md") -> list[list[str]]:
    """Header and one row per paper and preset: family, primary claim, verdict, scale."""
    rows = [["paper", "family", "primary claim", "here", "verdict", "scale", "seeds", "all claims"]]
    for s in summaries:
        claim = primary(s)
        told = [claim["text"], difference_cell(claim), f"**{verdict_cell(claim)}**"] if claim else ["-", "-", "-"]
        name = f"[{s['paper']}]({link.format(paper=s['paper'])})"
        seeds = seeds_cell(claim) if claim else str(s["seeds"])
        rows.append([name, s["card"]["family"], *told, f"{s['scale']} ({s['preset']})", seeds, counted(s["claims"])])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; columns that are empty everywhere are left out."""
    filled = [i for i in range(len(rows[0])) if len(rows) == 1 or any(row[i] for row in rows[1:])]
    rows = [[row[i].replace("|", "\\|") for i in filled] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def headline(summary: dict) -> str:
    """What was run: arXiv id, preset, model, task, seeds, size of the evaluation."""
    settings, of_arms = summary["settings"], [e["seeds"] for e in summary["table"]] or [summary["seeds"]]
    seeds = " to ".join(map(str, sorted({min(of_arms), max(of_arms)})))
    return (
        f"(arXiv {summary['card']['arxiv']}): preset {summary['preset']}, model {settings['model']}, "
        f"task {settings['task']}, {seeds} seed{'s' * (seeds != '1')}, {settings['eval_problems']} "
        f"{settings['eval_split']} problems x {settings['eval_samples']} samples"
    )


def notes(summary: dict) -> list[str]:
    """What has to be said with a table."""
    card, told = summary["card"], []
    if card["published"]:
        told.append(f"Column paper: {card['published_setting']}; other model and data, not to be compared as numbers.")
    if card["departs"]:
        told.append(f"Not on the protocol: {card['departs']}.")
    if summary["not_measured"]:
        told.append(f"Not measured: {', '.join(summary['not_measured'])}.")
    if summary["failed"]:
        told.append(f"Failed: {', '.join(summary['failed'])}.")
    return told


def describe(summary: dict) -> str:
    """Title, arms and claims of one paper as Markdown; percentages are in points."""
    parts = [f"**{summary['card']['title']}** {headline(summary)}", markdown(arm_rows(summary)), *notes(summary)]
    if summary["claims"]:
        parts.append(markdown(claim_rows(summary["claims"])))
    return "\n\n".join(parts)
