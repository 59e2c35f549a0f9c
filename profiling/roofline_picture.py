"""The picture of roofline.py: a roof for each device, with the phases on it."""

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
    figure, axes = plt.subplots(figsize=(8, 7), constrained_layout=True)
    draw_roofs(axes, result, colours)
    axes.set_title(f"Each phase of a step at its floor: preset {result['preset']}, {result['precision']}")
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
    axes.grid(which="major", color="#eeeeee")
    axes.legend(loc="upper left", fontsize=8.5)


def label(result: dict[str, Any], key: str) -> str:
    floor = result["step"]["floor"][key]
    title = result["devices"][key]["title"]
    return f"{title}: {number(floor['ms'])} ms a step, {number(floor['minutes'])} min for 100,000"
