"""Categorical sampling and log-probabilities at the sizes at which imagination and the world-model update use them.

[1024*16, 32, 32] is a whole rollout of the `storm` preset, [1024, 32, 32] and [2048, 32, 32] one step of `storm` and of
`fast`, [16, 64, 32, 32] a batch of the world-model update, with gradients.

... leading dimensions, S categoricals, K classes (the last two of a shape)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from bench.kernels.conftest import Measure
from bench.kernels.work import gradient_work, log_probs_work, sample_work
from stormfast_kernels import sample_categorical, sample_categorical_with_log_probs, unimix_log_probs
from stormfast_kernels.categorical import sample_categorical_reference, unimix_log_probs_reference

UNIMIX = 0.01


class Case(NamedTuple):
    shape: tuple[int, ...]  # of the logits
    dtype: str

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}-{self.dtype}"

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def itemsize(self) -> int:
        return getattr(torch, self.dtype).itemsize

    def logits(self, generator: torch.Generator, requires_grad: bool = False) -> Tensor:
        """Normal, twice as wide as those of a fresh model: some classes are likely, none is certain."""
        wide = torch.randn(self.shape, generator=generator, device=generator.device) * 2
        return wide.to(getattr(torch, self.dtype)).requires_grad_(requires_grad)

    def uniform(self, generator: torch.Generator) -> Tensor:
        return torch.rand(self.shape[:-1], generator=generator, device=generator.device)

    def gradient(self, generator: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(self.shape, generator=generator, device=generator.device).to(
            dtype or getattr(torch, self.dtype)
        )


def cases(*shapes: tuple[int, ...]) -> list[Case]:
    return [Case(shape, dtype) for shape in shapes for dtype in ("bfloat16", "float32")]


def sample_reference(logits: Tensor, draw: Any) -> tuple[Tensor, Tensor]:
    sample, _, index = sample_categorical_reference(logits, draw, UNIMIX, False)
    return sample, index


@pytest.mark.cases(
    cpu=[Case((64, 16, 16), "float32"), Case((64, 32, 32), "bfloat16")],
    cuda=cases((1024 * 16, 32, 32), (1024, 32, 32), (2048, 32, 32)),
)
@torch.no_grad()
def test_sample(case: Case, measure: Measure) -> None:
    """Forward, the uniforms given: what a step of imagination does."""
    whole_rollout = case.shape[0] == 1024 * 16
    measure(
        kernel="sample_categorical",
        shape=str(list(case.shape)),
        dtype=case.dtype,
        public=lambda logits, uniform: sample_categorical(logits, uniform, UNIMIX),
        reference=sample_reference,
        arguments=lambda generator: [(case.logits(generator), case.uniform(generator))],
        work=sample_work(case.rows, case.shape[-1], case.itemsize),
        target={"quantity": "fraction_of_copy_bandwidth", "at_least": 0.7} if whole_rollout else None,
    )


@pytest.mark.cases(
    cpu=[Case((64, 16, 16), "float32")], cuda=[Case((1024 * 16, 32, 32), "bfloat16"), Case((1024, 32, 32), "bfloat16")]
)
@torch.no_grad()
def test_sample_after_rand(case: Case, measure: Measure) -> None:
    """Forward, the uniforms drawn by torch just before."""

    def rand(forward: Callable[..., Any], logits: Tensor) -> Any:
        return forward(logits, torch.rand(case.shape[:-1], device=logits.device))

    measure(
        kernel="torch.rand + sample_categorical",
        shape=str(list(case.shape)),
        dtype=case.dtype,
        public=lambda logits, uniform: sample_categorical(logits, uniform, UNIMIX),
        reference=sample_reference,
        arguments=lambda generator: [(case.logits(generator),)],
        work=sample_work(case.rows, case.shape[-1], case.itemsize, uniform_given=False),
        around=rand,
        comparable=False,
    )


@pytest.mark.cases(cpu=[Case((4, 16, 16, 16), "float32")], cuda=cases((16, 64, 32, 32)))
def test_sample_with_log_probs_and_gradient(case: Case, measure: Measure) -> None:
    """Forward and backward of sample and log-probabilities together: the posterior in a world-model update."""

    def reference(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sample, log_probs, index = sample_categorical_reference(logits, uniform, UNIMIX, True)
        assert log_probs is not None
        return sample, index, log_probs

    def with_gradient(
        forward: Callable[..., Any], logits: Tensor, uniform: Tensor, grad_sample: Tensor, grad_log_probs: Tensor
    ) -> Sequence[Tensor]:
        sample, index, log_probs = forward(logits, uniform)
        (gradient,) = torch.autograd.grad((sample, log_probs), logits, (grad_sample, grad_log_probs))
        return sample.detach(), index, log_probs.detach(), gradient

    def arguments(generator: torch.Generator) -> list[tuple]:
        gradients = (case.gradient(generator), case.gradient(generator, torch.float32))
        return [(case.logits(generator, requires_grad=True), case.uniform(generator), *gradients)]

    measure(
        kernel="sample_categorical_with_log_probs, forward + backward",
        shape=str(list(case.shape)),
        dtype=case.dtype,
        public=lambda logits, uniform: sample_categorical_with_log_probs(logits, uniform, UNIMIX),
        reference=reference,
        arguments=arguments,
        work=sample_work(case.rows, case.shape[-1], case.itemsize, log_probs=True)
        + gradient_work(case.rows, case.shape[-1], case.itemsize),
        around=with_gradient,
    )


@pytest.mark.cases(cpu=[Case((4, 16, 16, 16), "float32")], cuda=cases((16, 64, 32, 32)))
@torch.no_grad()
def test_log_probs(case: Case, measure: Measure) -> None:
    """Forward of the log-probabilities alone."""
    measure(
        kernel="unimix_log_probs",
        shape=str(list(case.shape)),
        dtype=case.dtype,
        public=lambda logits: unimix_log_probs(logits, UNIMIX),
        reference=lambda logits: unimix_log_probs_reference(logits, UNIMIX),
        arguments=lambda generator: [(case.logits(generator),)],
        work=log_probs_work(case.rows, case.shape[-1], case.itemsize),
    )


@pytest.mark.cases(cpu=[Case((4, 16, 16, 16), "float32")], cuda=cases((16, 64, 32, 32)))
def test_log_probs_and_gradient(case: Case, measure: Measure) -> None:
    """Forward and backward of the log-probabilities: the prior in a world-model update."""

    def with_gradient(forward: Callable[..., Any], logits: Tensor, grad_log_probs: Tensor) -> Sequence[Tensor]:
        log_probs = forward(logits)
        (gradient,) = torch.autograd.grad(log_probs, logits, grad_log_probs)
        return log_probs.detach(), gradient

    measure(
        kernel="unimix_log_probs, forward + backward",
        shape=str(list(case.shape)),
        dtype=case.dtype,
        public=lambda logits: unimix_log_probs(logits, UNIMIX),
        reference=lambda logits: unimix_log_probs_reference(logits, UNIMIX),
        arguments=lambda generator: [
            (case.logits(generator, requires_grad=True), case.gradient(generator, torch.float32))
        ],
        work=log_probs_work(case.rows, case.shape[-1], case.itemsize)
        + gradient_work(case.rows, case.shape[-1], case.itemsize, sample=False),
        around=with_gradient,
    )
