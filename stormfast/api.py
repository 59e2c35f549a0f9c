"""stormfast from Python: train, load, evaluate, dream, as functions of values. Nothing is printed unless asked for.

>>> import stormfast as sf
>>> sizes = {"acting.random_steps": 64, "logging.tensorboard": False}
>>> run = sf.train("Catch", preset="tiny", steps=80, run_dir=tmp / "run", device="cpu", settings=sizes)
>>> run.step
80
>>> run.evaluate(episodes=2).mean in range(-5, 6)
True
"""

import inspect
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stormfast.dream_env import Dream, DreamEnv
from stormfast.envs import check_settings, games
from stormfast.envs import make_env as make_vector_env
from stormfast.envs.vector import VectorEnv
from stormfast.errors import UserError
from stormfast.loop import train as train_run
from stormfast.plan import choose_preset, plan
from stormfast.player import Player
from stormfast.presets import preset_config
from stormfast.runs.directory import METRICS, load_config
from stormfast.runs.evaluation import evaluate as evaluate_run
from stormfast.runs.opened import opened
from stormfast.runs.progress import log_line
from stormfast.runs.trained import Trained
from stormfast.runs.trained import load as load_trained
from stormfast.schema import override
from stormfast.scoring import Score
from stormfast.settings import Preset, Protocol, TrainConfig, validate

Metrics = dict[str, float]


@dataclass(frozen=True)
class Run:
    """A run on disk, with the agent of its last checkpoint, which is loaded when it is first needed."""

    path: Path
    config: TrainConfig
    device: str = "auto"

    @cached_property
    def trained(self) -> Trained:
        """World model and agent. Raises: UserError for a checkpoint that is missing, damaged or does not fit."""
        return load_trained(self.path, self.device)

    @property
    def step(self) -> int:
        """Environment steps of the last checkpoint."""
        return self.trained.step

    def metrics(self) -> list[Metrics]:
        """The lines of metrics.jsonl: step, seconds, losses, returns."""
        path = self.path / METRICS
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def evaluate(
        self, episodes: int | None = None, *, policy: str = "agent", num_envs: int = 5, seed: int = 0
    ) -> Score:
        """Plays full episodes by the run's rules; policy is agent or random. See evaluate."""
        return evaluate(self, episodes, policy=policy, num_envs=num_envs, seed=seed)

    def player(self, num_envs: int = 1) -> Player:
        """`.act(obs, is_first)` turns frames [N, 3, 64, 64] uint8 into actions [N]."""
        return self.trained.player(num_envs)

    def dream(self, horizon: int = 64, num: int = 1, *, seed: int = 0) -> Dream:
        """Real play beside the model's imagination of it. See dream."""
        return self.trained.dream(horizon, num, seed=seed)

    def dream_env(self, num_envs: int = 1, *, horizon: int = 1_000, seed: int = 0) -> DreamEnv:
        """The world model as an environment: reset() and step(actions), as a real vector environment."""
        return self.trained.dream_env(num_envs, horizon=horizon, seed=seed)


def config(
    preset: Preset = "auto",
    protocol: Protocol = "standard",
    settings: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
) -> TrainConfig:
    """The settings of a preset under a protocol, with dotted settings on top.

    >>> config("fast", "standard", {"seed": 3, "agent.entropy": 1e-3}).agent.entropy
    0.001

    Raises: UserError for an unknown setting, or a value of the wrong type, out of range, or at odds with another.
    """
    _check_given_once(settings, "preset", "protocol", "device")
    chosen, _ = choose_preset(preset, device)
    made = override(preset_config(chosen, protocol), dict(settings or {}) | {"device": device})
    validate(made)
    return made


def _check_given_once(settings: Mapping[str, Any] | None, *arguments: str) -> None:
    """Raises UserError for settings that are no mapping of names, and for one that is an argument of the function too:
    one of the two would be ignored.
    """
    if settings is not None and not (isinstance(settings, Mapping) and all(isinstance(name, str) for name in settings)):
        raise UserError(f"settings must be a dict of dotted names and values, got {settings!r:.80}")
    for name in arguments:
        if name in (settings or {}):
            raise UserError(f"{name} must be given as an argument of its own, not in settings; leave it out there")


def train(
    game: str,
    *,
    preset: Preset = "auto",
    protocol: Protocol = "standard",
    steps: int | None = None,
    seed: int = 0,
    run_dir: Path | str | None = None,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    callback: Callable[[int, Metrics], object] = lambda step, metrics: None,
    quiet: bool = True,
) -> Run:
    """Trains an agent. Ctrl-C saves and returns, where this is called from the main thread.

    Args:
        game: as of `stormfast train --game`.
        steps: environment steps; by default as many as the preset has.
        run_dir: a new directory, or that of a run of this game without a checkpoint, which is replaced (with a warning
            where quiet); by default runs/GAME/DATE-TIME.
        settings: dotted names -> values, as the flags of `stormfast train`: {"agent.entropy": 1e-3}.
        callback: called with (step, metrics) whenever metrics are written; True stops the run, which is then saved.
            It is saved, too, before what the callback raises comes through.
        quiet: False prints as the command does.
    Raises: UserError for settings that cannot be, and what cannot be had, made, or saved.
    """
    _check_given_once(settings, "game", "seed", "run_dir", "resume", *(() if steps is None else ("steps",)))
    if isinstance(game, str) and "," in game:
        raise UserError(f"train takes one game, got '{game}'; call it for each, or `stormfast train --game {game}`")
    where = None if run_dir is None else str(_check_path("run_dir", run_dir))
    given: dict[str, Any] = {"game": game, "seed": seed, "run_dir": where}
    given |= {} if steps is None else {"steps": steps}
    settings_of_run = config(preset, protocol, dict(settings or {}) | given, device=device)
    return _train(settings_of_run, callback, quiet)


