"""Gymnasium games as vector environments: built-in, registered with gymnasium, and broken in every way."""

import importlib.util
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from stormfast.envs import make_env
from stormfast.envs.gymnasium_backend import GymnasiumVectorEnv
from stormfast.errors import UserError
from tests.envs.rules import rules


class Counter(gymnasium.Env):
    """Shows its step count in red, its seed in green, its last action in blue, always in the same array; three lives.

    `changes` replace what reset() and step() return, by name.
    """

    def __init__(self, frames=None, actions=None, render_mode=None, rendered=None, **changes):
        self.observation_space = frames or Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = actions or Discrete(5)
        self.render_mode, self.rendered, self.changes = render_mode, rendered, changes
        self.frame = np.zeros((64, 64, 3), np.uint8)
        self.seeds = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.t = 0
        self.frame[:] = [0, self.seeds[0], 255]
        return self.changes.get("reset", (self.frame, {"lives": 3}))

    def step(self, action):
        self.t += 1
        self.action = action
        self.frame[:] = [self.t, self.seeds[0], np.sum(action)]
        step = {"obs": self.frame, "reward": 0.5 * np.sum(action), "terminated": self.t == 9, "truncated": False}
        step |= {"info": {"lives": 3 - self.t // 3}}
        return self.changes.get("step", tuple((step | self.changes)[name] for name in step))

    def render(self):
        if isinstance(self.rendered, Exception):
            raise self.rendered
        return self.rendered


def made(num_envs: int = 2, env: dict[str, Any] | None = None, **settings: Any) -> tuple[Any, list[Counter]]:
    """A vector environment and the copies in it. env: arguments of each copy."""
    copies: list[Counter] = []

    def make(render: bool) -> Counter:
        copies.append(Counter(**(env or {})))
        return copies[-1]

    return GymnasiumVectorEnv("G", make, rules(**settings)[0], num_envs=num_envs, seed=20), copies


def test_frames_rewards_lives_and_ends() -> None:
    env, copies = made()
    first = env.reset()
    assert first.obs[:, :, 0, 0].tolist() == [[0, 20, 255], [0, 21, 255]]
    steps = [env.step(np.array([1, 4])) for _ in range(10)]
    # channels first; the game's array is not kept
    assert steps[3].obs[:, :, 63, 63].tolist() == [[4, 20, 1], [4, 21, 4]]
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


def test_actions_reach_the_game_as_its_own() -> None:
    env, copies = made(1, {"actions": MultiDiscrete([2, 3])})
    assert env.num_actions == 6
    env.reset()
    env.step(np.array([5]))
    assert copies[0].action.tolist() == [1, 2]
    env, copies = made(1, {"actions": Discrete(3, start=-1)})
    env.reset()
    env.step(np.array([0]))
    assert copies[0].action == -1


def test_an_end_of_the_games_own() -> None:
    env, _ = made(1, {"truncated": True})
    env.reset()
    step = env.step(np.array([0]))
    assert step.truncated.all() and not step.terminated.any()


# --- rendered games -------------------------------------------------------------------------------------------------

RENDERS = {"frames": Box(-1, 1, (4,)), "render_mode": "rgb_array"}


def test_rendered_frames() -> None:
    picture = np.full((100, 150, 3), 7, np.uint8)
    env, _ = made(1, RENDERS | {"rendered": picture}, render_obs=True)
    assert (env.reset().obs == 7).all()
    picture[:] = 9
    assert (env.step(np.array([0])).obs == 9).all()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"render_mode": None}, 'G must have render_mode "rgb_array" for --env.render-obs, got None'),
        ({"render_mode": "human"}, "got 'human'"),
        ({"rendered": None}, r"G must give an array from render\(\), got NoneType"),
        ({"rendered": np.zeros(3)}, r"got float64 of shape \(3,\)"),
        ({"rendered": gymnasium.error.DependencyNotInstalled("pip install pygame")}, "rendered: pip install pygame"),
    ],
)
def test_games_that_cannot_be_rendered(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        made(1, RENDERS | change, render_obs=True)[0].reset()
    assert "\n" not in str(caught.value)


class Bars(gymnasium.Env):
    """Vector observations, drawn only when it is made to draw, as gymnasium's classic-control games are."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (an instance variable to gymnasium)
    observation_space = Box(-1, 1, (2,))
    action_space = Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), 1.0, False, False, {}

    def render(self) -> np.ndarray:
        return np.full((40, 60, 3), 5, np.uint8)


def test_registered_with_gymnasium(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    gymnasium.register("test/Bars-v0", entry_point=Bars, max_episode_steps=6)
    env = make_env("gym:test/Bars-v0", *rules(render_obs=True), num_envs=2, backend="auto", seed=0)
    assert (env.reset().obs == 5).all()
    steps = [env.step(np.array([0, 1])) for _ in range(7)]
    assert [bool(step.truncated.all()) for step in steps] == [t == 6 for t in range(1, 8)]  # its own time limit
    env.close()
    with pytest.raises(UserError, match=r"gym:test/Bars-v0 must show pixels.*--env.render-obs"):
        make_env("gym:test/Bars-v0", *rules(), num_envs=1, backend="auto", seed=0)


@pytest.mark.skipif(importlib.util.find_spec("pygame") is None, reason="classic control draws with pygame")
@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCar-v0", "Acrobot-v1"])
def test_classic_control(name: str) -> None:
    env = make_env(f"gym:{name}", *rules(render_obs=True), num_envs=2, backend="auto", seed=0)
    first = env.reset()
    assert first.obs.std() > 1
    steps = [env.step(np.array([1, 1])) for _ in range(8)]
    assert (steps[-1].obs != first.obs).any()
    env.close()


# --- games that break their word ------------------------------------------------------------------------------------

FRAME = np.zeros((64, 64, 3), np.uint8)
BROKEN = [
    ({"reset": FRAME}, r"must return \(observation, info\) from reset\(\), got ndarray of shape"),
    ({"step": (FRAME, 0.0, False, {})}, r"must return \(observation, reward, .*got tuple of 4"),
    ({"step": None}, "got NoneType"),
    ({"obs": FRAME.astype(np.float32)}, r"G must show uint8 of shape \(64, 64, 3\) at every step.*got float32"),
    ({"obs": FRAME[:60]}, r"got uint8 of shape \(60, 64, 3\)"),
    ({"info": None}, "must return a dict as info, got NoneType"),
    ({"reward": float("nan")}, "G must give a finite number as reward, got nan at step 1"),
    ({"reward": float("inf")}, "got inf"),
    ({"reward": None}, r"got None \(NoneType\)"),
    ({"reward": "many"}, r"got 'many' \(str\)"),
    ({"reward": 10**400}, r"finite number as reward, got 10+ \(int\) at"),
    ({"reward": 1e39}, r"finite number as reward, got 1e\+39 at.*float32 must hold it"),
    ({"obs": FRAME.astype(np.uint16)}, "must show uint8 of shape .* got uint16"),
    ({"obs": [[1, 2], [3]]}, "must show uint8 of shape .* got object"),
    ({"terminated": np.zeros(2, bool)}, r"must return True or False as terminated, got array.*of shape \(2,\)"),
    ({"terminated": np.zeros(0, bool)}, r"must return True or False as terminated, got array.*of shape \(0,\)"),
    ({"terminated": "no"}, r"must return True or False as terminated, got 'no' \(str\) at step 1"),
    ({"truncated": None}, "must return True or False as truncated, got None"),
    ({"truncated": float("nan")}, "must return True or False as truncated, got nan"),
    ({"info": {"lives": None}}, r'must give a whole number as info\["lives"\], got None'),
    ({"info": {"lives": "three"}}, "got 'three' .*; leave it out where the game has no lives"),
    ({"reward": np.zeros(2)}, r"got array.*\(ndarray of shape \(2,\)\)"),
]


def reset_and_step(env: GymnasiumVectorEnv) -> None:
    env.reset()
    env.step(np.array([0]))


@pytest.mark.parametrize(("changes", "expected"), BROKEN, ids=lambda case: str(case)[:30])
def test_a_game_that_breaks_its_word(changes: dict[str, Any], expected: str) -> None:
    env, _ = made(1, changes)
    with pytest.raises(UserError, match=expected) as caught:
        reset_and_step(env)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", [True, np.True_, 1, 1.0, np.array(True), np.array([1])])
def test_an_end_of_any_type_that_means_one(flag: Any) -> None:
    env, _ = made(1, {"terminated": flag, "truncated": np.array(0)})
    env.reset()
    step = env.step(np.array([0]))
    assert step.terminated.tolist() == [True]
    assert step.truncated.tolist() == [False]


def test_an_error_of_the_games_own_passes_through() -> None:
    env, copies = made(1)
    env.reset()
    copies[0].step = lambda action: 1 // 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        env.step(np.array([0]))


# --- saving ---------------------------------------------------------------------------------------------------------


def test_a_game_without_state() -> None:
    env, _ = made()
    env.reset()
    assert env.state() is None
    with pytest.raises(UserError, match="no state to load"):
        env.load_state({"env0.obs": np.zeros(1), "env1.obs": np.zeros(1)})


@pytest.mark.parametrize("state", [[1, 2], {"t": 3}, {"t": np.array(["a"])}])
def test_get_state_that_means_something_else_shows_at_once(monkeypatch: pytest.MonkeyPatch, state: Any) -> None:
    monkeypatch.setattr(Counter, "get_state", lambda self: state, raising=False)
    monkeypatch.setattr(Counter, "set_state", lambda self, state: None, raising=False)
    with pytest.raises(UserError, match=r"dict of numpy arrays of numbers from get_state\(\).*rename it"):
        made(1)[0].reset()


def test_catch_state_goes_on_exactly() -> None:
    settings = rules(max_episode_steps=30)
    env = make_env("Catch", *settings, num_envs=3, backend="auto", seed=0)
    env.reset()
    rng = np.random.default_rng(0)
    for _ in range(17):
        env.step(rng.integers(3, size=3))
    state, actions = env.state(), rng.integers(3, size=(90, 3))
    assert state is not None
    copies = {name: array.copy() for name, array in state.items()}
    expected = [env.step(action) for action in actions]
    other = make_env("Catch", *settings, num_envs=3, backend="auto", seed=77)
    other.load_state(copies)
    for want, action in zip(expected, actions, strict=True):
        got = other.step(action)
        np.testing.assert_array_equal(got.obs, want.obs)
        np.testing.assert_array_equal(got.reward, want.reward)
        np.testing.assert_array_equal(got.truncated, want.truncated)
    assert sum(step.truncated.sum() for step in expected) >= 6
    with pytest.raises(UserError, match="environment 2 does not fit: a state of Catch must be"):
        other.load_state({name: array for name, array in copies.items() if name != "env2.game.rng"})
