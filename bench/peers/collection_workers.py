"""How bench/peers/collection.py times libraries: each in a process of its own, so that one that crashes or hangs becomes one line.

N environments

They take turns, A B C A B C ..., so that whatever else the machine does hits all alike; one that waits for its turn sleeps.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.collection_backends import BACKENDS, check
from stormfast.settings import EnvConfig

CONFIG = EnvConfig()
SEED = 1
WARMUP_CALLS = 20  # before each turn, untimed: threads and caches went cold while others had theirs
PATIENCE = 120.0  # seconds beyond its turn after which a library is taken to hang
Row = dict[str, Any]


class WorkerError(Exception):
    """A library crashed, hung, or raised; its message is the reason, in one line."""


class Stepper:
    """Steps an environment with random actions for a while, again and again, and counts.

    Args:
        step: takes [N] int64 actions, returns [N] bool: whether the call began an episode there instead of stepping.
    """

    def __init__(self, step: Callable[[np.ndarray], np.ndarray], num_envs: int, num_actions: int) -> None:
        self._step = step
        self._num_envs = num_envs
        self._actions = np.random.default_rng(SEED).integers(num_actions, size=(1024, num_envs))
        self._calls = 0

    def run(self, seconds: float) -> dict[str, float]:
        for _ in range(WARMUP_CALLS):
            self._call()
        steps, resets, worked, started = 0, 0, cpu_seconds(), time.perf_counter()
        while (taken := time.perf_counter() - started) < seconds or not steps:
            begun = int(np.count_nonzero(self._call()))
            steps, resets = steps + self._num_envs - begun, resets + begun
        return {"steps": steps, "resets": resets, "seconds": taken, "cpu_seconds": cpu_seconds() - worked}

    def _call(self) -> np.ndarray:
        self._calls += 1
        return self._step(self._actions[self._calls % len(self._actions)])


def cpu_seconds() -> float:
    """Processor time of this process, its threads, and, where /proc tells, all processes of its session, in ticks of 10 ms."""
    if not Path("/proc/self/stat").exists():
        return time.process_time()
    ticks, session = 0, os.getsid(0)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked
            fields = (
                path.read_text().rpartition(")")[2].split()
            )  # from the third on: state, ppid, pgrp, session, ..., utime, stime
            ticks += (int(fields[11]) + int(fields[12])) * (int(fields[3]) == session)
    return ticks / os.sysconf("SC_CLK_TCK")


def serve(pipe: Connection, game: str, num_envs: int, name: str) -> None:
    """What a library's process does: checks its frames, then answers {"way", "seconds"} with a count, until the pipe closes.

    The answer to anything that raises is {"error"}, one line.
    """
    os.setsid()  # whatever it starts can be ended with it
    try:
        backend = BACKENDS[name]
        opened = [env := backend.make(game, CONFIG, num_envs, SEED, False)]
        found = check(env, game, CONFIG, SEED)
        steppers = {"vector_env": Stepper(lambda action: env.step(action).is_first, num_envs, env.num_actions)}
        if backend.library:
            opened.append(backend.make(game, CONFIG, num_envs, SEED, True))
            step, found["library_shows"] = _library_step(getattr(opened[-1], backend.library), num_envs)
            steppers["library"] = Stepper(step, num_envs, env.num_actions)
        _send(pipe, found | {"ways": list(steppers)})
        while (question := _receive(pipe)) is not None:
            _send(pipe, steppers[question["way"]].run(question["seconds"]))
        for one in opened:
            one.close()
    except Exception as error:
        traceback.print_exc()
        _send(pipe, {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"})


def _library_step(library: Any, num_envs: int) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """A library's own step() for Stepper, and what it shows in which layout."""
    obs, _ = library.reset()
    over = np.zeros(num_envs, bool)

    def step(action: np.ndarray) -> np.ndarray:
        nonlocal over
        begun = over
        _, _, terminated, truncated, _ = library.step(action.astype(np.int32))
        over = terminated | truncated
        return begun

    return step, f"{obs.dtype} {list(obs.shape)}"


