"""Where the time of a training step goes, and how far that is from what the device could do.

    stormfast profile --preset storm --device cpu --steps 3
    stormfast profile --preset fast --device cuda --steps 200 --json > profile.json

A step is an environment step with the updates that the preset makes for it. Each phase is timed alone, from an idle device
to an idle device; the whole step is timed as the training loop runs it, without waiting for anything. Launches, host reads,
FLOPs and bytes are counted on one eager call of each phase: see counting.py.
"""

import contextlib
import json
import math
import platform
import resource
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import numpy as np
import torch

from stormfast.device import out_of_memory
from stormfast.errors import UserError
from stormfast.loop import advance
from stormfast.measure.op_counts import OpCounts
from stormfast.measure.peaks import Peaks, best_of, floor_seconds, measure_peaks
from stormfast.measure.phases import (
    FullStep,
    Phase,
    calls_until_captured,
    compile_mode,
    count_phases,
    cycle_steps,
    most_steps,
    time_phases,
    time_steps,
)
from stormfast.measure.profile_report import show
from stormfast.plan import plan
from stormfast.runs.progress import log_line
from stormfast.runs.provenance import commit
from stormfast.runs.run import Run, build
from stormfast.schema import override
from stormfast.settings import ProfileConfig, TrainConfig, preset_config, validate

NEVER = 10**9  # steps between two metric flushes, or two checkpoints


def profile(config: ProfileConfig) -> int:
    """Measures and prints. Raises: UserError for settings that cannot be had, or that do not fit in memory; SystemExit at SIGTERM."""
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


def training_config(config: ProfileConfig) -> TrainConfig:
    """The run to profile: the preset's, with what the two commands share; it logs and saves nothing. Raises: UserError."""
    shared = {f.name for f in fields(TrainConfig)} & {f.name for f in fields(ProfileConfig)} - {
        "preset",
        "protocol",
        "steps",
    }
    quiet = {"logging.every": NEVER, "logging.save_every": NEVER, "logging.tensorboard": False}
    base = preset_config(config.preset, config.protocol)
    training = override(base, quiet | {name: getattr(config, name) for name in shared})
    training = override(training, {"steps": min(NEVER, most_steps(training, config.warmup, config.steps))})
    validate(training)
    return training


def measure(config: ProfileConfig) -> dict[str, Any]:
    """Everything the command shows, as JSON types. Times are milliseconds, rates are a second."""
    training = training_config(config)
    device = plan(training).device
    peaks = measure_peaks(device)
    log_line(
        f"profiling {training.game}, preset {training.preset}, on {device_name(device)}: filling replay, then warming up ..."
    )
    with warm_run(config) as run:
        cycle = cycle_steps(training)
        steps = time_steps(run, math.ceil(config.steps / cycle), cycle)
        held = peak_memory(device)  # here: the phases, where they are captured alone, take as much again
        counts = count_phases(run)
        times = time_phases(run, config.steps)
        peaks = best_of(peaks, measure_peaks(device))
        return {
            **describe(config, run),
            "peaks": asdict(peaks),
            **summarise(run, peaks, counts, times, steps),
            "peak_memory_bytes": held,
        }


@contextlib.contextmanager
def warm_run(config: ProfileConfig) -> Iterator[Run]:
    """A run past its random steps, config.warmup further steps and, with graphs, the captures. Raises: UserError."""
    training = training_config(config)
    with scratch_run(training) as run:
        while run.step < training.acting.random_steps:
            advance(run)
        cycle = cycle_steps(training)
        time_steps(run, max(math.ceil(config.warmup / cycle), calls_until_captured(run)), cycle)
        yield run


@contextlib.contextmanager
def scratch_run(config: TrainConfig) -> Iterator[Run]:
    """A run whose directory goes when it is done. Raises: UserError where that cannot be made or written."""
    try:
        with TemporaryDirectory() as directory, build(config, Path(directory)) as run:
            yield run
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"stormfast profile needs a temporary directory that can be written ({reason}); set TMPDIR to another"
        ) from None


@contextlib.contextmanager
def exit_at_sigterm() -> Iterator[None]:
    """SIGTERM ends the process as an exception does, so that what it made is cleared away; by default it ends it where it stands."""

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


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
    """As the kernel tells it on Linux; elsewhere, the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> int:
    """The most bytes held so far: tensors on CUDA, the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def summarise(
    run: Run, peaks: Peaks, counts: dict[str, OpCounts], times: dict[str, list[float]], steps: list[float]
) -> dict[str, Any]:
    """The phases by name, and the step they make up: sums of what each phase has, times its calls a step."""
    rows = {
        phase.name: phase_row(phase, peaks, counts[phase.name], times[phase.name]) for phase in FullStep(run).phases()
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
