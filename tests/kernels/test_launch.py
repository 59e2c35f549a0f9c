"""Launch: what it says Triton specialises is what Triton's own binder specialises; what ran is counted."""

import pytest
import torch

from stormfast_kernels import launch
from stormfast_kernels.launch import Launch, jit, next_power_of_2, tl

triton = pytest.importorskip("triton", reason="triton is not installed: pip install triton")


@jit
def scale_kernel(x, y, rows, factor, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = row[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows)[:, None]
    tl.store(y + at, tl.load(x + at, mask=inside).to(tl.float32) * factor, mask=inside)


def any_arguments(a, b, c, d, e, f, SIZE: tl.constexpr):
    """Never compiled: only how its arguments are specialised is asked."""


def scale_launch(x: torch.Tensor, y: torch.Tensor, rows_each: int = 4) -> Launch:
    rows, columns = x.shape
    sizes = {"rows": rows, "factor": 0.5, "COLUMNS": columns, "ROWS": rows_each}
    return Launch(scale_kernel, (-(-rows // rows_each),), {"x": x, "y": y, **sizes}, num_warps=4)


def specialised_by_triton(kernel, arguments):
    """(types, names of constants, names divisible by 16) as Triton's own launch path finds them, with no device.

    Reaches into Triton: the binder is private, but it is what runs at each launch, in 3.6 and in 3.7.
    """
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime.jit import create_function_from_signature

    backend = CUDABackend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    kinds = dict(zip(arguments, bind(**arguments)[1], strict=True))
    types = {name: kind[0] for name, kind in kinds.items()}
    aligned = [name for name, (kind, attributes) in kinds.items() if kind != "constexpr" and attributes == "D"]
    return types, sorted(name for name, kind in types.items() if kind == "constexpr"), aligned


def compilable(function):
    """The kernel as it is without the interpreter, which tests run under."""
    return triton.runtime.jit.JITFunction(function)


INTEGERS = [0, 1, 2, 8, 15, 16, 48, -1, -16, 2**31 - 16, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**40]
DTYPES = list(launch.TYPE_NAMES)


@pytest.mark.parametrize("integer", INTEGERS)
def test_integers_are_specialised_as_triton_does(integer):
    kernel = compilable(any_arguments)
    arguments = {"a": torch.zeros(4), "b": integer, "c": integer, "d": 0.25, "e": True, "f": None, "SIZE": 32}
    types, constants, aligned = Launch(kernel, (1,), arguments, 4).signature()
    assert (types, sorted(constants), aligned) == specialised_by_triton(kernel, arguments)
    assert constants["SIZE"] == 32 and constants["f"] is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tensors_are_specialised_as_triton_does(dtype, device):
    kernel, x = compilable(any_arguments), torch.empty(32, 2, dtype=dtype, device=device)
    arguments = {"a": x, "b": False, "c": 1.0, "d": x.new_empty(()), "e": x, "f": 3, "SIZE": 1}
    types, constants, aligned = Launch(kernel, (1,), arguments, 4).signature()
    assert (types, sorted(constants), aligned) == specialised_by_triton(kernel, arguments)
    assert types["a"].startswith("*") and aligned == ["a", "d", "e"]


def test_arguments_go_by_the_kernels_order():
    kernel = compilable(scale_kernel.fn)
    x = torch.empty(3, 8, dtype=torch.bfloat16, device="meta")
    shuffled = {"ROWS": 4, "COLUMNS": 8, "factor": 0.5, "y": x.float(), "x": x, "rows": 1}
    types, constants, aligned = Launch(kernel, (1,), shuffled, 4).signature()
    assert list(types) == ["x", "y", "rows", "factor", "COLUMNS", "ROWS"]
    assert types == {
        "x": "*bf16",
        "y": "*fp32",
        "rows": "constexpr",
        "factor": "fp32",
        "COLUMNS": "constexpr",
        "ROWS": "constexpr",
    }
    assert constants == {"rows": 1, "COLUMNS": 8, "ROWS": 4} and aligned == ["x", "y"]


def test_a_missing_argument_is_named():
    with pytest.raises(KeyError, match="rows"):
        Launch(compilable(scale_kernel.fn), (1,), {"x": torch.empty(3), "y": torch.empty(3)}, 4).signature()


@pytest.mark.skipif(not launch.INTERPRETED, reason="tensors lie on the CPU: this needs the interpreter")
@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_run_writes_what_the_kernel_says_and_counts_itself(rows):
    x = torch.arange(rows * 8.0).view(rows, 8)
    y = torch.full((rows + 1, 8), float("nan"))
    before = launch.launched["scale_kernel"]
    scale_launch(x, y).run()
    assert torch.equal(y[:-1], x * 0.5)
    assert y[-1].isnan().all()  # nothing beyond the rows was written
    assert launch.launched["scale_kernel"] == before + 1


def test_an_empty_grid_launches_nothing():
    before = launch.launched["scale_kernel"]
    scale_launch(torch.empty(0, 8), torch.empty(0, 8)).run()
    assert launch.launched["scale_kernel"] == before


@pytest.mark.parametrize(("n", "power"), [(0, 1), (1, 1), (2, 2), (3, 4), (31, 32), (32, 32), (33, 64), (1023, 1024)])
def test_next_power_of_2(n, power):
    assert next_power_of_2(n) == power
