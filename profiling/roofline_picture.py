"""The picture of roofline.py: roofs with the phases on them, and the floor of each part as bars."""

import io
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from roofline_table import number

COLOURS = ("#1f77b4", "#d95f02", "#2a9d5c", "#7b3fa0", "#8c564b", "#c51b7d", "#555555", "#b8860b")
WIDE = 30.0  # devices that differ by more than this share no linear axis
TERA = 1e12


def picture(result: dict[str, Any]) -> bytes:
    """PNG. result: as roofline.py makes it."""
    bars = sum(len(phase["parts"]) for phase in result["phases"])
    height = max(7.5, 0.6 + bars * (0.14 + 0.11 * len(result["devices"])))
    figure, (left, right) = plt.subplots(1, 2, figsize=(17, height), width_ratios=[1.1, 1], constrained_layout=True)
    colours = {key: COLOURS[i % len(COLOURS)] for i, key in enumerate(result["devices"])}
    draw_roofs(left, result, colours)
    draw_bars(right, result, colours)
    changed = "".join(f", {name} {value}" for name, value in result["set"].items())
    title = f"Floor of a training step: preset {result['preset']}, protocol {result['protocol']}{changed}, {result['precision']}"
    figure.suptitle(f"{title}, {result['actions']} actions", fontsize=13)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


# --- roofs -------------------------------------------------------------------------------------------------------


def draw_roofs(axes: Axes, result: dict[str, Any], colours: dict[str, str]) -> None:
    phases = [phase for phase in result["phases"] if phase["flops"]]
    intensity = {phase["name"]: phase["flops"] / phase["bytes"] for phase in phases}
    roofs = {
        key: (device[f"{result['precision']}_flops"], device["bytes_per_second"])
        for key, device in result["devices"].items()
    }
    ridges = [flops / bandwidth for flops, bandwidth in roofs.values()]
    low, high = min(*intensity.values(), *ridges) / 3, max(*intensity.values(), *ridges) * 5
    for key, (flops, bandwidth) in roofs.items():
        ridge = flops / bandwidth
        rates = [low * bandwidth / TERA, flops / TERA, flops / TERA]
        axes.plot([low, ridge, high], rates, color=colours[key], linewidth=1.8, label=roof_label(result, key))
        for phase in phases:
            rate = 1000 * phase["flops"] / phase["floor"][key]["ms"]
            axes.plot(
                intensity[phase["name"]],
                rate / TERA,
                "o",
                color=colours[key],
                markersize=6,
                markeredgecolor="white",
                zorder=3,
            )
    draw_achieved(axes, result, intensity, colours)
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    bottom, top = axes.get_ylim()
    floor = bottom / (top / bottom) ** 0.2  # room for the names below the points
    axes.set_ylim(floor, top)
    for name, x in spread(intensity, low, high).items():
        axes.axvline(intensity[name], color="#bbbbbb", linewidth=0.8, linestyle=":", zorder=0)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(
            x, floor * (top / bottom) ** 0.01, name, rotation=90, ha="center", va="bottom", fontsize=9.5, bbox=box
        )
    axes.set_xlabel("arithmetic intensity of the phase, FLOP per byte of memory traffic")
    axes.set_ylabel("TFLOP/s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title("Roofs, and each phase at its floor", fontsize=11)
    axes.grid(which="major", color="#eeeeee")
    axes.legend(handles=legend(axes, result), loc="upper left", fontsize=8.5, framealpha=0.95)


def roof_label(result: dict[str, Any], key: str) -> str:
    device = result["devices"][key]
    return f"{device['title']}: {device[result['precision'] + '_flops'] / TERA:.4g} TFLOP/s, {device['bytes_per_second'] / 1e9:.4g} GB/s"


def draw_achieved(axes: Axes, result: dict[str, Any], intensity: dict[str, float], colours: dict[str, str]) -> None:
    for row in result.get("achieved", ()):
        if row["flops_per_second"] > 0:
            style: Any = {
                "markersize": 7,
                "markerfacecolor": "white",
                "markeredgecolor": colours["profiled"],
                "zorder": 4,
            }
            axes.plot(intensity[row["name"]], row["flops_per_second"] / TERA, "D", **style)


def legend(axes: Axes, result: dict[str, Any]) -> list[Any]:
    handles: list[Any] = list(axes.get_legend_handles_labels()[0])
    handles.append(
        Line2D(
            [],
            [],
            marker="o",
            linestyle="",
            color="#666666",
            label="a phase at its floor (kernels one after the other)",
        )
    )
    if "achieved" in result:
        label = f"the same as run on {result['profile']['device_name']}"
        handles.append(
            Line2D([], [], marker="D", linestyle="", markerfacecolor="white", markeredgecolor="#666666", label=label)
        )
    return handles


def spread(positions: dict[str, float], low: float, high: float) -> dict[str, float]:
    """Places for labels, near their positions on a logarithmic axis but no nearer to each other than a line of text."""
    step = (high / low) ** 0.027
    placed: dict[str, float] = {}
    last = 0.0
    for name, x in sorted(positions.items(), key=lambda item: item[1]):
        last = max(x, last * step)
        placed[name] = last
    return placed


# --- bars --------------------------------------------------------------------------------------------------------


def draw_bars(axes: Axes, result: dict[str, Any], colours: dict[str, str]) -> None:
    """Milliseconds of each part an environment step: per call, times its calls a step."""
    lines = [(phase, part) for phase in result["phases"] for part in phase["parts"]]
    thick = 0.8 / len(colours)
    longest = max(part["floor"][key]["ms"] * phase["calls_per_step"] for phase, part in lines for key in colours)
    totals = [result["step"]["floor"][key]["ms"] for key in colours]
    logarithmic = max(totals) > WIDE * min(totals)
    for i, (key, colour) in enumerate(colours.items()):
        lengths = [part["floor"][key]["ms"] * phase["calls_per_step"] for phase, part in lines]
        places = [n + (i - (len(colours) - 1) / 2) * thick for n in range(len(lines))]
        axes.barh(places, lengths, height=thick * 0.92, color=colour, log=logarithmic, label=bar_label(result, key))
        for (_, part), place, length in zip(lines, places, lengths, strict=True):
            note = f" {number(length)}" + (" b" if part["floor"][key]["binds"] == "bytes" else "")
            axes.text(length, place, note, va="center", fontsize=6.8, color="#333333")
    axes.set_yticks(range(len(lines)), [part_label(phase, part) for phase, part in lines], fontsize=8.5)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlim(right=longest * (4 if logarithmic else 1.12))
    axes.set_xlabel(
        "least ms an environment step" + (", logarithmic" if logarithmic else "") + "; b: bound by bytes, else by FLOPs"
    )
    axes.set_title("Where the floor lies", fontsize=11)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.legend(loc="upper right", bbox_to_anchor=(1, -0.07), ncols=2, fontsize=8.5, frameon=False)
    draw_phase_rules(axes, [phase["name"] for phase, _ in lines])


def bar_label(result: dict[str, Any], key: str) -> str:
    floor = result["step"]["floor"][key]
    return f"{result['devices'][key]['title']}: {number(floor['ms'])} ms a step, {number(floor['minutes'])} min for 100,000"


def part_label(phase: dict[str, Any], part: dict[str, Any]) -> str:
    return phase["name"] if len(phase["parts"]) == 1 else f"{phase['name']}: {part['name']}"


def draw_phase_rules(axes: Axes, names: list[str]) -> None:
    """A line between two phases."""
    for i in range(1, len(names)):
        if names[i] != names[i - 1]:
            axes.axhline(i - 0.5, color="#cccccc", linewidth=0.8)
