"""The comparison of vector environments: the same game is played, steps are counted, failures are rows."""

import json
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.peers import collection
from bench.peers.collection import measure_case
from bench.peers.vector_envs import BACKENDS, CHECKED_STEPS, difference, frame_problem, play
from stormfast.records import EnvStep
from stormfast.settings import AtariConfig


@pytest.mark.parametrize("name", BACKENDS)
def test_every_library_plays_the_same_game(name: str) -> None:
    assert frame_problem(BACKENDS[name], "Breakout", 5) == ""


def test_another_game_is_found() -> None:
    assert frame_problem(lambda game, *rest: BACKENDS["SyncVectorEnv"]("Pong", *rest), "Breakout", 5) != ""


@pytest.mark.parametrize(
    ("field", "alter", "problem"),
    [
        ("obs", lambda obs: obs.mean(1, keepdims=True).astype(np.uint8), "obs must be"),
        ("obs", lambda obs: obs.astype(np.float32), "obs must be"),
        ("obs", lambda obs: obs[:, ::-1], "obs differs at step 7"),
        ("obs", lambda obs: np.roll(obs, 1, axis=3), "obs differs at step 7"),
        ("reward", lambda reward: reward + 1, "reward differs at step 7"),
        ("terminated", lambda terminated: ~terminated, "terminated differs at step 7"),
    ],
)
def test_what_differs_is_found(field: str, alter: Any, problem: str) -> None:
    steps = play(BACKENDS["ale"], "Breakout", 1, 5)
    assert len(steps) == 1 + CHECKED_STEPS and difference(steps, steps) == ""
    fields = {name: getattr(steps[7], name) for name in EnvStep.__dataclass_fields__}
    altered = [*steps[:7], EnvStep(**fields | {field: alter(fields[field])}), *steps[8:]]
    assert problem in difference(altered, steps)


def test_episodes_of_the_adapted_environments() -> None:
    """The step after an end begins an episode."""
    env = BACKENDS["SyncVectorEnv"]("Breakout", AtariConfig(), 2, 5)
    steps = [env.reset(), *(env.step(np.array([1, 3])) for _ in range(400))]
    env.close()
    assert sum(step.terminated.sum() for step in steps) >= 2
    for before, after in pairwise(steps):
        np.testing.assert_array_equal(after.is_first, before.terminated | before.truncated)


def test_a_call_that_resets_is_no_step() -> None:
    """Of four environments one is reset by every second call."""
    calls: list[np.ndarray] = []

    def step(action: np.ndarray) -> Any:
        calls.append(action)
        time.sleep(0.001)
        return SimpleNamespace(is_first=np.array([False, len(calls) % 2 == 0, False, False]))

    found = collection.turn(SimpleNamespace(num_envs=4, num_actions=6, step=step), 0.05)  # type: ignore[arg-type]
    timed = len(calls) - collection.WARMUP_CALLS
    assert found["steps"] == 4 * timed - timed // 2
    assert 0.05 <= found["seconds"] < 5.0


def test_a_library_that_raises_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(game: str, config: AtariConfig, num_envs: int, seed: int) -> Any:
        raise RuntimeError("no such\nROM")

    monkeypatch.setitem(BACKENDS, "envpool", fails)
    measured, failed = measure_case("Breakout", 2, ["ale", "envpool"], seconds=0.05, rounds=2)
    assert failed == {"game": "Breakout", "num_envs": 2, "backend": "envpool", "failure": "RuntimeError: no such ROM"}
    assert (measured["failure"], measured["why"], measured["honest"]) == ("", "", True)
    turns = measured["vector_env"]
    assert turns["median"] == pytest.approx(sum(turns["rates"]) / 2)
    assert turns["steps"] / turns["seconds"] == pytest.approx(turns["median"], rel=0.5)
    collection.compare_with("envpool", [measured, failed])
    assert "over_auto" not in measured  # there is nothing to compare with


@pytest.mark.slow
def test_a_whole_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--games Pong --num-envs 2 --seconds 0.3 --rounds 2"
    assert collection.main([*words.split(), "--json", str(tmp_path / "x.json")]) == 0
    result = json.loads((tmp_path / "x.json").read_text())
    assert [row["backend"] for row in result["rows"]] == list(BACKENDS)
    assert all(row["honest"] and not row["why"] and not row["failure"] for row in result["rows"])
    assert all(row["over_auto"]["least"] > 0 for row in result["rows"])
    cpu = {row["backend"]: row["cpu_us_per_step"] for row in result["rows"]}
    assert cpu["AsyncVectorEnv"] > 0.7 * cpu["SyncVectorEnv"]  # child processes count
    assert result["verdicts"][0]["auto"] in BACKENDS
    assert "| Pong | 2 | envpool | " in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    ["--games Pongg", "--games Catch", "--num-envs 0", "--seconds 0", "--seconds nan", "--backends x", "--rounds 1"],
)
def test_bad_options_are_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert collection.main(words.split()) == 2
    assert capsys.readouterr().err.count("\n") == 1
