"""The comparison: on a small checkout with a history, with a saved run, with counts; what it prints, and bad input."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import compare, script
from bench.comparing import trees, verdicts
from bench.comparing.ratios import Ratio
from bench.comparing.sides import Choice, Side, Timing
from bench.comparing.turns import TurnsError
from bench.comparing.verdicts import Compared, Comparison
from bench.counts import Difference
from stormfast.errors import UserError
from tests.bench.synthetic_checkout import make_checkout, write_work

ROOT = Path(__file__).parents[2]
QUICK = Choice(rounds=16, launches=1, patience=60)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "checkout")


# --- whole comparisons -------------------------------------------------------------------------------------------


def test_the_working_tree_against_a_commit(checkout: Path) -> None:
    """encode takes half as long again; recode is not in the commit; broken fails in the working tree alone."""
    write_work(checkout, encode=0.006, more="\ndef recode():\n    spin(0.001)\n")
    with open(checkout / "bench" / "bench_work.py", "a") as file:
        file.write("\ndef test_recode(time_rounds):\n    time_rounds(work.recode)\n")
        file.write(
            "\ndef test_broken(time_rounds):\n    assert not hasattr(work, 'recode'), 'recode is here'\n    time_rounds(work.decode)\n"
        )
    (checkout / "bench" / "bench_later.py").write_text(
        "from stormfast.work import recode\n\ndef test_later(time_rounds):\n    time_rounds(recode)\n"
    )
    found = compare.compare_with_ref(checkout, "HEAD", QUICK, 1.10)
    names = {bench: bench.removeprefix("bench/bench_work.py::test_") for bench in found.benches}
    assert list(names.values()) == ["one[encode]", "one[decode]", "both"]
    assert [names[bench] for bench in found.having("slower")] == ["one[encode]", "both"]
    encode = found.benches["bench/bench_work.py::test_one[encode]"]
    assert encode.ratio.value == pytest.approx(1.5, abs=0.1)
    assert (encode.old, encode.new) == pytest.approx((0.004, 0.006), rel=0.2)
    old, new = found.timing.failures["old"], found.timing.failures["new"]
    assert (
        old["bench/bench_work.py::test_recode"] == "AttributeError: module 'stormfast.work' has no attribute 'recode'"
    )
    assert old["bench/bench_later.py"].startswith("ImportError: cannot import name 'recode'")
    assert len(old) == 2
    assert new == {"bench/bench_work.py::test_broken": "AssertionError: recode is here"}
    assert found.worse == [
        "bench/bench_work.py::test_one[encode]",
        "bench/bench_work.py::test_both",
        "bench/bench_work.py::test_broken",
    ]
    for side in ("old", "new"):
        assert {
            Path(origin).parts[-2 - (name != "stormfast")] for name, origin in found.timing.packages[side].items()
        } == {side}
    assert len(trees.worktrees(checkout)) == 1


def test_a_saved_run_and_what_it_lacks(checkout: Path, tmp_path: Path) -> None:
    """decode took 1 ms when it was saved, and takes 3; both were not saved."""
    info = {"calls": 2, "copy_bytes_per_second": 4e9}
    benches = [
        {"fullname": f"bench/bench_work.py::test_one[{name}]", "extra_info": info, "stats": {"data": [took] * 12}}
        for name, took in (("encode", 0.008), ("decode", 0.002))
    ]
    saved = tmp_path / "2026-01-02-abc.json"
    saved.write_text(
        json.dumps(
            {
                "benchmarks": benches,
                "machine_info": {"commit": "abc", "torch": "2.0"},
                "datetime": "2026-01-02T03:04:05",
            }
        )
    )
    new = Side("new", trees.snapshot(checkout, tmp_path / "new"), "def")
    found = verdicts.with_saved(new, saved, Choice(rounds=20, device="cpu", patience=60), 1.5, tmp_path)
    assert found.verdict("bench/bench_work.py::test_one[decode]") == "slower"
    assert found.old == "2026-01-02-abc.json of 2026-01-02, commit abc"
    assert found.timing.failures == {"new": {}, "saved": {"bench/bench_work.py::test_both": "is not in the saved run"}}
    assert found.notes[0] == verdicts.SAVED
    assert "torch was 2.0, is None" in found.notes
    assert "A copy moved 4.0 GB/s then and 2.0 GB/s now (x0.50)." in found.notes
    shown = verdicts.show(found)
    assert (
        "note: A saved run is from another time" in shown
        and "not compared: saved: bench/bench_work.py::test_both" in shown
    )


def test_nothing_is_left_when_it_is_told_to_stop(checkout: Path, tmp_path: Path) -> None:
    """SIGTERM while a worker, which has a temporary directory, sleeps in its first round."""
    sleeping = "\ndef test_first(time_rounds):\n    import os, tempfile, time\n    tempfile.mkdtemp()\n"
    sleeping += "    open({!r}, 'w').write(str(os.getpid()))\n    time.sleep(600)\n"
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
    assert len(trees.worktrees(checkout)) == 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert len(trees.worktrees(checkout)) == 1
    assert not list(scratch.iterdir())
    with contextlib.suppress(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
        pytest.fail("its worker lives on")


# --- parts -------------------------------------------------------------------------------------------------------


def test_the_last_saved_run_is_the_newest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no saved run of this device in"):
        compare.last_saved(tmp_path)
    (tmp_path / "2026-01-01-x.json").write_text("[]")
    with pytest.raises(UserError, match=r"2026-01-01-x.json is no run saved by `make bench`"):
        compare.last_saved(tmp_path)
    (tmp_path / "2026-01-01-x.json").unlink()
    times = {
        "2026-02-01-b": "2026-02-01T08",
        "2026-02-01-a": "2026-02-01T09",
        "2026-01-31-c": "2026-01-31T10",
        "kernels-2027": "2027",
    }
    for name, when in times.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"datetime": when}))
    assert compare.last_saved(tmp_path).name == "2026-02-01-a.json"
    (tmp_path / "2026-03-01-x.json").write_text("{")
    with pytest.raises(UserError, match=r"2026-03-01-x.json is damaged"):
        compare.last_saved(tmp_path)


def test_what_may_be_slower_is_timed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six benches' worth of noise in the first launch; the next ones tell."""
    clear, wide = [1.0, 1.01] * 10, [1.0, 3.0] * 10
    asked: list[tuple[str, ...]] = []

    def time_in_turn(old: Side, new: Side, choice: Choice, scratch: Path) -> Timing:
        asked.append(choice.paths)
        first = {"bench/bench_x.py::test_clear": [(clear, clear)], "bench/bench_x.py::test_wide": [(clear, wide)]}
        return Timing(pairs=first if len(asked) == 1 else {"bench/bench_x.py::test_wide": [(clear, clear)] * 12})

    monkeypatch.setattr(verdicts, "time_in_turn", time_in_turn)
    sides_ = [Side(name, tmp_path, "abc") for name in ("old", "new")]
    found = verdicts.in_turn(*sides_, QUICK, 1.1, tmp_path)
    assert asked == [QUICK.paths, ("bench/bench_x.py::test_wide",)]
    assert found.verdict("bench/bench_x.py::test_wide") == "same"
    assert len(found.timing.pairs["bench/bench_x.py::test_wide"]) == 13


