"""Atari games stepped by envpool: all environments together, in C++ threads.

N environments

envpool checks no action and dies of some options, so nothing reaches it that make_env and VectorEnv have not checked.
Its state cannot be saved: state() is None. Never fork a process that holds one: the threads are gone in the child.
"""

from typing import Any

import envpool
import numpy as np

from stormfast.envs.vector import VectorEnv, first_step
from stormfast.records import OBS_SHAPE, EnvStep
from stormfast.settings import AtariConfig, EnvConfig

_TASKS = {"TicTacToe3D": "TicTacToe3d"}  # where envpool's name is not ale-py's


class EnvpoolVectorEnv(VectorEnv):
    """N copies of an Atari game in one envpool, environment k seeded with seed + k."""

    def __init__(self, game: str, config: EnvConfig, atari: AtariConfig, *, num_envs: int, seed: int) -> None:
        self._pool: Any = envpool.make(
            f"{_TASKS.get(game, game)}-v5",
            env_type="gymnasium",
            num_envs=num_envs,
            seed=seed,
            img_height=OBS_SHAPE[1],
            img_width=OBS_SHAPE[2],
            gray_scale=False,
            stack_num=1,
            frame_skip=atari.frame_skip,
            noop_max=atari.noop_max,
            max_episode_steps=config.max_episode_steps,
            repeat_action_probability=float(atari.sticky),
            full_action_space=False,
            use_fire_reset=False,
            episodic_life=False,  # it would play on after a lost life; life_lost only marks it
        )
        super().__init__(num_envs, int(self._pool.action_space.n), "envpool")
        self._lives = np.zeros(num_envs, np.int32)
        self._over = np.zeros(num_envs, bool)

    def _reset(self) -> EnvStep:
        obs, info = self._pool.reset()
        self._lives = info["lives"]
        self._over = np.zeros(self.num_envs, bool)
        return first_step(obs)

    def _step(self, action: np.ndarray) -> EnvStep:
        is_first = self._over
        obs, reward, _, truncated, info = self._pool.step(action.astype(np.int32))
        terminated = info["terminated"].astype(
            bool
        )  # envpool's own flag hides a game over on the very step of the time limit
        life_lost = (info["lives"] < self._lives) & ~is_first
        self._lives = info["lives"]
        self._over = terminated | truncated
        return EnvStep(obs, reward, terminated, truncated, life_lost, is_first)

    def _close(self) -> None:
        self._pool = None  # its destructor joins the threads
