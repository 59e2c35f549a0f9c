"""A comparison's scratch directory: gone afterwards, whatever signal ends it; one that was killed is cleaned up after by the next."""

import contextlib
import os
import platform
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

PREFIX = (
    f"stormfast-compare-{platform.node()}-"  # then the owner's process id: a directory may be seen from other machines
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory that is gone afterwards: the signals that end a process raise here, once, and what follows is not interrupted."""

    def leave(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    for each in Path(tempfile.gettempdir()).iterdir():
        if is_abandoned(each):
            shutil.rmtree(each, ignore_errors=True)
    heeded = [
        number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN
    ]  # nohup ignores SIGHUP, for one
    previous = {number: signal.signal(number, leave) for number in heeded}
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")).resolve()
        try:
            yield scratch
        finally:
            with uninterrupted():
                shutil.rmtree(scratch, ignore_errors=True)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignores the signals that end a process, for a clean-up; the commands it starts ignore them too."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def is_abandoned(path: Path) -> bool:
    """Whether a path is the scratch directory of a process of this machine that is no more."""
    owner = path.name.removeprefix(PREFIX).partition("-")[0]
    if not path.name.startswith(PREFIX) or not owner.isdecimal():
        return False
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # another user's; nobody's
        return False
    return False
