"""What is the least time that a training step can take on a device, and is that arithmetic or memory?

    python -m profiling.roofline                                     # storm on an H200, an RTX 4090 and an RTX 3090
    python -m profiling.roofline --preset fast --device rtx5090 --set world_model.width=512
    python -m profiling.roofline --preset cpu --precision float32 --device measured     # this machine, measured first
    python -m profiling.roofline --peaks 209.5,1792                  # any device, by TFLOP/s and GB/s
    python -m profiling.roofline --picture FILE.png                  # roofs, with the phases on them

No step is run. FLOPs and bytes are counted on meta tensors at the sizes given (stormfast/measure/work.py), and the
floor is the one of `stormfast profile`: each matrix product, convolution and attention takes as long as its
arithmetic or its memory traffic, whichever is longer, one after the other; all else is taken as fused away. "binds"
is what takes most of that. Launches, and kernels too small to fill the device, come on top.

How near a run comes to it on the device in question: `stormfast profile`.
"""

import argparse
import functools
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.record_tables import aligned
from bench.script import Parser, check_writable, status_of, written
from profiling.gpus import DEVICES, Device, find, given
from stormfast.errors import UserError
from stormfast.measure.op_counts import OpWork
from stormfast.measure.phases import phase_rates
from stormfast.measure.profile_report import number
from stormfast.measure.work import MOST_ACTIONS, phase_work
from stormfast.presets import PRESETS, preset_config
from stormfast.schema import override
from stormfast.settings import TrainConfig, validate

STEPS = 100_000  # of a whole training


# --- the floor ---------------------------------------------------------------------------------------------------


def floor(work: Iterable[OpWork], device: Device) -> dict[str, Any]:
    """Least milliseconds of operators, one after the other; of them, those of operators that memory traffic binds."""
    total = memory = 0.0
    for operator in work:
        seconds = device.peaks.seconds(operator)
        total += seconds
        memory += seconds if operator.bytes / device.peaks.copy_bytes >= seconds else 0
    return bound(1000 * total, 1000 * memory)


def bound(ms: float, memory_ms: float) -> dict[str, Any]:
    return {"ms": ms, "memory_ms": memory_ms, "binds": "bytes" if 2 * memory_ms > ms else "FLOPs"}


def row(name: str, work: Sequence[OpWork], devices: dict[str, Device]) -> dict[str, Any]:
    return {
        "name": name,
        "flops": sum(operator.flops for operator in work),
        "bytes": sum(operator.bytes for operator in work),
        "floor": {key: floor(work, device) for key, device in devices.items()},
    }


def survey(config: TrainConfig, precision: str, devices: dict[str, Device]) -> dict[str, Any]:
    """Rows of one call of each phase, by kind of operator too, and of a whole step, with MOST_ACTIONS actions."""
    phases, rates = [], phase_rates(config)
    for name, counts in phase_work(config, MOST_ACTIONS, getattr(torch, precision)).items():
        kinds: dict[str, list[OpWork]] = {}
        for operator in counts.work:
            kinds.setdefault(kind(operator), []).append(operator)
        operators = [row(title, work, devices) for title, work in kinds.items()]
        phases.append({**row(name, counts.work, devices), "calls_per_step": rates[name], "operators": operators})
    return {"phases": phases, "step": step_row(phases, list(devices))}


def kind(work: OpWork) -> str:
    return work.operator.replace("_scaled_dot_product_flash_attention_for_cpu", "attention").removeprefix("stormfast.")


def step_row(phases: Sequence[dict[str, Any]], keys: Sequence[str]) -> dict[str, Any]:
    """All phases, as often as they are called in a step."""

    def total(*path: str) -> float:
        """Of the number that lies at this path in each phase."""
        return sum(
            functools.reduce(lambda tree, key: tree[key], path, phase) * phase["calls_per_step"] for phase in phases
        )

    floors = {}
    for key in keys:
        found = bound(total("floor", key, "ms"), total("floor", key, "memory_ms"))
        floors[key] = {**found, "minutes": found["ms"] * STEPS / 60_000}
    return {"name": "step", "flops": total("flops"), "bytes": total("bytes"), "floor": floors}


