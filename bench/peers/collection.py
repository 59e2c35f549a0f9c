"""Which library collects experience fastest? Steps of the same games with the same preprocessing, every library in turn.

    python bench/peers/collection.py --json bench/results/DEVICE/collection-atari.json
    python bench/peers/collection.py --games Catch --num-envs 4 --seconds 0.5 --rounds 3
    python bench/peers/collection.py --table bench/results/DEVICE/collection-atari.json      # print a result again

64x64 RGB frames, frame skip 4, the last two frames max-pooled, 1..30 no-ops, no sticky actions, minimal action set, unclipped
rewards: stormfast's EnvConfig(). Before a library is timed, its frames and rewards are compared with the bare emulator's. A step is
one of one environment; the call that only resets an environment counts none, but its time counts. Exit codes: 0 done, 1 nothing
could be timed, 2 bad arguments.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # so that it runs as a script, on this checkout

from bench.devices import describe  # noqa: E402
from bench.peers.collection_backends import OURS, backends_of  # noqa: E402
from bench.peers.collection_workers import CONFIG, Row, measure  # noqa: E402
from bench.script import Parser, check_writable, status_of, written  # noqa: E402
from stormfast.envs import resolve_backend  # noqa: E402
from stormfast.envs.games import check_game  # noqa: E402
from stormfast.errors import UserError  # noqa: E402
from stormfast.settings import validate_env  # noqa: E402

VERSIONS = ("ale-py", "envpool", "gymnasium", "numpy", "opencv-python-headless")
HEADER = (
    "game",
    "envs",
    "backend",
    "steps/s (least-most)",
    "over auto (least-most)",
    "CPU us a step",
    "library alone",
    "frames",
)


def compare(rows: list[Row], auto: str) -> dict[str, Any]:
    """The verdict on the rows of one game and number of environments.

    Adds over_auto to each row that was timed: its rate over that of `auto` in the same round: median, least, most. The fastest is
    the one with the highest median of these: rates of different rounds compare what else the machine did.

    Returns: auto, fastest and fastest_of_ours (names of honest backends, None without any), and clear: whether the fastest of ours
        beat `auto` in each round.
    """
    timed = {row["backend"]: row for row in rows if not row["failure"]}
    for row in timed.values():
        if auto in timed:
            pairs = zip(row["vector_env"]["rates"], timed[auto]["vector_env"]["rates"], strict=True)
            ratios = [rate / base for rate, base in pairs]
            row["over_auto"] = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    honest = sorted((row for row in timed.values() if row["honest"]), key=_rank, reverse=True)
    ours = [row for row in honest if row["backend"] in OURS]
    clear = bool(ours) and ours[0].get("over_auto", {"least": 0})["least"] > 1
    first, first_of_ours = (found[0]["backend"] if found else None for found in (honest, ours))
    case = {"game": rows[0]["game"], "num_envs": rows[0]["num_envs"], "auto": auto}
    return case | {"fastest": first, "fastest_of_ours": first_of_ours, "clear": clear}


def _rank(row: Row) -> float:
    """Without `auto` among the timed, rates are all there is."""
    return (row["over_auto"] if "over_auto" in row else row["vector_env"])["median"]


def markdown(result: dict[str, Any]) -> str:
    """The table, and a line for each verdict below it."""
    autos = {(verdict["game"], verdict["num_envs"]): verdict["auto"] for verdict in result["verdicts"]}
    lines = [
        HEADER,
        ["---"] * len(HEADER),
        *(_cells(row, autos[row["game"], row["num_envs"]]) for row in result["rows"]),
    ]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", *map(_sentence, result["verdicts"])])


def _cells(row: Row, auto: str) -> list[str]:
    """One row of the table, in the order of HEADER."""
    name = row["backend"] + (" (auto)" if row["backend"] == auto else "")
    start = [row["game"], str(row["num_envs"]), name]
    if row["failure"]:
        return [*start, "-", "-", "-", "-", f"FAILED: {row['failure']}"]
    rates, over = row["vector_env"]["rates"], row.get("over_auto")
    rate = f"{row['vector_env']['median']:.0f} ({min(rates):.0f}-{max(rates):.0f})"
    ratio = f"{over['median']:.2f} ({over['least']:.2f}-{over['most']:.2f})" if over else "-"
    work = f"{1e6 * row['vector_env']['cpu_seconds'] / row['vector_env']['steps']:.0f}"
    library = f"{row['library']['median']:.0f}, {row['library_shows']}" if "library" in row else "-"
    return [*start, rate, ratio, work, library, ("" if row["honest"] else "NOT HONEST: ") + (row["why"] or "identical")]


def _sentence(verdict: dict[str, Any]) -> str:
    """What the rows of one game and number of environments say."""
    at = f"{verdict['game']} x {verdict['num_envs']}: auto takes {verdict['auto']}"
    if verdict["fastest"] is None:
        return f"{at}; nothing honest was timed"
    name, often = verdict["fastest_of_ours"], "in each round" if verdict["clear"] else "but not in each round"
    ours = f", of stormfast's own {name}" + ("" if name == verdict["auto"] else f", {often}") if name else ""
    return f"{at}; the fastest is {verdict['fastest']}{ours}"


def heading(result: dict[str, Any]) -> str:
    """Machine, versions, commit, load and command, in one paragraph."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    dirty = {True: " (dirty)", None: " (tree unknown)", False: ""}[machine["dirty"]]
    load = f"{min(result['load']):.1f}-{max(result['load']):.1f}"
    where = f"{machine['device']}, of {result['cores']} usable; {versions}; commit {machine['commit']}{dirty}, {result['date']}"
    return f"{where}; load {load} (the benchmark's own work included). `{result['command']}`"


