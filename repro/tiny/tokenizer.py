"""The tiny model's tokenizer: a token for every digit and every request of ``tasks.prompts``, bytes for the rest."""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from repro.tasks.arithmetic import KINDS
from repro.tasks.prompts import PHRASES

PAD, USER, ASSISTANT, SYSTEM, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
RESERVED = ("<|refine|>", "<|reserved_1|>", "<|reserved_2|>", "<|reserved_3|>")
WORDS = (
    *(
        "Compute",
        "Solve",
        "Step ",
        "Yes",
        "No",
        "\\boxed{",
        " is wrong. It should be: ",
        " is wrong.",
        ", level ",
        *KINDS,
    ),
    *("Make ", " from the numbers ", " with +, -, * and parentheses. ", "Use each number exactly once. "),
    "The final answer is the expression.",
)
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if not (loop.last and continue_final_message) %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level vocabulary without merges, and whole-phrase tokens. Any text survives encoding and decoding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [PAD, USER, ASSISTANT, SYSTEM, END, *RESERVED]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in (*PHRASES, *WORDS)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=PAD,  # never used; without one, the class that transformers picks for Qwen2 adds a token of its own
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    fast.chat_template = TEMPLATE
    return fast
