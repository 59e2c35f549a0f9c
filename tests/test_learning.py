"""Learning is real: from the command line to a solved game, for three of three seeds.

Slow: minutes a seed on two cores.
"""

import json
import subprocess
from pathlib import Path

import pytest

from stormfast.envs.catch import MAX_RETURN

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_catch_is_solved(seed: int, command: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = [
        "--game",
        "Catch",
        "--preset",
        "cpu",
        "--seed",
        str(seed),
        "--run-dir",
        str(run_dir),
        "--steps",
        "4500",
        "--agent.entropy",
        "3e-2",
    ]
    subprocess.run([*command, "train", *flags], check=True)
    means = {}
    for policy in ("random", "agent"):
        subprocess.run([*command, "evaluate", str(run_dir), "--episodes", "30", "--policy", policy], check=True)
        newest = max(run_dir.glob("evaluation-*.json"), key=lambda path: path.stat().st_mtime_ns)
        means[policy] = json.loads(newest.read_text())["return"]["mean"]
    assert means["random"] < 0
    assert means["agent"] >= 0.8 * MAX_RETURN
