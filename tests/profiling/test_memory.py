"""The report's numbers are the count's; mistakes are one line."""

import json

import numpy as np
import pytest
import torch

from profiling import memory as report
from profiling.memory_picture import BACKWARD, BEFORE, FORWARD, timeline
from stormfast.memory.estimate import LABELS, PHASES, estimate
from stormfast.memory.meta_tensors import LiveBytes
from stormfast.presets import preset_config


def test_json_holds_the_count_and_the_picture_is_one(capsys, tmp_path):
    assert report.main(["--preset", "tiny", "--json", "--picture", str(tmp_path / "f.png")]) == 0
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(capsys.readouterr().out)
    assert {"commit", "dirty", "date", "command"} < found.keys()
    (record,) = found["presets"]
    expected = estimate(preset_config("tiny", "standard"), 18, torch.float32, "cpu")
    assert record["bytes"]["total"] == expected.total
    peaks = {name: peak["bytes"] for name, peak in record["peaks"].items()}
    assert peaks == {name: expected.persistent + getattr(expected, name) for name in PHASES}
    largest = record["peaks"]["world_model"]["largest"]
    assert [b["bytes"] for b in largest] == sorted((b["bytes"] for b in largest), reverse=True)
    assert all(b["line"].partition(".py:")[2] for b in largest)


def test_a_timeline_stacks_what_is_alive_by_kind():
    weight = torch.zeros(10, 10, device="meta", requires_grad=True)
    with LiveBytes(trace=True) as live:
        before = torch.zeros(1_000, device="meta")
        live.begin()
        loss = (torch.zeros(50, 10, device="meta") @ weight).exp().sum()
        del before
        loss.backward()
        peak = live.traced_peak()
    at, alive = timeline(peak)
    total = np.sum([*alive.values()], 0)
    assert len(at) == len(total) and total.max() == peak.num_bytes
    assert (alive[BEFORE][0], alive[BEFORE][-1]) == (4_000, 0)
    assert alive[FORWARD].max() > 0 and set(alive) == {BEFORE, FORWARD, BACKWARD}


def test_the_table_has_every_part_and_phase(capsys):
    assert report.main(["--preset", "tiny", "--preset", "cpu"]) == 0
    out = capsys.readouterr().out
    assert all(label in out for label in LABELS.values())
    assert all(f"{preset}, {label}: " in out for preset in ("tiny", "cpu") for label in PHASES.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--measure"], "--measure needs a CUDA device"),
        (["--preset", "huge"], "invalid choice: 'huge'"),
        (["--preset", "tiny", "--picture", "nowhere/f.png"], "--picture must lie in a directory that can be written"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(report, "counted", lambda *arguments: pytest.fail("counted"))
    assert report.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("memory: ") and err.count("\n") == 1 and message in err


@pytest.mark.gpu
def test_the_count_is_what_the_allocator_says(capsys):
    assert report.main(["--preset", "fast", "--measure", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["presets"]
    most = max(record["measured"]["peaks"].values())
    assert 0.8 * record["bytes"]["tensors"] <= most <= record["bytes"]["tensors"] + record["bytes"]["allowance"]
