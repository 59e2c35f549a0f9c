"""What bench/peers/kernels.py times: our kernels at the shapes of the presets, who else does their work, and the check that it is the same.

... leading dimensions   S categoricals   K classes   B sequences   L cache positions
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from bench.kernels.timing import assert_same
from bench.kernels.work import attention_work, gradient_work, log_probs_work, sample_work
from torch import Tensor

from bench.peers import kernel_peers as peers
from bench.peers.side_by_side import CheckError
from stormfast.settings import preset_config

OURS = "stormfast"
DRAWS, PORTIONS, CHECKED_ROWS = 2**18, 16, 4  # a class of 0.01 / 32 is drawn 82 times
MOST_DEVIATIONS = 7.0  # of a class's count
TOLERANCE = 2e-2  # by norm, as bench/kernels has it: bfloat16 rounds to 4e-3
Call = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """One kernel at one shape, and who does its work.

    Attributes:
        writers: name -> call; ours first. All take the same arguments.
        arguments: makes one set of inputs on the generator's device: the arguments of successive calls.
        bytes: that a call must move, so as to know how many sets exceed the cache.
        check: raises AssertionError or CheckError unless a call does the work of ours, given both and arguments.
    """

    kernel: str
    shape: str
    dtype: str
    writers: dict[str, Call]
    arguments: Callable[[torch.Generator], Sequence[tuple]]
    bytes: float
    check: Callable[[Call, Call, tuple], None]


# --- the same work -----------------------------------------------------------------------------------------------


def same_outputs(call: Call, ours: Call, given: tuple) -> None:
    """Output and gradient, alike by norm."""
    assert_same(call(*given), ours(*given), TOLERANCE)


def same_gradient(call: Call, ours: Call, given: tuple) -> None:
    """Of a sample, which is another each time: its straight-through gradient is not."""
    assert_same(call(*given)[1], ours(*given)[1], TOLERANCE)


def same_attention(call: Call, ours: Call, given: tuple) -> None:
    """Alike, and the new token where the next step will look for it."""
    mine, theirs = ([x.clone() for x in given] for _ in range(2))
    out, expected = call(*mine), ours(*theirs)
    end, kept = int(given[5]) + 1, mine[3:5]
    if isinstance(out, tuple):  # the caches are made anew
        out, *kept = out
    assert_same(out, expected, TOLERANCE)
    for cache, wanted in zip(kept, theirs[3:5], strict=True):
        if not torch.equal(cache[:, :, :end], wanted[:, :, :end]):
            raise CheckError("the cache does not hold what ours holds")


def same_distribution(call: Call, ours: Call, given: tuple) -> None:
    """One-hot, and each class of the first rows of logits as frequent as it must be; for ours as for others, so `ours` is not called."""
    rows = given[0].detach().flatten(0, -2)[:CHECKED_ROWS]
    many = rows.expand(DRAWS // PORTIONS, *rows.shape).contiguous()
    counts = torch.zeros_like(probs := peers.mixed_probs(rows).double())
    for _ in range(PORTIONS):
        sample = call(many)
        if not bool((sample.sum(-1) == 1).all()) or not bool(((sample == 0) | (sample == 1)).all()):
            raise CheckError("samples are not one-hot")
        counts += sample.double().sum(0)
    spread = (DRAWS * probs * (1 - probs)).sqrt()
    worst = float(((counts - DRAWS * probs).abs() / spread).max())
    if not worst < MOST_DEVIATIONS:
        raise CheckError(f"a class is drawn {worst:.1f} standard deviations too often or too rarely")


# --- sampling ----------------------------------------------------------------------------------------------------


def with_gradient(call: Call, logits: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """Forward and backward: what the world-model update needs."""
    out = call(logits)
    return out.detach(), torch.autograd.grad(out, logits, cotangent)[0]


def logits_of(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Twice as wide as those of a fresh model: some classes are likely, none is certain."""
    return (torch.randn(shape, generator=generator, device=generator.device) * 2).to(dtype)


def sampling_case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    """A step of imagination, or a whole rollout: no gradient."""
    writers = {
        OURS: peers.sample_ours,
        "torch.distributions": peers.sample_distributions,
        "torch.distributions, no checks": peers.sample_unchecked,
        "torch.distributions, no checks, compiled": torch.compile(peers.sample_unchecked),
    }

    def arguments(generator: torch.Generator) -> list[tuple]:
        return [(logits_of(shape, dtype, generator),)]

    moved = sample_work(math.prod(shape[:-1]), shape[-1], dtype.itemsize, uniform_given=False).bytes
    return Case("sample", str(list(shape)), name_of(dtype), writers, arguments, moved, same_distribution)


