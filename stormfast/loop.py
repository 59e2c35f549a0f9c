"""The training loop.

stormfast train --game Pong
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from stormfast import annotate
from stormfast.compile import is_compiler_error
from stormfast.device import out_of_memory
from stormfast.diagnosis import in_training
from stormfast.envs.games import find
from stormfast.errors import UserError
from stormfast.plan import Plan, plan
from stormfast.runs.directory import has_checkpoint
from stormfast.runs.dreams import dream_at_save, keep_dream
from stormfast.runs.progress import Progress, log_line
from stormfast.runs.run import Run, build
from stormfast.runs.signals import SignalWatch
from stormfast.schedule import due
from stormfast.settings import TrainConfig, WorldModelConfig
from stormfast.verdicts import dead_posterior

Callback = Callable[
    [int, dict[str, float]], object
]  # (step, metrics), whenever metrics are written; True stops the run
INFORMATION = "diagnosis/latent_information"  # the metric by which a dead posterior is known


def train(
    config: TrainConfig,
    run_dir: Path,
    decided: Plan | None = None,
    *,
    callback: Callback = lambda step, values: None,
    quiet: bool = False,
) -> Run:
    """Trains until config.steps, or until a signal or the callback stops it, and saves as it goes.

    Args:
        run_dir: a directory from runs.opened.opened, which holds it meanwhile. Gets plan.json.
        decided: the plan, where it has been made.
        quiet: print nothing.
    Returns: the run, closed; `stopped_by` is the signal that stopped it, or 0.
    Raises: UserError for what cannot be had, does not fit in memory, or cannot be saved.
    """
    annotate.from_environment()  # a bad value is refused before a run is made
    decided = decided or plan(config)
    decided.save(run_dir)
    if not quiet:
        log_line(f"plan: {decided}")
    with SignalWatch(stop_after_this_step) as signals:
        try:
            with build(config, run_dir, decided) as run:
                run.quiet = quiet
                learn(run, signals, callback)
        except (MemoryError, RuntimeError) as error:
            explanation = explained(error, config)
            if explanation is error:
                raise  # as it is, with its cause: a user's game may have raised it
            raise explanation from None
        except SystemExit as stop:  # status 0 would say that the run is done
            saved = has_checkpoint(run_dir)
            then = ", and go on from the last checkpoint with --resume" if saved else "; nothing was saved yet"
            raise UserError(
                f"{config.game} must not end the process, but called sys.exit({stop.code!r}); let it raise an error "
                f"instead{then}"
            ) from None
    run.stopped_by = signals.first
    return run


def explained(error: Exception, config: TrainConfig) -> Exception:
    """A UserError in place of an error of the compiler or of too little memory; any other one as it is."""
    if is_compiler_error(error):
        reason = " ".join(str(error).split()).partition(" Set TORCHDYNAMO_VERBOSE")[0][:300]
        return UserError(
            f"--compile {config.compile} needs a compiler, but torch.compile failed: {reason}; give --compile off"
        )
    if out_of_memory(error):
        remedy = "take a smaller preset, batch or --replay.capacity, or another --device"
        return UserError(f"This run does not fit in memory; {remedy}.")
    return error


def stop_after_this_step(count: int) -> None:
    """Of the loop: the first signal ends it after the step in hand, so that the run is saved; a second one at once."""
    if count > 1:
        raise KeyboardInterrupt
    with contextlib.suppress(OSError):  # not print, which is not safe in a handler; 2 is stderr, where it is open
        os.write(2, b"\nstopping after this step; once more to stop at once, unsaved\n")


def learn(run: Run, signals: SignalWatch, callback: Callback) -> None:
    """Steps and updates until the run has its steps or is stopped; the last state is saved."""
    config, quiet = run.config, run.quiet
    if not quiet:
        log_line(describe(run))
        if run.step >= config.steps:
            log_line(f"nothing to do: the run is at step {run.step} and --steps is {config.steps}; give more to go on")
    stopped = warned = False
    with Progress(config.steps, run.step, find(config.game).slug, quiet=quiet) as progress:
        while run.step < config.steps and not signals.caught and not stopped:
            values = advance(run)
            progress.update(run.step, values)
            if values:
                warned = warned or quiet or warn(run, values)
                stopped = tell(callback, run, values)
        if run.step != run.saved_at:
            values = save(run)
            progress.update(run.step, values)
            if values:
                warned = warned or quiet or warn(run, values)
                tell(callback, run, values)


def tell(callback: Callback, run: Run, values: dict[str, float]) -> bool:
    """Calls the callback. Returns whether it stops the run. What it raises comes through once the run is saved."""
    try:
        return callback(run.step, values) is True
    except (Exception, SystemExit) as error:  # not the KeyboardInterrupt of a second signal, which saves nothing
        if run.step != run.saved_at:
            save(run)
        if isinstance(error, SystemExit):
            raise UserError(
                f"callback must not end the process, but called sys.exit({error.code!r}); let it return True, which "
                f"stops the run; it is saved at step {run.step}"
            ) from None
        raise


def warn(run: Run, values: dict[str, float]) -> bool:
    """Prints a line where the metrics show a dead posterior. Returns whether it did."""
    line = dead_posterior(values.get(INFORMATION), updates_by(run.step, run.config), run.config.world_model)
    if line:
        log_line(f"step {run.step}: {line}")
    return bool(line)


def describe(run: Run) -> str:
    """What will run, in one line; the plan, printed before it, is on what."""
    config = run.config
    start = f"step {run.step} of {config.steps}" if run.step else f"{config.steps} steps"
    what = f"{start}, protocol {config.protocol}, seed {config.seed}, {config.num_envs} x {run.collector.env.backend}"
    return f"{config.game}: {what}; run directory {run.run_dir}"


def advance(run: Run) -> dict[str, float] | None:
    """One step of every environment and the updates that are then due. Returns metrics when they were written.

    The updates are launched between the choice of an action and its execution: while the device learns, the emulators
    step. So an update sees the rows of all steps but the one under way, which the original, waiting for it, includes;
    results do not depend on timing.
    """
    config, before = run.config, run.step
    with annotate.phase("act"):
        action = run.collector.act(at_random=before < config.acting.random_steps)  # the one host sync
    run.step += run.collector.num_acting
    if before < config.acting.random_steps <= run.step and config.world_model.centre_frames:
        run.learner.centre(run.replay.mean_frame())  # from here on the world model learns
    if update(run, before):
        with annotate.phase("refresh"):
            run.collector.player.refresh()
    with annotate.phase("env"):
        row = run.collector.step(action)
    with annotate.phase("append"):
        run.replay.append(row)  # a copy to the device
    if crossed(before, run.step, config.logging.save_every):
        return save(run)
    if crossed(before, run.step, config.logging.every) and run.step < config.steps:  # the last save logs, too
        with annotate.phase("log"):
            return write_metrics(run)
    return None


def update(run: Run, before: int) -> int:
    """The updates due since step `before`: first those of the world model, then the agent's; but an agent that starts
    from the windows of a world-model update follows each of the last ones. Returns those of the world model.
    """
    config, start = run.config, run.config.acting.random_steps
    learned = due(before, run.step, config.world_model.updates_per_step, start)
    imagined = due(before, run.step, config.agent.updates_per_step, max(start, config.agent.start))
    paired = min(learned, imagined) if config.imagination.contexts == "batch" else 0
    done = updates_by(before, config)
    for i in range(learned):
        whole = trains_autoencoder(done + i, config.world_model)
        run.metrics.add(run.updates.update_world_model() if whole else run.updates.update_sequence_model())
        if i >= learned - paired:
            run.metrics.add(run.updates.update_agent())
    for _ in range(imagined - paired):
        run.metrics.add(run.updates.update_agent())
    return learned


def save(run: Run) -> dict[str, float] | None:
    """Saves the run, having read its metrics first: what diverged replaces no checkpoint, and a resume loses none. Its
    dream comes last: the checkpoint needs the room more.
    """
    with annotate.phase("save"):
        film = dream_at_save(run)
        values = None if run.step == run.logged_at else write_metrics(run, film.score.metrics() if film else {})
        run.save()
        if film:
            keep_dream(run, film)
    return values


def write_metrics(run: Run, numbers: dict[str, float] | None = None) -> dict[str, float]:
    """Reads the metrics since the last call, the one host sync of learning, and logs them, and the numbers given."""
    if run.config.logging.diagnose and updates_by(run.step, run.config):
        diagnose(run)
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
    values |= numbers or {}
    run.log.write(run.step, values)
    run.logged_at = run.step
    return values


def diagnose(run: Run) -> None:
    """Adds to the metrics what the world model sees of one batch, launched eagerly, without a host sync.

    The batch comes from a generator of its own, so the run goes on as it would have without.
    """
    settings, device = run.config.world_model, run.replay.device
    seed = int(np.random.SeedSequence((run.config.seed, run.step, 2)).generate_state(1)[0])
    generator = torch.Generator(device).manual_seed(seed)
    batch = run.replay.sample(settings.batch_size, settings.batch_length, generator)
    with run.learner.autocast():
        always, at_times = in_training(run.learner.world_model, batch)
    run.metrics.add({f"diagnosis/{name}": value for name, value in always.items()})
    run.metrics.add_at_times({f"diagnosis/{name}": value for name, value in at_times.items()})


def updates_by(step: int, config: TrainConfig) -> int:
    """Updates that the world model has had by a step."""
    return due(0, step, config.world_model.updates_per_step, config.acting.random_steps)


def trains_autoencoder(number: int, config: WorldModelConfig) -> bool:
    """Whether the world model's update of this number, counted from 0, is one of encoder and decoder too."""
    return number < config.autoencoder_first or (number - config.autoencoder_first) % config.autoencoder_every == 0


def crossed(before: int, after: int, every: int) -> bool:
    return before // every != after // every
