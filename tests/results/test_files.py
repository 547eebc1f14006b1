"""Rows in files: nothing is lost, little is stored, two processes don't get in each other's way."""

import json
import subprocess
import sys

import numpy as np
import pytest
from synthetic import drawn, row, whole

from repro.config import ConfigError
from repro.results.files import add_rows, dump_rows, load_rows, locked, pack, read_rows, unpack


@pytest.mark.parametrize("different", [1, 2, 9, 62, 63, 400])
def test_values_of_problems_come_back_as_they_were(different):
    rng = np.random.default_rng(different)
    values = {"a": rng.integers(0, different, 400) / different, "b": rng.random(400), "c": np.full(400, -0.0)}
    values = {name: row.tolist() for name, row in values.items()}
    values["function of a"] = [round(v**2, 6) for v in values["a"]]
    values["short"] = [1.0, 0.0]
    packed = json.loads(json.dumps(pack(values)))
    assert unpack(packed) == values and list(packed) == list(values)
    assert str(unpack(packed)["c"][0]) == "-0.0"


def test_few_values_take_a_character_a_problem_and_functions_of_them_none():
    values = {"accuracy": [i % 9 / 8 for i in range(512)], "pass@8": [float(i % 9 > 0) for i in range(512)]}
    packed = pack(values)
    assert packed["accuracy"]["at"] == "".join(str(i % 9) for i in range(512))
    assert packed["pass@8"] == {"values": [0, *[1] * 8], "of": "accuracy"}


def test_rows_come_back_and_a_plain_loop_reads_them(tmp_path):
    rows = drawn("base", 2, 0.4) + drawn("new", 2, 0.6)
    rows[2]["history"][1]["only here"] = 1.5
    file = tmp_path / "tiny.jsonl"
    file.write_text(dump_rows(rows))
    assert load_rows(file) == rows
    lines = []
    with open(file) as opened:
        for line in opened:
            lines.append(json.loads(line))
    assert [(r["arm"], r["seed"]) for r in lines[1:]] == [("base", 0), ("base", 1), ("new", 0), ("new", 1)]
    assert lines[1]["metrics"]["accuracy"]["value"] == pytest.approx(rows[0]["metrics"]["accuracy"]["value"], rel=1e-5)
    assert len(lines[0]["shared"]) == 4  # settings, model, data, machine: once


def test_a_line_that_is_no_row_is_named(tmp_path):
    file = tmp_path / "tiny.jsonl"
    file.write_text(dump_rows(drawn("base", 1, 0.4)) + "{oops\n")
    with pytest.raises(ConfigError, match=r"tiny.jsonl:3: not a row"):
        load_rows(file)


def test_a_folder_of_runs_and_a_folder_of_results_give_the_same_rows(tmp_path):
    rows = drawn("base", 2, 0.4) + drawn("new", 1, 0.6)
    (tmp_path / "results" / "x").mkdir(parents=True)
    (tmp_path / "results" / "x" / "tiny.jsonl").write_text(dump_rows(rows))
    for made in rows:
        folder = tmp_path / "runs" / "x" / "tiny-00000000" / f"{made['arm']}-seed{made['seed']}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(made))
        (folder / "rollouts.jsonl").write_text('{"step": 1}\n')
    (folder.parent / "cut").mkdir()
    (folder.parent / "cut" / "result.json").write_text('{"paper": "x", ')
    assert read_rows(tmp_path / "runs") == read_rows(tmp_path / "results") == rows


def test_a_row_takes_the_place_of_the_one_with_its_arm_seed_and_digest(tmp_path):
    file = tmp_path / "x" / "tiny.jsonl"
    add_rows(file, [row("new", 0, [0.0, 1.0]), row("new", 1, [0.0, 1.0]), row("base", 0, [0.0, 0.0])])
    add_rows(file, [row("new", 1, [1.0, 1.0])])
    assert [r["per_problem"]["accuracy"] for r in load_rows(file)] == [[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    add_rows(file, [row("new", 0, [0.5, 0.5], digest="1")], lambda old: old["arm"] != "new")
    assert [(r["arm"], r["digest"]) for r in load_rows(file)] == [("base", "00000000"), ("new", "1")]


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    code = """
import sys
from pathlib import Path
from synthetic import row
from repro.results.files import add_rows, locked
folder = Path(sys.argv[1])
for seed in range(5):
    with locked(folder):
        add_rows(folder / "x" / "tiny.jsonl", [row(sys.argv[2], seed, [0.0, 1.0])])
"""
    path = [p for p in sys.path if p]
    run = [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}", str(tmp_path)]
    both = [subprocess.Popen([*run, arm]) for arm in ("a", "b")]
    assert [process.wait() for process in both] == [0, 0]
    found = {(r["arm"], r["seed"]) for r in load_rows(tmp_path / "x" / "tiny.jsonl")}
    assert found == {(arm, seed) for arm in "ab" for seed in range(5)}
    with locked(tmp_path):
        assert [f.name for f in (tmp_path / "x").iterdir()] == ["tiny.jsonl"]


def test_fifty_papers_with_five_arms_and_twenty_seeds_stay_small():
    rows = [whole(arm, seed, "x", 0.4) for arm in "abcde" for seed in range(20)]
    assert 50 * len(dump_rows(rows).encode()) < 30e6
