"""Runs training code on tensors without memory, and counts the memory they would take.

torch's meta device has shapes, dtypes and autograd but no numbers, so a phase of any size runs in the time of its
launches. FakeTensorMode would stand for a device more faithfully, but its tensors cannot be deep-copied or moved by
nn.Module.to.
"""

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from stormfast.memory import meta_operators
from stormfast.memory.meta_operators import META

# What autocast gives bfloat16 inputs, on every device, and what it gives float32 inputs on CUDA only: of both lists in
# torch's documentation ("Autocast Op Reference"), the functions that a world model or an agent may call.
LOWER: frozenset[Any] = frozenset(
    {
        F.linear,
        torch.conv2d,
        torch.conv_transpose2d,
        F.scaled_dot_product_attention,
        torch.matmul,
        Tensor.matmul,
        Tensor.__matmul__,
    }
)
_UPPER = "softmax log_softmax exp log log1p expm1 sum prod cumsum cumprod pow norm rsqrt reciprocal".split()
UPPER_ON_CUDA: frozenset[Any] = frozenset(
    {getattr(place, name) for place in (torch, Tensor) for name in _UPPER}
    | {
        F.layer_norm,
        F.softmax,
        F.log_softmax,
        F.binary_cross_entropy_with_logits,
    }  # in Python: what they call is not seen
)


@dataclass(frozen=True)
class Block:
    """A storage that is alive."""

    number: int  # in the order in which they were made
    num_bytes: int
    shape: tuple[int, ...]  # of the tensor it was made for
    dtype: torch.dtype
    op: str
    line: str  # that called the operator, FILE:LINE; empty unless traced


@dataclass(frozen=True)
class Event:
    """A storage is made, or freed."""

    operator: int  # how many the phase had called before
    block: Block
    made: bool


@dataclass(frozen=True)
class Peak:
    """The moment of a phase at which most memory was in use. The last three are left out unless traced."""

    num_bytes: int
    op: str
    line: str
    blocks: tuple[Block, ...]  # alive then and made during the phase, largest first
    before: int = 0  # bytes alive when the phase began
    events: tuple[Event, ...] = ()  # of the whole phase


class LiveBytes(TorchDispatchMode):
    """Adds up the storages of one device that are alive, seen as operators return them; views count once.

    Args:
        device_type: whose storages count.
        trace: note where blocks come from, when they come and go, and which are alive at the peak.
    """

    def __init__(self, device_type: str = "meta", *, trace: bool = False) -> None:
        super().__init__()
        self.device_type, self.trace = device_type, trace
        self.live: dict[int, tuple[Block, weakref.ref[torch.UntypedStorage]]] = {}
        self.now = self.made = 0
        self.begin()

    def begin(self) -> None:
        """Forgets the peak: a phase begins."""
        self.first, self.before, self.operators = self.made, self.now, 0
        self.events: list[Event] = []
        self.peak = Peak(self.now, "", "", ())

    def traced_peak(self) -> Peak:
        """The peak of the phase, with all its events where they are traced."""
        return replace(self.peak, before=self.before, events=tuple(self.events))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = self.read_back(func, args, kwargs or {})
        for value in tree_iter(out):
            if isinstance(value, Tensor) and value.device.type == self.device_type:
                self.see(value, func)
        self.operators += 1
        return out

    def read_back(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operator's result; zeros where the host reads a meta tensor, which has no numbers."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.zeros((), dtype=args[0].dtype).item()
        target = kwargs.get("device")
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and target is not None and target != META:
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return meta_operators.call(func, args, kwargs)

    def see(self, tensor: Tensor, func: Any) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.live:
            return
        line = caller() if self.trace else ""
        block = Block(self.made, storage.nbytes(), tuple(tensor.shape), tensor.dtype, str(func), line)
        self.live[key] = (block, weakref.ref(storage, lambda _: self.drop(key)))
        self.made += 1
        self.now += block.num_bytes
        self.note(block, True)
        if self.now > self.peak.num_bytes:
            self.peak = Peak(self.now, block.op, line, self.blocks() if self.trace else ())

    def drop(self, key: int) -> None:
        block = self.live.pop(key)[0]
        self.now -= block.num_bytes
        self.note(block, False)

    def note(self, block: Block, made: bool) -> None:
        if self.trace:
            self.events.append(Event(self.operators, block, made))

    def blocks(self) -> tuple[Block, ...]:
        made = (block for block, _ in self.live.values() if block.number >= self.first)
        return tuple(sorted(made, key=lambda block: -block.num_bytes)[:8])


def caller() -> str:
    """The line of stormfast that called the operator, FILE:LINE, and in a backward pass whose gradient it computes."""
    frame = sys._getframe(1)
    while frame is not None and (
        "stormfast" not in frame.f_globals.get("__name__", "") or frame.f_globals["__name__"] == __name__
    ):
        frame = cast(Any, frame.f_back)
    if frame is None:
        return ""
    node = torch._C._current_autograd_node()
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}" + (
        f" ({node.name()})" if node is not None else ""
    )


def storage_bytes(tensors: Iterator[Tensor] | list[Tensor]) -> int:
    """Bytes of the tensors' storages, each counted once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


class MetaAutocast(TorchFunctionMode):
    """torch.autocast for meta tensors, which it does not know: the same casts, each weight once a block.

    Args:
        device_type: of the tensors; ignored. dtype, enabled: as of torch.autocast.
        casts_to_float32: functions whose inputs are cast to float32.
    """

    def __init__(
        self,
        device_type: str,
        dtype: torch.dtype,
        enabled: bool = True,
        *,
        casts_to_float32: frozenset[Any] = frozenset(),
    ) -> None:
        super().__init__()
        self.dtype, self.enabled, self.casts_to_float32 = dtype, enabled, casts_to_float32
        self.weights: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.enabled and func in LOWER:
            args, kwargs = tree_map_only(Tensor, self.lower, (args, kwargs))
        elif self.enabled and func in self.casts_to_float32:
            args, kwargs = tree_map_only(Tensor, lambda x: x.float() if x.dtype == self.dtype else x, (args, kwargs))
        return func(*args, **kwargs)

    def lower(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            return x
        if not (x.is_leaf and x.requires_grad):
            return x.to(self.dtype)
        if id(x) not in self.weights:
            self.weights[id(x)] = x.to(self.dtype)
        return self.weights[id(x)]

    def __exit__(self, *error: Any) -> None:
        self.weights.clear()
        super().__exit__(*error)


@contextlib.contextmanager
def meta_autocast(device_type: str) -> Iterator[None]:
    """Inside, torch.autocast is MetaAutocast with the casts of a device type."""
    original, upper = torch.autocast, UPPER_ON_CUDA if device_type == "cuda" else frozenset()

    def autocast(device: str, dtype: torch.dtype = torch.bfloat16, enabled: bool = True) -> MetaAutocast:
        return MetaAutocast(device, dtype, enabled, casts_to_float32=upper)

    torch.autocast = autocast  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        torch.autocast = original  # type: ignore[misc]
