"""Are our kernels faster than what a PyTorch user would write: torch.distributions, sdpa, torch.compile?

    python -m bench.peers.kernels --device cuda --json bench/results/DEVICE/peers-kernels.json
    python -m bench.peers.kernels --threads 1 --json bench/results/DEVICE/peers-kernels.json    # under a minute

Ours is the public function: the Triton kernel on CUDA (shapes of storm and fast, bfloat16), its PyTorch reference on a
CPU (shapes of cpu, float32). Before a case is timed, its implementations are checked to do the same work: the same
outputs and gradients, and samples of the same distribution, by the counts of 2^18 draws.

On CUDA the calls of a round are captured in a CUDA graph and read inputs that do not fit the cache. What cannot be
captured, such as draws of torch.distributions, is timed as plain calls; the column `timing` says so.
Exit status: 0 done, 1 not the same work, 2 bad arguments.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.peers import kernel_peers as peers
from bench.peers import runner
from bench.peers.runner import OURS, CheckError, Row, summarize, time_interleaved
from bench.providers import assert_same
from bench.timing import num_sets, prepare
from stormfast.presets import preset_config

NUM_DRAWS, DRAWS_PER_CALL, CHECKED_ROWS = 2**18, 2**14, 4  # a class of probability 0.01 / 32 is drawn 82 times
MAX_DEVIATIONS = 7.0  # standard deviations of a class's count
TOLERANCE = 2e-2  # of the norm: bfloat16 rounds to 4e-3
Call = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """One kernel at one shape.

    Attributes:
        implementations: name -> call, ours first. All take the same arguments.
        arguments: makes a set of inputs on the generator's device: the arguments of successive calls.
        check: raises AssertionError or CheckError unless (call, ours, arguments) do the same work.
    """

    kernel: str
    shape: str
    dtype: torch.dtype
    implementations: dict[str, Call]
    arguments: Callable[[torch.Generator], Sequence[tuple]]
    check: Callable[[Call, Call, tuple], None]


# --- the same work -----------------------------------------------------------------------------------------------


def check_outputs(call: Call, ours: Call, arguments: tuple) -> None:
    """Outputs agree, by norm."""
    assert_same(call(*arguments), ours(*arguments), TOLERANCE)


def check_attention(call: Call, ours: Call, arguments: tuple) -> None:
    """Outputs agree, and the new token is in the cache."""
    theirs, mine = ([x.clone() for x in arguments] for _ in range(2))
    out, expected = call(*theirs), ours(*mine)
    caches = theirs[3:5]
    if isinstance(out, tuple):  # new caches were returned
        out, *caches = out
    assert_same(out, expected, TOLERANCE)
    end = int(arguments[5]) + 1
    if not all(torch.equal(a[:, :, :end], b[:, :, :end]) for a, b in zip(caches, mine[3:5], strict=True)):
        raise CheckError("the cache does not hold what ours holds")


def check_distribution(call: Call, ours: Call, arguments: tuple) -> None:
    """Samples are one-hot, and each class is as frequent as it should be. `ours` is not called."""
    rows = arguments[0].detach().flatten(0, -2)[:CHECKED_ROWS]
    repeated = rows.expand(DRAWS_PER_CALL, *rows.shape).contiguous()
    probs = peers.mixed_probs(rows).double()
    counts = torch.zeros_like(probs)
    for _ in range(NUM_DRAWS // DRAWS_PER_CALL):
        sample = call(repeated)
        if not bool((sample.sum(-1) == 1).all()) or not bool(((sample == 0) | (sample == 1)).all()):
            raise CheckError("samples are not one-hot")
        counts += sample.double().sum(0)
    deviation = (NUM_DRAWS * probs * (1 - probs)).sqrt()
    largest = float(((counts - NUM_DRAWS * probs).abs() / deviation).max())
    if not largest < MAX_DEVIATIONS:
        raise CheckError(f"the count of a class is {largest:.1f} standard deviations from its expectation")


# --- cases -------------------------------------------------------------------------------------------------------


def beside_distributions(ours: Call, theirs: Call) -> dict[str, Call]:
    return {
        OURS: ours,
        "torch.distributions": theirs,
        "torch.distributions, no checks": partial(theirs, validate_args=False),
        "torch.distributions, no checks, compiled": partial(torch.compile(theirs), validate_args=False),
    }


def random_logits(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Twice as wide as those of a new model: some classes are likely, none is certain."""
    return (2 * torch.randn(shape, generator=generator, device=generator.device)).to(dtype)


def sampling_case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    """A step of imagination, or a whole rollout: no gradient."""
    calls = beside_distributions(peers.sample_ours, peers.sample_torch)
    return Case(
        "sample", str(list(shape)), dtype, calls, lambda g: [(random_logits(shape, dtype, g),)], check_distribution
    )


