"""A machine that seems to have a GPU: everything is computed on the CPU, and CUDA's rules on devices hold.

``with pretend() as waits:`` makes ``cuda`` a device. Its tensors are CPU tensors whose storage carries a label. One
mode handles what names a device (factories, ``to``, ``cpu``, ``device``); another sees every operator, forward and
backward: it hands labels on from inputs to outputs, raises WrongDevice where CUDA would refuse, and counts in ``waits``
what makes the host wait for the GPU, by kind and line of the kit. Queries of ``torch.cuda`` run torch's own Python code
where that checks its arguments, with only the calls into the driver replaced.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
MEMORY = 24 * 2**30
aten = torch.ops.aten
WAITING = {  # operators whose result, or its shape, the host has to know
    aten._local_scalar_dense.default: "item",
    aten.is_nonzero.default: "item",
    aten.equal.default: "equal",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.unique_consecutive.default: "unique",
    aten.bincount.default: "bincount",
    aten.repeat_interleave.Tensor: "repeat_interleave",
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
SPECIAL = {*WAITING, *INDEXING, aten.copy_.default}
Tensor = torch.Tensor


class WrongDevice(RuntimeError):
    """What CUDA refuses."""


def on_gpu(tensor: Tensor) -> bool:
    return getattr(tensor.untyped_storage(), "on_gpu", False)


def label(tensor: Tensor, gpu: bool) -> Tensor:
    tensor.untyped_storage().on_gpu = gpu  # lives as long as the storage
    return tensor


def tensors(*tree: object) -> list[Tensor]:
    """The tensors in arguments or results."""
    found = []
    for part in tree:
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, (tuple, list)):
            found += tensors(*part)
        elif isinstance(part, dict):
            found += tensors(*part.values())
    return found


def place() -> str:
    """Where in the kit we are: folder/file:line."""
    frame = sys._getframe()
    while frame is not None:
        parts = frame.f_code.co_filename.split("/")
        if "site-packages" not in parts and ("repro" in parts or "papers" in parts):
            return f"{'/'.join(parts[-2:])}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside the kit"


class OfGPU(torch.Generator):
    """A CPU generator that says it is on the GPU."""

    device = GPU


class Generator(torch.Generator):
    """What is made under the name of ``torch.Generator``."""

    def __new__(cls, device="cpu", make=torch.Generator):
        return OfGPU() if torch.device(device).type == "cuda" else make(device)


class Operators(TorchDispatchMode):
    """Labels from inputs to outputs; errors and waits on the way."""

    def __init__(self, waits: Counter):
        super().__init__()
        self.waits = waits
        self.off = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.off:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # what is asked here isn't asked on the pretended machine
            given = [t for t in tensors(args, kwargs) if not t.is_meta]
            storages = [t.untyped_storage() for t in given]
            labels = [getattr(storage, "on_gpu", False) for storage in storages]
            gpu = any(labels)
            if gpu and (func in SPECIAL or not all(labels)):
                self.check(func, args, given)
            out = func(*args, **kwargs)
            for t in tensors(out):
                if not t.is_meta and t.untyped_storage() not in storages:  # else a view, or in place
                    label(t, gpu)
            return out

    def check(self, func, args, given: list[Tensor]) -> None:
        if func in WAITING:
            self.waits[WAITING[func], place()] += 1
        if func in INDEXING:
            indices = [i for i in args[1] if i is not None]
            if any(i.dtype == torch.bool and on_gpu(i) for i in indices):
                self.waits["boolean index", place()] += 1
            if not all(map(on_gpu, indices)):
                self.waits["upload of an index", place()] += 1
            given = [args[0], *(t for t in args[2:3] if isinstance(t, Tensor))]  # indices may be on the CPU
            if not on_gpu(args[0]):
                raise WrongDevice(f"{func}: a CPU tensor indexed on the GPU at {place()}")
        if func is aten.copy_.default:
            if on_gpu(args[0]) != on_gpu(args[1]):
                self.copied(args[1], on_gpu(args[0]), args[2:] == (True,))
        elif any(t.dim() and not on_gpu(t) for t in given):  # a CPU tensor without dimensions is a number
            shapes = [(tuple(t.shape), "cuda" if on_gpu(t) else "cpu") for t in given]
            raise WrongDevice(f"{func}: tensors on several devices, {shapes}, at {place()}")

    def copied(self, source: Tensor, up: bool, asynchronous: bool = False) -> None:
        if not (up and asynchronous and getattr(source.untyped_storage(), "pinned", False)):
            self.waits["upload" if up else "download", place()] += 1


class Names(TorchFunctionMode):
    """Everything that names a device."""

    def __init__(self, operators: Operators):
        super().__init__()
        self.operators = operators
        self.answers = {
            Tensor.device.__get__: lambda t: GPU if on_gpu(t) else torch._C.TensorBase.device.__get__(t),
            Tensor.is_cuda.__get__: on_gpu,
            Tensor.is_cpu.__get__: lambda t: not on_gpu(t),
            Tensor.get_device: lambda t: 0 if on_gpu(t) else -1,
            Tensor.cpu: lambda t: self.move(t, False),
            Tensor.cuda: lambda t, *args, **kwargs: self.move(t, True),
            Tensor.to: self.to,
            Tensor.pin_memory: self.pin_memory,
            Tensor.numpy: self.to_numpy,
            Tensor.__array__: self.to_numpy,
            Tensor.tolist: self.tolist,
        }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.operators.off:
            return func(*args, **kwargs)
        if answer := self.answers.get(func):
            with torch._C.DisableTorchFunction():
                return answer(*args, **kwargs)
        if "device" not in kwargs and "generator" not in kwargs:
            return func(*args, **kwargs)
        generator = kwargs.get("generator")
        device = kwargs.get("device")
        device = None if device is None else torch.device(device)
        if device is not None and device.type == "cuda":
            kwargs = kwargs | {"device": CPU}
        out = func(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor) and device is not None and device.type == "cuda" and out.numel():
            self.operators.waits["upload", place()] += 1
        if device is not None and device.type != "meta":
            for t in tensors(out):
                label(t, device.type == "cuda")
        if generator is not None and any(on_gpu(t) != (generator.device.type == "cuda") for t in tensors(out)):
            raise WrongDevice(f"{func.__name__}: a generator of another device than the tensor's at {place()}")
        return out

    def to(self, tensor: Tensor, *args, **kwargs) -> Tensor:
        device, rest = kwargs.pop("device", None), []
        for argument in args:
            if isinstance(argument, Tensor):
                device, rest = GPU if on_gpu(argument) else argument.device, [*rest, argument.dtype]
            elif isinstance(argument, (str, torch.device)) or type(argument) is int:
                device = argument
            elif argument is not None:
                rest.append(argument)
        if device is None or torch.device(device).type == "meta":
            return tensor.to(*args, **kwargs, **({} if device is None else {"device": device}))
        rest = [r for r in rest if isinstance(r, torch.dtype)]
        asynchronous = kwargs.pop("non_blocking", False) or True in args
        moved = self.move(tensor, torch.device(device).type == "cuda", asynchronous)
        return moved.to(*rest, **kwargs) if rest or kwargs else moved

    def move(self, tensor: Tensor, up: bool, asynchronous: bool = False) -> Tensor:
        if on_gpu(tensor) == up:
            return tensor
        self.operators.copied(tensor, up, asynchronous)
        with _disable_current_modes():
            return label(tensor.detach().clone().requires_grad_(tensor.requires_grad and tensor.is_leaf), up)

    def pin_memory(self, tensor: Tensor, *args) -> Tensor:
        if on_gpu(tensor):
            raise WrongDevice(f"pin_memory of a GPU tensor at {place()}")
        copy = tensor.clone()
        copy.untyped_storage().pinned = True
        return copy

    def to_numpy(self, tensor: Tensor, dtype=None):
        if on_gpu(tensor):
            raise WrongDevice(f"numpy of a GPU tensor at {place()}")
        return tensor.numpy() if dtype is None else tensor.numpy().astype(dtype)

    def tolist(self, tensor: Tensor) -> list:
        if on_gpu(tensor):
            self.operators.waits["tolist", place()] += 1
        with _disable_current_modes():
            return tensor.tolist()


class Graph:
    """What stands for a CUDA graph: the step itself, each time anew."""

    def __init__(self, step, pool):
        self.graph, self.step, self.replayed = SimpleNamespace(pool=lambda: None), step, 0

    def replay(self) -> None:
        self.replayed += 1
        self.step()


class Autocast(torch.autocast):
    """The CPU's in place of the GPU's."""

    def __init__(self, device_type: str, *args, **kwargs):
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def loader(load, operators: Operators):
    """``from_pretrained`` on the CPU; what was to be on the GPU is labelled."""

    def loaded(*args, device_map=None, **kwargs):
        gpu = torch.device((device_map or {}).get("", "cpu")).type == "cuda"
        operators.off = True
        model = load(*args, device_map={"": CPU} if device_map else None, **kwargs)
        operators.off = False
        for tensor in (*model.parameters(), *model.buffers()):
            label(tensor, gpu)
            state = getattr(tensor, "quant_state", None)  # of a 4-bit weight
            for part in (vars(s) for s in (state, getattr(state, "state2", None)) if s is not None):
                for t in tensors(tuple(part.values())):
                    label(t, gpu)
        return model

    return loaded


@contextlib.contextmanager
def pretend(memory: int = MEMORY) -> Iterator[Counter]:
    """Within the block the machine has one GPU; what the host waits for is counted by (kind, place)."""
    waits: Counter = Counter()
    properties = SimpleNamespace(total_memory=memory, name="pretended", major=9, minor=0)
    enabled = torch.is_autocast_enabled
    replaced = {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.is_bf16_supported": lambda *args: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.memory._lazy_init": lambda: None,
        "torch.cuda.memory_allocated": lambda device=None: 0,
        "torch.cuda.memory.memory_stats": lambda device=None: {},
        "torch.cuda.max_memory_allocated": lambda device=None: 1,
        "torch.cuda.reset_peak_memory_stats": lambda device=None: None,
        "torch.cuda.synchronize": lambda device=None: waits.update([("synchronize", place())]),
        "torch.cuda.get_device_properties": lambda device=None: properties,
        "torch.cuda.get_device_name": lambda device=None: properties.name,
        "torch.cuda.set_sync_debug_mode": lambda mode: None,
        "torch._C._cuda_getMemoryFraction": lambda index: 1.0,
        "torch.Generator": Generator,
        "torch.autocast": Autocast,
        "repro.model.static.Graph": Graph,
        "torch.is_autocast_enabled": lambda kind=None: enabled(*(("cpu" if kind == "cuda" else kind,) if kind else ())),
        "torch.random.fork_rng": lambda *args, fork=torch.random.fork_rng, **kwargs: fork(devices=[]),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in replaced.items():
            patch.setattr(name, value, raising=False)
        operators, auto = Operators(waits), transformers.AutoModelForCausalLM
        patch.setattr(auto, "from_pretrained", loader(auto.from_pretrained, operators))
        with Names(operators), operators:
            yield waits