def resume(
    run_dir: Path | str,
    *,
    steps: int | None = None,
    device: str | None = None,
    callback: Callable[[int, Metrics], object] = lambda step, metrics: None,
    quiet: bool = True,
) -> Run:
    """Goes on with a run from its last checkpoint, for `steps` in all, by default on the device of its settings.

    Arguments and errors as of train.
    """
    given = {"steps": steps, "device": device}
    changed = {name: value for name, value in given.items() if value is not None}
    wanted = override(load_config(_check_path("run_dir", run_dir)), changed | {"resume": True})
    validate(wanted, is_new=False)
    return _train(wanted, callback, quiet)


def _check_callback(callback: Any) -> None:
    if not callable(callback):
        raise UserError(f"callback must be a function of (step, metrics), got {callback!r}")
    try:
        inspect.signature(callback).bind(0, {})
    except TypeError as error:
        raise UserError(f"callback must be a function of (step, metrics), but calling it so gives: {error}") from None
    except ValueError:  # a callable without a readable signature
        pass


def _check_path(name: str, value: Any) -> Path:
    if not isinstance(value, (str, os.PathLike)):
        raise UserError(f"{name} must be a path, got {value!r}")
    return Path(value)


def _train(wanted: TrainConfig, callback: Callable[[int, Metrics], object], quiet: bool) -> Run:
    _check_callback(callback)  # before anything is made
    decided = plan(wanted)
    unsaid: list[str] = []
    with opened(wanted, unsaid.append if quiet else log_line) as path:
        for line in unsaid:
            warnings.warn(line, stacklevel=3)  # at the call of train
        train_run(wanted, path, decided, callback=callback, quiet=quiet)
    return load(path, device=wanted.device)


def load(run_dir: Path | str, *, device: str = "auto") -> Run:
    """A run that was saved. Raises: UserError for a directory that is no run."""
    path = _check_path("run_dir", run_dir)
    return Run(path, load_config(path), device)


def evaluate(
    run: Run, episodes: int | None = None, *, policy: str = "agent", num_envs: int = 5, seed: int = 0
) -> Score:
    """The score of a run's agent, or of random actions on the same footing.

    Args:
        episodes: full episodes; by default as many as the run's rules go with, 100 or 20.
        policy: "agent" or "random".
        num_envs: environments stepped together.
    Raises: UserError for a checkpoint or a game that cannot be had, and for another policy.
    """
    _check_run(run)
    if policy not in ("agent", "random"):
        raise UserError(f"policy must be 'agent' or 'random', got {policy!r}")
    trained = run.trained if policy == "agent" else None
    return evaluate_run(run.config, trained, episodes=episodes, num_envs=num_envs, seed=seed).score


def dream(run: Run, horizon: int = 64, num: int = 1, *, seed: int = 0) -> Dream:
    """Real play beside the model's imagination of it, from the same start and by the same actions.

    Args: horizon: H, imagined steps. num: N, how many stretches of play.
    Returns: arrays [N, H, ...]: frames, rewards, ends, real and predicted. Raises: UserError.
    """
    _check_run(run)
    return run.dream(horizon, num, seed=seed)


def _check_run(run: Any) -> None:
    if not isinstance(run, Run):
        raise UserError(f"run must be what train, resume or load give, got {run!r:.80}; load(run_dir) gives one")


def make_env(
    game: str,
    num_envs: int = 1,
    *,
    seed: int = 0,
    protocol: Protocol = "standard",
    settings: Mapping[str, Any] | None = None,
) -> VectorEnv:
    """A game as a vector environment, by the rules of a protocol.

    >>> env = make_env("Catch", num_envs=2)
    >>> env.reset().obs.shape
    (2, 3, 64, 64)

    Args: settings: dotted names -> values, as of train. Raises: UserError.
    """
    _check_given_once(settings, "game", "num_envs", "seed", "preset", "protocol")
    given = dict(settings or {}) | {"game": game, "num_envs": num_envs, "seed": seed}
    made = override(preset_config("tiny", protocol), given)
    validate(made)
    check_settings(made)
    return make_vector_env(game, made.env, made.atari, num_envs=num_envs, backend=made.env_backend, seed=seed)


def register_game(name: str, make: Callable[[], Any], scores: tuple[float, float] | None = None) -> None:
    """Makes a game known by a bare name, in this process.

    Args:
        make: returns a gymnasium environment with pixel observations and discrete actions.
        scores: of a random policy and of a human, which normalise its scores.
    Raises: UserError for a name that is taken, and for a `make` or scores that cannot be.
    """
    games.register_game(name, make, scores)
