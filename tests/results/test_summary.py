"""From rows to what is shown: shared arms, settings that don't mix, means, gains, the leaderboard, tables."""

import json

import numpy as np
import pytest
from synthetic import CARD, SHARING, drawn, row

from repro.results.summary import corrected, groups, merged, summarise
from repro.results.tables import arm_rows, claim_rows, describe, leaderboard, ranking, side_by_side

ROWS = [row("base", 0, [0.0, 0.5]), row("new", 0, [0.5, 1.0]), row("base", 1, [0.25, 0.5]), row("new", 1, [1.0, 0.75])]


def test_means_and_gain_are_paired_with_the_base():
    summary = summarise(CARD, merged(CARD, ROWS))
    entry = {e["arm"]: e for e in summary["table"]}
    assert list(entry) == ["base", "new"]  # absent has no rows
    assert entry["new"]["metrics"]["accuracy"]["value"] == pytest.approx((0.75 + 0.875) / 2)
    assert entry["new"]["gain"]["value"] == pytest.approx((0.5 + 0.5 + 0.75 + 0.25) / 4)
    assert entry["base"]["gain"] is None and summary["arms"]["new"]["entropy"] == pytest.approx(0.0505)
    assert (entry["new"]["completions"], entry["new"]["peak_memory_bytes"]) == (640, 2_000_000_001)


def test_a_column_that_no_row_has_is_told():
    summary = summarise(CARD, ROWS)
    assert summary["not_measured"] == ["auroc"]
    assert arm_rows(summary)[0] == ["arm", "accuracy", "entropy", "completions", "trained tokens", "minutes", "paper"]
    assert "Not measured: auroc." in describe(summary)
    (claim,) = (c for c in summary["claims"] if c["claim"] == "new_over_base_auroc")
    assert claim["verdict"] is None and "not measured" in claim["reason"]
    assert any("not measured in arm new" in line[-1] for line in claim_rows(summary["claims"]))


def test_a_failed_run_is_named_and_left_out():
    rows = [*ROWS, row("new", 2, [0.0, 0.0], status="failed", metrics={}, per_problem={})]
    summary = summarise(CARD, rows)
    assert summary["failed"] == ["new seed 2"] and "Failed: new seed 2." in describe(summary)
    assert [e["seeds"] for e in summary["table"]] == [2, 2]
    assert describe(summarise(CARD, rows[-1:])).count("Failed") == 1  # with nothing else to show


def test_arms_may_have_different_numbers_of_seeds():
    assert ", 2 seeds, " in describe(summarise(CARD, ROWS))
    assert ", 2 to 3 seeds, " in describe(summarise(CARD, [*ROWS, row("base", 2, [0.0, 0.5])]))


def kit(arm: str, seed: int, digest: str, values: list[float]) -> dict:
    return row(arm, seed, values, paper="standard", digest=digest)


def own(arm: str, seed: int, **more) -> dict:
    digests = {"base": "bbbb", "grpo": "gggg"}
    return row(arm, seed, [0.5, 0.5], paper="y", digest="yyyy", standard=digests, **more)


def test_shared_arms_are_joined_with_what_the_paper_measured_on_them():
    turn = {
        "metrics": {"acc@t2": {"value": 0.5, "low": 0, "high": 1, "unit": "share"}},
        "per_problem": {"acc@t2": [0, 1]},
    }
    rows = [kit("base", 0, "bbbb", [0.0, 0.5]), kit("grpo", 0, "gggg", [1.0, 0.5]), kit("grpo", 0, "other", [0.0, 0.0])]
    rows += [own("own", 0), own("rl", 0, **turn, of="gggg", seconds=1.0)]
    found = {r["arm"]: r for r in merged(SHARING.card(), rows)}
    assert set(found) == {"base", "rl", "own"} and {r["paper"] for r in found.values()} == {"y"}
    rl = found["rl"]
    assert rl["per_problem"] == {"accuracy": [1.0, 0.5], "acc@t2": [0, 1]} and rl["digest"] == "gggg"
    assert rl["seconds"] == 90.0 and {"accuracy", "acc@t2"} <= rl["metrics"].keys()
    rows[-1] |= {"date": "2030-01-01T00:00:00", "machine": {**rows[-1]["machine"], "commit": "later"}}
    made = summarise(SHARING.card(), merged(SHARING.card(), rows))["made"]
    assert "later" in made["commits"] and made["dates"][1] == "2030-01-01"
    stale = [*rows[:-1], own("rl", 0, **turn, of="older")]
    assert "acc@t2" not in {r["arm"]: r for r in merged(SHARING.card(), stale)}["rl"]["metrics"]


