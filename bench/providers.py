"""A kernel by its providers: eager, its reference; compile, the reference compiled; triton, the kernel."""

import copy
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
        ours, theirs = copy.deepcopy(sets[0]), copy.deepcopy(sets[0])
        # Calls of a set share what they write into, so that a wrong write shows in the next output.
        for mine, given in zip(ours, theirs, strict=True):
            assert_same(call(*mine), self.around(self.reference, *given), TOLERANCE)
        before = launch.launched.total()
        call(*sets[0][0])
        launches = launch.launched.total() - before
        assert (launches > 0) == (provider == "triton"), f"{provider} launched {launches} Triton kernels of stormfast"
        about = {"kernel": self.kernel, "shape": self.shape, "dtype": self.dtype, "provider": provider}
        about |= {"input_sets": len(sets), "triton_launches_per_call": launches}
        return prepare(call, sets, device), about | {"bytes": self.work.bytes, "flops": self.work.flops}


def assert_same(got: Any, expected: Any, tolerance: float) -> None:
    """Outputs agree by norm, tensor by tensor."""
    for i, (a, b) in enumerate(zip(tensors(got), tensors(expected), strict=True)):
        error = float((a.double() - b.double()).norm() / b.double().norm())
        if not error <= tolerance:  # NaN fails
            raise AssertionError(f"output {i} {tuple(b.shape)} differs from the reference by {error:.2g} of its norm")


def tensors(output: Any) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)
