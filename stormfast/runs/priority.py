"""The lowest priority on the CPU, for work that must not slow down anything else."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

LOWEST = 19
# Linux shares a CPU between sessions first: nice only says who comes first within one. A session keeps the value.
AUTOGROUP = Path("/proc/self/autogroup")


@contextlib.contextmanager
def lowest_priority() -> Iterator[None]:
    """This process, and those it starts from now on, run when nothing else wants the CPU.

    The session, which may be that of a terminal, gets its priority back at the end; the process cannot.
    """
    os.nice(LOWEST)
    before = _session_nice(LOWEST)
    try:
        yield
    finally:
        if before is not None:
            _session_nice(before)


def _session_nice(value: int) -> int | None:
    """Sets the session's. Returns: what it was; None where sessions have none."""
    with contextlib.suppress(OSError, ValueError, IndexError):  # no such file, or not allowed
        before = int(AUTOGROUP.read_text().split()[-1])
        AUTOGROUP.write_text(str(value))
        return before
    return None
