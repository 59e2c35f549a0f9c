"""The order of things with stages that are a line of Python: one that fails, hangs, lacks a package or no longer fits stops no other."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.suite import readers
from bench.suite.process import Signals
from bench.suite.record import Record, open_record
from bench.suite.run import Around, environment, run_stages
from bench.suite.stages import Stage

ROOT = Path(__file__).resolve().parents[3]
MACHINE = {
    "device": "Fake GPU",
    "commit": "abc",
    "dirty": False,
    "torch": "2",
    "cuda": None,
    "triton": None,
    "python": "3",
    "threads": 1,
}
WRITES = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{\"n\": 3}')"


def read_json(log: Path, output: Path) -> dict:
    return readers._json(output)


def stage(name: str, code: str, *, limit: float = 20, least: float = 1, **more) -> Stage:
    return Stage(
        name,
        ("-c", code, *more.pop("words", ())),
        limit,
        least,
        more.pop("read", lambda log, output: {"said": log.read_text()}),
        **more,
    )


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return open_record(tmp_path, dict(MACHINE), fresh=True)


def run(stages: list[Stage], record: Record, seconds: float = 60) -> tuple[int, dict]:
    around = Around(environment(os.environ), Signals(), time.monotonic() + seconds)
    status = run_stages(stages, record, around)
    return status, {row["stage"]: row for row in json.loads(record.path.read_text())["stages"]}


def test_each_stage_has_a_row_whatever_the_others_do(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    stages = [
        stage("fails", "print('first'); raise SystemExit('it broke')"),
        stage("hangs", "import time; print('begun', flush=True); time.sleep(60)", limit=1),
        stage("dies", "import os; os.kill(os.getpid(), 9)"),
        stage("lacks", "", needs=("json", "no_such_module")),
        stage("says nothing", "", read=read_json, writes=".json"),
        stage("works", WRITES, words=("{output}",), read=read_json, writes=".json"),
        stage("prints", "print('{\"n\": 4}')", read=read_json, writes=".json", prints=True),
        stage("accepted", "raise SystemExit(1)", accepts=(0, 1)),
        stage("too long", "", least=1000),
    ]
    status, rows = run(stages, record)
    assert status == 1
    assert list(rows) == [each.name for each in stages]
    assert {name: row["status"] for name, row in rows.items()} == {
        "fails": "failed",
        "hangs": "timed out",
        "dies": "failed",
        "lacks": "left out",
        "says nothing": "failed",
        "works": "passed",
        "prints": "passed",
        "accepted": "passed",
        "too long": "left out",
    }
    assert rows["fails"]["reason"] == "exit status 1: it broke"
    assert rows["fails"]["tail"] == ["first", "it broke"] and rows["fails"]["result"]["said"].startswith("first")
    assert rows["hangs"]["reason"].startswith("stopped at its limit") and rows["hangs"]["result"] == {"said": "begun\n"}
    assert rows["hangs"]["limit_seconds"] == 1 and 1 <= rows["hangs"]["seconds"] < 10
    assert rows["dies"]["reason"] == "killed by SIGKILL"
    assert "no_such_module" in rows["lacks"]["reason"] and "json" not in rows["lacks"]["reason"]
    assert rows["says nothing"]["reason"] == "it wrote no result"
    assert rows["works"]["result"] == {"n": 3} and "tail" not in rows["works"]
    assert rows["prints"]["result"] == {"n": 4}
    assert rows["too long"]["reason"].startswith("no time: ")
    assert all((record.path.parent / row["log"]).exists() for row in rows.values() if "log" in row)
    said = capsys.readouterr().out.splitlines()
    assert "fails: failed in 0 s: exit status 1: it broke" in said and len(said) == 2 * len(stages) - 2
    assert record.path.with_suffix(".md").read_text().count("| failed |") == 3


def test_all_well_is_status_0_and_left_out_is_no_failure(record: Record) -> None:
    status, rows = run([stage("works", ""), stage("lacks", "", needs=("no_such_module",))], record)
    assert status == 0
    assert rows["works"]["status"] == "passed"


def test_a_stage_gets_what_is_left_of_the_time(record: Record) -> None:
    hangs = "import time; time.sleep(60)"
    status, rows = run([stage("first", hangs, limit=100), stage("second", hangs)], record, seconds=15 + 2)
    assert status == 1
    assert rows["first"]["limit_seconds"] == pytest.approx(2, abs=0.3)
    assert rows["second"]["status"] == "left out"


def test_what_did_not_run_does_not_displace_what_did(record: Record) -> None:
    run([stage("a", "print('one')"), stage("b", "", needs=("no_such_module",))], record)
    status, rows = run([stage("a", "", least=1000), stage("b", "print('two')")], record)
    assert status == 0
    assert rows["a"]["result"] == {"said": "one\n"}
    assert rows["b"]["result"] == {"said": "two\n"}
    _, rows = run([stage("a", "raise SystemExit(3)")], record)  # but what ran, does
    assert rows["a"]["status"] == "failed" and rows["b"]["status"] == "passed"


def test_an_old_output_is_not_taken_for_a_new_one(record: Record) -> None:
    writes, fails = (
        stage("a", code, words=("{output}",), read=read_json, writes=".json")
        for code in (WRITES, "raise SystemExit(1)")
    )
    assert run([writes], record)[1]["a"]["result"] == {"n": 3}
    assert "result" not in run([fails], record)[1]["a"]


def test_stages_run_with_this_checkout_and_without_a_users_choices(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TRITON_INTERPRET", "STORMFAST_KERNELS", "PYTEST_ADDOPTS", "CUDA_LAUNCH_BLOCKING"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    code = """
import os, stormfast
from importlib.util import find_spec
print(stormfast.__file__, find_spec("stormfast_kernels").origin, os.getcwd(), os.environ["PYTHONPATH"].split(os.pathsep)[-1])
print({"TRITON_INTERPRET", "STORMFAST_KERNELS", "PYTEST_ADDOPTS", "CUDA_LAUNCH_BLOCKING"} & set(os.environ))
"""
    _, rows = run([stage("a", code, read=lambda log, output: {"said": log.read_text().split()})], record)
    # and no path of this machine
    assert rows["a"]["result"]["said"] == [
        "stormfast/__init__.py",
        "kernels/stormfast_kernels/__init__.py",
        ".",
        "/elsewhere",
        "set()",
    ]


SUITE = """
import os, sys, time
sys.path[:0] = {path!r}
from pathlib import Path
from bench.suite.process import Signals
from bench.suite.record import open_record
from bench.suite.run import Around, environment, run_stages
from bench.suite.stages import Stage
say = lambda log, output: {{"said": log.read_text()}}
stages = [Stage(name, ("-c", code), 60, 1, say) for name, code in (
    ("first", "print(1)"), ("second", "import time; print(2, flush=True); time.sleep(60)"), ("third", "print(3)"))]
