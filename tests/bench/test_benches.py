"""The benches as a user runs them: every phase at the smallest preset, what is saved, and what is refused."""

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

from bench import conftest, rounds, table, warm_step
from stormfast.measure.peaks import Peaks

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
PHASES = {"act", "refresh", "world_model", "imagination", "agent", "sample_windows", "sample_contexts", "step"}


def bench(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"} | env
    )


# --- as a user runs them -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of all phases and environments."""
    path = tmp_path_factory.mktemp("bench") / "result.json"
    done = bench("bench", "--ignore=bench/kernels", "--preset", "tiny", "--rounds", "3", f"--benchmark-json={path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "medians of one call" in done.stdout and f"written to {path}" in done.stdout
    assert not path.with_name(path.name + ".partial").exists()
    assert str(ROOT) not in path.read_text()
    return json.loads(path.read_text())


def test_every_phase_is_timed_and_its_work_counted(result: dict[str, Any]) -> None:
    records = [benchmark["extra_info"] for benchmark in result["benchmarks"]]
    phases = {record["phase"]: record for record in records if "phase" in record}
    assert set(phases) == PHASES
    for benchmark, record in zip(result["benchmarks"], records, strict=True):
        assert len(benchmark["stats"]["data"]) == 3  # warm-up is not among them
        assert record["seconds"] == pytest.approx(benchmark["stats"]["median"] / record["calls"])
    for phase in phases.values():
        assert phase["preset"] == "tiny" and phase["compile"] == "off" and phase["precision"] in ("float32", "bfloat16")
        assert phase["fraction_of_floor"] == pytest.approx(phase["floor_seconds"] / phase["seconds"])
        assert phase["fraction_of_peak_flops"] == pytest.approx(
            phase["flops"] / phase["seconds"] / phase["peak_flops_per_second"]
        )
        assert phase["launches"] > 0 and phase["host_reads"] == (phase["phase"] in ("act", "step"))
    whole, parts = phases["step"], [phases[name] for name in ("act", "world_model", "sample_windows", "refresh")]
    assert whole["flops"] > sum(part["flops"] for part in parts) > 0
    assert whole["seconds"] > phases["world_model"]["seconds"] * 0.5
    assert whole["steps_per_second"] == pytest.approx(1 / whole["seconds"])


def test_environments_and_replay_are_timed(result: dict[str, Any]) -> None:
    records = [benchmark["extra_info"] for benchmark in result["benchmarks"]]
    envs = {(r["game"], r["num_envs"], r["env_backend"]): r for r in records if r["bench"] == "env"}
    assert set(envs) == {
        ("Catch", 1, "gymnasium"),
        ("Catch", 4, "gymnasium"),
        *(("Pong", n, b) for n in (1, 4) for b in ("ale", "envpool")),
    }
    for (_, num_envs, _), record in envs.items():
        assert record["steps_per_second"] == pytest.approx(num_envs / record["seconds"])
    (append,) = (r for r in records if r["bench"] == "append")
    assert append["bytes"] % 12_304 == 0 and append["seconds"] < 0.1


def test_the_machine_and_the_command_are_told(result: dict[str, Any], tmp_path: Path) -> None:
    machine = result["machine_info"]
    assert "node" not in machine
    assert (
        machine["command"].startswith("python -m pytest -p no:cacheprovider -q bench")
        and "benchmark-json" not in machine["command"]
    )
    assert machine["device_type"] == "cpu" and machine["torch"] == torch.__version__ and machine["load"] >= 0
    assert {"commit", "dirty", "triton", "threads"} <= set(machine)
    path = tmp_path / "again.json"
    path.write_text(json.dumps(result))
    done = subprocess.run(
        [sys.executable, "bench/table.py", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert all(f"| {phase} | tiny |" in done.stdout for phase in PHASES) and "| Pong | 4 | envpool |" in done.stdout
    assert machine["commit"] in done.stdout and f"`{machine['command']}`" in done.stdout


def test_saved_under_device_date_and_commit_beside_earlier_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conftest, "ROOT", tmp_path)
    monkeypatch.setattr(conftest, "device_name", lambda device: "AMD Some CPU 2 cores")
    folder = tmp_path / "bench" / "results" / "amd-some-cpu-2-cores"
    folder.mkdir(parents=True)
    for dirty, name in ((False, "abc123"), (True, "abc123-dirty"), (False, "abc123-2"), (False, "abc123-3")):
        monkeypatch.setattr(conftest, "commit", lambda dirty=dirty: ("abc123", dirty))
        path = conftest.result_path(CPU)
        assert path == folder / f"{time.strftime('%Y-%m-%d')}-{name}.json"
        path.touch()


class Config:
    """What bench/conftest.py asks of pytest's configuration."""

    def __init__(self, **options: Any) -> None:
        defaults = {"device": "cpu", "rounds": None, "save": False, "benchmark_json": None}
        self.option, self.stash = SimpleNamespace(**(defaults | options)), pytest.Stash()

    def getoption(self, name: str) -> Any:
        return getattr(self.option, name.removeprefix("--"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "--rounds must be at least 1, got 0"),
        ({"device": "tpu"}, "got 'tpu'"),
        ({"save": True, "benchmark_json": Path("x.json")}, "--save chooses the file itself"),
        ({"benchmark_json": Path("bench")}, "must be a file, got bench"),
        ({"benchmark_json": Path("missing/x.json")}, "must lie in a directory that can be written, got missing/x.json"),
    ],
)
def test_what_cannot_be_is_refused_before_timing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(pytest.UsageError, match=message):
        conftest.pytest_configure(Config(**options))  # type: ignore[arg-type]


def test_a_result_is_written_whole(tmp_path: Path) -> None:
    config = Config(benchmark_json=tmp_path / "x.json")
    conftest.pytest_configure(config)  # type: ignore[arg-type]
    assert config.option.benchmark_json == tmp_path / "x.json.partial"
    session: Any = SimpleNamespace(config=config)
    conftest.pytest_sessionfinish(session, pytest.ExitCode.OK)
    assert not list(tmp_path.iterdir())  # nothing was timed
    config.option.benchmark_json.write_text("{}")
    conftest.pytest_sessionfinish(
        session, pytest.ExitCode.INTERRUPTED
    )  # a file that was asked for by name holds what was timed
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    config.option.save = True
    config.option.benchmark_json.write_text("cut short")
    conftest.pytest_sessionfinish(session, pytest.ExitCode.INTERRUPTED)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["{}"]


def test_an_emulator_that_is_missing_is_left_out_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "envpool.py").write_text("raise ImportError('broken on purpose')")
    path = tmp_path / "result.json"
    done = bench(
        "bench/bench_env.py",
        "-k",
        "Pong-1",
        "--rounds",
        "2",
        "-rs",
        f"--benchmark-json={path}",
        PYTHONPATH=str(tmp_path),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--env-backend envpool must be importable" in done.stdout and "broken on purpose" in done.stdout
    (only,) = json.loads(path.read_text())["benchmarks"]
    assert only["extra_info"]["env_backend"] == "ale"


# --- rounds and rates --------------------------------------------------------------------------------------------


def test_a_round_is_as_many_calls_as_it_says() -> None:
    seen: list[int] = []
    timed = rounds.as_calls(lambda: seen.append(1), CPU)
    assert timed.calls > 100  # of nothing
    seen.clear()
    timed.run()
    assert len(seen) == timed.calls
    assert rounds.as_calls(lambda: time.sleep(0.003), CPU).calls == 1


def test_a_round_on_cuda_ends_with_an_idle_device(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: order.append("wait"))
    timed = rounds.as_calls(lambda: order.append("call"), torch.device("cuda"))
    order.clear()
    timed.run()
    assert order == ["call"] * timed.calls + ["wait"]


def test_work_of_a_step_is_that_of_its_phases_by_their_rates() -> None:
    def counts(flops: int, launches: int) -> Any:
        work = SimpleNamespace(flops=flops, bytes=10, dtype=torch.float32)
        return SimpleNamespace(flops=flops, bytes=10, launches=launches, host_reads=["x"], work=[work])

    step = object.__new__(warm_step.WarmStep)
    step.run = SimpleNamespace(learner=SimpleNamespace(precision=torch.float32))  # type: ignore[assignment]
    step.counts = {"often": counts(1000, 7), "seldom": counts(4000, 8)}
    step.per_step = {"often": 1.0, "seldom": 0.25}
    found = step.work("step", 4.0, Peaks(bfloat16_flops=1e9, float32_flops=1000.0, copy_bytes=100.0))
    assert found["flops"] == 2000 and found["launches"] == 9 and found["host_reads"] == 1.25 and found["bytes"] == 12.5
    assert found["floor_seconds"] == pytest.approx(1.0 + 0.25 * 4.0)
    assert found["fraction_of_floor"] == pytest.approx(0.5) and found["fraction_of_peak_flops"] == pytest.approx(0.5)
    assert found["fraction_of_copy_bandwidth"] == pytest.approx(12.5 / 4 / 100)
    alone = step.work("seldom", 4.0, Peaks(1e9, 1000.0, 100.0))
    assert alone["flops"] == 4000 and alone["fraction_of_floor"] == pytest.approx(1.0)


# --- the table ---------------------------------------------------------------------------------------------------


def test_table_of_each_kind() -> None:
    shared = {"seconds": 0.0012, "seconds_iqr": 0.00003, "preset": "storm"}
    rates = {
        "flops": 2_500_000_000,
        "bytes": 3_000_000,
        "fraction_of_floor": 0.5,
        "fraction_of_peak_flops": 0.251,
        "launches": 12,
        "host_reads": 0,
    }
    records: list[dict[str, Any]] = [
        {"bench": "world_model", "phase": "world_model", **shared, **rates},
        {"bench": "append", **shared, "bytes": 12_304},
        {
            "bench": "env",
            "game": "Pong",
            "num_envs": 4,
            "env_backend": "ale",
            "seconds": 0.002,
            "seconds_iqr": 0.0001,
            "steps_per_second": 2000.4,
        },
    ]
    assert table.markdown(records).splitlines() == [
        "| bench | preset | ms | GFLOP | MB | of floor | of peak FLOP/s | launches | host reads |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| world_model | storm | 1.2 (0.03) | 2.5 | 3 | 50.0% | 25.1% | 12 | 0 |",
        "| append | storm | 1.2 (0.03) | - | - | - | - | - | - |",
        "",
        "| game | environments | backend | ms | steps/s |",
        "| --- | --- | --- | --- | --- |",
        "| Pong | 4 | ale | 2 (0.1) | 2,000 |",
    ]
    assert table.markdown([]) == ""


@pytest.mark.parametrize("content", ["", "[]", "3", '{"machine_info": 1, "benchmarks": [3]}'])
def test_what_is_no_result_is_one_line(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(content)
    monkeypatch.setattr(sys, "argv", ["table.py", str(path)])
    assert table.main() == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and f"got {path}: " in err
