"""The GPU suite: its jobs, what it makes of theirs, how it goes on, and how it is started."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench import gpu_suite
from bench.gpu_suite import PYTEST, Job
from bench.script import status_of
from tests.conftest import ROOT

SKIPPED = "import pytest\n@pytest.mark.skip\ndef test_one(): pass\n"
MACHINE = {"device": "Fake", "folder": "fake", "commit": "abc", "dirty": False}


def python(code: str) -> str:
    return f"-c {shlex.quote(code)}"


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the suite with other jobs on a machine that is not asked. Returns: its status, and its rows by job."""
    monkeypatch.setattr(gpu_suite, "describe_machine", lambda device: dict(MACHINE))

    def call(jobs: list[Job], *arguments: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(gpu_suite, "table_of_jobs", lambda device: jobs)
        status = gpu_suite.suite(["--out", str(tmp_path), *arguments])
        path = max(tmp_path.glob("fake/suite-*.json"), key=lambda path: path.stat().st_mtime)
        return status, {row["job"]: row for row in json.loads(path.read_text())["jobs"]}

    return call


def test_later_jobs_run_whatever_becomes_of_earlier_ones(suite: Any, tmp_path: Path, capsys: Any) -> None:
    profile = json.dumps({"step_ms": 2.0, "fraction_of_floor": 0.5})
    jobs = [
        Job("breaks", python("import sys; sys.exit('it broke')"), 60),
        Job("hangs", python("import time; time.sleep(60)"), 1, grace=1),
        Job("garbage", python("print(3)") + " --json", 60),
        Job("works", python(f"print({profile!r})") + " --json", 60, saved_as="w-{run}.json"),
    ]
    status, rows = suite(jobs)
    assert status == 1
    assert [row["status"] for row in rows.values()] == ["failed", "timed out", "failed", "passed"]
    assert "it broke" in rows["breaks"]["reason"] and (tmp_path / "fake" / rows["breaks"]["log"]).read_text()
    assert rows["works"]["result"]["step_ms"] == 2.0 and rows["works"]["command"].startswith("python -c ")
    (path,) = tmp_path.glob("fake/suite-*.json")
    document = json.loads(path.read_text())
    assert document["machine"]["commit"] == "abc" and document["command"].startswith("bench/gpu_suite.sh --out")
    (saved,) = tmp_path.glob("fake/w-*-abc.json")
    assert json.loads(saved.read_text())["step_ms"] == 2.0
    assert "2 ms a step, 50% of the floor" in capsys.readouterr().out


def test_a_second_call_goes_on_with_what_is_missing(suite: Any, tmp_path: Path) -> None:
    """`flaky` passes once its file is there; each job notes that it ran."""

    def noting(name: str, more: str = "") -> str:
        return python(f"import sys, pathlib; open({str(tmp_path / 'ran')!r}, 'a').write('{name} '); {more}")

    flaky = f"sys.exit(not pathlib.Path({str(tmp_path / 'file')!r}).exists())"
    jobs = [Job("flaky", noting("flaky", flaky), 60), Job("a", noting("a"), 60), Job("b", noting("b"), 60)]
    assert suite(jobs, "--jobs", "a,flaky")[0] == 1
    status, rows = suite(jobs)
    assert status == 1 and rows["b"]["status"] == "passed"
    (tmp_path / "file").write_text("")
    assert suite(jobs)[0] == 0 and suite(jobs)[0] == 0
    assert (tmp_path / "ran").read_text().split() == ["a", "flaky", "b", "flaky", "flaky"]
    assert suite(jobs, "--jobs", "b")[0] == 0 and len(list(tmp_path.glob("fake/suite-*.json"))) == 1


def test_jobs_that_do_not_fit_in_the_time_are_for_the_next_call(suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_suite, "LEAST", 1.0)
    sleep = python("import time; time.sleep(60)")
    jobs = [Job("long", sleep, 60, grace=0.5), Job("next", sleep, 60, grace=0.5)]
    status, rows = suite(jobs, "--minutes", "0.04")
    assert status == 3 and (rows["long"]["status"], rows["next"]["status"]) == ("unfinished", "missing")


def test_an_interrupt_stops_the_job_and_keeps_the_rest(suite: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stop = python(f"import os, signal, time; os.kill({os.getpid()}, signal.SIGINT); time.sleep(60)")
    jobs = [Job("done", python("pass"), 60), Job("stopped", stop, 60), Job("never", python("pass"), 60)]
    status, rows = suite(jobs)
    assert status == 130 and "stopped by SIGINT" in capsys.readouterr().out
    assert [row["status"] for row in rows.values()] == ["passed", "unfinished", "missing"]


def test_tests_are_counted_and_must_run(suite: Any, tmp_path: Path) -> None:
    files = {"skip": SKIPPED, "fail": SKIPPED + "def test_two(): pass\ndef test_three(): assert False"}
    for name, tests in files.items():
        (tmp_path / f"test_{name}.py").write_text(tests)
    _, rows = suite([Job(name, f"{PYTEST} {shlex.quote(str(tmp_path))}/test_{name}.py", 120) for name in files])
    assert (rows["skip"]["status"], rows["fail"]["status"]) == ("failed", "failed")
    assert "no test ran, 1 were skipped" in rows["skip"]["reason"] and "::test_three" in rows["fail"]["reason"]
    assert [rows["fail"]["result"][name] for name in ("passed", "failed", "skipped")] == [1, 1, 1]


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_the_scripts_of_all_jobs_are_there(device: str) -> None:
    jobs = {job.name: job for job in gpu_suite.table_of_jobs(device)}
    presets = ["tiny"] if device == "cpu" else ["storm", "fast"]
    assert {f"profile-{preset}" for preset in presets} <= jobs.keys()
    for job in jobs.values():
        words = job.command.split()
        assert words[0] == "-m" and find_spec(words[1]), job
        if words[1].startswith(("bench.", "profiling.")) and device == "cpu":  # else --measure asks for a GPU
            getattr(import_module(words[1]), "parse", list)(words[2:])  # the script still has these options
        assert all((ROOT / word).exists() for word in words if word.endswith(".py")), job
    assert (device == "cpu") != ("-m gpu tests/" in jobs["tests"].command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--minutes 0", "--minutes must be above 0, got 0"),
        ("--device tpu", "--device must be cuda, cuda:N or cpu, got 'tpu'"),
        ("--jobs tests,profle", "--jobs must be some of doctor,tests,"),
        ("--out README.md --device cpu", "--out must be a folder that can be written"),
        ("--device cuda:77", "cuda:77"),
    ],
)
def test_bad_input_is_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("gpu_suite", lambda: gpu_suite.suite(arguments.split())) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and err.startswith("gpu_suite: ") and message in err


# --- bench/gpu_suite.sh --------------------------------------------------------------------------------------------


def shell(root: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    given = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": ""} | env
    command = ["bash", "bench/gpu_suite.sh", *arguments]
    return subprocess.run(command, cwd=root, env=given, capture_output=True, text=True, check=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree with the script, and a suite that prints what it was given."""
    root = tmp_path / "a tree"
    (root / "bench").mkdir(parents=True)
    shutil.copy(ROOT / "bench" / "gpu_suite.sh", root / "bench")
    (root / "bench" / "__init__.py").write_text("")
    (root / "bench" / "gpu_suite.py").write_text("import os, sys; print(sys.argv[1:], os.environ.get('ASSETS'))")
    return root


def test_the_script_installs_wheels_for_the_suite_alone(root: Path) -> None:
    folder = root / ".whl"
    folder.mkdir()
    with zipfile.ZipFile(folder / "planted-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("planted.py", "")
        wheel.writestr("planted-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n")
        wheel.writestr("planted-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("planted-1.0.dist-info/RECORD", "")
    (folder / "atari-env.sh").write_text('export ASSETS="$1/assets"\n')
    for arguments in ((), ("--wheels", str(folder), "--jobs", "a b")):
        done = shell(root, *arguments)
        (site,) = (root / "runs" / "suite").iterdir()  # installed once
        assert (site / "planted.py").exists()
        assert done.stdout == f"{list(arguments[2:])} {site}/assets\n", done.stderr


def test_the_script_says_what_is_missing(root: Path) -> None:
    (root / "isolated").write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')  # -S: without site-packages
    (root / "isolated").chmod(0o755)
    for python, message in (("no-python", "there is no no-python"), (f"{root}/isolated", "lacks torch numpy")):
        done = shell(root, PYTHON=python)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith("gpu_suite: ") and message in done.stderr


@pytest.mark.slow
def test_a_training_for_real_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    command = ["bash", "bench/gpu_suite.sh", "--device", "cpu", "--out", str(tmp_path), "--jobs", "training"]
    given = {"cwd": ROOT, "env": os.environ | {"PYTHON": sys.executable}}
    first = subprocess.Popen(command, **given)
    while first.poll() is None and not any(path.read_text().count("\n") for path in tmp_path.rglob("metrics.jsonl")):
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    assert first.wait() == 130
    (path,) = tmp_path.glob("*/suite-*.json")
    assert [row["status"] for row in json.loads(path.read_text())["jobs"]] == ["unfinished"]
    assert subprocess.run(command, check=False, **given).returncode == 0
    assert [row["status"] for row in json.loads(path.read_text())["jobs"]] == ["passed"]
    (learned,) = tmp_path.glob("*/learning/Catch-tiny.json")
    (run,) = json.loads(learned.read_text())["seeds"]
    steps = run["curve"]["step"]
    assert run["steps"] == steps[-1] == 200 and steps == sorted(set(steps)) and len(steps) > 1
    assert str(ROOT) not in path.read_text() + learned.read_text() and str(tmp_path) not in learned.read_text()