def _send(pipe: Connection, message: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(message).encode())


def _receive(pipe: Connection) -> dict[str, Any] | None:
    """The next message, None when the other side is gone."""
    try:
        return json.loads(pipe.recv_bytes())
    except (EOFError, ConnectionError):
        return None


class Worker:
    """A library in a process of its own."""

    def __init__(self, game: str, num_envs: int, name: str, serve: Callable[..., None] = serve) -> None:
        context = multiprocessing.get_context(
            "spawn"
        )  # a fork would share the emulators' threads, which do not survive it
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, game, num_envs, name))
        self._process.start()
        assert self._process.pid is not None  # it was started
        self._pid = self._process.pid
        theirs.close()

    def ask(self, way: str, seconds: float) -> dict[str, Any]:
        """Raises: WorkerError, and the process is gone."""
        try:
            _send(self._pipe, {"way": way, "seconds": seconds})
        except OSError as error:  # it died between two questions
            raise self._failed("") from error
        return self.answer(seconds)

    def answer(self, seconds: float = 0.0) -> dict[str, Any]:
        """The next message. Raises: WorkerError, and the process is gone."""
        if not wait([self._pipe, self._process.sentinel], timeout=seconds + PATIENCE):
            raise self._failed(f"no answer within {seconds + PATIENCE:g} s")
        message = _receive(self._pipe) if self._pipe.poll() else None
        if message is None or "error" in message:
            raise self._failed(message["error"] if message else "")
        return message

    def _failed(self, reason: str) -> WorkerError:
        """Ends it; without a reason, the exit code is the reason."""
        if not reason:
            self._process.join(timeout=5)
            code = self._process.exitcode or 0
            reason = (
                f"its process died of {signal.Signals(-code).name}"
                if code < 0
                else f"its process ended with exit code {code}"
            )
        self.close(patience=2.0)
        return WorkerError(reason)

    def close(self, patience: float = 60.0) -> None:
        """Ends the process and whatever it started."""
        self._pipe.close()
        self._process.join(timeout=patience)
        with contextlib.suppress(ProcessLookupError):  # nothing of it is left, or it has not begun
            os.killpg(self._pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()


def measure(
    game: str, num_envs: int, names: list[str], *, seconds: float, rounds: int, serve: Callable[..., None] = serve
) -> list[Row]:
    """A row for each library, their turns interleaved.

    Row: game, num_envs, backend, failure ("" or a reason) and, without failure, what check() found, and for vector_env and, where
        there is one, library: rates (steps/s, one a round), their median, and steps, resets and cpu_seconds of all rounds.
    """
    rows: list[Row] = [{"game": game, "num_envs": num_envs, "backend": name, "failure": ""} for name in names]
    workers: dict[str, Worker] = {}
    try:
        workers |= {name: Worker(game, num_envs, name, serve) for name in names}
        for row in rows:
            try:
                row.update(workers[row["backend"]].answer())
            except WorkerError as error:
                row["failure"] = str(error)
        for _ in range(rounds):
            for row in rows:
                if not row["failure"]:
                    _take_turn(row, workers[row["backend"]], seconds)
    finally:
        for worker in workers.values():
            worker.close()
    return [_finished(row) for row in rows]


def _take_turn(row: Row, worker: Worker, seconds: float) -> None:
    try:
        for way in row["ways"]:
            turn = worker.ask(way, seconds)
            found = row.setdefault(way, {"rates": [], "steps": 0, "resets": 0, "cpu_seconds": 0.0})
            found["rates"].append(turn["steps"] / turn["seconds"])
            for name in ("steps", "resets", "cpu_seconds"):
                found[name] += turn[name]
    except WorkerError as error:
        row["failure"] = str(error)


def _finished(row: Row) -> Row:
    if row["failure"]:
        return {name: row[name] for name in ("game", "num_envs", "backend", "failure")}
    for way in row.pop("ways"):
        row[way]["median"] = statistics.median(row[way]["rates"])
    return row
