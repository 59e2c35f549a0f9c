"""Turns: one worker at a time, in the order promised, whatever the other skips; and what hangs, dies or is left alone ends."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.comparing import turns
from bench.comparing.turns import Session, TurnsError, Worker, alternate
from stormfast.errors import UserError

ROOT = Path(__file__).parents[3]
START = """
import os, sys, time
sys.path.insert(0, {root!r})
from bench.comparing.turns import join

name, log = {name!r}, open({log!r}, "a", buffering=1)
turns = join()
turns.collected({ids!r})

def rounds(bench, count=4):
    for i in range(count):
        turns.wait(bench, {ids!r}.index(bench), i)
        log.write(f"{{bench}} {{i}} {{name}} begins\\n")
        time.sleep(0.01)
        log.write(f"{{bench}} {{i}} {{name}} ends\\n")
    turns.round_over()

"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def worker(tmp_path: Path, log: Path) -> Callable[[str, str], Callable[[], Worker]]:
    """Makes what starts a worker: a script that takes turns, without pytest, with benches a, b and c."""

    def make(name: str, body: str) -> Callable[[], Worker]:
        code = START.format(root=str(ROOT), name=name, log=str(log), ids=["a", "b", "c"]) + body
        return lambda: Worker(name, [sys.executable, "-c", code], tmp_path, os.environ, subprocess.DEVNULL)

    return make


def order(log: Path, bench: str) -> str:
    """Who ran the rounds of a bench: the initials. Asserts that each ended before the next began."""
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [line[3] for line in lines] == ["begins", "ends"] * (len(lines) // 2)
    assert all(begin[:3] == end[:3] for begin, end in zip(lines[::2], lines[1::2], strict=True))
    return "".join(line[2][0] for line in lines[::2] if line[0] == bench)


def run(*starts: Callable[[], Worker], patience: float = 30.0) -> Session:
    return alternate(starts, patience)


def test_rounds_alternate_so_that_drift_cancels(worker, log: Path) -> None:
    session = run(worker("old", "rounds('a'); rounds('b', 3)"), worker("new", "rounds('a'); rounds('b', 3)"))
    assert order(log, "a") == "onnoonno"
    assert order(log, "b") == "onnoon"
    assert session.paired == {"a": 4, "b": 3}
    assert not session.alone
    assert session.status == [0, 0]
    assert [told.ids for told in session.told] == [["a", "b", "c"]] * 2
    assert [len(told.queued[bench]) for told in session.told for bench in "ab"] == [4, 3, 4, 3]
    assert session.told[0].packages == {
        "stormfast": str(ROOT / "stormfast"),
        "stormfast_kernels": session.told[0].packages["stormfast_kernels"],
    }


def test_the_one_behind_goes_alone_until_both_are_at_the_same_bench(worker, log: Path) -> None:
    session = run(
        worker("old", "rounds('a'); rounds('c')"), worker("new", "rounds('a', 2); rounds('b', 3); rounds('c')")
    )
    assert order(log, "a") == "onnooo"
    assert order(log, "b") == "nnn"
    assert order(log, "c") == "onnoonno"
    assert session.paired == {"a": 2, "c": 4}
    assert session.alone == {"a": 2, "b": 3}


def test_one_worker_alone_runs_to_its_end(worker, log: Path) -> None:
    assert run(worker("new", "rounds('a', 2)")).alone == {"a": 2}


def test_a_worker_that_hangs_is_ended(worker, tmp_path: Path) -> None:
    hang = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); rounds('a', 1); time.sleep(1000)"
    with pytest.raises(TurnsError, match=r"^new: neither a round nor an end within 3 s"):
        run(worker("new", hang), patience=3)
    assert gone(int((tmp_path / "pid").read_text()))


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return (
        Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    )  # nobody has asked yet how it ended


def test_a_worker_that_dies_is_named_with_its_bench(worker) -> None:
    with pytest.raises(TurnsError, match=r"^new: its process died of SIGSEGV, in or after b$"):
        run(worker("old", "rounds('a')"), worker("new", "rounds('a'); rounds('b', 1); os.kill(os.getpid(), 11)"))
    with pytest.raises(TurnsError, match=r"^new: its process died of SIGKILL, before its first round$"):
        run(worker("new", "os.kill(os.getpid(), 9)"))


