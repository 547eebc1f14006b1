"""Runs in an experiment tracker, which is a file here."""

import importlib.util
import json
import sys
from dataclasses import replace

import pytest

from papers.nft import PAPER, Config
from repro.arm import run_arm
from repro.cli import main
from repro.launch.track import choose_tracker

TRACKER = """
import json, os
def write(*row):
    with open(os.environ["TRACKED"], "a") as file:
        file.write(json.dumps(row) + "\\n")
def init(**settings): write("init", settings)
def log(numbers, step): write("log", numbers, step)
def finish(): write("finish")
"""
CONFIG = Config(prompts=2, samples=2, train_problems=8, eval_problems=4, eval_samples=1, max_new_tokens=32)


@pytest.mark.parametrize("library", ["trackio", "wandb"])
def test_steps_and_results_reach_the_tracker_and_a_resumed_run_goes_on(library, tmp_path, monkeypatch):
    (tmp_path / f"{library}.py").write_text(TRACKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, library, raising=False)
    monkeypatch.setenv("TRACKED", str(tmp_path / "tracked"))
    monkeypatch.setattr("repro.launch.track.LIBRARY", "none")
    choose_tracker(library)
    result = run_arm(PAPER, replace(CONFIG, steps=2), "nft", 0, str(tmp_path / "runs"))
    rows = [json.loads(line) for line in (tmp_path / "tracked").read_text().splitlines()]
    assert [row[0] for row in rows] == ["init", "log", "log", "log", "finish"]
    settings = rows[0][1]
    assert settings["resume"] == "allow" and settings["config"]["samples"] == 2
    assert "nft-seed0" in settings["name"] and settings.get("id", settings["name"]) == settings["name"]
    assert [row[2] for row in rows[1:4]] == [1, 2, 2]
    assert rows[1][1]["reward"] == result["history"][0]["reward"]
    assert rows[3][1]["final accuracy"] == pytest.approx(result["metrics"]["accuracy"]["value"])


def test_a_tracker_that_is_not_installed_is_told_in_one_line(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "wandb" else find(name, *more))
    assert main(["run", "nft", "--track", "wandb"]) == 2
    assert capsys.readouterr().err == "repro: --track wandb: it isn't installed; run: pip install wandb\n"
