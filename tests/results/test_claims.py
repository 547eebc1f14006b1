"""Verdicts: when there is one, which seeds it is of, and how often it errs."""

import numpy as np
import pytest
from scipy import stats
from synthetic import row

from repro import Claim
from repro.results.claims import (
    LEVEL,
    LOOKS,
    check_claim,
    holm,
    next_look,
    over_looks,
    verdict,
    with_corrections,
)
from repro.results.metrics import interval


def claim(**more) -> dict:
    return {
        **{"name": "c", "text": "a above b", "left": ("a", "accuracy"), "right": ("b", "accuracy"), "threshold": 0.0},
        **{"margin": 0.02, "published": "+1", "primary": True, **more},
    }


def rows_of(differences, problems: int = 30, unit: str = "share") -> list[dict]:
    """Rows of a and b whose accuracies differ by these values, one a seed, and by noise between problems."""
    rows, rng = [], np.random.default_rng(0)
    for seed, difference in enumerate(differences):
        right = 0.5 + 0.01 * rng.normal(size=problems)
        noise = 0.01 * rng.normal(size=problems)
        rows += [row("a", seed, (right + difference + noise - noise.mean()).tolist()), row("b", seed, right.tolist())]
    for made in rows:
        made["metrics"]["accuracy"]["unit"] = unit
    return rows


def measured(differences, **more) -> dict:
    return check_claim(claim(**more), rows_of(differences))


def test_verdict_of_an_interval():
    assert verdict(0.1, 0.2) == "holds"
    assert verdict(-0.2, -0.1) == "fails"
    assert verdict(-0.1, 0.1) == "undecided"
    assert verdict(-0.01, 0.03, threshold=-0.02) == "holds"
    assert verdict(-0.01, 0.019, margin=0.02) == "equivalent"
    assert verdict(0.001, 0.019, margin=0.02) == "holds"
    assert verdict(-0.01, 0.021, margin=0.02) == "undecided"
    assert verdict(float("nan"), float("nan")) == "undecided"


def test_below_three_seeds_there_is_no_verdict():
    for seeds, words in ((1, "one seed"), (2, "two seeds")):
        found = measured([0.3] * seeds)
        assert found["verdict"] is None and found["reason"] == f"no verdict from {words}: run --seeds 5"
        assert found["difference"] == pytest.approx(0.3) and found["look"] is None and found["p"] is None


def pools(differences, problems: int = 200) -> list[dict]:
    """Rows of the base whose metrics left and right differ by these values, one a seed, and by noise of problems."""
    rng, rows = np.random.default_rng(1), []
    for seed, difference in enumerate(differences):
        noise = 0.3 * rng.normal(size=problems)
        values = {"left": (0.5 + difference + noise - noise.mean()).tolist(), "right": [0.5] * problems}
        made = row("base", seed, [0.5] * problems)
        made["per_problem"] |= values
        made["metrics"] |= {n: {"value": float(np.mean(v)), "unit": "share"} for n, v in values.items()}
        rows.append(made)
    return rows


def test_within_the_untrained_base_one_pool_is_shown_as_provisional():
    both = {"left": ("base", "left"), "right": ("base", "right")}
    for seeds, words in ((1, "one pool"), (2, "two pools")):
        found = check_claim(claim(**both), pools([0.1] * seeds))
        assert found["verdict"] == "holds" and found["look"] is None and found["seeds"] == seeds
        assert found["reason"].startswith("provisional") and found["reason"].endswith(f"over the problems of {words}")
        deviation = 0.3 / np.sqrt(200 * seeds)
        low, high = found["interval"]
        assert high - low == pytest.approx(2 * stats.norm.isf(LEVEL / 2) * deviation, rel=0.15)
        assert found["p"] < LEVEL and next_look([found], seeds) == 5
    assert check_claim(claim(**both), pools([0.0]))["reason"].startswith("excluded: less than")
    rows = pools([0.1])
    for made in rows:
        made["per_problem"] = {}  # as of an AUROC over all samples
    assert check_claim(claim(**both), rows)["verdict"] is None