def gradient_case(shape: tuple[int, ...], dtype: torch.dtype, *, sample: bool) -> Case:
    """The posterior of a world-model update, or without `sample` the log-probabilities of its prior: forward and backward."""
    calls = (peers.sample_ours, peers.sample_distributions, peers.sample_unchecked)
    if not sample:
        calls = (peers.log_probs_ours, peers.log_probs_distributions, peers.log_probs_unchecked)
    writers = dict(zip((OURS, "torch.distributions", "torch.distributions, no checks"), calls, strict=True))
    writers["torch.distributions, no checks, compiled"] = torch.compile(calls[-1])

    def arguments(generator: torch.Generator) -> list[tuple]:
        cotangent = logits_of(shape, dtype if sample else torch.float32, generator)
        return [(logits_of(shape, dtype, generator).requires_grad_(), cotangent)]

    rows, classes = math.prod(shape[:-1]), shape[-1]
    forward = (
        sample_work(rows, classes, dtype.itemsize, uniform_given=False)
        if sample
        else log_probs_work(rows, classes, dtype.itemsize)
    )
    moved = forward.bytes + gradient_work(rows, classes, dtype.itemsize, sample=sample).bytes
    named = "sample" if sample else "log-probabilities"
    both = {name: partial(with_gradient, call) for name, call in writers.items()}
    check = same_gradient if sample else same_outputs
    return Case(f"{named}, forward + backward", str(list(shape)), name_of(dtype), both, arguments, moved, check)


# --- attention ---------------------------------------------------------------------------------------------------


class Rollout(NamedTuple):
    """The attention of imagination: one step for each length of the cache, from its context to its end."""

    batch: int
    heads: int
    head_dim: int
    context: int  # tokens in the cache before the first step
    horizon: int

    @property
    def lengths(self) -> range:
        return range(self.context, self.context + self.horizon)

    def __str__(self) -> str:
        return f"B{self.batch} {self.heads}x{self.head_dim} length {self.lengths[0]}..{self.lengths[-1]}"


def rollout_of(preset: str) -> Rollout:
    config = preset_config(preset, "standard")
    model, imagined = config.world_model, config.imagination
    return Rollout(imagined.batch_size, model.heads, model.width // model.heads, imagined.context, imagined.horizon)


def attention_case(rollout: Rollout, dtype: torch.dtype) -> Case:
    """Every step of a rollout, averaged."""
    writers = {
        OURS: peers.attend_ours,
        "index_copy_ + sdpa": peers.attend_static,
        "index_copy_ + sdpa, compiled": torch.compile(peers.attend_static),
        "torch.cat + sdpa": peers.attend_growing,
        "torch.cat + sdpa, compiled": torch.compile(peers.attend_growing),
    }

    def arguments(generator: torch.Generator) -> list[tuple]:
        def normal(*shape: int) -> Tensor:
            return torch.randn(
                *shape, rollout.batch, rollout.heads, rollout.head_dim, generator=generator, device=generator.device
            ).to(dtype)

        cache = (
            normal(2, rollout.context + rollout.horizon).permute(0, 2, 3, 1, 4).contiguous()
        )  # keys and values: [2, B, heads, L, head_dim]
        found = []
        for length in rollout.lengths:
            past = cache[:, :, :, :length].contiguous()
            found.append((*normal(3).unbind(), *cache.unbind(), torch.tensor(length, device=generator.device), past))
        return found

    work = attention_work(rollout.batch, rollout.heads, rollout.head_dim, rollout.lengths, dtype.itemsize)
    return Case("cached attention step", str(rollout), name_of(dtype), writers, arguments, work.bytes, same_attention)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def cases_of(device: torch.device) -> list[Case]:
    """The shapes of storm and fast in bfloat16 on CUDA; on a CPU those of the cpu preset in float32."""
    if device.type == "cuda":
        steps = [
            sampling_case(shape, torch.bfloat16) for shape in ((1024, 32, 32), (2048, 32, 32), (1024 * 16, 32, 32))
        ]
        update, dtype, rollouts = (16, 64, 32, 32), torch.bfloat16, ("storm", "fast")
    else:
        steps, update, dtype, rollouts = (
            [sampling_case((128, 16, 16), torch.float32)],
            (8, 16, 16, 16),
            torch.float32,
            ("cpu",),
        )
    gradients = [gradient_case(update, dtype, sample=sample) for sample in (True, False)]
    return [*steps, *gradients, *(attention_case(rollout_of(preset), dtype) for preset in rollouts)]
