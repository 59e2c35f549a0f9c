"""What a device can do at best, measured: matrix products and a large copy."""

import math
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass

import torch

from stormfast.device import native_bfloat16
from stormfast.measure.op_counts import OpCounts, OpWork

# device type -> (rows of the square matrices, bytes of the copied buffer, beyond any cache)
SIZES = {"cpu": (2048, 2**28), "cuda": (8192, 2**30)}
REPEATS = 10
SECONDS = 0.4  # of repeats on a slow device; two are always made


@dataclass(frozen=True)
class Peaks:
    """The best of a few repeats."""

    bfloat16_flops: float  # a second, of a matrix product
    float32_flops: float  # a second, in the precision that torch allows float32 products here
    copy_bytes: float  # a second, read and written

    def seconds(self, work: OpWork) -> float:
        """The least time an operator can take: its arithmetic or its memory traffic, whichever is longer."""
        flops = self.bfloat16_flops if work.dtype in (torch.bfloat16, torch.float16) else self.float32_flops
        return max(work.flops / flops, work.bytes / self.copy_bytes)


def best_of(a: Peaks, b: Peaks) -> Peaks:
    """Of two measurements: what else runs on a machine can only slow it down."""
    return Peaks(*(max(pair) for pair in zip(astuple(a), astuple(b), strict=True)))


def floor_seconds(counts: OpCounts, peaks: Peaks) -> float:
    """The floor of a phase: each matrix product, convolution and attention at the device's peak, one after the other.

    All other work, elementwise operators, normalisation, optimisers and gathers, is taken as fused away.
    """
    return sum(peaks.seconds(work) for work in counts.work)


def measure_peaks(device: torch.device) -> Peaks:
    """Takes some seconds on a CPU, less on a GPU."""
    rows, copied = SIZES[device.type]
    rates = {dtype: product_rate(rows, dtype, device) for dtype in (torch.bfloat16, torch.float32)}
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    peaks = Peaks(
        rates[torch.bfloat16], rates[torch.float32], 2 * copied / best_seconds(lambda: target.copy_(source), device)
    )
    if device.type == "cuda":
        del source, target
        torch.cuda.empty_cache()  # so that a run that fits alone fits after this
        torch.cuda.reset_peak_memory_stats(device)
    return peaks


def product_rate(rows: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOPs a second of a product of square matrices.

    A CPU without bfloat16 units takes a minute for 2048 x 2048 of them: there the matrices are smaller.
    """
    if dtype == torch.bfloat16 and not native_bfloat16(device)[0]:
        rows //= 4
    a, b = (torch.randn(rows, rows, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * rows**3 / best_seconds(lambda: torch.mm(a, b, out=out), device)


def best_seconds(function: Callable[[], object], device: torch.device) -> float:
    """The shortest of several calls, after one to warm up."""
    timed(function, device)
    best, spent = math.inf, 0.0
    for repeat in range(REPEATS):
        if repeat >= 2 and spent > SECONDS:
            break
        seconds = timed(function, device)
        best, spent = min(best, seconds), spent + seconds
    return best


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, from an idle device to an idle device."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
