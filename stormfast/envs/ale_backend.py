"""Atari games stepped on ale-py: what envpool computes, bit for bit, with a state that can be saved.

H, W = 210, 160 raw screen

The rules are envpool's: a reset plays 1..noop_max no-op frames, drawn by MT19937(seed), and with
noop_max 0, which envpool has not, it plays and draws none; an action lasts frame_skip frames and
the last two are max-pooled, then resized by area; a game over within the skip ends it, and the observation is then made
of those of the last two frames that were reached, or is the previous observation when neither was.

A saved game is the emulator just before this episode's reset, and the actions since; loading plays them again, without
looking, at 2,000 to 5,000 steps a second. The emulator's own saved state is not enough in mid-episode: it leaves out
the last executed action, which a sticky action repeats, and the screen, parts of which a frame may leave as they were.
A reset clears both.
"""

import zlib
from typing import Any

import ale_py
import cv2
import numpy as np
from ale_py import roms

from stormfast.envs.games import rom_name
from stormfast.envs.sequential import SequentialVectorEnv, SingleEnv, check_arrays
from stormfast.records import OBS_SHAPE
from stormfast.settings import AtariConfig, EnvConfig

_NOOP = ale_py.Action.NOOP
_SAVED: dict[str, tuple[type, tuple[int, ...]]] = {
    "identity": (np.uint8, (-1,)),
    "emulator": (np.uint8, (-1,)),
    "crc": (np.int64, (1,)),
    "noops": (np.int64, (625,)),
    "actions": (np.uint8, (-1,)),
    "ram": (np.uint8, (128,)),
}


