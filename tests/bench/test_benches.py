"""The benches as a user runs them: each runs, what is saved, what is refused."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import conftest
from tests.conftest import ROOT

KERNELS = ["sample_with_log_probs_and_gradient", "log_probs_and_gradient"]


def bench(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | env
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)


@pytest.mark.parametrize("kernels", ["not compile", pytest.param("compile", marks=pytest.mark.slow)])
def test_every_bench_runs(kernels: str) -> None:
    done = bench("bench", "--benchmark-disable", "--preset", "tiny", "-k", kernels)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_result_names_its_machine_and_command(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    files = [f"bench/bench_{name}.py" for name in ("replay", "env", "categorical")]
    chosen = "append or Catch or (log_probs and eager)"
    done = bench(*files, "-k", chosen, "--preset", "tiny", "--rounds", "3", f"--benchmark-json={path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
    assert str(ROOT) not in path.read_text()
    result = json.loads(path.read_text())
    machine = result["machine_info"]
    assert {"device", "commit", "dirty", "torch", "triton", "threads", "load"} <= set(machine) and "node" not in machine
    assert machine["command"].startswith("python -m pytest") and "benchmark-json" not in machine["command"]
    records = [found["extra_info"] for found in result["benchmarks"]]
    for found, record in zip(result["benchmarks"], records, strict=True):
        assert len(found["stats"]["data"]) == 3  # the rounds that warm up do not count
        assert record["seconds"] == pytest.approx(found["stats"]["median"] / record["calls"])
    assert [record["bench"] for record in records] == ["append", "env", "env", *KERNELS]
    assert records[0]["bytes"] % 12_304 == 0
    assert records[2]["steps_per_second"] == pytest.approx(4 / records[2]["seconds"])
    kernel = records[3]
    assert kernel["provider"] == "eager" and kernel["triton_launches_per_call"] == 0
    assert kernel["bytes_per_second"] == pytest.approx(kernel["bytes"] / kernel["seconds"])
    assert kernel["fraction_of_copy_bandwidth"] * kernel["copy_bytes_per_second"] == pytest.approx(
        kernel["bytes_per_second"]
    )
    assert all(f"| {name} |" in done.stdout for name in ("append", "Catch", "unimix_log_probs, forward + backward"))


def test_an_emulator_that_is_missing_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "envpool.py").write_text("raise ImportError('broken on purpose')")
    done = bench("bench/bench_env.py", "-k", "Pong-1", "--benchmark-disable", "-rs", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0 and "1 passed, 1 skipped" in done.stdout and "broken on purpose" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_one_line() -> None:
    done = bench("bench", "--device", "cuda")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR and done.stdout == ""
    assert "device cuda" in done.stderr.strip().splitlines()[-1]


# --- options -----------------------------------------------------------------------------------------------------


def configured(**options: Any) -> Any:
    """What bench/conftest.py uses of pytest's configuration, configured by it."""
    defaults = {"device": "cpu", "rounds": None, "save": False, "benchmark_json": None}
    option, stash = SimpleNamespace(**(defaults | options)), pytest.Stash()
    config: Any = SimpleNamespace(option=option, stash=stash, addinivalue_line=lambda *_: None)
    config.getoption = lambda name: getattr(option, name.removeprefix("--"))
    conftest.pytest_configure(config)
    return config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "--rounds"),
        ({"save": True, "benchmark_json": Path("x.json")}, "--save"),
        ({"benchmark_json": Path("missing/x.json")}, "missing"),
    ],
)
def test_a_wrong_option_is_refused_before_timing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(pytest.UsageError, match=message):
        configured(**options)


@pytest.mark.parametrize(("status", "kept"), [(pytest.ExitCode.OK, True), (pytest.ExitCode.INTERRUPTED, False)])
def test_a_result_is_written_whole_or_not_at_all(tmp_path: Path, status: pytest.ExitCode, kept: bool) -> None:
    path = tmp_path / "x.json"
    config = configured(benchmark_json=path)
    config.option.benchmark_json.write_text("{}")
    assert not path.exists()
    conftest.pytest_sessionfinish(SimpleNamespace(config=config), status)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == [path] * kept


def test_an_earlier_result_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conftest, "ROOT", tmp_path)
    monkeypatch.setattr(conftest, "device_name", lambda device: "AMD Some CPU 2 cores")
    for dirty, name in ((False, "abc123"), (True, "abc123-dirty"), (False, "abc123-2"), (False, "abc123-3")):
        monkeypatch.setattr(conftest, "commit", lambda dirty=dirty: ("abc123", dirty))
        path = configured(save=True).stash[conftest.RESULT]
        day = time.strftime("%Y-%m-%d")
        assert path == tmp_path / "bench" / "results" / "amd-some-cpu-2-cores" / f"{day}-{name}.json"
        path.touch()
