"""Runs as child processes: started, watched and stopped together, their progress on one line.

A child prints into its log, which is read as it grows: its lines come out here with its name in front, its own progress
lines excepted. How far it is stands in its metrics.jsonl. Children are in process groups of their own, so that Ctrl-C
reaches this process alone, which has them save and end.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from stormfast.config import TrainConfig
from stormfast.runs.metrics import METRICS
from stormfast.runs.progress import RATE_OVER, log_line

POLL_EVERY = 0.25  # seconds between two looks at the children, their logs and their metrics
LOG_EVERY = 10.0  # seconds between two lines of progress where there is no terminal
TAIL = 16_384  # bytes of metrics.jsonl that a look reads: some thirty lines
STOPPING = "stopping after this step"  # how a run says that a signal has reached it
# Imports come from where this process takes them, which `python -m stormfast` would not do in another directory.
START = "import sys; sys.path[:] = {path}; from stormfast.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class Planned:
    """A run of a group, before it has a process."""

    config: TrainConfig
    flags: tuple[str, ...]  # of `stormfast train`: they begin this run or go on with it
    start_step: int = 0  # where it goes on

    @property
    def run_dir(self) -> Path:
        return Path(str(self.config.run_dir))

    @property
    def name(self) -> str:
        return self.run_dir.name

    @property
    def log(self) -> Path:
        return self.run_dir.with_name(f"{self.name}.log")


class Process:
    """A run's process, and what is known of it: step, steps/s of late, return of its last episodes."""

    def __init__(self, member: Planned, environment: Mapping[str, str]) -> None:
        """Starts it. Raises: OSError when there is no process to be had, or no log to be written."""
        self.member = member
        self.step, self.rate, self.episode_return = member.start_step, 0.0, math.nan
        self.failed = False
        self.told_to_stop = False
        self._seen = version(member.run_dir / METRICS)  # what an earlier process left says nothing of this one
        command = [sys.executable, "-c", START.format(path=ascii(sys.path)), "train", *member.flags]
        with open(member.log, "ab") as log:
            start = log.tell()
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, process_group=0
            )
        self._log = open(member.log, "rb")  # noqa: SIM115 - open for as long as the child is watched
        self._log.seek(start)
        self._partial = b""

    def new_lines(self) -> list[str]:
        """What it printed since the last call, without progress, which look() takes from the metrics."""
        end = b"\n" if self.process.returncode is not None else b""
        *lines, self._partial = (self._partial + self._log.read() + end).split(b"\n")
        texts = [line.decode(errors="replace").strip() for line in lines]
        self.told_to_stop |= any(text.startswith(STOPPING) for text in texts)
        return [text for text in texts if text and not text.startswith(f"{self.member.config.game}  ")]

    def look(self) -> None:
        """Takes step, rate and return from the metrics that the run has written since it was looked at."""
        start, path = self.member.start_step, self.member.run_dir / METRICS
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
        """Has it save and end; one that has nothing to save yet ends at once, which SIGTERM does and SIGINT does with a traceback.

        Not where a signal has reached it already, as when a batch system signals every process of a job: it would not save.
        """
        if not self.told_to_stop:
            self.told_to_stop = True
            self.process.terminate()

    def kill(self) -> None:
        """Ends it at once, with the processes it may have started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

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
    """The last lines of a metrics.jsonl; none where there is none yet. A line cut short, by the cut or by the writer, is left out."""
    try:
        with open(path, "rb") as file:
            cut = max(0, file.seek(0, os.SEEK_END) - TAIL)
            file.seek(cut)
            lines = file.read().split(b"\n")[1 if cut else 0 : -1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


# --- watching ------------------------------------------------------------------------------------------------------


def watch(members: Sequence[Planned], parallel: int, environment: Mapping[str, str]) -> tuple[list[Process], int]:
    """Runs all members, at most `parallel` at once, until each has ended.

    At the first SIGINT, SIGTERM or SIGHUP running children save and end, and waiting ones never start. A second kills the
    children.
    Returns: the children that were started, and the signal that stopped them, or 0.
    """
    waiting, running, children = deque(members), list[Process](), list[Process]()
    with Signals() as signals, Board() as board, ended(running):
        while running or (waiting and not signals.caught):
            while waiting and len(running) < parallel and not signals.caught:
                child = start(waiting.popleft(), environment, board)
                if child:
                    running.append(child)
                    children.append(child)
            time.sleep(POLL_EVERY)
            for child in list(running):
                if attend(child, board, signals.first):
                    running.remove(child)
            answer(signals, running, board)
            board.show(running, waiting)
    return children, signals.first


def start(member: Planned, environment: Mapping[str, str], board: "Board") -> Process | None:
    """The child of a member, or None, told, where it cannot be started."""
    try:
        return Process(member, environment)
    except OSError as error:
        board.log_line(f"{member.name}: cannot be started: {error.strerror or error}")
        return None


def attend(child: Process, board: "Board", stopped_by: int) -> bool:
    """Passes on what a child has said, and how it ended. Returns True when it has."""
    status = child.process.poll()  # before its log: nothing comes after
    for line in child.new_lines():
        board.log_line(f"{child.member.name}: {line}")
    child.look()
    if status is None:
        return False
    child.close()
    as_asked = stopped_by and status in (128 + signal.SIGTERM, 128 + stopped_by, -signal.SIGTERM)
    if status and not as_asked:
        child.failed = True
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"failed with status {status}"
        board.log_line(f"{child.member.name}: {how} at step {child.step}; its log is {child.member.log}")
    return True


def answer(signals: "Signals", running: Sequence[Process], board: "Board") -> None:
    """Acts on the signals caught since the last call."""
    while signals.answered < len(signals.caught):
        signals.answered += 1
        if signals.answered == 1:
            board.log_line(
                f"{signal.Signals(signals.first).name}: every run stops after its step and saves; once more to kill them, unsaved"
            )
        for child in running:
            if signals.answered == 1:
                child.stop()
            else:
                child.kill()


@contextlib.contextmanager
def ended(running: Sequence[Process]) -> Iterator[None]:
    """No child outlives an error of this process."""
    try:
        yield
    finally:
        for child in running:
            child.stop()
        for child in running:
            child.process.wait()
            child.close()


class Signals:
    """SIGINT, SIGTERM and SIGHUP are noted while the context is open. SIGHUP counts as SIGTERM, and not at all under nohup."""

    def __init__(self) -> None:
        self.caught: list[int] = []
        self.answered = 0

    @property
    def first(self) -> int:
        return self.caught[0] if self.caught else 0

    def __enter__(self) -> "Signals":
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
        wanted = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} - ignored
        self.previous = {number: signal.signal(number, self.catch) for number in wanted}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def catch(self, number: int, frame: FrameType | None) -> None:
        self.caught.append(signal.SIGTERM if number == signal.SIGHUP else number)


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
    for child in running:
        shown = f"{child.step:,}/{child.member.config.steps:,}" if child.rate else "starting"
        parts.append(
            f"{child.member.name} {shown}"
            + ("" if math.isnan(child.episode_return) else f" return {child.episode_return:.4g}")
        )
    if waiting:
        parts.append(f"{len(waiting)} waiting")
    rate = sum(child.rate for child in running)
    left = sum(child.member.config.steps - child.step for child in running) + sum(
        member.config.steps - member.start_step for member in waiting
    )
    eta = f", ETA {timedelta(seconds=round(left / rate))}" if rate else ""
    return " | ".join([*parts, f"{rate:,.1f} steps/s in all{eta}"])
