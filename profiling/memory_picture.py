"""The picture of memory.py: what is alive while each phase runs, operator by operator, with the peak marked."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from stormfast.memory.estimate import GB, PHASES
from stormfast.memory.meta_tensors import Block, Peak

BEFORE, FORWARD, BACKWARD = "there before the phase", "made forward: activations, copies", "made backward: gradients"
COLOURS = {BEFORE: "#c9ced6", FORWARD: "#4c8bc0", BACKWARD: "#e08a3c"}


def timeline(peak: Peak) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The events of a traced phase.

    Returns: [E + 1] operators called before each event, and by kind [E + 1] bytes alive, before the first and after
    each.
    """
    made = {event.block.number for event in peak.events if event.made}
    kinds = [kind(event.block) if event.block.number in made else BEFORE for event in peak.events]
    sizes = [event.block.num_bytes if event.made else -event.block.num_bytes for event in peak.events]
    alive = {name: np.cumsum([0, *np.where([k == name for k in kinds], sizes, 0)]) for name in COLOURS}
    alive[BEFORE] += peak.before
    return np.array([0, *(event.operator for event in peak.events)]), alive


def kind(block: Block) -> str:
    return BACKWARD if block.line.endswith(")") else FORWARD  # the tracer names the autograd node of a gradient


def picture(rows: Sequence[tuple[dict[str, Any], dict[str, Peak]]]) -> bytes:
    """PNG with a row for each preset, its record and peaks, and a panel for each phase."""
    size = (6 * len(PHASES), 0.6 + 4.6 * len(rows))
    figure, panels = plt.subplots(len(rows), len(PHASES), figsize=size, constrained_layout=True, squeeze=False)
    for axes, (record, peaks) in zip(panels, rows, strict=True):
        replay = record["bytes"]["replay"]
        highest = (max(peak.num_bytes for peak in peaks.values()) - replay) / GB
        for axis, (name, label) in zip(axes, PHASES.items(), strict=True):
            draw(axis, peaks[name], replay)
            title = f"{record['preset']}, {record['device_type']} {record['precision']}: {label}"
            axis.set(title=title, ylim=(0, highest * 1.35))
        axes[0].set_ylabel(f"GB of tensors alive beside the replay's {replay / GB:.3f}")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    figure.legend(handles, list(COLOURS), loc="outside upper center", ncols=3, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    return buffer.getvalue()


def draw(axis: Axes, peak: Peak, replay: int) -> None:
    """All but the replay, which is always there."""
    at, alive = timeline(peak)
    base = np.full(len(at), -replay / GB)
    for name, sizes in alive.items():
        top = base + sizes / GB
        axis.fill_between(at, base, top, step="post", color=COLOURS[name], linewidth=0)
        base = top
    most = int(np.argmax(base))
    axis.plot(at[most], base[most], "v", color="#b00020", markersize=7, zorder=5)
    style: Any = {"va": "top", "fontsize": 7.2, "family": "monospace"}
    axis.text(0.02, 0.985, note(peak, int(at[most])), transform=axis.transAxes, **style)
    axis.set(xlabel="operators called in the phase", xlim=(0, max(1, at[-1])))


def note(peak: Peak, operator: int) -> str:
    """Where the peak is, and the three largest tensors that the phase had made by then."""
    largest = [
        f"  {b.num_bytes / GB:.3f} {str(b.dtype).removeprefix('torch.')} {list(b.shape)} {b.line}"
        for b in peak.blocks[:3]
    ]
    op = peak.op.removeprefix("aten.")
    return "\n".join([f"peak {peak.num_bytes / GB:.3f} GB in all, operator {operator}: {op} at {peak.line}", *largest])
