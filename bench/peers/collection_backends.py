"""What bench/peers/collection.py compares: each way to step a game, behind stormfast's VectorEnv, and the check that all show the same game.

N environments   A actions

Two ways each: through VectorEnv, as training pays for it (actions checked, [N, 3, 64, 64] frames that nobody overwrites), and the
library alone, in its own layout and types.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ale_py
import cv2
import gymnasium
import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import AtariPreprocessing

from stormfast.envs import make_env
from stormfast.envs.ale_backend import rom_name
from stormfast.envs.catch import Catch
from stormfast.envs.games import BUILT_IN
from stormfast.envs.vector import VectorEnv, first_step
from stormfast.records import OBS_SHAPE, EnvStep
from stormfast.settings import EnvConfig

SIZE = OBS_SHAPE[1:]
CHECK_STEPS = 30  # before a game can be over
CHECK_ENVS = 2  # the first of them
TOLERANCE = 1.0  # mean absolute difference in levels of 0..255: another rounding passes, another filter, layout or game does not


class AdaptedVectorEnv(VectorEnv):
    """A gymnasium vector environment whose frames are [N, 64, 64, 3] or [N, 1, 64, 64, 3], with NEXT_STEP autoreset.

    Args:
        library: made, not yet reset.
        seed: of the first copy; later resets draw on.
    """

    def __init__(self, library: Any, backend: str, seed: int) -> None:
        super().__init__(library.num_envs, int(library.single_action_space.n), backend)
        self.library = library
        self._seed: int | None = seed
        self._lives = np.zeros(self.num_envs, np.int64)
        self._over = np.zeros(self.num_envs, bool)

    def _reset(self) -> EnvStep:
        frames, info = self.library.reset(seed=self._seed)
        self._seed, self._lives, self._over = None, self._lives_in(info), np.zeros(self.num_envs, bool)
        return first_step(self._channels_first(frames))

    def _step(self, action: np.ndarray) -> EnvStep:
        is_first = self._over
        frames, reward, terminated, truncated, info = self.library.step(action)
        lives = self._lives_in(info)
        life_lost, self._lives = (lives < self._lives) & ~is_first, lives
        self._over = terminated | truncated
        return EnvStep(
            self._channels_first(frames), reward.astype(np.float32), terminated, truncated, life_lost, is_first
        )

    def _lives_in(self, info: dict[str, Any]) -> np.ndarray:
        return np.asarray(info.get("lives", np.zeros(self.num_envs, np.int64)))

    def _channels_first(self, frames: np.ndarray) -> np.ndarray:
        return (
            frames.reshape(self.num_envs, *SIZE, 3).transpose(0, 3, 1, 2).copy(order="C")
        )  # [N, 64, 64, 3] -> [N, 3, 64, 64]

    def _close(self) -> None:
        self.library.close()


def single_env(game: str, config: EnvConfig) -> gymnasium.Env[Any, Any]:
    """One copy of a game with gymnasium's own Atari preprocessing, [64, 64, 3]; built-in games need none."""
    if game in BUILT_IN:
        return Catch()
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner for each emulator
    gymnasium.register_envs(ale_py)
    env: gymnasium.Env[Any, Any] = gymnasium.make(
        f"ALE/{game}-v5",
        frameskip=1,
        repeat_action_probability=config.sticky,
        full_action_space=False,
        max_num_frames_per_episode=config.max_episode_steps * config.frame_skip,
        disable_env_checker=True,  # it costs time at each step
    )
    return AtariPreprocessing(
        env, noop_max=config.noop_max, frame_skip=config.frame_skip, screen_size=SIZE[0], grayscale_obs=False
    )


def _ours(backend: str, game: str, config: EnvConfig, num_envs: int, seed: int, alone: bool) -> VectorEnv:
    return make_env(game, config, num_envs=num_envs, backend=backend, seed=seed)


def _gymnasium(kind: type, game: str, config: EnvConfig, num_envs: int, seed: int, alone: bool) -> VectorEnv:
    """Its copy of the frames is left out where the adapter makes one anyway."""
    return AdaptedVectorEnv(kind([partial(single_env, game, config)] * num_envs, copy=alone), kind.__name__, seed)


def _atari_vector(game: str, config: EnvConfig, num_envs: int, seed: int, alone: bool) -> VectorEnv:
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    library = AtariVectorEnv(
        rom_name(game),
        num_envs,
        img_height=SIZE[0],
        img_width=SIZE[1],
        grayscale=False,
        stack_num=1,
        frameskip=config.frame_skip,
        noop_max=config.noop_max,
        repeat_action_probability=config.sticky,
        max_num_frames_per_episode=config.max_episode_steps * config.frame_skip,
        reward_clipping=False,
        use_fire_reset=False,
    )
    return AdaptedVectorEnv(library, "AtariVectorEnv", seed)


@dataclass(frozen=True)
class Backend:
    """One way to step games.

    make(game, config, num_envs, seed, alone) -> VectorEnv; `alone` when its library is to be stepped without the VectorEnv.
    """

    make: Callable[[str, EnvConfig, int, int, bool], VectorEnv]
    atari: bool = True
    built_in: bool = False
    library: str = ""  # the attribute of the VectorEnv that is the library; none where VectorEnv is all there is


BACKENDS = {
    "ale": Backend(partial(_ours, "ale")),
    "envpool": Backend(partial(_ours, "envpool"), library="_pool"),
    "gymnasium": Backend(partial(_ours, "auto"), atari=False, built_in=True),
    "AtariVectorEnv": Backend(_atari_vector, library="library"),
    "AsyncVectorEnv": Backend(partial(_gymnasium, AsyncVectorEnv), built_in=True, library="library"),
    "SyncVectorEnv": Backend(partial(_gymnasium, SyncVectorEnv), built_in=True, library="library"),
}
OURS = ("ale", "envpool", "gymnasium")  # what make_env can give


