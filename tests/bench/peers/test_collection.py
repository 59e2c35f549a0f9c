"""The comparison of collectors: which frames pass as honest, what is counted, what a crash becomes, what the table says."""

import json
import os
import re
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.peers import collection, collection_backends, collection_workers
from bench.peers.collection_backends import BACKENDS, AdaptedVectorEnv, backends_of, check
from bench.peers.collection_workers import CONFIG, Stepper, measure
from stormfast.envs import make_env
from stormfast.envs.vector import VectorEnv
from stormfast.records import EnvStep

ROOT = Path(collection.__file__).resolve().parents[2]

# --- honest frames -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", backends_of("Breakout"))
def test_atari_frames_are_those_of_the_bare_emulator(name: str) -> None:
    env = BACKENDS[name].make("Breakout", CONFIG, 3, 5, False)
    found = check(env, "Breakout", CONFIG, 5)
    env.close()
    assert found["honest"], found
    assert (found["why"], found["max_difference"], len(found["starts"])) == ("", 0, 2)


@pytest.mark.parametrize("name", backends_of("Catch"))
def test_built_in_frames_and_steps(name: str) -> None:
    """Also beyond episodes' ends, where flags and rewards must be those of stormfast's own backend."""
    env, ours = (
        BACKENDS[name].make("Catch", CONFIG, 3, 5, False),
        make_env("Catch", CONFIG, num_envs=3, backend="auto", seed=5),
    )
    found = check(env, "Catch", CONFIG, 5)
    assert (found["honest"], found["max_difference"], found["starts"]) == (True, 0, [5, 6])
    env.close()
    env = BACKENDS[name].make("Catch", CONFIG, 3, 5, False)
    env.reset(), ours.reset()
    for action in np.random.default_rng(0).integers(3, size=(90, 3)):
        step, want = env.step(action), ours.step(action)
        for field in ("obs", "reward", "terminated", "truncated", "life_lost", "is_first"):
            np.testing.assert_array_equal(getattr(step, field), getattr(want, field), err_msg=field)
    env.close()


def test_lives_of_gymnasium_games() -> None:
    env, ours = (BACKENDS[name].make("Breakout", CONFIG, 2, 5, False) for name in ("SyncVectorEnv", "ale"))
    env.reset(), ours.reset()
    for which in (env, ours):
        steps = [which.step(np.array([1, 3])) for _ in range(400)]
        assert (ended := sum(step.terminated.sum() for step in steps)) >= 2
        assert sum(step.is_first.sum() for step in steps) in (ended, ended - 1)
        assert 5 * ended <= sum(step.life_lost.sum() for step in steps) < 5 * (ended + 2)
        assert {step.reward.dtype for step in steps} == {np.dtype(np.float32)}
        which.close()


class Altered(VectorEnv):
    """Catch, seen through a change of its steps."""

    def __init__(self, alter: Any) -> None:
        self._env = make_env("Catch", CONFIG, num_envs=2, backend="auto", seed=5)
        super().__init__(2, 3, "altered")
        self._alter = alter

    def _reset(self) -> EnvStep:
        return self._changed(self._env.reset())

    def _step(self, action: np.ndarray) -> EnvStep:
        return self._changed(self._env.step(action))

    def _close(self) -> None:
        self._env.close()

    def _changed(self, step: EnvStep) -> EnvStep:
        obs, reward = self._alter(step.obs, step.reward)
        return EnvStep(obs, reward, step.terminated, step.truncated, step.life_lost, step.is_first)


BUFFER = np.zeros((2, 3, 64, 64), np.uint8)


def _into_buffer(obs: np.ndarray) -> np.ndarray:
    BUFFER[:] = obs
    return BUFFER


