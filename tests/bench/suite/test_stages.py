"""What the suite runs: the right commands for each device, and that what they name is there."""

import signal
from pathlib import Path

import pytest

from bench.suite import stages
from bench.suite.stages import choose, plan

ROOT = Path(__file__).resolve().parents[3]


def commands(device: str, **more) -> dict[str, str]:
    return {stage.name: " ".join(stage.command) for stage in plan(device, **more)}


def test_a_cuda_device_gets_the_presets_and_measures() -> None:
    found = commands("cuda:1", steps=50, game="Breakout")
    assert list(found) == ["doctor", "tests", "profile-storm", "profile-fast", "kernels", "memory", "phases"]
    assert (
        found["profile-fast"] == "-m stormfast profile --preset fast --game Breakout --device cuda:1 --steps 50 --json"
    )
    assert found["kernels"].endswith("bench/kernels --device cuda:1 --benchmark-json {output}")
    assert found["memory"] == "profiling/memory.py --preset storm --preset fast --measure --json"
    assert " -m gpu tests/" in found["tests"]


def test_a_cpu_gets_small_sizes() -> None:
    found = commands("cpu")
    assert list(found) == ["doctor", "tests", "profile-tiny", "kernels", "memory", "phases"]
    assert found["memory"] == "profiling/memory.py --preset tiny --json"
    assert "--device cpu --steps 20" in found["profile-tiny"]


def test_what_commands_name_is_there() -> None:
    named = {word for stage in plan("cuda") for word in stage.command if "/" in word}
    assert {"bench/kernels", "bench/bench_step.py", "profiling/memory.py", "tests/test_gpu.py"} <= named
    assert not [word for word in named if not (ROOT / word).exists()]


def test_all_of_it_fits_where_no_stage_is_slow() -> None:
    """The limits are for when something is: their sum may be more than ten minutes, but the first four must fit."""
    first = plan("cuda")[:4]
    assert sum(stage.limit for stage in first) <= 600 - 15
    assert all(stage.least <= stage.limit for stage in plan("cuda") + plan("cpu"))


def test_pytest_is_stopped_as_by_ctrl_c() -> None:
    assert {stage.name for stage in plan("cuda") if stage.stop_with == signal.SIGINT} == {"tests", "kernels", "phases"}


def test_stages_are_chosen_by_name_or_kind() -> None:
    all_of_them = plan("cuda")
    assert choose(all_of_them, None) == all_of_them
    assert [stage.name for stage in choose(all_of_them, "memory, profile")] == [
        "profile-storm",
        "profile-fast",
        "memory",
    ]
    assert [stage.name for stage in choose(all_of_them, "profile-fast")] == ["profile-fast"]
    for names in ("profle", "", "tests,,profle", ","):
        with pytest.raises(ValueError, match="--stages must be some of doctor,"):
            choose(all_of_them, names)


def test_the_game_is_one_that_can_be_played_here(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"ale_py", "cv2", "envpool"}
    monkeypatch.setattr(stages.importlib.util, "find_spec", lambda name: name if name in there else None)
    assert stages.default_game() == "Pong"
    there.remove("cv2")
    assert stages.default_game() == "Pong"
    there.remove("envpool")
    assert stages.default_game() == "Catch"
    assert [stage.name for stage in plan("cuda") if not stage.missing()] == ["doctor"]
