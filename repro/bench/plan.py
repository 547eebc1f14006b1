"""What fits on a card, from a model's shapes alone: ``repro bench --plan MODEL --memory 24``.

Weights, adapter, caches and logits are counted. What a training step keeps for its backward pass is read off forward
passes of one and two layers with tensors that have shapes and no values, so that no architecture needs its own formula.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from repro.config import ConfigError, RunConfig
from repro.model.logprobs import CHUNK_ELEMENTS
from repro.model.policy import MERGED_SHARE, model_source
from repro.model.training import checkpointed_layers

GIB = 2**30
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight; per 64 weights a scale of 8 bits; per 256 scales one of 32 bits
RESERVE = 0.08  # share of the card: the driver's context, and what the allocator can't use
LOGITS = 4 * 4  # bytes per entry: logits, log-probs, probabilities and one temporary in float32


@dataclass(frozen=True)
class Plan:
    """Bytes: of what is always there, per token of a sequence, and of workspaces."""

    parameters: int
    weights: int
    merged: int
    adapter: int
    cache: int  # per token
    kept: float  # per token, by a forward pass of the whole model
    kept_checkpointed: float
    kept_layer: float  # per token and layer
    workspace: int
    vocabulary: int

    def resident(self, memory: float) -> tuple[float, bool]:
        """Base, adapter and merged copy; whether the copy fits (``Policy.sampling``)."""
        merged = self.weights + self.adapter + self.merged <= MERGED_SHARE * memory
        return self.weights + self.adapter + merged * self.merged, merged

    def tokens(self, memory: float, checkpointed: bool) -> int:
        """Tokens of the largest micro-batch."""
        free = (1 - RESERVE) * memory - self.resident(memory)[0] - self.workspace - CHUNK_ELEMENTS * LOGITS
        per_token = self.kept_checkpointed + self.kept_layer if checkpointed else self.kept
        return max(0, int(free / per_token))

    def micro_batch(self, memory: float, wanted: int, longest: int) -> tuple[int, bool]:
        """Tokens of the micro-batches that a run comes to from ``wanted``, and whether with checkpointed layers.

        Halves until they fit, but never below the ``longest`` sequence (``Trainer.step``). 0 where nothing fits.
        """
        for checkpointed in (False, True):
            fits, tokens = self.tokens(memory, checkpointed), wanted
            while tokens > fits and tokens > longest:
                tokens = max(tokens // 2, longest)
            if tokens <= fits:
                return tokens, checkpointed
        return 0, True

    def rows(self, memory: float, length: int) -> int:
        """Completions of ``length`` tokens, prompts included, that can be sampled side by side."""
        free = (1 - RESERVE) * memory - self.resident(memory)[0] - self.workspace
        return max(0, int(free / (length * self.cache + self.vocabulary * LOGITS)))


def _model(shapes: PreTrainedConfig, config: RunConfig, layers: int):
    shapes = copy.deepcopy(shapes)
    if getattr(shapes, "layer_types", None):
        shapes.layer_types = shapes.layer_types[:layers]
    shapes.num_hidden_layers = layers
    lora = LoraConfig(r=config.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shapes, dtype=getattr(torch, config.dtype))
        return get_peft_model(model.requires_grad_(False), lora).eval()


def kept_bytes(model: torch.nn.Module, tokens: int, checkpointed: bool) -> int:
    """Bytes that a forward pass of one sequence keeps for the backward pass, weights apart."""
    storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    decoder = model.get_base_model().get_decoder()
    device = next(model.parameters()).device
    ids = torch.zeros((1, tokens), dtype=torch.long, device=device)
    mask = torch.ones((1, 1, tokens, tokens), dtype=torch.bool, device=device)  # as in a padded batch
    layers = checkpointed_layers(model) if checkpointed else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), layers:
        hidden = decoder(input_ids=ids, attention_mask=mask, position_ids=ids, use_cache=False).last_hidden_state
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    return sum(s.nbytes() for key, s in storages.items() if key not in weights) + 2 * hidden.nbytes  # hidden and slope


def plan(config: RunConfig) -> Plan:
    """Read the model's configuration and count. Raises ConfigError where there is none."""
    path, extra = model_source(config.model)
    try:
        shapes = AutoConfig.from_pretrained(path, **extra)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plan {config.model}: {str(error).strip().splitlines()[0]}") from error
    layers, tokens = shapes.num_hidden_layers, 16  # so few that scores of tokens by tokens count for nothing
    one, two = (_model(shapes, config, n) for n in (1, 2))
    slope = [kept_bytes(two, tokens, c) - kept_bytes(one, tokens, c) for c in (False, True)]
    start = [kept_bytes(one, tokens, c) - s for c, s in zip((False, True), slope, strict=True)]
    kept, kept_checkpointed = ((a + layers * b) / tokens for a, b in zip(start, slope, strict=True))
    whole = _model(shapes, config, layers)
    base = whole.get_base_model()
    linear = [m.base_layer.weight.numel() for m in base.modules() if isinstance(m, LoraLayer)]
    size = getattr(torch, config.dtype).itemsize
    trained = sum(p.numel() for p in whole.parameters() if p.requires_grad)
    count = sum(p.numel() for p in whole.parameters()) - trained
    nf4 = config.quantization == "nf4"
    head = getattr(shapes, "head_dim", None) or shapes.hidden_size // shapes.num_attention_heads
    return Plan(
        parameters=count,
        weights=int((count - sum(linear)) * size + sum(linear) * (NF4_BYTES if nf4 else size)),
        merged=sum(linear) * size,
        adapter=trained * 4 * 5,  # weights, gradient, two moments, and a frozen copy, in float32
        cache=2 * layers * shapes.num_key_value_heads * head * size,
        kept=kept,
        kept_checkpointed=kept_checkpointed,
        kept_layer=slope[0] / tokens,
        workspace=2 * max(linear) * size * nf4,  # a layer's dequantised weights
        vocabulary=shapes.vocab_size,
    )