with Signals() as signals:
    record = open_record(Path({folder!r}), {machine!r}, fresh=True)
    sys.exit(run_stages(stages, record, Around(environment(os.environ), signals, time.monotonic() + 100)))
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 128 + 15), (signal.SIGINT, 128 + 2), (signal.SIGKILL, -9)]
)
def test_a_suite_that_is_stopped_keeps_what_it_had(number: signal.Signals, status: int, tmp_path: Path) -> None:
    code = SUITE.format(path=[str(ROOT), str(ROOT / "kernels")], folder=str(tmp_path), machine=MACHINE)
    suite = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert suite.stdout is not None
    with suite.stdout:
        while not suite.stdout.readline().startswith("second: running"):
            pass
        time.sleep(0.5)
        suite.send_signal(number)
        suite.stdout.read()
    assert suite.wait(timeout=30) == status
    (path,) = tmp_path.glob("suite-*.json")
    rows = {row["stage"]: row for row in json.loads(path.read_text())["stages"]}
    assert rows["first"]["status"] == "passed" and rows["first"]["result"] == {"said": "1\n"}
    if number == signal.SIGKILL:
        assert [rows[name]["status"] for name in ("second", "third")] == ["running", "waiting"]
    else:
        assert rows["second"]["status"] == "interrupted" and rows["second"]["result"] == {"said": "2\n"}
        assert rows["third"]["status"] == "left out" and number.name in rows["third"]["reason"]
    assert re.search(r"\| first \| passed \|", path.with_suffix(".md").read_text())
