"""The report's numbers are the count's, a preset over its goal is told, the picture is of the trace; mistakes are one line."""

import contextlib
import io
import json
import subprocess
import sys

import matplotlib.image
import memory as report
import numpy as np
import pytest
import torch
from memory_picture import BACKWARD, FORWARD, KEPT, REST, timeline

from stormfast.config import preset_config
from stormfast.memory import PHASES, count, estimate
from stormfast.weightless import Block, Event, Peak


def test_json_holds_the_count(capsys):
    assert report.main(["--preset", "tiny", "--json", "--check"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["command"] == "profiling/memory.py --preset tiny --json --check" and {"commit", "dirty", "date"} < found.keys()
    (record,) = found["presets"]
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--measure"], "--measure needs a CUDA device"),
        (["--snapshot", "folder"], "add --measure"),
        (["--preset", "huge"], "invalid choice: 'huge'"),
        (["--by", "colour"], "invalid choice: 'colour'"),
        (["--preset", "tiny", "--picture", "nowhere/f.png"], "nowhere/f.png cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, monkeypatch, arguments, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert report.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("memory: ") and err.count("\n") == 1 and said in err


def test_a_reader_that_leaves_is_no_error():
    process = subprocess.Popen([sys.executable, report.__file__, "--preset", "tiny"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate(timeout=120)[1] == ""
    assert process.returncode == 141


# --- the picture -------------------------------------------------------------------------------------------------


def block(number: int, num_bytes: int, line: str) -> Block:
    return Block(number, num_bytes, (num_bytes,), torch.uint8, "aten.empty.default", line)


def made_and_freed() -> Peak:
    """100 bytes before, 30 of them freed; 50 and 7 forward, 20 backward, the 50 freed before the end."""
    old, a, b, c = block(0, 30, "x.py:1"), block(3, 50, "a.py:1"), block(4, 7, "b.py:2"), block(5, 20, "c.py:3 (MulBackward0)")
    events = (Event(0, a, True), Event(2, b, True), Event(4, old, False), Event(5, c, True), Event(5, a, False))
    return Peak(157, "aten.empty.default", "b.py:2", (a, b), before=100, events=events)


def test_a_timeline_stacks_kinds():
    found = timeline(made_and_freed())
    assert {name: sizes.tolist() for name, sizes in found.bytes.items()} == {
        KEPT: [100, 100, 100, 70, 70, 70],
        FORWARD: [0, 50, 57, 57, 57, 7],
        BACKWARD: [0, 0, 0, 0, 20, 20],
    }
    assert found.at.tolist() == [0, 0, 2, 4, 5, 5]
    assert (found.peak, int(found.total[found.peak])) == (2, 157)
    assert list(found.bytes) == [KEPT, FORWARD, BACKWARD]  # drawn in this order


def test_a_timeline_stacks_lines(monkeypatch):
    found = timeline(made_and_freed(), "line")
    assert list(found.bytes) == [KEPT, "a.py:1", "c.py:3 (MulBackward0)", "b.py:2"]
    monkeypatch.setattr("memory_picture.NUM_LINES", 1)
    few = timeline(made_and_freed(), "line")
    assert list(few.bytes) == [KEPT, "a.py:1", REST]
    assert few.total.tolist() == found.total.tolist() == timeline(made_and_freed()).total.tolist()


def test_a_timeline_of_nothing():
    found = timeline(Peak(5, "", "", (), before=5))
    assert (found.at.tolist(), found.total.tolist(), found.peak) == ([0], [5], 0)


@pytest.mark.parametrize("by", ["kind", "line"])
def test_a_timeline_of_a_real_phase_has_its_peak(by):
    _, peaks = count(preset_config("tiny", "standard"), 18, torch.float32, "cpu", trace=True)
    for peak in peaks.values():
        found = timeline(peak, by)
        assert int(found.total.max()) == int(found.total[found.peak]) == peak.num_bytes
        assert all((sizes >= 0).all() for sizes in found.bytes.values())
    assert timeline(peaks["world_model"]).bytes[BACKWARD].max() > 0
    assert BACKWARD not in timeline(peaks["acting"]).bytes  # nothing is learned there


@pytest.mark.parametrize("by", ["kind", "line"])
def test_the_picture_is_drawn(tmp_path, by):
    path = tmp_path / "f.png"
    assert report.main(["--preset", "tiny", "--picture", str(path), "--by", by]) == 0
    image = matplotlib.image.imread(io.BytesIO(path.read_bytes()))
    assert image.shape[1] == 1800 and image.shape[0] > 500
    if by == "kind":
        for colour in ("#c9ced6", "#4c8bc0"):  # kept, forward
            rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
            assert (np.abs(image[..., :3] - rgb).max(-1) < 0.01).mean() > 0.01


# --- on a device -------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    import memory_snapshot

    @contextlib.contextmanager
    def refusing(folder, name, device):
        yield
        folder.mkdir()

    monkeypatch.setattr(memory_snapshot, "recorded", refusing)
    (tmp_path / "file").touch()
    with (
        pytest.raises(report.UserError, match="--snapshot must be a folder that can be written"),
        report.snapshots(tmp_path / "file", "tiny", torch.device("cuda", 0))("acting"),
    ):
        pass
    with report.snapshots(None, "tiny", torch.device("cuda", 0))("acting"):
        pass


@pytest.mark.gpu
def test_the_count_is_what_the_allocator_says(capsys, tmp_path):
    assert report.main(["--preset", "fast", "--measure", "--json", "--snapshot", str(tmp_path)]) == 0
    (record,) = json.loads(capsys.readouterr().out)["presets"]
    measured = record["measured"]
    assert max(measured["peaks"].values()) <= record["bytes"]["tensors"] + record["bytes"]["allowance"]
    assert max(measured["peaks"].values()) >= 0.8 * record["bytes"]["tensors"]
    endings = ("-timeline.html", "-segments.html", ".json")
    assert {path.name for path in tmp_path.iterdir()} == {f"fast-{name}{end}" for name in PHASES for end in endings}
    found = json.loads((tmp_path / "fast-world_model.json").read_text())
    assert found["complete"] and found["largest"][0]["line"].partition(".py:")[2]
    assert found["peak"] - found["before"] == pytest.approx(record["bytes"]["world_model"], rel=0.25)
