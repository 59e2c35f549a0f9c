"""Comparing: launches in turn, on a small checkout whose benches take milliseconds; temporary checkouts; bad input."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from bench import check_detection, checkouts, compare, queue_clock
from bench.check_detection import Slowdown
from bench.compare import Comparison
from bench.launches import Launch, Selection, launch
from stormfast.errors import UserError
from tests.conftest import ROOT

QUICK = Selection(("bench",), ("--rounds", "8", "--benchmark-timer=queue_clock.seconds"))
WORK = """
import time

def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass

def encode():
    spin({encode})

def decode():
    spin(0.002)
"""
CONFTEST = """
def pytest_addoption(parser):
    parser.addoption("--device")
    parser.addoption("--rounds", type=int)
"""
BENCH = """
import pytest

from stormfast import work


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_one(name, benchmark, pytestconfig):
    benchmark.pedantic(getattr(work, name), rounds=pytestconfig.getoption("--rounds"), warmup_rounds=1)
    benchmark.extra_info.update(bench=name, calls=1)
"""


def write_work(root: Path, encode: float = 0.003) -> None:
    """Args: encode: seconds that it takes."""
    (root / "stormfast" / "work.py").write_text(WORK.format(encode=encode))


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=someone", "-c", "user.email=someone@example.org", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its benches: test_one[encode], 3 ms; test_one[decode], 2 ms. Temporary files go to the test's directory."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    root = tmp_path / "checkout"
    for name in ("bench", "stormfast", "kernels"):
        (root / name).mkdir(parents=True)
    (root / "stormfast" / "__init__.py").touch()
    write_work(root)
    (root / "bench" / "conftest.py").write_text(CONFTEST)
    (root / "bench" / "bench_work.py").write_text(BENCH)
    (root / ".gitignore").write_text("__pycache__\n")
    shutil.copy(ROOT / "pyproject.toml", root)
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "all")
    return root


def launched(**seconds: float) -> Launch:
    names = {(("bench", name),): name for name in seconds}
    return Launch(dict(zip(names, seconds.values(), strict=True)), names)


def compared(old: Launch, *new: Launch) -> Comparison:
    return Comparison("main", 1.1, [(old, each) for each in new])


# --- parts -------------------------------------------------------------------------------------------------------


def test_launches_alternate_and_each_pair_is_old_and_new() -> None:
    order = []

    def side(name: str) -> Launch:
        order.append(name)
        return launched(**{name: len(order)})

    pairs = compare.launch_in_turn(lambda: side("a"), lambda: side("b"))
    assert "".join(order) == "abbaabbaabba"
    assert [tuple(name for each in pair for name in each.names.values()) for pair in pairs] == [("a", "b")] * 6


def test_what_one_side_lacks_or_fails_is_listed_and_not_compared() -> None:
    broken = Launch(launched(both=1.0).seconds, launched(both=1.0).names, {"bench_x.py": "ImportError"})
    comparison = compared(launched(both=1.0, gone=1.0), *[launched(both=1.0, added=1.0)] * 5, broken)
    assert list(comparison.ratios()) == [(("bench", "both"),)]
    assert (comparison.only(0), comparison.only(1)) == (["gone"], ["added"])
    assert (comparison.failures(0), comparison.failures(1)) == ({}, {"bench_x.py": "ImportError"})
    assert comparison.exit_status() == 1
    assert {"only in old: gone", "failed in new: bench_x.py: ImportError"} <= set(compare.show(comparison).splitlines())


def test_the_status_is_1_for_slower_or_nothing() -> None:
    assert compared(launched(a=1.0), *[launched(a=1.0)] * 6).exit_status() == 0
    assert compared(launched(a=1.0), *[launched(a=1.2)] * 6).exit_status() == 1
    assert compared(launched(a=1.0), *[launched(b=1.0)] * 6).exit_status() == 1


def test_what_may_be_slower_is_launched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    selected = []

    def fake(tree: Path, selection: Selection, temporary: Path) -> Launch:
        selected.append(selection.paths)
        return launched(noisy=1.5 if len(selected) == 2 else 1.0, **({"quiet": 1.0} if len(selected) <= 12 else {}))

    monkeypatch.setattr(compare, "launch", fake)
    found = Comparison("main", 1.1)
    compare.compare_checkouts(found, (tmp_path, tmp_path), QUICK, tmp_path)
    assert [len(pairs) for pairs in found.seconds().values()] == [12, 6]
    assert selected == [QUICK.paths] * 12 + [("noisy",)] * 12
    assert found.having("same") == ["noisy", "quiet"]


def test_waiting_for_a_core_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading: clock, waited, other threads. In the second interval another thread of the process held the core."""
    readings = iter([(10.0, 4.0, 0.0), (20.0, 8.0, 5.0)])
    monkeypatch.setattr(queue_clock, "read", lambda: next(readings))
    monkeypatch.setattr(queue_clock, "_last", (0.0, 0.0, 0.0))
    monkeypatch.setattr(queue_clock, "_total", 0.0)
    assert [queue_clock.seconds(), queue_clock.seconds()] == [6.0, 16.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "nan"], "--limit must be a ratio of at least 1"),
        (["--against", "no-such-ref"], "got 'no-such-ref'"),
        (["/usr"], "got /usr"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert compare.main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and message in err


# --- temporary checkouts ----------------------------------------------------------------------------------------


def assert_nothing_left(checkout: Path) -> None:
    assert len(checkouts.worktrees(checkout)) == 1
    assert not list(Path(tempfile.gettempdir()).iterdir())


def test_a_commit_and_the_working_tree_beside_each_other(checkout: Path) -> None:
    write_work(checkout, 0.009)
    (checkout / "new.txt").write_text("not added")
    before = git(checkout, "status", "--porcelain")
    with checkouts.temporary_directory(checkout) as temporary:
        old = checkouts.add_checkout(checkout, checkouts.commit_of_ref(checkout, "HEAD"), temporary / "old")
        new = checkouts.add_checkout(checkout, checkouts.commit_of_working_tree(checkout, temporary), temporary / "new")
        assert "spin(0.003)" in (old / "stormfast" / "work.py").read_text()
        assert "spin(0.009)" in (new / "stormfast" / "work.py").read_text()
        assert (new / "new.txt").exists() and not (old / "new.txt").exists()
    assert git(checkout, "status", "--porcelain") == before
    assert_nothing_left(checkout)


def test_they_are_removed_after_a_signal(checkout: Path) -> None:
    def stopped() -> None:
        with checkouts.temporary_directory(checkout) as temporary:
            checkouts.add_checkout(checkout, "HEAD", temporary / "old")
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit, match="143"):
        stopped()
    assert_nothing_left(checkout)


