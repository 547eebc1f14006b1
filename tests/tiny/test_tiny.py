"""The built-in model: tokenizer, template, corpus, and the abilities that the papers need."""

import itertools
import re

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from repro.tasks import prompts
from repro.tasks.arithmetic import ArithmeticProblem
from repro.tasks.loading import load
from repro.tiny import MODEL
from repro.tiny.corpus import ROLES, SKILL, Document, Writer, documents
from repro.tiny.pretrain import encode, loss_mask, make_model
from repro.tiny.profile import Subject, correcting, informed, judging, right_lines, solving, way_of
from repro.tiny.tokenizer import ASSISTANT, END, make_tokenizer

TOKENIZER = AutoTokenizer.from_pretrained(MODEL)


def test_the_committed_tokenizer_is_the_one_that_the_code_makes():
    made = make_tokenizer()
    assert made.get_vocab() == TOKENIZER.get_vocab()
    texts = [made.apply_chat_template(d.chat, tokenize=False) for d in itertools.islice(documents(1), 200)]
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


def test_what_a_document_is_given_is_not_learnt():
    chat = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2-1\n3"}]
    (row,) = encode(TOKENIZER, [Document(chat, given="2-1\n")])
    ids, start, stop = row
    assert TOKENIZER.decode(ids[start:stop]) == "2-1\n"
    assert TOKENIZER.decode(ids[stop:]) == f"3{END}"
    (row,) = encode(TOKENIZER, [Document(chat)])
    assert row[1] == row[2]


def all_roles(count: int) -> list[Document]:
    writer = Writer(0, written=SKILL)
    return [writer.document() for _ in range(count)]


def test_corpus_begins_easy_and_holds_no_held_out_question():
    docs = list(itertools.islice(documents(0), 300))
    assert docs == list(itertools.islice(documents(0), 300))
    assert all(d.chat[0]["content"].endswith(prompts.SOLVE) and len(d.chat) == 2 for d in docs)
    docs += all_roles(1500)
    held_out = {p.question for split in ("validation", "test") for p in load("arithmetic", split, 600)}
    held_out |= {p.question for split in ("validation", "test") for p in load("countdown", split, 200)}
    assert not {d.chat[0]["content"].split("\n")[0] for d in docs} & held_out


def test_every_role_and_every_phrase_that_a_role_may_write_occurs():
    docs = all_roles(4000)
    assert all(d.chat[-1]["role"] == "assistant" and d.chat[-1]["content"].startswith(d.given) for d in docs)
    assert all(len(d.chat[-1]["content"]) > len(d.given) for d in docs)
    written = "\n".join(m["content"] for d in docs for m in d.chat if m["role"] == "assistant")
    asked = "\n".join(m["content"] for d in docs for m in d.chat if m["role"] == "user")
    spoken = {prompts.CUE_WRONG, prompts.CUE_RIGHT, prompts.CHECK, prompts.HOLDS, prompts.FAILS}
    for phrase in (*spoken, "Step ", "Yes", "No"):
        assert phrase in written, phrase
    for phrase in set(prompts.PHRASES) - spoken:
        assert phrase in asked, phrase
    assert any(d.given for d in docs)
    assert all(getattr(Writer, role) for role in ROLES)


def test_the_way_and_the_place_of_an_error_are_found():
    raw = ArithmeticProblem("Compute 9-2*3+4.", "mixed", 1, (9, "-", 2, "*", 3, "+", 4))
    assert way_of(raw, "7*3+4\n25\n\\boxed{25}", 1) == "order"
    assert way_of(raw, "9-7+4\n2+4\n\\boxed{6}", 1) == "slip"
    assert way_of(raw, "9-6+4\n9-10\n\\boxed{-1}", 2) == "order"
    assert set(right_lines(raw, "9-6+4\n9-10\n\\boxed{-1}", 2)) == {"3+4", "9-2"}
    assert right_lines(raw, "9-6+4\n3+4\n\\boxed{8}", 3) == ["\\boxed{7}"]


def test_model_has_the_committed_shape():
    made = make_model(TOKENIZER)
    committed = AutoConfig.from_pretrained(MODEL)
    assert made.config.model_type == committed.model_type == "qwen2"
    assert 1e6 < sum(p.numel() for p in made.parameters()) < 3e6
    for name in ("hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"):
        assert getattr(made.config, name) == getattr(committed, name)


def test_abilities_that_the_papers_stand_on():
    """Loose bounds around the profile in repro/tiny/README.md, on fewer problems."""
    subject = Subject("tiny", 96, seed=5)
    rows: list = []
    first = solving(subject, rows)
    informed(subject, rows)
    correcting(subject, first, rows)
    judging(subject, first, rows)
    value = {name: float(re.search(r"-?\d+(\.\d+)?", shown)[0]) for name, shown, _ in rows}
    assert 20 < value["solve, temperature 1"] < 55
    assert value["pass@8"] > value["solve, temperature 1"] + 25
    assert value["first errors at step 1"] < 65
    assert value["solve with the reference"] > 80
    assert value["wrong ones: told that it is wrong"] > value["wrong ones: retry"]
    assert value["verify its own solution, balanced accuracy"] > 55
