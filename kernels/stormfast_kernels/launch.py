"""One launch of a Triton kernel as a value: to run it, or to compile it ahead of time for a GPU that is not here.

Kernels are written so that Triton's interpreter gets them right as well: every load is upcast at once, arithmetic is
float32, and only the store rounds (the interpreter computes bfloat16 on its bit patterns). Works with Triton 3.6, 3.7.
"""

import contextlib
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    from triton import language as tl

    INTERPRETED: bool = bool(triton.knobs.runtime.interpret)  # fixed by TRITON_INTERPRET when triton is first imported
    jit: Any = triton.jit
except Exception as error:  # CPU builds of torch come without it, and broken installations raise whatever they like
    triton, tl, INTERPRETED = None, SimpleNamespace(constexpr=Any), False
    IMPORT_TROUBLE: str | None = f"import triton fails: {' '.join(str(error).split())}"

    def jit(function: Any) -> Any:
        """Leaves the kernel a plain function that nothing calls."""
        return function
else:
    IMPORT_TROUBLE = None

TYPE_NAMES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*u1",
}

launched: Counter[str] = Counter()  # kernel name -> launches of this process, so that tests can tell which path ran


@dataclass(frozen=True)
class Launch:
    """A kernel with everything one launch of it needs."""

    kernel: Any
    grid: tuple[int, ...]  # programs
    arguments: dict[str, Any]  # by name, in the kernel's order; constexprs included
    num_warps: int

    def run(self) -> None:
        """Launches on the current stream of the device that holds the tensors; nothing to do is nothing launched."""
        if 0 in self.grid:
            return
        tensor = next(x for x in self.arguments.values() if isinstance(x, Tensor))
        with torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext():
            self.kernel[self.grid](**self.arguments, num_warps=self.num_warps)
        launched[self.kernel.__name__] += 1

    def signature(self) -> tuple[dict[str, str], dict[str, Any], list[str]]:
        """What Triton would specialise this launch to: types by name, constexprs by name, names divisible by 16."""
        types, constants, aligned = {}, {}, []
        for parameter in self.kernel.params:
            name, value = parameter.name, self.arguments[parameter.name]
            specialised = type(value) is int
            if parameter.is_constexpr or value is None or (specialised and value == 1):
                types[name], constants[name] = "constexpr", value
            elif isinstance(value, Tensor):
                types[name] = TYPE_NAMES[value.dtype]
                aligned.append(name)  # torch allocates on 512 bytes; a view that starts off 16 gets another compilation
            elif isinstance(value, (bool, float)):
                types[name] = "u1" if isinstance(value, bool) else "fp32"
            else:
                types[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                if specialised and value % 16 == 0:
                    aligned.append(name)
        return types, constants, aligned

    def compile_for(self, capability: int, **options: Any) -> Any:
        """Compiles without a GPU for one of compute capability 80, 86, 89, 90, 120, ...; not under the interpreter.

        Args: options: Triton's further ones, maxnreg for instance.
        Returns: Triton's compiled kernel, with .asm["ptx"], .asm["cubin"] and .metadata.shared.
        """
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        types, constants, aligned = self.signature()
        names = list(types)
        source = ASTSource(
            fn=self.kernel,
            signature=types,
            constexprs={(names.index(name),): value for name, value in constants.items()},
            attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
        )
        return triton.compile(
            source, target=GPUTarget("cuda", capability, 32), options={"num_warps": self.num_warps, **options}
        )


def constant(value: float) -> Any:
    """A number that kernels may read from their module."""
    return value if triton is None else tl.constexpr(value)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
