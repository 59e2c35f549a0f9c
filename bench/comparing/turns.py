"""Two checkouts timed in turn: a pytest process each, of which one runs at any time; before each round it waits for its turn.

Whatever else the machine does, it then does to both. The worker's end is `join`, which bench/conftest.py calls, and the hooks below
it: this module is also a pytest plugin (`-p bench.comparing.turns`). The coordinator's end is `alternate`, which bench/compare.py calls. In
between are two pipes a worker: JSON lines to the coordinator, one byte back for each turn.

    old  import, build, wait .   round 1 .                   round 2, round 3 .
    new                      build, wait . round 1, round 2 .                  round 3, ...
"""

import contextlib
import functools
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import pytest

from stormfast.errors import UserError

VARIABLE = "STORMFAST_TURNS"  # file descriptors of the worker's pipes: "read,write"
SCHEDSTAT = Path("/proc/self/schedstat")  # of the main thread: ns on a core, ns ready and without one, time slices
PACKAGES = ("stormfast", "stormfast_kernels")  # what is timed: a worker says where it imports them from
GO = b"g"
OTHERS = 0.01  # of a round, that other threads may take without being what it waited for
LOOK_EVERY = 1.0  # seconds between two looks whether a silent worker is alive
ENDS_WITHIN = 60.0  # seconds from its last word to its end
SETTLE = 0.002  # seconds between two turns: OpenMP's threads spin for about a millisecond after their work


# --- the worker --------------------------------------------------------------------------------------------------


class Turns:
    """A worker's end of the pipes."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._ids: list[str] = []
        self._running = ""  # the bench whose round runs
        self._began = (0.0, 0.0, 0.0)  # moments() when it did
        for descriptor in (read, write):
            os.set_inheritable(descriptor, False)  # what a bench starts must not keep them open

    def wait(self, bench_id: str, index: int, round: int) -> None:
        """Blocks until the coordinator says go.

        Args:
            bench_id: of the bench about to run a round; index: its place in the session's items, which counts where they are known.
            round: rounds of it that ran before, those that warm up included.
        Raises: pytest.exit.Exception when the coordinator is gone.
        """
        if self._ids:
            bench_id = self._ids[index]
        self.round_over()
        self.log_line(at=bench_id, index=index, round=round)
        if os.read(self._read, 1) != GO:
            pytest.exit("the comparison that these benches took turns for is gone", returncode=1)
        self._running, self._began = bench_id, moments()

    def round_over(self) -> None:
        """Says how long the round that ran, if one did, had to wait for a core: 0 where other threads of this process may have held it."""
        if self._running:
            wall, queued, others = (now - then for now, then in zip(moments(), self._began, strict=True))
            self.log_line(ran=self._running, queued=queued if others < OTHERS * wall else 0.0)
            self._running = ""

    def log_line(self, **message: Any) -> None:
        line = json.dumps(message).encode() + b"\n"
        while line:
            line = line[os.write(self._write, line) :]

    def collected(self, ids: list[str]) -> None:
        """Says which benches will run, in order, and which packages they time."""
        self._ids = ids
        self.log_line(collected=ids, packages={name: _origin(name) for name in PACKAGES})


def moments() -> tuple[float, float, float]:
    """Seconds so far: by the clock, queued for a core, and processor time of all threads but the main one."""
    return time.perf_counter(), queued_seconds(), time.process_time() - time.thread_time()


def queued_seconds() -> float:
    """Time that this process's main thread was ready to run and had no core, so far; 0 where the system does not say."""
    try:
        return int(SCHEDSTAT.read_text().split()[1]) / 1e9
    except FileNotFoundError:
        return 0.0


def _origin(name: str) -> str:
    """Directory of the package as it was imported, or, by benches that have not, would be; empty where there is none."""
    found = sys.modules.get(name) or importlib.util.find_spec(name)
    if found is None:
        return ""
    origin = found.__file__ if isinstance(found, ModuleType) else found.origin
    return str(Path(origin).parent.resolve()) if origin else ""