def describe(config: RunConfig, found: Plan, memory: float) -> tuple[str, dict]:
    """What fits into ``memory`` bytes, as lines to read and as numbers."""
    resident, merged = found.resident(memory)
    length = config.max_new_tokens + 256
    numbers = {
        "model": config.model,
        "parameters": found.parameters,
        "memory_gib": memory / GIB,
        "resident_gib": resident / GIB,
        "merged_copy": merged,
        "rows": found.rows(memory, length),
        "tokens": found.tokens(memory, False),
        "tokens_checkpointed": found.tokens(memory, True),
    }
    used, checkpointed = found.micro_batch(memory, config.tokens_per_batch, length)
    numbers |= {"tokens_used": used, "checkpointed": checkpointed}
    fits = numbers["rows"] > 0 and used > 0
    lines = [
        f"{config.model}: {found.parameters / 1e9:.2f} billion parameters, {config.quantization} {config.dtype}, "
        f"LoRA rank {config.lora_rank}; an estimate from shapes, for {memory / GIB:g} GB",
        f"always there  {resident / GIB:.1f} GB: weights {found.weights / GIB:.1f}, adapter with optimiser "
        f"{found.adapter / GIB:.1f}, "
        + (f"merged copy to sample from {found.merged / GIB:.1f}" if merged else "no merged copy: sampling is slower"),
        f"sampling      {numbers['rows']:,} completions of {length} tokens side by side",
        f"training      micro-batches of {numbers['tokens']:,} tokens, {numbers['tokens_checkpointed']:,} with "
        "checkpointed layers",
        f"the preset    comes from {config.tokens_per_batch:,} tokens to {used:,}, and samples "
        f"{min(config.rows_per_batch, numbers['rows']):,} completions side by side",
        "it fits" + (", with checkpointed layers" if checkpointed else "") if fits else "it does not fit",
    ]
    return "\n".join(lines), numbers | {"fits": fits}
