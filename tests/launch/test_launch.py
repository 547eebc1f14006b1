"""Many arms side by side: broken and killed ones stop no other, and the plan says what is left to run."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from repro.arm import tasks_of, work
from repro.cli import main
from repro.config import Launch
from repro.launch.many import run_tasks
from repro.launch.overview import Overview, plan
from repro.launch.task import Task
from repro.scripts import load_script

SCRIPT = """
import os, signal
from repro import Paper, RunConfig

def broken(run, config):
    raise ValueError("first line\\nnothing works")

def killed(run, config):
    os.kill(os.getpid(), signal.SIGKILL)

def fine(run, config):
    pass

ARMS = {"fine": fine, "broken": broken, "killed": killed}
PAPER = Paper("made_up", "A made-up paper", "0000.00000", RunConfig, ARMS, ())
"""


@pytest.fixture
def tasks(tmp_path) -> list[Task]:
    script = tmp_path / "made_up.py"
    script.write_text(SCRIPT)
    paper = load_script(script)
    config = replace(paper.config(), eval_problems=4, eval_samples=2, train_problems=8, max_new_tokens=24)
    arms = [("killed", 0), ("broken", 0), ("fine", 0), ("fine", 1)]
    return [t for a, seed in arms for t in tasks_of(paper, script, config, [a], [seed], str(tmp_path / "runs"))]


def test_broken_and_killed_arms_stop_no_other(tasks, capfd):
    results = run_tasks(tasks, work, Launch(workers=2))
    assert [r and r["status"] for r in results] == [None, None, "ok", "ok"]
    told = [line for line in capfd.readouterr().err.splitlines() if "broke off" in line]
    assert len(told) == 2
    assert any("made_up/broken seed 0" in line and "ValueError: nothing works" in line for line in told)
    assert (
        "def broken" in (tasks[1].folder / "error.txt").read_text()
        or "broken" in (tasks[1].folder / "error.txt").read_text()
    )
    assert [task.finished() for task in tasks] == [False, False, True, True]


def test_the_overview_shows_what_runs_now(tasks, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    old, running, over, _ = tasks
    with Overview(tasks) as overview:
        assert os.environ["REPRO_QUIET"] == "1"  # workers leave the screen alone
        for task in (old, running, over):
            task.folder.mkdir(parents=True)
            (task.folder / "progress.txt").write_text(f"{task.name}: step 3/25  1.0 s/step, 0:00:22 left")
        os.utime(old.folder / "progress.txt", (1, 1))  # of an interrupted run that hasn't begun again
        (over.folder / "result.json").write_text("{}")
        overview.show(1)
        shown = capsys.readouterr().err
    assert f"{running.name}: step 3/25" in shown and "1 of 4 arms are over" in shown
    assert old.name not in shown and over.name not in shown
    assert "REPRO_QUIET" not in os.environ


def test_one_after_the_other_a_broken_arm_stops_no_other(tasks):
    results = run_tasks(tasks[1:3], work, Launch(workers=1))
    assert results[0] is None and results[1]["status"] == "ok"


def test_a_task_waits_for_what_it_needs_and_a_folder_is_made_once(tasks, tmp_path):
    first, second = tasks[2:]
    late = replace(first, arm="broken", needs=second.folder, folder=tmp_path / "late")
    results = run_tasks([late, first, second, first], work, Launch(workers=2))
    assert results[0] is None and results[1] is results[3] and results[2]["seed"] == 1
    assert (late.folder / "error.txt").stat().st_mtime >= (second.folder / "result.json").stat().st_mtime


def test_the_plan_counts_what_is_left_and_what_it_costs(tasks):
    tasks[2].folder.mkdir(parents=True)
    (tasks[2].folder / "result.json").write_text(json.dumps({"status": "ok"}))
    phases = {"train": {"peak_memory_bytes": 2_500_000_000}}
    known = [
        {"paper": "made_up", "digest": tasks[0].digest, "arm": arm, "seconds": seconds, "phases": phases}
        for arm, seconds in (("fine", 600.0), ("fine", 1200.0), ("killed", 300.0), ("broken", 300.0))
    ]
    (_, row), text = plan(tasks, known, 2)
    assert row == ["made_up", "tiny", "3", "2", "3 of 4", "12", "2.5"]  # (900 + 300 + 300) s on two processes
    assert text.startswith("about 12 minutes with 2")
    (_, row), text = plan(tasks, known[:2], 2)
    assert row[-2] == "not measured" and "2 arms that were never measured" in text
    other = [{**result, "digest": "other"} for result in known]
    assert "3 arms that were never measured" in plan(tasks, other, 2)[1]
    assert plan([*tasks, *tasks], known, 2) == plan(tasks, known, 2)  # what two papers share is counted once


def test_a_dry_run_runs_nothing(capsys, tmp_path):
    assert main(["all", "nft", "--seeds", "2", "--dry-run", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "nft" in shown and "standard" in shown and shown.count("4 of 4") == 2
    assert list(Path(tmp_path).iterdir()) == []
    assert main(["all", "nfft"]) == 2
    assert "unknown paper" in capsys.readouterr().err
    assert "REPRO_QUIET" not in os.environ
