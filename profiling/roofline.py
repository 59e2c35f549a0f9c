"""What is the least time that a training step can take on a device, which part takes it, and is that arithmetic or memory?

    python profiling/roofline.py                                                    # preset storm on an H200, an RTX 4090 and an RTX 3090
    python profiling/roofline.py --preset fast --device rtx5090 --set world_model.width=512
    python profiling/roofline.py --preset cpu --precision float32 --device measured # this machine, measured first: some seconds
    python profiling/roofline.py --peaks 209.5,1792 --markdown --json FILE          # any device, by TFLOP/s and GB/s
    stormfast profile --preset storm --json > P.json                                # on the device in question; then
    python profiling/roofline.py --profile P.json --picture FILE.png                # how near is it to its roof?

Nothing is run. FLOPs and bytes of each part come from formulae (work_formulas.py), by the rules in work_kernels.py: ideal fusion.
A kernel takes as long as its arithmetic or its memory traffic, whichever is longer; a part the sum of its kernels, one after the
other; "binds" is what takes most of that. The result is a floor: launches, and kernels too small to fill the device, come on top.

The picture has the roofs, with a point at each phase's FLOPs a byte (a phase whose kernels differ lies below its roof even at
its floor), and the floor of each part as a bar. With --profile, open points are what that run achieved.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # the formulae are of this checkout, whatever is installed

from gpus import DEVICES, PRECISIONS, Device, check_names, given, measured  # noqa: E402
from roofline_table import markdown, text  # noqa: E402
from work_formulas import Part, calls_per_step, parts  # noqa: E402
from work_kernels import Kernel  # noqa: E402

from bench.script import Parser, check_writable, provenance, status_of, written  # noqa: E402
from stormfast.errors import UserError  # noqa: E402
from stormfast.schema import override  # noqa: E402
from stormfast.settings import PRESETS, PROTOCOLS, TrainConfig, preset_config, validate  # noqa: E402

NUM_ACTIONS = 18  # the most of any game
STEPS = 100_000
DEFAULT_DEVICES = "h200,rtx4090,rtx3090"


# --- the floor ---------------------------------------------------------------------------------------------------


def floor(kernels: Sequence[Kernel], device: Device, precision: str) -> dict[str, Any]:
    """Least milliseconds of kernels, one after the other; of them, those of kernels that arithmetic binds."""
    flops, bandwidth = device.flops(precision), device.bytes_per_second
    seconds = [(kernel.flops / flops, kernel.bytes / bandwidth) for kernel in kernels]
    total = sum(max(pair) for pair in seconds)
    arithmetic = sum(compute for compute, memory in seconds if compute >= memory)
    return {
        "ms": 1000 * total,
        "arithmetic_ms": 1000 * arithmetic,
        "binds": "FLOPs" if 2 * arithmetic >= total else "bytes",
    }


def row(name: str, kernels: Sequence[Kernel], devices: dict[str, Device], precision: str) -> dict[str, Any]:
    work = {"flops": sum(kernel.flops for kernel in kernels), "bytes": sum(kernel.bytes for kernel in kernels)}
    return {"name": name, **work, "floor": {key: floor(kernels, device, precision) for key, device in devices.items()}}


def survey(config: TrainConfig, num_actions: int, precision: str, devices: dict[str, Device]) -> dict[str, Any]:
    """Rows of parts, phases and the step, as JSON types. Of parts and phases a row is of one call; of the step it is of all calls."""
    rates, found = calls_per_step(config), parts(config, num_actions, precision)
    phases = []
    for name, rate in rates.items():
        own = [part for part in found if part.phase == name]
        whole = row(name, [kernel for part in own for kernel in part.kernels], devices, precision)
        phases.append({**whole, "calls_per_step": rate, "parts": [part_row(part, devices, precision) for part in own]})
    return {"phases": phases, "step": step_row(phases, devices)}


def part_row(part: Part, devices: dict[str, Device], precision: str) -> dict[str, Any]:
    return {**row(part.name, part.kernels, devices, precision), "kernels": [asdict(kernel) for kernel in part.kernels]}


def step_row(phases: Sequence[dict[str, Any]], devices: dict[str, Device]) -> dict[str, Any]:
    """All phases, as often as they are called a step."""

    def total(*keys: str) -> float:
        values = 0.0
        for phase in phases:
            value: Any = phase
            for key in keys:
                value = value[key]
            values += value * phase["calls_per_step"]
        return values

    floors = {}
    for key in devices:
        ms, arithmetic = total("floor", key, "ms"), total("floor", key, "arithmetic_ms")
        floors[key] = {
            "ms": ms,
            "arithmetic_ms": arithmetic,
            "binds": "FLOPs" if 2 * arithmetic >= ms else "bytes",
            "minutes": ms * STEPS / 60_000,
        }
    return {"name": "step", "flops": total("flops"), "bytes": total("bytes"), "floor": floors}


# --- a run beside it ---------------------------------------------------------------------------------------------


def read_profile(path: Path) -> dict[str, Any]:
    """What `stormfast profile --json` printed. Raises: UserError."""
    try:
        profile = json.loads(path.read_text())
        check_profile(profile)
    except KeyError as error:
        raise UserError(
            f"--profile must be a file that `stormfast profile --json` wrote, but {path} lacks {error}"
        ) from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"--profile must be a file that `stormfast profile --json` wrote, but {path}: {error}"
        ) from None
    return profile


def check_profile(profile: dict[str, Any]) -> None:
    """Raises: KeyError, TypeError, AttributeError or ValueError for what is not there, or not as `stormfast profile` has it."""
    for name, known in {"preset": PRESETS, "protocol": PROTOCOLS, "precision": PRECISIONS}.items():
        if profile[name] not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {json.dumps(profile[name])}")
    for name, kind in {"device_name": str, "peaks": dict, "phases": dict}.items():
        if not isinstance(profile[name], kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got a {type(profile[name]).__name__}")
    positive = {"step_ms": profile["step_ms"]}
    positive |= {f"peaks.{name}": profile["peaks"][name] for name in ("bfloat16_flops", "float32_flops", "copy_bytes")}
    counted = {
        f"phases.{name}.{key}": phase[key] for name, phase in profile["phases"].items() for key in ("ms", "flops")
    }
    for name, value in (positive | counted).items():
        if type(value) not in (int, float) or not 0 <= value <= sys.float_info.max or (value == 0 and name in positive):
            raise ValueError(
                f"{name} must be a {'positive ' if name in positive else ''}number, got {json.dumps(value)}"
            )


def profiled_device(profile: dict[str, Any]) -> Device:
    peaks = profile["peaks"]
    title = f"{profile['device_name']}, profiled"
    return Device(
        title,
        peaks["bfloat16_flops"],
        peaks["float32_flops"],
        peaks["copy_bytes"],
        "measured by `stormfast profile` in the same run",
    )


def achieved(profile: dict[str, Any], result: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Each phase of the run against the formulae: its FLOPs a second, and the floor's share of its time."""
    rows = []
    for phase in result["phases"]:
        ran = profile["phases"].get(phase["name"])
        if ran is None or ran["ms"] <= 0:
            continue
        counted = ran["flops"] / phase["flops"] if phase["flops"] else None
        rows.append(
            {
                "name": phase["name"],
                "ms": ran["ms"],
                "flops_per_second": 1000 * phase["flops"] / ran["ms"],
                "bytes_per_second": 1000 * phase["bytes"] / ran["ms"],
                "fraction_of_floor": phase["floor"][key]["ms"] / ran["ms"],
                "counted_over_formula": counted,
            }
        )
    return rows


