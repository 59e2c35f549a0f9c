"""A preset's training run, warmed up and captured, as the benches of its phases take it."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from stormfast.measure.op_counts import OpCounts
from stormfast.measure.peaks import Peaks, floor_seconds
from stormfast.measure.phases import compile_mode, cycle_steps, take_steps, training_config, warm_phases, warm_run
from stormfast.measure.work import run_counts
from stormfast.runs.run import Run
from stormfast.settings import ProfileConfig

STEP = "step"  # the whole of it, as the training loop runs it


class WarmStep:
    """The phases of a run's step, ready to be called, and what each asks of the device.

    Attributes:
        counts: launches, host reads and work of each phase, by name.
        phases: name -> a call, of the phases of a step, and of `step`: a cycle of the training loop.
        cycle: environment steps in a call of `step`.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.cycle = run, cycle_steps(run.config)
        self.counts: dict[str, OpCounts] = run_counts(run)
        phases = warm_phases(run)
        self.per_step = {phase.name: phase.per_step for phase in phases}
        self.phases: dict[str, Callable[[], Any]] = {phase.name: phase.call for phase in phases}
        self.phases[STEP] = lambda: take_steps(run, self.cycle)

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
        """Counts of a phase and its rates at `seconds` per call; for `step`, of a whole environment step."""
        parts = (
            [(self.counts[phase], rate) for phase, rate in self.per_step.items()]
            if name == STEP
            else [(self.counts[name], 1.0)]
        )

        def total(quantity: Callable[[OpCounts], float]) -> float:
            return sum(rate * quantity(counts) for counts, rate in parts)

        flops, moved = total(lambda counts: counts.flops), total(lambda counts: counts.bytes)
        floor = total(lambda counts: floor_seconds(counts, peaks))
        peak_flops = peaks.bfloat16_flops if self.run.learner.precision.itemsize == 2 else peaks.float32_flops
        return {
            "flops": flops,
            "bytes": moved,
            "launches": total(lambda counts: counts.launches),
            "host_reads": total(lambda counts: len(counts.host_reads)),
            "floor_seconds": floor,
            "fraction_of_floor": floor / seconds,
            "fraction_of_peak_flops": flops / seconds / peak_flops,
        }


@contextlib.contextmanager
def warm_step(preset: str, device: str, compile: str) -> Iterator[WarmStep]:
    """Raises: UserError where such a run cannot be had."""
    config = ProfileConfig(preset=preset, device=device, compile=compile)  # type: ignore[arg-type]
    with warm_run(training_config(config), config.warmup) as run:
        yield WarmStep(run)
