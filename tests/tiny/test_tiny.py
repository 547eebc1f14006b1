"""The built-in model: tokenizer, template, corpus, and the abilities that the papers need."""

import itertools

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from repro.tasks import prompts
from repro.tasks.loading import load
from repro.tasks.rewards import score
from repro.tiny import MODEL
from repro.tiny.corpus import ROLES, Writer, documents
from repro.tiny.pretrain import loss_mask, make_model
from repro.tiny.profile import Subject, correcting, judging, solving
from repro.tiny.tokenizer import ASSISTANT, END, make_tokenizer

TOKENIZER = AutoTokenizer.from_pretrained(MODEL)


def test_the_committed_tokenizer_is_the_one_that_the_code_makes():
    made = make_tokenizer()
    assert made.get_vocab() == TOKENIZER.get_vocab()
    texts = [made.apply_chat_template(chat, tokenize=False) for chat in itertools.islice(documents(1), 200)]
    assert made(texts).input_ids == TOKENIZER(texts).input_ids
    assert made.chat_template == TOKENIZER.chat_template


@pytest.mark.parametrize(
    "text", ["12-(-3)=15\n\\boxed{15}", "naïve ünïcode 数学 \t\x00 %", "Step 12", "", "  two  spaces "]
)
def test_any_text_survives(text):
    assert TOKENIZER.decode(TOKENIZER(text).input_ids) == text


def test_digits_and_requests_are_single_tokens():
    assert len(TOKENIZER("90125").input_ids) == 5
    for phrase in prompts.PHRASES:
        assert len(TOKENIZER(phrase).input_ids) == 1


def test_roles_are_few_tokens(tiny):
    (problem,) = load("arithmetic", "train", 1)
    alone = len(TOKENIZER(problem.question).input_ids)
    chat = prompts.solve(problem)
    assert len(tiny.encode(chat)) == alone + 5  # user, newline, request, end, assistant
    assert tiny.encode(prompts.go_on(chat, "1+"))[-2:] == TOKENIZER("1+").input_ids


def test_loss_is_on_assistant_tokens_and_their_end_only():
    chat = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "23"}] * 2
    ids = torch.tensor([TOKENIZER(TOKENIZER.apply_chat_template(chat, tokenize=False)).input_ids])
    mask = loss_mask(ids, TOKENIZER.convert_tokens_to_ids(ASSISTANT), TOKENIZER.convert_tokens_to_ids(END))
    assert TOKENIZER.decode(ids[mask]) == "23<|end|>23<|end|>"


def test_corpus_has_every_role_and_no_held_out_question():
    docs = list(itertools.islice(documents(0), 2000))
    assert docs == list(itertools.islice(documents(0), 2000))
    held_out = {p.question for split in ("validation", "test") for p in load("arithmetic", split, 1500)}
    shown = {d[0]["content"].split("\n")[0] for d in docs}
    assert not shown & held_out
    writer = Writer(0)
    for role in ROLES:
        chat = getattr(writer, role)(writer.problem())
        assert chat[-1]["role"] == "assistant" and chat[-1]["content"]


def test_model_has_the_committed_shape():
    model = make_model(TOKENIZER)
    assert model.config.model_type == "qwen2"
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 4e6


def test_abilities_that_the_papers_stand_on():
    """Loose bounds around the profile in repro/tiny/README.md, on fewer problems."""
    subject = Subject("tiny", 240, seed=5)
    rows: list = []
    first = solving(subject, rows)
    correcting(subject, first, rows)
    judging(subject, first, rows)
    value = {name: float(shown.split(" ")[0]) for name, shown, _ in rows if not name.startswith("-")}
    assert 25 < value["solve, temperature 1"] < 55
    assert value["pass@8"] > value["solve, temperature 1"] + 25
    assert value["solve with the reference"] > 90
    assert value["wrong ones: told that it is wrong"] > value["wrong ones: retry"] + 5
    assert value["verify its own solution, balanced accuracy"] > 55
    assert value["name the first wrong step, with the reference"] > 65
    assert value["propose a problem: well-formed"] > 85
    right = np.asarray(score(subject.problems, first))
    assert 0.2 < right.mean() < 0.6
