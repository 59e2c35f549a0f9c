"""The adapter for pixel games, tried on Catch and on a smaller one."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from stormfast.envs import make_env
from stormfast.envs.gymnasium_backend import GymnasiumVectorEnv
from stormfast.errors import UserError
from stormfast.settings import EnvConfig


class Counter(gymnasium.Env):
    """Shows its step count in red, its seed in green, its last action in blue, always in the same array; three lives."""

    def __init__(self, frames=None, actions=None):
        self.observation_space = frames or Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = actions or Discrete(5)
        self.frame = np.zeros((64, 64, 3), np.uint8)
        self.seeds = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.t = 0
        self.frame[:] = [0, self.seeds[0], 255]
        return self.frame, {"lives": 3}

    def step(self, action):
        self.t += 1
        self.frame[:] = [self.t, self.seeds[0], action]
        return self.frame, 0.5 * action, self.t == 9, False, {"lives": 3 - self.t // 3}


def made(num_envs: int = 2, **config: object) -> tuple[GymnasiumVectorEnv, list[Counter]]:
    copies: list[Counter] = []
    env = GymnasiumVectorEnv(
        lambda: copies.append(Counter()) or copies[-1], EnvConfig(**config), num_envs=num_envs, seed=20
    )
    return env, copies


def test_frames_rewards_lives_and_ends() -> None:
    env, copies = made()
    first = env.reset()
    assert first.obs[:, :, 0, 0].tolist() == [[0, 20, 255], [0, 21, 255]]
    steps = [env.step(np.array([1, 4])) for _ in range(10)]
    assert steps[3].obs[:, :, 63, 63].tolist() == [
        [4, 20, 1],
        [4, 21, 4],
    ]  # channels first; the game's array is not kept
    assert steps[3].reward.tolist() == [0.5, 2.0]
    assert [bool(step.life_lost[0]) for step in steps] == [t in (3, 6, 9) for t in range(1, 11)]
    assert [bool(step.terminated[1]) for step in steps] == [t == 9 for t in range(1, 11)]
    assert steps[9].is_first.all()
    assert not steps[9].reward.any()
    assert not steps[9].life_lost.any()
    assert [copy.seeds for copy in copies] == [[20, None], [21, None]]


def test_time_limit_and_same_seeds() -> None:
    env, copies = made(max_episode_steps=4, same_seed_resets=True)
    env.reset()
    steps = [env.step(np.array([0, 0])) for _ in range(10)]
    assert [bool(step.truncated[0]) for step in steps] == [t in (4, 9) for t in range(1, 11)]
    assert not any(step.terminated.any() for step in steps)
    assert [copy.seeds for copy in copies] == [[20, 20, 20], [21, 21, 21]]


def test_a_game_without_state() -> None:
    env, _ = made()
    env.reset()
    assert env.state() is None
    with pytest.raises(UserError, match="no state to load"):
        env.load_state({"env0.obs": np.zeros(1), "env1.obs": np.zeros(1)})


@pytest.mark.parametrize(
    ("frames", "actions", "message"),
    [
        (Box(0, 255, (84, 84, 3), np.uint8), None, "observations must be Box"),
        (Box(0, 255, (3, 64, 64), np.uint8), None, "observations must be Box"),
        (Box(0, 1, (64, 64, 3), np.float32), None, "observations must be Box"),
        (Discrete(4), None, "observations must be Box"),
        (None, Discrete(3, start=1), "actions must be Discrete and start at 0"),
        (None, Box(-1, 1, (2,)), "actions must be Discrete"),
        (None, MultiDiscrete([2, 2]), "actions must be Discrete"),
    ],
)
def test_a_game_that_does_not_fit(frames: object, actions: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GymnasiumVectorEnv(lambda: Counter(frames, actions), EnvConfig(), num_envs=1, seed=0)


def test_a_game_that_breaks_its_word() -> None:
    env, copies = made(1)
    env.reset()
    copies[0].frame = np.zeros((64, 64, 3), np.float32)
    with pytest.raises(ValueError, match=r"a frame must be uint8 of shape \(64, 64, 3\), got float32"):
        env.step(np.array([0]))


def test_catch_state_goes_on_exactly() -> None:
    config = EnvConfig(max_episode_steps=30)
    env = make_env("Catch", config, num_envs=3, backend="auto", seed=0)
    env.reset()
    rng = np.random.default_rng(0)
    for _ in range(17):
        env.step(rng.integers(3, size=3))
    state, actions = env.state(), rng.integers(3, size=(90, 3))
    assert state is not None
    copies = {name: array.copy() for name, array in state.items()}
    expected = [env.step(action) for action in actions]
    other = make_env("Catch", config, num_envs=3, backend="auto", seed=77)
    other.load_state(copies)
    for want, action in zip(expected, actions, strict=True):
        got = other.step(action)
        np.testing.assert_array_equal(got.obs, want.obs)
        np.testing.assert_array_equal(got.reward, want.reward)
        np.testing.assert_array_equal(got.truncated, want.truncated)
    assert sum(step.truncated.sum() for step in expected) >= 6
    with pytest.raises(UserError, match="environment 2 does not fit: a state of Catch must be"):
        other.load_state({name: array for name, array in copies.items() if name != "env2.game.rng"})
