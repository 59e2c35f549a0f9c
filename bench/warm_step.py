"""A preset's training run, warmed up and captured, as the benches of its phases take it."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from stormfast.loop import advance
from stormfast.measure.op_counts import OpCounts
from stormfast.measure.peaks import Peaks, floor_seconds
from stormfast.measure.phases import FullStep, calls_until_captured, compile_mode, count_phases, cycle_steps, time_steps
from stormfast.measure.profile import scratch_run, training_config
from stormfast.runs.run import Run
from stormfast.settings import ProfileConfig

STEP = "step"  # the whole of it, as the training loop runs it


class WarmStep:
    """The phases of a run's step, ready to be called, and what each asks of the device.

    Attributes:
        phases: name -> a call, of those in full_step.FullStep, and of `step`: a cycle of the training loop.
        cycle: environment steps in a call of `step`.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.cycle = run, cycle_steps(run.config)
        self.counts: dict[str, OpCounts] = count_phases(run)
        phases = FullStep(run).captured()
        for _ in range(calls_until_captured(run) + 1):  # each needs those before it
            for phase in phases:
                phase.call()
        self.per_step = {phase.name: phase.per_step for phase in phases}
        self.phases: dict[str, Callable[[], Any]] = {phase.name: phase.call for phase in phases} | {STEP: self.loop}

    def loop(self) -> None:
        end = self.run.step + self.cycle
        while self.run.step < end:
            advance(self.run)

    def about(self) -> dict[str, Any]:
        config = self.run.config
        return {
            "preset": config.preset,
            "game": config.game,
            "num_envs": config.num_envs,
            "env_backend": self.run.collector.env.backend,
            "precision": str(self.run.learner.precision).removeprefix("torch."),
            "compile": compile_mode(self.run),
        }

    def work(self, name: str, seconds: float, peaks: Peaks) -> dict[str, Any]:
        """Work of a phase as counted, and the rates that `seconds` a call make of it; for `step`, all of an environment step."""
        if name == STEP:
            parts = [(self.counts[phase], per_step) for phase, per_step in self.per_step.items()]
        else:
            parts = [(self.counts[name], 1.0)]
        flops, moved, launches, reads, floor = (
            sum(per_step * of(counts) for counts, per_step in parts)
            for of in (
                lambda counts: counts.flops,
                lambda counts: counts.bytes,
                lambda counts: counts.launches,
                lambda counts: len(counts.host_reads),
                lambda counts: floor_seconds(counts, peaks),
            )
        )
        peak_flops = peaks.bfloat16_flops if self.run.learner.precision.itemsize == 2 else peaks.float32_flops
        return {
            "flops": flops,
            "bytes": moved,
            "launches": launches,
            "host_reads": reads,
            "floor_seconds": floor,
            "fraction_of_floor": floor / seconds,
            "fraction_of_peak_flops": flops / seconds / peak_flops,
            "fraction_of_copy_bandwidth": moved / seconds / peaks.copy_bytes,
            "peak_flops_per_second": peak_flops,
            "copy_bytes_per_second": peaks.copy_bytes,
        }


@contextlib.contextmanager
def warm_step(preset: str, device: str, compile: str) -> Iterator[WarmStep]:
    """Raises: UserError where such a run cannot be had."""
    config = ProfileConfig(preset=preset, device=device, compile=compile)  # type: ignore[arg-type]
    with scratch_run(
        training_config(config)
    ) as run:  # not profile.warm_run: commits that these benches are to time too lack it
        while run.step < run.config.acting.random_steps:
            advance(run)
        time_steps(run, max(config.warmup, calls_until_captured(run)), cycle_steps(run.config))
        yield WarmStep(run)
