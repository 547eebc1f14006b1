"""Every paper's script under SIGKILL, twenty times a run, between and inside steps: it ends as if nothing had been."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TIMED

from repro.scripts import paper_scripts

KILLS = 20
COMMON = "--steps 40 --prompts 4 --samples 4 --train-problems 64 --eval-problems 8 --eval-samples 2 --workers 1"
MORE = {
    "atesd": "--updates 40 --probe-problems 4 --aside-problems 8",
    "b_star": "--rounds 10 --dev-problems 2 --updates 8",
    "conf_critique": "--updates 8 --batch 8",
    "distil_dagger": "--updates 40 --groups 2 --aided-problems 8",
    "exit": "--buffer-size 8 --improvements 1",
    "feedback_alignment": "--updates 40 --region-problems 8",
    "interactive_icl": "--updates 40 --conversation-problems 2 --eval-turns 3",
    "intervention": "--pool-problems 24 --pool-samples 4 --sft-steps 4 --hard-problems 8",
    "opd_pitfalls": "--updates 40 --begun-problems 8",
    "opsd": "--updates 40",
    "oreal": "--parts 1 --scored-problems 4",
    "otr": "--updates 40 --batch 4",
    "p_true": "--updates 40 --batch 4",
    "pi_distill": "--updates 30 --batch 8 --aided-problems 8",
    "revise": "--verify-steps 20 --refined-problems 8",
    "rise": "--updates 30 --batch 8 --turn-problems 8",
    "rltf": "--updates 40 --conversation-problems 2 --own-turns 2",
    "score": "--conversation-problems 2",
    "self_certainty": "--eval-problems 160 --eval-samples 8 --rows-per-batch 4",
    "sharpening": "--updates 40 --batch 4",
    "spae": "--think-tokens 128 --probed-problems 8",
    "sws": "--seed-problems 16 --first-steps 8 --proposals 8 --label-samples 4",
    "thinktuning": "--updates 40 --step-problems 3",
}
ARMS = {
    "conf_critique": "cct",
    "distil_dagger": "distil",
    "feedback_alignment": "stepalign",
    "interactive_icl": "rl2f_wm",
    "intervention": "int_rl",
    "opd_pitfalls": "tail",
    "p_true": "p_ik",
    "rise": "rise_2",
    "rltf": "sd",
    "sd_zero": "sd_zero_sync",
    "self_certainty": "base",
    "sharpening": "sharpen_sft",
    "thinktuning": "tt",
}  # else the paper's name
# they measure on a pool, which self_certainty's is killed for, or on dialogues
UNTRAINED = {"blend_asc", "false_positives", "gen_vs_mc", "feedback_friction"}


class Script:
    def __init__(self, name: str, out: Path):
        self.name, self.out = name, out
        words = [*COMMON.split(), *MORE.get(name, "").split(), "--arms", ARMS.get(name, name), "--out", str(out)]
        self.command = [sys.executable, str(paper_scripts()[name]), *words]

    def start(self) -> subprocess.Popen:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen(self.command, text=True, env=environment, **pipes)

    def finish(self) -> None:
        process = self.start()
        errors = process.communicate()[1]
        assert process.returncode == 0, errors[-2000:]

    def outcome(self) -> tuple[dict, dict]:
        (file,) = self.out.glob(f"{self.name}/*/*/result.json")
        result, checkpoint = json.loads(file.read_text()), file.with_name("checkpoint.pt")
        weights = torch.load(checkpoint, weights_only=True)["adapter"] if checkpoint.exists() else {}
        return {k: v for k, v in result.items() if k not in TIMED}, weights


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in paper_scripts() if name not in UNTRAINED])
def test_killed_twenty_times_it_ends_bit_identical(name, tmp_path):
    whole, killed = Script(name, tmp_path / "whole"), Script(name, tmp_path / "killed")
    whole.finish()
    rng = random.Random(name)
    kills, startup = 0, 5.0
    while kills < KILLS:
        process, began = killed.start(), time.monotonic()
        if rng.random() < 0.4:  # behind a step that was finished in this process
            while (line := process.stderr.readline()) and " left" not in line:
                pass
            startup = min(startup, time.monotonic() - began)
            time.sleep(0.2 * rng.random())
        else:  # anywhere, while it starts and in what it does first
            time.sleep(startup * rng.uniform(0.5, 1.1))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    print(f"{name}: {kills} kills")
    assert kills >= KILLS // 2  # a run that was over before its last kill had enough of them
    killed.finish()
    expected, found = whole.outcome(), killed.outcome()
    assert expected[0] == found[0]
    assert all(torch.equal(expected[1][key], found[1][key]) for key in expected[1])
