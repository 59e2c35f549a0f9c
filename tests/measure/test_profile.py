"""The profile measures what it says, with the parts of a real run, and prints a table or one JSON object."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from stormfast.cli import main
from stormfast.errors import UserError
from stormfast.measure import peaks, profile
from stormfast.measure import phases as measure_phases
from stormfast.measure.op_counts import OpCounts, OpWork
from stormfast.measure.peaks import Peaks, best_of, best_seconds, floor_seconds, measure_peaks
from stormfast.measure.phases import NEVER, cycle_steps, training_config
from stormfast.measure.profile import spread
from stormfast.measure.profile_report import WIDTH
from stormfast.presets import preset_config
from stormfast.schema import flatten, override
from stormfast.settings import ProfileConfig, TrainConfig

CPU = torch.device("cpu")
PHASES = ["act", "sample_windows", "world_model", "sample_contexts", "imagination", "agent", "refresh", "env"]


@pytest.fixture
def small_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peaks.SIZES, "cpu", (64, 2**16))


def test_the_profiled_run_is_the_presets():
    config = training_config(
        ProfileConfig(game="Pong", preset="fast", protocol="reference", device="cpu", precision="float32", seed=3)
    )
    changed = {
        name: value
        for name, value in flatten(config).items()
        if value != flatten(preset_config("fast", "reference"))[name]
    }
    assert changed == {
        "agent.start": 0,
        "device": "cpu",
        "precision": "float32",
        "seed": 3,
        "steps": 1024
        + (4 + 3) * 4
        + (1 + 4 + 3 + 1 + 5 + 10),  # at random; stretches of 4, warming up and measured; their ends, env alone
        "logging.every": NEVER,
        "logging.save_every": NEVER,
        "logging.tensorboard": False,
    }


@pytest.mark.parametrize(("warmup", "steps"), [(1, 1), (7, 3)])
@pytest.mark.usefixtures("small_peaks")
def test_no_more_steps_are_taken_than_memory_is_asked_for(
    warmup: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, build = [], measure_phases.build
    monkeypatch.setattr(measure_phases, "build", lambda config, path: (runs.append(build(config, path)), runs[-1])[1])
    profile.measure(ProfileConfig(preset="tiny", device="cpu", warmup=warmup, steps=steps, compile="off"))
    (run,) = runs
    rows = int(run.replay.written.sum())
    assert rows <= run.config.steps <= rows + 20
    assert training_config(ProfileConfig(preset="tiny", device="cpu", steps=10**9)).steps == NEVER


@pytest.mark.parametrize(("preset", "cycle"), [("storm", 1), ("fast", 4), ("cpu", 8), ("tiny", 1)])
def test_a_cycle_has_whole_updates(preset: str, cycle: int) -> None:
    config = preset_config(preset, "standard")
    assert cycle_steps(config) == cycle
    assert all(
        (cycle * rate).is_integer() for rate in (config.world_model.updates_per_step, config.agent.updates_per_step)
    )


def test_the_floor_is_each_operators_longer_side():
    rates = Peaks(bfloat16_flops=100.0, float32_flops=10.0, copy_bytes=1.0)
    work = [
        OpWork("mm", torch.bfloat16, 500, 3),
        OpWork("mm", torch.float32, 500, 3),
        OpWork("bmm", torch.float32, 10, 7),
    ]
    assert [rates.seconds(w) for w in work] == [5.0, 50.0, 7.0]
    assert floor_seconds(OpCounts(work=work), rates) == 62.0
    assert floor_seconds(OpCounts(), rates) == 0


def test_the_best_of_two_measurements_is_taken_rate_by_rate():
    assert best_of(Peaks(1.0, 5.0, 2.0), Peaks(3.0, 4.0, 2.0)) == Peaks(3.0, 5.0, 2.0)


def test_peaks_are_rates_that_this_machine_can_have(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(peaks.SIZES, "cpu", (512, 2**24))
    measured = measure_peaks(CPU)
    assert 1e8 < measured.float32_flops < 1e14
    assert 1e7 < measured.bfloat16_flops < 1e15
    assert 1e8 < measured.copy_bytes < 1e13


def test_the_shortest_call_counts_and_the_first_does_not():
    pauses = iter([0.0, 0.02, 0.005, *[0.01] * 20])
    calls = []

    def function() -> None:
        calls.append(time.sleep(next(pauses)))

    assert 0.005 <= best_seconds(function, CPU) < 0.01
    assert len(calls) == 1 + peaks.REPEATS


def test_spread_is_median_and_quintiles():
    assert spread([0.004, 0.001, 0.003, 0.002, 0.005, 0.006]) == pytest.approx({"ms": 3.5, "p20": 2.0, "p80": 5.0})


@pytest.mark.usefixtures("small_peaks")
def test_the_table_has_every_phase_and_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--preset", "tiny", "--device", "cpu", "--steps", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("│ ").split()[0] for line in lines if line.startswith("│")]
    assert rows == [*PHASES, "step"]
    assert all(len(line) <= WIDTH and "…" not in line for line in lines if line[:1] in "┏┃┡│├└")
    assert any(line.startswith("host read in act: cpu at stormfast/player.py") for line in lines)


@pytest.mark.usefixtures("small_peaks")
def test_rates_of_fewer_updates_than_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {
        "num_envs": 2,
        "world_model.updates_per_step": 0.5,
        "agent.updates_per_step": 0.25,
        "agent.minibatches": 2,
        "imagination.batch_size": 8,
    }
    tiny = override(preset_config("tiny", "standard"), sizes)
    monkeypatch.setattr(measure_phases, "preset_config", lambda *_: tiny)
    result = profile.measure(ProfileConfig(preset="tiny", device="cpu", steps=5))
    phases = result["phases"]
    calls = {name: row["calls_per_step"] for name, row in phases.items()}
    assert calls == dict(zip(PHASES, [0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.5, 0.5], strict=True))
    assert result["launches"] == sum(row["launches"] * row["calls_per_step"] for row in phases.values())
    halves = (phases["act"]["ms"] + phases["env"]["ms"]) / 2
    assert result["full_step_ms"] == pytest.approx(
        halves + sum(row["ms"] for name, row in phases.items() if name not in ("act", "env"))
    )


def test_what_does_not_fit_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(config: ProfileConfig) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(profile, "measure", full)
    with pytest.raises(UserError, match="does not fit in memory"):
        profile.profile(ProfileConfig(preset="tiny"))


def test_no_temporary_directory_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    config = training_config(ProfileConfig(preset="tiny", device="cpu"))
    for name in ("TemporaryDirectory", "build"):
        with monkeypatch.context() as context:
            context.setattr(measure_phases, name, full)
            with (
                pytest.raises(UserError, match="No space left on device; set TMPDIR"),
                measure_phases.scratch_run(config),
            ):
                pass


def test_sigterm_clears_the_temporary_directory_away(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def terminated(config: TrainConfig, path: Path) -> None:
        made.append(path)
        assert path.is_dir()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(measure_phases, "build", terminated)
    monkeypatch.setattr(profile, "measure_peaks", lambda device: None)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["profile", "--preset", "tiny", "--device", "cpu"]) == 128 + signal.SIGTERM
    assert len(made) == 1 and not made[0].exists()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_storm_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    assert main(["profile", "--preset", "storm", "--device", "cpu", "--steps", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert 1.2e12 < result["flops"] < 1.7e12  # 1.46e12 by hand, at 18 actions
    assert 0.02 < result["fraction_of_floor"] < 1.1
    assert result["peak_memory_bytes"] < 8 * 2**30
    assert time.monotonic() - start < 300
