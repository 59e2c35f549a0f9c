"""A training step in its phases, each to be called, counted and timed alone; and warm runs to measure."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stormfast import annotate
from stormfast.collect import Collector
from stormfast.compile import WARMUP_CALLS, GraphedCall, GraphPool
from stormfast.errors import UserError
from stormfast.learner import Learner, minibatches
from stormfast.loop import advance
from stormfast.measure.op_counts import OpCounts, count
from stormfast.measure.peaks import timed
from stormfast.memory.estimate import act_on_black_frames
from stormfast.plan import CompileMode
from stormfast.player import Player
from stormfast.presets import preset_config
from stormfast.records import Batch, Rollout
from stormfast.replay import Replay
from stormfast.runs.run import Run, build
from stormfast.schema import override
from stormfast.settings import ProfileConfig, TrainConfig, validate

NEVER = 10**9  # steps between two metric flushes, or two checkpoints
STEP = "step"  # the range around each iteration of the training loop, for profilers


# --- phases ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phase:
    """A named part of a step."""

    name: str
    call: Callable[[], Any]
    per_step: float  # calls per environment step


def phase_rates(config: TrainConfig) -> dict[str, float]:
    """Calls of each phase per environment step."""
    collected = 1 / config.num_envs
    learned, imagined = config.world_model.updates_per_step, config.agent.updates_per_step
    whole = learned / config.world_model.autoencoder_every
    in_part = {} if whole == learned else {"sequence_model": learned - whole}
    return {
        "act": collected,
        "sample_windows": learned,
        "world_model": whole,
        **in_part,
        "sample_contexts": imagined,
        "imagination": imagined,
        "agent": imagined,
        "refresh": min(learned, collected),
        "env": collected,
    }


class FullStep:
    """The phases of a step, from the parts of a run. Each needs those before it to have been called once.

    Sampling and the update that learns from it, which the training loop captures as one graph, are two phases here.

    Args:
        generator: draws windows and contexts from replay.
        collector: steps the environments. Without one (on meta tensors) act sees black frames, and no phase is env.
    """

    def __init__(
        self,
        config: TrainConfig,
        learner: Learner,
        replay: Replay,
        player: Player,
        generator: torch.Generator,
        collector: Collector | None = None,
    ) -> None:
        self.config, self.learner, self.replay, self.player = config, learner, replay, player
        self.generator, self.collector = generator, collector
        self.action: np.ndarray
        self.batch: Batch
        self.context: Batch | None = None  # None: imagination starts from the world model's batch
        self.rollout: Rollout

    @classmethod
    def of(cls, run: Run) -> "FullStep":
        return cls(run.config, run.learner, run.replay, run.collector.player, run.updates.generator, run.collector)

    def phases(self) -> list[Phase]:
        """In order, not captured."""
        calls: dict[str, Callable[[], Any]] = {
            "act": self.act,
            "sample_windows": self.sample_windows,
            "world_model": self.world_model,
            "sequence_model": self.sequence_model,
            "sample_contexts": self.sample_contexts,
            "imagination": self.imagination,
            "agent": self.agent,
            "refresh": self.player.refresh,
        }
        if self.config.imagination.contexts == "batch":
            del calls["sample_contexts"]
        if self.collector is not None:
            calls["env"] = self.env
        rates = phase_rates(self.config)
        return [Phase(name, call, rates[name]) for name, call in calls.items() if name in rates]

    def captured(self) -> list[Phase]:
        """The same with each phase of learning as a CUDA graph; act and refresh are captured by the run itself."""
        shared = GraphPool(self.learner.device)
        learning = {"sample_windows", "world_model", "sequence_model", "sample_contexts", "imagination", "agent"}
        return [
            replace(phase, call=GraphedCall(phase.call, shared)) if phase.name in learning else phase
            for phase in self.phases()
        ]

    def act(self) -> None:
        if self.collector is None:
            act_on_black_frames(self.player)
        else:
            self.action = self.collector.act(at_random=False)

    def env(self) -> None:
        """A step of every environment, into replay."""
        assert self.collector is not None
        self.replay.append(self.collector.step(self.action))

    def sample_windows(self) -> Tensor:
        settings = self.config.world_model
        self.batch = self.replay.sample(settings.batch_size, settings.batch_length, self.generator)
        return self.batch.action

    def world_model(self) -> dict[str, Tensor]:
        return self.learner.update_world_model(self.batch)

    def sequence_model(self) -> dict[str, Tensor]:
        return self.learner.update_sequence_model(self.batch)

    def sample_contexts(self) -> Tensor:
        settings = self.config.imagination
        self.context = self.replay.sample(settings.num_windows, settings.window_length, self.generator)
        return self.context.action

    def imagination(self) -> Tensor:
        self.rollout = self.learner.imagine(self.context)
        return self.rollout.action

    def agent(self) -> list[dict[str, Tensor]]:
        """All updates on one rollout batch."""
        return [self.learner.update_agent_on(part) for part in minibatches(self.rollout, self.config.agent.minibatches)]


# --- counting and timing -----------------------------------------------------------------------------------------


def cycle_steps(config: TrainConfig) -> int:
    """Environment steps after which each kind of update has been made a whole number of times."""
    learned = config.world_model.updates_per_step
    rates = (learned, learned / config.world_model.autoencoder_every, config.agent.updates_per_step)
    return math.lcm(config.num_envs, *(Fraction(rate).limit_denominator(64).denominator for rate in rates))


def whole_cycles(config: TrainConfig, steps: int) -> int:
    """`steps` rounded up to whole cycles."""
    return math.ceil(steps / cycle_steps(config)) * cycle_steps(config)


def compile_mode(run: Run) -> CompileMode:
    return run.plan.compile


def calls_until_captured(run: Run) -> int:
    return WARMUP_CALLS + 1 if compile_mode(run) == "graphs" else 0


def count_phases(run: Run) -> dict[str, OpCounts]:
    """One eager call of each phase, counted. Each update must have been made once, so that Adam has its state."""
    with eager_methods(run.collector.player):
        return {phase.name: count(phase.call, run.learner.device) for phase in FullStep.of(run).phases()}


@contextlib.contextmanager
def eager_methods(player: Player) -> Iterator[None]:
    """Inside, captured methods of the player run as they were written: the launches of a graph cannot be seen."""
    captured = {name: method for name, method in vars(player).items() if isinstance(method, GraphedCall)}
    vars(player).update({name: method.function for name, method in captured.items()})
    yield
    vars(player).update(captured)


def warm_phases(run: Run) -> list[Phase]:
    """The phases as the run's compile mode has them, called until they are captured, and at least once."""
    step = FullStep.of(run)
    phases = step.captured() if compile_mode(run) == "graphs" else step.phases()
    for _ in range(calls_until_captured(run) + 1):
        for phase in phases:
            phase.call()
    return phases


