"""The command line: what a user gets wrong is told in one line with exit code 2."""

import os
import subprocess
import sys
from dataclasses import fields

import pytest
from conftest import ROOT

from repro.cli import USAGE, VERBS, main, verb
from repro.config import RunConfig
from repro.scripts import ALIASES, find_script, load_script, paper_scripts
from repro.tasks.generated import GENERATED
from repro.tasks.loading import load


def refused(capsys, *words: str) -> str:
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    return line


def test_unknown_names(capsys):
    assert "unknown paper 'nfft'; there are" in refused(capsys, "run", "nfft")
    assert "unknown command 'rum'" in refused(capsys, "rum")
    assert "needs a paper" in refused(capsys, "run")
    assert "unknown preset" in refused(capsys, "run", "nft", "--preset", "huge")
    assert "unknown arm" in refused(capsys, "run", "nft", "--arms", "nfft")
    assert "unknown task 'chess'" in refused(capsys, "run", "nft", "--task", "chess", "--workers", "1")
    assert "no such folder" in refused(capsys, "table", "--results", "nowhere")


def test_an_alias_names_a_script(capsys):
    assert set(ALIASES.values()) <= set(paper_scripts()) and not set(ALIASES) & set(paper_scripts())
    for alias, name in ALIASES.items():
        assert load_script(find_script(alias)).slug == name
    assert "unknown arm; there are base, rl" in refused(capsys, "run", "int", "--arms", "none")


def test_values_that_cannot_work(capsys, monkeypatch, tmp_path):
    assert "--samples 0: must be at least 1" in refused(capsys, "run", "nft", "--samples", "0")
    assert "--seeds 0: must be at least 1" in refused(capsys, "run", "nft", "--seeds", "0")
    assert "--learning-rate" in refused(capsys, "run", "nft", "--learning-rate", "-1")
    out = ("--out", str(tmp_path / "runs"), "--workers", "1")
    assert "not a model folder" in refused(capsys, "run", "nft", "--model", str(tmp_path), *out)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "--memory-limit 12: no GPU was found" in refused(capsys, "run", "nft", "--memory-limit", "12", *out)
    (tmp_path / "train.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n{oops\n')
    assert "train.jsonl:2: not a line of JSON" in refused(
        capsys, "run", "nft", "--task", "gsm8k", "--data", str(tmp_path), *out
    )


@pytest.mark.parametrize("preset", RunConfig.PRESETS)
@pytest.mark.parametrize("paper", paper_scripts())
def test_the_settings_of_every_preset_can_work(paper, preset):
    config = load_script(find_script(paper)).config.for_preset(preset)
    config.check()
    if config.task in GENERATED:
        for split, size in (("train", config.train_problems), (config.eval_split, config.eval_problems)):
            assert len(load(config.task, split, size)) == size


def test_gpu_preset_without_a_gpu(tmp_path):
    """In a process that sees no GPU, with workers: the error crosses the process border as one line."""
    words = [
        sys.executable,
        "-m",
        "repro.cli",
        "run",
        "nft",
        "--preset",
        "gpu",
        "--out",
        str(tmp_path),
        "--workers",
        "2",
    ]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.strip().splitlines() == [
        "repro: --preset gpu: no GPU was found; use --preset tiny or --preset smol on a CPU"
    ]


def test_every_verb_is_there_and_is_told():
    assert main([]) == 0
    for name in VERBS:
        assert callable(verb(name)) and f"  repro {name} " in USAGE


def test_a_script_has_the_help_of_its_paper():
    done = subprocess.run([sys.executable, "papers/nft.py", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    assert "--neg-weight" in done.stdout


@pytest.mark.parametrize("name", list(paper_scripts()))
def test_help_lists_every_setting(name, capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", name, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for field in (f.name for f in fields(RunConfig)):
        assert f"--{field.replace('_', '-')}" in shown


def test_importing_the_package_is_light():
    """The grader's worker processes import repro; torch must not come with it."""
    code = "import sys, repro, repro.verify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