def gradient_case(shape: tuple[int, ...], dtype: torch.dtype, *, sample: bool) -> Case:
    """Forward and backward, as in a world-model update: the posterior's sample or the prior's log-probabilities.

    Samples differ from call to call, so they are not among the outputs; their straight-through gradient is.
    """

    def arguments(generator: torch.Generator) -> list[tuple]:
        output_gradient = random_logits(shape, dtype if sample else torch.float32, generator)
        return [(random_logits(shape, dtype, generator).requires_grad_(), output_gradient)]

    def with_gradient(call: Call, logits: Tensor, output_gradient: Tensor) -> tuple[Tensor, ...]:
        out = call(logits)
        gradient = torch.autograd.grad(out, logits, output_gradient)[0]
        return (gradient,) if sample else (out.detach(), gradient)

    pair = (peers.sample_ours, peers.sample_torch) if sample else (peers.log_probs_ours, peers.log_probs_torch)
    calls: dict[str, Call] = {name: partial(with_gradient, call) for name, call in beside_distributions(*pair).items()}
    kernel = f"{'sample' if sample else 'log-probabilities'}, forward + backward"
    return Case(kernel, str(list(shape)), dtype, calls, arguments, check_outputs)


def attention_case(batch: int, heads: int, head_dim: int, lengths: range, dtype: torch.dtype) -> Case:
    """The attention of a rollout, averaged over its steps. lengths: tokens in the cache before each step."""

    def arguments(generator: torch.Generator) -> list[tuple]:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=generator.device).to(dtype)

        cache = normal(2, batch, heads, lengths.stop, head_dim)  # keys and values
        return [
            (
                *normal(3, batch, heads, head_dim).unbind(),
                *cache.unbind(),
                torch.tensor(length, device=generator.device),
                cache[:, :, :, :length].contiguous(),
            )
            for length in lengths
        ]

    calls = {
        OURS: peers.attention_ours,
        "index_copy_ + sdpa": peers.attention_static,
        "index_copy_ + sdpa, compiled": torch.compile(peers.attention_static),
        "torch.cat + sdpa": peers.attention_growing,
        "torch.cat + sdpa, compiled": torch.compile(peers.attention_growing),
    }
    shape = f"B{batch} {heads}x{head_dim} length {lengths[0]}..{lengths[-1]}"
    return Case("cached attention step", shape, dtype, calls, arguments, check_attention)


def cases_for(device: torch.device) -> list[Case]:
    """The shapes of storm and fast in bfloat16 on CUDA; those of the cpu preset in float32 on a CPU."""
    on_cuda = device.type == "cuda"
    dtype = torch.bfloat16 if on_cuda else torch.float32
    sampled = [(1024, 32, 32), (2048, 32, 32), (1024 * 16, 32, 32)] if on_cuda else [(128, 16, 16)]
    cases = [sampling_case(shape, dtype) for shape in sampled]
    cases += [gradient_case((16, 64, 32, 32) if on_cuda else (8, 16, 16, 16), dtype, sample=s) for s in (True, False)]
    for preset in ("storm", "fast") if on_cuda else ("cpu",):
        config = preset_config(preset, "standard")
        model, imagined = config.world_model, config.imagination
        lengths = range(imagined.context, imagined.context + imagined.horizon)
        cases.append(attention_case(imagined.batch_size, model.heads, model.width // model.heads, lengths, dtype))
    return cases


# --- checking and timing -----------------------------------------------------------------------------------------


def check_case(case: Case, inputs: Sequence[tuple]) -> None:
    """Raises: CheckError where an implementation does other work than ours."""
    for name, call in case.implementations.items():
        try:
            for arguments in inputs:
                case.check(call, case.implementations[OURS], arguments)
        except (AssertionError, CheckError) as error:
            raise CheckError(f"{case.kernel} {case.shape}, {name}: {error}") from None


def measure_case(case: Case, rounds: int, device: torch.device) -> list[Row]:
    """A row of each implementation, ours first."""
    torch.compiler.reset()  # all cases together would exceed the limit of recompilations
    generator = torch.Generator(device).manual_seed(0)
    inputs = case.arguments(generator)
    check_case(case, inputs)
    num_bytes = sum(x.nbytes for x in inputs[0])
    sets = [inputs, *(case.arguments(generator) for _ in range(num_sets(num_bytes, device) - 1))]
    prepared = {name: prepare(call, sets, device) for name, call in case.implementations.items()}
    seconds = time_interleaved({name: each.run for name, each in prepared.items()}, rounds, device)
    measured = summarize(seconds, {name: each.calls for name, each in prepared.items()})
    what = {"kernel": case.kernel, "shape": case.shape, "dtype": str(case.dtype).removeprefix("torch.")}
    return [what | {"writer": name, "timing": prepared[name].method} | row for name, row in measured.items()]


def measure(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, list[Row]]]:
    os.environ["STORMFAST_KERNELS"] = "triton" if device.type == "cuda" else "reference"  # no silent fallback
    for case in cases_for(device):
        yield {"rows": measure_case(case, options.rounds, device)}


def main(words: Sequence[str] | None = None) -> int:
    return runner.main("kernels", __doc__, measure, words, rounds=200)


if __name__ == "__main__":
    sys.exit(main())
