"""A gymnasium pixel game as a vector environment: how the built-in games are stepped.

A game fits if it shows 64x64 RGB frames and takes discrete actions counted from 0. If it has get_state() and set_state()
(plain arrays by name), the vector environment can be saved exactly too.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from stormfast.envs.sequential import Game, SequentialVectorEnv
from stormfast.records import OBS_SHAPE
from stormfast.settings import EnvConfig

FRAME_SHAPE = (*OBS_SHAPE[1:], OBS_SHAPE[0])  # [64, 64, 3], what the game shows


class PixelGame(Game):
    """One copy of a gymnasium game; lives are info["lives"], where the game tells them.

    Of the config only max_episode_steps and same_seed_resets apply.
    Raises: ValueError for a game whose observations or actions do not fit.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], config: EnvConfig, seed: int) -> None:
        frames, actions = env.observation_space, env.action_space
        if not isinstance(frames, Box) or frames.shape != FRAME_SHAPE or frames.dtype != np.uint8:
            raise ValueError(f"a game's observations must be Box(0, 255, {FRAME_SHAPE}, uint8), got {frames}")
        if not isinstance(actions, Discrete) or actions.start != 0:
            raise ValueError(f"a game's actions must be Discrete and start at 0, got {actions}")
        super().__init__(int(actions.n))
        self.can_save = hasattr(env, "get_state") and hasattr(env, "set_state")
        self._env: Any = env
        self._config = config
        self._seed = seed
        self._seeded = False

    def reset(self) -> None:
        reseed = self._config.same_seed_resets or not self._seeded
        frame, info = self._env.reset(seed=self._seed if reseed else None)
        self._seeded = True
        self.elapsed, self.terminated, self.truncated = 0, False, False
        self._observe(frame, info)

    def step(self, action: int) -> float:
        frame, reward, terminated, truncated, info = self._env.step(action)
        self.elapsed += 1
        self.terminated = bool(terminated)
        self.truncated = bool(truncated) or self.elapsed >= self._config.max_episode_steps
        self._observe(frame, info)
        return float(reward)

    def _observe(self, frame: np.ndarray, info: dict[str, Any]) -> None:
        if frame.shape != FRAME_SHAPE or frame.dtype != np.uint8:
            raise ValueError(f"a frame must be uint8 of shape {FRAME_SHAPE}, got {frame.dtype} of shape {frame.shape}")
        self.obs = frame.transpose(2, 0, 1).copy(order="C")  # [64, 64, 3] -> [3, 64, 64]; the game may reuse its frame
        self.lives = int(info.get("lives", 0))

    def save(self) -> dict[str, np.ndarray]:
        state: dict[str, np.ndarray] = self._env.get_state()
        return state

    def load(self, state: dict[str, np.ndarray]) -> None:
        self._env.set_state(state)
        self._seeded = True

    def close(self) -> None:
        self._env.close()


class GymnasiumVectorEnv(SequentialVectorEnv):
    """N copies of what `make` makes; copy k is seeded with seed + k."""

    def __init__(
        self, make: Callable[[], gymnasium.Env[Any, Any]], config: EnvConfig, *, num_envs: int, seed: int
    ) -> None:
        super().__init__([PixelGame(make(), config, seed + k) for k in range(num_envs)], "gymnasium")
