"""Everything a training run holds, how it is built, and how it is saved and brought back.

What is saved is all that decides the future: weights, optimisers, running averages, random generators, replay, the
acting context, and the environments where their backend can be saved (ale, gymnasium). envpool cannot: its games start
anew.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stormfast.collect import Collector
from stormfast.compile import Updates, compile_run
from stormfast.demonstration import load_demonstration
from stormfast.device import keep_freed_memory
from stormfast.envs import make_env
from stormfast.errors import UserError
from stormfast.learner import Learner
from stormfast.memory.estimate import check_fits
from stormfast.plan import Plan, plan
from stormfast.player import Player
from stormfast.records import EnvStep
from stormfast.replay import Replay
from stormfast.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from stormfast.runs.metrics import Metrics, MetricsLog
from stormfast.runs.state import (
    flatten_optimizer,
    restore_optimizer,
    restore_rng,
    rng_state,
    with_prefix,
    without_prefix,
)
from stormfast.settings import TrainConfig


@dataclass
class Run:
    """The parts of a run, wired together. Close it when done."""

    config: TrainConfig
    plan: Plan
    run_dir: Path
    collector: Collector
    replay: Replay
    learner: Learner
    updates: Updates
    metrics: Metrics
    log: MetricsLog
    step: int = 0  # environment steps taken
    saved_at: int = -1  # step of the last checkpoint; -1 for none
    logged_at: int = -1  # step of the last metrics; -1 for none
    stopped_by: int = 0  # the signal that stopped it; 0 for none
    quiet: bool = False  # print nothing

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.log.close()
        self.collector.env.close()

    def save(self) -> None:
        """Writes a checkpoint; the one before stays until this one is whole. Raises: UserError when that fails."""
        tensors, meta = snapshot(self)
        save_checkpoint(self.run_dir, self.step, tensors, meta, self.replay)
        self.saved_at = self.step


def build(config: TrainConfig, run_dir: Path, decided: Plan | None = None) -> Run:
    """A run at step 0, or, with config.resume, at its last checkpoint.

    Raises: UserError for what cannot be had or does not fit.
    """
    decided = decided or plan(config)
    device = decided.device
    if device.type == "cuda":
        torch.cuda.set_device(device)  # graphs are captured on the current one
    else:
        keep_freed_memory()
    torch.manual_seed(config.seed)  # CPU and every CUDA device
    saved = load_checkpoint(run_dir, device) if config.resume else None
    env = make_env(
        config.game,
        config.env,
        config.atari,
        num_envs=config.num_envs,
        backend=config.env_backend,
        seed=env_seed(config.seed, saved),
    )
    check_fits(config, decided, env.num_actions)
    replay = make_replay(config, env.num_actions, device)
    learner = Learner(config, env.num_actions, device, decided.precision)
    player = Player(learner.inference, learner.agent, config.acting, config.num_envs)
    collector = Collector(
        env, player, np.random.default_rng(config.seed), count_last_reward=config.evaluation.count_last_reward
    )
    if saved is not None:
        restore(learner, collector, saved)
        saved.restore_replay(replay)
    log = MetricsLog(
        run_dir, config.logging.tensorboard, None if saved is None else saved.step
    )  # last: it drops what came after the checkpoint
    updates = Updates(config, learner, replay, default_generator(device))
    compile_run(decided.compile, updates, player)
    run = Run(config, decided, run_dir, collector, replay, learner, updates, Metrics(device), log)
    if saved is not None:
        run.step = run.saved_at = run.logged_at = saved.step
    return run


def make_replay(config: TrainConfig, num_actions: int, device: torch.device) -> Replay:
    """An empty replay, with the demonstration where one is given."""
    settings = config.replay
    longest = max(config.world_model.batch_length, config.imagination.window_length)
    return Replay(
        settings.capacity,
        config.num_envs,
        device,
        recency=settings.recency,
        keep_last_obs=config.world_model.separate_episodes,
        demonstration=load_demonstration(settings.demonstration, num_actions, longest)
        if settings.demonstration
        else None,
        demonstration_share=settings.demonstration_share,
    )


def env_seed(seed: int, saved: Checkpoint | None) -> int:
    """Seed of environment 0; environment k gets this + k, so neighbouring run seeds must lie far apart.

    Environments that a checkpoint could not save start other games than those at step 0.
    """
    restart_step = 0 if saved is None or without_prefix("env", saved.tensors) else saved.step
    return int(np.random.SeedSequence([seed, restart_step]).generate_state(1)[0] % (2**31 - 1024))


def default_generator(device: torch.device) -> torch.Generator:
    """Replay and every draw of the models take from it."""
    return torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator


def generators(device: torch.device) -> dict[str, torch.Generator]:
    """Every torch generator a run draws from, by name."""
    return {"cpu": torch.default_generator} | ({"cuda": default_generator(device)} if device.type == "cuda" else {})


def snapshot(run: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All state but replay, as named tensors and what JSON can hold."""
    learner, collector = run.learner, run.collector
    tensors: dict[str, Tensor] = {}
    for name, module in (("world_model", learner.world_model), ("agent", learner.agent)):
        tensors |= with_prefix(name, module.state_dict())
    for name, optimizer in learner.optimizers.items():
        tensors |= flatten_optimizer(optimizer, f"optimizer.{name}")
    tensors |= with_prefix(
        "rng", {name: rng_state(generator) for name, generator in generators(learner.device).items()}
    )
    tensors |= with_prefix("player", collector.player.state())
    env_state = collector.env.state()
    if env_state is not None:
        tensors |= with_prefix("env", from_numpy(env_state))
        tensors |= with_prefix(
            "now", from_numpy({f.name: getattr(collector.now, f.name) for f in dataclasses.fields(EnvStep)})
        )
        tensors |= with_prefix("episode", from_numpy({"return": collector.game_return, "length": collector.length}))
    meta = {
        "collector_rng": collector.rng.bit_generator.state,
        "env_backend": collector.env.backend,
        "num_actions": collector.env.num_actions,
    }
    return tensors, meta


def restore(learner: Learner, collector: Collector, saved: Checkpoint) -> None:
    """Puts back what snapshot gave. Raises: UserError when the checkpoint is of another model."""
    tensors, meta = saved.tensors, saved.meta
    try:
        learner.world_model.load_state_dict(without_prefix("world_model", tensors))
        learner.agent.load_state_dict(without_prefix("agent", tensors))
        learner.inference.refresh()
        for name, optimizer in learner.optimizers.items():
            restore_optimizer(optimizer, tensors, f"optimizer.{name}")
        saved_rng = without_prefix("rng", tensors)
        for name, generator in generators(learner.device).items():
            if name in saved_rng:  # a run that moves to CUDA has no saved state there: it starts from the seed
                restore_rng(generator, saved_rng[name].cpu())
        collector.player.load_state(without_prefix("player", tensors))
        collector.rng.bit_generator.state = meta["collector_rng"]
        env_state = {name: value.cpu().numpy() for name, value in without_prefix("env", tensors).items()}
        if env_state and meta["env_backend"] == collector.env.backend:
            collector.env.load_state(env_state)
            collector.now = EnvStep(
                **{name: value.cpu().numpy() for name, value in without_prefix("now", tensors).items()}
            )
            episode = without_prefix("episode", tensors)
            collector.game_return, collector.length = episode["return"].cpu().numpy(), episode["length"].cpu().numpy()
    except UserError:
        raise
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"The checkpoint in {saved.directory} does not fit this version or this game ({reason}); start a new run."
        ) from None


def from_numpy(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Tensors of a copy: the arrays go on changing."""
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
