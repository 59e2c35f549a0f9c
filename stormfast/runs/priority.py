"""The lowest priority on the CPU, for work that must not slow down anything else."""

import contextlib
import os
from pathlib import Path

LOWEST = 19
AUTOGROUP = "/proc/{pid}/autogroup"


def lower(pid: int) -> None:
    """Has a process, and what it starts from now on, run when nothing else wants the CPU.

    Args: pid: it must lead a session of its own. Linux shares the CPU between sessions first, by a value of the whole
        session, and nice says only who comes first within one.
    """
    with contextlib.suppress(OSError):  # it has ended
        os.setpriority(os.PRIO_PROCESS, pid, LOWEST)
    with contextlib.suppress(OSError):  # a system without such groups
        Path(AUTOGROUP.format(pid=pid)).write_text(str(LOWEST))
