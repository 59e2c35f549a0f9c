"""Which backend is taken, why, and what is said when it cannot be."""

import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from stormfast.config import EnvConfig
from stormfast.envs import make_env, resolve_backend
from stormfast.errors import UserError
from stormfast.games import SCORES

SAME_SEED = EnvConfig(same_seed_resets=True)


@pytest.mark.parametrize(
    ("game", "config", "num_envs", "backend", "name"),
    [
        ("Pong", EnvConfig(), 1, "auto", "ale"),
        ("Pong", EnvConfig(), 2, "auto", "envpool"),
        ("Pong", SAME_SEED, 2, "auto", "ale"),
        ("Pong", EnvConfig(), 1, "envpool", "envpool"),
        ("Pong", EnvConfig(), 4, "ale", "ale"),
        ("Catch", EnvConfig(), 4, "auto", "gymnasium"),
        ("Catch", SAME_SEED, 1, "ale", "gymnasium"),  # what the reference protocol asks for
    ],
)
def test_choice(game: str, config: EnvConfig, num_envs: int, backend: str, name: str) -> None:
    chosen = resolve_backend(game, config, num_envs=num_envs, backend=backend)
    assert chosen.name == name
    assert chosen.reason
    made = make_env(game, config, num_envs=num_envs, backend=backend, seed=0)
    assert made.backend == name
    made.close()


def test_auto_does_without_envpool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)  # makes `import envpool` fail
    chosen = resolve_backend("Pong", EnvConfig(), num_envs=4, backend="auto")
    assert chosen.name == "ale"
    assert "envpool" in chosen.reason
    assert "pip install" in chosen.reason


def test_auto_does_without_ale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    assert resolve_backend("Pong", EnvConfig(), num_envs=1, backend="auto").name == "envpool"
    with pytest.raises(UserError, match="need an emulator, but ale_py does not import"):
        resolve_backend("Pong", SAME_SEED, num_envs=1, backend="auto")


@pytest.mark.parametrize(("backend", "package"), [("envpool", "envpool"), ("ale", "ale_py"), ("ale", "cv2")])
def test_asked_for_but_missing(monkeypatch: pytest.MonkeyPatch, backend: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"--env-backend {backend} must be importable, but {package} does not import here .*pip install"):
        make_env("Pong", EnvConfig(), num_envs=2, backend=backend, seed=0)


def test_envpool_cannot_reseed() -> None:
    with pytest.raises(UserError, match="same_seed_resets needs --env-backend ale"):
        make_env("Pong", SAME_SEED, num_envs=1, backend="envpool", seed=0)


def test_unknown_game_and_backend() -> None:
    with pytest.raises(UserError, match=r"Unknown game 'Pongg'\. Did you mean 'Pong'"):
        make_env("Pongg", EnvConfig(), num_envs=1, backend="auto", seed=0)
    with pytest.raises(UserError, match="--env-backend must be one of auto, envpool, ale, got 'gym'"):
        make_env("Pong", EnvConfig(), num_envs=1, backend="gym", seed=0)


class Still(gymnasium.Env):
    """A registered game of somebody else's."""

    observation_space = Box(0, 255, (64, 64, 3), np.uint8)
    action_space = Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.full((64, 64, 3), 7, np.uint8), {}

    def step(self, action):
        return np.full((64, 64, 3), action, np.uint8), 1.0, False, False, {}


def test_a_registered_gymnasium_game() -> None:
    gymnasium.register("Still-v0", entry_point=Still, max_episode_steps=3)
    try:
        env = make_env("Still-v0", EnvConfig(), num_envs=2, backend="auto", seed=0)
        assert env.backend == "gymnasium"
        assert env.num_actions == 4
        assert (env.reset().obs == 7).all()
        steps = [env.step(np.array([1, 3])) for _ in range(3)]
        assert (steps[0].obs[1] == 3).all()
        assert steps[2].truncated.all()
        assert not steps[1].truncated.any()
    finally:
        del gymnasium.registry["Still-v0"]


def test_importing_is_cheap() -> None:
    code = "import sys, stormfast.envs; print([m for m in ('torch', 'envpool', 'ale_py', 'cv2', 'gymnasium', 'numpy') if m in sys.modules])"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout == "[]\n"


@pytest.mark.parametrize("game", SCORES)
def test_every_game(game: str) -> None:
    env = make_env(game, EnvConfig(), num_envs=1, backend="ale", seed=1)
    env.reset()
    step = env.step(np.array([env.num_actions - 1]))
    assert step.obs.any()
    assert 3 <= env.num_actions <= 18
    env.close()
