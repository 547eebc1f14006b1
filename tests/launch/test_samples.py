"""Rollouts that a run keeps, and how they are shown."""

from dataclasses import replace

import pytest
import torch

from papers.nft import PAPER, Config
from repro.arm import run_arm, run_folder
from repro.cli import main
from repro.launch.samples import FILE, Recorder, coloured, read
from repro.model.sampling import Completion
from repro.tasks.problem import Problem

CONFIG = Config(steps=2, prompts=4, samples=4, train_problems=64, eval_problems=4, eval_samples=2)
CONFIG = replace(CONFIG, max_new_tokens=32)


class Words:
    """A tokenizer whose token n is the text "n "."""

    def decode(self, ids):
        return "".join(f"{i} " for i in ids)

    def batch_decode(self, rows):
        return [self.decode(row) for row in rows]


def record(recorder: Recorder, step: int) -> None:
    group = [Completion((1,), (2, 3), (-0.01, -3.0), "", False)] * 3
    recorder.add(step, [Problem("q", "7")] * 3, [group] * 3, torch.tensor([[1.0, 0.0, 1.0]] * 3))


def test_what_an_interrupted_step_wrote_is_replaced(tmp_path):
    recorder = Recorder(tmp_path, Words(), 0)
    for step in (1, 2):
        record(recorder, step)
        recorder.flush()
    with open(tmp_path / FILE, "a") as file:
        file.write('{"step": 3, "prom')  # cut off
    resumed = Recorder(tmp_path, Words(), 1)
    record(resumed, 2)
    resumed.flush()
    rows = read(tmp_path / FILE)
    assert [row["step"] for row in rows] == [1] * 4 + [2] * 4  # two problems, two samples of each
    assert [row["reward"] for row in rows[:4]] == [1.0, 0.0, 1.0, 0.0]
    assert rows[0]["tokens"] == ["2 ", "3 "] and rows[0]["prompt"] == "1 "


def test_unlikely_tokens_are_coloured():
    text = coloured(["sure ", "maybe ", "odd ", "never"], [-0.01, -0.5, -1.5, -9.0], True)
    assert text == "sure \x1b[33mmaybe \x1b[0m\x1b[31modd \x1b[0m\x1b[1;97;41mnever\x1b[0m"
    assert coloured(["a", "b"], [-5.0, 0.0], False) == "ab"


def test_a_run_keeps_rollouts_and_the_command_shows_them(tmp_path, capsys):
    run_arm(PAPER, CONFIG, "nft", 0, str(tmp_path))
    folder = run_folder(PAPER, CONFIG, "nft", 0, str(tmp_path))
    rows = read(folder / FILE)
    assert {row["step"] for row in rows} == {1, 2, 3}  # the third is the evaluation
    for row in rows:
        assert len(row["tokens"]) == len(row["logprobs"]) and row["reward"] in (0.0, 1.0)
    capsys.readouterr()
    assert main(["samples", str(folder), "--step", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("--- step 2, reward") == 4 and "step 1" not in shown
    assert "".join(next(row for row in rows if row["step"] == 2)["tokens"]) in shown
    assert main(["samples", str(folder), "--reward", "0.5"]) == 0
    assert "no such rollouts" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["samples"])
    assert main(["samples", str(tmp_path)]) == 2
