"""What do our kernels win over what others would write in their place: torch.distributions, scaled_dot_product_attention, torch.compile?

    python bench/peers/kernels.py --device cuda --json bench/results/DEVICE/peers-kernels.json    # shapes of storm and fast, bfloat16
    python bench/peers/kernels.py --threads 1 --json bench/results/DEVICE/peers-kernels.json      # CPU: those of cpu, under a minute
    python bench/peers/kernels.py --table bench/results/DEVICE/peers-kernels.json                 # print a result again

Ours is the public function: the Triton kernel on CUDA, its reference on a CPU. Before anything is timed, all are checked to do the same work:
the same outputs and gradients, and samples of the same distribution, by counts of 2^18 draws. They take turns, A B C, C B A, ...; `over
ours` is the ratio of turns of the same rounds. (bench/kernels asks another question: kernel against reference, and against the speed of memory.)

On CUDA all calls of a round are captured in a CUDA graph over inputs that do not fit the cache, as bench/kernels does it; what cannot be
captured, as draws of torch.distributions, is timed as it comes, and the table says so. Exit codes: 0 done, 1 not the same work, 2 bad
arguments.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # so that it runs as a script, on this checkout

from bench.grid import grid  # noqa: E402
from bench.kernels.timing import num_sets, prepare  # noqa: E402

from bench.peers import side_by_side  # noqa: E402
from bench.peers.kernel_cases import OURS, Case, cases_of  # noqa: E402
from bench.peers.side_by_side import CheckError, Row, compare, heading, over_text, take_turns  # noqa: E402
from stormfast.errors import UserError  # noqa: E402
from stormfast_kernels import launch  # noqa: E402

HEADER = ["kernel", "shape", "dtype", "written as", "us (spread)", "over ours", "timed by"]


def measure(case: Case, rounds: int, device: torch.device) -> list[Row]:
    """A row for each writer, ours first. Raises: CheckError where one does other work."""
    torch.compiler.reset()  # else the eighth case is one recompilation too many
    generator = torch.Generator(device).manual_seed(0)
    sets = [case.arguments(generator) for _ in range(num_sets(case.bytes, device))]
    for name, call in case.writers.items():
        try:
            for given in sets[0]:
                case.check(call, case.writers[OURS], given)
        except (AssertionError, CheckError) as error:
            raise CheckError(f"{case.kernel} {case.shape}, {name}: {error}") from None
    before = launch.launched.total()
    case.writers[OURS](*sets[0][0])
    if (launch.launched.total() > before) != (device.type == "cuda"):
        raise CheckError(
            f"{case.kernel} {case.shape}: ours must run the Triton kernel on CUDA, and the reference on a CPU"
        )
    prepared = {name: prepare(call, sets, device) for name, call in case.writers.items()}
    seconds = take_turns({name: timed.run for name, timed in prepared.items()}, rounds, device)
    found = compare(seconds, OURS, {name: timed.calls for name, timed in prepared.items()})
    about = {"kernel": case.kernel, "shape": case.shape, "dtype": case.dtype}
    return [about | {"writer": name, "timing": prepared[name].method} | row for name, row in found.items()]


# --- command line ------------------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    parser = side_by_side.parser_of(__doc__, rounds=200)
    parser.add_argument("--kernel", help="only those whose name contains this")
    return parser.parse_args()


def run(given: argparse.Namespace) -> dict[str, Any]:
    device = side_by_side.check_common(given)
    os.environ["STORMFAST_KERNELS"] = (
        "triton" if device.type == "cuda" else "reference"
    )  # what is not there fails, and is not replaced
    cases = [case for case in cases_of(device) if (given.kernel or "") in case.kernel]
    if not cases:
        known = "; ".join(dict.fromkeys(case.kernel for case in cases_of(device)))
        raise UserError(f"--kernel must be part of one of: {known}; got {given.kernel}")
    options = {name: getattr(given, name) for name in ("device", "threads", "rounds", "kernel")}
    result = side_by_side.begin("bench/peers/kernels.py", options, (), device)
    for case in cases:
        side_by_side.add(result, measure(case, given.rounds, device), given.json)
        print(f"{case.kernel} {case.shape}: done", file=sys.stderr)
    return result


def show(result: dict[str, Any]) -> str:
    return f"{heading(result)}\n\n{grid(HEADER, [cells(row) for row in result['rows']])}"


def cells(row: Row) -> list[str]:
    """One row of the table, in the order of HEADER."""
    times = f"{1e6 * row['seconds']:.1f} ({1e6 * row['seconds_iqr']:.1f})"
    return [
        row["kernel"],
        row["shape"],
        row["dtype"],
        row["writer"],
        times,
        over_text(row),
        row["timing"].partition(":")[0],
    ]


def main() -> int:
    return side_by_side.main_of("kernels", parse, run, show)


if __name__ == "__main__":
    sys.exit(main())
