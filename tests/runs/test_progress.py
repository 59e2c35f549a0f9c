"""One line a report in a log, a display redrawn in place on a terminal."""

import io
import re

import pytest

from stormfast.runs import progress
from stormfast.runs.progress import Progress


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return Clock(monkeypatch)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_gets_one_line_a_report(clock):
    out = io.StringIO()
    with Progress(2000, 0, "Pong", file=out) as shown:
        for step in range(1, 1001):
            clock.now += 0.1
            shown.update(
                step,
                {"episode_return": -20.5, "world_model/total": 12.34567, "other": 1.0} if step % 500 == 0 else None,
            )
    first, second = out.getvalue().splitlines()
    assert first == "Pong  500/2,000 steps  10.0 steps/s  ETA 2:30  return -20.5  world model loss 12.35"
    assert second.startswith("Pong  1,000/2,000 steps  10.0 steps/s  ETA 1:40  ")


def test_the_rate_is_that_of_late(clock):
    with Progress(10_000, 0, "Pong", file=io.StringIO()) as shown:
        for step in range(1, 1001):  # 1000 steps/s, then 10
            clock.now += 0.001
            shown.update(step)
        for step in range(1001, 1401):
            clock.now += 0.1
            shown.update(step)
        assert shown.rate == pytest.approx(10, rel=0.01)


def test_a_resumed_run_counts_from_where_it_started(clock):
    with Progress(1000, 900, "Pong", file=io.StringIO()) as shown:
        clock.now += 10
        shown.update(950, {"agent/entropy": 1.0})
        assert shown.rate == pytest.approx(5)


def test_the_first_report_has_no_eta_yet(clock):
    out = io.StringIO()
    with Progress(1000, 0, "Pong", file=out, unit="episodes") as shown:
        shown.update(0, {"episode_return": 1.0})
    assert out.getvalue() == "Pong  0/1,000 episodes  0.0 episodes/s  ETA -:--  return 1\n"


def test_a_terminal_is_redrawn_four_times_a_second_at_most(clock):
    out = Terminal()
    with Progress(4000, 0, "Pong", file=out) as shown:
        for step in range(1, 4001):  # four seconds
            clock.now += 0.001
            shown.update(step, {"episode_return": 3.25})
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert 10 <= text.count("Pong") <= 20
    assert "4,000/4,000 steps" in text
    assert "return 3.25" in text


def test_a_log_line_is_not_wrapped(clock):
    out = io.StringIO()
    with Progress(10, 0, "a title " * 40, file=out) as shown:
        shown.update(1, dict.fromkeys(progress.SHOWN, 1.0))
    assert len(out.getvalue().splitlines()) == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (360_000, "100:00:00")]
)
def test_clock(seconds, text):
    assert progress._clock(seconds) == text
