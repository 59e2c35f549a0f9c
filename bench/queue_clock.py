"""The clock of benches on a CPU: seconds, less those in which the main thread was ready to run and had no core.

Other work on the machine then changes a round's time far less. pytest-benchmark takes it in either checkout
(`--benchmark-timer=queue_clock.seconds`), so it imports nothing of any.
"""

import os
import time
from pathlib import Path

SCHEDSTAT = Path("/proc/self/schedstat")  # of the main thread: ns on a core, ns waiting for a core, time slices
MAX_OTHERS = 0.01  # of an interval, that other threads of this process may run and not be what the main thread awaited
_file = os.open(SCHEDSTAT, os.O_RDONLY) if SCHEDSTAT.exists() else None  # only Linux has it


def waited() -> float:
    """Seconds so far that the main thread waited for a core."""
    return int(os.pread(_file, 64, 0).split()[1]) / 1e9 if _file is not None else 0.0


def read() -> tuple[float, float, float]:
    """Seconds so far: by the clock, waiting for a core, and processor time of all threads but the main one."""
    while True:
        before, clock = waited(), time.perf_counter()
        if waited() == before:  # else it had to wait between the two
            return clock, before, time.process_time() - time.thread_time()


_total, _last = 0.0, read()


def seconds() -> float:
    """Seconds so far without those waiting for a core; only differences mean something."""
    global _total, _last
    now = read()
    passed, queued, others = (after - before for after, before in zip(now, _last, strict=True))
    _total += passed - queued if others < MAX_OTHERS * passed else passed
    _last = now
    return _total