# --- command line ------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--preset", choices=list(PRESETS), help="default storm, or the profile's")
    parser.add_argument("--protocol", choices=list(PROTOCOLS), help="default standard, or the profile's")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of TrainConfig, as world_model.width=256",
    )
    parser.add_argument(
        "--actions", type=int, default=NUM_ACTIONS, help=f"of the game; default {NUM_ACTIONS}, the most of any"
    )
    parser.add_argument("--precision", choices=PRECISIONS, help="default bfloat16, or the profile's")
    parser.add_argument("--device", help=f"some of {','.join(DEVICES)},measured; default {DEFAULT_DEVICES}")
    parser.add_argument(
        "--peaks", metavar="TFLOPs,GB/s", help="a device by its rates; the first is that of the precision"
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="a run to show beside its floor: what `stormfast profile --json` printed",
    )
    parser.add_argument("--markdown", action="store_true", help="a table for a document")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number, down to the kernels")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw the roofs and the floors")
    return parser.parse_args(arguments)


def settings(options: argparse.Namespace, profile: dict[str, Any] | None) -> tuple[TrainConfig, str]:
    """The configuration and the precision. Raises: UserError."""
    chosen = {"preset": "storm", "protocol": "standard", "precision": "bfloat16"}
    for name in chosen:
        asked, ran = getattr(options, name), profile and profile[name]
        if asked and ran and asked != ran:
            raise UserError(f"--{name} {asked} does not fit --profile, which ran {ran}; leave it out")
        chosen[name] = asked or ran or chosen[name]
    config = override(preset_config(chosen["preset"], chosen["protocol"]), dict(map(read_setting, options.set)))
    validate(config)
    if not 1 <= options.actions <= 256:
        raise UserError(f"--actions must be 1 to 256, got {options.actions}")
    return config, chosen["precision"]


