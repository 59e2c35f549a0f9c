"""What a benchmark times: rounds of many calls, each from an idle device to an idle device."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from stormfast.measure.peaks import synchronize

ROUND_SECONDS = {"cuda": 4e-3, "cpu": 2e-3}  # least time of a round: a synchronisation's 10 us are 0.3 % of it


@dataclass(frozen=True)
class Timed:
    run: Callable[[], None]  # one round: `calls` calls, and waits until they are done
    calls: int
    method: str


def as_calls(call: Callable[[], Any], device: torch.device) -> Timed:
    """Plain calls, as many as fill a round."""
    return fill_round(call, 1, "calls", device)


def fill_round(run_once: Callable[[], Any], calls: int, method: str, device: torch.device) -> Timed:
    """run_once, which makes `calls` calls, as often as fills a round."""
    repeats = math.ceil(ROUND_SECONDS[device.type] / seconds_of(run_once, device))
    body = repeated(run_once, repeats)

    def run() -> None:
        body()
        synchronize(device)

    return Timed(run, calls * repeats, method)


def repeated(body: Callable[[], Any], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            body()

    return run


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """Of one run, the fastest of three."""
    seconds = []
    for _ in range(3):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
