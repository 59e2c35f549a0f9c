"""What is timed: the same calls again and again, over inputs that do not fit the cache, launched without gaps.

On a CUDA device all calls are captured once in a CUDA graph and the graph is replayed: what the host needs to launch a
kernel does not count, as it does not in a captured training step. On a CPU they are plain calls.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.rounds import Timed, fill_round, repeated

LEAST_CAPTURED = 50  # calls of a graph, so that the gap between two replays does not show
WARMUP = 3


def num_sets(bytes_of_call: float, device: torch.device) -> int:
    """Input sets to rotate among: together at least twice the second-level cache of a GPU, so that each call reads memory."""
    if device.type != "cuda":
        return 1
    return max(2, math.ceil(2 * torch.cuda.get_device_properties(device).L2_cache_size / bytes_of_call))


def interleave(sets: Sequence[Sequence[tuple]]) -> list[tuple]:
    """Sets of the arguments of successive calls, in the order of the calls, every set's turn before any set's next."""
    return [arguments for step in zip(*sets, strict=True) for arguments in step]


def prepare(call: Callable[..., Any], sets: Sequence[Sequence[tuple]], device: torch.device) -> Timed:
    """call(*arguments) for all arguments of all sets; outputs live as long as a set's turn takes, so that they rotate too."""
    arguments = interleave(sets)
    outputs: deque[Any] = deque(maxlen=len(sets))

    def once() -> None:
        for each in arguments:
            outputs.append(call(*each))

    for _ in range(WARMUP):
        once()
    calls, run_once, method = len(arguments), once, "calls"
    if device.type == "cuda":
        captured = math.ceil(LEAST_CAPTURED / len(arguments))
        calls *= captured
        run_once, method = capture(repeated(once, captured), outputs)
    return fill_round(run_once, calls, method, device)


def capture(body: Callable[[], None], outputs: deque[Any]) -> tuple[Callable[[], None], str]:
    """Replays of `body` as a CUDA graph, and what to call them; `body` itself, and why, where it cannot be captured."""
    stream = torch.cuda.Stream()  # what is captured runs on a side stream first, as torch's documentation asks
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        body()
    torch.cuda.current_stream().wait_stream(stream)
    outputs.clear()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            body()
    except RuntimeError as error:
        torch.cuda.synchronize()
        outputs.clear()
        return (
            body,
            f"calls, gaps between launches included: CUDA graph capture failed: {' '.join(str(error).split())[:200]}",
        )
    outputs.clear()  # the graph keeps its memory
    return graph.replay, "CUDA graph"


def assert_same(got: Any, expected: Any, tolerance: float) -> None:
    """A wrong answer is not worth timing: outputs agree by norm. bfloat16 rounds to 4e-3; a class in 5,000 drawn otherwise is 2e-2."""
    for i, (a, b) in enumerate(zip(tensors(got), tensors(expected), strict=True)):
        error = (a.double() - b.double()).norm() / b.double().norm()
        if not error <= tolerance:  # NaN fails
            raise AssertionError(
                f"output {i} of shape {tuple(b.shape)} differs from the reference by {float(error):.2g} of its norm"
            )


def assert_same_call(
    forward: Callable[..., Any], reference: Callable[..., Any], given: tuple, tolerance: float
) -> None:
    """assert_same of outputs, each on arguments of its own; and what the reference writes into its arguments, `forward` writes too."""
    ours, theirs = clones(given), clones(given)
    assert_same(forward(*ours), reference(*theirs), tolerance)
    for i, (before, a, b) in enumerate(zip(given, ours, theirs, strict=True)):
        if isinstance(before, Tensor) and not torch.equal(a, b):
            error, change = (
                (a.double() - b.double()).norm(),
                (b.double() - before.double()).norm(),
            )  # one position is little of a cache
            if not error <= tolerance * change:
                shape, wrong, right = tuple(b.shape), float(error), float(change)
                raise AssertionError(
                    f"argument {i} of shape {shape}: the reference changes it by {right:.2g}, and this is {wrong:.2g} from that"
                )


def clones(arguments: tuple) -> tuple:
    """Arguments of their own memory and of the same layout; a view of a larger tensor becomes a tensor by itself."""
    return tuple(x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in arguments)


def tensors(output: Any) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)
