"""Categorical sampling and log-probabilities at the sizes of the presets.

Sampling is also timed on the logits of a whole rollout, a call long enough to be compared with the speed of a copy.

... leading dimensions   S categoricals   K classes (the last two of a shape)
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.conftest import MeasureKernel
from bench.kernel_cases import CASES, UNIMIX, Shape, Work
from bench.providers import KernelBench, forward_and_backward
from stormfast.presets import preset_config
from stormfast_kernels import sample_categorical, sample_categorical_with_log_probs, unimix_log_probs
from stormfast_kernels.categorical import sample_categorical_reference, unimix_log_probs_reference


@dataclass(frozen=True)
class Logits:
    """Logits [..., S, K] to be made."""

    shape: Shape
    dtype: str

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}-{self.dtype}"

    def normal(self, generator: torch.Generator, dtype: str = "float32") -> Tensor:
        return torch.randn(self.shape, generator=generator, device=generator.device).to(getattr(torch, dtype))

    def logits(self, generator: torch.Generator) -> Tensor:
        """Twice as wide as those of a fresh model: some classes are likely, none is certain."""
        return (self.normal(generator) * 2).to(getattr(torch, self.dtype))

    def uniform(self, generator: torch.Generator) -> Tensor:
        return torch.rand(self.shape[:-1], generator=generator, device=generator.device)

    def bench(self, kernel: str, cases: list[str], **calls: Any) -> KernelBench:
        """A bench at this size. cases: the kernel cases whose work it does, one after the other."""
        work = (CASES[case].work(self.shape, getattr(torch, self.dtype)) for case in cases)
        return KernelBench(kernel, str(list(self.shape)), self.dtype, work=sum(work, start=Work(0, 0)), **calls)


def sizes(case: str) -> pytest.MarkDecorator:
    """Of a kernel case: those of the cpu preset in float32, and on CUDA those of storm and fast in both precisions."""
    shape = {preset: CASES[case].shape(preset_config(preset, "standard")) for preset in ("cpu", "storm", "fast")}
    cuda = [Logits(each, dtype) for each in (shape["storm"], shape["fast"]) for dtype in ("bfloat16", "float32")]
    if case == "rollout-sample":
        steps = preset_config("storm", "standard").imagination.horizon
        cuda += [Logits((steps * logits.shape[0], *logits.shape[1:]), logits.dtype) for logits in cuda[:2]]
    return pytest.mark.cases(cpu=[Logits(shape["cpu"], "float32")], cuda=list(dict.fromkeys(cuda)))


@sizes("rollout-sample")
@torch.no_grad()
def test_sample(case: Logits, measure_kernel: MeasureKernel) -> None:
    """Forward, the uniforms given: what a step of imagination does."""

    def reference(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        sample, _, index = sample_categorical_reference(logits, uniform, UNIMIX, False)
        return sample, index

    measure_kernel(
        case.bench(
            "sample_categorical",
            ["rollout-sample"],
            public=partial(sample_categorical, unimix=UNIMIX),
            reference=reference,
            arguments=lambda generator: [(case.logits(generator), case.uniform(generator))],
        )
    )


@sizes("model-sample")
def test_sample_with_log_probs_and_gradient(case: Logits, measure_kernel: MeasureKernel) -> None:
    """Forward and backward of sample and log-probabilities together: the posterior in a world-model update."""

    def reference(logits: Tensor, uniform: Tensor) -> tuple[Tensor, ...]:
        sample, log_probs, index = sample_categorical_reference(logits, uniform, UNIMIX, True)
        assert log_probs is not None
        return sample, index, log_probs

    def arguments(generator: torch.Generator) -> list[tuple]:
        logits, uniform = case.logits(generator).requires_grad_(), case.uniform(generator)
        return [(logits, (uniform,), (case.normal(generator, case.dtype), case.normal(generator)))]

    measure_kernel(
        case.bench(
            "sample_categorical_with_log_probs, forward + backward",
            ["model-sample", "model-sample-gradient"],
            public=partial(sample_categorical_with_log_probs, unimix=UNIMIX),
            reference=reference,
            arguments=arguments,
            around=forward_and_backward,
        )
    )


@sizes("prior-log-probs")
def test_log_probs_and_gradient(case: Logits, measure_kernel: MeasureKernel) -> None:
    """Forward and backward of the log-probabilities: the prior in a world-model update."""
    measure_kernel(
        case.bench(
            "unimix_log_probs, forward + backward",
            ["prior-log-probs", "prior-log-probs-gradient"],
            public=partial(unimix_log_probs, unimix=UNIMIX),
            reference=partial(unimix_log_probs_reference, unimix=UNIMIX),
            arguments=lambda generator: [(case.logits(generator).requires_grad_(), (), (case.normal(generator),))],
            around=forward_and_backward,
        )
    )
