"""The report's numbers are the count's, and a preset over its goal is told."""

import json
import subprocess
import sys

import memory_count as report
import pytest
import torch

from stormfast.config import preset_config
from stormfast.memory import PHASES, estimate


def test_json_holds_the_count(capsys):
    assert report.main(["--preset", "tiny", "--json", "--check"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["presets"]
    expected = estimate(preset_config("tiny", "standard"), 18, torch.float32, "cpu")
    assert record["bytes"]["total"] == expected.total
    assert record["peaks"].keys() == PHASES.keys()
    kept = expected.kept
    assert {name: peak["bytes"] for name, peak in record["peaks"].items()} == {name: kept + getattr(expected, name) for name in PHASES}
    largest = record["peaks"]["world_model"]["largest"]
    assert [b["bytes"] for b in largest] == sorted((b["bytes"] for b in largest), reverse=True)
    assert all(b["line"].partition(".py:")[2] for b in largest)


def test_a_preset_over_its_goal_is_one_line_and_status_1(capsys, monkeypatch):
    monkeypatch.setattr(report, "GOALS", {"tiny": 10**9})
    assert report.main(["--preset", "tiny"]) == 0
    out, err = capsys.readouterr()
    assert "1.000 over" in out and "tiny, world-model update: " in out and err == ""
    assert report.main(["--preset", "tiny", "--check"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("tiny takes 1.") and err.count("\n") == 1


def test_measuring_needs_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert report.main(["--measure"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_reader_that_leaves_is_no_error():
    process = subprocess.Popen([sys.executable, report.__file__, "--preset", "tiny"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate(timeout=120)[1] == ""
    assert process.returncode == 141


@pytest.mark.gpu
def test_the_count_is_what_the_allocator_says(capsys):
    assert report.main(["--preset", "fast", "--measure", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["presets"]
    measured = record["measured"]
    assert max(measured["peaks"].values()) <= record["bytes"]["tensors"] + record["bytes"]["allowance"]
    assert max(measured["peaks"].values()) >= 0.8 * record["bytes"]["tensors"]
