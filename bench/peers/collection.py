"""Which library collects experience fastest: steps of the same Atari games with the same preprocessing, interleaved.

    python -m bench.peers.collection --json bench/results/DEVICE/collection-atari.json    # 13 minutes
    python -m bench.peers.collection --games Pong --num-envs 1 4 --seconds 0.5 --rounds 2

64x64 RGB frames, frame skip 4, the last two frames max-pooled, up to 30 no-ops, no sticky actions, minimal action set,
unclipped rewards: AtariConfig(). Before a library is timed, its frames, rewards and flags are compared with ours.
Rates are through our VectorEnv, which is what training pays. A step is one of one environment; a call that only resets
an environment is none, but its time counts. `over auto` compares rates of the same round with those of the library that
`--env-backend auto` takes: median (least-most). A library that cannot be built is a row with the reason.
Exit status: 0 done, 1 nothing could be timed, 2 bad arguments.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.peers import runner
from bench.peers.runner import CheckError, Row, interleave
from bench.peers.vector_envs import BACKENDS, frame_problem
from bench.script import Parser
from stormfast.envs import choose_backend
from stormfast.envs.games import BUILT_IN, check_game
from stormfast.envs.vector import VectorEnv
from stormfast.errors import UserError
from stormfast.settings import AtariConfig, EnvConfig, validate_env

CONFIG = AtariConfig()
SEED = 1
WARMUP_CALLS = 20  # before each turn, untimed: caches went cold while the others had theirs


def measure_case(game: str, num_envs: int, names: Sequence[str], seconds: float, rounds: int) -> list[Row]:
    """A row of each library for one game and number of environments. One that cannot be built has the reason in it."""
    rows = {
        name: {"game": game, "num_envs": num_envs, "backend": name, "failure": ""} for name in BACKENDS if name in names
    }
    envs: dict[str, VectorEnv] = {}
    try:
        for name, row in rows.items():
            try:
                problem = frame_problem(BACKENDS[name], game, SEED)
                envs[name] = BACKENDS[name](game, CONFIG, num_envs, SEED)
                envs[name].reset()
                row |= {"why": problem, "honest": not problem}
            except Exception as error:
                row["failure"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        turns = interleave({name: partial(turn, env, seconds) for name, env in envs.items()}, rounds)
    finally:
        for env in envs.values():
            env.close()
    return [row | summarize_turns(turns[name]) if name in turns else row for name, row in rows.items()]


def turn(env: VectorEnv, seconds: float) -> dict[str, float]:
    """Random steps for so long, after some untimed ones. Returns: steps, seconds, cpu_seconds."""
    actions = np.random.default_rng(SEED).integers(env.num_actions, size=(1024, env.num_envs))
    for action in actions[:WARMUP_CALLS]:
        env.step(action)
    steps, calls, cpu, started = 0, 0, cpu_seconds(), time.perf_counter()
    while (taken := time.perf_counter() - started) < seconds or not steps:
        steps += int(np.count_nonzero(~env.step(actions[calls % len(actions)]).is_first))
        calls += 1
    return {"steps": steps, "seconds": taken, "cpu_seconds": cpu_seconds() - cpu}


def summarize_turns(turns: Sequence[dict[str, float]]) -> Row:
    """What a row says of its turns. vector_env: the steps a second of each turn, their median, and sums over all."""
    total = {name: sum(each[name] for each in turns) for name in turns[0]}
    rates = [each["steps"] / each["seconds"] for each in turns]
    median, cpu = statistics.median(rates), 1e6 * total["cpu_seconds"] / total["steps"]
    vector_env = {"rates": rates, "median": median, **total}
    return {"steps_per_second": median, "cpu_us_per_step": cpu, "vector_env": vector_env}


def cpu_seconds() -> float:
    """Processor time of this process with its threads and, where /proc tells, of its child processes."""
    ticks = 0
    for child in multiprocessing.active_children():
        stat = Path(f"/proc/{child.pid}/stat")
        if stat.exists():
            fields = stat.read_text().rpartition(")")[2].split()  # from the third field on
            ticks += int(fields[11]) + int(fields[12])  # utime, stime
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def compare_with(auto: str, rows: list[Row]) -> None:
    """Adds over_auto to each row that was timed: its rates over those of `auto`, round by round."""
    rates = {row["backend"]: row["vector_env"]["rates"] for row in rows if not row["failure"]}
    for row in rows:
        if not row["failure"] and auto in rates:
            ratios = [a / b for a, b in zip(rates[row["backend"]], rates[auto], strict=True)]
            row["over_auto"] = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def check_options(options: argparse.Namespace) -> None:
    """Raises: UserError for games, sizes or a device that cannot be."""
    if options.device != "cpu":
        raise UserError(f"--device must be cpu, where environments run, got {options.device}")
    if not 0 < options.seconds <= 3600:
        raise UserError(f"--seconds must be > 0 and <= 3600, got {options.seconds:g}")
    for game in options.games:
        check_game(game)
        if game in BUILT_IN:
            raise UserError(f"--games must be Atari games, which all libraries have, got {game}")
    for num_envs in options.num_envs:
        validate_env(EnvConfig(), CONFIG, num_envs=num_envs, backend="auto", seed=SEED)


def measure(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, list[Any]]]:
    """Raises: CheckError where nothing could be timed."""
    check_options(options)
    failures = []
    for game, num_envs in product(options.games, options.num_envs):
        rows = measure_case(game, num_envs, options.backends, options.seconds, options.rounds)
        auto = choose_backend(game, EnvConfig(), CONFIG, num_envs=num_envs, backend="auto").name
        compare_with(auto, rows)
        yield {"rows": rows, "verdicts": [{"game": game, "num_envs": num_envs, "auto": auto}]}
        failures += [row["failure"] for row in rows]
    if all(failures):
        raise CheckError(f"no library could be timed: {failures[0]}")


def add_options(parser: Parser) -> None:
    shown = "default: %(default)s"
    parser.add_argument("--games", nargs="+", default=["Pong", "Breakout"], help=shown)
    parser.add_argument("--num-envs", nargs="+", type=int, default=[1, 4, 16], metavar="N", help=shown)
    parser.add_argument("--seconds", type=float, default=3.0, help=f"of a turn; {shown}")
    parser.add_argument("--backends", nargs="+", choices=list(BACKENDS), default=list(BACKENDS), help=shown)


def main(words: Sequence[str] | None = None) -> int:
    packages = ("ale-py", "envpool", "gymnasium", "numpy", "opencv-python-headless")
    return runner.main("collection", __doc__, measure, words, rounds=6, add_options=add_options, packages=packages)


if __name__ == "__main__":
    sys.exit(main())
