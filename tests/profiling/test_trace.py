"""A trace has each phase of each step in a range, says what it is of, and its table adds up."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from profiling import trace as script

PHASES = ["act", "sample_windows", "world_model", "sample_contexts", "imagination", "agent", "refresh", "env", "append"]
STEPS = 2


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a call of the script wrote and printed."""
    directory = tmp_path_factory.mktemp("trace") / "new"
    arguments = (
        f"--preset tiny --device cpu --steps {STEPS} --out {directory}/trace.json.gz --json {directory}/numbers.json"
    )
    assert script.main(arguments.split()) == 0
    trace = json.loads(gzip.decompress((directory / "trace.json.gz").read_bytes()))
    return {"trace": trace, "numbers": json.loads((directory / "numbers.json").read_text()), "arguments": arguments}


def ranges_of(trace: dict[str, Any]) -> list[dict[str, Any]]:
    ours = [e for e in trace["traceEvents"] if e.get("cat") == "user_annotation" and e["name"].startswith("stormfast:")]
    return sorted(ours, key=lambda e: (e["ts"], -e["dur"]))


def test_a_trace_has_one_range_a_phase_and_step(traced: dict[str, Any]) -> None:
    found = ranges_of(traced["trace"])
    iterations: list[list[dict[str, Any]]] = []
    for event in found:
        if event["name"] == "stormfast:step":
            iterations.append([event])
        else:
            step = iterations[-1][0]
            assert step["ts"] <= event["ts"] and event["ts"] + event["dur"] <= step["ts"] + step["dur"]
            iterations[-1].append(event)
    whole = tuple(f"stormfast:{name}" for name in ("step", *PHASES))
    reset = tuple(f"stormfast:{name}" for name in ("step", "act", "env", "append"))
    counts = Counter(tuple(event["name"] for event in iteration) for iteration in iterations)
    assert counts[whole] == STEPS and counts.keys() <= {whole, reset}


def test_files_say_what_they_are_of(traced: dict[str, Any]) -> None:
    for origin in (traced["trace"]["stormfast"], traced["numbers"]):
        assert origin["command"] == f"python -m profiling.trace {traced['arguments']}"
        assert origin["device_type"] == "cpu" and origin["torch"] == torch.__version__
        assert {"device", "commit", "dirty", "date", "run"} <= origin.keys()


def test_the_numbers_add_up(traced: dict[str, Any]) -> None:
    numbers = traced["numbers"]
    rows = numbers["phases"]
    assert numbers["steps"] == STEPS and list(rows) == [*PHASES, "outside"] and numbers["gpu"] is None
    assert sum(row["ms"] for row in rows.values()) == pytest.approx(numbers["ms"])
    assert all(0 <= row["operators_ms"] <= row["ms"] for name, row in rows.items())
    in_operators = sum(row["operators_ms"] for row in rows.values())
    assert sum(row["ms"] for row in numbers["operators"]) == pytest.approx(in_operators)
    assert "agent" in script.report(numbers) and "kernels" not in script.report(numbers)
    assert rows["world_model"]["operators_ms"] > 0.5 * rows["world_model"]["ms"]
    assert rows["env"]["operators_ms"] < 0.5 * rows["env"]["ms"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--out step.txt", "--out must end in .json or .json.gz, got step.txt"),
        ("--out /proc/none/step.json", "--out must lie in a directory that can be written, got /proc/none/step.json"),
        ("--out {}/dir.json", "is a directory"),
        ("--json {}/x", "--json must end in .json or .json.gz"),
        ("--preset tin", "invalid choice: 'tin'"),
    ],
)
def test_bad_input_is_one_line_before_any_step(
    arguments: str, message: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    (tmp_path / "dir.json").mkdir()
    monkeypatch.setattr(script, "OUT", tmp_path)
    monkeypatch.setattr(script, "warm_run", lambda config: pytest.fail("a run was made"))
    assert script.main(arguments.format(tmp_path).split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("trace: ") and err.count("\n") == 1 and message in err, err


@pytest.mark.gpu
def test_kernels_of_captured_graphs_are_in_the_trace(tmp_path: Path) -> None:
    for mode in ("off", "graphs"):
        arguments = f"--preset tiny --device cuda --compile {mode} --steps 2 --out {tmp_path}/t.json"
        assert script.main([*arguments.split(), "--json", f"{tmp_path}/n.json"]) == 0
        numbers = json.loads((tmp_path / "n.json").read_text())
        for name in ("act", "world_model", "agent", "refresh"):
            assert numbers["phases"][name]["kernels"] > 5, (mode, name)
        assert 0 < numbers["gpu"]["busy_ms"] < numbers["gpu"]["ms"]
