"""A run's files: damaged checkpoints, full disks, folders that can't be written, and a second process."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT

from papers.nft import PAPER, Config
from repro.arm import run_arm, run_folder
from repro.launch.storage import (
    BEFORE,
    CHECKPOINT,
    RunFolderInUse,
    load_checkpoint,
    only_process,
    save_checkpoint,
    write_atomically,
)

CONFIG = Config(steps=3, prompts=4, samples=4, train_problems=64, eval_problems=4, eval_samples=2)
CONFIG = replace(CONFIG, max_new_tokens=48)
WORDS = "--steps 3 --prompts 4 --samples 4 --train-problems 64 --eval-problems 4 --eval-samples 2"
WORDS += " --max-new-tokens 48 --arms nft --workers 1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return run_arm(PAPER, CONFIG, "nft", 0, str(out))


def interrupted(out) -> object:
    """The folder of a run that stopped before its evaluation."""
    run_arm(PAPER, CONFIG, "nft", 0, str(out))
    folder = run_folder(PAPER, CONFIG, "nft", 0, str(out))
    (folder / "result.json").unlink()
    return folder


def same(one: dict, other: dict) -> bool:
    return all(one[key] == other[key] for key in ("history", "per_problem", "budget", "metrics"))


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "flipped bit"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole, tmp_path, capfd, damage):
    folder = interrupted(tmp_path)
    data = (folder / CHECKPOINT).read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    made = {"cut": data[:middle], "empty": b"", "noise": os.urandom(2000), "flipped bit": flipped}[damage]
    (folder / CHECKPOINT).write_bytes(made)
    assert torch.load(folder / BEFORE, weights_only=True)["step"] == 2
    resumed = run_arm(PAPER, CONFIG, "nft", 0, str(tmp_path))
    assert "checkpoint.pt is damaged; going on from the one before" in capfd.readouterr().err
    assert same(resumed, whole)


def test_without_any_whole_checkpoint_it_begins_anew(whole, tmp_path, capfd):
    folder = interrupted(tmp_path)
    for name in (CHECKPOINT, BEFORE):
        (folder / name).write_bytes(b"?")
    assert same(run_arm(PAPER, CONFIG, "nft", 0, str(tmp_path)), whole)
    assert "going on from the beginning" in capfd.readouterr().err


def test_writing_that_fails_leaves_the_old_file(tmp_path):
    file = tmp_path / "x"
    file.write_text("old")

    def half(target):
        target.write(b"new")
        raise OSError("no space")

    with pytest.raises(OSError):
        write_atomically(file, half)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, {"step": step})
    assert [torch.load(tmp_path / n, weights_only=True)["step"] for n in (CHECKPOINT, BEFORE)] == [3, 2]


def test_a_full_disk_is_told_in_one_line_and_nothing_is_lost(whole, tmp_path):
    """A file size limit stands for the full disk: the first checkpoint can't be written."""
    command = [sys.executable, str(ROOT / "papers" / "nft.py"), *WORDS.split(), "--out", str(tmp_path)]
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); "
    limited += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", limited, *command[1:]], capture_output=True, text=True)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("repro:")]
    assert len(lines) == 1 and "nft/nft seed 0 broke off" in lines[0]
    assert "Traceback" not in done.stderr
    subprocess.run(command, check=True, capture_output=True)
    result = json.loads((run_folder(PAPER, CONFIG, "nft", 0, str(tmp_path)) / "result.json").read_text())
    assert result["budget"] == whole["budget"] and result["per_problem"] == whole["per_problem"]


def test_a_second_process_on_a_run_folder_says_so(tmp_path):
    folder = run_folder(PAPER, CONFIG, "nft", 0, str(tmp_path))
    folder.mkdir(parents=True)
    with only_process(folder), pytest.raises(RunFolderInUse, match="another process is at work"):
        run_arm(PAPER, CONFIG, "nft", 0, str(tmp_path))
    with only_process(folder):  # it was let go
        pass


def test_no_bytes_make_reading_a_checkpoint_fail(tmp_path):
    warnings = []
    for seed in range(200):
        (tmp_path / CHECKPOINT).write_bytes(random.Random(seed).randbytes(2000))
        assert load_checkpoint(tmp_path, warnings.append) is None
    assert len(warnings) == 200
