"""The training loop.

stormfast train --game Pong
"""

import contextlib
import os
import signal
from pathlib import Path
from types import FrameType

from stormfast import annotate
from stormfast.compile import is_compiler_error
from stormfast.config import TrainConfig
from stormfast.device import out_of_memory
from stormfast.errors import UserError
from stormfast.plan import Plan
from stormfast.runs.progress import Progress, log_line
from stormfast.runs.run import Run, build


def train(config: TrainConfig, run_dir: Path, decided: Plan | None = None) -> int:
    """Trains until config.steps, saving as it goes. Returns the exit status: 0, or 128 + the signal that stopped it."""
    annotate.from_environment()  # what is wrong with it is told before a run is made
    with StopSignal() as stop:
        try:
            with build(config, run_dir, decided) as run:
                learn(run, stop)
        except (MemoryError, RuntimeError) as error:
            if is_compiler_error(error):
                reason = " ".join(str(error).split()).partition(" Set TORCHDYNAMO_VERBOSE")[0][:300]
                raise UserError(
                    f"--compile {config.compile} needs a compiler, but torch.compile failed: {reason}; give --compile off"
                ) from None
            if not out_of_memory(error):
                raise
            raise UserError(
                "This run does not fit in memory; take a smaller preset, batch or --replay.capacity, or another --device."
            ) from None
    stopped = f"stopped by {stop.name} at" if stop.caught else "finished at"
    advice = (
        f"go on with `stormfast train --run-dir {run_dir} --resume`"
        if stop.caught
        else f"score it with `stormfast evaluate {run_dir}`"
    )
    log_line(f"{stopped} step {run.step}, saved in {run_dir}; {advice}")
    return 128 + stop.caught if stop.caught else 0


def learn(run: Run, stop: "StopSignal") -> None:
    """Steps and updates until the run has its steps or is told to stop; the last state is saved."""
    config = run.config
    log_line(describe(run))
    if run.step >= config.steps:
        log_line(f"nothing to do: the run is at step {run.step} and --steps is {config.steps}; give more to go on")
    with Progress(config.steps, run.step, config.game) as progress:
        while run.step < config.steps and not stop.caught:
            progress.update(run.step, advance(run))
        if run.step != run.saved_at:
            progress.update(run.step, save(run))


def describe(run: Run) -> str:
    """What will run, for the first log line; the plan says on what."""
    config = run.config
    start = f"step {run.step} of {config.steps}" if run.step else f"{config.steps} steps"
    return (
        f"{config.game}: {start}, protocol {config.protocol}, seed {config.seed}, {config.num_envs} environments; "
        f"plan: {run.plan}; run directory {run.run_dir}"
    )


def advance(run: Run) -> dict[str, float] | None:
    """One step of every environment and the updates that are then due. Returns metrics when they were written.

    The updates are launched between the choice of an action and its execution: while the device learns, the emulators step. So an
    update sees the rows of all steps but the one under way, which the original, waiting for it, includes; results do not depend on timing.
    """
    config, before = run.config, run.step
    with annotate.phase("act"):
        action = run.collector.act(at_random=before < config.acting.random_steps)  # the one host sync
    run.step += run.collector.num_acting
    updates = due(before, run.step, config.world_model.updates_per_step, config.acting.random_steps)
    for _ in range(updates):
        run.metrics.add(run.updates.update_world_model())
    for _ in range(due(before, run.step, config.agent.updates_per_step, config.acting.random_steps)):
        run.metrics.add(run.updates.update_agent())
    if updates:
        with annotate.phase("refresh"):
            run.collector.player.refresh()
    with annotate.phase("env"):
        row = run.collector.step(action)
    with annotate.phase("append"):
        run.replay.append(row)  # a copy to the device
    if crossed(before, run.step, config.logging.save_every):
        return save(run)
    if crossed(before, run.step, config.logging.every):
        with annotate.phase("log"):
            return write_metrics(run)
    return None


def save(run: Run) -> dict[str, float] | None:
    """Saves the run, having read its metrics first: what diverged never replaces a checkpoint, and a resume loses none."""
    with annotate.phase("save"):
        values = None if run.step == run.logged_at else write_metrics(run)
        run.save()
    return values


def write_metrics(run: Run) -> dict[str, float]:
    """Reads the metrics since the last call, the one host sync of learning, and logs them."""
    for game_return, length in run.collector.take_finished():
        run.metrics.add_episode(game_return, length)
    try:
        values = run.metrics.flush(run.step)
    except FloatingPointError as error:
        kept = (
            f"the checkpoint of step {run.saved_at} in {run.run_dir} is intact"
            if run.saved_at >= 0
            else "nothing was saved yet"
        )
        raise UserError(f"{error}; {kept}. Start a new run with a smaller learning rate, or another seed.") from None
    run.log.write(run.step, values)
    run.logged_at = run.step
    return values


def due(before: int, after: int, per_step: float, start: int) -> int:
    """Updates owed between two step counts at `per_step` updates a step, none before `start`: exact over any partition."""
    owed = [int(max(0, step - start) * per_step) for step in (before, after)]
    return owed[1] - owed[0]


def crossed(before: int, after: int, every: int) -> bool:
    return before // every != after // every


class StopSignal:
    """Ctrl-C and SIGTERM end the loop after the step in hand, so that the run is saved; a second one ends it at once."""

    def __init__(self) -> None:
        self.caught = 0

    @property
    def name(self) -> str:
        return signal.Signals(self.caught).name

    def __enter__(self) -> "StopSignal":
        self.previous = {number: signal.signal(number, self.catch) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def catch(self, number: int, frame: FrameType | None) -> None:
        if self.caught:
            self.__exit__()
            raise KeyboardInterrupt
        self.caught = number
        with contextlib.suppress(OSError):  # not print, which is not safe in a handler; 2 is stderr, where it is open
            os.write(2, b"\nstopping after this step; once more to stop at once, unsaved\n")
