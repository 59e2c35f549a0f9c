"""A trained agent: the weights of a run, and what can be done with them.

N environments   C context steps   H horizon
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stormfast.agent import Agent
from stormfast.collect import Collector
from stormfast.device import resolve_device
from stormfast.dream_env import Dream, DreamEnv, open_loop
from stormfast.envs import make_env
from stormfast.envs.vector import VectorEnv
from stormfast.errors import UserError
from stormfast.learner import build_models
from stormfast.player import Player
from stormfast.records import Batch
from stormfast.replay import Replay
from stormfast.runs.checkpoint import load_checkpoint
from stormfast.runs.directory import load_config
from stormfast.runs.state import without_prefix
from stormfast.schema import check_whole_number
from stormfast.settings import TrainConfig
from stormfast.world_model import WorldModel
from stormfast.world_model.inference import InferenceModel

MOST_DREAMED = 100_000  # steps of all stretches of a dream: 1.2 GB of frames, of which several copies are made
TRIES = 100  # draws of a window before it is given up that none fits


@dataclass(frozen=True)
class Trained:
    """World model and agent of a run at its last checkpoint, for inference.

    Attributes:
        num_actions: A, of the game's minimal action set.
        step: environment steps trained for.
    """

    run_dir: Path
    config: TrainConfig
    step: int
    num_actions: int
    device: torch.device
    world_model: WorldModel
    agent: Agent

    def player(self, num_envs: int = 1) -> Player:
        """A player of N environments: `.act(obs, is_first)` -> actions.

        It remembers, so take a new one for other games.

        It computes in float32: a frame an environment is little work, and scores are then alike on every device.

        Raises: UserError.
        """
        check_whole_number("num_envs", num_envs)
        return Player(InferenceModel(self.world_model, torch.float32), self.agent, self.config.acting, num_envs)

    def make_env(self, num_envs: int = 1, *, seed: int = 0) -> VectorEnv:
        """The run's game by the run's rules. `seed` is the user's: see env_seed. Raises: UserError."""
        config = self.config
        return make_env(
            config.game,
            config.env,
            config.atari,
            num_envs=num_envs,
            backend=config.env_backend,
            seed=env_seed(config.seed, seed),
        )

    def play(self, num_steps: int, *, seed: int = 0) -> Replay:
        """Plays the real game for a number of steps. Returns its rows. Raises: UserError."""
        with (
            draws_of(env_seed(self.config.seed, seed), self.device),
            contextlib.closing(self.make_env(seed=seed)) as env,
        ):
            collector = Collector(env, self.player(), np.random.default_rng(seed))
            replay = Replay(num_steps, 1, self.device, keep_last_obs=self.config.world_model.separate_episodes)
            for _ in range(num_steps):
                replay.append(collector.step(collector.act(at_random=False)))
        return replay

    def dream_env(
        self, num_envs: int = 1, *, horizon: int = 1_000, seed: int = 0, replay: Replay | None = None
    ) -> DreamEnv:
        """The world model as an environment, its dreams starting from real play.

        Args:
            horizon: steps after which a dream is cut off.
            replay: where dreams start from; by default some hundred steps that the agent plays for it.
        Raises: UserError.
        """
        check_whole_number("num_envs", num_envs)
        check_whole_number("horizon", horizon)
        self.check_decoder()
        rows = self.play(max(512, 2 * self._context), seed=seed) if replay is None else replay
        contexts = window_sampler(rows, self._context, lambda window: ~window.is_last[:, -1], seed)
        return DreamEnv(self.world_model, contexts, num_envs, horizon=horizon, seed=seed)

    def dream(self, horizon: int = 64, num: int = 1, *, seed: int = 0) -> Dream:
        """Real play beside the model's imagination of it, from the same start and by the same actions.

        Args: horizon: H, imagined steps. num: N, how many stretches. Raises: UserError.
        """
        check_whole_number("horizon", horizon, most=MOST_DREAMED)
        check_whole_number("num", num, most=max(1, MOST_DREAMED // horizon))
        self.check_decoder()
        length = self._context + horizon
        rows = self.play(max(512, 2 * length), seed=seed)
        acted = slice(self._context - 1, -1)  # none of these actions ends an episode, where there is such a stretch

        def lies_in_an_episode(window: Batch) -> torch.Tensor:
            return ~(window.terminated | window.truncated | window.is_last)[:, acted].any(1)

        sample = window_sampler(rows, length, lies_in_an_episode, seed)
        return open_loop(self.world_model, sample(num), self._context, seed=seed)

    @property
    def _context(self) -> int:
        return self.config.imagination.context

    def check_decoder(self) -> None:
        """Raises UserError for a model that draws nothing."""
        if self.world_model.decoder is None:
            raise UserError(f"{self.run_dir} has no decoder to dream with: it was trained with loss.reconstruction 0")


def load(run_dir: Path | str, device: str = "auto") -> Trained:
    """The agent of a run's last checkpoint; replay is not read.

    Args: device: auto, cpu, cuda or cuda:N.
    Raises: UserError for a directory that is no run, a device that is not here, and a checkpoint that is missing,
        damaged, or does not fit its config.json.
    """
    path = Path(run_dir)
    config, where = load_config(path), resolve_device(device)
    checkpoint = load_checkpoint(path, where, replay=False)
    num_actions = checkpoint.meta.get("num_actions")
    if type(num_actions) is not int or num_actions < 1:
        raise UserError(f"The checkpoint of {path} must say how many actions its game has, got {num_actions!r}")
    world_model, agent = build_models(config, num_actions, where)
    for name, module in (("world_model", world_model), ("agent", agent)):
        try:
            module.load_state_dict(without_prefix(name, checkpoint.tensors))
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise UserError(f"The checkpoint of {path} must fit its config.json, but {name}: {reason}") from None
    return Trained(path, config, checkpoint.step, num_actions, where, world_model, agent)


@contextlib.contextmanager
def draws_of(seed: int, device: torch.device) -> Iterator[None]:
    """Torch draws from this seed inside; outside, the caller's own draws go on as if there had been none."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def env_seed(run_seed: int, seed: int) -> int:
    """Seed of the games an agent is scored on: never those of its training, which come from (run seed, step).

    Raises: UserError.
    """
    check_whole_number("seed", seed, least=0, most=2**63 - 1)  # every generator takes that
    return int(np.random.SeedSequence((seed, run_seed, 1)).generate_state(1)[0]) % (2**31 - 1024)


def window_sampler(
    replay: Replay, length: int, fits: Callable[[Batch], torch.Tensor], seed: int
) -> Callable[[int], Batch]:
    """A function that draws n windows [n, length] of replay, those for which fits(windows) [n] is True where it can."""
    generator = torch.Generator(replay.device).manual_seed(seed)

    def sample(num: int) -> Batch:
        index = replay.draw(num, length, generator)
        for _ in range(TRIES):
            bad = ~fits(replay.gather(index))
            if not bad.any():
                break
            index = torch.where(bad[:, None], replay.draw(num, length, generator), index)
        return replay.gather(index)

    return sample
