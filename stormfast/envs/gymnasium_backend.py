"""Any gymnasium pixel game as a vector environment: built-in games, gymnasium's, and the user's own.

A game with get_state() and set_state(), which give and take a dict of numpy arrays that hold all that decides what
follows, resumes exactly. Any other starts anew when a run is resumed.
"""

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from stormfast.envs.actions import flatten_actions
from stormfast.envs.frames import FrameFormat, format_of_picture, format_of_space
from stormfast.envs.sequential import SequentialVectorEnv, SingleEnv
from stormfast.errors import UserError
from stormfast.settings import EnvConfig

Make = Callable[[bool], gymnasium.Env[Any, Any]]
LARGEST_REWARD = float(np.finfo(np.float32).max)  # replay keeps rewards in float32


class PixelEnv(SingleEnv):
    """One copy of a gymnasium game; lives are info["lives"], where the game has them.

    What it returns is checked at every step, and a mistake is a UserError; an exception that it raises passes through.

    Args:
        name: of the game, for messages.
        env: to be stepped; closed by close().
        config: time limit, seeds of resets, and where frames come from.
        seed: of the first reset, or of all.
    Raises: UserError for observations or actions that do not fit.
    """

    def __init__(self, name: str, env: gymnasium.Env[Any, Any], config: EnvConfig, seed: int) -> None:
        num_actions, self._to_action = flatten_actions(name, getattr(env, "action_space", None))
        super().__init__(num_actions)
        self.can_save = hasattr(env, "get_state") and hasattr(env, "set_state")
        self._format: FrameFormat | None = None  # of render()'s frames, known from the first on
        if not config.render_obs:
            self._format = format_of_space(name, env)
        elif env.render_mode != "rgb_array":
            wanted = 'render_mode "rgb_array" for --env.render-obs'
            raise UserError(f"{name} must have {wanted}, got {env.render_mode!r}; give it that when it is made")
        self._name = name
        self._env: Any = env
        self._config = config
        self._seed = seed
        self._seeded = False

    def reset(self) -> None:
        reseed = self._config.same_seed_resets or not self._seeded
        result = self._env.reset(seed=self._seed if reseed else None)
        if not isinstance(result, tuple) or len(result) != 2:
            raise UserError(f"{self._name} must return (observation, info) from reset(), got {_kind(result)}")
        if not self._seeded and self.can_save:
            self.save()  # a mistake in it shows now, not at the first checkpoint
        self._seeded = True
        self.elapsed, self.terminated, self.truncated = 0, False, False
        self._observe(*result)

    def step(self, action: int) -> float:
        result = self._env.step(self._to_action(action))
        if not isinstance(result, tuple) or len(result) != 5:
            wanted = "(observation, reward, terminated, truncated, info)"
            raise UserError(f"{self._name} must return {wanted} from step(), got {_kind(result)}")
        observation, reward, terminated, truncated, info = result
        self.elapsed += 1
        self.terminated = self._checked_flag("terminated", terminated)
        limit = self.elapsed >= self._config.max_episode_steps
        self.truncated = self._checked_flag("truncated", truncated) or limit
        self._observe(observation, info)
        return self._checked_reward(reward)

    def _observe(self, observation: Any, info: Any) -> None:
        if not isinstance(info, dict):
            raise UserError(f"{self._name} must return a dict as info, got {_kind(info)}; an empty one will do")
        if self._config.render_obs:
            observation = self._render()
            self._format = self._format or format_of_picture(self._name, observation)
        assert self._format is not None
        self.obs = self._format(observation)
        self.lives = self._checked_lives(info.get("lives", 0))

    def _render(self) -> Any:
        try:
            return self._env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise UserError(f"{self._name} cannot be rendered: {' '.join(str(error).split())}") from None

    def _checked_flag(self, name: str, value: Any) -> bool:
        if not isinstance(value, (bool, np.bool_)):
            array = np.asarray(value) if isinstance(value, (int, float, np.generic, np.ndarray)) else np.empty(0)
            if array.size != 1 or array.item() not in (0, 1):
                raise UserError(
                    f"{self._name} must return True or False as {name}, got {value!r:.60} ({_kind(value)}) at step "
                    f"{self.elapsed} of an episode"
                )
        return bool(value)

    def _checked_lives(self, lives: Any) -> int:
        try:
            return int(lives)
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f'{self._name} must give a whole number as info["lives"], got {lives!r:.60} ({_kind(lives)}); leave it '
                "out where the game has no lives"
            ) from None

    def _checked_reward(self, reward: Any) -> float:
        try:
            value = float(reward)
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if not abs(value) <= LARGEST_REWARD:  # nan fails too
            got = reward if isinstance(reward, float) else f"{reward!r:.60} ({_kind(reward)})"
            raise UserError(
                f"{self._name} must give a finite number as reward, got {got} at step {self.elapsed} of an episode; "
                "float32 must hold it"
            )
        return value

    def save(self) -> dict[str, np.ndarray]:
        state = self._env.get_state()
        if not isinstance(state, dict) or not all(map(_is_array, state.values())):
            raise UserError(
                f"{self._name} must return a dict of numpy arrays of numbers from get_state(), got {_kind(state)}; "
                "rename it if it means something else, and games start anew when a run is resumed"
            )
        return state

    def load(self, state: dict[str, np.ndarray]) -> None:
        self._env.set_state(state)
        self._seeded = True

    def close(self) -> None:
        self._env.close()


class GymnasiumVectorEnv(SequentialVectorEnv):
    """N copies of what `make` makes; copy k is seeded with seed + k."""

    def __init__(self, name: str, make: Make, config: EnvConfig, *, num_envs: int, seed: int) -> None:
        envs = [make(config.render_obs) for _ in range(num_envs)]
        super().__init__([PixelEnv(name, env, config, seed + k) for k, env in enumerate(envs)], "gymnasium")


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


def _kind(value: Any) -> str:
    """What a value is, for messages: 'tuple of 4', 'ndarray of shape (2,)', 'float'."""
    name = type(value).__name__
    if isinstance(value, np.ndarray):
        return f"{name} of shape {value.shape}"
    return f"{name} of {len(value)}" if isinstance(value, (tuple, list, dict)) else name