def test_what_is_no_ref_or_no_checkout_is_an_error(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--against must be .*, got '--help'"):
        checkouts.commit_of_ref(checkout, "--help")
    with pytest.raises(UserError, match="not a git repository"), checkouts.temporary_directory(tmp_path):
        pass


# --- on a small checkout -----------------------------------------------------------------------------------------


def test_a_launch_of_benches_that_fail(checkout: Path, tmp_path: Path) -> None:
    with open(checkout / "bench" / "bench_work.py", "a") as file:
        file.write("\n\ndef test_broken():\n    assert not 'a - b'\n")
    (checkout / "bench" / "bench_later.py").write_text("from stormfast.work import recode\n")
    found = launch(checkout, compare.selection_of(compare.parser_of(None).parse_args([])), tmp_path)
    assert list(found.names.values()) == [f"bench/bench_work.py::test_one[{name}]" for name in ("encode", "decode")]
    assert list(found.seconds.values()) == pytest.approx([0.003, 0.002], rel=0.1)
    assert found.failures.keys() == {"bench/bench_work.py::test_broken", "bench/bench_later.py"}


def test_what_pytest_cannot_run_is_an_error(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no bench is so named"):
        launch(checkout, Selection(("bench",), ("-k", "nothing")), tmp_path)
    with pytest.raises(UserError, match=r"bench_gone.py.*; choose benches that both checkouts have"):
        launch(checkout, Selection(("bench/bench_gone.py",)), tmp_path)


@pytest.mark.slow
def test_the_working_tree_against_a_commit(checkout: Path) -> None:
    write_work(checkout, encode=0.0045)
    found = compare.compare_with_ref(checkout, "HEAD", QUICK, 1.1)
    assert found.having("slower") == ["bench/bench_work.py::test_one[encode]"]
    encode = json.loads(json.dumps(compare.as_json(found), allow_nan=False))["benches"][0]
    assert (encode["value"], encode["verdict"]) == (pytest.approx(1.5, abs=0.1), "slower")
    assert "test_one[encode]" in compare.show(found)
    assert len(checkouts.worktrees(checkout)) == 1


@pytest.mark.slow
def test_a_planted_slowdown_is_found_and_unchanged_code_is_not(checkout: Path) -> None:
    slowdown = Slowdown("stormfast/work.py", "encode", 1.2, "[encode]", "[neither]")
    trials = check_detection.run_trials(checkout, slowdown, 1, QUICK, 1.1)
    assert [why for _, why in trials.values()] == [[], []]
    planted, unchanged = (comparison for comparison, _ in trials.values())
    assert len(check_detection.problems(unchanged, slowdown)) == 1  # missed
    assert len(check_detection.problems(planted, None)) == 1  # a false alarm


def test_the_method_to_slow_down_exists() -> None:
    code = (ROOT / Slowdown().file).read_text() + Slowdown().source()
    compile(code, Slowdown().file, "exec")
    assert f"    def {Slowdown().target.partition('.')[2]}(" in code
