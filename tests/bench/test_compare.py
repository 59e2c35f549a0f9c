"""The comparison: on a small checkout with a history, with a saved run, with counts; what it prints, and bad input."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from bench import compare
from bench.comparing import sides, trees, verdicts
from bench.comparing.ratios import Ratio
from bench.comparing.sides import Choice, Side, Timing, rounds_of
from bench.comparing.turns import Session, Told, TurnsError
from bench.comparing.verdicts import Compared, Comparison
from bench.counts import Difference
from stormfast.errors import UserError
from tests.bench.synthetic_checkout import git, make_checkout, write_work

ROOT = Path(__file__).parents[2]
QUICK = Choice(rounds=16, launches=1, patience=60)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "checkout")


def worktrees(root: Path) -> list[str]:
    return git(root, "worktree", "list").splitlines()


# --- whole comparisons -------------------------------------------------------------------------------------------


def test_the_working_tree_against_a_commit(checkout: Path) -> None:
    """encode takes half as long again; recode is not in the commit; broken fails in the working tree alone."""
    write_work(checkout, encode=0.006, more="\ndef recode():\n    spin(0.001)\n")
    with open(checkout / "bench" / "bench_work.py", "a") as file:
        file.write("\ndef test_recode(time_rounds):\n    time_rounds(work.recode)\n")
        file.write("\ndef test_broken(time_rounds):\n    assert not hasattr(work, 'recode'), 'recode is here'\n    time_rounds(work.decode)\n")
    (checkout / "bench" / "bench_later.py").write_text("from stormfast.work import recode\n\ndef test_later(time_rounds):\n    time_rounds(recode)\n")
    found = compare.compare_with_ref(checkout, "HEAD", QUICK, 1.10)
    names = {bench: bench.removeprefix("bench/bench_work.py::test_") for bench in found.benches}
    assert list(names.values()) == ["one[encode]", "one[decode]", "both"]
    assert [names[bench] for bench in found.having("slower")] == ["one[encode]", "both"]
    encode = found.benches["bench/bench_work.py::test_one[encode]"]
    assert encode.ratio.value == pytest.approx(1.5, abs=0.1)
    assert (encode.old, encode.new) == pytest.approx((0.004, 0.006), rel=0.2)
    old, new = found.timing.failures["old"], found.timing.failures["new"]
    assert old["bench/bench_work.py::test_recode"] == "AttributeError: module 'stormfast.work' has no attribute 'recode'"
    assert old["bench/bench_later.py"].startswith("ImportError: cannot import name 'recode'")
    assert len(old) == 2
    assert new == {"bench/bench_work.py::test_broken": "AssertionError: recode is here"}
    assert found.worse == ["bench/bench_work.py::test_one[encode]", "bench/bench_work.py::test_both", "bench/bench_work.py::test_broken"]
    for side in ("old", "new"):
        assert {Path(origin).parts[-2 - (name != "stormfast")] for name, origin in found.timing.packages[side].items()} == {side}
    assert len(worktrees(checkout)) == 1


def test_a_saved_run_and_what_it_lacks(checkout: Path, tmp_path: Path) -> None:
    """decode took 1 ms when it was saved, and takes 3; both were not saved."""
    info = {"calls": 2, "copy_bytes_per_second": 4e9}
    benches = [
        {"fullname": f"bench/bench_work.py::test_one[{name}]", "extra_info": info, "stats": {"data": [took] * 12}}
        for name, took in (("encode", 0.008), ("decode", 0.002))
    ]
    saved = tmp_path / "2026-01-02-abc.json"
    saved.write_text(json.dumps({"benchmarks": benches, "machine_info": {"commit": "abc", "torch": "2.0"}, "datetime": "2026-01-02T03:04:05"}))
    new = Side("new", trees.snapshot(checkout, tmp_path / "new"), "def")
    found = verdicts.with_saved(new, saved, Choice(rounds=20, device="cpu", patience=60), 1.5, tmp_path)
    assert found.verdict("bench/bench_work.py::test_one[decode]") == "slower"
    assert found.old == "2026-01-02-abc.json of 2026-01-02, commit abc"
    assert found.timing.failures == {"new": {}, "saved": {"bench/bench_work.py::test_both": "is not in the saved run"}}
    assert found.notes[0] == verdicts.SAVED
    assert "torch was 2.0, is None" in found.notes
    assert "A copy moved 4.0 GB/s then and 2.0 GB/s now (x0.50)." in found.notes
    shown = verdicts.show(found)
    assert "note: A saved run is from another time" in shown and "not compared: saved: bench/bench_work.py::test_both" in shown


def test_nothing_is_left_when_it_is_told_to_stop(checkout: Path, tmp_path: Path) -> None:
    """SIGTERM while a worker sleeps in its first round."""
    sleeping = "\ndef test_first(time_rounds):\n    import os, time\n    open({!r}, 'w').write(str(os.getpid()))\n    time.sleep(600)\n"
    with open(checkout / "bench" / "bench_work.py", "a") as file:
        file.write(sleeping.format(str(tmp_path / "pid")))
    code = (
        f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'kernels')]!r}; from pathlib import Path; "
        "from bench import compare; from bench.comparing import sides; "
        f"compared = lambda: compare.compare_with_ref(Path({str(checkout)!r}), 'HEAD', sides.Choice(keyword='first'), 1.1); "
        "compare.exit_status('compare', compared)"
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(scratch)})
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(worktrees(checkout)) == 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert len(worktrees(checkout)) == 1
    assert not list(scratch.iterdir())
    with contextlib.suppress(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
        pytest.fail("its worker lives on")


# --- parts -------------------------------------------------------------------------------------------------------


def test_the_old_side_is_measured_by_the_benches_of_the_new(checkout: Path, tmp_path: Path) -> None:
    (checkout / "bench" / "bench_new.py").touch()
    (checkout / "bench" / "results").mkdir()
    (checkout / "bench" / "bench_work.py").unlink()
    write_work(checkout, encode=0.5)
    copy = trees.snapshot(checkout, tmp_path / "copy")
    assert sorted(path.name for path in (copy / "bench").iterdir()) == ["bench_new.py", "comparing", "conftest.py"]
    assert not (copy / ".git").exists()
    with trees.worktree(checkout, trees.resolve(checkout, "HEAD"), tmp_path / "old", copy) as tree:
        assert sorted(path.name for path in (tree / "bench").iterdir()) == ["bench_new.py", "comparing", "conftest.py"]
        assert "spin(0.004)" in (tree / "stormfast" / "work.py").read_text()
        path = trees.environment(tree, "0123456789abcdef")["PYTHONPATH"].split(os.pathsep)
        assert path[:2] == [str(tree), str(tree / "kernels")]
    assert not (tmp_path / "old").exists() and len(worktrees(checkout)) == 1


def test_a_ref_that_is_none(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a branch, tag or commit of this checkout, got 'nowhere'"):
        trees.resolve(checkout, "nowhere")
    with pytest.raises(UserError, match=r"got '--all'"):
        trees.resolve(checkout, "--all")
    with pytest.raises(UserError, match="not a git repository"):
        trees.resolve(tmp_path, "HEAD")


def test_rounds_are_seconds_a_call_without_the_wait_for_a_core() -> None:
    benches = [
        {"fullname": "a", "extra_info": {"calls": 2}, "stats": {"data": [4.0, 6.0, 8.0]}},
        {"fullname": "b", "extra_info": {}, "stats": {"data": [3.0]}},
        {"fullname": "none", "extra_info": {}, "stats": {"data": []}},
    ]
    assert rounds_of({"benchmarks": benches}) == {"a": [2, 3, 4], "b": [3]}
    assert rounds_of({"benchmarks": benches}, {"a": [9, 9, 1, 0, 9]})["a"] == [1.5, 3, 0.04]  # the first two warmed up
    assert rounds_of({"benchmarks": benches}, {"a": [1]})["a"] == [2, 3, 4]


def test_only_rounds_that_ran_in_pairs_are_compared() -> None:
    paired, alone = Counter(ok=3, alone=3, odd=3), Counter(alone=1)
    session = Session([Told(), Told()], [0, 0], paired, alone)
    rounds = {
        "old": {"ok": [1, 1], "alone": [1, 1], "odd": [1], "free": [1]},
        "new": {"ok": [1, 1], "alone": [1, 1], "odd": [1, 1], "free": [1], "gone": [1]},
    }
    timing = Timing(failures={"old": {}, "new": {}})
    sides.drop_unmatched(rounds, session, timing)
    assert rounds == {"old": {"ok": [1, 1]}, "new": {"ok": [1, 1]}}
    assert timing.failures["new"] == {"alone": sides.NO_TURNS, "free": sides.NO_TURNS, "odd": "ran 1 and 2 rounds"}
    assert timing.failures["old"] == timing.failures["new"] | {"gone": "was skipped here, and ran on the other side"}


def test_a_side_that_timed_other_code_is_refused(tmp_path: Path) -> None:
    side = Side("old", tmp_path, "abc")
    sides.check_packages(side, Told(packages={"stormfast": str(tmp_path / "stormfast"), "stormfast_kernels": ""}))
    with pytest.raises(TurnsError, match=r"^old: timed stormfast of /elsewhere/stormfast instead of its own"):
        sides.check_packages(side, Told(packages={"stormfast": "/elsewhere/stormfast"}))


@pytest.mark.parametrize(
    ("status", "log", "error", "message"),
    [
        (4, "x\nERROR: Wrong expression\n", UserError, "old: pytest cannot run these benches: Wrong expression"),
        (4, "ImportError while loading conftest\nE   ModuleNotFoundError: no heap\n", UserError, "ModuleNotFoundError: no heap"),
        (5, "", UserError, "no bench of old is so named"),
        (3, "INTERNALERROR> boom\n", TurnsError, "old: pytest ended with status 3: INTERNALERROR> boom"),
    ],
)
def test_what_pytest_refuses_is_one_line(tmp_path: Path, status: int, log: str, error: type[Exception], message: str) -> None:
    (tmp_path / "log").write_text(log)
    with pytest.raises(error, match=message) as caught:
        sides.check_status(Side("old", tmp_path, "abc"), status, tmp_path / "log")
    assert "\n" not in str(caught.value)
    sides.check_status(Side("old", tmp_path, "abc"), 1, tmp_path / "log")  # a bench failed: told by itself


def test_the_last_saved_run_is_the_newest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no saved run of this device in"):
        compare.last_saved(tmp_path)
    times = {"2026-02-01-b": "2026-02-01T08", "2026-02-01-a": "2026-02-01T09", "2026-01-31-c": "2026-01-31T10", "kernels-2027": "2027"}
    for name, when in times.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"datetime": when}))
    assert compare.last_saved(tmp_path).name == "2026-02-01-a.json"
    (tmp_path / "2026-03-01-x.json").write_text("{")
    with pytest.raises(UserError, match=r"2026-03-01-x.json is damaged"):
        compare.last_saved(tmp_path)


def test_a_file_that_is_no_saved_run(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"benchmarks": [{"fullname": "a", "extra_info": {}, "stats": {}}]}))
    with pytest.raises(UserError, match="it lacks 'data'"):
        verdicts.with_saved(Side("new", tmp_path, ""), tmp_path / "x.json", QUICK, 1.1, tmp_path)


def write_counts(path: Path, torch: str, **counts: int) -> Path:
    tree = {name: {"world_model": {"launches": value}} for name, value in counts.items()}
    path.write_text(json.dumps({"about": {"torch": torch, "triton": "3"}, "counts": tree}))
    return path


def test_counts_that_rose_are_worse(tmp_path: Path) -> None:
    old = write_counts(tmp_path / "old", "2.13.0+cpu", storm=3, fast=4, cpu=5, kernels=1)
    new = write_counts(tmp_path / "new", "2.13.0", storm=4, fast=2, cpu=5)
    comparison = Comparison("counts only", 1.1, QUICK, old="main")
    compare.take_counts(comparison, (old, ["old: compiled are left out"]), (new, []))
    assert comparison.counts == [Difference("storm.world_model.launches", 3, 4, True), Difference("fast.world_model.launches", 4, 2, False)]
    assert comparison.worse == ["storm.world_model.launches"] and not comparison.empty
    shown = verdicts.show(comparison).splitlines()
    assert shown[1:] == [
        "note: old: compiled are left out",
        "count: storm.world_model.launches: 3 -> 4 (x1.33)  WORSE",
        "count: fast.world_model.launches: 4 -> 2 (x0.5)",
        "counts: 2 differ, 1 rose",
    ]


def test_counts_are_taken_in_the_tree_of_the_side(tmp_path: Path) -> None:
    (tmp_path / "tree" / "bench").mkdir(parents=True)
    script = tmp_path / "tree" / "bench" / "counts.py"
    script.write_text("import os, sys\nprint('kernels are left out: x', file=sys.stderr)\nprint('nothing', file=sys.stderr)\n")
    side = Side("old", tmp_path / "tree", "abc")
    with pytest.raises(UserError, match=r"^old: bench/counts.py cannot count there: nothing; --no-counts leaves counts out$"):
        sides.run_counts(side, tmp_path)
    with open(script, "a") as file:
        file.write("open(sys.argv[2], 'w').write(os.getcwd() + ' ' + os.environ['STORMFAST_COMMIT'])\n")
    result, said = sides.run_counts(side, tmp_path)
    assert result.read_text() == f"{tmp_path / 'tree'} abc"
    assert said == ["old: kernels are left out: x"]


def test_the_table() -> None:
    intervals = {"slower": (1.2, 1.15, 1.25), "same": (1.0, 0.98, 1.02), "unclear": (1.1, 0.7, 1.4)}
    ratio = {name: Ratio(*interval, 0.99, interval[:1]) for name, interval in intervals.items()}
    benches = {f"bench/bench_x.py::test_{name}": Compared(each, 0.01, 0.01 * each.value) for name, each in ratio.items()}
    comparison = Comparison("in turn", 1.1, QUICK, Timing(failures={"old": {}, "new": {}}), benches, old="main, commit abc")
    lines = verdicts.show(comparison).splitlines()
    assert lines[0] == "this checkout against main, commit abc: 16 rounds x 1 launches in turn, intervals of 99%, limit 1.1"
    assert lines[2].split() == ["|", "bench", "|", "old", "|", "new", "|", "new", "/", "old", "|", "interval", "|", "verdict", "|"]
    assert [cell.strip() for cell in lines[4].split("|")[1:-1]] == ["bench_x.py::test_slower", "10 ms", "12 ms", "1.200", "1.150 - 1.250", "SLOWER"]
    assert len({len(line) for line in lines[2:7]}) == 1
    assert lines[-1] == "3 benches: 1 slower, 0 faster, 1 same, 1 unclear; more --rounds or --launches tell what is unclear"
    told = verdicts.as_json(comparison)
    assert json.loads(json.dumps(told, allow_nan=False))["benches"][0]["verdict"] == "slower"
    assert told["worse"] == ["bench/bench_x.py::test_slower"]


@pytest.mark.parametrize(("value", "shown"), [(2.5, "2.5 s"), (1234.5, "1234 s"), (0.0123, "12.3 ms"), (4.56e-5, "45.6 us"), (3e-9, "3 ns")])
def test_seconds_have_a_unit(value: float, shown: str) -> None:
    assert verdicts.seconds(value) == shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--launches", "0"], "--launches must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--rounds", "3", "--launches", "2"], "--rounds x --launches must be at least 8 for an interval, got 3 x 2"),
        (["--limit", "0.9"], "--limit must be a ratio of at least 1, as 1.10, got 0.9"),
        (["--limit", "nan"], "--limit must be a ratio of at least 1, as 1.10, got nan"),
        (["--patience", "0"], "--patience must be above 0 seconds, got 0.0"),
        (["--no-counts", "--counts-only"], "--no-counts and --counts-only leave nothing to compare"),
        (["--device", "tpu"], "got 'tpu'"),
        (["--json", "/nowhere/at/all.json"], "--json must be a file in a directory that can be written"),
        (["--against", "no/such/ref"], "--against must be a branch, tag or commit"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert compare.main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith("compare: ") and message in err


def test_what_ends_a_comparison_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def hang() -> int:
        raise TurnsError("new: hangs")

    def interrupt() -> int:
        raise KeyboardInterrupt

    assert compare.exit_status("compare", hang) == 1
    assert compare.exit_status("compare", interrupt) == 130
    assert capsys.readouterr().err == "compare: new: hangs\ncompare: interrupted; nothing of it is left\n"
