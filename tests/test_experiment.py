"""Runs: interrupted ones, failed ones, budgets, result files and claims."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, TIMED

from papers.nft import PAPER, Config
from repro import Claim
from repro.arm import run_arm, run_folder
from repro.methods.grpo import GRPO, train_grpo
from repro.methods.rft import train_rft
from repro.methods.sft import train_sft
from repro.results.claims import check_claim
from repro.results.files import read_results
from repro.results.tables import claim_rows

SMALL = ["--iterations", "4", "--prompts", "4", "--samples", "4", "--train-problems", "64", "--eval-problems", "16"]
SMALL += ["--eval-samples", "2", "--max-new-tokens", "48"]
CONFIG = Config(
    iterations=4, prompts=4, samples=4, train_problems=64, eval_problems=16, eval_samples=2, max_new_tokens=48
)


def command(out, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "papers" / "nft.py"), *SMALL, "--arms", "nft", "--out", str(out), *more]


def outcome(out) -> tuple[dict, dict]:
    folder = run_folder(PAPER, CONFIG, "nft", 0, str(out))
    result = json.loads((folder / "result.json").read_text())
    weights = torch.load(folder / "checkpoint.pt", weights_only=True)["adapter"]
    return {k: v for k, v in result.items() if k not in TIMED}, weights


def test_killed_at_random_moments_it_ends_bit_identical(tmp_path):
    """SIGKILL at several moments, among them inside a step; the same command goes on each time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True, env=environment)
    rng = random.Random(0)
    kills = 0
    folder = run_folder(PAPER, CONFIG, "nft", 0, str(tmp_path / "killed"))
    for target in (1, 2, 3):
        process = subprocess.Popen(
            command(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        checkpoint = folder / "checkpoint.pt"
        while process.poll() is None:
            done = torch.load(checkpoint, weights_only=True)["step"] if checkpoint.exists() else 0
            if done >= target:
                time.sleep(rng.random() * 0.3)
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
                break
            time.sleep(0.02)
    assert kills >= 2
    subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True, env=environment)
    whole, killed = outcome(tmp_path / "whole"), outcome(tmp_path / "killed")
    assert whole[0] == killed[0]
    assert all(torch.equal(whole[1][k], killed[1][k]) for k in whole[1])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Results of all arms of a very small run, through the command with two workers."""
    out = tmp_path_factory.mktemp("runs")
    words = [sys.executable, "-m", "repro.cli", "run", "nft", *SMALL, "--iterations", "2", "--out", str(out)]
    done = subprocess.run([*words, "--workers", "2"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return out, done


def test_last_line_is_one_json_document(finished):
    _, done = finished
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    assert summary["status"] == "ok" and set(summary["arms"]) == {"base", "rft", "grpo", "nft"}
    assert {c["claim"] for c in summary["claims"]} == {c.name for c in PAPER.claims}


def test_arms_share_problems_and_budget(finished):
    out, _ = finished
    ((_, results),) = read_results(out).items()
    trained = {r["arm"]: r for r in results if r["arm"] != "base"}
    assert {r["budget"]["completions"] for r in trained.values()} == {2 * 4 * 4}
    assert len({json.dumps(r["data"]) for r in results}) == len({json.dumps(r["model"]) for r in results}) == 1
    # the first rollout is made by the same policy from the same problems with the same random state
    assert len({r["history"][0]["reward"] for r in trained.values()}) == 1
    for result in results:
        assert result["status"] == "ok" and result["machine"]["versions"]["torch"]
        assert set(result["phases"]) >= {"evaluate"} and result["phases"]["evaluate"]["peak_memory_bytes"] > 0
        assert len(result["per_problem"]["accuracy"]) == 16


def test_a_finished_arm_is_not_run_again(finished):
    out, _ = finished
    config = replace(CONFIG, iterations=2)
    file = run_folder(PAPER, config, "nft", 0, str(out)) / "result.json"
    before = file.stat().st_mtime_ns
    assert run_arm(PAPER, config, "nft", 0, str(out)) == json.loads(file.read_text())
    assert file.stat().st_mtime_ns == before


def test_other_settings_other_folder():
    folders = {
        run_folder(PAPER, c, "nft", 0, "runs") for c in (CONFIG, replace(CONFIG, eps=0.5), replace(CONFIG, samples=8))
    }
    assert len(folders) == 3


def test_a_non_finite_loss_fails_the_arm_and_keeps_the_last_good_step(tmp_path):
    def explode(run, config):
        for step in run.steps(3):
            batch = run.rollout(run.next_problems(2), 2).batch()
            factor = float("nan") if step == 2 else 0.0
            run.update(batch, lambda logp, f, factor=factor: logp * factor)

    paper = replace(PAPER, arms={"nft": explode})
    result = run_arm(paper, CONFIG, "nft", 0, str(tmp_path))
    assert result["status"] == "failed" and "loss nan" in result["error"]
    checkpoint = torch.load(run_folder(paper, CONFIG, "nft", 0, str(tmp_path)) / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 2


def test_what_is_not_defined_is_left_out_of_results(tmp_path):
    def measure(run, config):
        return {"accuracy": [1.0, 0.0], "of wrong ones": float("nan"), "each": [1.0, float("nan")]}

    def train(run, config):
        for step in run.steps(2):
            run.log(reward=step, share=float("nan") if step else 0.5)

    paper = replace(PAPER, arms={"nft": train}, evaluate=measure)
    result = run_arm(paper, CONFIG, "nft", 0, str(tmp_path))
    text = (run_folder(paper, CONFIG, "nft", 0, str(tmp_path)) / "result.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == result
    assert set(result["metrics"]) == {"accuracy", "training reward"}
    assert [set(row) & {"reward", "share"} for row in result["history"]] == [{"reward", "share"}, {"reward"}]


def result_of(arm: str, seed: int, accuracy: list[float], status: str = "ok") -> dict:
    metrics = {"accuracy": {"value": float(np.mean(accuracy))}, "entropy": {"value": 0.1 * (arm == "a") + 0.01 * seed}}
    return {"arm": arm, "seed": seed, "status": status, "metrics": metrics, "per_problem": {"accuracy": accuracy}}


def test_claims_are_paired_by_seed_and_problem():
    rng = np.random.default_rng(0)
    hard = rng.random(400)  # problems differ far more than arms do
    results = []
    for seed in range(5):
        results.append(result_of("a", seed, (hard + 0.02 + 0.01 * rng.normal(size=400)).tolist()))
        results.append(result_of("b", seed, hard.tolist()))
    results.append(result_of("b", 5, hard.tolist()))  # no partner
    results.append(result_of("a", 6, hard.tolist(), "failed"))
    results.append(result_of("b", 6, hard.tolist()))
    found = check_claim(Claim("c", "a beats b", ("a", "accuracy"), ("b", "accuracy")), results)
    assert found["verdict"] == "holds" and found["seeds"] == 5
    assert found["difference"] == pytest.approx(0.02, abs=0.002)
    reverse = check_claim(Claim("c", "b beats a", ("b", "accuracy"), ("a", "accuracy")), results)
    assert reverse["verdict"] == "fails"
    on_par = Claim("c", "b is on par", ("b", "accuracy"), ("a", "accuracy"), threshold=-0.05)
    assert check_claim(on_par, results)["verdict"] == "holds"
    entropy = check_claim(Claim("c", "entropy", ("a", "entropy"), ("b", "entropy")), results)
    assert entropy["difference"] == pytest.approx(0.1) and entropy["verdict"] == "holds"
    assert check_claim(Claim("c", "x", ("missing", "accuracy"), ("b", "accuracy")), results) is None
    assert check_claim(Claim("c", "x", ("a", "unmeasured"), ("b", "accuracy")), results) is None


def test_one_number_of_one_seed_is_undecided_and_prints():
    results = [result_of("a", 0, [1.0]), result_of("b", 0, [0.0])]
    claim = check_claim(Claim("c", "entropy", ("a", "entropy"), ("b", "entropy")), results)
    assert claim["verdict"] == "undecided" and claim["interval"] is None
    json.dumps(claim, allow_nan=False)
    assert claim_rows([claim])[1][2] == "+0.100"


OTHER_ARMS = {
    **PAPER.extra_arms,
    "sft": lambda run, config: train_sft(run, 4, 16),
    "rft_online": lambda run, config: train_rft(run, 4, 8, 4, minibatches=2),
    "grpo_kl": lambda run, config: train_grpo(run, 4, 8, 4, GRPO(kl=0.05)),
}


@pytest.mark.parametrize("arm", OTHER_ARMS)
def test_other_arms_and_baselines_train(arm, tmp_path):
    """A few steps of each: the adapter moves, the loss is finite, completions are counted unless none are drawn."""
    result = run_arm(replace(PAPER, arms=OTHER_ARMS, extra_arms={}), CONFIG, arm, 0, str(tmp_path))
    assert result["status"] == "ok"
    assert result["budget"]["trained_tokens"] > 0 and result["budget"]["optimizer_steps"] >= 1
    assert (result["budget"]["completions"] == 0) == (arm == "sft")
    folder = run_folder(PAPER, CONFIG, arm, 0, str(tmp_path))
    adapter = torch.load(folder / "checkpoint.pt", weights_only=True)["adapter"]
    assert any(value.abs().max() > 0 for key, value in adapter.items() if "lora_B" in key)
    assert (folder / "adapter" / "adapter_config.json").is_file()
