"""A stage's process ends when it should, says how, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.suite.process import Ended, Signals, last_lines, run

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('begun', flush=True); time.sleep(60)"
)
SAVES = """
import signal, sys, time
def leave(number, frame):
    print('saved', flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
print('begun', flush=True)
time.sleep(60)
"""


def python(code: str, tmp_path: Path, limit: float = 30, grace: float = 5, **more) -> tuple[Ended, str]:
    log = tmp_path / "log"
    ended = run(
        [sys.executable, "-c", code], log=log, limit=limit, grace=grace, signals=more.pop("signals", Signals()), **more
    )
    return ended, log.read_text()


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(holds, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


def test_what_it_says_and_how_it_ended(tmp_path: Path) -> None:
    ended, log = python("import sys; print('out'); print('err', file=sys.stderr)", tmp_path)
    assert (ended.status, ended.code) == ("passed", 0)
    assert sorted(log.split()) == ["err", "out"]
    ended, log = python("raise SystemExit(7)", tmp_path)
    assert (ended.status, ended.code, log) == ("failed", 7, "")
    ended, _ = python("import os; os.kill(os.getpid(), 11)", tmp_path)
    assert (ended.status, ended.code) == ("failed", -11)


def test_its_output_may_go_elsewhere(tmp_path: Path) -> None:
    ended, log = python("import sys; print('out'); print('err', file=sys.stderr)", tmp_path, output=tmp_path / "output")
    assert ended.status == "passed"
    assert (log, (tmp_path / "output").read_text()) == ("err\n", "out\n")


def test_at_its_limit_it_is_told_and_may_save(tmp_path: Path) -> None:
    ended, log = python(SAVES, tmp_path, limit=1)
    assert (ended.status, ended.code, log) == ("timed out", 143, "begun\nsaved\n")
    assert 1 <= ended.seconds < 4


def test_what_does_not_listen_is_killed(tmp_path: Path) -> None:
    ended, log = python(STUBBORN, tmp_path, limit=1, grace=0.5)
    assert (ended.status, ended.code, log) == ("timed out", -signal.SIGKILL, "begun\n")
    assert ended.seconds < 4


def test_what_was_done_as_it_was_told_to_stop_has_passed(tmp_path: Path) -> None:
    ended, _ = python(SAVES.replace("143", "0"), tmp_path, limit=1)
    assert ended.status == "passed"


def test_a_signal_caught_here_stops_it(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Signals() as signals:
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        ended, log = python(SAVES, tmp_path, signals=signals)
        assert (ended.status, signals.caught) == ("interrupted", signal.SIGTERM)
    assert log == "begun\nsaved\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigint_reaches_it_where_a_shell_had_it_ignored(tmp_path: Path) -> None:
    """As in the background of a script; pytest then writes what it has."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ended, log = python("import time; time.sleep(60)", tmp_path, limit=1, stop_with=signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.status == "timed out" and "KeyboardInterrupt" in log


def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    code = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)"
    ended, log = python(code, tmp_path)
    assert ended.status == "passed"
    assert wait_until(lambda: not alive(int(log)))


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_it_does_not_outlive_a_killed_suite(tmp_path: Path) -> None:
    stage = "import os; print(os.getpid(), flush=True)" + SAVES
    code = f"""
import sys; sys.path[:0] = {sys.path!r}
from pathlib import Path
from bench.suite.process import Signals, run
run([sys.executable, "-c", {stage!r}], log=Path({str(tmp_path / "log")!r}), limit=60, grace=5, signals=Signals())
"""
    suite = subprocess.Popen([sys.executable, "-c", code])
    log = tmp_path / "log"
    assert wait_until(lambda: log.exists() and "begun" in log.read_text())
    suite.kill()
    suite.wait()
    assert wait_until(lambda: "saved" in log.read_text())
    assert wait_until(lambda: not alive(int(log.read_text().split()[0])))


def test_last_lines(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "none") == []
    (tmp_path / "log").write_bytes(b"".join(b"%d \n\n" % i for i in range(100_000)) + b"\xff end")
    assert last_lines(tmp_path / "log", 3) == ["99998", "99999", "\ufffd end"]