@pytest.mark.parametrize(
    ("alter", "why"),
    [
        (
            lambda obs, reward: (obs.mean(1, keepdims=True).astype(np.uint8), reward),
            r"frames must be uint8 .*, got uint8 \(2, 1, 64, 64\)",
        ),
        (lambda obs, reward: (np.broadcast_to(obs[:, 1:2], obs.shape).copy(), reward), "frames have no colours"),
        (lambda obs, reward: (obs.astype(np.float32), reward), r"frames must be uint8 .*, got float32"),
        (lambda obs, reward: (obs[:, ::-1].copy(), reward), "on average: another picture"),
        (lambda obs, reward: (np.roll(obs, 8, axis=3), reward), "on average: another picture"),
        (lambda obs, reward: (obs.transpose(0, 1, 3, 2), reward), "frames are not contiguous"),
        (lambda obs, reward: (_into_buffer(obs), reward), "a later step overwrites the frames"),
        (lambda obs, reward: (obs, 2 * reward), "rewards differ"),
        (lambda obs, reward: (obs, reward.astype(np.float64)), "rewards must be float32 .*, got float64"),
    ],
)
def test_dishonest_frames_are_found(alter: Any, why: str) -> None:
    found = check(Altered(alter), "Catch", CONFIG, 5)
    assert not found["honest"]
    assert re.search(why, found["why"]), found["why"]


def test_another_rounding_is_honest_but_said() -> None:
    found = check(
        Altered(lambda obs, reward: (np.where(obs < 255, obs + 1, obs).astype(np.uint8), reward)), "Catch", CONFIG, 5
    )
    assert found["honest"]
    assert found["why"].startswith("frames differ by up to 1 levels, ")


def test_the_adapter_copies_what_the_library_reuses() -> None:
    found = check(BACKENDS["SyncVectorEnv"].make("Catch", CONFIG, 2, 5, False), "Catch", CONFIG, 5)
    assert found["honest"]  # its own copy of the frames is off
    env = BACKENDS["SyncVectorEnv"].make("Catch", CONFIG, 2, 5, False)
    assert isinstance(env, AdaptedVectorEnv)
    assert env.library.copy is False
    assert BACKENDS["SyncVectorEnv"].make("Catch", CONFIG, 2, 5, True).library.copy is True


# --- counting and crashes ----------------------------------------------------------------------------------------


def test_a_call_that_resets_is_no_step() -> None:
    calls = []

    def step(action: np.ndarray) -> np.ndarray:
        assert action.shape == (4,)
        time.sleep(0.001)
        calls.append(action)
        return np.array([False, len(calls) % 2 == 0, False, False])

    turn = Stepper(step, 4, 6).run(0.05)
    timed = len(calls) - collection_workers.WARMUP_CALLS
    assert turn["steps"] + turn["resets"] == 4 * timed
    assert turn["resets"] == timed // 2
    assert 0.05 <= turn["seconds"] < 5.0
    assert turn["cpu_seconds"] >= 0


def test_processor_time_counts_threads_and_children() -> None:
    code = "import time\nwhile time.process_time() < 0.3: pass"
    script = (
        "import os, subprocess, sys; os.setsid(); from bench.peers.collection_workers import cpu_seconds; before = cpu_seconds();"
        f"child = subprocess.Popen([sys.executable, '-c', {code + chr(10) + 'print(flush=True); time.sleep(60)'!r}], stdout=subprocess.PIPE);"
        "child.stdout.readline(); print(cpu_seconds() - before); child.kill()"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    )
    assert 0.25 < float(done.stdout) < 0.6


def serve_oddly(pipe: Connection, game: str, num_envs: int, name: str) -> None:
    """A library that fails in the way its name says, or steps 100 times a second."""
    if name == "raises":
        collection_workers._send(pipe, {"error": "ValueError: no such ROM"})
        return
    if name == "exits":
        sys.exit(3)
    collection_workers._send(pipe, {"honest": True, "why": "", "ways": ["vector_env"]})
    while (question := collection_workers._receive(pipe)) is not None:
        if name == "aborts":
            os.abort()
        if name == "hangs":
            time.sleep(60)
        collection_workers._send(
            pipe, {"steps": 100 * question["seconds"], "resets": 1, "seconds": question["seconds"], "cpu_seconds": 0.25}
        )


