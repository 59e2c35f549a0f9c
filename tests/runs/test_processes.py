"""Process processes: how many at once, what comes out of them, failures, signals.

The processes here are scripts that act as runs do.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from stormfast.runs import processes as processes
from stormfast.runs.processes import Board, Planned, Process, board_line, last_metrics, watch
from stormfast.settings import TrainConfig

FAKE = """
import json, os, pathlib, signal, sys, time
run_dir, steps, start, kind = pathlib.Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
caught = []
def catch(number, frame):
    if caught:
        os._exit(77)
    caught.append(number)
    os.write(2, b"\\nstopping after this step; once more to stop at once\\n")
print("Catch: begins", flush=True)
if kind == "unborn":
    time.sleep(60)
signal.signal(signal.SIGINT, catch); signal.signal(signal.SIGTERM, catch)
run_dir.mkdir(exist_ok=True)
(run_dir / "started").write_text(str(time.monotonic()))
(run_dir / "config.json").write_text("{}")
if kind == "fail":
    print("stormfast: error: no such thing", end="", file=sys.stderr)
    sys.exit(2)
if kind == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
with open(run_dir / "metrics.jsonl", "a") as metrics:
    for step in range(start, steps + 1):
        metrics.write(json.dumps({"step": step, "seconds": step / 10, "episode_return": step - 5.0}) + "\\n")
        metrics.flush()
        print(f"Catch  {step}/{steps} steps  10.0 steps/s", flush=True)
(run_dir / "ready").touch()
while kind in ("wait", "stubborn") and not (caught and kind == "wait"):
    time.sleep(0.01)
