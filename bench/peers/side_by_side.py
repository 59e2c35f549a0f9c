"""What the scripts of this folder share: calls that take turns in one process, how much longer the others take, and the JSON around it."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench.comparing.ratios import paired_ratio
from bench.devices import describe
from bench.script import Parser, check_writable, status_of, written
from stormfast.device import resolve_device
from stormfast.errors import UserError
from stormfast.measure.peaks import timed

MOST_THREADS = 1024
Row = dict[str, Any]


class CheckError(Exception):
    """A side does not do what is timed; the message is one line."""


# --- turns -------------------------------------------------------------------------------------------------------


def take_turns(calls: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call in each round, from an idle device to an idle device.

    The order is A B C, then C B A, and so on: what else the machine does, it does to all, and each comes as often first as last.

    Args:
        calls: warm already.
        rounds: even, as paired_ratio wants them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds):
        for name in list(calls)[:: 1 if i % 2 == 0 else -1]:
            seconds[name].append(timed(calls[name], device))
    return seconds


def compare(
    seconds: Mapping[str, Sequence[float]], ours: str, calls: Mapping[str, int] | None = None
) -> dict[str, Row]:
    """What a row says of each name: median seconds of a call, their spread, and how long it takes over ours, round by round.

    Args:
        seconds: of rounds, as take_turns gives them.
        ours: the name that all are divided by.
        calls: in a round, by name; 1 each where absent.
    """
    per_call = {name: [value / (calls or {}).get(name, 1) for value in values] for name, values in seconds.items()}
    rows = {}
    for name, values in per_call.items():
        quartiles = statistics.quantiles(values, n=4)
        rows[name] = {
            "seconds": statistics.median(values),
            "seconds_iqr": quartiles[2] - quartiles[0],
            "rounds": values,
        }
        if name != ours:
            ratio = paired_ratio([(per_call[ours], values)])
            rows[name]["over_ours"] = {
                "value": ratio.value,
                "low": ratio.low,
                "high": ratio.high,
                "coverage": ratio.coverage,
            }
    return rows


def over_text(row: Row) -> str:
    """As "2.10 (1.95-2.31)": how many times as long as ours, and the interval of it."""
    over = row.get("over_ours")
    return f"{over['value']:.2f} ({over['low']:.2f}-{over['high']:.2f})" if over else "1"


# --- command line ------------------------------------------------------------------------------------------------


def parser_of(about: str | None, rounds: int) -> Parser:
    """With what every script here takes."""
    parser = Parser(about)
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="of torch on a CPU (default: as torch finds it)")
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each; even (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print this result, measure nothing")
    return parser


def check_common(given: argparse.Namespace) -> torch.device:
    """The device, its threads set. Raises: UserError for what cannot be."""
    if not 2 <= given.rounds <= 10_000 or given.rounds % 2:
        raise UserError(
            f"--rounds must be even and of 2 to 10000: order and reverse order are a pair; got {given.rounds}"
        )
    if given.threads is not None and not 1 <= given.threads <= MOST_THREADS:
        raise UserError(f"--threads must be of 1 to {MOST_THREADS}, got {given.threads}")
    if given.json:
        check_writable("--json", given.json)
    device = resolve_device(given.device)
    if given.threads:
        torch.set_num_threads(given.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


# --- results -----------------------------------------------------------------------------------------------------


def begin(script: str, options: Mapping[str, Any], packages: Sequence[str], device: torch.device) -> dict[str, Any]:
    """A result without rows: the command that makes it again, date, device, commit, versions, load.

    Args:
        options: name -> value; a list is an option given several times; None is left out.
    """
    words = [
        f"--{name} {value}"
        for name, values in options.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    return {
        "command": " ".join([f"python {script}", *(word for word in words if not word.endswith(" None"))]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe(device),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "load": [os.getloadavg()[0]],
        "rows": [],
    }


def add(result: dict[str, Any], rows: Sequence[Row], path: Path | None) -> None:
    """Adds rows, and writes what there is: nothing is lost of a run that is cut short. Raises: UserError where it cannot be written."""
    result["rows"] += rows
    result["load"].append(os.getloadavg()[0])
    if path:
        written(path, json.dumps(result, indent=1, allow_nan=False).encode() + b"\n")


def heading(result: dict[str, Any]) -> str:
    """Machine, versions, commit, date, load and command, in one paragraph."""
    machine = result["machine"]
    versions = ", ".join(
        f"{name} {version}" for name, version in {"torch": machine["torch"], **result["versions"]}.items()
    )
    dirty = {True: " (dirty)", None: " (tree unknown)", False: ""}[machine["dirty"]]
    load = f"{min(result['load']):.1f}-{max(result['load']):.1f}"
    where = f"{machine['device']}, {machine['threads']} threads; {versions}; commit {machine['commit']}{dirty}, {result['date']}"
    return f"{where}; load {load} on {result['cores']} cores (the benchmark's own work included). `{result['command']}`"


def read(path: Path, show: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """A result that --json wrote. Raises: UserError for anything else."""
    try:
        result = json.loads(path.read_text())
        show(result)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"--table must be a file that --json of this script wrote, but {path}: {type(error).__name__}: {error}"
        ) from None
    return result


def main_of(
    name: str,
    parse: Callable[[], argparse.Namespace],
    run: Callable[[argparse.Namespace], dict[str, Any]],
    show: Callable[..., str],
) -> int:
    """Measures, or reads with --table, and prints. Returns the exit status, that of status_of; 1 where a check failed."""

    def work() -> int:
        given = parse()
        try:
            result = read(given.table, show) if given.table else run(given)
        except CheckError as error:
            print(f"{name}: nothing more is timed: {error}", file=sys.stderr)
            return 1
        print(show(result))
        return 0

    return status_of(name, work)