def test_what_a_worker_leaves_behind_holds_nobody_up_and_is_ended(worker, tmp_path: Path) -> None:
    fork = f"rounds('a', 1)\nif not (child := os.fork()): time.sleep(1000)\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(child))"
    started = time.monotonic()
    session = run(worker("new", fork))
    assert session.status == [0] and time.monotonic() - started < 20
    deadline = time.monotonic() + 5
    while not gone(int((tmp_path / "pid").read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_worker_whose_coordinator_is_gone_ends(worker) -> None:
    one = worker("new", "rounds('a')")()
    one.next_stop(30)
    assert one.at == ("a", 0, 0)
    one._close_pipes()
    assert one.process.wait(30) == 1


def test_only_a_compared_process_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "join", turns.join.__wrapped__)
    monkeypatch.delenv(turns.VARIABLE, raising=False)
    assert turns.join() is None
    read, write = os.pipe()
    monkeypatch.setenv(turns.VARIABLE, f"{read},{write}")
    turns.join().tell(a=1)
    assert turns.VARIABLE not in os.environ  # what the benches start does not join
    assert json.loads(os.read(read, 100)) == {"a": 1}
    assert not os.get_inheritable(read) and not os.get_inheritable(write)
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("value", ["foo", "", "7", "1,2,3", "777,778", "-1,-2", f"{1 << 40},1"])
def test_descriptors_that_are_none_are_one_line(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(turns.VARIABLE, value)
    with pytest.raises(
        UserError, match=f"^STORMFAST_TURNS must be two open file descriptors, .* got '{value}'; unset it$"
    ):
        turns.join.__wrapped__()


def test_a_wait_that_threads_of_its_own_may_have_made_is_the_rounds_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slowdown by a thread that takes the core away is a slowdown."""
    (go_read, go_write), (read, write) = os.pipe(), os.pipe()
    mine = turns.Turns(go_read, write)
    for others, queued in ((0.2, 0.0), (0.0001, 0.5)):
        moments = iter([(10.0, 1.0, 3.0), (11.0, 1.5, 3.0 + others)])
        monkeypatch.setattr(turns, "moments", lambda moments=moments: next(moments))
        os.write(go_write, turns.GO)
        mine.wait("a", 0, 0)
        mine.round_over()
        assert json.loads(os.read(read, 1000).splitlines()[-1]) == {"ran": "a", "queued": queued}
    for descriptor in (go_read, go_write, read, write):
        os.close(descriptor)


def test_waiting_for_a_core_is_told_by_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(turns, "SCHEDSTAT", tmp_path / "schedstat")
    assert turns.queued_seconds() == 0.0  # where the system does not say
    (tmp_path / "schedstat").write_text("12 3400000000 5\n")
    assert turns.queued_seconds() == 3.4
    (go_read, go_write), (read, write) = os.pipe(), os.pipe()
    mine = turns.Turns(go_read, write)
    mine.round_over()  # none ran
    os.write(go_write, turns.GO)
    mine.wait("a", 0, 0)
    (tmp_path / "schedstat").write_text("12 3900000000 5\n")
    monkeypatch.setattr(
        turns.time, "process_time", turns.time.thread_time
    )  # a test's process may have threads that run
    mine._began = (mine._began[0], mine._began[1], 0.0)
    mine.round_over()
    mine.round_over()
    told = [json.loads(line) for line in os.read(read, 1000).splitlines()]
    assert told == [{"at": "a", "index": 0, "round": 0}, {"ran": "a", "queued": pytest.approx(0.5)}]
    for descriptor in (go_read, go_write, read, write):
        os.close(descriptor)


def test_the_last_error_is_one_line() -> None:
    raised = "def f():\n>   g()\nE   ImportError: no g\nE     and more\n\na.py:3: ImportError"
    assert turns.last_error(SimpleNamespace(longreprtext=raised)) == "ImportError: no g"
    assert turns.last_error(SimpleNamespace(longreprtext="first\nlast\n\n")) == "last"
    assert turns.last_error(SimpleNamespace(longreprtext="")) == "failed"


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ([["a", "b", "c"]], "abc"),
        ([["a", "c"], ["a", "b", "c"]], "abc"),
        ([["a", "b", "c"], ["c"]], "abc"),
        ([["b"], ["a", "b", "c"]], "abc"),
        ([["a", "x", "c"], ["a", "y", "c"]], "ayxc"),
        ([[], ["a"]], "a"),
    ],
)
def test_benches_are_in_an_order_that_both_keep(lists: list[list[str]], expected: str) -> None:
    assert turns.places_of(lists) == {bench: i for i, bench in enumerate(expected)}
