"""The self-test of a card: refused without one, and its steps on a machine that seems to have one."""

import json

import pytest
from pretend_gpu import pretend

from repro.bench import selftest
from repro.cli import main

HERE = ["step and merge", "against generate", "updates", "graphs"]  # in this process


def test_without_a_gpu_it_says_so_in_a_line(capsys):
    assert main(["selftest", "--gpu"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == (
        "repro: selftest --gpu: no GPU was found; PyTorch needs one that CUDA can use\n"
    )


def test_steps_report_and_a_failed_one_stops_no_other(monkeypatch, capsys):
    monkeypatch.setattr(selftest, "ROWS", (8,))
    monkeypatch.setattr(selftest, "PROMPTS", (1, 2))
    monkeypatch.setattr(selftest, "TOKENS", (512,))

    def broken(setup):
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(selftest.STEPS, "killed and resumed", broken)
    with pretend():
        words = ["selftest", "--gpu", "--preset", "tiny", "--new-tokens", "6", "--steps", *HERE, "killed and resumed"]
        assert main(words) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["failed"] == {"killed and resumed": "RuntimeError: no kernel image"}
    assert found["machine"]["device"] == "cuda (pretended)" and found["machine"]["versions"]["torch"]
    assert found["step and merge"]["merged_share"] == pytest.approx(1, abs=1e-3)  # the preset tiny is in float32
    assert set(found["against generate"]) >= {"8 rows, full length", "16 rows, with stops"}
    assert found["graphs"]["8 rows, full length"]["tokens_per_second"] > 0
    assert found["updates"]["512 tokens"]["used"] == [512, False]
