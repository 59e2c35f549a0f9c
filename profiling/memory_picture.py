"""The picture of memory.py: what is alive while each phase runs, operator by operator, with the peak marked."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from stormfast.memory.estimate import GB, PHASES
from stormfast.memory.meta_tensors import Block, Peak

KEPT, FORWARD, BACKWARD, REST = (
    "kept: there before the phase",
    "made forward: activations, copies",
    "made backward: gradients",
    "all other lines",
)
COLOURS = {KEPT: "#c9ced6", FORWARD: "#4c8bc0", BACKWARD: "#e08a3c", REST: "#e9e2cf"}
LINE_COLOURS = ("#4c8bc0", "#e08a3c", "#4ea36c", "#8f68b5", "#c25b78", "#a98545")
NUM_LINES = len(LINE_COLOURS)


@dataclass(frozen=True)
class Timeline:
    """Bytes alive after each event of a phase, by label; at[i] operators had been called then."""

    at: np.ndarray  # [E]
    bytes: dict[str, np.ndarray]  # label -> [E], what is drawn lowest first
    peak: int  # the event after which most was alive

    @property
    def total(self) -> np.ndarray:
        return np.sum([*self.bytes.values()], 0)


def timeline(peak: Peak, by: str = "kind") -> Timeline:
    """The events of a traced phase, stacked by "kind", or by "line": those that had the most alive at any time."""
    made = {event.block.number for event in peak.events if event.made}
    labels = [
        (kind(event.block) if by == "kind" else event.block.line) if event.block.number in made else KEPT
        for event in peak.events
    ]
    sizes = np.array(
        [event.block.num_bytes if event.made else -event.block.num_bytes for event in peak.events], np.int64
    )
    stacked = {KEPT: peak.before + running(labels, sizes, {KEPT})}
    names = sorted(set(labels) - {KEPT}, key=lambda name: (-int(running(labels, sizes, {name}).max()), name))
    if by == "kind":
        names = [name for name in (FORWARD, BACKWARD) if name in names]
    stacked |= {name: running(labels, sizes, {name}) for name in names[:NUM_LINES]}
    if len(names) > NUM_LINES:
        stacked[REST] = running(labels, sizes, set(names[NUM_LINES:]))
    at = np.array([0, *(event.operator for event in peak.events)])
    return Timeline(at, stacked, int(np.argmax(np.sum([*stacked.values()], 0))))


def running(labels: Sequence[str], sizes: np.ndarray, chosen: set[str]) -> np.ndarray:
    """Bytes alive of the chosen labels, before the first event and after each: [E + 1]."""
    return np.cumsum([0, *np.where([label in chosen for label in labels], sizes, 0)])


def kind(block: Block) -> str:
    return (
        BACKWARD if block.line.endswith(")") else FORWARD
    )  # the tracer names the autograd node whose gradient is computed


# --- drawing -----------------------------------------------------------------------------------------------------


def picture(rows: Sequence[tuple[dict[str, Any], dict[str, Peak]]], by: str = "kind") -> bytes:
    """PNG, a row a preset and a panel a phase. rows: record and peaks of each preset."""
    size = (6 * len(PHASES), 0.6 + (4.6 if by == "kind" else 5.6) * len(rows))
    figure, panels = plt.subplots(len(rows), len(PHASES), figsize=size, constrained_layout=True, squeeze=False)
    for axes, (record, peaks) in zip(panels, rows, strict=True):
        replay = record["bytes"]["replay"]
        highest = (max(peak.num_bytes for peak in peaks.values()) - replay) / GB
        for axis, (name, label) in zip(axes, PHASES.items(), strict=True):
            draw(axis, timeline(peaks[name], by), peaks[name], replay)
            axis.set(
                title=f"{record['preset']}, {record['device_type']} {record['precision']}: {label}",
                ylim=(0, highest * 1.35),
            )
            if by == "line":
                axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=8, frameon=False)
        axes[0].set_ylabel(f"GB of tensors alive beside the replay's {replay / GB:.3f}")
    if by == "kind":
        handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in (KEPT, FORWARD, BACKWARD)]
        figure.legend(handles, [KEPT, FORWARD, BACKWARD], loc="outside upper center", ncols=3, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    return buffer.getvalue()


def draw(axis: Axes, found: Timeline, peak: Peak, replay: int) -> None:
    """All but the replay, which only ever is there."""
    base = np.full(len(found.at), -replay / GB)
    lines = iter(LINE_COLOURS)
    for name, sizes in found.bytes.items():
        top = base + sizes / GB
        axis.fill_between(
            found.at, base, top, step="post", color=COLOURS.get(name) or next(lines), linewidth=0, label=name
        )
        base = top
    axis.plot(found.at, base, drawstyle="steps-post", color="#333333", linewidth=0.5)
    x, y = found.at[found.peak], (peak.num_bytes - replay) / GB
    axis.plot(x, y, "v", color="#b00020", markersize=7, zorder=5)
    axis.axhline(y, color="#b00020", linewidth=0.6, linestyle=":")
    axis.text(
        0.02,
        0.985,
        note(peak, int(x)),
        transform=axis.transAxes,
        va="top",
        fontsize=7.2,
        family="monospace",
        color="#222222",
    )
    axis.set(xlabel="operators called in the phase", xlim=(0, max(1, found.at[-1])))
    axis.margins(x=0)


def note(peak: Peak, operator: int) -> str:
    """The peak in words: where it is, and the three largest tensors that the phase had made by then."""
    largest = [
        f"  {b.num_bytes / GB:.3f} {str(b.dtype).removeprefix('torch.')} {list(b.shape)} {b.line}"
        for b in peak.blocks[:3]
    ]
    head = (
        f"peak {peak.num_bytes / GB:.3f} GB in all, operator {operator}: {peak.op.removeprefix('aten.')} at {peak.line}"
    )
    return "\n".join([head, *largest])
