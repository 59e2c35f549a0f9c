"""Signals that ask a process to end, noted instead of obeyed at once, so that it can save first."""

import signal
import threading
from collections.abc import Callable
from types import FrameType


class SignalWatch:
    """SIGINT, SIGTERM and SIGHUP are noted while the context is open.

    SIGHUP counts as SIGTERM, and not at all under nohup.

    Only the main thread of a process may handle signals: in another thread nothing is noted, and nothing is changed.

    Args: on_signal: called in the handler with the number of signals so far; what it raises interrupts the process.
    """

    def __init__(self, on_signal: Callable[[int], None] = lambda count: None) -> None:
        self.on_signal = on_signal
        self.caught: list[int] = []
        self._previous: dict[int, object] = {}

    @property
    def first(self) -> int:
        """The first signal, or 0."""
        return self.caught[0] if self.caught else 0

    def __enter__(self) -> "SignalWatch":
        if threading.current_thread() is threading.main_thread():
            ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
            wanted = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} - ignored
            self._previous = {number: signal.signal(number, self._catch) for number in wanted}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.caught.append(signal.SIGTERM if number == signal.SIGHUP else number)
        try:
            self.on_signal(len(self.caught))
        except BaseException:
            self.__exit__()  # one signal more, while things are closed, does what it did before
            raise
