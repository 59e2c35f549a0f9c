"""Floors are what they are by hand; every mistake is one line; the table holds every phase and floor."""

from typing import Any

import pytest
import torch

from profiling import gpus, roofline
from profiling.gpus import Device
from stormfast.measure.op_counts import OpWork
from stormfast.measure.peaks import Peaks, floor_seconds
from stormfast.measure.work import MOST_ACTIONS, phase_work
from stormfast.presets import preset_config

DEVICE = Device("a device", Peaks(1e12, 1e11, 1e10), "made up")  # ridges at 100 and 10 FLOPs per byte


def test_a_floor_adds_the_longer_of_arithmetic_and_traffic():
    work = [OpWork("mm", torch.bfloat16, 4 * 10**9, 10**7), OpWork("mm", torch.bfloat16, 10**9, 3 * 10**7)]
    expected = {"ms": pytest.approx(4 + 3), "memory_ms": pytest.approx(3), "binds": "FLOPs"}
    assert roofline.floor(work, DEVICE) == expected
    assert roofline.floor(work[1:], DEVICE)["binds"] == "bytes"
    in_float32 = roofline.floor([OpWork("mm", torch.float32, 4 * 10**9, 10**7)], DEVICE)
    assert in_float32 == {"ms": pytest.approx(40), "memory_ms": 0, "binds": "FLOPs"}


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return roofline.result_of(roofline.parse(["--preset", "fast", "--device", "rtx3090", "--peaks", "1,10"]))


def test_the_floor_is_the_one_of_the_whole_project(result):
    work = phase_work(preset_config("fast", "standard"), MOST_ACTIONS, torch.bfloat16)
    for phase in result["phases"]:
        expected = 1000 * floor_seconds(work[phase["name"]], gpus.DEVICES["rtx3090"].peaks)
        assert phase["floor"]["rtx3090"]["ms"] == pytest.approx(expected)
        for key in ("flops", "bytes"):
            assert phase[key] == getattr(work[phase["name"]], key) == sum(row[key] for row in phase["operators"])
        by_operator = sum(row["floor"]["given"]["ms"] for row in phase["operators"])
        assert phase["floor"]["given"]["ms"] == pytest.approx(by_operator)


def test_a_step_is_its_phases_as_often_as_they_are_called(result):
    rates = {phase["name"]: phase["calls_per_step"] for phase in result["phases"]}
    assert rates["imagination"] == rates["agent"] == 0.25 and rates["world_model"] == 1
    for key in ("rtx3090", "given"):
        floor = result["step"]["floor"][key]
        expected = sum(phase["floor"][key]["ms"] * phase["calls_per_step"] for phase in result["phases"])
        assert floor["ms"] == pytest.approx(expected)
        assert floor["minutes"] == pytest.approx(expected * 100_000 / 60_000)


def test_the_table_has_every_phase_and_floor(result):
    table = roofline.text(result)
    step = next(line.split() for line in table.splitlines() if line.startswith("step"))
    for key in ("rtx3090", "given"):
        assert roofline.number(result["step"]["floor"][key]["ms"]) in step
    assert all(phase["name"] in table for phase in result["phases"]) and "imagination x 0.25 a step" in table


def test_settings_and_measured_devices_are_taken(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(gpus, "measure_peaks", lambda device: DEVICE.peaks)
    given = ["--set", "world_model.channels=[2, 3, 4, 5]", "--set", "agent.state=hidden", "--preset", "tiny"]
    assert (
        roofline.main(
            [*given, "--device", "measured,h100", "--precision", "float32", "--picture", str(tmp_path / "f.png")]
        )
        == 0
    )
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "world_model.channels (2, 3, 4, 5), agent.state hidden" in out
    assert "measured: " in out and "0.1 TFLOP/s, 10 GB/s" in out and "h100: H100 SXM" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "h300"], "--device must be some of rtx3090,"),
        (["--peaks", "1"], "--peaks must be two positive numbers"),
        (["--set", "world_model.width"], "--set must be NAME=VALUE"),
        (["--set", "world_model.widht=3"], "widht"),
        (["--picture", "f.gif"], "--picture must end in .png, got f.gif"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, capsys):
    assert roofline.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("roofline: ") and err.count("\n") == 1 and message in err
