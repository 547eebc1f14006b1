"""Runs on a cluster: the array script, what is missing, ``repro status``; with --slow on a real Slurm, made here."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, TIMED

from repro.cli import main
from repro.config import ConfigError, Launch, as_words, parse
from repro.launch import slurm
from repro.launch.slurm import Element, array_script, folders_of, in_the_queue, limits, split_words
from repro.launch.status import state_of
from repro.launch.storage import CHECKPOINT, only_process
from repro.scripts import find_script, load_script, paper_scripts

SMALL = "--steps 2 --prompts 4 --samples 4 --train-problems 64 --eval-problems 8 --eval-samples 2 --max-new-tokens 48"


def script(capsys, words: str) -> str:
    assert main(words.split()) == 0
    return capsys.readouterr().out


def test_what_stands_behind_slurm_is_for_sbatch():
    assert split_words(["--seeds", "2"]) == (["--seeds", "2"], None)
    assert split_words(["--seeds", "2", "--slurm", "-p", "gpu", "--dry-run"]) == (
        ["--seeds", "2", "--dry-run"],
        ["-p", "gpu"],
    )
    for words in ("--slurm gpu", "--slurm --array=1-3", "--slurm -p gpu --wrap x"):
        with pytest.raises(ConfigError):
            split_words(words.split())


@pytest.mark.parametrize("name", [*paper_scripts(), "standard"])
def test_settings_come_back_from_the_words_of_a_command(name):
    kind = load_script(find_script(name)).config
    for preset in ("tiny", "smol", "small", "gpu"):
        default = replace(kind.for_preset(preset), preset="")
        given = ["--preset", preset, "--learning-rate", "0.00025", "--task", "countdown"]
        changed, launch = parse(kind, given, "repro", "")
        words = as_words(changed, default)
        assert sorted(words) == sorted(given)  # what the preset says needn't be said again
        again, _ = parse(kind, words, "repro", "")
        assert again == changed and again.digest() == changed.digest()
        assert as_words(launch, Launch().for_preset(preset)) == []


def test_time_and_memory_come_from_the_dearest_element_or_are_not_asked():
    a, b = Element(Path("a"), (), 60, 2**30), Element(Path("b"), (), 90, 2**20)
    assert limits([a, b]) == ["--time=11", "--mem=1536M"]  # five minutes and four times 90 s; half again 1 GiB
    assert limits([a, Element(Path("c"), ())]) == []


def test_the_script_is_one_array_of_commands_and_the_users_options_come_last():
    elements = [Element(Path("runs/a b"), (("run", "nft"), ("run", "rise"))), Element(Path("runs/c"), (("run", "x"),))]
    text = array_script("repro-nft", elements, Path("/runs"), ["--time", "9"], most=1)
    options = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --array=0-1%1", "#SBATCH --requeue", "#SBATCH --open-mode=append"} <= set(options)
    assert options[-1] == "#SBATCH --time 9"
    assert folders_of(text) == ["runs/a b", "runs/c"]
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


def test_a_standard_arm_is_one_element_for_all_papers(tmp_path, capsys):
    text = script(capsys, f"all nft rise score --out {tmp_path} --dry-run --slurm")
    folders = folders_of(text)
    assert len(folders) == len(set(folders))
    assert sum("/standard/" in f and "base-seed0" in f for f in folders) == 1
    commands = shlex.split(text.partition("shell\n")[2].partition("\n)\n")[0])
    (base,) = (c for c, f in zip(commands, folders, strict=True) if "base-seed0" in f)
    assert "run nft" in base and "run rise" in base  # rise measures more on it, nft doesn't
    assert base.count("&&") >= 1


def test_what_is_finished_or_in_the_queue_is_not_submitted(tmp_path, capsys, monkeypatch):
    words = f"run nft --seeds 2 --out {tmp_path} --dry-run --slurm"
    before = folders_of(script(capsys, words))
    Path(before[1]).mkdir(parents=True)
    (Path(before[1]) / "result.json").write_text(json.dumps({"status": "ok"}))
    monkeypatch.setattr("repro.reproduce.in_the_queue", lambda out: {Path(before[2]): "PENDING"})
    assert folders_of(script(capsys, words)) == [before[0], *before[3:]]


def test_the_queue_is_read_from_squeue(tmp_path, monkeypatch):
    (tmp_path / "slurm").mkdir()
    text = array_script("x", [Element(tmp_path / "a", ()), Element(tmp_path / "b", ())], tmp_path)
    (tmp_path / "slurm" / "12.sh").write_text(text)
    fake = tmp_path / "squeue"
    fake.write_text("#!/bin/sh\nprintf '12 1 PENDING\\n99 0 RUNNING\\n'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert in_the_queue(tmp_path) == {tmp_path / "b": "PENDING"}


@pytest.mark.parametrize("words", ["--slurm", "--until-decided --slurm"])
def test_without_sbatch_one_line_says_so(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    assert main(["run", "nft", "--out", str(tmp_path), *words.split()]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_status_tells_the_five_states(tmp_path, capsys):
    folders = {name: tmp_path / "nft" / "tiny-0" / f"{name}-seed0" for name in ("done", "bad", "busy", "off", "new")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    (folders["done"] / "result.json").write_text(json.dumps({"status": "ok", "error": None}))
    (folders["bad"] / "error.txt").write_text("Traceback\nValueError: nothing works\n")
    (folders["off"] / CHECKPOINT).touch()
    for name in ("busy", "off"):
        (folders[name] / "progress.txt").write_text("nft/x seed 0: train 3/20  reward 0.4  2.0 s/step, 0:00:34 left")
    with only_process(folders["busy"]):
        assert state_of(folders["busy"], {}) == ("running", "train 3/20  reward 0.4  2.0 s/step, 0:00:34 left")
        assert main(["status", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[-1] == "1 failed, 1 finished, 1 running, 2 stopped"
    assert "ValueError: nothing works" in told and "done-seed0" not in told
    assert state_of(folders["off"], {folders["off"]: "PENDING"})[0] == "queued"
    assert main(["status", "--out", str(tmp_path / "none")]) == 2


def start(out: Path, words: str, seeds: int = 2) -> subprocess.Popen:
    command = [sys.executable, "-m", "repro.cli", "run", *words.split(), *SMALL.split(), "--seeds", str(seeds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "--out", str(out)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def outcomes(out: Path) -> dict[str, dict]:
    rows = {str(f.parent.relative_to(out)): json.loads(f.read_text()) for f in out.glob("*/*/*/result.json")}
    return {name: {k: v for k, v in row.items() if k not in (*TIMED, "command")} for name, row in rows.items()}


@pytest.mark.slow
def test_two_launchers_in_one_folder_lose_nothing(tmp_path):
    both = [start(tmp_path / "shared", "nft --workers 1") for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    assert not any("Traceback" in e for e in errors), errors
    alone = start(tmp_path / "alone", "nft --workers 1")
    assert alone.wait() == 0
    assert outcomes(tmp_path / "shared") == outcomes(tmp_path / "alone")
    assert not list(tmp_path.glob("shared/*/*/*/error.txt"))


# --- a real Slurm: controller and one node on this machine -----------------------------------------------------------

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={at}/state
SlurmdSpoolDir={at}/spool
SlurmctldPidFile={at}/ctld.pid
SlurmdPidFile={at}/d.pid
SlurmctldLogFile={at}/ctld.log
SlurmdLogFile={at}/d.log
SlurmctldPort={port}
SlurmdPort={next}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    if os.getuid() or not (shutil.which("slurmctld") and shutil.which("slurmd")):
        pytest.skip("needs root and slurmctld and slurmd (Debian: slurm-wlm)")
    at = tmp_path / "cluster"
    for name in ("state", "spool"):
        (at / name).mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"host": socket.gethostname().partition(".")[0], "at": at, "port": port, "next": port + 1}
    names["memory"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    (at / "slurm.conf").write_text(CONF.format(**names, cores=len(os.sched_getaffinity(0))))
    monkeypatch.setenv("SLURM_CONF", str(at / "slurm.conf"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    daemons = [subprocess.Popen([name, "-D"], stderr=subprocess.DEVNULL) for name in ("slurmctld", "slurmd")]
    wait_for(lambda: "idle" in told("sinfo", "-h", "-o", "%T"), 60)
    yield at
    told("scancel", "--full", "-u", "root")
    for daemon in reversed(daemons):
        daemon.terminate()
        daemon.wait()


def told(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True).stdout


def wait_for(true, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, told("squeue", "-r") + told("sinfo")
        time.sleep(0.2)


@pytest.mark.slow
def test_a_real_cluster_makes_the_same_results_through_requeue_and_cancel(cluster, tmp_path, capsys):
    out, settings = tmp_path / "runs", f"{SMALL} --steps 24 --seeds 2"
    papers = ("nft --arms nft grpo", "rise --arms rise_1")
    for paper in papers:
        assert main(f"run {paper} {settings} --out {out} --slurm --partition=main".split()) == 0
        assert main(f"run {paper} {settings} --out {out} --slurm --partition=main".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("nothing to submit") for line in lines] == [False, True, False, True]
    assert main(f"run nft {settings} --out {out} --seeds 3 --slurm --partition=nowhere".split()) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1

    def begun(number: int) -> Path | None:
        """The checkpoint of the job's element that has done some steps."""
        file = sorted(out.glob("slurm/*.sh"), key=lambda f: int(f.stem))[0]
        folder = Path(folders_of(file.read_text())[number])
        return folder / CHECKPOINT if (folder / CHECKPOINT).exists() else None

    job = sorted(int(f.stem) for f in out.glob("slurm/*.sh"))[0]
    wait_for(lambda: begun(0) and begun(1), 120)
    told("scontrol", "requeue", f"{job}_0")
    told("scancel", f"{job}_1")
    wait_for(lambda: begun(2), 200)
    told("scancel", "--batch", "--signal=USR1", f"{job}_2")  # what Slurm sends when the time is nearly over
    wait_for(lambda: not told("squeue", "-h").strip(), 400)
    assert main(f"status --out {out}".split()) == 0
    assert "1 stopped" in capsys.readouterr().out.splitlines()[-1]
    assert main(f"run {papers[0]} {settings} --out {out} --slurm --partition=main".split()) == 0  # the cancelled one
    assert "1 runs submitted" in capsys.readouterr().out
    wait_for(lambda: not told("squeue", "-h").strip(), 200)
    assert main(f"status --out {out}".split()) == 0
    assert capsys.readouterr().out.strip() == "6 finished"
    logs = "".join(f.read_text() for f in out.glob("slurm/*.log"))
    assert logs.count("finished before") == 0  # nothing was run twice
    for paper in papers:
        command = f"run {paper} {settings} --out {tmp_path / 'alone'} --workers 2".split()
        assert subprocess.run([sys.executable, "-m", "repro.cli", *command], cwd=ROOT).returncode == 0
    assert outcomes(out) == outcomes(tmp_path / "alone")