def test_a_file_that_is_no_saved_run(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"benchmarks": [{"fullname": "a", "extra_info": {}, "stats": {}}]}))
    with pytest.raises(UserError, match="it lacks 'data'"):
        verdicts.with_saved(Side("new", tmp_path, ""), tmp_path / "x.json", QUICK, 1.1, tmp_path)
    for content in (
        '{"benchmarks": null}',
        '{"benchmarks": [1]}',
        '{"benchmarks": [], "machine_info": [1], "datetime": ""}',
    ):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(UserError, match="is no run saved by `make bench`: "):
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
    assert comparison.counts == [
        Difference("storm.world_model.launches", 3, 4, True),
        Difference("fast.world_model.launches", 4, 2, False),
    ]
    assert comparison.worse == ["counts of kernels", "storm.world_model.launches"] and not comparison.empty
    shown = verdicts.show(comparison).splitlines()
    assert shown[1:] == [
        "note: old: compiled are left out",
        "not compared: new: counts of kernels: could be counted in the old side, and cannot in the new",
        "count: storm.world_model.launches: 3 -> 4 (x1.33)  WORSE",
        "count: fast.world_model.launches: 4 -> 2 (x0.5)",
        "counts: 2 differ, 1 rose",
    ]


def test_the_table() -> None:
    intervals = {"slower": (1.2, 1.15, 1.25), "same": (1.0, 0.98, 1.02), "unclear": (1.1, 0.7, 1.4)}
    ratio = {name: Ratio(*interval, 0.99, interval[:1]) for name, interval in intervals.items()}
    benches = {
        f"bench/bench_x.py::test_{name}": Compared(each, 0.01, 0.01 * each.value) for name, each in ratio.items()
    }
    comparison = Comparison(
        "in turn", 1.1, QUICK, Timing(failures={"old": {}, "new": {}}), benches, old="main, commit abc"
    )
    lines = verdicts.show(comparison).splitlines()
    assert (
        lines[0]
        == "this checkout against main, commit abc: 16 rounds x 1 launches in turn, intervals of 99%, limit 1.1"
    )
    assert lines[2].split() == [
        "|",
        "bench",
        "|",
        "old",
        "|",
        "new",
        "|",
        "new",
        "/",
        "old",
        "|",
        "interval",
        "|",
        "verdict",
        "|",
    ]
    assert [cell.strip() for cell in lines[4].split("|")[1:-1]] == [
        "bench_x.py::test_slower",
        "10 ms",
        "12 ms",
        "1.200",
        "1.150 - 1.250",
        "SLOWER",
    ]
    assert len({len(line) for line in lines[2:7]}) == 1
    assert (
        lines[-1]
        == "3 benches: 1 slower, 0 faster, 1 same, 1 unclear; more --rounds or --launches tell what is unclear"
    )
    told = verdicts.as_json(comparison)
    assert json.loads(json.dumps(told, allow_nan=False))["benches"][0]["verdict"] == "slower"
    assert told["worse"] == ["bench/bench_x.py::test_slower"]


