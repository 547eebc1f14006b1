"""The commands that run papers: one and several, seeds up to a look, and the skeleton of a new one."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
from conftest import ROOT

from repro import reproduce, skeleton
from repro.arm import work
from repro.cli import main
from repro.config import ConfigError, Launch, RunConfig
from repro.launch.record import command, remember_command
from repro.scripts import find_script, load_script

SMALL = "--steps 2 --prompts 4 --samples 4 --train-problems 64 --eval-problems 16 --eval-samples 2 --max-new-tokens 48"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Results of all arms of a very small run, through the command with two workers."""
    out = tmp_path_factory.mktemp("runs")
    words = [sys.executable, "-m", "repro.cli", "run", "nft", *SMALL.split(), "--monitors", "0", "--out", str(out)]
    done = subprocess.run([*words, "--workers", "2"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(file.read_text()) for file in sorted(out.glob("*/*/*/result.json"))]
    return done, rows


def test_a_dry_run_tells_what_is_left_and_makes_nothing(tmp_path, capsys):
    assert main(["run", "nft", "--seeds", "2", "--dry-run", "--out", str(tmp_path / "runs")]) == 0
    assert "4 of 4" in capsys.readouterr().out  # rft and nft; base and grpo are the kit's
    assert not (tmp_path / "runs").exists()


def test_last_line_is_one_json_document_and_one_seed_gives_no_verdict(finished):
    done, _ = finished
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    assert summary["status"] == "ok"
    claims = {claim["claim"]: claim for claim in summary["claims"]}
    assert set(claims) == {"nft_over_rft", "nft_on_par_with_grpo", "nft_keeps_entropy"}
    assert all(claim["verdict"] is None for claim in claims.values())
    assert "no verdict from one seed" in done.stdout


@pytest.mark.parametrize("words", [["--out", "/some/where", "--seeds", "2"], ["--seeds", "2", "--out=/some/where"]])
def test_the_command_in_a_result_names_no_folder_of_the_users(words, monkeypatch):
    monkeypatch.setenv("REPRO_COMMAND", "")
    remember_command(["repro", "run", "nft", *words])
    assert command() == "repro run nft --seeds 2"


def test_results_name_a_users_folder_without_its_path(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_COMMAND", "")
    (tmp_path / "a-model").mkdir()
    for words in (["--model", f"{tmp_path}/a-model", "--seeds", "2"], [f"--model={tmp_path}/a-model", "--seeds", "2"]):
        remember_command(["repro", "run", "nft", *words])
        assert command() == "repro run nft --model a-model --seeds 2"
    config = RunConfig(model=f"{tmp_path}/a-model", data=str(tmp_path))
    told = config.told()
    assert (told["model"], told["data"]) == ("a-model", tmp_path.name)
    assert told | {"model": config.model, "data": config.data} == asdict(config)
    assert RunConfig.for_preset("small").told()["model"] == "Qwen/Qwen2.5-0.5B-Instruct"


def test_arms_share_problems_and_budget(finished):
    _, rows = finished
    assert sorted((r["paper"], r["arm"]) for r in rows) == [
        *(("nft", "nft"), ("nft", "rft"), ("standard", "base"), ("standard", "grpo")),
    ]
    trained = [r for r in rows if r["arm"] != "base"]
    assert {r["budget"]["completions"] for r in trained} == {2 * 4 * 4}
    assert len({json.dumps(r["data"]) for r in rows}) == len({json.dumps(r["model"]) for r in rows}) == 1
    # the first rollout is made by the same policy from the same problems with the same random state
    assert len({r["history"][0]["reward"] for r in trained}) == 1
    for row in rows:
        assert row["status"] == "ok" and row["machine"]["versions"]["torch"]
        assert row["command"].startswith("repro run nft --steps 2") and "--out" not in row["command"]
        assert row["phases"]["evaluate"]["peak_memory_bytes"] > 0 and len(row["per_problem"]["accuracy"]) == 16


def test_seeds_are_added_until_the_primary_claim_is_decided(monkeypatch):
    script = find_script("nft")
    paper = load_script(script)
    asked: list[int] = []

    def tasks(tasks, work_, launch):
        assert work_ is work
        asked.append(len({task.seed for task in tasks}))
        return [{"paper": t.paper, "arm": t.arm, "seed": t.seed, "status": "ok"} for t in tasks]

    verdicts = iter(["undecided", "holds"])

    def summarise(card, rows):
        name = next(c["name"] for c in card["claims"] if c["primary"])
        seeds = len({r["seed"] for r in rows})
        claim = {"claim": name, "primary": True, "verdict": next(verdicts), "look": seeds, "seeds": seeds}
        return {"claims": [claim]}

    monkeypatch.setattr(reproduce, "run_tasks", tasks)
    monkeypatch.setattr(reproduce, "summarise", summarise)
    monkeypatch.setattr(reproduce, "merged", lambda card, rows: rows)
    one = reproduce.Work(paper, script, paper.config(), paper.default_arms)
    reproduce.reproduce([one], Launch(until_decided=True))
    assert asked == [5, 5] and one.done == 10 and one.goal(Launch(until_decided=True)) is None
    assert [r["seed"] for r in one.results if r["arm"] == "nft"] == list(range(10))


def test_all_takes_the_settings_of_a_launch(capsys, tmp_path):
    assert main(["all", "nft", "--seeds", "2", "--first-seed", "7", "--dry-run", "--out", str(tmp_path)]) == 0
    assert "4 of 4" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert main(["all", "nft", "--seeds", "0"]) == 2
    assert "--seeds 0" in capsys.readouterr().err


def test_a_new_paper_is_told_what_is_wrong_with_its_name(capsys):
    for name, reason in (("nft", "is there already"), ("NFT!", "can't be a paper's name"), ("standard", "already")):
        with pytest.raises(ConfigError, match=reason):
            skeleton.main([name])
    assert capsys.readouterr().out == ""


def test_the_skeleton_runs_at_once(tmp_path, monkeypatch):
    """In a copy of the repository's layout: the script gives a table, its own test passes, lint is clean."""
    monkeypatch.setattr(skeleton, "ROOT", tmp_path)
    assert skeleton.main(["one_more", "--title", "One More", "--arxiv", "2601.00001"]) == 0
    script = tmp_path / "papers" / "one_more.py"
    assert load_script(script).card()["title"] == "One More"
    words = [*SMALL.split(), "--monitors", "0", "--arms", "one_more", "--workers", "1", "--out", str(tmp_path / "runs")]
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and '"paper": "one_more"' in done.stdout.splitlines()[-1], done.stderr
    test = tmp_path / "tests" / "papers" / "test_one_more.py"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    words = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(tmp_path), str(test)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout
    lint = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), "--ignore", "I001"]
    done = subprocess.run([*lint, str(script), str(test)], capture_output=True)  # imports: the package isn't beside it
    assert done.returncode == 0, done.stdout