def backends_of(game: str) -> list[str]:
    """Those that can step a game, in the order of BACKENDS."""
    return [name for name, backend in BACKENDS.items() if (backend.built_in if game in BUILT_IN else backend.atari)]


def oracle_frames(game: str, config: EnvConfig, actions: list[int], start: int) -> tuple[np.ndarray, list[float]]:
    """The observations, [1 + steps, 3, 64, 64], and rewards of one episode, played plainly; no frame is skipped, pooled or resized but here.

    Args:
        start: no-op frames after the reset of an Atari game; the seed of a built-in game.
    """
    if game in BUILT_IN:
        env = Catch()
        shown = [env.reset(seed=start)[0]]
        played = [env.step(action) for action in actions]
        return np.stack([*shown, *(step[0] for step in played)]).transpose(0, 3, 1, 2), [step[1] for step in played]
    ale = _emulator(game)
    for _ in range(start):
        ale.act(ale_py.Action.NOOP)
    frames, rewards = [ale.getScreenRGB()], []
    for action in actions:
        last, reward = [], 0
        for _ in range(config.frame_skip):
            reward += ale.act(ale.getMinimalActionSet()[action])
            last.append(ale.getScreenRGB())
        frames.append(np.maximum.reduce(last[-2:]))
        rewards.append(float(reward))
    small = [cv2.resize(frame, SIZE, interpolation=cv2.INTER_AREA) for frame in frames]
    return np.stack(small).transpose(0, 3, 1, 2), rewards


def _emulator(game: str) -> ale_py.ALEInterface:
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(str(roms.get_rom_path(rom_name(game))))
    ale.reset_game()
    return ale


def check(env: VectorEnv, game: str, config: EnvConfig, seed: int) -> dict[str, Any]:
    """Plays the start of an episode, and compares what is seen with what an honest backend shows.

    Whose no-op draws differ play different starts: the oracle tries each number of no-op frames, and the nearest counts.

    Returns: honest, why (what is wrong, else what differs), max_difference and mean_difference (levels of 0..255), starts (a
        number of no-op frames, or a seed, for each environment compared).
    """
    first = env.reset()
    actions = np.random.default_rng(seed).integers(env.num_actions, size=(CHECK_STEPS, env.num_envs))
    steps = [env.step(action) for action in actions]
    seen = [first, *steps]
    kept = [step.obs.copy() for step in seen]
    wrong = {_wrong_type(step, env.num_envs) for step in seen} - {""}
    for action in actions[:3]:
        env.step(action)
    if all((obs == obs[:, :1]).all() for obs in kept if obs.ndim == 4):
        wrong.add("frames have no colours")
    if any(not np.array_equal(step.obs, copy) for step, copy in zip(seen, kept, strict=True)):
        wrong.add("a later step overwrites the frames")
    if wrong:
        return {
            "honest": False,
            "why": "; ".join(sorted(wrong)),
            "max_difference": None,
            "mean_difference": None,
            "starts": [],
        }
    nearest = [
        _nearest(game, config, [step.obs[i] for step in seen], steps, actions, i, seed)
        for i in range(min(env.num_envs, CHECK_ENVS))
    ]
    worst, mean = max(n[1] for n in nearest), max(n[0] for n in nearest)
    notes = []
    if worst:
        notes.append(
            f"frames differ by up to {worst} levels, {mean:.2g} on average{'' if mean <= TOLERANCE else ': another picture'}"
        )
    if rewards_differ := any(n[3] for n in nearest):
        notes.append("rewards differ")
    honest, why = mean <= TOLERANCE and not rewards_differ, "; ".join(notes)
    return {
        "honest": honest,
        "why": why,
        "max_difference": worst,
        "mean_difference": mean,
        "starts": [n[2] for n in nearest],
    }


def _wrong_type(step: EnvStep, num_envs: int) -> str:
    if step.obs.shape != (num_envs, *OBS_SHAPE) or step.obs.dtype != np.uint8:
        return f"frames must be uint8 {(num_envs, *OBS_SHAPE)}, got {step.obs.dtype} {step.obs.shape}"
    if not step.obs.flags.c_contiguous:
        return "frames are not contiguous"
    if step.reward.shape != (num_envs,) or step.reward.dtype != np.float32:
        return f"rewards must be float32 ({num_envs},), got {step.reward.dtype} {step.reward.shape}"
    return ""


def _nearest(
    game: str, config: EnvConfig, frames: list[np.ndarray], steps: list[EnvStep], actions: np.ndarray, i: int, seed: int
) -> tuple[float, int, int, bool]:
    """Mean and largest difference of environment i from the nearest oracle, its start, and whether rewards differ.

    Up to the end of the first episode alone: terminal frames inside a skip differ by design from library to library.
    """
    length = next((t for t, step in enumerate(steps) if step.terminated[i] or step.truncated[i]), len(steps))
    taken, rewards = [int(action[i]) for action in actions[:length]], [float(step.reward[i]) for step in steps[:length]]
    starts = [seed + i] if game in BUILT_IN else range(config.noop_max + 1)
    found = []
    for start in starts:
        oracle, oracle_rewards = oracle_frames(game, config, taken, start)
        difference = np.abs(oracle.astype(np.int16) - np.stack(frames[: length + 1]))
        found.append((float(difference.mean()), int(difference.max()), start, rewards != oracle_rewards))
        if found[-1][1] == 0 and not found[-1][3]:
            break
    return min(found)
