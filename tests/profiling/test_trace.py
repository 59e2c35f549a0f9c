"""A trace has each phase of each step in a range, says what it is of, and its table adds up."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from profiling import trace as script
from profiling.trace_summary import summarise

PHASES = ["act", "sample_windows", "world_model", "sample_contexts", "imagination", "agent", "refresh", "env", "append"]
STEPS = 2


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a call of the script wrote."""
    path = tmp_path_factory.mktemp("trace") / "new" / "trace.json.gz"
    return run_script(f"--preset tiny --device cpu --steps {STEPS}", path)


def run_script(arguments: str, path: Path) -> dict[str, Any]:
    assert script.main([*arguments.split(), "--out", str(path)]) == 0
    return json.loads(gzip.decompress(path.read_bytes()))


def ranges_of(trace: dict[str, Any]) -> list[dict[str, Any]]:
    ours = [e for e in trace["traceEvents"] if e.get("cat") == "user_annotation" and e["name"].startswith("stormfast:")]
    return sorted(ours, key=lambda e: (e["ts"], -e["dur"]))


def test_a_trace_has_one_range_a_phase_and_step(traced: dict[str, Any]) -> None:
    found = ranges_of(traced)
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


def test_a_trace_says_what_it_is_of(traced: dict[str, Any]) -> None:
    origin = traced["stormfast"]
    assert origin["command"].startswith("python -m profiling.trace --preset tiny")
    assert origin["device_type"] == "cpu" and origin["torch"] == torch.__version__
    assert {"device", "commit", "dirty", "date", "run"} <= origin.keys()


def test_the_numbers_add_up(traced: dict[str, Any]) -> None:
    numbers = summarise(traced, STEPS)
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
        ("--out step.txt", "--out must end in .json.gz, got step.txt"),
        ("--out /proc/none/step.json.gz", "--out must lie in a directory that can be written, got /proc/none/step"),
        ("--preset tin", "invalid choice: 'tin'"),
    ],
)
def test_bad_input_is_one_line_before_any_step(arguments: str, message: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr(script, "warm_run", lambda config: pytest.fail("a run was made"))
    assert script.main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("trace: ") and err.count("\n") == 1 and message in err, err


@pytest.mark.gpu
def test_kernels_of_captured_graphs_are_in_the_trace(tmp_path: Path) -> None:
    for mode in ("off", "graphs"):
        arguments = f"--preset tiny --device cuda --compile {mode} --steps {STEPS}"
        numbers = summarise(run_script(arguments, tmp_path / f"{mode}.json.gz"), STEPS)
        for name in ("act", "world_model", "agent", "refresh"):
            assert numbers["phases"][name]["kernels"] > 5, (mode, name)
        assert 0 < numbers["gpu"]["busy_ms"] < numbers["gpu"]["ms"]
