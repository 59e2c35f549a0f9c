"""The suite as a user calls it: bad input, the wrapper, and the whole of it on a CPU."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import pytest
import torch

from bench import gpu_suite
from bench.suite.record import only_one

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "gpu_suite.sh"
MACHINE = {
    "slug": "fake",
    "device": "Fake",
    "commit": "abc",
    "dirty": False,
    "torch": "2",
    "cuda": None,
    "triton": None,
    "python": "3",
    "threads": 1,
}


def shell(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    given = os.environ | {"PYTHON": sys.executable} | env
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], cwd=cwd, env=given, capture_output=True, text=True, check=False
    )


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """In this process, on a machine that is not asked."""
    monkeypatch.setattr(gpu_suite, "probe", lambda device, around: dict(MACHINE))
    return gpu_suite.main(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes: must be minutes above 0, as 9 or 2.5, got '0'"),
        (["--minutes", "inf"], "above 0, as 9 or 2.5, got 'inf'"),
        (["--minutes", "nan"], "above 0, as 9 or 2.5, got 'nan'"),
        (["--minutes", "x"], "above 0, as 9 or 2.5, got 'x'"),
        (["--steps", "-1"], "--steps: must be a whole number, 1 or more, got '-1'"),
        (["--steps", "x"], "--steps: must be a whole number, 1 or more, got 'x'"),
        (["--device", "tpu"], "--device: must be cuda, cuda:N (as cuda:1) or cpu, got 'tpu'"),
        (["--device", "auto"], "cuda:N (as cuda:1) or cpu, got 'auto'"),
        (["trian"], "unrecognized arguments: trian"),
        (["--stage", "tests"], "unrecognized arguments: --stage tests"),
        (["train"], "arguments are required: --game"),
        (["train", "--game", "Pong", "--episodes", "0"], "--episodes: must be a whole number, 1 or more, got '0'"),
        (["train", "--game", "Pong", "--seed", "-1"], "--seed: must be a whole number, 0 or more, got '-1'"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        gpu_suite.main(arguments)
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("gpu_suite: ") and message in err


def test_what_cannot_be_had_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "fake" / "logs").mkdir(parents=True)
    results = ["--results", str(tmp_path)]
    for arguments, message in (
        ([*results, "--stages", "tests,profle"], "--stages must be some of doctor,tests"),
        (["--results", str(tmp_path / "file")], "give --results another"),
        ([*results, "--wheels", str(tmp_path)], "--wheels must be a folder"),
        (results, "another suite, or a stage that outlived one"),
    ):
        busy = only_one(tmp_path / "fake" / "logs" / "lock", "") if arguments == results else contextlib.nullcontext()
        with busy:
            assert main(monkeypatch, *arguments) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1) and err.startswith("gpu_suite: ") and message in err, err
    assert not list(tmp_path.glob("fake/*.json"))


def test_what_is_no_commit_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no git is there
    monkeypatch.setenv("STORMFAST_COMMIT", "../../x y")
    assert gpu_suite.main(["--device", "cpu", "--results", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert (
        (out, err.count("\n")) == ("", 1)
        and err.startswith("gpu_suite: STORMFAST_COMMIT must be")
        and "got '../../x y'" in err
    )
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_the_machine_is_asked_is_one_line(tmp_path: Path) -> None:
    """As a terminal does it: the whole group gets it."""
    code = "import pathlib, sys; from bench import gpu_suite; gpu_suite.ROOT = pathlib.Path('.'); sys.exit(gpu_suite.main(['--device', 'cpu']))"
    (tmp_path / "bench" / "suite").mkdir(parents=True)
    (tmp_path / "bench" / "suite" / "machine.py").write_text(
        "import pathlib, time; pathlib.Path('asked').touch(); time.sleep(60)"
    )
    given = os.environ | {"PYTHONPATH": str(ROOT)}
    suite = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=given, stdout=PIPE, stderr=PIPE, text=True, process_group=0
    )
    while not (tmp_path / "asked").exists() and suite.poll() is None:
        time.sleep(0.02)
    os.killpg(suite.pid, signal.SIGINT)
    assert suite.communicate() == ("", "gpu_suite: interrupted\n") and suite.returncode == 130


def test_training_takes_what_is_for_stormfast() -> None:
    options = gpu_suite.parse(["train", "--game", "Pong", "--seed", "3", "--num-envs", "4", "--minutes", "9"])
    run = gpu_suite.training(options)
    assert run.run_dir == ROOT / "runs" / "suite" / "Pong-storm-seed3" and run.more == ("--num-envs", "4")
    assert (run.steps, run.episodes, run.device, options.minutes) == (100_000, 100, "cuda", 9.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_is_one_line(tmp_path: Path) -> None:
    done = shell("--results", "results", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("gpu_suite: device cuda was asked for, but torch")
    assert not list(tmp_path.iterdir())


def test_the_wrapper_takes_the_interpreter_it_is_given(tmp_path: Path) -> None:
    done = shell(PYTHON=str(tmp_path / "no python"))
    assert (
        done.returncode == 2
        and done.stderr == f"gpu_suite: there is no {tmp_path}/no python; name another interpreter: PYTHON=...\n"
    )
    (tmp_path / "a python").write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    (tmp_path / "a python").chmod(0o755)
    done = shell("train", "--game", "a b", "*", "", cwd=tmp_path, PYTHON=str(tmp_path / "a python"))
    assert done.stdout == f"<{ROOT}/bench/gpu_suite.py><train><--game><a b><*><>"
    given = os.environ | {"PYTHON": "echo", "CDPATH": str(ROOT)}  # a CDPATH makes cd print
    there = subprocess.run(
        ["bash", "bench/gpu_suite.sh"], cwd=ROOT, env=given, capture_output=True, text=True, check=False
    )
    assert there.stdout == f"{ROOT}/bench/gpu_suite.py\n"


def test_an_interpreter_without_torch_is_one_line(tmp_path: Path) -> None:
    """-S: no site-packages, which is where torch is."""
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    (tmp_path / "python").chmod(0o755)
    done = shell(PYTHON=str(tmp_path / "python"), PYTHONPATH="")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "must have torch and numpy" in done.stderr


@pytest.mark.slow
def test_the_suite_on_a_cpu(tmp_path: Path) -> None:
    """From another directory, in a tree that is said to be of a commit; each stage for real, then again what is asked for."""
    some = ("--stages", "doctor,tests,profile,memory", "--game", "Catch", "--steps", "2")
    done = shell("--device", "cpu", "--results", "results", *some, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("results/*/suite-*.json")
    assert str(ROOT) not in path.read_text() and done.stdout.splitlines()[-2:] == [
        str(path),
        str(path.with_suffix(".md")),
    ]
    rows = {row["stage"]: row for row in json.loads(path.read_text())["stages"]}
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(
        ("doctor", "tests", "profile-tiny", "memory"), "passed"
    )
    assert rows["tests"]["result"]["skipped"] > 0 or torch.cuda.is_available()
    assert rows["profile-tiny"]["result"]["step_ms"] > 0 and rows["memory"]["result"]["presets"][0]["preset"] == "tiny"
    table = path.with_suffix(".md").read_text()
    assert "| tiny | Catch, 1 x gymnasium | off" in table and "## Device memory" in table
    done = shell(
        "--device", "cpu", "--results", str(tmp_path / "results"), "--stages", "kernels,phases", "--minutes", "1"
    )
    rows = {row["stage"]: row for row in json.loads(path.read_text())["stages"]}
    assert len(rows) == 6 and rows["memory"]["status"] == "passed"
    assert {rows[name]["status"] for name in ("kernels", "phases")} <= {
        "passed",
        "timed out",
        "left out",
    }  # a minute may not do
    assert rows["kernels"]["result"]["records"]


@pytest.mark.slow
def test_training_on_a_cpu(tmp_path: Path) -> None:
    """Stopped in the midst by its time, then to its end."""
    asked = (
        "train",
        "--game",
        "Catch",
        "--preset",
        "tiny",
        "--steps",
        "300",
        "--episodes",
        "2",
        "--device",
        "cpu",
        "--logging.every",
        "10",
    )
    places = ("--results", str(tmp_path / "results"), "--run-dir", str(tmp_path / "run"))
    done = shell(*asked, *places, "--minutes", "0.25")
    assert done.returncode == 3, done.stdout + done.stderr
    done = shell(*asked, *places)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("results/*/suite-*.json")
    (run,) = json.loads(path.read_text())["training"]
    assert (run["status"], run["step"], run["evaluation"]["episodes"]) == ("finished", 300, 2)
    assert len(run["calls"]) == 2 and 0 < run["calls"][0]["steps"][1] < 300 and run["ms_per_step"] > 0
    assert (
        shell(*asked, *places, "--world-model.width", "16").returncode == 0
    )  # finished: nothing is asked of stormfast
    done = shell(*asked, *places, "--steps", "310", "--world-model.width", "16")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "A resumed run keeps its settings" in done.stderr
