"""What was alive at the peak, worked out from the allocator's events; torch's own viewer takes the same record."""

import base64
import json
from pathlib import Path
from typing import Any

import memory_snapshot
import pytest
import torch


def frame(path: str, line: int, name: str) -> dict[str, Any]:
    return {"filename": path, "line": line, "name": name}


TORCH, OWN = frame("/lib/torch/nn/functional.py", 7, "linear"), frame("/code/stormfast/agent.py", 48, "state")
OUTER = frame("/code/stormfast/learner.py", 64, "update_agent")


def event(action: str, addr: int, size: int, *frames: dict[str, Any]) -> dict[str, Any]:
    return {"action": action, "addr": addr, "size": size, "stream": 0, "time_us": addr, "frames": list(frames)}


def snapshot() -> dict[str, Any]:
    """Before: 1,000 bytes, of which 300 are freed first. Then 512 and 2,048, the peak; then less and a little more."""
    events = [
        event("free_requested", 1, 300),
        event("free_completed", 1, 300),
        event("segment_alloc", 0, 10**6),
        event("alloc", 2, 512, TORCH, OWN, OUTER),
        event("alloc", 3, 2_048, TORCH),
        event("free_requested", 2, 512),
        event("free_completed", 2, 512),
        event("alloc", 2, 256, OWN),
    ]
    block = {"address": 3, "size": 2_048, "requested_size": 2_000, "state": "active_allocated", "frames": [TORCH]}
    segment = {
        "address": 0,
        "total_size": 10**6,
        "stream": 0,
        "segment_type": "large",
        "allocated_size": 2_048,
        "active_size": 2_048,
    }
    segment |= {
        "device": 0,
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "requested_size": 2_000,
        "frames": [],
        "blocks": [block],
    }
    return {"segments": [segment], "device_traces": [[], events], "allocator_settings": {}}


def test_the_peak_is_found_among_the_events():
    found = memory_snapshot.summary(snapshot(), 1_000, 1)
    assert (found["before"], found["peak"], found["at_event"]) == (1_000, 1_000 - 300 + 512 + 2_048, 5)
    assert (found["made_by_the_phase"], found["blocks"], found["events"], found["complete"]) == (2_560, 2, 8, True)
    assert found["largest"] == [
        {"bytes": 2_048, "line": "functional.py:7 linear"},
        {"bytes": 512, "line": "agent.py:48 state"},
    ]


def test_a_phase_that_allocates_nothing_has_its_peak_at_the_start():
    found = memory_snapshot.summary(snapshot(), 1_000, 0)
    assert (found["peak"], found["at_event"], found["largest"]) == (1_000, 0, [])


def test_a_full_record_is_told(monkeypatch):
    monkeypatch.setattr(memory_snapshot, "MAX_EVENTS", 8)
    assert memory_snapshot.summary(snapshot(), 1_000, 1)["complete"] is False


def test_pages_hold_the_record(tmp_path):
    memory_snapshot.write(tmp_path / "new", "tiny-acting", snapshot(), 1_000, 1)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "tiny-acting-timeline.html",
        "tiny-acting-segments.html",
        "tiny-acting.json",
    }
    for name, view in (("timeline", "Active Memory Timeline"), ("segments", "Allocator State History")):
        page = (tmp_path / "new" / f"tiny-acting-{name}.html").read_text()
        assert page.lstrip().startswith("<!DOCTYPE html>") and view in page
        (line,) = (line for line in page.splitlines() if line.startswith("const local_files"))
        (file,) = json.loads(line.partition("=")[2])
        assert b"/code/stormfast/agent.py" in base64.b64decode(file["base64"])
    assert json.loads((tmp_path / "new" / "tiny-acting.json").read_text()) == memory_snapshot.summary(
        snapshot(), 1_000, 1
    )


def test_recording_ends_with_the_phase_and_after_an_error(tmp_path, monkeypatch):
    calls: list[Any] = []
    memory = torch.cuda.memory
    monkeypatch.setattr(
        memory,
        "_record_memory_history",
        lambda enabled="all", **settings: calls.append((enabled, settings.get("clear_history"))),
    )
    monkeypatch.setattr(memory, "_snapshot", snapshot)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1_000)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    device = torch.device("cuda", 1)
    with memory_snapshot.recorded(tmp_path, "a", device):
        assert calls == [("all", True)]
    assert calls == [("all", True), (None, None)] and json.loads((tmp_path / "a.json").read_text())["peak"] == 3_260
    with pytest.raises(ZeroDivisionError), memory_snapshot.recorded(tmp_path, "b", device):
        raise ZeroDivisionError
    assert len(calls) == 4 and calls[-1] == (None, None) and not (tmp_path / "b.json").exists()


def test_a_line_is_the_innermost_of_ours():
    assert memory_snapshot.line([TORCH, OWN, OUTER]) == "agent.py:48 state"
    assert memory_snapshot.line([frame("/x/stormfast_kernels/launch.py", 3, "run")]) == "launch.py:3 run"
    assert memory_snapshot.line([]) == "" and Path(OWN["filename"]).name == "agent.py"