@functools.cache
def join() -> Turns | None:
    """This process's end of the pipes, None where nobody compares it. Raises: UserError where the variable names none."""
    descriptors = os.environ.pop(VARIABLE, None)  # not for what the benches start
    if descriptors is None:
        return None
    try:
        read, write = map(int, descriptors.split(","))
        return Turns(read, write)
    except (ValueError, OverflowError, OSError):
        wanted = "two open file descriptors, READ,WRITE, and is set by bench/compare.py alone"
        raise UserError(f"{VARIABLE} must be {wanted}, got {descriptors!r}; unset it") from None


def pytest_collection_finish(session: pytest.Session) -> None:
    if turns := join():
        turns.collected([item.nodeid for item in session.items])


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed and (turns := join()):
        turns.tell(failed=report.nodeid, error=last_error(report))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if turns := join():
        turns.round_over()
        if report.failed:
            turns.tell(failed=report.nodeid, error=last_error(report))


def last_error(report: pytest.CollectReport | pytest.TestReport) -> str:
    """One line: the exception of a failed report, or the last thing said."""
    lines = [line.strip() for line in report.longreprtext.splitlines() if line.strip()]
    raised = [line.removeprefix("E ").strip() for line in lines if line.startswith("E ")]
    return (raised or lines or ["failed"])[0 if raised else -1]


# --- the coordinator ---------------------------------------------------------------------------------------------


class TurnsError(Exception):
    """A worker hung or died; the message is one line."""


@dataclass
class Told:
    """What a worker has said.

    Attributes:
        ids: of the benches it runs, in order; failures: bench or file -> the error, one line.
        packages: package -> the directory it was imported from.
        queued: bench -> seconds that each of its rounds, in order, had to wait for a core.
    """

    ids: list[str] = field(default_factory=list)
    queued: dict[str, list[float]] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


class Worker:
    """A pytest process that waits for its turns."""

    def __init__(
        self, name: str, command: Sequence[str], tree: Path, environment: Mapping[str, str], output: int | IO[bytes]
    ) -> None:
        """Starts it in a directory, in a process group of its own. Raises: OSError."""
        self.name, self.told = name, Told()
        self.at: tuple[str, int, int] | None = (
            None  # the bench it waits at, its index, its round; None when it runs or has ended
        )
        self._buffer, self._ran = b"", ""
        read, theirs_to_write = os.pipe()
        theirs_to_read, write = os.pipe()
        self._read, self._write = read, write
        environment = {**environment, VARIABLE: f"{theirs_to_read},{theirs_to_write}"}
        try:
            self.process = subprocess.Popen(
                command,
                cwd=tree,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs_to_read, theirs_to_write),
                process_group=0,
            )
        except BaseException:
            self._close_pipes()
            raise
        finally:
            os.close(theirs_to_read)
            os.close(theirs_to_write)

    def go(self, patience: float) -> None:
        """Gives it its turn, and returns when it waits for the next or has ended. Raises: TurnsError."""
        self.at = None
        with contextlib.suppress(BrokenPipeError):  # it died while it waited: next_stop finds its end
            os.write(self._write, GO)
        self.next_stop(patience)

    def next_stop(self, patience: float) -> None:
        """Follows it until it waits for a turn or has ended. Raises: TurnsError after `patience` seconds without a word."""
        heard = time.monotonic()
        while self.at is None:
            if select.select([self._read], [], [], LOOK_EVERY)[0]:
                received = os.read(self._read, 1 << 16)
                if not received:
                    self._ended()
                    return
                heard, self._buffer = time.monotonic(), self._buffer + received
                self._hear()
            elif self.process.poll() is not None:  # something that it started holds the pipe open
                self._ended()
                return
            elif time.monotonic() > heard + patience:
                raise TurnsError(
                    f"{self.name}: neither a round nor an end within {patience:g} s; raise --patience if a round may take longer"
                )

    def _ended(self) -> None:
        """Raises: TurnsError where it did not end by itself, as pytest does whatever fails."""
        try:
            status = self.process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            raise TurnsError(f"{self.name}: its process closed its pipes and did not end") from None
        if status < 0:
            where = f"in or after {self._ran}" if self._ran else "before its first round"
            raise TurnsError(f"{self.name}: its process died of {signal.Signals(-status).name}, {where}")

    def _hear(self) -> None:
        *lines, self._buffer = self._buffer.split(b"\n")
        for message in map(json.loads, lines):
            if "at" in message:
                self.at = (message["at"], message["index"], message["round"])
                self._ran = message["at"]
            elif "ran" in message:
                self.told.queued.setdefault(message["ran"], []).append(message["queued"])
            elif "collected" in message:
                self.told.ids, self.told.packages = message["collected"], message["packages"]
            else:
                self.told.failures.setdefault(message["failed"], message["error"])

    def end(self) -> None:
        """Ends it, and whatever it started, at once."""
        with contextlib.suppress(ProcessLookupError):  # it and all it started have ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._close_pipes()

    def _close_pipes(self) -> None:
        os.close(self._read)
        os.close(self._write)


