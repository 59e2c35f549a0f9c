"""Atari games stepped on ale-py: what envpool computes, bit for bit, with a state that can be saved.

H, W = 210, 160 raw screen

The rules are envpool's: a reset plays 1..noop_max no-op frames, drawn by MT19937(seed); an action lasts frame_skip frames and
the last two are max-pooled, then resized by area; a game over within the skip ends it, and the observation is then made of
those of the last two frames that were reached, or is the previous observation when neither was.

Sticky actions are drawn here, not in the emulator: its own saved state leaves out which action it last executed, so that one
restored state in four or so would go wrong under them. The draws are the emulator's: two a frame, of MT19937(seed).
"""

import re
import zlib
from typing import Any

import ale_py
import cv2
import numpy as np
from ale_py import roms

from stormfast.config import EnvConfig
from stormfast.envs.sequential import Game, SequentialVectorEnv, check_arrays
from stormfast.envs.vector import OBS_SHAPE

_NOOP = ale_py.Action.NOOP
_SAVED = {"crc": 1, "executed": 1, "noops": 625, "sticks": 625}  # int64 arrays of a state, and their lengths


class AtariGame(Game):
    """One emulator with its preprocessing.

    Args:
        game: a name of stormfast.games.SCORES.
        config: the rules, already checked.
        seed: int32, of the emulator's random numbers and of the no-op counts.
    """

    def __init__(self, game: str, config: EnvConfig, seed: int) -> None:
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.setInt("random_seed", seed)
        self._ale.loadROM(str(roms.get_rom_path(rom_name(game))))
        self._actions = self._ale.getMinimalActionSet()
        super().__init__(len(self._actions))
        self._config = config
        self._identity = f"ale-py {ale_py.__version__}, {game}"
        self._noops, self._sticks = _mt19937(seed), _mt19937(seed)
        self._sticky = float(np.float32(config.sticky))  # as envpool rounds it
        self._executed = _NOOP  # in the last frame
        # To go back to the state just after loading re-seeds as loading again would, in 50 us instead of 70 ms.
        self._seeded = self._ale.cloneState(include_rng=True), self._noops.state, self._sticks.state
        self._frames = np.empty((2, *self._ale.getScreenDims(), 3), np.uint8)  # [2, H, W, 3]
        self._small = np.empty((*OBS_SHAPE[1:], 3), np.uint8)  # [64, 64, 3]

    def reset(self) -> None:
        ale = self._ale
        if self._config.same_seed_resets:
            emulator, self._noops.state, self._sticks.state = self._seeded
            ale.restoreState(emulator)
        self._reset_game()
        for _ in range(1 + _draw(self._noops, self._config.noop_max)):
            self._act(_NOOP)
            if ale.game_over():
                self._reset_game()
        ale.getScreenRGB(self._frames[0])
        self._observe(1)
        self.elapsed, self.lives = 0, ale.lives()
        self.terminated = self.truncated = False

    def step(self, action: int) -> float:
        ale, act = self._ale, self._actions[action]
        reward = num_frames = 0
        for left in range(self._config.frame_skip, 0, -1):
            reward += self._act(act)
            if left <= 2:
                ale.getScreenRGB(self._frames[num_frames])
                num_frames += 1
            if ale.game_over():
                break
        if num_frames:
            self._observe(num_frames)
        self.elapsed, self.lives = self.elapsed + 1, ale.lives()
        self.terminated, self.truncated = ale.game_over(), self.elapsed >= self._config.max_episode_steps
        return float(reward)

    def _reset_game(self) -> None:
        self._ale.reset_game()
        self._executed = _NOOP

    def _act(self, action: ale_py.Action) -> int:
        """Plays one frame: of this action, or of the one before again if that sticks."""
        if self._sticky:
            draw, _ = self._sticks.random_raw(2).tolist()  # the second is for the other player
            if draw / 2**32 < self._sticky:
                action = self._executed
        self._executed = action
        return self._ale.act(action)

    def _observe(self, num_frames: int) -> None:
        """Makes the observation of the first one or two of self._frames."""
        frame = self._frames[0]
        if num_frames == 2:
            np.maximum(frame, self._frames[1], out=frame)
        cv2.resize(frame, OBS_SHAPE[1:], dst=self._small, interpolation=cv2.INTER_AREA)
        self.obs = self._small.transpose(2, 0, 1).copy(order="C")  # [64, 64, 3] -> [3, 64, 64]

    def save(self) -> dict[str, np.ndarray]:
        emulator = self._ale.cloneState(include_rng=True).serialize()  # with its random numbers
        return {
            "identity": _array(self._identity.encode()),
            "emulator": _array(emulator),
            "crc": np.array([zlib.crc32(emulator)], np.int64),
            "executed": np.array([self._executed.value], np.int64),
            "noops": _words(self._noops),
            "sticks": _words(self._sticks),
        }

    def load(self, state: dict[str, np.ndarray]) -> None:
        check_arrays(state, {"identity": (np.uint8, (-1,)), "emulator": (np.uint8, (-1,))} | {name: (np.int64, (n,)) for name, n in _SAVED.items()})
        identity, emulator = state["identity"].tobytes().decode(errors="replace"), state["emulator"].tobytes()
        if identity != self._identity:
            raise ValueError(f"it must come from {self._identity}, got {identity}")
        if zlib.crc32(emulator) != state["crc"][0]:  # ale-py reads damaged bytes without checking them
            raise ValueError("the emulator's bytes must be those that were saved, but their checksum differs")
        self._ale.restoreState(ale_py.ALEState(emulator))
        self._executed = ale_py.Action(int(state["executed"][0]))
        _set_words(self._noops, state["noops"])
        _set_words(self._sticks, state["sticks"])

    def close(self) -> None:
        del self._ale


class AleVectorEnv(SequentialVectorEnv):
    """N copies of an Atari game; environment k is seeded with seed + k."""

    def __init__(self, game: str, config: EnvConfig, *, num_envs: int, seed: int) -> None:
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner for each emulator
        super().__init__([AtariGame(game, config, seed + k) for k in range(num_envs)], "ale")


def rom_name(game: str) -> str:
    """'UpNDown' -> 'up_n_down', the name of the game's ROM."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", game).lower()


def _array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8).copy()


def _mt19937(seed: int) -> np.random.MT19937:
    """C++'s std::mt19937(seed), whose seeding numpy's legacy generator shares."""
    legacy: Any = np.random.RandomState(seed).get_state(legacy=False)
    bits = np.random.MT19937()
    bits.state = {"bit_generator": "MT19937", "state": legacy["state"]}
    return bits


def _words(bits: np.random.MT19937) -> np.ndarray:
    """[625] int64: the generator's 624 words and its position in them."""
    state: Any = bits.state["state"]
    return np.append(state["key"].astype(np.int64), state["pos"])


def _set_words(bits: np.random.MT19937, words: np.ndarray) -> None:
    bits.state = {"bit_generator": "MT19937", "state": {"key": words[:-1].astype(np.uint32), "pos": int(words[-1])}}


def _draw(bits: np.random.MT19937, n: int) -> int:
    """Uniform in [0, n), with the draws of libstdc++'s uniform_int_distribution (Lemire, arXiv 1805.10941)."""
    product = int(bits.random_raw()) * n
    while product % 2**32 < 2**32 % n:  # a few of the 2**32 values would make the low numbers likelier
        product = int(bits.random_raw()) * n
    return product >> 32
