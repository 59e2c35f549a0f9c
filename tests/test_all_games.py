"""Every game of Atari 100k, from the command line: trains, leaves a run, and can be scored.

Slow: half a minute a game.
"""

import json
import subprocess
import time
from pathlib import Path

import pytest

from stormfast.envs.games import ATARI_100K

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("game", "num_envs"), [*((game, 1) for game in ATARI_100K), ("Pong", 4), ("Breakout", 4)])
def test_trains_and_evaluates(game: str, num_envs: int, command: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = [
        "--game",
        game,
        "--preset",
        "tiny",
        "--steps",
        "400",
        "--run-dir",
        str(run_dir),
        "--num-envs",
        str(num_envs),
        "--env.max-episode-steps",
        "500",
    ]
    started = time.monotonic()
    subprocess.run([*command, "train", *flags], check=True, timeout=300)
    assert time.monotonic() - started < 90
    assert {"config.json", "metrics.jsonl", "checkpoint", "tensorboard"} <= {path.name for path in run_dir.iterdir()}
    subprocess.run([*command, "evaluate", str(run_dir), "--episodes", "2"], check=True, timeout=300)
    (result,) = run_dir.glob("evaluation-*.json")
    scores = json.loads(result.read_text())
    assert len(scores["episode_returns"]) == 2
    assert scores["return"]["human_normalised"] is not None