def arguments() -> argparse.Namespace:
    """Checked. Raises: UserError for games, sizes or a place for the results that cannot be."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--games", type=lambda text: text.split(","), default=["Pong", "Breakout"], help="default: Pong,Breakout"
    )
    parser.add_argument(
        "--num-envs", type=lambda text: [int(n) for n in text.split(",")], default=[1, 4, 16], help="default: 1,4,16"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn (default: 3)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each library (default: 5)")
    parser.add_argument(
        "--backends", type=lambda text: text.split(","), help="only these (default: all that can step the game)"
    )
    parser.add_argument("--json", type=Path, help="where the result goes")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print this result, measure nothing")
    known = parser.parse_args()
    for game in known.games:
        check_game(game)
        if unknown := set(known.backends or ()) - set(backends_of(game)):
            raise UserError(
                f"--backends must be of {', '.join(backends_of(game))} for {game}, got {', '.join(sorted(unknown))}."
            )
    for num_envs in known.num_envs:
        validate_env(CONFIG, num_envs=num_envs, backend="auto", seed=0)
    if not (0 < known.seconds <= 3600 and 1 <= known.rounds <= 1000):
        raise UserError(
            f"--seconds must be > 0 and <= 3600 and --rounds >= 1 and <= 1000, got {known.seconds:g} and {known.rounds}."
        )
    if known.json:
        check_writable("--json", known.json)
    return known


def run(known: argparse.Namespace) -> dict[str, Any]:
    """Measures everything, and after each case says so and writes what there is: nothing is lost of a run that is cut short."""
    given = {
        "games": known.games,
        "num-envs": known.num_envs,
        "seconds": [f"{known.seconds:g}"],
        "rounds": [known.rounds],
    }
    given |= {"backends": known.backends} if known.backends else {}
    result: dict[str, Any] = {
        "command": " ".join(
            [
                "python bench/peers/collection.py",
                *(f"--{name} {','.join(map(str, values))}" for name, values in given.items()),
            ]
        ),
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe(torch.device("cpu")),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in VERSIONS}},
        "seconds": known.seconds,
        "load": [os.getloadavg()[0]],
        "rows": [],
        "verdicts": [],
    }
    for game, num_envs in product(known.games, known.num_envs):
        rows = measure(game, num_envs, known.backends or backends_of(game), seconds=known.seconds, rounds=known.rounds)
        result["verdicts"].append(compare(rows, resolve_backend(game, CONFIG, num_envs=num_envs, backend="auto").name))
        print(_sentence(result["verdicts"][-1]), file=sys.stderr)
        result["rows"] += rows
        result["load"].append(os.getloadavg()[0])
        if known.json:
            written(known.json, json.dumps(result, indent=1).encode() + b"\n")
    return result


def work() -> int:
    known = arguments()
    result = read(known.table) if known.table else run(known)
    print(f"{heading(result)}\n\n{markdown(result)}")
    return 0 if any(not row["failure"] for row in result["rows"]) else 1


def main() -> int:
    return status_of("collection", work)


def read(path: Path) -> dict[str, Any]:
    """A result that --json wrote. Raises: UserError for anything else."""
    try:
        result = json.loads(path.read_text())
        heading(result), markdown(result)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"--table must be a file that --json wrote, but {path}: {type(error).__name__}: {error}"
        ) from None
    return result


if __name__ == "__main__":
    sys.exit(main())
