"""The ale backend against envpool, frame for frame, and against itself across a save."""

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ale_py
import cv2
import envpool
import numpy as np
import pytest
from ale_py import roms
from safetensors.numpy import load_file, save_file

from stormfast.envs import make_env
from stormfast.envs.ale_backend import AleVectorEnv, _draw, _mt19937, rom_name
from stormfast.envs.games import ATARI_100K
from stormfast.errors import UserError
from stormfast.records import EnvStep
from tests.envs.rules import Rules, rules


def assert_equal(a: EnvStep, b: EnvStep, where: str) -> None:
    for field in dataclasses.fields(EnvStep):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=f"{field.name} {where}")


def compare(
    game: str, config: Rules, num_steps: int, *, num_envs: int = 1, seed: int = 3, restart_at: int | None = None
) -> dict[str, int]:
    """Steps both backends with the same random actions; returns how often each flag was seen."""
    ale = make_env(game, *config, num_envs=num_envs, backend="ale", seed=seed)
    pool = make_env(game, *config, num_envs=num_envs, backend="envpool", seed=seed)
    assert isinstance(ale, AleVectorEnv)
    assert ale.num_actions == pool.num_actions
    assert_equal(ale.reset(), pool.reset(), "at reset")
    rng, seen = np.random.default_rng(0), dict.fromkeys(("terminated", "truncated", "life_lost", "is_first"), 0)
    for t in range(num_steps):
        if t == restart_at:
            assert_equal(ale.reset(), pool.reset(), f"at reset before step {t}")
        action = rng.integers(ale.num_actions, size=num_envs)
        a, b = ale.step(action), pool.step(action)
        assert_equal(a, b, f"of {game} at step {t}")
        assert [g.lives for g in ale._envs] == pool._lives.tolist()  # type: ignore[attr-defined]
        for name in seen:
            seen[name] += int(getattr(a, name).sum())
    ale.close(), pool.close()
    return seen


@pytest.mark.parametrize(
    ("game", "sticky", "num_steps"),
    [("Breakout", 0.0, 400), ("Breakout", 0.25, 400), ("RoadRunner", 0.25, 150), ("Pong", 0.0, 150)],
)
def test_bit_identical_to_envpool(game: str, sticky: float, num_steps: int) -> None:
    seen = compare(game, rules(sticky=sticky), num_steps)
    assert game != "Breakout" or (seen["terminated"] and seen["is_first"] and seen["life_lost"])
    assert not seen["truncated"]


def test_bit_identical_when_truncated_and_restarted() -> None:
    seen = compare("Breakout", rules(max_episode_steps=40, noop_max=7), 100, num_envs=4, seed=0, restart_at=55)
    assert seen["truncated"] >= 4
    assert seen["is_first"] >= 4


