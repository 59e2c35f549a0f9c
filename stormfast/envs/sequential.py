"""Vector environments made of single ones, stepped one after the other in this process.

N environments
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from stormfast.envs.vector import VectorEnv, first_step
from stormfast.errors import UserError
from stormfast.records import OBS_SHAPE, EnvStep


class SingleEnv(ABC):
    """One environment, with the bookkeeping of its episode.

    Attributes:
        num_actions: size of the action set.
        obs: [3, 64, 64] uint8, the current observation; replaced by each step, never written to.
        lives: lives left; 0 throughout in games without lives.
        elapsed: steps in this episode.
        terminated: the game is over.
        truncated: the time limit is reached.
    """

    can_save = True  # False where save() and load() are missing

    def __init__(self, num_actions: int) -> None:
        self.num_actions = num_actions
        self.obs = np.zeros(OBS_SHAPE, np.uint8)
        self.lives = 0
        self.elapsed = 0
        self.terminated = False
        self.truncated = False

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated

    @abstractmethod
    def reset(self) -> None:
        """Starts an episode and sets every attribute."""

    @abstractmethod
    def step(self, action: int) -> float:
        """Sets every attribute and returns the reward. Never called when the episode is over."""

    @abstractmethod
    def save(self) -> dict[str, np.ndarray]:
        """What lies behind the attributes, as plain arrays."""

    @abstractmethod
    def load(self, state: dict[str, np.ndarray]) -> None:
        """Undoes save(). Raises ValueError for anything that save() did not make."""

    @abstractmethod
    def close(self) -> None: ...


class SequentialVectorEnv(VectorEnv):
    """N environments as one. Its state() holds the arrays of environment k under 'env{k}.'."""

    def __init__(self, envs: Sequence[SingleEnv], backend: str) -> None:
        super().__init__(len(envs), envs[0].num_actions, backend)
        self._envs = envs

    def _reset(self) -> EnvStep:
        for env in self._envs:
            env.reset()
        return first_step(np.stack([env.obs for env in self._envs]))

    def _step(self, action: np.ndarray) -> EnvStep:
        reward = np.zeros(self.num_envs, np.float32)
        life_lost, is_first = np.zeros((2, self.num_envs), bool)
        for i, env in enumerate(self._envs):
            if env.over:
                is_first[i] = True
                env.reset()
                continue
            lives = env.lives
            reward[i] = env.step(int(action[i]))
            life_lost[i] = env.lives < lives
        return EnvStep(
            obs=np.stack([env.obs for env in self._envs]),
            reward=reward,
            terminated=np.array([env.terminated for env in self._envs]),
            truncated=np.array([env.truncated for env in self._envs]),
            life_lost=life_lost,
            is_first=is_first,
        )

    def _close(self) -> None:
        for env in self._envs:
            env.close()
        self._envs = ()

    def _state(self) -> dict[str, np.ndarray] | None:
        if not all(env.can_save for env in self._envs):
            return None
        state: dict[str, np.ndarray] = {}
        for k, env in enumerate(self._envs):
            counters = np.array([env.lives, env.elapsed, env.terminated, env.truncated], np.int64)
            state |= {f"env{k}.obs": env.obs, f"env{k}.counters": counters}
            state |= {f"env{k}.game.{name}": array for name, array in env.save().items()}
        return state

    def _load_state(self, state: dict[str, np.ndarray]) -> None:
        counts = {name.partition(".")[0] for name in state}
        if counts != {f"env{k}" for k in range(self.num_envs)}:
            raise UserError(
                f"an environment state must be of {self.num_envs} environments, got one of {len(counts)}; "
                "keep --num-envs as it was."
            )
        for k, env in enumerate(self._envs):
            arrays = {
                name.removeprefix(f"env{k}."): array for name, array in state.items() if name.startswith(f"env{k}.")
            }
            try:
                _load_env(env, arrays)
            except ValueError as error:
                raise UserError(
                    f"The saved state of environment {k} does not fit: {error}; resume an older checkpoint, or start "
                    "anew."
                ) from error


def _load_env(env: SingleEnv, arrays: dict[str, np.ndarray]) -> None:
    if not env.can_save:
        raise ValueError("this game has no state to load")
    own = {name.removeprefix("game."): array for name, array in arrays.items() if name.startswith("game.")}
    check_arrays(
        {name: array for name, array in arrays.items() if not name.startswith("game.")},
        {"obs": (np.uint8, OBS_SHAPE), "counters": (np.int64, (4,))},
    )
    env.load(own)
    env.obs = arrays["obs"].copy()
    env.lives, env.elapsed = (int(x) for x in arrays["counters"][:2])
    env.terminated, env.truncated = (bool(x) for x in arrays["counters"][2:])


def check_arrays(arrays: dict[str, np.ndarray], want: dict[str, tuple[type, tuple[int, ...]]]) -> None:
    """Raises ValueError unless there are exactly these names, dtypes and shapes; -1 stands for any length."""
    if arrays.keys() != want.keys():
        raise ValueError(f"it must hold {sorted(want)}, got {sorted(arrays)}")
    for name, (dtype, shape) in want.items():
        array = arrays[name]
        fits = len(array.shape) == len(shape) and all(n in (-1, m) for n, m in zip(shape, array.shape, strict=True))
        if array.dtype != dtype or not fits:
            raise ValueError(
                f"'{name}' must be {np.dtype(dtype)} of shape {shape}, got {array.dtype} of shape {array.shape}"
            )
