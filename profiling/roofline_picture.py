"""The picture of roofline.py: roofs with the phases on them, and the floor of each kind of operator as bars."""

import io
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from stormfast.measure.profile_report import number

COLOURS = ("#1f77b4", "#d95f02", "#2a9d5c", "#7b3fa0", "#8c564b", "#c51b7d", "#555555", "#b8860b")
TERA = 1e12


def picture(result: dict[str, Any]) -> bytes:
    """PNG. result: as roofline.py makes it."""
    colours = {key: COLOURS[i % len(COLOURS)] for i, key in enumerate(result["devices"])}
    bars = sum(len(phase["operators"]) for phase in result["phases"])
    size = (16, max(7.0, 1 + bars * (0.14 + 0.11 * len(colours))))
    figure, (left, right) = plt.subplots(1, 2, figsize=size, constrained_layout=True)
    draw_roofs(left, result, colours)
    draw_bars(right, result, colours)
    figure.suptitle(
        f"Floor of a training step: preset {result['preset']}, protocol {result['protocol']}, {result['precision']}"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def draw_roofs(axes: Axes, result: dict[str, Any], colours: dict[str, str]) -> None:
    """A line for each device, and a point for each phase at its floor: below the roof where its operators differ."""
    phases = [phase for phase in result["phases"] if phase["flops"]]
    intensity = {phase["name"]: phase["flops"] / phase["bytes"] for phase in phases}
    low, high = min(intensity.values()) / 3, max(intensity.values()) * 5
    for key, colour in colours.items():
        peaks = result["devices"][key]["peaks"]
        flops, bandwidth = peaks[f"{result['precision']}_flops"], peaks["copy_bytes"]
        roof = [low * bandwidth / TERA, flops / TERA, flops / TERA]
        axes.plot([low, flops / bandwidth, high], roof, color=colour, label=label(result, key))
        for phase in phases:
            style = {"color": colour, "markeredgecolor": "white", "zorder": 3}
            axes.plot(intensity[phase["name"]], 1000 * phase["flops"] / phase["floor"][key]["ms"] / TERA, "o", **style)
    axes.set(xscale="log", yscale="log", xlim=(low, high), xlabel="FLOPs per byte of memory traffic", ylabel="TFLOP/s")
    names = axes.get_xaxis_transform()
    for i, (name, x) in enumerate(sorted(intensity.items(), key=lambda item: item[1])):
        axes.axvline(x, color="#bbbbbb", linewidth=0.8, linestyle=":", zorder=0)
        axes.text(x, 0.02 + 0.13 * (i % 2), name, rotation=90, transform=names, ha="right", va="bottom", fontsize=8.5)
    axes.set_title("Roofs, and each phase at its floor")
    axes.grid(which="major", color="#eeeeee")
    axes.legend(loc="upper left", fontsize=8.5)


def label(result: dict[str, Any], key: str) -> str:
    floor = result["step"]["floor"][key]
    title = result["devices"][key]["title"]
    return f"{title}: {number(floor['ms'])} ms a step, {number(floor['minutes'])} min for 100,000"


def draw_bars(axes: Axes, result: dict[str, Any], colours: dict[str, str]) -> None:
    """Milliseconds of each kind of operator in a step: per call, times the calls of its phase."""
    lines = [(phase, operator) for phase in result["phases"] for operator in phase["operators"]]
    thick = 0.8 / len(colours)
    for i, (key, colour) in enumerate(colours.items()):
        lengths = [operator["floor"][key]["ms"] * phase["calls_per_step"] for phase, operator in lines]
        places = [n + (i - (len(colours) - 1) / 2) * thick for n in range(len(lines))]
        axes.barh(places, lengths, height=thick * 0.92, color=colour)
        for (_, operator), place, length in zip(lines, places, lengths, strict=True):
            note = f" {length:.2g}" + (" b" if operator["floor"][key]["binds"] == "bytes" else "")
            axes.text(length, place, note, va="center", fontsize=6.8, color="#333333")
    axes.set_yticks(
        range(len(lines)), [f"{phase['name']}: {operator['name']}" for phase, operator in lines], fontsize=8
    )
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlabel("least ms in a step; b: bound by bytes, else by FLOPs")
    axes.set_title("Where the floor lies")
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
