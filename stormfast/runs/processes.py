"""Runs, each a process of its own: started, watched and stopped together, their progress on one line.

A process trains a run, or evaluates one: what follows a process that has ended well, `watch` is told.

A process prints into its log, which is read as it grows: its lines come out here with its name in front, its own
progress lines excepted. How far it is stands in its metrics.jsonl. Processes are in process groups of their own, so
that Ctrl-C reaches this process alone, which has them save and end.
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.live import Live
from rich.text import Text

from stormfast.envs.games import find
from stormfast.runs.directory import METRICS
from stormfast.runs.priority import lower
from stormfast.runs.progress import RATE_OVER, log_line
from stormfast.runs.signals import SignalWatch
from stormfast.settings import TrainConfig

POLL_EVERY = 0.25  # seconds between two looks at the processes, their logs and their metrics
LOG_EVERY = 10.0  # seconds between two lines of progress where there is no terminal
TAIL = 16_384  # bytes of metrics.jsonl that a look reads: some thirty lines
STOPPING = "stopping after this step"  # what a run prints when a signal has reached it
# Imports come from where this process takes them, which `python -m stormfast` would not do in another directory.
START = "import sys; sys.path[:] = {path}; from stormfast.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class Planned:
    """What is to be done with a run of a group, before it has a process."""

    config: TrainConfig
    flags: tuple[str, ...]  # of `stormfast train`: they begin this run or go on with it
    start_step: int = 0  # where it goes on
    command: Literal["train", "evaluate"] = "train"
    label: str = ""  # what it is called on the screen, where its directory's name would not do

    @property
    def run_dir(self) -> Path:
        return Path(str(self.config.run_dir))

    @property
    def name(self) -> str:
        return self.label or self.run_dir.name

    @property
    def log(self) -> Path:
        return self.run_dir.with_name(f"{self.run_dir.name}.log")


class Process:
    """A run's process, and what is known of it: step, steps/s of late, return of its last episodes."""

    def __init__(self, planned: Planned, environment: Mapping[str, str], low_priority: bool = False) -> None:
        """Starts it, in a session of its own where that gets the lowest priority.

        Raises: OSError when there is no process to be had, or no log to be written.
        """
        self.planned = planned
        self.step, self.rate, self.episode_return = planned.start_step, 0.0, math.nan
        self.failed = False
        self.is_stopping = False
        self._seen = version(planned.run_dir / METRICS)  # what an earlier process left says nothing of this one
        command = [sys.executable, "-c", START.format(path=ascii(sys.path)), planned.command, *planned.flags]
        with open(planned.log, "ab") as log:
            start = log.tell()
            group: dict[str, Any] = {"start_new_session": True} if low_priority else {"process_group": 0}
            self.popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, **group
            )
        if low_priority:
            lower(self.popen.pid)
        self._log = open(planned.log, "rb")  # noqa: SIM115 - open for as long as the process is watched
        self._log.seek(start)
        self._partial = b""

    def new_lines(self) -> list[str]:
        """What it printed since the last call, without progress, which look() takes from the metrics."""
        end = b"\n" if self.popen.returncode is not None else b""
        *lines, self._partial = (self._partial + self._log.read() + end).split(b"\n")
        texts = [line.decode(errors="replace").strip() for line in lines]
        self.is_stopping |= any(text.startswith(STOPPING) for text in texts)
        return [text for text in texts if text and not text.startswith(f"{find(self.planned.config.game).slug}  ")]

    def read_metrics(self) -> None:
        """Takes step, rate and return from the metrics that the run has written since it was looked at."""
        start, path = self.planned.start_step, self.planned.run_dir / METRICS
        seen, self._seen = self._seen, version(path)
        lines = [line for line in last_metrics(path) if line["step"] >= start] if seen != self._seen else []
        if not lines:
            return
        self.step = lines[-1]["step"]
        self.episode_return = next(
            (line["episode_return"] for line in reversed(lines) if "episode_return" in line), self.episode_return
        )
        marks = [(line["seconds"], line["step"]) for line in lines]
        if not start:
            marks.insert(0, (0.0, 0))
        now, step = marks[-1]
        then, before = next(mark for mark in marks if mark[0] >= now - RATE_OVER or mark in marks[-2:])
        self.rate = (step - before) / (now - then) if now > then else 0.0

    def stop(self) -> None:
        """Has it save and end; one that has nothing to save yet ends at once, which SIGTERM does and SIGINT does with a
        traceback.

        Not where a signal has reached it already, as when a batch system signals every process of a job: it would not
        save.
        """
        if not self.is_stopping:
            self.is_stopping = True
            self.popen.terminate()

    def kill(self) -> None:
        """Ends it at once, with the processes it may have started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)

    def close(self) -> None:
        self._log.close()


def version(path: Path) -> tuple[int, int]:
    """What changes when a file is written: its time in ns, and its size in bytes. 0, 0 where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def last_metrics(path: Path) -> list[dict[str, Any]]:
    """The last lines of a metrics.jsonl; none where there is none yet.

    A line cut short, by the cut or by the writer, is left out.
    """
    try:
        with open(path, "rb") as file:
            cut = max(0, file.seek(0, os.SEEK_END) - TAIL)
            file.seek(cut)
            lines = file.read().split(b"\n")[1 if cut else 0 : -1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


# --- watching ------------------------------------------------------------------------------------------------------


def watch(
    planned_runs: Sequence[Planned],
    parallel: int,
    environment: Mapping[str, str],
    *,
    before: Callable[[Planned], object] = lambda planned: None,
    after: Callable[[Planned], Planned | None] = lambda planned: None,
    low_priority: bool = False,
) -> tuple[list[Process], int]:
    """Runs all planned_runs, at most `parallel` at once, until each has ended.

    At the first SIGINT, SIGTERM or SIGHUP running processes save and end, and waiting ones never start. A second kills
    the processes.

    Args:
        before: called with what is about to start.
        after: called with what has ended well. What it returns is the next to start.
        low_priority: processes run when nothing else wants the CPU.
    Returns: the processes that were started, and the signal that stopped them, or 0.
    """
    waiting, running, processes, handled = deque(planned_runs), list[Process](), list[Process](), 0
    with SignalWatch() as signals, Board() as board, stopped_at_exit(running):
        while running or (waiting and not signals.caught):
            while waiting and len(running) < parallel and not signals.caught:
                before(waiting[0])
                process = start(waiting.popleft(), environment, board, low_priority)
                if process:
                    running.append(process)
                    processes.append(process)
            time.sleep(POLL_EVERY)
            for process in list(running):
                if poll(process, board, signals.first):
                    running.remove(process)
                    follower = None if process.popen.returncode else after(process.planned)
                    waiting.extendleft([follower] if follower else [])
            handled = pass_on_signals(signals, handled, running, board)
            board.show(running, waiting)
    return processes, signals.first


def start(
    planned: Planned, environment: Mapping[str, str], board: "Board", low_priority: bool = False
) -> Process | None:
    """The process of a planned run, or None where it cannot be started, which is logged."""
    try:
        return Process(planned, environment, low_priority)
    except OSError as error:
        board.log_line(f"{planned.name}: cannot be started: {error.strerror or error}")
        return None


def poll(process: Process, board: "Board", stopped_by: int) -> bool:
    """Logs what a process has printed, and how it ended. Returns whether it has ended."""
    status = process.popen.poll()  # before its log: nothing comes after
    for line in process.new_lines():
        if process.planned.command == "train" or status:  # an evaluation prints a table, of which its file has more
            board.log_line(f"{process.planned.name}: {line}")
    process.read_metrics()
    if status is None:
        return False
    process.close()
    as_asked = stopped_by and status in (128 + signal.SIGTERM, 128 + stopped_by, -signal.SIGTERM)
    if status and not as_asked:
        process.failed = True
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"failed with status {status}"
        board.log_line(f"{process.planned.name}: {how} at step {process.step}; its log is {process.planned.log}")
    return True


def pass_on_signals(signals: SignalWatch, handled: int, running: Sequence[Process], board: "Board") -> int:
    """Passes the signals caught since the last call on to the processes. Returns how many are handled now."""
    for count in range(handled + 1, len(signals.caught) + 1):
        if count == 1:
            name = signal.Signals(signals.first).name
            board.log_line(f"{name}: every run stops after its step and saves; once more to kill them, unsaved")
        for process in running:
            if count == 1:
                process.stop()
            else:
                process.kill()
    return len(signals.caught)


@contextlib.contextmanager
def stopped_at_exit(running: Sequence[Process]) -> Iterator[None]:
    """No process outlives an error of this process."""
    try:
        yield
    finally:
        for process in running:
            process.stop()
        for process in running:
            process.popen.wait()
            process.close()


class Board:
    """One line for all: each run's step and return, and the steps/s of all together. Redrawn in place on a terminal,
    printed now and then elsewhere."""

    def __init__(self) -> None:
        console = Console(file=sys.stderr)
        self._live = (
            Live(console=console, auto_refresh=False) if console.is_terminal and not console.is_dumb_terminal else None
        )
        self._line, self._print_at = "", time.monotonic() + LOG_EVERY

    def __enter__(self) -> "Board":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def log_line(self, line: str) -> None:
        """Prints a line, above the display where there is one."""
        if self._live:
            self._live.console.print(Text(line))
        else:
            log_line(line)

    def show(self, running: Sequence[Process], waiting: Sequence[Planned]) -> None:
        """Shows how far everything is."""
        line = board_line(running, waiting)
        if self._live:
            self._live.update(Text(line), refresh=True)
        elif line != self._line and time.monotonic() >= self._print_at:
            log_line(line)
            self._line, self._print_at = line, time.monotonic() + LOG_EVERY


def board_line(running: Sequence[Process], waiting: Sequence[Planned]) -> str:
    """Pong-seed0 1,200/100,000 return -20.5 | Pong-seed1 starting | 3 waiting | 41.2 steps/s in all, ETA 1:02:03."""
    parts = []
    for process in running:
        shown = f"{process.step:,}/{process.planned.config.steps:,}" if process.rate else "starting"
        shown = "evaluating" if process.planned.command == "evaluate" else shown
        parts.append(
            f"{process.planned.name} {shown}"
            + ("" if math.isnan(process.episode_return) else f" return {process.episode_return:.4g}")
        )
    if waiting:
        parts.append(f"{len(waiting)} waiting")
    rate = sum(process.rate for process in running)
    left = sum(process.planned.config.steps - process.step for process in running) + sum(
        planned.config.steps - planned.start_step for planned in waiting
    )
    eta = f", ETA {timedelta(seconds=round(left / rate))}" if rate else ""
    return " | ".join([*parts, f"{rate:,.1f} steps/s in all{eta}"])
