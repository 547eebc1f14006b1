"""Divergences between two policies: worked examples of the papers, brute force in float64, gradients included."""

import random
import subprocess
import sys
from functools import partial
from math import log

import pytest
import torch
from conftest import perturb, random_model

from repro.methods.sft import nll
from repro.model.logprobs import (
    between,
    completion_hidden,
    completion_taught,
    forward_kl,
    jensen_shannon,
    mixed_kl,
    on_top_k,
    reverse_kl,
    top_k_reverse_kl,
)
from repro.model.policy import BASE
from repro.model.training import Batch, Reading, Trainer, as_they_are

TEACHER = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
STUDENT = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()


def value_and_gradient(divergence, student=STUDENT, teacher=TEACHER):
    logits = student.clone().requires_grad_()
    value = divergence(logits, teacher).sum()
    (gradient,) = torch.autograd.grad(value, logits)
    return value.item(), gradient[0].tolist()


def test_divergences_of_the_worked_example():  # OPSD's distributions
    assert forward_kl(STUDENT, TEACHER).item() == pytest.approx(0.085123, abs=1e-6)
    assert reverse_kl(STUDENT, TEACHER).item() == pytest.approx(0.092033, abs=1e-6)
    assert jensen_shannon(STUDENT, TEACHER).item() == pytest.approx(0.021901, abs=1e-6)
    for beta, expected in ((0.1, 0.076947), (0.01, 0.084306)):
        assert jensen_shannon(STUDENT, TEACHER, beta).item() / beta == pytest.approx(expected, abs=1e-6)
    assert forward_kl(STUDENT / 1.1, TEACHER / 1.1).item() == pytest.approx(0.073126, abs=1e-6)


def test_the_clip_acts_on_each_entry_and_turns_the_gradient():
    value, gradient = value_and_gradient(partial(forward_kl, clip=0.05))
    assert value == pytest.approx(-0.100408, abs=1e-6)
    assert gradient == pytest.approx([0.15, -0.11, -0.04], abs=1e-6)
    assert value_and_gradient(forward_kl)[1] == pytest.approx([-0.2, 0.1, 0.1], abs=1e-9)


def test_mixed_divergence_on_the_teachers_top_k():  # SD-Zero's worked example
    student = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 2.0, 0.0, -1.0]], dtype=torch.float64)
    for divergence in (forward_kl, reverse_kl, mixed_kl):
        value, gradient = value_and_gradient(partial(on_top_k, divergence=divergence, k=2), student, teacher)
        assert value == pytest.approx(0.462117, abs=1e-6)
    assert gradient == pytest.approx([0.427671, -0.427671, 0, 0], abs=1e-6)
    assert mixed_kl(student, teacher).item() == pytest.approx(0.407031, abs=1e-6)


@pytest.mark.parametrize(
    ("form", "k", "value", "gradient"),
    [
        ("raw", 1, -0.091161, (0.204420, -0.122652, -0.081768)),
        ("raw", 2, None, (0.054420, 0.087348, -0.141768)),
        ("raw", 3, 0.047469, (-0.114895, -0.014241, 0.129136)),
        ("stop_gradient", 1, -0.091161, (-0.045580, 0.027348, 0.018232)),
        ("stop_gradient", 3, 0.047469, (-0.114895, -0.014241, 0.129136)),
        ("tail", 1, 0.020411, (-0.101366, 0.060820, 0.040547)),
    ],
)
def test_top_k_forms(form, k, value, gradient):  # 2605.11182
    teacher = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).log()
    found, slope = value_and_gradient(partial(top_k_reverse_kl, k=k, form=form), teacher=teacher)
    assert slope == pytest.approx(gradient, abs=2e-6)
    if value is not None:
        assert found == pytest.approx(value, abs=1e-6)


def test_renormalised_top_k_on_the_students_support():
    teacher = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).log()
    value, gradient = value_and_gradient(
        partial(on_top_k, divergence=reverse_kl, k=2, support="student"), teacher=teacher
    )
    assert value == pytest.approx(0.003832, abs=1e-6)
    assert gradient == pytest.approx([-0.042732, 0.042732, 0.0], abs=1e-6)


def test_a_token_that_one_side_excludes():
    sure = torch.tensor([[0.0, -torch.inf]], dtype=torch.float64)
    even = torch.zeros(1, 2, dtype=torch.float64)
    assert forward_kl(even, sure).item() == pytest.approx(log(2))
    assert reverse_kl(sure, even).item() == pytest.approx(log(2))