def test_a_library_that_fails_is_one_row() -> None:
    rows = measure("Pong", 2, ["raises", "steady", "aborts"], seconds=0.5, rounds=3, serve=serve_oddly)
    assert {row["backend"]: row["failure"] for row in rows} == {
        "raises": "ValueError: no such ROM",
        "steady": "",
        "aborts": "its process died of SIGABRT",
    }
    steady = rows[1]
    totals = {"steps": pytest.approx(150), "resets": 3, "cpu_seconds": 0.75}
    assert steady["vector_env"] == {"rates": [pytest.approx(100)] * 3, "median": pytest.approx(100), **totals}
    assert set(rows[0]) == {"game", "num_envs", "backend", "failure"}


@pytest.mark.slow
def test_a_library_that_hangs_or_exits_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = collection_workers.Worker("Pong", 2, "hangs", serve_oddly)
    assert worker.answer()["honest"]
    with pytest.raises(collection_workers.WorkerError, match="its process ended with exit code 3"):
        collection_workers.Worker("Pong", 2, "exits", serve_oddly).answer()
    monkeypatch.setattr(collection_workers, "PATIENCE", 0.2)
    with pytest.raises(collection_workers.WorkerError, match=r"no answer within 0\.7 s"):
        worker.ask("vector_env", 0.5)
    assert worker._process.exitcode == -9


@pytest.mark.slow
def test_an_exception_of_a_library_is_its_first_line() -> None:
    """The real worker: AtariVectorEnv cannot make Catch, whose ROM there is not."""
    (row,) = measure("Catch", 1, ["AtariVectorEnv"], seconds=0.1, rounds=1)
    assert row["failure"]
    assert "\n" not in row["failure"]
    assert "catch" in row["failure"]


# --- the table ---------------------------------------------------------------------------------------------------


