"""Where the time of a training step goes, and how far that is from what the device could do.

    stormfast profile --preset storm --device cpu --steps 3
    stormfast profile --preset fast --device cuda --steps 200 --json > profile.json

A step is an environment step with the updates that the preset makes for it. Each phase is timed alone, from an idle
device to an idle device; the whole step is timed as the training loop runs it, without waiting for anything. Launches
and host reads are counted on one eager call of each phase (op_counts.py), FLOPs and bytes at the run's sizes
(measure/work.py).
"""

import contextlib
import json
import math
import resource
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from types import FrameType
from typing import Any

import numpy as np
import torch

from stormfast.device import device_name, out_of_memory
from stormfast.errors import UserError
from stormfast.measure.op_counts import OpCounts
from stormfast.measure.peaks import Peaks, best_of, floor_seconds, measure_peaks
from stormfast.measure.phases import (
    FullStep,
    Phase,
    compile_mode,
    cycle_steps,
    time_phases,
    time_steps,
    training_config,
    warm_run,
)
from stormfast.measure.profile_report import show
from stormfast.measure.work import run_counts
from stormfast.plan import plan
from stormfast.runs.progress import log_line
from stormfast.runs.provenance import commit
from stormfast.runs.run import Run
from stormfast.settings import ProfileConfig


def profile(config: ProfileConfig) -> int:
    """Measures and prints. Raises: UserError for what cannot be had or does not fit; SystemExit at SIGTERM."""
    try:
        with exit_at_sigterm():
            result = measure(config)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise UserError("This run does not fit in memory; take a smaller --preset or another --device.") from None
    if config.json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        show(result)
    return 0


def measure(config: ProfileConfig) -> dict[str, Any]:
    """Everything the command shows, as JSON types. Times are milliseconds, rates are a second."""
    training = training_config(config)
    device = plan(training).device
    peaks = measure_peaks(device)
    log_line(
        f"profiling {training.game}, preset {training.preset}, on {device_name(device)}: "
        "filling replay, then warming up ..."
    )
    with warm_run(training, config.warmup) as run:
        cycle = cycle_steps(training)
        steps = time_steps(run, math.ceil(config.steps / cycle), cycle)
        most_memory = peak_memory(device)  # before the phases are captured alone, which takes as much again
        counts = run_counts(run)
        times = time_phases(run, config.steps)
        peaks = best_of(peaks, measure_peaks(device))
        return {
            **describe(config, run),
            "peaks": asdict(peaks),
            **summarise(run, peaks, counts, times, steps),
            "peak_memory_bytes": most_memory,
        }


@contextlib.contextmanager
def exit_at_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit, so that temporary directories are removed."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def describe(config: ProfileConfig, run: Run) -> dict[str, Any]:
    training, device = run.config, run.learner.device
    head, dirty = commit()
    return {
        "preset": training.preset,
        "protocol": training.protocol,
        "game": training.game,
        "seed": training.seed,
        "num_envs": training.num_envs,
        "env_backend": run.collector.env.backend,
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": str(run.learner.precision).removeprefix("torch."),
        "compile": compile_mode(run),
        "steps": config.steps,
        "warmup": config.warmup,
        "commit": head,
        "dirty": dirty,
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["stormfast", *sys.argv[1:]]),
    }


def peak_memory(device: torch.device) -> int:
    """The most bytes in use so far: tensors on CUDA, the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def summarise(
    run: Run, peaks: Peaks, counts: dict[str, OpCounts], times: dict[str, list[float]], steps: list[float]
) -> dict[str, Any]:
    """The phases by name, and the step they make up: sums of what each phase has, times its calls a step."""
    rows = {
        phase.name: phase_row(phase, peaks, counts[phase.name], times[phase.name])
        for phase in FullStep.of(run).phases()
    }
    per_step = {
        key: sum(row[key] * row["calls_per_step"] for row in rows.values())
        for key in ("ms", "flops", "bytes", "floor_ms", "launches", "host_reads")
    }
    step = spread(steps)
    num_envs = run.config.num_envs
    return {
        "step_ms": step["ms"],
        "step_ms_p20": step["p20"],
        "step_ms_p80": step["p80"],
        "steps_per_second": 1000 / step["ms"],
        "phases_ms": per_step.pop("ms"),
        "full_step_ms": sum(row["ms"] / (num_envs if name in ("act", "env") else 1) for name, row in rows.items()),
        **per_step,
        "fraction_of_floor": per_step["floor_ms"] / step["ms"],
        "phases": rows,
    }


def phase_row(phase: Phase, peaks: Peaks, counts: OpCounts, seconds: list[float]) -> dict[str, Any]:
    took, floor = spread(seconds), 1000 * floor_seconds(counts, peaks)
    return {
        "calls_per_step": phase.per_step,
        **took,
        "flops": counts.flops,
        "bytes": counts.bytes,
        "floor_ms": floor,
        "fraction_of_floor": floor / took["ms"],
        "launches": counts.launches,
        "operators": dict(counts.operators.most_common()),
        "host_reads": len(counts.host_reads),
        "host_read_at": counts.host_reads,
    }


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and the 20th and 80th percentile, in milliseconds."""
    p20, median, p80 = np.quantile(np.array(seconds) * 1000, [0.2, 0.5, 0.8])
    return {"ms": float(median), "p20": float(p20), "p80": float(p80)}
