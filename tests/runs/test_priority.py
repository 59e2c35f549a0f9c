"""The lowest priority: of a process and its session, and of no other."""

import os
import subprocess
from pathlib import Path

import pytest

from stormfast.runs.priority import lower

OURS = Path("/proc/self/autogroup")


@pytest.mark.skipif(not hasattr(os, "setpriority"), reason="no priorities of processes")
def test_a_process_and_its_session_are_lowered_and_we_are_not() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0), OURS.exists() and OURS.read_text()
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    lower(process.pid)
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == 19
    group = Path(f"/proc/{process.pid}/autogroup")
    assert not group.exists() or group.read_text().endswith(" nice 19\n")
    process.kill()
    process.wait()
    lower(process.pid)  # it has ended
    assert (os.getpriority(os.PRIO_PROCESS, 0), OURS.exists() and OURS.read_text()) == before
