"""What a function asks of a device, counted on any machine: launches, host reads, work of large operators.

    counts = count(lambda: learner.update_world_model(batch), torch.device("cpu"))

Two modes of torch watch the function, one below autograd and one at its Python interface, so the backward pass is
seen as well. Compiled functions run eagerly meanwhile: what is counted is the program, not what a compiler makes of
it.

Launches are operators that a GPU runs as one kernel or more. Not counted: views and aliases (by their schema), memory
that is only made, and work on host memory next to a CUDA device. A CPU splits some operators that a GPU fuses
(dropout, attention with dropout), and an operator that takes many tensors (foreach, the fused optimiser) counts once
where a GPU may need several kernels: counts are of what is asked for, good to compare with each other.

Host reads are what makes the host wait for the device. On a CPU, where device and host memory are one, these are seen:
reading a scalar (.item(), float(), bool()), operators whose output's size depends on values (nonzero, masks as indices,
unique), .cpu() and .tolist(). Not seen: .to("cpu") and copy_ into host memory, which there do nothing special.

The work counted is that of matrix products, convolutions and attention, forward and backward. FLOPs are torch's own
formulas (torch.utils.flop_counter), bytes each input read once and each output written once.
"""

import contextlib
import linecache
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

import stormfast_kernels.attention  # noqa: F401  registers the operator that has a formula here

aten = torch.ops.aten

# Memory is made or renamed, and nothing runs on the device. A scalar's read is no kernel either: see WAITS.
NO_LAUNCH = frozenset(
    {
        aten.empty,
        aten.empty_like,
        aten.empty_strided,
        aten.empty_permuted,
        aten.new_empty,
        aten.new_empty_strided,
        aten._unsafe_view,
        aten.resize_,
        aten.set_,
        aten.is_pinned,
        aten._pin_memory,
        aten.record_stream,
        aten._local_scalar_dense,
    }
)

# The host must know a value before it can go on: a scalar, or the size of the output.
WAITS = frozenset(
    {
        aten._local_scalar_dense,
        aten.equal,
        aten.nonzero,
        aten.masked_select,
        aten.unique_dim,
        aten.unique_consecutive,
        aten.unique_dim_consecutive,
        aten._unique,
        aten._unique2,
        aten.bincount,
        aten.repeat_interleave,
    }
)


def _attention_step_flops(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, *_: Any, **__: Any
) -> int:
    """The whole cache is counted, as the reference computes it."""
    return sdpa_flop_count(query.unsqueeze(2).shape, key_cache.shape, value_cache.shape)


# Operators that torch's registry lacks, by torch's formula for the same mathematics.
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
    aten._addmm_activation: flop_registry[aten.addmm],
    torch.ops.stormfast.cached_attention_step: _attention_step_flops,
}


@dataclass(frozen=True)
class OpWork:
    """One large operator."""

    operator: str
    dtype: torch.dtype  # of the arithmetic
    flops: int
    bytes: int


@dataclass
class OpCounts:
    """What a call asked of the device."""

    operators: Counter[str] = field(default_factory=Counter)  # operator -> launches
    host_reads: list[str] = field(default_factory=list)  # one line each: operator, and where it was called
    work: list[OpWork] = field(default_factory=list)

    @property
    def launches(self) -> int:
        return self.operators.total()

    @property
    def flops(self) -> int:
        return sum(work.flops for work in self.work)

    @property
    def bytes(self) -> int:
        return sum(work.bytes for work in self.work)


def count(function: Callable[[], Any], device: torch.device) -> OpCounts:
    """Calls the function once, eagerly. Not to be nested."""
    counts = OpCounts()
    calls = _Calls(counts, device)
    with _nothing_compiled(), calls, _Operators(counts, device, calls):
        function()
    return counts


def _nothing_compiled() -> contextlib.AbstractContextManager[Any]:
    """Only where the compiler is loaded: to load it takes seconds, and nothing is compiled before."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


class _Calls(TorchFunctionMode):
    """Counts the host reads that only torch's Python interface shows on every device."""

    def __init__(self, counts: OpCounts, device: torch.device) -> None:
        super().__init__()
        self.counts, self.device = counts, device
        self.reading = False  # inside a read that is counted already

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (Tensor.cpu, Tensor.tolist) or args[0].device.type != self.device.type:
            return func(*args, **(kwargs or {}))
        self.counts.host_reads.append(f"{func.__name__} at {_caller()}")
        self.reading = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.reading = False


class _Operators(TorchDispatchMode):
    """Counts the operators that reach the device."""

    def __init__(self, counts: OpCounts, device: torch.device, calls: _Calls) -> None:
        super().__init__()
        self.counts, self.device, self.calls = counts, device, calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given, made = _tensors((args, kwargs)), _tensors(out)
        if not any(tensor.device.type == self.device.type for tensor in (*given, *made)):
            return out
        packet, name = func.overloadpacket, str(func.overloadpacket).removeprefix("aten.")
        if not self.calls.reading and _waits(packet, args, kwargs, given, made):
            self.counts.host_reads.append(f"{name} at {_caller()}")
        if not func.is_view and packet not in NO_LAUNCH:
            self.counts.operators[name] += 1
        if packet in FORMULAS:
            flops = int(FORMULAS[packet](*args, **kwargs, out_val=out))
            self.counts.work.append(OpWork(name, _dtype(given), flops, sum(map(_bytes, (*given, *made)))))
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _waits(packet: Any, args: Any, kwargs: dict[str, Any], given: list[Tensor], made: list[Tensor]) -> bool:
    """Whether the host waits for the device in this operator."""
    if packet is aten.repeat_interleave:
        return kwargs.get("output_size") is None
    if packet in WAITS:
        return True
    if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
        return _masks(args) and not (
            packet is not aten.index and args[2].numel() == 1
        )  # one value is filled in under the mask
    if packet in (aten._to_copy, aten.copy_):
        devices = {tensor.device.type for tensor in (*given, *made)}
        non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
        return len(devices) > 1 and not non_blocking
    return False


def _masks(args: Any) -> bool:
    """Whether an index is a mask, whose true entries must be counted first."""
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _dtype(tensors: list[Tensor]) -> torch.dtype:
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), tensors[0].dtype)


def _bytes(tensor: Tensor) -> int:
    """Of the distinct elements: an expanded dimension is one entry."""
    numel = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numel *= size if stride or size == 0 else 1
    return numel * tensor.element_size()


def _caller() -> str:
    """`DIRECTORY/FILE:LINE code` of the innermost frame that is neither torch's nor this file's."""
    torch_files, frame = str(Path(torch.__file__).parent), sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((torch_files, __file__, "<")):
        frame = frame.f_back
    path, line = Path(frame.f_code.co_filename), frame.f_lineno
    return f"{path.parent.name}/{path.name}:{line} {linecache.getline(str(path), line).strip()}"