def test_a_standard_arm_by_name_is_there_where_the_paper_measured_it_or_measures_nothing_more():
    card = SHARING.card()
    card["arms"] = [{**arm, "by_name": arm["name"] == "rl"} for arm in card["arms"]]
    shared = [kit("base", 0, "bbbb", [0.0, 0.5]), kit("grpo", 0, "gggg", [1.0, 0.5]), own("own", 0)]
    on_base, on_both = (
        [*shared, own("base", 0, of="bbbb")],
        [*shared, own("base", 0, of="bbbb"), own("rl", 0, of="gggg")],
    )
    arms = [{r["arm"] for r in merged(card, rows)} for rows in (shared, on_base, on_both)]
    assert arms == [{"base", "own", "rl"}, {"base", "own"}, {"base", "own", "rl"}]


def test_settings_never_mix():
    rows = drawn("new", 2, 0.6) + drawn("base", 2, 0.4) + drawn("new", 1, 0.1, digest="other")
    made = [summarise(card, mine) for card, mine in groups(rows, {"x": CARD}.__getitem__)]
    assert sorted(s["table"][-1]["seeds"] for s in made) == [1, 2]


def test_the_leaderboard_has_each_shared_run_once_and_no_other_protocol():
    shared = [kit("base", s, "bbbb", [0.25, 0.5]) for s in range(2)] + [
        kit("grpo", s, "gggg", [1.0, 0.5]) for s in range(2)
    ]
    y = summarise(SHARING.card(), merged(SHARING.card(), [*shared, own("own", 0), own("own", 1)]))
    z = {**y, "paper": "z", "card": {**y["card"], "slug": "z"}}
    away = summarise({**CARD, "departs": "another base"}, ROWS)
    other = json.loads(json.dumps(ROWS))
    for r in other:
        r["settings"]["steps"] = 21
    budget = summarise(CARD, other)
    found = ranking([y, z, away, budget])
    assert [(e["paper"], e["arm"]) for e in found] == [
        ("standard", "grpo"),
        ("y", "own"),
        ("z", "own"),
        ("standard", "base"),
    ]
    assert found[0]["gain"]["value"] == pytest.approx(0.375) and found[1]["entropy_kept"] == pytest.approx(1)
    head, first, *_ = leaderboard([y, z, away, budget])
    shown = dict(zip(head, first, strict=True))
    assert (shown["completions"], shown["sampled tokens"], shown["minutes"], shown["seeds"]) == (
        "640",
        "20,000",
        "1.5",
        "2",
    )
    assert shown["gain over base"].startswith("+37.5 [") and shown["pass@8"] == "-"
    assert shown["family"] == "standard arms"


def test_corrections_reach_over_the_papers_of_a_preset():
    made = [summarise(CARD, drawn("base", 5, 0.4) + drawn("new", 5, 0.5))]
    p = made[0]["claims"][0]["p"]
    alone = corrected(made)[0]["claims"][0]
    assert alone["holm"] == pytest.approx(p)
    twice = corrected([*made, {**made[0], "paper": "w", "claims": [{**c, "paper": "w"} for c in made[0]["claims"]]}])
    assert twice[0]["claims"][0]["holm"] == pytest.approx(min(1, 2 * p))
    other = corrected([*made, {**made[0], "paper": "w", "preset": "smol"}])
    assert other[0]["claims"][0]["holm"] == pytest.approx(p)


def test_scale_and_places_of_claims():
    summary = summarise(CARD, ROWS)
    assert {c["scale"] for c in summary["claims"]} == {"toy"} and {c["paper"] for c in summary["claims"]} == {"x"}
    large = [{**r, "settings": {**r["settings"], "model": "Qwen/Qwen2.5-1.5B-Instruct"}} for r in ROWS]
    assert summarise(CARD, large)["claims"][0]["scale"] == "small"
    assert np.isfinite(summary["table"][0]["metrics"]["accuracy"]["high"])


def test_arms_of_a_family_stand_side_by_side_with_what_sets_them_apart():
    low = [{"step": 8, "completions": 64, "validation": 0.3}, {"step": 16, "completions": 128, "validation": 0.1}]
    rows = [row("base", s, [0.25, 0.75]) for s in range(2)]
    rows += [row("new", s, [0.0, 0.1], history=low) for s in range(2)]
    card = {**CARD, "family": "distillation", "traits": {"new": {"teacher reads": "answer"}}}
    (rows,) = side_by_side([summarise(card, rows)]).values()
    (shown,) = (dict(zip(rows[0], line, strict=True)) for line in rows[1:] if line[1] == "new")
    assert shown["teacher reads"] == "answer" and shown["collapsed after"] == "128 completions"
    assert side_by_side([summarise({**card, "traits": {}}, ROWS)]) == {}