@pytest.mark.parametrize(
    "divergence",
    [forward_kl, partial(forward_kl, clip=0.02), reverse_kl, jensen_shannon, mixed_kl],
    ids=["forward", "clipped", "reverse", "jensen_shannon", "mixed"],
)
def test_chunked_divergence_is_that_of_whole_sequences_one_by_one(divergence):
    """Prompts of other lengths on the two sides, a padded batch, float64: values and gradients."""
    model = random_model(60)
    rng = random.Random(0)
    completions = [[rng.randrange(3, 60) for _ in range(n)] for n in (5, 9, 1, 7)]
    prompts = [[rng.randrange(3, 60) for _ in range(n)] for n in (4, 2, 6, 3)]
    contexts = [[rng.randrange(3, 60) for _ in range(n)] for n in (9, 12, 2, 6)]

    def logits(prompt, completion):
        out = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
        return out[len(prompt) - 1 : -1] / 1.1

    expected = []
    for prompt, context, completion in zip(prompts, contexts, completions, strict=True):
        with torch.no_grad():
            teacher = logits(context, completion).softmax(-1)
        student = logits(prompt, completion).softmax(-1)
        if divergence is jensen_shannon:
            m = (teacher + student) / 2
            entries = (teacher * (teacher / m).log() + student * (student / m).log()) / 2
        elif divergence is mixed_kl:
            entries = (teacher * (teacher / student).log() + student * (student / teacher).log()) / 2
        elif divergence is reverse_kl:
            entries = student * (student / teacher).log()
        else:
            entries = teacher * (teacher / student).log()
            if divergence is not forward_kl:
                entries = torch.where(entries > 0.02, 0.02 * torch.ones_like(entries), entries)
        expected.append(entries.sum(-1))
    expected = torch.cat(expected)
    weight = torch.linspace(0.1, 1, len(expected), dtype=torch.float64)
    (expected * weight).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()

    with torch.no_grad():
        hidden, _ = completion_hidden(model, list(zip(contexts, completions, strict=True)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("repro.model.logprobs.CHUNK_ELEMENTS", 6 * model.config.vocab_size)  # three tokens at once
        found = completion_taught(model, list(zip(prompts, completions, strict=True)), hidden, between(divergence), 1.1)
        (found * weight).sum().backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-9)


# --- the teacher as a frozen adapter ----------------------------------------------------------------------------------

PROMPTS, CONTEXTS = [[5, 6, 7], [8, 9]], [[5, 6, 7, 20, 21], [8, 9, 30, 31, 32]]
COMPLETIONS = [[11, 12, 13], [14, 15]]


FORWARD, REVERSE = Reading(between(forward_kl), teacher=BASE), Reading(between(reverse_kl), teacher=BASE)
TAUGHT = Reading(between(forward_kl), teacher="teacher")


def distillation(contexts):
    return Batch(list(zip(PROMPTS, COMPLETIONS, strict=True)), contexts=contexts)


def test_no_gradient_where_student_and_teacher_agree(tiny):
    trainer = Trainer(tiny, 1e-3)
    same = distillation(PROMPTS)
    assert trainer.values(same, FORWARD).abs().max() == 0
    assert trainer.step(same, as_they_are, FORWARD)["grad_norm"] < 1e-6
    assert trainer.values(distillation(CONTEXTS), FORWARD).min() > 0


def test_the_teacher_stays_while_the_student_learns(tiny):
    perturb(tiny)
    tiny.freeze_copy("teacher")
    perturb(tiny, seed=1)
    frozen = tiny.adapter_state("teacher")
    trainer = Trainer(tiny, 1e-3)
    batch = distillation(CONTEXTS)
    with tiny.using("teacher"):
        before = trainer.values(Batch(batch.seen_by_teacher()))
    losses = [trainer.step(batch, as_they_are, TAUGHT)["loss"] for _ in range(8)]
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(value, frozen[key]) for key, value in tiny.adapter_state("teacher").items())
    with tiny.using("teacher"):
        assert torch.equal(trainer.values(Batch(batch.seen_by_teacher())), before)
    assert all(p.requires_grad for p in tiny.parameters)


def test_mini_and_micro_batches_keep_context_and_completion_together(tiny):
    perturb(tiny)
    whole = Trainer(tiny, 1e-3, tokens_per_batch=1000).values(distillation(CONTEXTS), REVERSE)
    assert torch.allclose(
        Trainer(tiny, 1e-3, tokens_per_batch=1).values(distillation(CONTEXTS), REVERSE), whole, atol=1e-5
    )
    swapped = Trainer(tiny, 1e-3).values(distillation(CONTEXTS).select([1, 0]), REVERSE)
    assert torch.allclose(swapped, whole[[3, 4, 0, 1, 2]], atol=1e-5)


def test_a_reset_policy_and_optimiser_start_anew(tiny):
    start = tiny.adapter_state()
    trainer = Trainer(tiny, 1e-3)
    batch = Batch(list(zip(PROMPTS, COMPLETIONS, strict=True)))
    losses = []
    for _ in range(2):
        losses.append([trainer.step(batch, nll)["loss"] for _ in range(3)])
        tiny.reset()
        trainer.new_optimizer()
        assert all(torch.equal(value, start[key]) for key, value in tiny.adapter_state().items())
    assert losses[0] == losses[1]
    trainer.new_optimizer(5e-4)
    resumed = Trainer(tiny, 1.0)
    resumed.load_state(trainer.state())
    assert resumed.learning_rate == 5e-4


MEMORY = """
import resource, sys
from functools import partial
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from repro.model.logprobs import between, completion_hidden, completion_taught, forward_kl

config = Qwen2Config(vocab_size=152_000, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
model = Qwen2ForCausalLM(config).eval()
head = model.get_output_embeddings()
head.weight.requires_grad_(False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
completion = list(range(100, 356))
students, teachers = [(list(range(10)), completion)] * 8, [(list(range(30)), completion)] * 8
clipped = partial(forward_kl, clip=0.05)
with torch.no_grad():
    seen, _ = completion_hidden(model, teachers)
if sys.argv[1] == "chunked":
    values = completion_taught(model, students, seen, between(clipped))
else:
    hidden, _ = completion_hidden(model, students)
    with torch.no_grad():
        teacher = head(seen).float()
    values = clipped(head(hidden).float(), teacher)
values.mean().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_of_an_update_over_a_large_vocabulary():  # 2,048 tokens; the whole computation needs about 9 GB
    peaks = {}
    for mode in ("chunked", "whole"):
        done = subprocess.run([sys.executable, "-c", MEMORY, mode], capture_output=True, text=True, check=True)
        peaks[mode] = int(done.stdout)
    assert peaks["chunked"] <= 0.3 * peaks["whole"], peaks
