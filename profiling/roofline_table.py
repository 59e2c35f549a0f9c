"""The table of roofline.py, as text or as Markdown."""

from collections.abc import Sequence
from typing import Any


def text(result: dict[str, Any]) -> str:
    body = rows(result)
    widths = [max(len(line[i]) for line in body if line) for i in range(len(body[0]))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [aligned(line, widths) if line else rule for line in body]
    return "\n".join([*head(result), "", *lines, "", *foot(result)])


def aligned(line: list[str], widths: list[int]) -> str:
    """The first cell to the left, the others to the right."""
    return "  ".join(
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
    ).rstrip()


def markdown(result: dict[str, Any]) -> str:
    first, *body = [line for line in rows(result) if line]
    lines = [first, ["---", *["---:"] * (len(first) - 1)]]
    lines += [[line[0].strip() if line[0].startswith(" ") else f"**{line[0]}**", *line[1:]] for line in body]
    notes = [line for line in (*head(result), *foot(result)) if line]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + [""] + [f"- {line}" for line in notes])


def rows(result: dict[str, Any]) -> list[list[str]]:
    """Cells by line; an empty line is a rule. Phases begin at the margin, their parts are indented."""
    keys = list(result["devices"])
    lines = [["one call", "GFLOP", "MB", "FLOP/B", *(column for key in keys for column in (f"{key} ms", "binds"))]]
    for phase in result["phases"]:
        rate = "" if phase["calls_per_step"] == 1 else f" x {phase['calls_per_step']:g} a step"
        lines += [[], cells(phase["name"] + rate, phase, keys)]
        if len(phase["parts"]) > 1:
            lines += [cells(f"  {part['name']}", part, keys) for part in phase["parts"]]
    lines += [[], cells("step", result["step"], keys)]
    minutes = [cell for key in keys for cell in (number(result["step"]["floor"][key]["minutes"]), "min")]
    return [*lines, ["100,000 steps", "", "", "", *minutes]]


def cells(name: str, row: dict[str, Any], keys: Sequence[str]) -> list[str]:
    work = [number(row["flops"] / 1e9) if row["flops"] else "0", number(row["bytes"] / 1e6), intensity(row)]
    return [
        name,
        *work,
        *(cell for key in keys for cell in (number(row["floor"][key]["ms"]), row["floor"][key]["binds"])),
    ]


def intensity(row: dict[str, Any]) -> str:
    return f"{row['flops'] / row['bytes']:.0f}" if row["flops"] else "0"


def head(result: dict[str, Any]) -> list[str]:
    changed = "".join(f", {name} {value}" for name, value in result["set"].items())
    first = f"preset {result['preset']}, protocol {result['protocol']}{changed}, {result['actions']} actions, {result['precision']}"
    return [first, *(device_line(key, device, result["precision"]) for key, device in result["devices"].items())]


def device_line(key: str, device: dict[str, Any], precision: str) -> str:
    rate, bandwidth = device[f"{precision}_flops"] / 1e12, device["bytes_per_second"] / 1e9
    return f"{key}: {device['title']}, {rate:.4g} TFLOP/s, {bandwidth:.4g} GB/s ({device['source']})"


def foot(result: dict[str, Any]) -> list[str]:
    lines = [
        "ms: least time, each kernel at the speed of arithmetic or of memory, whichever is slower, one after the other; launches not counted"
    ]
    if "achieved" not in result:
        return lines
    ran = result["profile"]
    took = f"the run took {number(ran['step_ms'])} ms a step, the floor is {number(result['step']['floor']['profiled']['ms'])} ms"
    lines += ["", f"achieved on {ran['device_name']}: {took}"]
    for row in result["achieved"]:
        rate = f"{number(row['flops_per_second'] / 1e9)} GFLOP/s, {number(row['bytes_per_second'] / 1e9)} GB/s"
        counted = (
            ""
            if row["counted_over_formula"] is None
            else f"; the run counted {row['counted_over_formula']:.3f} of the formula's FLOPs"
        )
        lines.append(
            f"  {row['name']}: {number(row['ms'])} ms, {rate}, {row['fraction_of_floor']:.1%} of the floor's speed{counted}"
        )
    return lines


def number(value: float) -> str:
    """Three significant digits, without exponent; below 1 three decimals, below 0.1 four."""
    digits = (
        0
        if abs(value) >= 100
        else 1
        if abs(value) >= 10
        else 2
        if abs(value) >= 1
        else 3
        if abs(value) >= 0.1 or value == 0
        else 4
    )
    return f"{value:,.{digits}f}"
