"""Which backend is taken, why, and what is said when it cannot be."""

import dataclasses
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from stormfast.envs import choose_backend, make_env
from stormfast.envs.games import SCORES
from stormfast.errors import UserError
from stormfast.settings import EnvConfig

SAME_SEED = EnvConfig(same_seed_resets=True)
NO_NOOPS = EnvConfig(noop_max=0)


@pytest.mark.parametrize(
    ("game", "config", "num_envs", "backend", "name"),
    [
        ("Pong", EnvConfig(), 1, "auto", "ale"),
        ("Pong", EnvConfig(), 2, "auto", "envpool"),
        ("Pong", SAME_SEED, 2, "auto", "ale"),
        ("Pong", NO_NOOPS, 2, "auto", "ale"),
        ("Pong", NO_NOOPS, 2, "ale", "ale"),
        ("Pong", EnvConfig(), 1, "envpool", "envpool"),
        ("Pong", EnvConfig(), 4, "ale", "ale"),
        ("Catch", EnvConfig(), 4, "auto", "gymnasium"),
        ("Catch", SAME_SEED, 1, "ale", "gymnasium"),  # what the reference protocol asks for
    ],
)
def test_choice(game: str, config: EnvConfig, num_envs: int, backend: str, name: str) -> None:
    chosen = choose_backend(game, config, num_envs=num_envs, backend=backend)
    assert chosen.name == name
    assert chosen.reason
    made = make_env(game, config, num_envs=num_envs, backend=backend, seed=0)
    assert made.backend == name
    made.close()


def test_auto_does_without_envpool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)  # makes `import envpool` fail
    chosen = choose_backend("Pong", EnvConfig(), num_envs=4, backend="auto")
    assert chosen.name == "ale"
    assert "envpool" in chosen.reason
    assert "pip install" in chosen.reason


def test_auto_does_without_ale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    assert choose_backend("Pong", EnvConfig(), num_envs=1, backend="auto").name == "envpool"
    with pytest.raises(UserError, match="need an emulator, but ale_py does not import"):
        choose_backend("Pong", SAME_SEED, num_envs=1, backend="auto")
    with pytest.raises(UserError, match="need an emulator, but ale_py does not import"):
        choose_backend("Pong", NO_NOOPS, num_envs=2, backend="auto")


@pytest.mark.parametrize(("backend", "package"), [("envpool", "envpool"), ("ale", "ale_py"), ("ale", "cv2")])
def test_asked_for_but_missing(monkeypatch: pytest.MonkeyPatch, backend: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UserError,
        match=rf"--env-backend {backend} must be importable, but {package} does not import here .*pip install",
    ):
        make_env("Pong", EnvConfig(), num_envs=2, backend=backend, seed=0)


@pytest.mark.parametrize(
    ("config", "reason"), [(SAME_SEED, "cannot re-seed"), (NO_NOOPS, "cannot start an episode without a no-op frame")]
)
def test_what_envpool_cannot_do(config: EnvConfig, reason: str) -> None:
    with pytest.raises(UserError, match=f"env_backend must be ale or auto, because envpool {reason}.*; got envpool"):
        make_env("Pong", config, num_envs=2, backend="envpool", seed=0)
    assert reason in choose_backend("Pong", config, num_envs=2, backend="auto").reason


def test_unknown_game_and_backend() -> None:
    with pytest.raises(
        UserError, match=r"Unknown game 'CartPole-v1'"
    ):  # registered with gymnasium, but not a game of ours
        make_env("CartPole-v1", EnvConfig(), num_envs=1, backend="auto", seed=0)
    with pytest.raises(UserError, match=r"Unknown game 'Pongg'\. Did you mean 'Pong'"):
        make_env("Pongg", EnvConfig(), num_envs=1, backend="auto", seed=0)
    with pytest.raises(UserError, match="env_backend must be one of auto, envpool, ale, got 'gym'"):
        make_env("Pong", EnvConfig(), num_envs=1, backend="gym", seed=0)


BAD_ENV = [
    ({"frame_skip": 0}, {}, "env.frame_skip must be >= 1 and <= 1000, got 0"),
    ({"frame_skip": 4.0}, {}, "env.frame_skip must be int, got 4.0"),
    ({"frame_skip": True}, {}, "env.frame_skip must be int, got True"),
    ({"noop_max": -3}, {}, "env.noop_max must be >= 0"),
    ({"max_episode_steps": 0}, {}, "env.max_episode_steps must be >= 1"),
    ({"sticky": 1.0}, {}, "env.sticky must be >= 0 and < 1, got 1.0"),
    ({"sticky": -0.1}, {}, "env.sticky must be >= 0 and < 1, got -0.1"),
    ({"sticky": float("nan")}, {}, "env.sticky must be >= 0 and < 1, got nan"),
    ({"sticky": "0.25"}, {}, "env.sticky must be float, got '0.25'"),
    ({"same_seed_resets": 1}, {}, "env.same_seed_resets must be bool, got 1"),
    ({}, {"num_envs": 0}, "num_envs must be >= 1 and <= 256, got 0"),
    ({}, {"num_envs": 257}, "num_envs must be >= 1 and <= 256, got 257"),
    ({}, {"num_envs": 2.0}, "num_envs must be int, got 2.0"),
    ({}, {"seed": -1}, "seed must be >= 0 and < 2147482624, got -1"),
    ({}, {"seed": 2**31 - 1}, "seed must be >= 0 and < 2147482624, got 2147483647"),
    ({}, {"seed": 1.5}, "seed must be int, got 1.5"),
    ({}, {"backend": "gym"}, "env_backend must be one of auto, envpool, ale, got 'gym'"),
]


@pytest.mark.parametrize(("rules", "others", "expected"), BAD_ENV)
def test_no_environment_is_made_of_bad_options(rules: dict[str, Any], others: dict[str, Any], expected: str) -> None:
    """make_env, not only the command line: the emulators' C++ would overflow, hang or crash."""
    with pytest.raises(UserError) as caught:
        make_env(
            "Pong",
            dataclasses.replace(EnvConfig(), **rules),
            **({"num_envs": 2, "backend": "envpool", "seed": 0} | others),
        )
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_importing_is_cheap() -> None:
    code = "import sys, stormfast.envs; print([m for m in ('torch', 'envpool', 'ale_py', 'cv2', 'gymnasium', 'numpy') if m in sys.modules])"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
        == "[]\n"
    )


@pytest.mark.parametrize("game", SCORES)
def test_every_game(game: str) -> None:
    env = make_env(game, EnvConfig(), num_envs=1, backend="ale", seed=1)
    env.reset()
    step = env.step(np.array([env.num_actions - 1]))
    assert step.obs.any()
    assert 3 <= env.num_actions <= 18
    env.close()
