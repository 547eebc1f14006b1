"""Runs: stages and their resumption, losses and means, failed arms, shared arms, result files."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TIMED

from papers.nft import PAPER, Config
from repro import Arm, Claim, Paper, number, share, standard
from repro.arm import run_arm, run_folder, tasks_of
from repro.methods import standard as kit
from repro.methods.grpo import GRPO, train_grpo
from repro.methods.sft import nll
from repro.model.logprobs import token_logprob
from repro.model.policy import BASE
from repro.model.sampling import sample
from repro.model.training import Batch, Trainer, token_weights
from repro.run import Run
from repro.tasks import prompts

SETTINGS = {"steps": 4, "prompts": 4, "samples": 4, "train_problems": 64, "eval_problems": 16, "eval_samples": 2}
SETTINGS |= {"max_new_tokens": 48, "monitors": 1}
SMALL = [word for k, v in SETTINGS.items() for word in (f"--{k.replace('_', '-')}", str(v))]
CONFIG = Config(**SETTINGS)


def command(out, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "papers" / "nft.py"), *SMALL, "--arms", "nft", "--out", str(out), *more]


def outcome(out) -> tuple[dict, dict]:
    folder = run_folder(PAPER, CONFIG, "nft", 0, str(out))
    result = json.loads((folder / "result.json").read_text())
    weights = torch.load(folder / "checkpoint.pt", weights_only=True)["adapter"]
    return {k: v for k, v in result.items() if k not in TIMED}, weights


def paper_of(**arms) -> Paper:
    return replace(PAPER, arms=arms, claims=(), published={}, panels=())


# --- stages -----------------------------------------------------------------------------------------------------------


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


class Stop(Exception):
    """Stands for a kill at a chosen moment."""


def two_stages(run: Run, config: Config, stop: int | None = None, seen: list | None = None) -> None:
    """Collect, then train from the base with a frozen copy; leaves with Stop when ``stop`` steps are done."""
    begun = lambda: run.kept.update(begun=run.kept.get("begun", 0) + 1)  # noqa: E731
    for part in run.stage("collect", 2):
        check(run, stop, seen, "collect", part)
        run.kept.setdefault("sizes", []).append(len(run.rollout(run.next_problems(2), 2).problems))
    for part in run.stage("train", len(run.kept["sizes"]) + 1, from_base=True, freeze="old", begin=begun):
        check(run, stop, seen, "train", part)
        run.update(Batch([((5, 6), (7, 8))]), nll)


def check(run: Run, stop: int | None, seen: list | None, name: str, part: int) -> None:
    if run.step == stop:
        raise Stop
    if seen is not None:
        seen.append((name, part))


@pytest.mark.parametrize("stop", range(5))
def test_a_run_that_stopped_in_any_step_of_any_stage_goes_on_as_if_nothing_had_been(tmp_path, stop):
    whole = run_arm(paper_of(two=two_stages), CONFIG, "two", 0, str(tmp_path / "whole"))
    seen: list = []
    with pytest.raises(Stop):
        run_arm(
            paper_of(two=lambda run, config: two_stages(run, config, stop, seen)), CONFIG, "two", 0, str(tmp_path / "b")
        )
    again = paper_of(two=lambda run, config: two_stages(run, config, None, seen))
    resumed = run_arm(again, CONFIG, "two", 0, str(tmp_path / "b"))
    assert {k: v for k, v in whole.items() if k not in TIMED} == {k: v for k, v in resumed.items() if k not in TIMED}
    assert seen == [("collect", 0), ("collect", 1), ("train", 0), ("train", 1), ("train", 2)]


def test_a_stage_begins_once_with_a_frozen_copy_the_base_and_a_new_optimiser(tmp_path):
    def train(run: Run, config: Config) -> None:
        for _ in run.stage("first", 2, learning_rate=1e-2):
            run.update(Batch([((5, 6), (7, 8))]), nll)
        trained = run.policy.adapter_state()
        for part in run.stage("second", 1, from_base=True, freeze="old"):
            assert part == 0 and run.trainer.steps == 0
            start, old = run.policy.adapter_state(), run.policy.adapter_state("old")
            assert all(torch.equal(old[k], trained[k]) for k in trained)
            assert not all(torch.equal(start[k], trained[k]) for k in trained)
            assert all(not start[k].any() for k in start if "lora_B" in k)  # the base
            assert run.trainer.learning_rate == 1e-2  # from_base alone keeps the rate

    assert run_arm(paper_of(two=train), CONFIG, "two", 0, str(tmp_path))["status"] == "ok"


# --- updates ----------------------------------------------------------------------------------------------------------


def test_means_of_a_worked_example():
    assert token_weights([1, 3], "token").tolist() == pytest.approx([0.25] * 4)
    assert token_weights([1, 3], "sequence").tolist() == pytest.approx([1 / 2, *[1 / 6] * 3])
    assert token_weights([1, 3], 0.5).tolist() == [0.5] * 4
    own = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert token_weights([1, 3], own) is own


def test_the_temperature_divides_the_logits_only_where_it_is_asked_for(tmp_path):
    run = Run(PAPER, "nft", 0, replace(CONFIG, temperature=0.5), tmp_path)
    batch = Batch([((5, 6), (7, 8))])
    plain, cold = run.logprobs(batch), run.logprobs(batch, temperature=0.5)
    logits = run.values(batch, lambda logits, targets: logits)
    expected = (2 * logits).log_softmax(-1).gather(1, torch.tensor([[7], [8]]))[:, 0]
    assert torch.allclose(cold, expected, atol=1e-5) and not torch.allclose(plain, cold)
    assert torch.allclose(plain, logits.log_softmax(-1).gather(1, torch.tensor([[7], [8]]))[:, 0], atol=1e-5)


def test_before_the_first_update_nothing_is_multiplied_with_the_adapter(tmp_path):
    def train(run: Run, config: Config) -> None:
        batch, used = Batch([((5, 6), (7, 8))]), []
        first = next(m for n, m in run.policy.model.named_modules() if n.endswith("lora_A.policy"))
        first.register_forward_hook(lambda *_: used.append(run.policy.is_base))
        of_base = run.logprobs(batch, BASE)
        assert torch.equal(run.logprobs(batch), of_base) and used == []
        for _ in run.stage("train", 1, learning_rate=1e-2):
            run.update(batch, nll)
        assert used and not run.policy.is_base
        assert not torch.equal(run.logprobs(batch), of_base)

    assert run_arm(paper_of(two=train), CONFIG, "two", 0, str(tmp_path))["status"] == "ok"


def test_a_trained_teacher_of_a_policy_that_is_the_base_reads_with_its_own_adapter(tmp_path):
    def train(run: Run, config: Config) -> None:
        batch = Batch([((5, 6), (7, 8))], contexts=[(5, 6)])
        for _ in run.stage("train", 1, learning_rate=1e-2):
            run.update(batch, nll)
        run.policy.freeze_copy("taught")
        run.policy.reset()
        of_copy = run.logprobs(batch, "taught")
        assert run.policy.is_base and not torch.equal(of_copy, run.logprobs(batch))
        of_teacher = run.values(batch, lambda _, targets, teacher: token_logprob(teacher, targets), teacher="taught")
        assert torch.equal(of_teacher, of_copy)

    assert run_arm(paper_of(two=train), CONFIG, "two", 0, str(tmp_path))["status"] == "ok"


def test_a_non_finite_loss_fails_the_arm_and_keeps_the_last_good_step(tmp_path):
    def explode(run: Run, config: Config) -> None:
        for step in run.stage("train", 3):
            batch = run.rollout(run.next_problems(2), 2).batch()
            factor = float("nan") if step == 2 else 0.0
            run.update(batch, lambda logp, f, factor=factor: logp * factor)

    paper = paper_of(nft=explode)
    result = run_arm(paper, CONFIG, "nft", 0, str(tmp_path))
    assert result["status"] == "failed" and "loss nan" in result["error"]
    checkpoint = torch.load(run_folder(paper, CONFIG, "nft", 0, str(tmp_path)) / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 2


OTHER_ARMS = {
    "rft": PAPER.arms["rft"],
    "rft_weighted": PAPER.arms["rft_weighted"],
    "grpo_kl": lambda run, config: train_grpo(run, 4, 8, 4, GRPO(kl=0.05)),
    "dapo": lambda run, config: train_grpo(run, 4, 8, 4, GRPO("dapo", 2, clip_high=0.28)),
}


@pytest.mark.parametrize("arm", OTHER_ARMS)
def test_other_arms_train(arm, tmp_path):
    """A few steps of each: the loss is finite, tokens are trained on, completions are counted."""
    result = run_arm(paper_of(**OTHER_ARMS), CONFIG, arm, 0, str(tmp_path))
    assert result["status"] == "ok" and result["budget"]["completions"] > 0
    assert result["budget"]["trained_tokens"] > 0 and result["budget"]["optimizer_steps"] >= 1


# --- results ----------------------------------------------------------------------------------------------------------


def test_an_evaluation_is_sampled_in_blocks_and_nothing_twice(tmp_path, monkeypatch):
    config = replace(CONFIG, steps=0, eval_problems=12, eval_samples=2, rows_per_batch=2)  # blocks of 4 problems

    def measure(run, config, rollouts):
        (again,) = run.sample([prompts.solve(rollouts.problems[0])], 3)
        read = run.logprobs(rollouts.batch())
        run.sample([prompts.solve(rollouts.problems[0])], 1)
        return {"again": number(len(again[0].ids)), "read": number(read.sum().item())}

    paper = replace(paper_of(one=lambda run, config: None), measure=measure)
    calls, draw, read, clock = [], sample, Trainer.values, [0.0]
    for module in ("run", "launch.blocks"):
        monkeypatch.setattr(f"repro.{module}.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def counted(model, tokenizer, encoded, *args, stop_at=None):
        calls.append(len(encoded))
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        clock[0] += 100
        return draw(model, tokenizer, encoded, *args)

    def counted_reading(self, batch, *args):
        calls.append("read")
        clock[0] += 100
        return read(self, batch, *args)

    monkeypatch.setattr("repro.run.sample", counted)
    monkeypatch.setattr(Trainer, "values", counted_reading)
    whole = run_arm(paper, config, "one", 0, str(tmp_path / "whole"))
    assert calls == [4, 4, 4, 8, 4, 1, "read", 1]  # 8 and 4: greedy
    calls.clear()
    for stop in (2, 4, 10, 0):  # in the second block; in the third; in what is measured last; then to the end
        with pytest.raises(KeyboardInterrupt) if stop else contextlib.nullcontext():
            monkeypatch.setattr("repro.run.sample", partial(counted, stop_at=stop))
            cut = run_arm(paper, config, "one", 0, str(tmp_path / "cut"))
    assert calls == [4, 4, 4, 4, 4, 8, 4, 1, "read", 1, 1]  # three of them were cut short
    assert cut["phases"]["evaluate"]["seconds"] == whole["phases"]["evaluate"]["seconds"] == 800
    assert cut["metrics"] == whole["metrics"]
    assert cut["per_problem"] == whole["per_problem"]
    assert not list(tmp_path.rglob("evaluation*.pt"))
    # the same completions as all at once
    monkeypatch.setattr(Run, "_drawn_in_blocks", lambda self, draw, encoded, *_: draw(encoded))
    assert run_arm(paper, config, "one", 0, str(tmp_path / "at once"))["metrics"] == whole["metrics"]


def test_what_is_not_defined_is_left_out_of_results(tmp_path):
    def measure(run, config, rollouts):
        assert rollouts.rewards.shape == (16, 2) and len(rollouts.problems) == 16
        return {"of wrong ones": number(float("nan")), "each": share([1.0, float("nan")]), "length": number(7)}

    def train(run, config):
        for step in run.stage("train", 2):
            run.log(reward=step, share=float("nan") if step else 0.5)

    paper = replace(paper_of(nft=train), measure=measure)
    result = run_arm(paper, CONFIG, "nft", 0, str(tmp_path))
    text = (run_folder(paper, CONFIG, "nft", 0, str(tmp_path)) / "result.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == result
    assert not {"of wrong ones", "each"} & set(result["metrics"])
    assert result["metrics"]["length"]["value"] == 7  # a paper's own meaning of a name wins
    assert result["metrics"]["training share"] == {"value": 0.5, "low": None, "high": None, "unit": "number"}
    assert result["metrics"]["accuracy"]["unit"] == "share"
    assert [set(row) & {"reward", "share"} for row in result["history"]] == [{"reward", "share"}, {"reward"}]


def test_other_settings_other_folder():
    folders = {
        run_folder(PAPER, c, "nft", 0, "runs") for c in (CONFIG, replace(CONFIG, eps=0.5), replace(CONFIG, samples=8))
    }
    assert len(folders) == 3


# --- standard arms ----------------------------------------------------------------------------------------------------


def test_papers_in_one_world_share_a_standard_arm_and_others_do_not():
    from papers.opsd import PAPER as OPSD

    def digests(config) -> dict[str, str]:
        return {arm: kit.digest(arm, kit.settings_for(config)) for arm in kit.READS}

    ours, theirs = digests(Config()), digests(OPSD.config(learning_rate=7e-4, clip=0.3, tokens_per_batch=512))
    assert ours == theirs  # what a paper's own arms read changes nothing
    fewer = digests(Config(steps=3))
    changed = {arm for arm in ours if ours[arm] != fewer[arm]}
    assert changed == {"rft", "rft_online", "grpo", "dr_grpo", "dpo"}  # neither base nor sft samples
    assert not set(digests(Config(eval_problems=64)).values()) & set(ours.values())


def test_a_shared_run_is_made_once_and_a_paper_measures_more_on_it(tmp_path):
    calls = []

    def measure(run, config, rollouts):
        calls.append((run.arm, rollouts.rewards.mean().item()))
        first = run.sample([(5, 6)], 1, temperature=0.0)[0][0]
        return {"first tokens": number(first.ids[0])}

    one = replace(paper_of(grpo=standard("grpo")), measure=measure, slug="one")
    two = replace(paper_of(mine=standard("grpo")), slug="two")
    tasks = [t for p in (one, two) for t in tasks_of(p, ROOT / "x.py", CONFIG, p.default_arms, [0], str(tmp_path))]
    names = [t.name for t in tasks]
    assert names == [
        *("standard/base seed 0", "one/base seed 0", "standard/grpo seed 0", "one/grpo seed 0"),
        *("standard/base seed 0", "standard/grpo seed 0"),
    ]
    assert tasks[3].needs == tasks[2].folder == tasks[5].folder and tasks[2].needs is None
    result = run_arm(one, CONFIG, "grpo", 0, str(tmp_path))
    (shared,) = (tmp_path / "standard").glob("*/grpo-seed0/result.json")
    made = json.loads(shared.read_text())
    assert result["of"] == made["digest"] and set(result["metrics"]) == {"first tokens"}
    assert calls == [("grpo", pytest.approx(made["metrics"]["accuracy"]["value"]))]
    before = shared.stat().st_mtime_ns
    assert run_arm(one, CONFIG, "grpo", 0, str(tmp_path)) == result and shared.stat().st_mtime_ns == before


@pytest.mark.parametrize("arm", [name for name in kit.READS if name != "base"])
def test_standard_arms_train_and_spend_the_same(arm, tmp_path):
    config = kit.Config(**SETTINGS, updates=3, batch=4)
    result = run_arm(kit.PAPER, config, arm, 0, str(tmp_path))
    assert result["status"] == "ok" and result["budget"]["optimizer_steps"] > 0
    assert result["budget"]["completions"] == (0 if arm == "sft" else 4 * 4 * 4)


# --- declarations -----------------------------------------------------------------------------------------------------


def test_a_claim_on_an_arm_that_is_not_there_is_told_at_once():
    with pytest.raises(ValueError, match=r"nft, nft_over_rtf: unknown arm rtf; there are base, rft"):
        replace(PAPER, claims=(Claim.over("nft", "rtf"),))
    with pytest.raises(ValueError, match="unknown arm sft"):
        replace(PAPER, published={"sft": "50"})
    with pytest.raises(ValueError, match="more than one primary"):
        replace(PAPER, claims=(Claim.over("nft", "rft", primary=True), Claim.over("nft", "base", primary=True)))
    with pytest.raises(ValueError, match="two claims have one name"):
        replace(PAPER, claims=(Claim.over("nft", "rft"), Claim.over("nft", "rft")))
    with pytest.raises(ValueError, match="no standard arm 'ppo'"):
        standard("ppo")


def test_base_is_implicit_and_by_name_arms_do_not_run_by_themselves():
    paper = paper_of(a=lambda run, config: None, b=Arm(lambda run, config: None, by_name=True))
    assert list(paper.arms) == ["base", "a", "b"] and paper.default_arms == ["base", "a"]
    assert paper.arms["base"].standard == "base"
    json.dumps(PAPER.card(), allow_nan=False)
