"""Jobs are stopped at their limit or by a signal, may save first, and leave no process behind."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from bench.jobs import last_lines, only_one, run
from stormfast.errors import UserError
from stormfast.runs.signals import SignalWatch

SAVES = """
import signal, sys, time
def save(number, frame):
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""
REFUSES = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""
STARTS_OTHERS = """
import subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
children = [subprocess.Popen(sleep), subprocess.Popen(sleep, process_group=0)]
print(*(child.pid for child in children), flush=True)
time.sleep(60)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def is_running(pid: int) -> bool:
    """False also for a process that has ended and was not waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("program", "code"), [(SAVES, 0), (REFUSES, -signal.SIGKILL)])
def test_a_job_may_save_at_its_limit_and_is_then_killed(program: str, code: int, tmp_path: Path) -> None:
    ended = run(python(program), SignalWatch(), log=tmp_path / "log", limit=2, grace=2)
    assert (ended.code, ended.timed_out) == (code, True) and ended.seconds < 20
    assert (last_lines(tmp_path / "log", 1) == ["saved"]) == (program == SAVES)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="sessions are searched in /proc")
def test_no_process_is_left_behind(tmp_path: Path) -> None:
    run(python(STARTS_OTHERS), SignalWatch(), log=tmp_path / "log", limit=2, grace=5)
    pids = [int(pid) for pid in last_lines(tmp_path / "log", 1)[0].split()]
    deadline = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2 and not any(map(is_running, pids))


def send_when_ready(log: Path, *numbers: int) -> None:
    """Sends signals to this process, once a job has printed a line; in a child, which then ends."""
    if os.fork() == 0:
        while not last_lines(log, 1):
            time.sleep(0.02)
        for number in numbers:
            os.kill(os.getppid(), number)
            time.sleep(0.3)
        os._exit(0)


def test_a_signal_stops_the_job_and_a_second_kills_it(tmp_path: Path) -> None:
    with SignalWatch() as signals:
        send_when_ready(tmp_path / "first", signal.SIGINT)
        ended = run(python(SAVES), signals, log=tmp_path / "first", grace=30)
    assert (ended.code, ended.interrupted) == (0, True) and last_lines(tmp_path / "first", 1) == ["saved"]
    with SignalWatch() as signals:
        send_when_ready(tmp_path / "second", signal.SIGTERM, signal.SIGTERM)
        ended = run(python(REFUSES), signals, log=tmp_path / "second", grace=60)
    assert (ended.code, ended.interrupted) == (-signal.SIGKILL, True) and ended.seconds < 20


def test_the_lock_is_held_by_one(tmp_path: Path) -> None:
    with only_one(tmp_path / "lock", ""), pytest.raises(UserError, match="busy"), only_one(tmp_path / "lock", "busy"):
        pass
    with only_one(tmp_path / "lock", "free again"):
        pass
