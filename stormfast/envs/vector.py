"""The interface of every vector environment, with the checks that all backends share.

N environments   A actions

Episodes follow each other by themselves (gymnasium's NEXT_STEP autoreset): the step that ends an episode returns its
last observation, and the next step ignores that environment's action and returns the first observation of a new one.
"""

from abc import ABC, abstractmethod

import numpy as np

from stormfast.records import EnvStep


class VectorEnv(ABC):
    """N copies of one game, stepped together.

    Attributes:
        num_envs: N.
        num_actions: A, the size of the game's minimal action set.
        backend: envpool, ale or gymnasium; or dream.
    """

    def __init__(self, num_envs: int, num_actions: int, backend: str) -> None:
        self.num_envs = num_envs
        self.num_actions = num_actions
        self.backend = backend
        self._started = False
        self._closed = False

    def reset(self) -> EnvStep:
        """Starts a new episode everywhere, whatever was going on."""
        self._check_open()
        self._started = True
        return self._reset()

    def step(self, action: np.ndarray) -> EnvStep:
        """One agent step in each environment.

        Args:
            action: [N] of any numpy integer type, each 0 <= a < A. Ignored where the last step ended an episode.
        Raises: ValueError for anything else, and before the first reset().
        """
        self._check_started("step()")
        return self._step(self._checked(action))

    def state(self) -> dict[str, np.ndarray] | None:
        """Everything needed to go on exactly from here, as plain arrays; None where the backend has no such thing.

        Raises: ValueError before the first reset().
        """
        self._check_started("state()")
        return self._state()

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Goes on from a state() of an environment made with the same arguments; no reset() is needed.

        Raises: UserError when the state is damaged or belongs to something else.
        """
        self._check_open()
        self._load_state(state)
        self._started = True

    def close(self) -> None:
        """Frees the emulators. Closing twice is harmless; anything else afterwards is a ValueError."""
        if not self._closed:
            self._closed = True
            self._close()

    @abstractmethod
    def _reset(self) -> EnvStep: ...

    @abstractmethod
    def _step(self, action: np.ndarray) -> EnvStep:
        """Takes [N] int64 actions that are known to be valid."""

    @abstractmethod
    def _close(self) -> None: ...

    def _state(self) -> dict[str, np.ndarray] | None:
        return None

    def _load_state(self, state: dict[str, np.ndarray]) -> None:
        raise ValueError(f"the {self.backend} backend has no state to load: its state() is None")

    def _checked(self, action: np.ndarray) -> np.ndarray:
        if not isinstance(action, np.ndarray):
            raise ValueError(f"action must be a numpy array of shape ({self.num_envs},), got {type(action).__name__}")
        if not np.issubdtype(action.dtype, np.integer):
            raise ValueError(f"action must have an integer dtype, got {action.dtype}")
        if action.shape != (self.num_envs,):
            raise ValueError(f"action must have shape ({self.num_envs},), got {action.shape}")
        if action.min() < 0 or action.max() >= self.num_actions:
            raise ValueError(f"action must be >= 0 and < {self.num_actions}, got {action.tolist()}")
        return action.astype(np.int64)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this environment is closed; make a new one")

    def _check_started(self, call: str) -> None:
        self._check_open()
        if not self._started:
            raise ValueError(f"{call} must come after reset() or load_state(), but neither was called yet")


def first_step(obs: np.ndarray) -> EnvStep:
    """What reset() returns: obs [N, 3, 64, 64] starts an episode everywhere."""
    nothing = np.zeros(len(obs), bool)
    return EnvStep(
        obs=obs,
        reward=np.zeros(len(obs), np.float32),
        terminated=nothing,
        truncated=nothing.copy(),
        life_lost=nothing.copy(),
        is_first=np.ones(len(obs), bool),
    )
