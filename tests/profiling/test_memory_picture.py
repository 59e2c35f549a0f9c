"""The picture is of the trace: every storage alive, by kind or by line, at each operator."""

import io

import memory as report
import numpy as np
import pytest
import torch

from stormfast.memory.estimate import count
from stormfast.memory.meta_tensors import Block, Event, Peak
from stormfast.settings import preset_config

matplotlib_image = pytest.importorskip("matplotlib.image")
from memory_picture import BACKWARD, FORWARD, KEPT, REST, timeline  # noqa: E402


def block(number: int, num_bytes: int, line: str) -> Block:
    return Block(number, num_bytes, (num_bytes,), torch.uint8, "aten.empty.default", line)


def made_and_freed() -> Peak:
    """100 bytes before, 30 of them freed; 50 and 7 forward, 20 backward, the 50 freed before the end."""
    old, a, b, c = (
        block(0, 30, "x.py:1"),
        block(3, 50, "a.py:1"),
        block(4, 7, "b.py:2"),
        block(5, 20, "c.py:3 (MulBackward0)"),
    )
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
    image = matplotlib_image.imread(io.BytesIO(path.read_bytes()))
    assert image.shape[1] == 1800 and image.shape[0] > 500
    if by == "kind":
        for colour in ("#c9ced6", "#4c8bc0"):  # kept, forward
            rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
            assert (np.abs(image[..., :3] - rgb).max(-1) < 0.01).mean() > 0.01