def test_one_pool_errs_as_seldom_as_a_look():
    """Two selectors of the same accuracy on problems of all difficulties: decided wrongly in a share LEVEL of pools."""
    rng, wrong, tries = np.random.default_rng(0), 0, 1000
    both = {"left": ("base", "left"), "right": ("base", "right"), "margin": 0.0}
    for _ in range(tries):
        p = rng.beta(0.5, 0.5, 200)
        made = row("base", 0, [0.5] * 200)
        for name in ("left", "right"):
            values = rng.binomial(16, p) / 16
            made["per_problem"][name] = values.tolist()
            made["metrics"][name] = {"value": values.mean(), "unit": "share"}
        wrong += check_claim(claim(**both), [made], resamples=1000)["verdict"] != "undecided"
    assert stats.binomtest(wrong, tries, LEVEL).pvalue > 0.001


def test_three_and_four_seeds_are_shown_as_provisional():
    found = measured([0.3, 0.31, 0.29])
    assert found["verdict"] == "holds" and found["look"] is None and found["level"] == LEVEL
    assert found["reason"].startswith("provisional")
    assert next_look([found], 3) == 5


def test_the_first_look_that_decides_stands():
    good, bad = [0.3, 0.31, 0.29, 0.3, 0.31], [-0.9] * 15
    first, later = measured(good), measured(good + bad)
    assert later["verdict"] == "holds" and later["look"] == 5 and later["seeds"] == 20
    assert (later["difference"], later["interval"]) == (first["difference"], first["interval"])
    assert measured(good + bad[:2])["interval"] == first["interval"]


def test_between_the_looks_seeds_wait():
    noisy = [0.3, -0.3, 0.1, -0.1, 0.0]
    five, nine = measured(noisy), measured(noisy + [0.9] * 4)
    assert five["verdict"] == nine["verdict"] == "undecided"
    assert nine["interval"] == five["interval"] and nine["look"] == 5 and nine["seeds"] == 9
    ten = measured([*noisy, 0.3, -0.3, 0.1, -0.1, 0.05])
    assert ten["look"] == 10 and ten["difference"] == pytest.approx(0.005)
    many = measured(noisy * 4 + [0.9] * 10)
    assert many["look"] == 20 and many["seeds"] == 30 and many["difference"] == pytest.approx(0)


def test_undecided_says_what_is_excluded():
    found = measured([0.03, -0.03, 0.01, -0.01, 0.0])
    low, high = found["interval"]
    assert found["verdict"] == "undecided"
    assert found["reason"] == f"excluded: less than {100 * low:+.1f} and more than {100 * high:+.1f} points"


def test_equivalent_needs_a_share_or_a_margin_of_its_own():
    near = [0.001, -0.001, 0.002, -0.002, 0.0]
    assert measured(near)["verdict"] == "equivalent"
    assert measured(near, threshold=-0.0005)["verdict"] == "undecided"
    as_numbers = rows_of(near, unit="number")
    assert check_claim(claim(), as_numbers)["verdict"] == "undecided"
    assert check_claim(claim(margin=0.05), as_numbers)["verdict"] == "equivalent"


def test_an_interval_without_width_gives_no_verdict():
    rows = rows_of([0.1] * 5)
    for made in rows:
        made["per_problem"], value = {}, 0.6 if made["arm"] == "a" else 0.5
        made["metrics"]["accuracy"]["value"] = value
    found = check_claim(claim(), rows)
    assert found["verdict"] is None and "no width" in found["reason"] and found["p"] is None
    assert next_look([found], 5) is None


def test_what_was_not_measured_is_said():
    rows = rows_of([0.1] * 5)
    found = check_claim(claim(left=("a", "auroc")), rows)
    assert found["verdict"] is None and found["reason"] == "metric 'auroc' was not measured in arm a"
    assert check_claim(claim(right=("c", "accuracy")), rows)["reason"] == "no finished run of arm c"
    failed = [r if r["arm"] == "a" else r | {"status": "failed"} for r in rows]
    assert check_claim(claim(), failed)["reason"] == "no finished run of arm b"


