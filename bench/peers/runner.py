"""What the comparisons of this folder share: options, interleaved timing, ratios, JSON results, errors in one line."""

import argparse
import json
import math
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

from bench.devices import describe
from bench.record_tables import markdown as markdown_table
from bench.script import Parser, check_writable, status_of, written
from stormfast.device import resolve_device
from stormfast.errors import UserError
from stormfast.measure.peaks import timed

OURS = "stormfast"
CONFIDENCE = 0.99  # of the interval of a ratio
MAX_ROUNDS, MAX_THREADS = 10_000, 1024
Row = dict[str, Any]
Call = Callable[[], Any]
T = TypeVar("T")


class CheckError(Exception):
    """A library does not do the work that is to be timed; the message is one line."""


# --- timing ------------------------------------------------------------------------------------------------------


def interleave(calls: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each call returned in each round, in the order A B C, C B A, A B C, ...

    Other load and drift then affect all calls alike, and each comes as often first as last (rounds: even).
    """
    returned: dict[str, list[T]] = {name: [] for name in calls}
    for i in range(rounds):
        for name in list(calls)[:: 1 if i % 2 == 0 else -1]:
            returned[name].append(calls[name]())
    return returned


def time_interleaved(calls: Mapping[str, Call], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call, already warm, in each round, from an idle device to an idle device."""
    return interleave({name: partial(timed, call, device) for name, call in calls.items()}, rounds)


def summarize(seconds: Mapping[str, Sequence[float]], repeats: Mapping[str, int] | None = None) -> dict[str, Row]:
    """By name: median and interquartile range of the seconds of a call; for all but OURS also the ratio to ours.

    Args:
        seconds: of each round, as time_interleaved returns them.
        repeats: calls in a round; 1 where absent.
    """
    per_call = {name: [value / (repeats or {}).get(name, 1) for value in values] for name, values in seconds.items()}
    rows = {}
    for name, values in per_call.items():
        low, _, high = statistics.quantiles(values, n=4)
        rows[name] = {"seconds": statistics.median(values), "seconds_iqr": high - low, "rounds": values}
        if name != OURS:
            rows[name]["over_ours"] = paired_ratio(per_call[OURS], values)
    return rows


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """The median of theirs / ours, round by round, and its interval, whatever the distribution of the times.

    The interval leaves out the k smallest and the k largest ratios. It misses the median when at most k ratios lie on
    one side of it, which has probability 2 P(Binomial(rounds, 1/2) <= k).

    Returns: value, low, high and coverage, the interval's probability: CONFIDENCE or more from 8 rounds on.
    """
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    count, k, tail = len(ratios), 0, 0.5 ** len(ratios)
    while 1 - 2 * (wider := tail + math.comb(count, k + 1) * 0.5**count) >= CONFIDENCE:
        k, tail = k + 1, wider
    return {"value": statistics.median(ratios), "low": ratios[k], "high": ratios[-1 - k], "coverage": 1 - 2 * tail}


# --- running -----------------------------------------------------------------------------------------------------


def main(
    name: str,
    about: str | None,
    measure: Callable[[argparse.Namespace, torch.device], Iterator[dict[str, list[Any]]]],
    words: Sequence[str] | None,
    *,
    rounds: int,
    add_options: Callable[[Parser], None] = lambda parser: None,
    packages: Sequence[str] = (),
) -> int:
    """Runs a comparison and prints its result.

    Args:
        name: of the script, as in `python -m bench.peers.NAME`; about: its docstring, for --help.
        measure: yields what each case adds to the result: {"rows": [...]}, and other lists.
        words: the command line; None takes the process's.
        rounds: the default of --rounds; add_options: adds the script's own options, which `measure` checks.
        packages: whose versions the result records.
    Returns: the exit status: 0; 1 where a library does other work than ours; otherwise that of status_of.
    """
    words = sys.argv[1:] if words is None else words
    parser = Parser(about)
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="torch's threads on a CPU (default: torch's own choice)")
    parser.add_argument("--rounds", type=int, default=rounds, help="calls of each; even (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to this file")
    add_options(parser)

    def run() -> int:
        options = parser.parse_args(words)
        device = check_options(options)
        result = describe_run(shlex.join(["python", "-m", f"bench.peers.{name}", *words]), packages, device)
        try:
            for added in measure(options, device):
                extend(result, added, options.json)
                print(f"{name}: {len(result['rows'])} rows measured", file=sys.stderr)
        except CheckError as error:
            print(f"{name}: {error}; nothing more is timed", file=sys.stderr)
            return 1
        except ImportError as error:
            raise UserError(f'this needs an optional library: {error}; pip install -e ".[peers]"') from None
        print(markdown(result))
        return 0

    return status_of(name, run)


def check_options(options: argparse.Namespace) -> torch.device:
    """Checks the options that all scripts have, and sets the number of threads. Raises: UserError."""
    if not 2 <= options.rounds <= MAX_ROUNDS or options.rounds % 2:
        raise UserError(f"--rounds must be even and between 2 and {MAX_ROUNDS}, got {options.rounds}")
    if options.threads is not None and not 1 <= options.threads <= MAX_THREADS:
        raise UserError(f"--threads must be between 1 and {MAX_THREADS}, got {options.threads}")
    if options.json:
        check_writable("--json", options.json)
    device = resolve_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def describe_run(command: str, packages: Sequence[str], device: torch.device) -> dict[str, Any]:
    """A result without rows: command, date, machine with commit, versions of what is installed."""
    installed = {each.name: each.version for each in metadata.distributions() if each.name in packages}
    versions = {"python": platform.python_version(), **installed}
    date, load = time.strftime("%Y-%m-%d"), [os.getloadavg()[0]]
    return {
        "command": command,
        "date": date,
        "machine": describe(device),
        "versions": versions,
        "load": load,
        "rows": [],
    }


def extend(result: dict[str, Any], added: dict[str, list[Any]], path: Path | None) -> None:
    """Adds what was measured and writes the file, so that a run that is cut short keeps what it has."""
    for key, values in added.items():
        result.setdefault(key, []).extend(values)
    result["load"].append(os.getloadavg()[0])
    if path:
        written(path, json.dumps(result, indent=1, allow_nan=False).encode() + b"\n")


def markdown(result: dict[str, Any]) -> str:
    """Device, commit, load and command in one paragraph, then the table of all rows."""
    machine, load = result["machine"], f"{min(result['load']):.1f}-{max(result['load']):.1f}"
    commit = machine["commit"] + (" (dirty)" if machine["dirty"] else "")
    shown = [cells(row) for row in result["rows"]]
    header = list(dict.fromkeys(key for row in shown for key in row))
    table = markdown_table(header, [[row.get(key, "-") for key in header] for row in shown])
    return f"{machine['device']}, commit {commit}; load {load}. `{result['command']}`\n\n{table}"


def cells(row: Row) -> dict[str, str]:
    """Column -> text: seconds in milliseconds, ratios as "2.10 (1.95-2.31)"; lists and other details are left out."""
    shown = {}
    for key, value in row.items():
        if key.startswith("over_"):
            middle, low, high, *_ = value.values()
            shown[key.replace("_", " ")] = f"{middle:.2f} ({low:.2f}-{high:.2f})"
        elif isinstance(value, float):
            name = key.replace("seconds", "ms").replace("_", " ")
            shown[name] = f"{1e3 * value if 'seconds' in key else value:.4g}"
        elif isinstance(value, str | int):
            shown[key.replace("_", " ")] = str(value)
    return shown