class AtariEnv(SingleEnv):
    """One emulator with its preprocessing.

    Args:
        game: a name of stormfast.envs.games.atari_games().
        config, atari: the rules, already checked.
        seed: int32, of the emulator's random numbers and of the no-op counts.
    """

    def __init__(self, game: str, config: EnvConfig, atari: AtariConfig, seed: int) -> None:
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", float(atari.sticky))
        self._ale.setInt("random_seed", seed)
        self._ale.loadROM(str(roms.get_rom_path(rom_name(game))))
        self._actions = self._ale.getMinimalActionSet()
        super().__init__(len(self._actions))
        self._config, self._atari = config, atari
        self._identity = f"ale-py {ale_py.__version__}, {game}"
        self._noops = _mt19937(seed)
        self._seeded = self._snapshot()  # to restore it re-seeds as loading again would, in 50 us instead of 70 ms
        self._before_reset = self._seeded
        self._played = bytearray()  # actions of this episode
        self._frames = np.empty((2, *self._ale.getScreenDims(), 3), np.uint8)  # [2, H, W, 3]
        self._small = np.empty((*OBS_SHAPE[1:], 3), np.uint8)  # [64, 64, 3]

    def reset(self) -> None:
        if self._config.same_seed_resets:
            self._restore(*self._seeded)
        self._before_reset = self._snapshot()
        self._start_episode()
        self._ale.getScreenRGB(self._frames[0])
        self._observe(1)
        self.elapsed, self.lives = 0, self._ale.lives()
        self.terminated = self.truncated = False

    def step(self, action: int) -> float:
        reward, num_frames = self._play(action, watch=True)
        if num_frames:
            self._observe(num_frames)
        self.elapsed, self.lives = self.elapsed + 1, self._ale.lives()
        self.terminated, self.truncated = self._ale.game_over(), self.elapsed >= self._config.max_episode_steps
        return float(reward)

    def _start_episode(self) -> None:
        self._played.clear()
        self._ale.reset_game()
        noop_max = self._atari.noop_max
        for _ in range(1 + _draw(self._noops, noop_max) if noop_max else 0):
            self._ale.act(_NOOP)
            if self._ale.game_over():
                self._ale.reset_game()

    def _play(self, action: int, *, watch: bool) -> tuple[int, int]:
        """Plays frame_skip frames, or fewer until the game is over; with `watch`, the last two reach self._frames.

        Returns: the score won, and how many frames were watched.
        """
        ale, act = self._ale, self._actions[action]
        reward = num_frames = 0
        for left in range(self._atari.frame_skip, 0, -1):
            reward += ale.act(act)
            if watch and left <= 2:
                ale.getScreenRGB(self._frames[num_frames])
                num_frames += 1
            if ale.game_over():
                break
        self._played.append(action)
        return reward, num_frames

    def _observe(self, num_frames: int) -> None:
        """Makes the observation of the first one or two of self._frames."""
        frame = self._frames[0]
        if num_frames == 2:
            np.maximum(frame, self._frames[1], out=frame)
        cv2.resize(frame, OBS_SHAPE[1:], dst=self._small, interpolation=cv2.INTER_AREA)
        self.obs = self._small.transpose(2, 0, 1).copy(order="C")  # [64, 64, 3] -> [3, 64, 64]

    def _snapshot(self) -> tuple[ale_py.ALEState, np.ndarray]:
        """The emulator with its random numbers, and the no-op stream: [624 + 1] int64, its words and position."""
        words: Any = self._noops.state["state"]
        return self._ale.cloneState(include_rng=True), np.append(words["key"].astype(np.int64), words["pos"])

    def _restore(self, emulator: ale_py.ALEState, noops: np.ndarray) -> None:
        self._ale.restoreState(emulator)
        self._noops.state = {
            "bit_generator": "MT19937",
            "state": {"key": noops[:-1].astype(np.uint32), "pos": int(noops[-1])},
        }

    def save(self) -> dict[str, np.ndarray]:
        state = {
            "identity": _array(self._identity.encode()),
            "emulator": _array(self._before_reset[0].serialize()),
            "noops": self._before_reset[1],
            "actions": _array(self._played),
            "ram": self._ale.getRAM(),
        }
        return state | {"crc": np.array([_crc(state)], np.int64)}

    def load(self, state: dict[str, np.ndarray]) -> None:
        check_arrays(state, _SAVED)
        identity = state["identity"].tobytes().decode(errors="replace")
        if identity != self._identity:
            raise ValueError(f"it must come from {self._identity}, got {identity}")
        if _crc(state) != state["crc"][0]:  # ale-py and numpy read damaged bytes without checking them
            raise ValueError("it must be what was saved, but its checksum differs")
        self._restore(ale_py.ALEState(state["emulator"].tobytes()), state["noops"])
        self._before_reset = self._snapshot()
        self._start_episode()
        for action in state["actions"].tolist():
            self._play(action, watch=False)
        if not np.array_equal(self._ale.getRAM(), state["ram"]):
            raise ValueError(
                "playing the episode again must end where it was saved, but the console's RAM differs; "
                "were the rules changed?"
            )

    def close(self) -> None:
        del self._ale


class AleVectorEnv(SequentialVectorEnv):
    """N copies of an Atari game; environment k is seeded with seed + k."""

    def __init__(self, game: str, config: EnvConfig, atari: AtariConfig, *, num_envs: int, seed: int) -> None:
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner for each emulator
        super().__init__([AtariEnv(game, config, atari, seed + k) for k in range(num_envs)], "ale")


def _array(data: bytes | bytearray) -> np.ndarray:
    return np.frombuffer(bytes(data), np.uint8).copy()


def _crc(state: dict[str, np.ndarray]) -> int:
    return zlib.crc32(b"".join(state[name].tobytes() for name in ("emulator", "noops", "actions", "ram")))


def _mt19937(seed: int) -> np.random.MT19937:
    """C++'s std::mt19937(seed), whose seeding numpy's legacy generator shares."""
    legacy: Any = np.random.RandomState(seed).get_state(legacy=False)
    bits = np.random.MT19937()
    bits.state = {"bit_generator": "MT19937", "state": legacy["state"]}
    return bits


def _draw(bits: np.random.MT19937, n: int) -> int:
    """Uniform in [0, n), with the draws of libstdc++'s uniform_int_distribution (Lemire, arXiv 1805.10941)."""
    product = int(bits.random_raw()) * n
    while product % 2**32 < 2**32 % n:  # a few of the 2**32 values would make the low numbers likelier
        product = int(bits.random_raw()) * n
    return product >> 32
