"""The live progress display of a terminal; one line a report where there is none."""

import contextlib
import sys
import time
from collections import deque
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

REDRAW_EVERY = 0.25  # seconds
RATE_OVER = 30.0  # seconds the rate is measured over
SHOWN = {  # metric -> its name here
    "episode_return": "return",
    "world_model/total": "world model loss",
    "world_model/reconstruction": "reconstruction",
    "world_model/dynamics_kl": "KL",
    "agent/value": "value loss",
    "agent/entropy": "entropy",
}


def log_line(line: str) -> None:
    """Prints a line on stderr. A reader that has left, as `| head -1` does, must not end a run."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


class Progress:
    """Step, share, rate, ETA, episode return and losses, while the context is open.

    On a terminal a display is redrawn in place, at most four times a second. Elsewhere, as in the log of a CI job, each
    update that brings values prints one line.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int,
        title: str,
        file: TextIO | None = None,
        unit: str = "steps",
        quiet: bool = False,
    ) -> None:
        """Args: total_steps and start_step in `unit`; file: where to show it, default sys.stderr; quiet: nowhere."""
        self.total, self.step, self.title, self.unit = total_steps, start_step, title, unit
        self.values: dict[str, float] = {}
        self._console = Console(file=file or sys.stderr, quiet=quiet)
        self._quiet = quiet
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal and not quiet:
            self._live = Live(console=self._console, auto_refresh=False)  # no thread: update() redraws
        self._marks = deque([(time.monotonic(), start_step)])  # (seconds, step), RATE_OVER back at most
        self._redraw_at = 0.0

    def __enter__(self) -> "Progress":
        self._marks = deque([(time.monotonic(), self.step)])
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(self._display(), refresh=True)
            self._live.stop()

    def update(self, step: int, values: dict[str, float] | None = None) -> None:
        """Shows the step and, now and then, the newest metrics. Cheap enough for every step."""
        self.step = step
        now = time.monotonic()
        if values:
            self.values |= values
            if self._live is None and not self._quiet:
                self._mark(now)
                with contextlib.suppress(OSError):  # as in log_line()
                    self._console.file.write(self._line() + "\n")
                    self._console.file.flush()
        if now >= self._redraw_at:
            self._redraw_at = now + REDRAW_EVERY
            self._mark(now)
            if self._live is not None:
                self._live.update(self._display(), refresh=True)

    @property
    def rate(self) -> float:
        """Steps per second of late; 0 before the first step."""
        (then, before), (now, step) = self._marks[0], self._marks[-1]
        return (step - before) / (now - then) if now > then else 0.0

    def _mark(self, now: float) -> None:
        self._marks.append((now, self.step))
        while len(self._marks) > 2 and self._marks[1][0] <= now - RATE_OVER:
            self._marks.popleft()

    def _fields(self) -> list[str]:
        eta = _clock((self.total - self.step) / self.rate) if self.rate > 0 else "-:--"
        return [f"{self.step:,}/{self.total:,} {self.unit}", f"{self.rate:,.1f} {self.unit}/s", f"ETA {eta}"]

    def _metrics(self) -> list[str]:
        return [f"{shown} {self.values[name]:.4g}" for name, shown in SHOWN.items() if name in self.values]

    def _line(self) -> str:
        return "  ".join([self.title, *self._fields(), *self._metrics()])

    def _display(self) -> Group:
        grid = Table.grid(padding=(0, 2))
        grid.add_row(
            Text(self.title, style="bold"),
            ProgressBar(self.total, min(self.step, self.total), width=30),
            *map(Text, self._fields()),
        )
        metrics = Text("  ".join(self._metrics()))
        return Group(grid, metrics) if metrics else Group(grid)


def _clock(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