def row(name: str, rates: list[float], *, honest: bool = True, why: str = "", num_envs: int = 4) -> dict[str, Any]:
    timed = {"rates": rates, "median": sorted(rates)[len(rates) // 2], "steps": 2000, "cpu_seconds": 0.9}
    return {
        "game": "Pong",
        "num_envs": num_envs,
        "backend": name,
        "failure": "",
        "honest": honest,
        "why": why,
        "vector_env": timed,
    }


def test_table() -> None:
    fast = row("AtariVectorEnv", [4000, 3000, 5000])
    fast |= {"library": {"rates": [1.0], "median": 4100.4, "resets": 0}, "library_shows": "uint8 [4, 1, 64, 64, 3]"}
    failed = {"game": "Pong", "num_envs": 4, "backend": "envpool", "failure": "its process died of SIGSEGV"}
    wrong = row("SyncVectorEnv", [9000, 9000, 9000], honest=False, why="frames have no colours")
    rows = [row("ale", [2000, 1000, 2500]), failed, fast, wrong]
    verdict = collection.compare(rows, "ale")
    assert verdict == {
        "game": "Pong",
        "num_envs": 4,
        "auto": "ale",
        "fastest": "AtariVectorEnv",
        "fastest_of_ours": "ale",
        "clear": False,
    }
    lines = collection.markdown({"rows": rows, "verdicts": [verdict]}).splitlines()
    assert lines[2:] == [
        "| Pong | 4 | ale (auto) | 2000 (1000-2500) | 1.00 (1.00-1.00) | 450 | - | identical |",
        "| Pong | 4 | envpool | - | - | - | - | FAILED: its process died of SIGSEGV |",
        "| Pong | 4 | AtariVectorEnv | 4000 (3000-5000) | 2.00 (2.00-3.00) | 450 | 4100, uint8 [4, 1, 64, 64, 3] | identical |",
        "| Pong | 4 | SyncVectorEnv | 9000 (9000-9000) | 4.50 (3.60-9.00) | 450 | - | NOT HONEST: frames have no colours |",
        "",
        "Pong x 4: auto takes ale; the fastest is AtariVectorEnv, of stormfast's own ale",
    ]
    assert all(line.count("|") == lines[0].count("|") for line in lines[:6])


@pytest.mark.parametrize(
    ("rates", "clear"), [([1001, 2002, 1501], True), ([1001, 1999, 3000], False), ([900, 900, 900], False)]
)
def test_auto_is_beaten_only_when_beaten_in_each_round(rates: list[float], clear: bool) -> None:
    verdict = collection.compare([row("ale", rates), row("envpool", [1000, 2000, 1500])], "envpool")
    assert verdict["clear"] == clear
    assert verdict["fastest_of_ours"] == ("envpool" if rates[0] == 900 else "ale")


def test_a_verdict_where_nothing_was_timed() -> None:
    failed = [{"game": "Pong", "num_envs": 1, "backend": name, "failure": "gone"} for name in ("ale", "envpool")]
    verdict = collection.compare(failed, "ale")
    assert (verdict["fastest"], verdict["fastest_of_ours"], verdict["clear"]) == (None, None, False)
    assert collection._sentence(verdict) == "Pong x 1: auto takes ale; nothing honest was timed"
    without_auto = collection.compare([failed[0], row("envpool", [10, 20, 30], num_envs=1)], "ale")
    assert (without_auto["fastest_of_ours"], without_auto["clear"]) == ("envpool", False)


# --- as a user runs it -------------------------------------------------------------------------------------------


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "bench/peers/collection.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


ONE = "--num-envs 2 --seconds 0.05 --rounds 2".split()


@pytest.mark.slow
def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "collection.json"
    done = script("--games", "Breakout", *ONE, "--backends", "AtariVectorEnv", "--json", str(path))
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    (measured,) = result["rows"]
    assert measured["honest"]
    assert measured["library_shows"] == "uint8 [2, 1, 64, 64, 3]"
    for way in ("vector_env", "library"):
        assert len(measured[way]["rates"]) == 2
        assert 10 < measured[way]["median"] < 1e6
    assert str(ROOT) not in path.read_text()
    assert str(tmp_path) not in path.read_text()
    assert result["command"].startswith(
        "python bench/peers/collection.py --games Breakout --num-envs 2 --seconds 0.05 --rounds 2"
    )
    assert "| Breakout | 2 | AtariVectorEnv | " in done.stdout
    assert "Breakout x 2: auto takes envpool; the fastest is AtariVectorEnv" in done.stdout
    monkeypatch.setattr(sys, "argv", ["bench/peers/collection.py", "--table", str(path)])
    assert collection.main() == 0
    assert capsys.readouterr().out == done.stdout


@pytest.mark.slow
def test_every_library_from_the_command_line(tmp_path: Path) -> None:
    done = script("--games", "Catch,Pong", *ONE, "--json", str(tmp_path / "x.json"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "x.json").read_text())
    assert [row["backend"] for row in result["rows"]] == [*backends_of("Catch"), *backends_of("Pong")]
    assert all(row["honest"] and not row["why"] for row in result["rows"])
    assert {verdict["auto"] for verdict in result["verdicts"]} == {"gymnasium", "envpool"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--games Pongg", "Unknown game 'Pongg'"),
        (
            "--games Catch --backends envpool",
            "--backends must be of gymnasium, AsyncVectorEnv, SyncVectorEnv for Catch, got envpool.",
        ),
        ("--num-envs 0", "num_envs must be >= 1"),
        ("--seconds 0", "--seconds must be > 0"),
        ("--seconds nan", "--seconds must be > 0"),
        ("--rounds 0", "--rounds >= 1"),
        ("--json nowhere/x.json", "--json must lie in a directory that can be written, got nowhere/x.json"),
        ("--json bench", "--json must be a file, but bench is a directory"),
        ("--rounds many", "argument --rounds: invalid int value: 'many'"),
        ("--table nowhere.json", "--table must be a file that --json wrote, but nowhere.json"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench/peers/collection.py", *arguments.split()])
    assert collection.main() == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_every_backend_is_known_to_the_check() -> None:
    assert set(collection_backends.OURS) < set(BACKENDS)
    assert set(backends_of("Pong")) | set(backends_of("Catch")) == set(BACKENDS)
