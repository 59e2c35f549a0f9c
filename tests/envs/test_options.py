"""Every option is refused before it reaches C++, where it would overflow, hang or crash."""

import dataclasses

import pytest

from stormfast.config import EnvConfig
from stormfast.envs import make_env
from stormfast.envs.options import check_options
from stormfast.errors import UserError

BAD = [
    ("frame_skip", 0, "env.frame_skip must be an integer from 1 to 1000, got 0; set --env.frame-skip."),
    ("frame_skip", 4.0, "env.frame_skip must be an integer"),
    ("frame_skip", True, "env.frame_skip must be an integer"),
    ("noop_max", 0, "env.noop_max must be an integer from 1"),  # a segmentation fault in envpool
    ("noop_max", -3, "env.noop_max must be an integer from 1"),
    ("max_episode_steps", 0, "env.max_episode_steps must be an integer from 1"),
    ("max_episode_steps", 2**31 - 1, "env.max_episode_steps must be an integer from 1"),
    ("sticky", 1.0, "env.sticky must be a number >= 0 and < 1, got 1.0"),
    ("sticky", -0.1, "env.sticky"),
    ("sticky", float("nan"), "env.sticky"),
    ("sticky", "0.25", "env.sticky"),
    ("same_seed_resets", 1, "env.same_seed_resets must be True or False"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
@pytest.mark.parametrize("backend", ["ale", "envpool"])
def test_bad_config(name: str, value: object, message: str, backend: str) -> None:
    config = dataclasses.replace(EnvConfig(), **{name: value})
    with pytest.raises(UserError) as caught:
        make_env("Pong", config, num_envs=2, backend=backend, seed=0)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_envs", [0, -1, 1025, 2.0, True])
def test_bad_num_envs(num_envs: object) -> None:
    with pytest.raises(UserError, match=r"num_envs must be an integer from 1 to 1024"):
        make_env("Pong", EnvConfig(), num_envs=num_envs, backend="envpool", seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("seed", "num_envs"), [(-1, 1), (2**31, 1), (2**31 - 1, 2), (1.5, 1)])
def test_bad_seed(seed: object, num_envs: int) -> None:
    with pytest.raises(UserError, match="seed must be an integer from 0"):
        make_env("Pong", EnvConfig(), num_envs=num_envs, backend="envpool", seed=seed)  # type: ignore[arg-type]


def test_the_limits_themselves_are_allowed() -> None:
    check_options(EnvConfig(frame_skip=1000, noop_max=100_000, max_episode_steps=2**31 - 2, sticky=0.999), 1024, 2**31 - 1024)
