"""The cached attention step at the sizes of the presets: 16 steps of a rollout, on average and one by one.

The reference is what a library gives: index_copy_ into the cache and scaled_dot_product_attention over all of it under
a mask. A call is one step of one layer; a rollout's calls take successive lengths.

B sequences   L cache positions
"""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from bench.kernels.conftest import Measure
from bench.kernels.work import attention_work
from stormfast.settings import preset_config
from stormfast_kernels import cached_attention_step
from stormfast_kernels.attention import cached_attention_step_reference


class Case(NamedTuple):
    batch: int
    heads: int
    head_dim: int
    cache_length: int
    first_length: int  # positions filled before the first call, and
    last_length: int  # before the last
    dtype: str
    masked: bool = False  # whether each sequence has a first position of its own

    def __str__(self) -> str:
        return f"{self.shape.replace(' ', '-')}-{self.dtype}"

    @property
    def lengths(self) -> range:
        return range(self.first_length, self.last_length + 1)

    @property
    def shape(self) -> str:
        length = f"{self.first_length}..{self.last_length}" if len(self.lengths) > 1 else str(self.first_length)
        return f"B{self.batch} {self.heads}x{self.head_dim} L{self.cache_length} length {length}{' first' if self.masked else ''}"

    def arguments(self, generator: torch.Generator) -> list[tuple[Tensor | None, ...]]:
        """One cache, and a token for each length."""
        device, dtype = generator.device, getattr(torch, self.dtype)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        cache = [normal(self.batch, self.heads, self.cache_length, self.head_dim) for _ in range(2)]
        first = (
            torch.randint(self.first_length, (self.batch,), generator=generator, device=device) if self.masked else None
        )
        return [
            # Each length is a tensor of its own, as in training: an element of a larger one may not be aligned.
            (
                *(normal(self.batch, self.heads, self.head_dim) for _ in range(3)),
                *cache,
                torch.tensor(length, device=device),
                first,
            )
            for length in self.lengths
        ]


def rollout(preset: str, masked: bool = False) -> Case:
    """All imagined steps of a preset, in the precision of a GPU."""
    config = preset_config(preset, "standard")
    model, imagined = config.world_model, config.imagination
    end = imagined.context + imagined.horizon
    return Case(
        imagined.batch_size, model.heads, model.width // model.heads, end, imagined.context, end - 1, "bfloat16", masked
    )


def single(case: Case, length: int) -> Case:
    return case._replace(first_length=length, last_length=length)


STORM = rollout("storm")  # batch 1024, 8 heads x 64, lengths 8..23 before the step: it attends to 9..24
CUDA = [STORM, *(single(STORM, length) for length in (8, 15, 23)), rollout("storm", masked=True), rollout("fast")]


@pytest.mark.cases(
    cpu=[Case(16, 4, 32, 14, 4, 13, "float32"), Case(16, 4, 32, 14, 4, 13, "float32", masked=True)], cuda=CUDA
)
@torch.no_grad()
def test_step(case: Case, measure: Measure) -> None:
    """Appends one token and attends over the cache."""
    measure(
        kernel="cached_attention_step",
        shape=case.shape,
        dtype=case.dtype,
        public=cached_attention_step,
        reference=cached_attention_step_reference,
        arguments=case.arguments,
        work=attention_work(
            case.batch, case.heads, case.head_dim, case.lengths, getattr(torch, case.dtype).itemsize, case.masked
        ),
        target={"quantity": "speedup_over_eager", "at_least": 2.0} if case == STORM else None,
    )