@pytest.mark.parametrize(
    ("value", "shown"), [(2.5, "2.5 s"), (1234.5, "1234 s"), (0.0123, "12.3 ms"), (4.56e-5, "45.6 us"), (3e-9, "3 ns")]
)
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
        (["--json", "/nowhere/at/all.json"], "--json must lie in a directory that can be written"),
        (["--json", "/dev/null"], "--json must be a file, but /dev/null is a directory or a device"),
        (["--against", "no/such/ref"], "--against must be a branch, tag or commit"),
        (["--against", ""], "--against must be a branch, tag or commit of this checkout, got ''"),
        (["bench", "bench/nope.py"], "no bench file or folder 'bench/nope.py' in"),
        ([""], "no bench file or folder '' in"),
        (["/usr"], "benches must lie in this checkout"),
        (["--rounds", "many"], "argument --rounds: invalid int value: 'many'; `"),
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
    assert capsys.readouterr().err == "compare: new: hangs\ncompare: interrupted\n"


def test_a_bench_is_named_as_every_copy_of_the_checkout_has_it() -> None:
    assert compare.in_checkout(ROOT, "bench/bench_act.py::test_act") == "bench/bench_act.py::test_act"
    assert compare.in_checkout(ROOT, f"{ROOT}/bench/../bench/bench_act.py") == "bench/bench_act.py"


def test_the_file_is_written_though_nobody_reads_what_is_printed(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    code = (
        f"import os, sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'kernels')]!r}; from bench import compare; "
        "from bench.comparing.sides import Choice; from bench.comparing.verdicts import Comparison; "
        "compare.compare_with_saved = lambda *_, **__: Comparison('counts only', 1.1, Choice(), counts=[]); "
        "read, write = os.pipe(); os.close(read); os.dup2(write, 1); "
        f"sys.exit(compare.main(['--json', {str(result)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")
    assert json.loads(result.read_text())["counts"] == []


def test_a_file_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(script, "write_whole", full)
    monkeypatch.setattr(
        compare, "compare_with_saved", lambda *_, **__: Comparison("counts only", 1.1, QUICK, counts=[])
    )
    assert compare.main(["--json", str(tmp_path / "x.json")]) == 2
    out, err = capsys.readouterr()
    assert (
        out == ""
        and err.startswith(f"compare: {tmp_path}/x.json cannot be written: No space left on device")
        and err.count("\n") == 1
    )
