"""The cached attention step over a rollout of each preset.

The reference is what a library gives: index_copy_ into the cache and scaled_dot_product_attention over all of it under
a mask. A call is one step of one layer; a rollout's calls take successive lengths.

B sequences   H heads   L cache positions   D head size
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bench.conftest import MeasureKernel
from bench.kernel_cases import CASES, Shape, attention_work
from bench.providers import KernelBench
from stormfast.presets import preset_config
from stormfast_kernels import cached_attention_step
from stormfast_kernels.attention import cached_attention_step_reference


@dataclass(frozen=True)
class Steps:
    """Successive steps on one cache.

    Attributes:
        cache: [B, H, L, D].
        lengths: positions in the cache before each step.
        with_first: whether each sequence has a first visible position of its own.
    """

    cache: Shape
    lengths: range
    dtype: str
    with_first: bool

    def __str__(self) -> str:
        return f"{self.shape.replace(' ', '-')}-{self.dtype}"

    @property
    def shape(self) -> str:
        batch, heads, positions, head_dim = self.cache
        lengths = f"{self.lengths[0]}..{self.lengths[-1]}"
        return f"B{batch} {heads}x{head_dim} L{positions} length {lengths}{' first' if self.with_first else ''}"

    def arguments(self, generator: torch.Generator) -> list[tuple[Tensor | None, ...]]:
        """One cache, and a token for each length."""
        device, dtype = generator.device, getattr(torch, self.dtype)
        batch, heads, _, head_dim = self.cache

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        caches = [normal(*self.cache) for _ in range(2)]
        first = torch.randint(self.lengths[0], (batch,), generator=generator, device=device)
        return [
            (
                *(normal(batch, heads, head_dim) for _ in range(3)),
                *caches,
                torch.tensor(
                    length, device=device
                ),  # of its own, as in training: a larger tensor's element may be unaligned
                first if self.with_first else None,
            )
            for length in self.lengths
        ]


def rollout(preset: str, dtype: str, with_first: bool = False) -> Steps:
    """All imagined steps of a preset."""
    config = preset_config(preset, "standard")
    context = config.imagination.context
    lengths = range(context, context + config.imagination.horizon)
    return Steps(CASES["attention-step"].shape(config), lengths, dtype, with_first)


@pytest.mark.cases(
    cpu=[rollout("cpu", "float32", with_first) for with_first in (False, True)],
    cuda=[rollout("storm", "bfloat16"), rollout("storm", "bfloat16", with_first=True), rollout("fast", "bfloat16")],
)
@torch.no_grad()
def test_step(case: Steps, measure_kernel: MeasureKernel) -> None:
    """Appends one token and attends over the cache."""
    measure_kernel(
        KernelBench(
            kernel="cached_attention_step",
            shape=case.shape,
            dtype=case.dtype,
            public=cached_attention_step,
            reference=cached_attention_step_reference,
            arguments=case.arguments,
            work=attention_work(case.cache, case.lengths, getattr(torch, case.dtype), case.with_first),
        )
    )
