"""A stage's process: run to its end or to its limit, stopped so that it can save what it has, and leaving nothing behind."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Literal

POLL_EVERY = 0.1  # seconds
TAIL = 15  # lines
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
Status = Literal["passed", "failed", "timed out", "interrupted"]


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: Status
    code: int  # exit status; negative is the signal that killed it
    seconds: float


class Signals:
    """SIGINT, SIGTERM and SIGHUP are noted while the context is open; SIGHUP not at all under nohup."""

    def __init__(self) -> None:
        self.caught = 0

    def __enter__(self) -> "Signals":
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
        self.previous = {
            number: signal.signal(number, self.catch)
            for number in {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} - ignored
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def catch(self, number: int, frame: FrameType | None) -> None:
        self.caught = self.caught or number


def run(
    command: Sequence[str],
    *,
    log: Path,
    limit: float,
    grace: float,
    signals: Signals,
    stop_with: signal.Signals = signal.SIGTERM,
    output: Path | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    held: Sequence[int] = (),
) -> Ended:
    """Runs a command.

    It has a process group of its own, so that Ctrl-C reaches this process alone. At the limit, or when a signal is caught
    here, it gets `stop_with`, and `grace` seconds later its whole group is killed. Should this process die, it gets `stop_with` too.

    Args:
        log: where it prints, anew; its standard output goes to `output` where that is given.
        limit, grace: seconds.
        held: file descriptors that stay open in it: a lock on them lasts as long as it.
    Raises: OSError where it cannot be started or its files cannot be written.
    """
    started = time.monotonic()
    with ExitStack() as files:
        errors: IO[bytes] = files.enter_context(open(log, "wb"))
        out = files.enter_context(open(output, "wb")) if output else errors
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            env=environment,
            cwd=folder,
            process_group=0,
            pass_fds=held,
            preexec_fn=_die_with_parent(stop_with),
        )
    stopped: Status | None = None
    try:
        while not _has_ended(process, POLL_EVERY):
            if signals.caught or time.monotonic() - started >= limit:
                stopped = "interrupted" if signals.caught else "timed out"
                process.send_signal(stop_with)
                _has_ended(process, grace)
                break
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # itself where it still runs, and whatever it started
        process.wait()
    status: Status = (
        "passed" if process.returncode == 0 else stopped or "failed"
    )  # it may have been done just as it was told to stop
    return Ended(status, process.returncode, time.monotonic() - started)


def _has_ended(process: subprocess.Popen[bytes], within: float) -> bool:
    try:
        process.wait(timeout=within)
    except subprocess.TimeoutExpired:
        return False
    return True


def _die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """What the child does before it becomes the command: without it, a suite that is killed leaves work running on the GPU."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: little may be done between fork and exec

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it, and would go on
        prctl(PR_SET_PDEATHSIG, int(number))

    return prepare


def last_lines(path: Path, count: int = TAIL) -> list[str]:
    """The last lines of a log that say something; none where there is no log."""
    if not path.exists():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 100_000))
        text = file.read().decode(errors="replace")
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]
