"""Runs a command with a time limit and a log, stops it so that it can save its work, and leaves no process behind."""

import contextlib
import fcntl
import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.script import ROOT
from stormfast.errors import UserError
from stormfast.runs.signals import SignalWatch

POLL_EVERY = 0.1  # seconds


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    code: int  # exit status; negative: the signal that killed it
    seconds: float
    timed_out: bool = False
    interrupted: bool = False  # stopped because this process got a signal


def run(
    command: Sequence[str],
    signals: SignalWatch,
    *,
    log: Path,
    output: Path | None = None,
    limit: float = math.inf,
    grace: float = math.inf,
    stop_with: signal.Signals = signal.SIGTERM,
) -> Ended:
    """Runs a command from the root of the repository, in a session of its own: Ctrl-C reaches this process alone.

    At its limit, or once `signals` has caught one, it gets `stop_with`. What is left of it after `grace` seconds, or at
    a second signal, is killed.

    Args:
        log: the file for what it prints, written anew; its standard output goes to `output` where that is given.
        limit, grace: seconds.
    Raises: OSError where it cannot be started or its files cannot be written.
    """
    started = time.monotonic()
    timed_out = False
    with contextlib.ExitStack() as files:
        errors = files.enter_context(open(log, "wb"))
        stdout = files.enter_context(open(output, "wb")) if output else errors
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": errors}
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **streams)
        try:
            while process.poll() is None and not signals.caught and not timed_out:
                timed_out = time.monotonic() - started >= limit
                time.sleep(POLL_EVERY)
            if process.poll() is None:
                process.send_signal(stop_with)
                kill_at = time.monotonic() + grace
                while process.poll() is None and time.monotonic() < kill_at and len(signals.caught) < 2:
                    time.sleep(POLL_EVERY)
        finally:
            _kill(process)
    interrupted = bool(signals.caught) and not timed_out
    return Ended(process.returncode, time.monotonic() - started, timed_out, interrupted)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills the process group, and on Linux the whole session: `stormfast train --seeds 3` makes groups in it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            session = int(stat.read_text().rpartition(")")[2].split()[3])
            if session == process.pid:
                os.kill(int(stat.parent.name), signal.SIGKILL)


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines of a log that are not blank."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return [line.rstrip() for line in lines if line.strip()][-count:]


@contextlib.contextmanager
def only_one(path: Path, message: str) -> Iterator[None]:
    """Holds a lock on a file until the block ends. Raises: UserError(message) where another process holds it."""
    with open(path, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(message) from None
        yield
