"""What every backend must do alike: check actions, follow episodes with episodes, refuse calls out of order."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from stormfast.envs import make_env
from stormfast.envs.vector import VectorEnv
from stormfast.settings import AtariConfig, EnvConfig

# game, backend asked for, its name, A. Two environments each, episodes of 12 steps at most.
CASES = [("Pong", "ale", "ale", 6), ("Pong", "envpool", "envpool", 6), ("Catch", "auto", "gymnasium", 3)]
LIMIT = 12


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[2])
def env(request: pytest.FixtureRequest) -> Iterator[VectorEnv]:
    game, backend, name, num_actions = request.param
    made = make_env(game, EnvConfig(max_episode_steps=LIMIT), AtariConfig(), num_envs=2, backend=backend, seed=5)
    assert (made.num_envs, made.num_actions, made.backend) == (2, num_actions, name)
    yield made
    made.close()


def fresh(index: int) -> VectorEnv:
    game, backend, _, _ = CASES[index]
    return make_env(game, EnvConfig(max_episode_steps=LIMIT), AtariConfig(), num_envs=2, backend=backend, seed=5)


BAD_ACTIONS = [
    ([0, 0], "numpy array.*got list"),
    (1, "numpy array.*got int"),
    (np.zeros(2, np.float32), "integer dtype, got float32"),
    (np.array([np.nan, 0.0]), "integer dtype, got float64"),
    (np.zeros(2, bool), "integer dtype, got bool"),
    (np.array(0), r"shape \(2,\), got \(\)"),
    (np.zeros(1, np.int64), r"shape \(2,\), got \(1,\)"),
    (np.zeros(3, np.int64), r"shape \(2,\), got \(3,\)"),
    (np.zeros((2, 1), np.int64), r"shape \(2,\), got \(2, 1\)"),
    (np.zeros(0, np.int64), r"shape \(2,\), got \(0,\)"),
    (np.array([-1, 0]), r">= 0 and < \d, got \[-1, 0\]"),
    (np.array([0, 18]), r">= 0 and < \d, got \[0, 18\]"),
    (np.array([0, 2**31]), r">= 0 and < \d"),
    (np.array([0, 2**64 - 1], np.uint64), r">= 0 and < \d"),
]


@pytest.mark.parametrize(("action", "message"), BAD_ACTIONS, ids=range(len(BAD_ACTIONS)))
def test_bad_actions_never_reach_the_emulator(env: VectorEnv, action: object, message: str) -> None:
    env.reset()
    env.step(np.zeros(2, np.int64))  # envpool checks shapes at its first step only
    with pytest.raises(ValueError, match=message):
        env.step(action)  # type: ignore[arg-type]


def test_action_just_out_of_range(env: VectorEnv) -> None:
    env.reset()
    env.step(np.full(2, env.num_actions - 1))
    with pytest.raises(ValueError, match=f"< {env.num_actions}"):
        env.step(np.full(2, env.num_actions))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_any_integer_dtype(env: VectorEnv, dtype: type) -> None:
    env.reset()
    env.step(np.ones(2, dtype))


def test_shapes_and_dtypes(env: VectorEnv) -> None:
    for step in (env.reset(), env.step(np.zeros(2, np.int64))):
        assert step.obs.shape == (2, 3, 64, 64)
        assert step.obs.dtype == np.uint8
        assert step.obs.flags.c_contiguous
        assert step.obs.any()
        assert step.reward.shape == (2,)
        assert step.reward.dtype == np.float32
        for name in ("terminated", "truncated", "life_lost", "is_first"):
            flag = getattr(step, name)
            assert flag.shape == (2,) and flag.dtype == bool, name


def test_an_episode_follows_the_last_by_itself(env: VectorEnv) -> None:
    first = env.reset()
    assert first.is_first.all()
    assert not first.reward.any()
    assert not (first.terminated | first.truncated | first.life_lost).any()
    for t in range(1, LIMIT + 1):
        step = env.step(np.full(2, t % 3))
        assert not step.is_first.any()
        assert (step.truncated == (t == LIMIT)).all()
        assert not step.terminated.any()
    for _ in range(3):
        step = env.step(np.full(2, 2))
        assert (step.is_first == first.is_first).all()
        assert not step.reward.any()
        assert not (step.terminated | step.truncated | step.life_lost).any()
        for t in range(1, LIMIT + 1):
            step = env.step(np.full(2, t % 3))
        assert step.truncated.all()


@pytest.mark.parametrize("index", range(len(CASES)), ids=[case[2] for case in CASES])
def test_the_action_of_the_reset_step_is_ignored(index: int) -> None:
    runs = []
    for ignored in (0, 2):
        env = fresh(index)
        env.reset()
        steps = [env.step(np.full(2, ignored if t == LIMIT else t % 3)) for t in range(LIMIT + 6)]
        assert steps[LIMIT].is_first.all()
        runs.append(steps)
        env.close()
    for a, b in zip(*runs, strict=True):
        for field in dataclasses.fields(a):
            np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


def test_returned_arrays_are_never_written_again(env: VectorEnv) -> None:
    env.reset()
    steps = [env.step(np.full(2, t % 3)) for t in range(LIMIT + 4)]
    copies = [[getattr(step, field.name).copy() for field in dataclasses.fields(step)] for step in steps]
    for t in range(2 * LIMIT):
        env.step(np.full(2, t % 3))
    for step, kept in zip(steps, copies, strict=True):
        for field, copy in zip(dataclasses.fields(step), kept, strict=True):
            np.testing.assert_array_equal(getattr(step, field.name), copy)


@pytest.mark.parametrize("index", range(len(CASES)), ids=[case[2] for case in CASES])
def test_calls_out_of_order(index: int) -> None:
    env = fresh(index)
    with pytest.raises(ValueError, match=r"step\(\) must come after reset"):
        env.step(np.zeros(2, np.int64))
    with pytest.raises(ValueError, match=r"state\(\) must come after reset"):
        env.state()
    env.reset()
    env.close()
    env.close()
    for call in (env.reset, lambda: env.step(np.zeros(2, np.int64)), env.state, lambda: env.load_state({})):
        with pytest.raises(ValueError, match="closed"):
            call()