def test_only_seeds_of_both_arms_count_and_differences_are_paired():
    rows = [r for r in rows_of([0.1, 0.2, 0.3, 0.1, 0.2, 0.3]) if (r["arm"], r["seed"]) != ("b", 5)]
    found = check_claim(claim(), rows)
    assert found["seeds"] == 5 and found["difference"] == pytest.approx(0.18)
    one = check_claim(claim(), rows_of([0.1]))
    assert one["interval"] == pytest.approx([0.1, 0.1], abs=0.01)  # the noise of a alone, not that of the problems


def test_fields_of_a_claim():
    found = measured([0.1] * 3)
    assert {"claim", "text", "published", "left", "right", "threshold", "verdict", "seeds"} <= found.keys()
    assert found["left"] == "a/accuracy" and found["primary"] and found["unit"] == "share"


def test_which_number_of_seeds_comes_next():
    assert next_look([], 0) == 5 and next_look([], 3) == 5
    open_, settled = measured([0.3, -0.3, 0.1, -0.1, 0.0]), measured([0.3, 0.31, 0.29, 0.3, 0.31])
    assert next_look([settled], 5) is None
    assert next_look([open_], 5) == 10 and next_look([open_], 10) == 20 and next_look([open_], 20) is None
    assert next_look([settled, open_ | {"primary": False}], 5) is None
    assert next_look([settled | {"primary": False}, open_ | {"primary": False}], 5) == 10


def test_a_p_counts_the_three_looks():
    """Independent: the looks' scores drawn, each holding the seeds of the one before."""
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(400_000, 3)) * np.sqrt([5, 5, 10])
    scores = np.abs(parts.cumsum(1) / np.sqrt(LOOKS)).max(1)
    for p in (0.3, 0.05, LEVEL, 0.001):
        assert over_looks(p) == pytest.approx((scores > stats.norm.isf(p / 2)).mean(), abs=0.002)
    assert over_looks(LEVEL) <= 0.05 and over_looks(1.0) == 1


def outcomes(mean: float, trials: int, between: float = 0.02, within: float = 0.05) -> dict[str, float]:
    """Shares of the verdicts over three looks, by the function that is used, with fewer resamples and 24 problems."""
    rng, counts = np.random.default_rng(7), {}
    for _ in range(trials):
        values = mean + between * rng.normal(size=(20, 1)) + within * rng.normal(size=(20, 24))
        for look in LOOKS:
            word = verdict(*interval(values[:look], LEVEL, resamples=300), margin=0.02)
            if word != "undecided":
                break
        counts[word] = counts.get(word, 0) + 1 / trials
    return counts


def test_three_looks_err_in_at_most_five_percent(capsys):
    nothing, edge = outcomes(0.0, 1000), outcomes(0.02, 1000)
    with capsys.disabled():
        print("\nthree looks, 1000 trials: a difference of")
        for name, found in (("0", nothing), ("the margin, 2 points", edge)):
            print(f"  {name}: " + ", ".join(f"{word} {100 * share:.1f} %" for word, share in sorted(found.items())))
    assert nothing.get("holds", 0) <= 0.05 and nothing.get("fails", 0) <= 0.05
    assert nothing.get("holds", 0) + nothing.get("fails", 0) <= 0.05
    assert edge.get("equivalent", 0) <= 0.05


def test_holm_of_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_corrections_over_the_claims_of_a_preset():
    made = [{"p": p, "primary": i in (0, 3)} for i, p in enumerate([0.01, 0.02, None, 0.03, 0.9])]
    found = with_corrections(made)
    # Benjamini and Hochberg: p n / rank = .04, .04, .04, .9
    assert [c["fdr"] for c in found] == [pytest.approx(0.04), pytest.approx(0.04), None, pytest.approx(0.04), 0.9]
    assert [c["survives_fdr"] for c in found] == [True, True, None, True, False]
    assert [c["holm"] for c in found] == [pytest.approx(0.02), None, None, pytest.approx(0.03), None]
    assert [c["survives_holm"] for c in found] == [True, None, None, True, None]


def test_a_claim_over_an_arm_is_named_after_both():
    assert Claim.over("a", "b", "pass@8").name == "a_over_b_pass@8"