def time_phases(run: Run, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call of each phase, in `rounds` full steps."""
    phases = warm_phases(run)
    times: dict[str, list[float]] = {phase.name: [] for phase in phases}
    for _ in range(rounds):
        for phase in phases:
            times[phase.name].append(timed(phase.call, run.learner.device))
    return times


def take_steps(run: Run, steps: int) -> int:
    """Iterates the training loop, each iteration in a range, for `steps` environment steps. Returns the steps taken.

    They may be up to num_envs - 1 more; an iteration in which every environment only resets is none.
    """
    before = run.step
    while run.step < before + steps:
        with annotate.phase(STEP):
            advance(run)
    return run.step - before


def time_steps(run: Run, cycles: int, cycle: int) -> list[float]:
    """Seconds per environment step in each of `cycles` stretches of the training loop, of `cycle` steps or a few more.

    Nothing waits for the device here but what the loop itself waits for: the end of a stretch lies behind the device's
    work by as much as its start did.
    """
    seconds = []
    for _ in range(cycles):
        start = time.perf_counter()
        taken = take_steps(run, cycle)
        seconds.append((time.perf_counter() - start) / taken)
    return seconds


# --- warm runs ---------------------------------------------------------------------------------------------------


def training_config(config: ProfileConfig) -> TrainConfig:
    """The run to profile: the preset with the settings given, without logs and checkpoints. Raises: UserError."""
    shared = {f.name for f in fields(TrainConfig)} & {f.name for f in fields(ProfileConfig)}
    shared -= {"preset", "protocol", "steps"}
    quiet = {"logging.every": NEVER, "logging.save_every": NEVER, "logging.tensorboard": False}
    base = override(preset_config(config.preset, config.protocol), {"agent.start": 0})  # its updates are measured
    training = override(base, quiet | {name: getattr(config, name) for name in shared})
    training = override(training, {"steps": min(NEVER, most_steps(training, config.warmup, config.steps))})
    validate(training)
    return training


def most_steps(config: TrainConfig, warmup: int, steps: int) -> int:
    """The most environment steps that a profile takes. On a CPU, replay takes no more memory than for these."""
    cycle = cycle_steps(config)
    stretches = max(math.ceil(warmup / cycle), WARMUP_CALLS + 1) + math.ceil(steps / cycle)
    alone = 1 + (WARMUP_CALLS + 2) + steps  # calls of the env phase: counted, warmed up, timed
    late = (1 + stretches + alone) * config.num_envs  # a stretch ends up to num_envs late
    return config.acting.random_steps + stretches * cycle + late


@contextlib.contextmanager
def warm_run(config: TrainConfig, warmup: int = 1) -> Iterator[Run]:
    """A run past its random steps, `warmup` or more steps with updates, and with graphs captured. Raises: UserError."""
    with scratch_run(config) as run:
        take_steps(run, config.acting.random_steps)
        cycle = cycle_steps(config)
        for _ in range(max(math.ceil(warmup / cycle), calls_until_captured(run))):
            take_steps(run, cycle)
        yield run


@contextlib.contextmanager
def scratch_run(config: TrainConfig) -> Iterator[Run]:
    """A run in a temporary directory. Raises: UserError where that cannot be made or written."""
    try:
        with TemporaryDirectory() as directory, build(config, Path(directory)) as run:
            yield run
    except OSError as error:
        raise UserError(
            "a temporary directory that can be written is needed, "
            f"but {error.strerror or error}; set TMPDIR to another directory"
        ) from None
