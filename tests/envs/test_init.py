"""Which backend is taken, why, and what is said when it cannot be."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from stormfast.envs import check_settings, choose_backend, make_env
from stormfast.envs.games import ATARI_100K, atari_games
from stormfast.errors import UserError
from stormfast.presets import preset_config
from stormfast.schema import override
from stormfast.settings import TrainConfig
from tests.envs.rules import Rules, rules

SAME_SEED = rules(same_seed_resets=True)
NO_NOOPS = rules(noop_max=0)


@pytest.mark.parametrize(
    ("game", "config", "num_envs", "backend", "name"),
    [
        ("Pong", rules(), 1, "auto", "ale"),
        ("Pong", rules(), 2, "auto", "envpool"),
        ("Pong", SAME_SEED, 2, "auto", "ale"),
        ("Pong", NO_NOOPS, 2, "auto", "ale"),
        ("Pong", NO_NOOPS, 2, "ale", "ale"),
        ("Pong", rules(), 1, "envpool", "envpool"),
        ("Pong", rules(), 4, "ale", "ale"),
        ("Catch", rules(), 4, "auto", "gymnasium"),
        ("Catch", SAME_SEED, 1, "ale", "gymnasium"),  # what the reference protocol asks for
        ("ALE/Enduro-v5", rules(), 1, "auto", "ale"),
        ("TicTacToe3D", rules(), 2, "auto", "envpool"),  # envpool spells it otherwise
    ],
)
def test_choice(game: str, config: Rules, num_envs: int, backend: str, name: str) -> None:
    chosen = choose_backend(game, *config, num_envs=num_envs, backend=backend)
    assert chosen.name == name
    assert chosen.reason
    made = make_env(game, *config, num_envs=num_envs, backend=backend, seed=0)
    assert made.backend == name
    made.close()


def test_auto_does_without_envpool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)  # makes `import envpool` fail
    chosen = choose_backend("Pong", *rules(), num_envs=4, backend="auto")
    assert chosen.name == "ale"
    assert "envpool" in chosen.reason
    assert "pip install" in chosen.reason


def test_auto_does_without_ale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    assert choose_backend("Pong", *rules(), num_envs=1, backend="auto").name == "envpool"
    with pytest.raises(UserError, match="need an emulator, but ale_py does not import"):
        choose_backend("Pong", *SAME_SEED, num_envs=1, backend="auto")
    with pytest.raises(UserError, match="need an emulator, but ale_py does not import"):
        choose_backend("Pong", *NO_NOOPS, num_envs=2, backend="auto")


@pytest.mark.parametrize(("backend", "package"), [("envpool", "envpool"), ("ale", "ale_py"), ("ale", "cv2")])
def test_asked_for_but_missing(monkeypatch: pytest.MonkeyPatch, backend: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UserError,
        match=rf"--env-backend {backend} must be importable, but {package} does not import here .*pip install",
    ):
        make_env("Pong", *rules(), num_envs=2, backend=backend, seed=0)


@pytest.mark.parametrize(
    ("config", "reason"), [(SAME_SEED, "cannot re-seed"), (NO_NOOPS, "cannot start an episode without a no-op frame")]
)
def test_what_envpool_cannot_do(config: Rules, reason: str) -> None:
    with pytest.raises(UserError, match=f"env_backend must be ale or auto, because envpool {reason}.*; got envpool"):
        make_env("Pong", *config, num_envs=2, backend="envpool", seed=0)
    assert reason in choose_backend("Pong", *config, num_envs=2, backend="auto").reason


def test_unknown_backend() -> None:
    with pytest.raises(UserError, match="env_backend must be one of auto, envpool, ale, got 'gym'"):
        make_env("Pong", *rules(), num_envs=1, backend="gym", seed=0)


UNUSED = [
    ("Catch", "atari.frame_skip", 2, "--atari.frame-skip is for Atari games, and Catch is none, got 2; leave"),
    ("Catch", "atari.sticky", 0.0, "--atari.sticky is for Atari games"),  # the reference protocol sets 0.25
    ("gym:CartPole-v1", "atari.noop_max", 30, "--atari.noop-max is for Atari games, and gym:CartPole-v1 is none"),
    ("Catch", "env_backend", "envpool", "--env-backend is for Atari games"),
    ("Pong", "env.render_obs", True, "--env.render-obs is for gymnasium games, and Pong shows its screen anyway"),
]


@pytest.mark.parametrize(("game", "name", "value", "expected"), UNUSED)
def test_settings_without_use_are_refused(game: str, name: str, value: object, expected: str) -> None:
    config = override(preset_config("tiny", "reference"), {"game": game})
    check_settings(config)
    with pytest.raises(UserError) as caught:
        check_settings(override(config, {name: value}))
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_settings_with_a_use_are_not() -> None:
    atari = {"atari.frame_skip": 2, "atari.sticky": 0.1, "env_backend": "ale"}
    check_settings(override(TrainConfig(game="Pong"), atari))
    check_settings(override(TrainConfig(game="Catch"), {"env.render_obs": True, "env.max_episode_steps": 7}))


def test_no_rendered_atari() -> None:
    with pytest.raises(UserError, match="Pong shows its screen anyway"):
        make_env("Pong", *rules(render_obs=True), num_envs=1, backend="auto", seed=0)


BAD_ENV = [
    ({"frame_skip": 0}, {}, "atari.frame_skip must be >= 1 and <= 1000, got 0"),
    ({"frame_skip": 4.0}, {}, "atari.frame_skip must be int, got 4.0"),
    ({"frame_skip": True}, {}, "atari.frame_skip must be int, got True"),
    ({"noop_max": -3}, {}, "atari.noop_max must be >= 0"),
    ({"max_episode_steps": 0}, {}, "env.max_episode_steps must be >= 1"),
    ({"sticky": 1.0}, {}, "atari.sticky must be >= 0 and < 1, got 1.0"),
    ({"sticky": -0.1}, {}, "atari.sticky must be >= 0 and < 1, got -0.1"),
    ({"sticky": float("nan")}, {}, "atari.sticky must be >= 0 and < 1, got nan"),
    ({"sticky": "0.25"}, {}, "atari.sticky must be float, got '0.25'"),
    ({"same_seed_resets": 1}, {}, "env.same_seed_resets must be bool, got 1"),
    ({}, {"num_envs": 0}, "num_envs must be >= 1 and <= 256, got 0"),
    ({}, {"num_envs": 257}, "num_envs must be >= 1 and <= 256, got 257"),
    ({}, {"num_envs": 2.0}, "num_envs must be int, got 2.0"),
    ({}, {"seed": -1}, "seed must be >= 0 and < 2147482624, got -1"),
    ({}, {"seed": 2**31 - 1}, "seed must be >= 0 and < 2147482624, got 2147483647"),
    ({}, {"seed": 1.5}, "seed must be int, got 1.5"),
    ({}, {"backend": "gym"}, "env_backend must be one of auto, envpool, ale, got 'gym'"),
]


@pytest.mark.parametrize(("settings", "others", "expected"), BAD_ENV)
def test_no_environment_is_made_of_bad_options(settings: dict[str, Any], others: dict[str, Any], expected: str) -> None:
    """make_env, not only the command line: the emulators' C++ would overflow, hang or crash."""
    with pytest.raises(UserError) as caught:
        make_env(
            "Pong",
            *rules(**settings),
            **({"num_envs": 2, "backend": "envpool", "seed": 0} | others),
        )
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_importing_is_cheap() -> None:
    heavy = ("torch", "envpool", "ale_py", "cv2", "gymnasium", "numpy")
    code = f"import sys, stormfast.envs; print([m for m in {heavy} if m in sys.modules])"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
        == "[]\n"
    )


@pytest.mark.parametrize(
    "game",
    [
        # make test-all has the others: it takes 0.15 s to load one
        game if game in ATARI_100K else pytest.param(game, marks=pytest.mark.instruments)
        for game in atari_games()
    ],
)
def test_every_game(game: str) -> None:
    env = make_env(game, *rules(), num_envs=1, backend="ale", seed=1)
    env.reset()
    rng = np.random.default_rng(0)
    frames = [env.step(rng.integers(env.num_actions, size=1)).obs for _ in range(10)]
    assert np.stack(frames).any()  # a few games begin with a black screen
    assert 3 <= env.num_actions <= 18
    env.close()