@pytest.mark.parametrize("frame_skip", [1, 2, 5])
def test_bit_identical_at_other_frame_skips(frame_skip: int) -> None:
    seen = compare("Breakout", rules(frame_skip=frame_skip, noop_max=1), 1000 // frame_skip)
    assert seen["terminated"]


@pytest.mark.slow
@pytest.mark.parametrize("sticky", [0.0, 0.25])
@pytest.mark.parametrize("game", ATARI_100K)
def test_bit_identical_on_every_game(game: str, sticky: float) -> None:
    compare(game, rules(sticky=sticky), 800, seed=11)
    compare(game, rules(sticky=sticky, max_episode_steps=40), 150, num_envs=3, seed=12)


@pytest.mark.slow
def test_bit_identical_over_many_terminal_frames() -> None:
    """A game over can fall on any of the four frames of a step, each with its own rule for the last observation."""
    assert (
        sum(
            compare(game, rules(), 3000, seed=21)["terminated"]
            for game in ("Breakout", "RoadRunner", "Asterix", "UpNDown")
        )
        > 40
    )


def test_against_envpool_itself() -> None:
    """Not through our wrapper: the oracle is envpool.make with its own names."""
    env = make_env("Assault", *rules(sticky=0.25), num_envs=2, backend="ale", seed=9)
    options = {"img_height": 64, "img_width": 64, "gray_scale": False, "stack_num": 1, "use_fire_reset": False}
    pool = envpool.make(
        "Assault-v5",
        env_type="gymnasium",
        num_envs=2,
        seed=9,
        noop_max=30,
        frame_skip=4,
        repeat_action_probability=0.25,
        **options,
    )
    np.testing.assert_array_equal(env.reset().obs, pool.reset()[0])
    rng = np.random.default_rng(1)
    for _ in range(150):
        action = rng.integers(7, size=2)
        step, (obs, reward, terminated, truncated, _) = env.step(action), pool.step(action.astype(np.int32))
        np.testing.assert_array_equal(step.obs, obs)
        np.testing.assert_array_equal(step.reward, reward)
        np.testing.assert_array_equal(step.terminated | step.truncated, terminated | truncated)


def test_draws_of_the_noop_stream() -> None:
    """The counts envpool was seen to play, and a redraw that only happens once in 2**32 / 16 draws."""
    bits = _mt19937(5489)
    assert int(bits.random_raw()) == 3499211612  # the first number of std::mt19937, by the C++ standard
    assert [_draw(bits, 1) for _ in range(3)] == [0, 0, 0]

    class Scripted:
        def __init__(self, *values: int) -> None:
            self.values = iter(values)

        def random_raw(self) -> int:
            return next(self.values)

    assert _draw(Scripted(0, 2**31 + 1), 30) == 15  # type: ignore[arg-type]  # 0 * 30 < 2**32 % 30: drawn again
    assert _draw(Scripted(2**32 - 1), 30) == 29  # type: ignore[arg-type]


def test_equal_seeds_equal_games_and_others_not() -> None:
    def frames(seed: int, num_envs: int) -> list[np.ndarray]:
        env = make_env("Breakout", *rules(sticky=0.25), num_envs=num_envs, backend="ale", seed=seed)
        env.reset()
        return [env.step(np.full(num_envs, t % 4)).obs for t in range(40)]

    four, again, second = np.stack(frames(7, 4)), np.stack(frames(7, 4)), np.stack(frames(8, 1))
    np.testing.assert_array_equal(four, again)
    np.testing.assert_array_equal(four[:, 1], second[:, 0])  # environment k has seed + k
    assert (four[:, 0] != four[:, 1]).any()


# --- no no-ops -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("game", ["pong", "breakout"])
def test_without_noops_an_episode_starts_at_the_emulators_reset(game: str) -> None:
    """The oracle is a bare emulator: reset_game(), a look, and frame_skip frames an action."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.25)
    ale.setInt("random_seed", 5)
    ale.loadROM(str(roms.get_rom_path(game)))
    actions = ale.getMinimalActionSet()
    env = make_env(
        game.capitalize(), *rules(noop_max=0, sticky=0.25, max_episode_steps=20), num_envs=1, backend="ale", seed=5
    )

    def seen(frames: list[np.ndarray]) -> np.ndarray:
        return cv2.resize(np.maximum.reduce(frames), (64, 64), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)

    step, rng = env.reset(), np.random.default_rng(2)
    for _ in range(3):
        ale.reset_game()
        np.testing.assert_array_equal(step.obs[0], seen([ale.getScreenRGB()]))
        for _ in range(20):
            action, frames = int(rng.integers(len(actions))), []
            for _ in range(4):
                ale.act(actions[action])
                frames.append(ale.getScreenRGB())
            step = env.step(np.array([action]))
            np.testing.assert_array_equal(step.obs[0], seen(frames[-2:]))
        assert step.truncated[0]
        step = env.step(np.array([0]))


def test_without_noops_nothing_is_drawn() -> None:
    env = make_env("Pong", *rules(noop_max=0), num_envs=1, backend="ale", seed=5)
    env.reset()
    env.reset()
    state = env.state()
    assert state is not None
    assert state["env0.game.noops"][-1] == 624  # the position of a generator that has not yet made a number


# --- same_seed_resets ----------------------------------------------------------------------------------------------


def episodes(same_seed: bool) -> list[bytes]:
    """Four episodes of Breakout under the same actions."""
    config = rules(sticky=0.25, max_episode_steps=30, same_seed_resets=same_seed)
    env = make_env("Breakout", *config, num_envs=2, backend="ale", seed=4)
    found, frames = [], [env.reset().obs]
    for _ in range(4):
        frames += [env.step(np.full(2, t % 4)).obs for t in range(30)]
        found.append(np.stack(frames).tobytes())
        frames = [env.step(np.zeros(2, np.int64)).obs]
    env.close()
    return found


def test_same_seed_resets_repeat_the_episode() -> None:
    same, other = episodes(same_seed=True), episodes(same_seed=False)
    assert len(set(same)) == 1
    assert len(set(other)) == 4
    assert same[0] == other[0]


# --- state ---------------------------------------------------------------------------------------------------------

CONFIG = rules(sticky=0.25, max_episode_steps=60)
RESUME = """
import sys, hashlib, dataclasses
import numpy as np
from safetensors.numpy import load_file
from stormfast.settings import AtariConfig, EnvConfig
from stormfast.envs import make_env
rules = EnvConfig(max_episode_steps=60), AtariConfig(sticky=0.25)
env = make_env(sys.argv[1], *rules, num_envs=2, backend="ale", seed=6)
env.load_state(load_file(sys.argv[2]))
rng, digest = np.random.default_rng(99), hashlib.sha256()
for _ in range(int(sys.argv[3])):
    step = env.step(rng.integers(env.num_actions, size=2))
    for field in dataclasses.fields(step):
        digest.update(getattr(step, field.name).tobytes())
print(digest.hexdigest())
"""


def play(env: object, num_steps: int, seed: int) -> list[EnvStep]:
    rng = np.random.default_rng(seed)
    return [env.step(rng.integers(env.num_actions, size=2)) for _ in range(num_steps)]  # type: ignore[attr-defined]


def test_state_goes_on_exactly_in_a_new_process(tmp_path: Path) -> None:
    game = "MsPacman"
    env = make_env(game, *CONFIG, num_envs=2, backend="ale", seed=6)
    env.reset()
    play(env, 47, seed=1)
    state = env.state()
    assert state is not None
    save_file(state, tmp_path / "env.safetensors")
    digest = hashlib.sha256()
    for step in play(env, 120, seed=99):  # over the time limit and two resets
        for field in dataclasses.fields(step):
            digest.update(getattr(step, field.name).tobytes())
    command = [sys.executable, "-c", RESUME, game, str(tmp_path / "env.safetensors"), "120"]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert (
        subprocess.run(command, capture_output=True, text=True, check=True, env=paths).stdout.strip()
        == digest.hexdigest()
    )


def check_every_save(game: str, num_steps: int, path: Path, **settings: Any) -> None:
    """Saves before each of num_steps random steps, goes back to each save in another object and takes that step again.

    Each of them, as a state that leaves out the last executed action is right three times of four; backwards, so that
    nothing is right only because the other object has just come from there.
    """
    config = rules(sticky=0.25, max_episode_steps=num_steps // 3, **settings)
    env = make_env(game, *config, num_envs=2, backend="ale", seed=6)
    other = make_env(game, *config, num_envs=2, backend="ale", seed=1234)  # the seed is in the state
    env.reset()
    actions = np.random.default_rng(1).integers(env.num_actions, size=(num_steps, 2))
    states, steps = [], []
    for action in actions:
        states.append(env.state())
        steps.append(env.step(action))
    for t in reversed(range(num_steps)):
        save_file(states[t] or {}, path)
        other.load_state(load_file(path))
        assert_equal(other.step(actions[t]), steps[t], f"of {game} after the save at step {t}")
    assert sum(step.truncated.any() for step in steps) >= 2
    env.load_state(states[3] or {})  # the same object, back in time
    for t in range(3, num_steps):
        assert_equal(env.step(actions[t]), steps[t], f"of {game} at step {t}")


def test_every_save_of_a_run_goes_on_exactly(tmp_path: Path) -> None:
    check_every_save("Seaquest", 60, tmp_path / "env.safetensors")


def test_every_save_under_the_reference_protocol_goes_on_exactly(tmp_path: Path) -> None:
    check_every_save("Breakout", 30, tmp_path / "env.safetensors", noop_max=0, same_seed_resets=True)


@pytest.mark.slow
@pytest.mark.parametrize("game", ATARI_100K)
def test_every_save_goes_on_exactly_on_every_game(game: str, tmp_path: Path) -> None:
    check_every_save(game, 90, tmp_path / "env.safetensors")


def test_a_state_is_plain_arrays() -> None:
    env = make_env("Pong", *CONFIG, num_envs=2, backend="ale", seed=6)
    env.reset()
    state = env.state()
    assert state is not None
    for name, array in state.items():
        assert type(array) is np.ndarray and array.flags.c_contiguous, name
        assert array.dtype in (np.uint8, np.int64), name


def test_a_state_that_does_not_fit_is_refused() -> None:
    env = make_env("Pong", *CONFIG, num_envs=2, backend="ale", seed=6)
    env.reset()
    play(env, 20, seed=1)
    state = env.state()
    assert state is not None

    def refused(changed: dict[str, np.ndarray], message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            env.load_state(changed)
        assert "\n" not in str(caught.value)

    refused({}, "must be of 2 environments, got one of 0")
    refused(
        {name: array for name, array in state.items() if name.startswith("env0.")},
        "must be of 2 environments, got one of 1",
    )
    refused(
        {name: array for name, array in state.items() if name != "env1.game.noops"},
        "environment 1 does not fit: it must hold",
    )
    refused(
        state | {"env0.obs": state["env0.obs"].astype(np.int32)},
        r"'obs' must be uint8 of shape \(3, 64, 64\), got int32",
    )
    refused(state | {"env0.counters": np.zeros(3, np.int64)}, r"'counters' must be int64 of shape \(4,\)")
    refused(state | {"env0.game.noops": np.zeros(624, np.int64)}, r"'noops' must be int64 of shape \(625,\)")
    damaged = state["env0.game.emulator"].copy()
    damaged[100] ^= 1
    refused(state | {"env0.game.emulator": damaged}, "checksum differs")
    refused(state | {"env0.game.emulator": damaged[:50]}, "checksum differs")
    for name in ("actions", "ram", "noops"):
        refused(
            state | {f"env1.game.{name}": np.ones_like(state[f"env1.game.{name}"])},
            "environment 1 does not fit: .* checksum differs",
        )
    other = make_env("Breakout", *CONFIG, num_envs=2, backend="ale", seed=6)
    other.reset()
    refused(other.state() or {}, "must come from ale-py .*, Pong, got ale-py .*, Breakout")
    other_rules = make_env(
        "Pong", *rules(sticky=0.25, max_episode_steps=60, frame_skip=3), num_envs=2, backend="ale", seed=6
    )
    with pytest.raises(UserError, match="RAM differs; were the rules changed"):
        other_rules.load_state(state)
    env.load_state(state)


# --- life_lost, and game over on the last step -----------------------------------------------------------------------


def test_life_lost_marks_each_lost_life_and_no_reset() -> None:
    env = make_env("Breakout", *rules(), num_envs=1, backend="ale", seed=2)
    env.reset()
    lost, episode = [], 0
    rng = np.random.default_rng(3)
    while len(lost) < 10:
        step = env.step(rng.integers(4, size=1))
        if step.is_first[0]:
            assert not step.life_lost[0]
            episode += 1
        if step.life_lost[0]:
            lost.append(episode)
            assert bool(step.terminated[0]) == (len(lost) % 5 == 0)  # five lives; the last one ends the game
    assert lost == [0] * 5 + [1] * 5


@pytest.mark.parametrize("backend", ["ale", "envpool"])
def test_game_over_on_the_step_of_the_time_limit_is_both(backend: str) -> None:
    """envpool's own terminated flag would say False, and the learner would go on past a game over."""

    def length(limit: int) -> tuple[int, EnvStep]:
        env = make_env("Breakout", *rules(max_episode_steps=limit), num_envs=1, backend=backend, seed=2)
        env.reset()
        rng, t = np.random.default_rng(3), 0
        while True:
            t, step = t + 1, env.step(rng.integers(4, size=1))
            if step.terminated[0] or step.truncated[0]:
                return t, step

    t, step = length(27_000)
    assert step.terminated[0]
    assert not step.truncated[0]
    same, step = length(t)
    assert same == t
    assert step.terminated[0]
    assert step.truncated[0]
    assert step.life_lost[0]
    shorter, step = length(t - 1)
    assert shorter == t - 1
    assert step.truncated[0]
    assert not step.terminated[0]


def test_rom_names() -> None:
    assert [rom_name(game) for game in ("Pong", "UpNDown", "MsPacman", "KungFuMaster")] == [
        "pong",
        "up_n_down",
        "ms_pacman",
        "kung_fu_master",
    ]
