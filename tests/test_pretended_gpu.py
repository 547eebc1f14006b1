"""Every paper's script on a machine that seems to have a GPU (``pretend_gpu``), and the rules that it must hold to."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import perturb
from pretend_gpu import WrongDevice, on_gpu, pretend

import repro.reproduce  # noqa: F401, not to be imported on the pretended machine, where names of torch are others
from repro.cli import main
from repro.config import RunConfig
from repro.model.policy import Policy, pick_device
from repro.scripts import find_script, load_script, paper_scripts

SMALLEST = {  # as far as a paper has the setting
    **{"steps": 2, "prompts": 4, "samples": 4, "train_problems": 32, "max_new_tokens": 40, "monitors": 1},
    **{"eval_problems": 2, "eval_samples": 2, "updates": 1, "minibatches": 1, "epochs": 1, "rounds": 1, "turns": 2},
    **{"dev_problems": 2, "warmup_problems": 4, "warmup_updates": 1, "verify_steps": 1, "batch": 4, "sft_batch": 4},
    **{"pool_problems": 8, "pool_samples": 2, "hard_problems": 2, "hard_samples": 2, "sft_steps": 1},
    **{"turn_problems": 2, "refined_problems": 2, "conversation_problems": 2, "begun_problems": 2},
    **{"most_probes": 2, "probed_problems": 2, "think_samples": 2, "limit": 40, "think_tokens": 48},
    **{"groups": 2, "aided_problems": 2, "region_problems": 2, "probe_problems": 2, "aside_problems": 2},
    **{"parts": 1, "frozen": 1, "scored_problems": 2},
    **{"seed_problems": 4, "first_steps": 1, "proposals": 4, "label_samples": 2},
    **{"dialogue_problems": 2, "step_problems": 2, "own_turns": 2, "improvements": 1, "buffer_size": 8},
    **{"turns": 2, "eval_turns": 3},
}
ALIKE = {  # arms that run no line that another arm of theirs doesn't
    "nft": {"rft", "rft_weighted"},
    "standard": {"dr_grpo"},
    "opsd": {"opsd_unclipped", "opsd_v3"},
    "opd_pitfalls": {"raw", "stop_gradient", "answer", "raw_1", "stop_gradient_1", "raw_5"},
    "rise": {"rise_adv", "rise_unweighted"},
    "b_star": {"online_rft_t0.6", "online_rft_t1.4", "star", "b_star_temperature"},
    "score": {"no_bonus", "no_stage_one", "second_attempt_rl"},
    "intervention": {"int_no_prefix", "sft_terse_rl"},
    "otr": {"otr_beta_0", "otr_kappa_1", "otr_kappa_2", "otr_k_1", "otr_k_16"},
    "rltf": {"grpo_mt", "sd_second", "sd_shuffled", "sd_verdict", "sft_y1"},
    "interactive_icl": {"rl2f", "rl2f_empty", "rl2f_shuffled", "rl2f_undiscounted"},
    "exit": {"curriculum", "improve", "diverge"},
    "thinktuning": {"unguided", "tt_gamma_0", "tt_always"},
    "conf_critique": {"clt", "cst", "cct", "cct_20", "cct_60", "cct_80"},
    "sec": {"reverse"},
    "distil_dagger": {"sdpo", "reverse", "distil_reference", "distil_current"},
    "pi_distill": {"pi_alpha_0", "pi_alpha_1", "pi_beta_0", "pi_half", "pi_answer"},
    "feedback_alignment": {"refsol", "refsol_forward", "stepalign_forward"},
    "atesd": {"half", "alpha_0", "alpha_25", "alpha_75", "one_step", "ungrounded"},
    "sws": {"uniform", "continued"},
    "dler": {"grpo_cut", "batch", "clip_higher"},
    "oreal": {"clone", "clone_plain"},
    "spae": {"spae_no_shaping", "spae_no_decay"},
}
PAPERS = {name: load_script(find_script(name)) for name in (*paper_scripts(), "standard")}
OWN = {
    name: [arm for arm in paper.arms if arm not in ALIKE.get(name, ()) and not paper.arms[arm].standard]
    for name, paper in PAPERS.items()
}
ARMS = [(name, arm) for name, arms in OWN.items() for arm in arms]
FIRST = {(name, name if name in arms else arms[-1]) for name, arms in OWN.items() if arms}  # a paper's method
MARKED = [pytest.param(*both, marks=() if both in FIRST else pytest.mark.slow) for both in ARMS]


@pytest.mark.parametrize(("name", "arm"), MARKED)
def test_every_arm_keeps_to_the_rules_of_cuda(name: str, arm: str, tmp_path: Path, capsys):
    own = {field.name for field in dataclasses.fields(PAPERS[name].config)}
    words = [w for k, v in SMALLEST.items() if k in own for w in (f"--{k.replace('_', '-')}", str(v))]
    words += ["--sampler", "shared" if (name, arm) in ARMS[::4] else "static"]
    with pretend():
        code = main(["run", name, *words, "--arms", arm, "--device", "cuda", "--out", str(tmp_path)])
    assert code == 0, "".join(file.read_text() for file in tmp_path.rglob("error.txt")) or capsys.readouterr().err


def test_the_share_of_the_adapter_that_a_merge_keeps_is_logged(tmp_path: Path):
    """Where completions come from weights in bfloat16."""
    words = "--steps 3 --prompts 4 --samples 4 --train-problems 32 --eval-problems 2 --eval-samples 2 --dtype bfloat16"
    with pretend():
        assert main(["run", "nft", *words.split(), "--arms", "nft", "--device", "cuda", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.rglob("nft-seed0/result.json")
    found = [row["merged"] for row in json.loads(file.read_text())["history"][1:]]  # there was an update before
    assert len(found) == 2 and all(0 < share < 1.1 for share in found)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(Policy, "on", "cuda")
    with pretend() as waits:
        yield waits


def test_the_pretended_gpu_refuses_what_cuda_refuses(gpu: Counter):
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    assert (there.device.type, here.device.type, (there + 1).device) == ("cuda", "cpu", torch.device("cuda", 0))
    assert on_gpu(there * torch.tensor(2.0))  # a number of the CPU's
    assert on_gpu(there[torch.tensor([0, 2])])  # indices may be on the CPU
    for wrong in (
        lambda: here + there,
        lambda: torch.cat([here, there]),
        lambda: here[there.long()],
        lambda: there.numpy(),
        lambda: there.requires_grad_() @ here,
        lambda: torch.rand(3, generator=torch.Generator(), device="cuda"),
        lambda: torch.rand(3, generator=torch.Generator("cuda")),
    ):
        with pytest.raises(WrongDevice):
            wrong()
    with pytest.raises(ValueError, match="index"):  # torch's own: an index is expected
        torch.cuda.get_per_process_memory_fraction(torch.device("cuda"))


def test_the_pretended_gpu_counts_what_the_host_waits_for(gpu: Counter):
    there = torch.arange(4.0, device="cuda")
    there.add_(1).cumsum(0)
    assert not gpu
    for work, kind in (
        (lambda: there.sum().item(), "item"),
        (lambda: bool((there > 2).any()), "item"),
        (lambda: there[there > 2], "boolean index"),
        (lambda: (there > 2).nonzero(), "nonzero"),
        (lambda: there.cpu(), "download"),
        (lambda: there.tolist(), "tolist"),
        (lambda: torch.zeros(4).to("cuda"), "upload"),
        (lambda: torch.zeros(4).pin_memory().to("cuda"), "upload"),
        (lambda: torch.tensor([1, 2], device="cuda"), "upload"),
    ):
        gpu.clear()
        work()
        assert [k for k, _ in gpu] == [kind]
    gpu.clear()
    assert on_gpu(torch.zeros(4).pin_memory().to("cuda", non_blocking=True)) and not gpu


def test_the_device_is_what_was_asked_for(monkeypatch, capsys, tmp_path):
    kinds = []
    with pretend():
        for on in ("auto", "cpu", "cuda"):
            monkeypatch.setattr(Policy, "on", on)
            kinds.append(pick_device().type)
    assert kinds == ["cuda", "cpu", "cuda"]
    assert main(["run", "nft", "--device", "cuda", "--out", str(tmp_path)]) == 2
    assert "--device cuda: no GPU was found" in capsys.readouterr().err


def test_adapters_and_merged_weights_are_the_same_on_both(monkeypatch, tiny):
    """Weights come to the device and back unchanged; what the tests compute there is what the CPU computes."""
    perturb(tiny)
    state, expected = tiny.adapter_state(), tiny.sampler().lm_head.weight.clone()
    monkeypatch.setattr(Policy, "on", "cuda")
    with pretend():
        policy = Policy(RunConfig())
        policy.load_adapter_state(state)
        assert all(map(on_gpu, policy.model.parameters())) and all(map(on_gpu, policy.sampler().buffers()))
        back, weight = policy.adapter_state(), policy.sampler().lm_head.weight.cpu()
    assert torch.equal(weight, expected) and all(torch.equal(back[k], state[k]) for k in state)
