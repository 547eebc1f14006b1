"""Tables across papers, in every format, and the page that needs no network."""

import csv
import io
import json
from html.parser import HTMLParser

import pytest

from repro import Paper, RunConfig
from repro.cli import main
from repro.results.page import page
from repro.results.tables import arm_rows, budget_rows, gain

COUNTS = {"completions": 640, "sampled_tokens": 20_000, "trained_tokens": 10_000, "optimizer_steps": 5}


def result(arm: str, seed: int, accuracy: list[float]) -> dict:
    trained = arm != "base"
    return {
        "paper": "x",
        "preset": "tiny",
        "digest": "0",
        "arm": arm,
        "seed": seed,
        "status": "ok",
        "settings": {"model": "m", "task": "t", "eval_problems": 2, "eval_split": "test", "eval_samples": 1},
        "metrics": {"accuracy": {"value": sum(accuracy) / len(accuracy)}, "greedy": {"value": 0.5}},
        "per_problem": {"accuracy": accuracy},
        "budget": {name: value * trained for name, value in COUNTS.items()},
        "phases": {"train": {"seconds": 60.0, "peak_memory_bytes": 2_000_000_000 + seed}},
        "seconds": 90.0,
        "model": {"hash": "h"},
        "data": {"hash": "d"},
        "machine": {"device": "cpu", "commit": "abc", "versions": {"torch": "2"}},
        "history": [{"step": 1, "reward": 0.25}],
    }


PAPER = Paper("x", "A <paper>", "0000.00000", RunConfig, {"base": None, "new": None, "absent": None}, ())
RESULTS = [result("base", 0, [0.0, 0.5]), result("new", 0, [0.5, 1.0])]
RESULTS += [result("base", 1, [0.25, 0.5]), result("new", 1, [1.0, 0.75])]


def test_gain_is_paired_with_the_base():
    assert gain(RESULTS, "new")["difference"] == pytest.approx((0.5 + 0.5 + 0.75 + 0.25) / 4)
    assert gain(RESULTS, "new", "pass@8") is None


def test_gain_of_a_paper_with_two_attempts_is_that_of_the_second():
    two = [
        dict(r, metrics={"acc@t2": r["metrics"]["accuracy"]}, per_problem={"acc@t2": r["per_problem"]["accuracy"]})
        for r in RESULTS
    ]
    assert gain(two, "new")["difference"] == pytest.approx(gain(RESULTS, "new")["difference"])


def test_what_a_budget_buys_has_one_row_per_trained_arm():
    head, *rows = budget_rows([(PAPER, RESULTS)])
    (row,) = (dict(zip(head, row, strict=True)) for row in rows)
    assert row["gain"].startswith("+50.0 ±") and row["pass@8 gain"] == "-"
    assert (row["completions"], row["sampled tokens"]) == ("640", "20,000")
    assert (row["minutes"], row["peak GB"], row["seeds"]) == ("1.5", "2.0", "2")


class Reader(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids.add(attributes.get("id", ""))
        self.links += [attributes[name] for name in ("href", "src") if name in attributes]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "span"):
            self.cells.append(data)


def test_the_page_is_whole_and_needs_nothing_else(tmp_path):
    text = page([(PAPER, RESULTS)], tmp_path)
    reader = Reader(text)
    assert reader.open == []
    assert "A &lt;paper&gt;" in text and "<paper>" not in text
    for link in reader.links:
        assert link.startswith("data:image/png;base64,") or (link[0] == "#" and link[1:] in reader.ids)
    assert sum(link.startswith("data:") for link in reader.links) == 2
    for row in arm_rows(PAPER, RESULTS)[1:]:
        assert all(cell in reader.cells for cell in row)


def test_the_page_shows_what_a_run_wrote(tmp_path):
    folder = tmp_path / "x" / "tiny-0" / "new-seed1"
    folder.mkdir(parents=True)
    row = {"prompt": "2<3?", "tokens": ["a", "<b>"], "logprobs": [0, 0], "reference": "5"}
    rows = [row | {"step": step, "reward": reward} for step, reward in ((1, 1.0), (2, 0.0), (3, 0.0))]
    (folder / "rollouts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = page([(PAPER, RESULTS)], tmp_path)
    assert "new, step 1, right" in text and "new, step 3, wrong" in text and "step 2" not in text
    assert "2&lt;3?" in text and "a&lt;b&gt;" in text
    assert Reader(text).open == []
    assert "Transcripts" not in page([(PAPER, RESULTS)], tmp_path / "x")


def test_committed_results_in_every_format(capsys):
    assert main(["table", "nft", "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row[0] for row in shown["papers"]["nft/tiny"]["arms"]] == ["arm", "base", "rft", "grpo", "nft"]
    assert main(["table", "nft", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["arm"] for row in rows if row["preset"] == "tiny"] == ["rft", "grpo", "nft"]
    assert main(["table", "nft", "--format", "html"]) == 0
    assert Reader(capsys.readouterr().out).open == []
    assert main(["table", "nft"]) == 0
    assert "What a budget buys" in capsys.readouterr().out
