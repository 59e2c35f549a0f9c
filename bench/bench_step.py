"""A whole step as the training loop runs it: nothing waits for the device but what the loop itself waits for."""

from dataclasses import replace
from typing import Any

import torch

from bench.conftest import TimeRounds
from bench.rounds import as_calls
from bench.warm_step import STEP, WarmStep
from stormfast.measure.peaks import Peaks


def test_step(step: WarmStep, peaks: Peaks, device: torch.device, time_rounds: TimeRounds, benchmark: Any) -> None:
    cycles = as_calls(step.phases[STEP], device)
    took = time_rounds(replace(cycles, calls=cycles.calls * step.cycle))
    if took is not None:
        benchmark.extra_info.update(step.about(), phase=STEP, **step.work(STEP, took, peaks), steps_per_second=1 / took)