# --- the table ---------------------------------------------------------------------------------------------------


def text(result: dict[str, Any]) -> str:
    keys = list(result["devices"])
    header = ["one call", "GFLOP", "MB", "FLOP/B", *(column for key in keys for column in (f"{key} ms", "binds"))]
    lines = []
    for phase in result["phases"]:
        rate = "" if phase["calls_per_step"] == 1 else f" x {phase['calls_per_step']:g} a step"
        lines.append(cells(phase["name"] + rate, phase, keys))
        lines += [cells(f"  {operator['name']}", operator, keys) for operator in phase["operators"]]
    lines.append(cells("step", result["step"], keys))
    minutes = [cell for key in keys for cell in (number(result["step"]["floor"][key]["minutes"]), "min")]
    lines.append([f"{STEPS:,} steps", "", "", "", *minutes])
    changed = "".join(f", {name} {value}" for name, value in result["set"].items())
    head = f"preset {result['preset']}{changed}, {result['precision']}"
    devices = [f"{key}: {described(result, key)}" for key in keys]
    return "\n".join([head, *devices, "", aligned(header, lines)])


def cells(name: str, row: dict[str, Any], keys: Sequence[str]) -> list[str]:
    if not row["bytes"]:
        return [name, *("-" for _ in range(3 + 2 * len(keys)))]
    work = [number(row["flops"] / 1e9), number(row["bytes"] / 1e6), f"{row['flops'] / row['bytes']:.0f}"]
    floors = [row["floor"][key] for key in keys]
    return [name, *work, *(cell for found in floors for cell in (number(found["ms"]), found["binds"]))]


def described(result: dict[str, Any], key: str) -> str:
    device = result["devices"][key]
    rate, bandwidth = device["peaks"][f"{result['precision']}_flops"] / 1e12, device["peaks"]["copy_bytes"] / 1e9
    return f"{device['title']}, {rate:.4g} TFLOP/s, {bandwidth:.4g} GB/s ({device['source']})"


# --- command line ------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--preset", choices=list(PRESETS), default="storm", help="default storm")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16", help="default bfloat16")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as world_model.width=256")
    parser.add_argument("--device", help=f"some of {','.join(DEVICES)},measured; default h200,rtx4090,rtx3090")
    parser.add_argument("--peaks", metavar="TFLOPs,GB/s", help="a device by its rates, the first at the precision")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw the roofs")
    return parser.parse_args(arguments)


def read_setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON where it is that; a list becomes a tuple."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set must be NAME=VALUE such as world_model.width=256, got '{text}'")
    try:
        read = json.loads(value)
    except ValueError:
        read = value
    return name, tuple(read) if isinstance(read, list) else read


def result_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the options ask for: the setting, the devices and the rows of survey. Raises: UserError."""
    changed = dict(map(read_setting, options.set))
    config = override(preset_config(options.preset, "standard"), changed)
    validate(config)
    names = options.device or ("" if options.peaks else "h200,rtx4090,rtx3090")
    devices = {name: find(name) for name in filter(None, names.split(","))}
    if options.peaks:
        devices["given"] = given(options.peaks)
    return {
        "preset": options.preset,
        "set": changed,
        "precision": options.precision,
        "devices": {key: asdict(device) for key, device in devices.items()},
        **survey(config, options.precision, devices),
    }


def report(arguments: Sequence[str] | None) -> int:
    """Prints and writes what the arguments ask for. Returns the exit status. Raises: UserError."""
    options = parse(arguments)
    if options.picture:
        check_writable("--picture", options.picture, ".png")
    result = result_of(options)
    print(text(result))
    if options.picture:
        from profiling.roofline_picture import picture  # matplotlib takes a second to load

        written(options.picture, picture(result))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    return status_of("roofline", lambda: report(arguments))


if __name__ == "__main__":
    sys.exit(main())
