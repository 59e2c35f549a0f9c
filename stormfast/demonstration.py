"""Reads a demonstration: recorded play that is mixed into replay batches.

T steps
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stormfast.errors import UserError

KEYS = ("obs", "action", "reward", "termination")


@dataclass(frozen=True)
class Demonstration:
    """One recorded stream of play.

    It has no last observations: the row after a termination is the next episode's first.
    """

    obs: np.ndarray  # [T, 3, 64, 64] uint8 RGB
    action: np.ndarray  # [T] int64, taken at obs
    reward: np.ndarray  # [T] float32, of that action
    terminated: np.ndarray  # [T] bool, that action ended the game
    is_first: np.ndarray  # [T] bool, obs is the first of its episode

    def __len__(self) -> int:
        return len(self.action)


def load_demonstration(path: str | Path, num_actions: int, min_length: int = 1) -> Demonstration:
    """The demonstration in an .npz file.

    Args:
        path: .npz with obs [T, 64, 64, 3] or [T, 3, 64, 64] uint8, action [T] integers in [0, num_actions),
            reward [T] floats, termination [T] bool or 0/1. Nothing pickled.
        num_actions: of the game that is trained on.
        min_length: steps of the longest window that will be drawn from it.
    Raises: UserError, one line, for anything else.
    """
    arrays = _read(Path(path))
    obs = _frames(path, arrays["obs"])
    num_steps = len(obs)
    for name in KEYS[1:]:
        if arrays[name].shape != (num_steps,):
            raise _error(path, f"{name} must be [{num_steps}], as long as obs, got shape {list(arrays[name].shape)}")
    if num_steps < min_length:
        raise _error(path, f"it must have at least {min_length} steps, one window, got {num_steps}")
    terminated = _terminated(path, arrays["termination"])
    return Demonstration(
        obs=obs,
        action=_actions(path, arrays["action"], num_actions),
        reward=_rewards(path, arrays["reward"]),
        terminated=terminated,
        is_first=np.concatenate([[True], terminated[:-1]]),
    )


def _error(path: str | Path, problem: str) -> UserError:
    return UserError(
        f"Demonstration {path}: {problem}; save it with np.savez(path, {', '.join(f'{key}=...' for key in KEYS)})."
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    # ValueError: not a NumPy file, or pickled. The rest: a zip archive that is cut short or damaged.
    unreadable = (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    )
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an archive")
            missing = [key for key in KEYS if key not in archive.files]
            arrays = {} if missing else {key: archive[key] for key in KEYS}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("an archive of something other than arrays")
    except unreadable as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise _error(path, f"expected a readable .npz file, got {type(error).__name__} ({reason})") from None
    if missing:
        raise _error(
            path,
            f"expected the arrays {', '.join(KEYS)}, but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing",
        )
    return arrays


def _frames(path: str | Path, obs: np.ndarray) -> np.ndarray:
    shapes = ((64, 64, 3), (3, 64, 64))
    if obs.dtype != np.uint8 or obs.ndim != 4 or obs.shape[1:] not in shapes or len(obs) == 0:
        raise _error(
            path, f"obs must be uint8 [T, 64, 64, 3] or [T, 3, 64, 64] with T >= 1, got {obs.dtype} {list(obs.shape)}"
        )
    return np.ascontiguousarray(obs if obs.shape[1:] == (3, 64, 64) else obs.transpose(0, 3, 1, 2))


def _actions(path: str | Path, action: np.ndarray, num_actions: int) -> np.ndarray:
    if action.dtype.kind not in "iu":
        raise _error(path, f"action must be integers, got {action.dtype}")
    wrong = np.flatnonzero((action < 0) | (action >= num_actions))
    if len(wrong):
        raise _error(
            path, f"action must be in [0, {num_actions}), the game's actions, got {action[wrong[0]]} at step {wrong[0]}"
        )
    return action.astype(np.int64)


def _rewards(path: str | Path, reward: np.ndarray) -> np.ndarray:
    if reward.dtype.kind != "f":
        raise _error(path, f"reward must be floats, got {reward.dtype}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is refused below
        single = reward.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(single))
    if len(wrong):
        raise _error(path, f"reward must be finite in float32, got {reward[wrong[0]]} at step {wrong[0]}")
    return single


def _terminated(path: str | Path, termination: np.ndarray) -> np.ndarray:
    if termination.dtype.kind not in "biuf":
        raise _error(path, f"termination must be bool or 0/1, got {termination.dtype}")
    wrong = np.flatnonzero((termination != 0) & (termination != 1))
    if len(wrong):
        raise _error(path, f"termination must be bool or 0/1, got {termination[wrong[0]]} at step {wrong[0]}")
    return termination.astype(np.bool_)
