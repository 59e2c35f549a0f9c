"""Libraries that step Atari games, each behind stormfast's VectorEnv, and the check that they play the same game.

N environments
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import ale_py
import gymnasium
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import AtariPreprocessing

from stormfast.envs import make_env
from stormfast.envs.ale_backend import rom_name
from stormfast.envs.vector import VectorEnv, first_step
from stormfast.records import OBS_SHAPE, EnvStep
from stormfast.settings import AtariConfig, EnvConfig

HEIGHT, WIDTH = OBS_SHAPE[1:]
CHECKED_STEPS = 30  # before an episode can be over
Make = Callable[[str, AtariConfig, int, int], VectorEnv]  # game, config, N, seed


class AdaptedVectorEnv(VectorEnv):
    """A gymnasium vector environment with frames [N, 64, 64, 3] or [N, 1, 64, 64, 3] and NEXT_STEP autoreset.

    It does not report lost lives, which would cost next to nothing.
    """

    def __init__(self, library: Any, backend: str, seed: int) -> None:
        super().__init__(library.num_envs, int(library.single_action_space.n), backend)
        self.library, self.seed = library, seed
        self.over = np.zeros(self.num_envs, bool)

    def _reset(self) -> EnvStep:
        self.over = np.zeros(self.num_envs, bool)
        return first_step(self.channels_first(self.library.reset(seed=self.seed)[0]))

    def _step(self, action: np.ndarray) -> EnvStep:
        is_first = self.over
        frames, reward, terminated, truncated, _ = self.library.step(action)
        self.over = terminated | truncated
        obs, reward, life_lost = self.channels_first(frames), reward.astype(np.float32), np.zeros(self.num_envs, bool)
        return EnvStep(obs, reward, terminated, truncated, life_lost, is_first)

    def channels_first(self, frames: np.ndarray) -> np.ndarray:
        """[N, 64, 64, 3] -> [N, 3, 64, 64], copied: the library reuses its buffer."""
        return frames.reshape(self.num_envs, HEIGHT, WIDTH, 3).transpose(0, 3, 1, 2).copy(order="C")

    def _close(self) -> None:
        self.library.close()


def make_ours(backend: str, game: str, config: AtariConfig, num_envs: int, seed: int) -> VectorEnv:
    return make_env(game, EnvConfig(), config, num_envs=num_envs, backend=backend, seed=seed)


def emulator_options(config: AtariConfig) -> dict[str, Any]:
    """What gymnasium's and ale-py's environments both take."""
    max_frames = EnvConfig().max_episode_steps * config.frame_skip
    return {"repeat_action_probability": config.sticky, "max_num_frames_per_episode": max_frames}


def single_env(game: str, config: AtariConfig) -> gymnasium.Env[Any, Any]:
    """One copy with gymnasium's own Atari preprocessing, frames [64, 64, 3]."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner for each emulator
    gymnasium.register_envs(ale_py)
    options = {"frameskip": 1, "full_action_space": False, "disable_env_checker": True}  # the checker costs time
    env: gymnasium.Env[Any, Any] = gymnasium.make(f"ALE/{game}-v5", **options, **emulator_options(config))
    frames = {"frame_skip": config.frame_skip, "screen_size": HEIGHT, "grayscale_obs": False}
    return AtariPreprocessing(env, noop_max=config.noop_max, **frames)


def make_gymnasium(kind: type, game: str, config: AtariConfig, num_envs: int, seed: int) -> VectorEnv:
    """Without the library's copy of the frames: the adapter makes one."""
    return AdaptedVectorEnv(kind([partial(single_env, game, config)] * num_envs, copy=False), kind.__name__, seed)


def make_atari_vector(game: str, config: AtariConfig, num_envs: int, seed: int) -> VectorEnv:
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    frames = {"img_height": HEIGHT, "img_width": WIDTH, "grayscale": False, "stack_num": 1}
    rules = {"frameskip": config.frame_skip, "noop_max": config.noop_max, "reward_clipping": False}
    options = {"use_fire_reset": False, **frames, **rules, **emulator_options(config)}
    return AdaptedVectorEnv(AtariVectorEnv(rom_name(game), num_envs, **options), "AtariVectorEnv", seed)


BACKENDS: dict[str, Make] = {  # made in this order: AsyncVectorEnv forks, which must be before envpool has threads
    "AsyncVectorEnv": partial(make_gymnasium, AsyncVectorEnv),
    "SyncVectorEnv": partial(make_gymnasium, SyncVectorEnv),
    "AtariVectorEnv": make_atari_vector,
    "ale": partial(make_ours, "ale"),
    "envpool": partial(make_ours, "envpool"),
}


def frame_problem(make: Make, game: str, seed: int) -> str:
    """What differs from our own `ale` backend (tests/envs holds it to the bare emulator); empty if nothing does.

    With noop_max 1, so that the start is not random: some libraries then make one no-op, others none, and both pass.
    """
    found = play(make, game, 1, seed)
    problems = [difference(found, play(BACKENDS["ale"], game, noop_max, seed)) for noop_max in (1, 0)]
    return "" if "" in problems else problems[0]


def play(make: Make, game: str, noop_max: int, seed: int) -> list[EnvStep]:
    """A reset and CHECKED_STEPS random actions of two environments."""
    env = make(game, replace(AtariConfig(), noop_max=noop_max), 2, seed)
    actions = np.random.default_rng(seed).integers(env.num_actions, size=(CHECKED_STEPS, 2))
    steps = [env.reset(), *map(env.step, actions)]
    env.close()
    return steps


def difference(steps: list[EnvStep], expected: list[EnvStep]) -> str:
    for t, (step, other) in enumerate(zip(steps, expected, strict=True)):
        for field in ("obs", "reward", "terminated", "truncated", "is_first"):
            value, wanted = getattr(step, field), getattr(other, field)
            if (value.shape, value.dtype) != (wanted.shape, wanted.dtype):
                return f"{field} must be {wanted.dtype} {wanted.shape}, got {value.dtype} {value.shape}"
            if not np.array_equal(value, wanted):
                return f"{field} differs at step {t}"
    return ""
