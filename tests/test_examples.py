"""The examples run as their docstrings say."""

import json
from pathlib import Path

import numpy as np
import pytest

from examples.own_game import DISTANCE, WALLS, make
from stormfast import cli
from stormfast.runs.directory import load_config

ROOT = Path(__file__).parents[1]


def episode(env, choose) -> float:
    """The return of one episode of own_game."""
    env.reset(seed=0)
    total, ended = 0.0, False
    while not ended:
        _, reward, ended, _, _ = env.step(choose(env))
        total += reward
    return total


def test_own_game_rewards_driving_well() -> None:
    env, rng = make(), np.random.default_rng(0)
    assert episode(env, lambda env: 1 + int(np.sign(env.gaps[env.time // DISTANCE] - env.lane))) == WALLS
    assert np.mean([episode(env, lambda env: rng.integers(3)) for _ in range(100)]) < -3


@pytest.mark.slow
def test_own_game_trains_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained by its path from one directory, resumed and scored from another: config.json holds the absolute path."""
    monkeypatch.chdir(ROOT)
    run_dir = str(tmp_path / "run")
    settings = "--preset tiny --acting.random-steps 40 --logging.no-tensorboard --device cpu".split()
    train = ["train", "--game", "examples/own_game.py:make", *settings, "--steps", "60", "--run-dir", run_dir]
    assert cli.main(train) == 0
    assert load_config(Path(run_dir)).game == f"{ROOT / 'examples' / 'own_game.py'}:make"
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--resume", "--steps", "80", "--run-dir", run_dir]) == 0
    assert cli.main(["evaluate", run_dir, "--episodes", "2", "--device", "cpu"]) == 0
    scores = json.loads(next(Path(run_dir).glob("evaluation-*.json")).read_text())
    assert scores["episode_lengths"] == [WALLS * DISTANCE] * 2
    assert scores["return"]["human_normalised"] is None