@dataclass(frozen=True)
class Session:
    """Two workers' benches, timed in turn.

    Attributes:
        told, status: of either worker, in the order they were started: what it said, and its exit status.
        paired: bench -> rounds that both ran, one right after the other; alone: bench -> rounds that ran without such a partner.
    """

    told: list[Told]
    status: list[int]
    paired: Counter[str]
    alone: Counter[str]


def alternate(starts: Sequence[Callable[[], Worker]], patience: float) -> Session:
    """Starts two workers one after the other, and lets them run their benches in turn, to the end of both.

    The rounds of a bench go a b, b a, a b, ...: a drift cancels, and either comes as often after itself as after the other. A worker
    that is behind, because the other skipped or failed a bench, goes alone until it has caught up.
    Raises: TurnsError, OSError; no worker is left then.
    """
    paired, alone = Counter[str](), Counter[str]()
    with contextlib.ExitStack() as stack:
        workers = []
        for start in starts:
            workers.append(start())
            stack.callback(workers[-1].end)
            workers[-1].next_stop(patience)
        while waiting := [(worker, worker.at) for worker in workers if worker.at]:
            (bench, _, rounds), (other, _, others) = waiting[0][1], waiting[-1][1]
            if len(waiting) == 2 and (bench, rounds) == (other, others):
                for worker in workers if paired[bench] % 2 == 0 else reversed(workers):
                    time.sleep(SETTLE)
                    worker.go(patience)
                paired[bench] += 1
            else:
                worker, bench = the_one_behind(waiting)
                worker.go(patience)
                alone[bench] += 1
        return Session(
            [worker.told for worker in workers], [worker.process.returncode for worker in workers], paired, alone
        )


def the_one_behind(waiting: Sequence[tuple[Worker, tuple[str, int, int]]]) -> tuple[Worker, str]:
    """Of workers and where they wait, the one that comes first in the order of all benches; and its bench."""
    places = places_of([worker.told.ids for worker, _ in waiting])
    worker, (bench, _, _) = min(waiting, key=lambda each: (places.get(each[1][0], each[1][1]), each[1][2]))
    return worker, bench


def places_of(lists: Sequence[Sequence[str]]) -> dict[str, int]:
    """Each bench's place in an order that all lists keep: one may lack what the others have."""
    merged: list[str] = []
    for ids in lists:
        place = 0
        for each in ids:
            if each in merged:
                place = max(place, merged.index(each) + 1)
            else:
                merged.insert(place, each)
                place += 1
    return {each: i for i, each in enumerate(merged)}
