"""torch's own record of CUDA memory around a phase: its viewer's pages, and a summary of what was alive at the peak.

A page holds the recorded history, packed as torch's viewer reads it; the viewer itself is loaded from the network when a page is
opened in a browser. The summary is plain JSON.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from stormfast.runs.directory import write_whole

MAX_EVENTS = 500_000  # of the allocator, in a phase; older ones are forgotten
LARGEST = 40  # blocks in a summary


@contextlib.contextmanager
def recorded(folder: Path, name: str, device: torch.device) -> Iterator[None]:
    """Records inside, and writes FOLDER/NAME-timeline.html, NAME-segments.html and NAME.json after it. Raises: OSError."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.memory._record_memory_history(max_entries=MAX_EVENTS, stacks="python", clear_history=True)
    try:
        yield
        torch.cuda.synchronize(device)
        snapshot = torch.cuda.memory._snapshot()
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    write(folder, name, snapshot, before, device.index or 0)


def write(folder: Path, name: str, snapshot: dict[str, Any], before: int, device_index: int) -> None:
    """The two pages and the summary of a snapshot. Raises: OSError."""
    from torch.cuda import _memory_viz

    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{name}-timeline.html", _memory_viz.trace_plot(snapshot).encode())
    write_whole(folder / f"{name}-segments.html", _memory_viz.segment_plot(snapshot).encode())
    write_whole(folder / f"{name}.json", json.dumps(summary(snapshot, before, device_index), indent=1).encode() + b"\n")


def summary(snapshot: dict[str, Any], before: int, device_index: int) -> dict[str, Any]:
    """Bytes allocated at the peak of a recorded phase, and the blocks that the phase had made by then, largest first.

    The history has sizes as they were asked for; the allocator rounds each up to 512 bytes or more.

    Args:
        snapshot: of torch.cuda.memory._snapshot(), its history begun with the phase.
        before: bytes that were allocated then.
    """
    events = snapshot["device_traces"][device_index]
    now, most, moment = before, before, 0
    for i, event in enumerate(events):
        now += change(event)
        if now > most:
            most, moment = now, i + 1
    alive: dict[int, dict[str, Any]] = {}
    for event in events[:moment]:
        if event["action"] == "alloc":
            alive[event["addr"]] = event
        elif event["action"] == "free_completed":
            alive.pop(event["addr"], None)  # of before the phase
    blocks = sorted(alive.values(), key=lambda event: -event["size"])
    return {
        "before": before,
        "peak": most,
        "at_event": moment,
        "events": len(events),
        "complete": len(events) < MAX_EVENTS,
        "made_by_the_phase": sum(event["size"] for event in blocks),
        "blocks": len(blocks),
        "largest": [{"bytes": event["size"], "line": line(event.get("frames", []))} for event in blocks[:LARGEST]],
    }


def change(event: dict[str, Any]) -> int:
    """Bytes that an event of the allocator adds to what is allocated; segments and out-of-memory events add none."""
    return {"alloc": event["size"], "free_completed": -event["size"]}.get(event["action"], 0)


def line(frames: list[dict[str, Any]]) -> str:
    """FILE:LINE FUNCTION of the innermost frame in stormfast or its kernels; of any, where a backward pass has none."""
    own = [
        frame
        for frame in frames
        if "stormfast" in Path(frame["filename"]).parts or "stormfast_kernels" in Path(frame["filename"]).parts
    ]
    return "".join(f"{Path(frame['filename']).name}:{frame['line']} {frame['name']}" for frame in (own or frames)[:1])
