"""The phases of a step, each called alone, and whole steps as the training loop runs them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.conftest import MeasurePhase, TimeRounds
from bench.timing import as_calls
from bench.warm_step import STEP, WarmStep
from stormfast.measure.peaks import Peaks


@pytest.mark.parametrize("phase", ["act", "refresh"])
def test_act(phase: str, measure_phase: MeasurePhase) -> None:
    """From the present frame to an action on the host, and the acting context encoded anew after an update."""
    measure_phase(phase)


def test_world_model(measure_phase: MeasurePhase) -> None:
    """Forward, losses, backward, optimiser."""
    measure_phase("world_model")


def test_imagination(measure_phase: MeasurePhase) -> None:
    """Contexts encoded, then a rollout."""
    measure_phase("imagination")


def test_agent(measure_phase: MeasurePhase) -> None:
    """Actor and critic on one rollout batch, all its minibatches."""
    measure_phase("agent")


def test_step(
    step: WarmStep, peaks: Callable[[], Peaks], device: torch.device, time_rounds: TimeRounds, benchmark: Any
) -> None:
    """Nothing waits for the device but what the loop itself waits for."""
    cycles = as_calls(step.phases[STEP], device)
    took = time_rounds(replace(cycles, calls=cycles.calls * step.cycle))
    if took is not None:
        benchmark.extra_info.update(
            step.about(), phase=STEP, **step.work(STEP, took, peaks()), steps_per_second=1 / took
        )