def read_setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON where it is that; a list is a tuple."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set must be NAME=VALUE such as world_model.width=256, got '{text}'")
    try:
        read = json.loads(value)
    except ValueError:
        read = value
    return name.replace("-", "_"), tuple(read) if isinstance(read, list) else read


def chosen_devices(
    options: argparse.Namespace, profile: dict[str, Any] | None
) -> tuple[dict[str, Device], dict[str, Any] | None]:
    """Key -> device, in the order asked for; and what is known of this machine where it was measured. Raises: UserError."""
    if options.device is None:
        names = [] if options.peaks is not None or profile else DEFAULT_DEVICES.split(",")
    else:
        names = list(dict.fromkeys(options.device.lower().split(",")))
    check_names(names)
    devices = {} if options.peaks is None else {"given": given(options.peaks)}
    about = None
    for name in names:
        if name == "measured":
            devices[name], about = measured()
        else:
            devices[name] = DEVICES[name]
    if profile:
        devices["profiled"] = profiled_device(profile)
    return devices, about


def report(arguments: Sequence[str] | None) -> int:
    """Prints and writes what the arguments ask for. Returns the exit status. Raises: UserError."""
    options = parse(arguments)
    if options.json:
        check_writable("--json", options.json)
    if options.picture:
        check_writable("--picture", options.picture, ".png")
    profile = read_profile(options.profile) if options.profile else None
    config, precision = settings(options, profile)
    devices, about = chosen_devices(options, profile)
    result: dict[str, Any] = {
        "preset": config.preset,
        "protocol": config.protocol,
        "set": dict(map(read_setting, options.set)),
        "actions": options.actions,
        "precision": precision,
        "devices": {key: asdict(device) for key, device in devices.items()},
        **survey(config, options.actions, precision, devices),
    }
    if profile:
        result["achieved"] = achieved(profile, result, "profiled")
        result["profile"] = {
            key: profile[key] for key in ("device_name", "step_ms", "game", "compile", "torch") if key in profile
        }
    print((markdown if options.markdown else text)(result))
    if options.json:
        machine = {} if about is None else {"machine": about}  # where a device was measured
        whole = {**provenance("profiling/roofline.py", arguments), **machine, **result}
        written(options.json, json.dumps(whole, indent=1).encode() + b"\n")
    if options.picture:
        from roofline_picture import picture  # matplotlib takes a second to load

        written(options.picture, picture(result))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    return status_of("roofline", lambda: report(arguments))


if __name__ == "__main__":
    sys.exit(main())
