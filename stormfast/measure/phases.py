"""A training step in its phases, to be counted and timed: each alone, and all as the training loop runs them."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from torch import Tensor

from stormfast.compile import WARMUP_CALLS, GraphedCall, GraphPool
from stormfast.learner import minibatches
from stormfast.loop import advance
from stormfast.measure.op_counts import OpCounts, count
from stormfast.measure.peaks import timed
from stormfast.plan import CompileMode
from stormfast.player import Player
from stormfast.records import Batch, Rollout
from stormfast.runs.run import Run
from stormfast.settings import TrainConfig


@dataclass(frozen=True)
class Phase:
    name: str
    call: Callable[[], Any]
    per_step: float  # calls an environment step


class FullStep:
    """The phases of a full step, by the run's own parts. Each needs those before it to have been called once.

    What the training loop captures as one graph, an update and the sampling before it, is several phases here; each of
    them is then a graph of its own.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.action: np.ndarray
        self.batch: Batch
        self.context: Batch
        self.rollout: Rollout

    def phases(self) -> list[Phase]:
        """In order, not captured."""
        config = self.run.config
        collected, learned, imagined = (
            1 / config.num_envs,
            config.world_model.updates_per_step,
            config.agent.updates_per_step,
        )
        return [
            Phase("act", self.act, collected),
            Phase("sample_windows", self.sample_windows, learned),
            Phase("world_model", self.world_model, learned),
            Phase("sample_contexts", self.sample_contexts, imagined),
            Phase("imagination", self.imagination, imagined),
            Phase("agent", self.agent, imagined),
            Phase("refresh", self.run.collector.player.refresh, min(learned, collected)),
            Phase("env", self.env, collected),
        ]

    def captured(self) -> list[Phase]:
        """The same as the run's compile mode has them: act and refresh are captured by the run itself."""
        if compile_mode(self.run) != "graphs":
            return self.phases()
        shared = GraphPool(self.run.learner.device)
        learning = {"sample_windows", "world_model", "sample_contexts", "imagination", "agent"}
        return [
            replace(phase, call=GraphedCall(phase.call, shared)) if phase.name in learning else phase
            for phase in self.phases()
        ]

    def act(self) -> None:
        self.action = self.run.collector.act(at_random=False)

    def env(self) -> None:
        """A step of every environment, into replay."""
        self.run.replay.append(self.run.collector.step(self.action))

    def sample_windows(self) -> Tensor:
        model = self.run.config.world_model
        self.batch = self.run.replay.sample(model.batch_size, model.batch_length, self.run.updates.generator)
        return self.batch.action

    def world_model(self) -> dict[str, Tensor]:
        return self.run.learner.update_world_model(self.batch)

    def sample_contexts(self) -> Tensor:
        settings = self.run.config.imagination
        self.context = self.run.replay.sample(settings.batch_size, settings.context, self.run.updates.generator)
        return self.context.action

    def imagination(self) -> Tensor:
        with self.run.learner.autocast():
            self.rollout = self.run.learner.imagination(self.context)
        return self.rollout.action

    def agent(self) -> list[dict[str, Tensor]]:
        """All updates on one rollout batch."""
        return [
            self.run.learner.update_agent_on(part)
            for part in minibatches(self.rollout, self.run.config.agent.minibatches)
        ]


def cycle_steps(config: TrainConfig) -> int:
    """Environment steps after which each kind of update has been made a whole number of times."""
    rates = (config.world_model.updates_per_step, config.agent.updates_per_step)
    return math.lcm(config.num_envs, *(Fraction(rate).limit_denominator(64).denominator for rate in rates))


def compile_mode(run: Run) -> CompileMode:
    return run.plan.compile


def calls_until_captured(run: Run) -> int:
    return WARMUP_CALLS + 1 if compile_mode(run) == "graphs" else 0


def most_steps(config: TrainConfig, warmup: int, steps: int) -> int:
    """The environment steps that a profile may take, of `warmup` steps and `steps` measured: replay holds no more than they bring."""
    cycle = cycle_steps(config)
    stretches = max(math.ceil(warmup / cycle), WARMUP_CALLS + 1) + math.ceil(steps / cycle)
    alone = 1 + WARMUP_CALLS + 1 + steps  # calls of the env phase: counted, captured, timed
    return (
        config.acting.random_steps + stretches * cycle + (1 + stretches + alone) * config.num_envs
    )  # a stretch ends up to num_envs late


def count_phases(run: Run) -> dict[str, OpCounts]:
    """One call of each phase, counted, eagerly. The optimisers must have made their state: an update must have gone before."""
    player = run.collector.player
    with eager_methods(player):
        return {phase.name: count(phase.call, run.learner.device) for phase in FullStep(run).phases()}


@contextlib.contextmanager
def eager_methods(player: Player) -> Iterator[None]:
    """What was captured of the player is called as it was written: a graph's launches cannot be seen."""
    captured = {name: method for name, method in vars(player).items() if isinstance(method, GraphedCall)}
    vars(player).update({name: method.function for name, method in captured.items()})
    yield
    vars(player).update(captured)


def time_phases(run: Run, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call of each phase, in `rounds` full steps."""
    phases = FullStep(run).captured()
    for _ in range(calls_until_captured(run)):
        for phase in phases:
            phase.call()
    times: dict[str, list[float]] = {phase.name: [] for phase in phases}
    for _ in range(rounds):
        for phase in phases:
            times[phase.name].append(timed(phase.call, run.learner.device))
    return times


def time_steps(run: Run, cycles: int, cycle: int) -> list[float]:
    """Seconds an environment step in each of `cycles` stretches of the training loop, of `cycle` steps or a few more.

    Nothing waits for the device here but what the loop itself waits for: the end of a stretch lies behind the device's
    work by as much as its start did.
    """
    seconds = []
    for _ in range(cycles):
        before, start = run.step, time.perf_counter()
        while run.step < before + cycle:
            advance(run)
        seconds.append((time.perf_counter() - start) / (run.step - before))
    return seconds
