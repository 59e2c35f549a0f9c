"""What a bench times: rounds of many calls, each round from an idle device to an idle device.

Kernels are timed over sets of inputs that together do not fit the cache. On a CUDA device their calls are captured in a
CUDA graph and replayed, so that what the host needs to launch a kernel does not count, as in a captured training step.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stormfast.measure.peaks import best_seconds, synchronize

ROUND_SECONDS = {"cuda": 4e-3, "cpu": 2e-3}  # least time of a round: a synchronisation's 10 us are 0.3 % of it
MIN_CAPTURED = 50  # calls in a graph, so that the gap between two replays does not show
WARMUP = 3


@dataclass(frozen=True)
class Timed:
    """One round.

    Attributes:
        run: makes `calls` calls and waits until the device is idle.
        method: how the calls are made: "calls", "CUDA graph", or why there is no graph.
    """

    run: Callable[[], None]
    calls: int
    method: str


def as_calls(call: Callable[[], Any], device: torch.device) -> Timed:
    """Plain calls, as many as fill a round."""
    return fill_round(call, 1, "calls", device)


def fill_round(run_once: Callable[[], Any], calls: int, method: str, device: torch.device) -> Timed:
    """run_once, which makes `calls` calls, repeated until it fills a round."""
    repeats = math.ceil(ROUND_SECONDS[device.type] / best_seconds(run_once, device))

    def run() -> None:
        for _ in range(repeats):
            run_once()
        synchronize(device)

    return Timed(run, calls * repeats, method)


# --- kernels -----------------------------------------------------------------------------------------------------


def num_sets(bytes_of_call: float, device: torch.device) -> int:
    """Input sets to rotate among: together twice a GPU's second-level cache or more, so that each call reads memory."""
    if device.type != "cuda":
        return 1
    return max(2, math.ceil(2 * torch.cuda.get_device_properties(device).L2_cache_size / bytes_of_call))


def interleave(sets: Sequence[Sequence[tuple]]) -> list[tuple]:
    """The first arguments of every set, then the second of every set, ..."""
    return [arguments for step in zip(*sets, strict=True) for arguments in step]


def prepare(call: Callable[..., Any], sets: Sequence[Sequence[tuple]], device: torch.device) -> Timed:
    """A round of call(*arguments) for all arguments of all sets.

    As many outputs are kept alive as there are sets, so that they rotate in memory as the inputs do.
    """
    arguments = interleave(sets)
    outputs: deque[Any] = deque(maxlen=len(sets))

    def once() -> None:
        for each in arguments:
            outputs.append(call(*each))

    for _ in range(WARMUP):
        once()
    if device.type != "cuda":
        return fill_round(once, len(arguments), "calls", device)
    repeats = math.ceil(MIN_CAPTURED / len(arguments))
    replay, method = capture(once, repeats, outputs)
    return fill_round(replay, len(arguments) * repeats, method, device)


def capture(once: Callable[[], None], repeats: int, outputs: deque[Any]) -> tuple[Callable[[], None], str]:
    """`repeats` calls of `once`: the replay of a CUDA graph, or plain calls and the reason why there is no graph."""

    def body() -> None:
        for _ in range(repeats):
            once()

    stream = torch.cuda.Stream()  # torch asks to run on a side stream once before capture
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
        reason = " ".join(str(error).split())[:200]
        return body, f"calls, gaps between launches included: CUDA graph capture failed: {reason}"
    finally:
        outputs.clear()  # the graph keeps its own memory
    return graph.replay, "CUDA graph"
