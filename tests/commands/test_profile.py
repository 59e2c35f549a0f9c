"""`stormfast profile` prints one JSON object, or one line that says what is wrong; its figures: tests/measure."""

import json
import math

import pytest

from stormfast.cli import main
from stormfast.measure import peaks

PHASES = ["act", "sample_windows", "world_model", "sample_contexts", "imagination", "agent", "refresh", "env"]


def test_json_is_all_that_stdout_gets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(peaks.SIZES, "cpu", (64, 2**16))
    assert (
        main(
            [
                "profile",
                "--preset",
                "tiny",
                "--device",
                "cpu",
                "--precision",
                "float32",
                "--steps",
                "3",
                "--seed",
                "5",
                "--json",
            ]
        )
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert {
        key: result[key]
        for key in ("preset", "game", "device", "precision", "num_envs", "env_backend", "seed", "steps", "warmup")
    } == {
        "preset": "tiny",
        "game": "Catch",
        "device": "cpu",
        "precision": "float32",
        "num_envs": 1,
        "env_backend": "gymnasium",
        "seed": 5,
        "steps": 3,
        "warmup": 1,
    }
    phases = result["phases"]
    assert list(phases) == PHASES
    for key, per_step in (
        ("ms", "phases_ms"),
        ("launches", "launches"),
        ("flops", "flops"),
        ("bytes", "bytes"),
        ("floor_ms", "floor_ms"),
    ):
        assert result[per_step] == pytest.approx(
            sum(row[key] for row in phases.values())
        )  # at tiny each has one call a step
    for row in [
        *phases.values(),
        {"ms": result["step_ms"], "p20": result["step_ms_p20"], "p80": result["step_ms_p80"]},
    ]:
        assert 0 < row["p20"] <= row["ms"] <= row["p80"] < math.inf
    assert phases["world_model"]["fraction_of_floor"] == phases["world_model"]["floor_ms"] / phases["world_model"]["ms"]
    assert result["fraction_of_floor"] == result["floor_ms"] / result["step_ms"]
    assert result["steps_per_second"] == 1000 / result["step_ms"]
    assert result["step_ms"] < 3 * result["full_step_ms"]
    assert phases["act"]["host_reads"] == len(phases["act"]["host_read_at"]) > 0
    assert phases["sample_windows"]["flops"] == phases["env"]["flops"] == 0 < phases["env"]["launches"]
    assert all(row["launches"] == sum(row["operators"].values()) for row in phases.values())
    assert result["peak_memory_bytes"] > 2**20


BAD = [
    (["--preset", "big"], "Invalid choice 'big' for argument '--preset'."),
    (["--game", "Catchh"], "Unknown game 'Catchh'. Did you mean 'Catch'?"),
    (["--steps", "0"], "steps must be >= 1 and <= 1000000000, got 0"),
    (["--warmup", "-1"], "warmup must be >= 1"),
    (["--seed", "-1"], "seed must be >= 0"),
    (["--device", "gpu"], "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
    (["--setps", "3"], "Unknown field '--setps'. Did you mean '--steps'?"),
    (["Pong"], "Unexpected argument 'Pong'. Did you mean '--game Pong'?"),
]


@pytest.mark.parametrize(("args", "expected"), BAD, ids=[" ".join(args) for args, _ in BAD])
def test_bad_input_is_one_line_and_status_2(args: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *args]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"stormfast: error: {expected}")
    assert printed.err.count("\n") == 1
