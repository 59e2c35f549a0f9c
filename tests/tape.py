"""A CPU's stand-in for a CUDA graph: the operators of one call are recorded, and run again into the memory they wrote
then.

Like a graph, a tape knows no Python: what a function does by rebinding a name instead of writing in place is lost at
the second run.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from stormfast.compile import WARMUP_CALLS, GraphedCall


class Tape(TorchDispatchMode):
    """Records every operator with its arguments and what it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.operators.append((func, args, kwargs or {}, output))
        return output

    @torch.no_grad()
    def play(self) -> None:
        """Runs the operators again; what is new goes where it went when it was recorded."""
        for func, args, kwargs, recorded in self.operators:
            if func.is_view:  # a view is of memory that the others write
                continue
            output, returns = func(*args, **kwargs), func._schema.returns
            one = len(returns) <= 1
            for declared, old, new in zip(
                returns, [recorded] if one else recorded, [output] if one else output, strict=False
            ):
                if declared.alias_info is None:
                    for a, b in zip(pytree.tree_leaves(old), pytree.tree_leaves(new), strict=True):
                        if isinstance(a, Tensor) and a.numel() and a.data_ptr() != b.data_ptr():
                            a.detach().copy_(b)


class Taped(GraphedCall):
    """GraphedCall, with a tape for the graph."""

    def __call__(self, *args: Tensor) -> Any:
        self.calls += 1
        if self.calls <= WARMUP_CALLS:
            return self.function(*args)
        if self.calls == WARMUP_CALLS + 1:
            self.inputs = [tensor.clone() for tensor in args]
            with Tape() as self.tape:
                self.output = self.function(*self.inputs)
            return self.output
        for buffer, tensor in zip(self.inputs, args, strict=True):
            buffer.copy_(tensor)
        self.tape.play()
        return self.output