time.sleep(0.3)
(run_dir / "ended").write_text(str(time.monotonic()))
sys.exit(128 + caught[0] if caught else 0)
"""


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Planned]:
    """Makes planned_runs whose processes are scripts: kind is how they act."""
    monkeypatch.setattr(processes, "START", FAKE.replace("{", "{{").replace("}", "}}"))
    monkeypatch.setattr(processes, "POLL_EVERY", 0.02)

    def make(name: str, kind: str = "finish", steps: int = 30, start: int = 0) -> Planned:
        config = TrainConfig(game="Catch", steps=steps, run_dir=str(tmp_path / name))
        return Planned(config, (str(tmp_path / name), str(steps), str(start + bool(start)), kind), start)

    return make


def when(paths: list[Path], *numbers: signal.Signals) -> threading.Thread:
    """Sends signals to this process, one after the other, once the paths are there."""

    def send() -> None:
        deadline = time.monotonic() + 30
        while not all(path.exists() for path in paths) and time.monotonic() < deadline:
            time.sleep(0.02)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.3)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def seconds(planned_runs: list[Planned], name: str) -> list[float]:
    return [float((planned.run_dir / name).read_text()) for planned in planned_runs]


def test_as_many_at_once_as_told_and_lines_with_their_name(
    planned: Callable[..., Planned], capfd: pytest.CaptureFixture[str]
) -> None:
    planned_runs = [planned(f"Catch-seed{k}") for k in range(3)]
    done, stopped_by = watch(planned_runs, 2, os.environ)
    assert (stopped_by, [process.popen.returncode for process in done], [process.step for process in done]) == (
        0,
        [0, 0, 0],
        [30, 30, 30],
    )
    started, ended = seconds(planned_runs, "started"), seconds(planned_runs, "ended")
    assert max(started[:2]) < min(ended)  # two together
    assert started[2] > min(ended[:2])  # the third when one of them was done
    lines = capfd.readouterr().err.splitlines()
    assert sorted(lines) == [f"Catch-seed{k}: Catch: begins" for k in range(3)]  # no progress line of theirs
    assert planned_runs[0].log.read_text().count(" steps/s") == 31


def test_what_follows_a_process_starts_next_unless_it_failed(
    planned: Callable[..., Planned], capfd: pytest.CaptureFixture[str]
) -> None:
    follower = replace(planned("Catch-seed0"), command="evaluate", label="an arm/Catch-seed0")
    todo, started, ended = [planned("Catch-seed0"), planned("Catch-seed1", "fail"), planned("Catch-seed2")], [], []

    def after(done: Planned) -> Planned | None:
        ended.append(done)
        return follower if done is todo[0] else None

    processes, _ = watch(todo, 1, os.environ, before=started.append, after=after)
    assert started == [todo[0], follower, *todo[1:]] == [process.planned for process in processes]
    assert ended == [todo[0], follower, todo[2]]
    assert "an arm" not in capfd.readouterr().err  # an evaluation that ends well prints a table into its log alone
    assert follower.log == todo[0].log and follower.name == "an arm/Catch-seed0"


def test_one_that_fails_is_told_and_the_others_go_on(
    planned: Callable[..., Planned], capfd: pytest.CaptureFixture[str]
) -> None:
    planned_runs = [planned("Catch-seed0", "fail"), planned("Catch-seed1", "crash"), planned("Catch-seed2")]
    done, stopped_by = watch(planned_runs, 1, os.environ)
    assert stopped_by == 0
    assert [process.failed for process in done] == [True, True, False]
    lines = capfd.readouterr().err.splitlines()
    assert "Catch-seed0: stormfast: error: no such thing" in lines
    assert f"Catch-seed0: failed with status 2 at step 0; its log is {planned_runs[0].log}" in lines
    assert f"Catch-seed1: was killed by SIGSEGV at step 0; its log is {planned_runs[1].log}" in lines
    assert not any(line.startswith("Catch-seed2: ") and "begins" not in line for line in lines)


def test_one_that_cannot_be_started_is_told(
    planned: Callable[..., Planned], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad, good = planned("no/Catch-seed0"), planned("Catch-seed1")  # there is no directory for its log
    done, _ = watch([bad, good], 1, os.environ)
    assert [process.planned for process in done] == [good]
    assert "Catch-seed0: cannot be started: No such file or directory" in capfd.readouterr().err.splitlines()


@pytest.mark.parametrize(("sent", "counts_as"), [(signal.SIGINT, 2), (signal.SIGTERM, 15), (signal.SIGHUP, 15)])
def test_a_signal_stops_every_child_once_and_waiting_ones_never_start(
    planned: Callable[..., Planned], sent: signal.Signals, counts_as: int, capfd: pytest.CaptureFixture[str]
) -> None:
    planned_runs = [planned("Catch-seed0", "wait"), planned("Catch-seed1", "wait"), planned("Catch-seed2", "wait")]
    thread = when([process.run_dir / "ready" for process in planned_runs[:2]], sent)
    done, stopped_by = watch(planned_runs, 2, os.environ)
    thread.join()
    assert stopped_by == counts_as
    assert [(process.popen.returncode, process.failed) for process in done] == [(128 + signal.SIGTERM, False)] * 2
    assert all((process.planned.run_dir / "ended").exists() for process in done)
    assert not planned_runs[2].log.exists()
    assert capfd.readouterr().err.count("once more to kill them") == 1


def test_a_child_that_had_the_signal_already_is_not_told_again(planned: Callable[..., Planned]) -> None:
    """A batch system signals every process of a job: a second signal would keep the run from saving."""
    one = planned("Catch-seed0", "wait")
    process = Process(one, os.environ)
    while not (one.run_dir / "ready").exists():
        time.sleep(0.02)
    os.kill(process.popen.pid, signal.SIGTERM)
    while "stopping after this step" not in one.log.read_text():
        time.sleep(0.02)
    process.new_lines()
    process.stop()
    assert process.popen.wait(timeout=10) == 128 + signal.SIGTERM
    assert (one.run_dir / "ended").exists()
    process.close()


def test_a_child_with_nothing_to_save_ends_at_once(
    planned: Callable[..., Planned], capfd: pytest.CaptureFixture[str]
) -> None:
    one = planned("Catch-seed0", "unborn")
    thread = when([one.log], signal.SIGINT)
    done, stopped_by = watch([one], 1, os.environ)
    thread.join()
    assert (stopped_by, done[0].popen.returncode, done[0].failed) == (signal.SIGINT, -signal.SIGTERM, False)
    assert "failed" not in capfd.readouterr().err


def test_a_second_signal_kills(planned: Callable[..., Planned], capfd: pytest.CaptureFixture[str]) -> None:
    one = planned("Catch-seed0", "stubborn")
    thread = when([one.run_dir / "ready"], signal.SIGINT, signal.SIGINT)
    done, stopped_by = watch([one], 1, os.environ)
    thread.join()
    assert (stopped_by, done[0].popen.returncode) == (signal.SIGINT, -signal.SIGKILL)
    assert "Catch-seed0: was killed by SIGKILL at step 30" in capfd.readouterr().err


def test_no_child_outlives_an_error(planned: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch) -> None:
    one = planned("Catch-seed0", "wait")

    def fail(process: Process, board: Board, stopped_by: int) -> bool:
        if (one.run_dir / "ready").exists():
            raise ZeroDivisionError
        return False

    monkeypatch.setattr(processes, "poll", fail)
    with pytest.raises(ZeroDivisionError):
        watch([one], 1, os.environ)
    assert (one.run_dir / "ended").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_metrics_an_earlier_process_left_do_not_count(planned: Callable[..., Planned]) -> None:
    one = planned("Catch-seed0", "fail", start=10)
    one.run_dir.mkdir()
    (one.run_dir / "metrics.jsonl").write_text('{"step": 20, "seconds": 2.0}\n')
    (process,), _ = watch([one], 1, os.environ)
    assert (process.step, process.rate) == (10, 0)


def test_step_rate_and_return_come_from_the_metrics(planned: Callable[..., Planned]) -> None:
    (process,), _ = watch([planned("Catch-seed0", steps=1000)], 1, os.environ)
    assert (process.step, process.rate, process.episode_return) == (1000, pytest.approx(10.0), 995.0)


def test_last_metrics_leaves_out_what_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_metrics(path) == []
    path.write_text("".join(f'{{"step": {step}, "seconds": 1.0}}\n' for step in range(10_000)) + '{"step": 10000, "sec')
    steps = [line["step"] for line in last_metrics(path)]
    assert steps == list(range(steps[0], 10_000))
    assert 100 < len(steps) < 1000


def test_the_line_of_progress(planned: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(steps=100_000)
    fast, new = (Process.__new__(Process) for _ in range(2))
    fast.planned, fast.step, fast.rate, fast.episode_return = (
        Planned(replace(config, run_dir="g/Pong-seed0"), ()),
        20_000,
        40.0,
        -20.5,
    )
    new.planned, new.step, new.rate, new.episode_return = (
        Planned(replace(config, run_dir="g/Pong-seed1"), ()),
        0,
        0.0,
        float("nan"),
    )
    expected = (
        "Pong-seed0 20,000/100,000 return -20.5 | Pong-seed1 starting | 1 waiting | 40.0 steps/s in all, ETA 1:56:40"
    )
    assert board_line([fast, new], [Planned(config, ())]) == expected
    assert board_line([new], []) == "Pong-seed1 starting | 0.0 steps/s in all"
    new.planned = replace(new.planned, command="evaluate")
    assert board_line([new], []) == "Pong-seed1 evaluating | 0.0 steps/s in all"


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_line_is_redrawn_and_lines_go_above_it(
    planned: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    watch([planned("Catch-seed0", steps=1000)], 1, os.environ)
    shown = terminal.getvalue()
    assert shown.count("Catch-seed0: Catch: begins") == 1
    assert "Catch-seed0 1,000/1,000 return 995 | 10.0 steps/s in all" in shown
    assert "\x1b[" in shown


def test_in_a_log_the_line_comes_now_and_then(
    planned: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "LOG_EVERY", 0.0)
    watch([planned("Catch-seed0", steps=1000)], 1, os.environ)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("Catch-seed0 ")]
    assert "Catch-seed0 1,000/1,000 return 995 | 10.0 steps/s in all, ETA 0:00:00" in lines
    assert len(lines) == len(set(lines))  # none twice
