"""A kernel by its providers: eager, its reference; compile, the reference compiled; triton, the kernel."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.kernel_cases import Work
from bench.timing import Timed, num_sets, prepare
from stormfast_kernels import launch

PROVIDERS = ("eager", "compile", "triton")
TOLERANCE = 2e-2  # by norm: bfloat16 rounds to 4e-3, and one class in 5,000 drawn otherwise is 2e-2
Call = Callable[..., Any]


def forward_only(forward: Call, *inputs: Any) -> Any:
    return forward(*inputs)


def forward_and_backward(forward: Call, logits: Tensor, inputs: tuple, gradients: tuple) -> tuple[Tensor, ...]:
    """The outputs of forward(logits, *inputs), and the gradient of logits given those of the outputs that have one."""
    outputs = tensors(forward(logits, *inputs))
    differentiable = [output for output in outputs if output.requires_grad]
    return (*(output.detach() for output in outputs), *torch.autograd.grad(differentiable, logits, gradients))


@dataclass(frozen=True)
class KernelBench:
    """One kernel at one size.

    Attributes:
        kernel, shape, dtype: its names in the result.
        public: the public function, its constants filled in; the environment decides what it runs.
        reference: what it runs as reference; same arguments, same outputs.
        arguments: makes one set of inputs on the generator's device: the arguments of successive calls.
        work: of one call, averaged over them.
        around: makes a call from a forward function and arguments.
    """

    kernel: str
    shape: str
    dtype: str
    public: Call
    reference: Call
    arguments: Callable[[torch.Generator], Sequence[tuple]]
    work: Work
    around: Call = forward_only

    def prepare(self, provider: str, device: torch.device) -> tuple[Timed, dict[str, Any]]:
        """A round by a provider, its outputs compared with the reference's; and what the result says of it.

        Raises: AssertionError where outputs differ or another path ran.
        """
        forward = self.public
        if provider == "compile":
            torch.compiler.reset()  # else the eighth case is one recompilation too many
            forward = torch.compile(self.reference, fullgraph=True, dynamic=False)

        def call(*given: Any) -> Any:
            return self.around(forward, *given)

        generator = torch.Generator(device).manual_seed(0)
        sets = [self.arguments(generator) for _ in range(num_sets(self.work.bytes, device))]
        if provider != "eager":
            for given in sets[0]:
                assert_same_call(call, lambda *x: self.around(self.reference, *x), given, TOLERANCE)
        before = launch.launched.total()
        call(*sets[0][0])
        launches = launch.launched.total() - before
        assert (launches > 0) == (provider == "triton"), f"{provider} launched {launches} Triton kernels of stormfast"
        about = {"kernel": self.kernel, "shape": self.shape, "dtype": self.dtype, "provider": provider}
        about |= {"input_sets": len(sets), "triton_launches_per_call": launches}
        return prepare(call, sets, device), about | {"bytes": self.work.bytes, "flops": self.work.flops}


# --- the same outputs --------------------------------------------------------------------------------------------


def assert_same(got: Any, expected: Any, tolerance: float) -> None:
    """Outputs agree by norm, tensor by tensor."""
    for i, (a, b) in enumerate(zip(tensors(got), tensors(expected), strict=True)):
        error = float((a.double() - b.double()).norm() / b.double().norm())
        if not error <= tolerance:  # NaN fails
            raise AssertionError(f"output {i} {tuple(b.shape)} differs from the reference by {error:.2g} of its norm")


def assert_same_call(forward: Call, reference: Call, given: tuple, tolerance: float) -> None:
    """Outputs agree, and so do changes to the arguments, each call on arguments of its own."""
    ours, theirs = clones(given), clones(given)
    assert_same(forward(*ours), reference(*theirs), tolerance)
    for i, (before, a, b) in enumerate(zip(given, ours, theirs, strict=True)):
        if isinstance(before, Tensor) and not torch.equal(a, b):
            # Relative to the change: one position is a small part of a cache.
            error, change = float((a.double() - b.double()).norm()), float((b.double() - before.double()).norm())
            if not error <= tolerance * change:
                raise AssertionError(
                    f"argument {i} {tuple(b.shape)} is {error:.2g} from the reference's change of {change:.2g}"
                )


def clones(arguments: tuple) -> tuple:
    """Arguments of their own memory and of the same layout; a view of a larger tensor becomes a tensor by itself."""
    return tuple(x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in arguments)


def tensors(output: Any) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)
