"""Replay: a batch of windows for the world model, one of contexts for imagination, the rows of one step appended."""

from typing import Any

import numpy as np
import pytest

from bench.conftest import MeasurePhase, TimeRounds
from bench.timing import as_calls
from bench.warm_step import WarmStep
from stormfast.replay import ROW_BYTES


@pytest.mark.parametrize("phase", ["sample_windows", "sample_contexts"])
def test_sample(phase: str, measure_phase: MeasurePhase) -> None:
    measure_phase(phase)


def test_append(step: WarmStep, time_rounds: TimeRounds, benchmark: Any) -> None:
    run = step.run
    rows = run.collector.step(np.zeros(run.config.num_envs, np.int64))
    took = time_rounds(as_calls(lambda: run.replay.append(rows), run.learner.device))
    if took is not None:
        benchmark.extra_info.update(step.about(), bytes=ROW_BYTES * run.config.num_envs)
