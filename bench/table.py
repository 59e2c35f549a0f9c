"""Prints the results of the benches as Markdown tables: the phases of a step, the environments, the kernels.

    python bench/table.py bench/results/nvidia-h200/2026-01-02-0123456789ab.json

Times are medians of one call, with the interquartile range in brackets.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # as a script, of this checkout

from bench.grid import grid  # noqa: E402
from bench.kernels import table as kernels  # noqa: E402
from bench.script import Parser, status_of  # noqa: E402
from stormfast.errors import UserError  # noqa: E402

Record = dict[str, Any]  # the extra_info of one benchmark
PHASES = ["bench", "preset", "ms", "GFLOP", "MB", "of floor", "of peak FLOP/s", "launches", "host reads"]
ENVS = ["game", "environments", "backend", "ms", "steps/s"]


def markdown(records: list[Record]) -> str:
    """All records, a table for each kind that is there."""
    parts = [
        (PHASES, [phase_cells(record) for record in records if "preset" in record]),
        (ENVS, [env_cells(record) for record in records if record.get("bench") == "env"]),
    ]
    tables = [grid(header, rows) for header, rows in parts if rows]
    of_kernels = [record for record in records if "kernel" in record]
    return "\n\n".join(tables + ([kernels.markdown(of_kernels)] if of_kernels else []))


def phase_cells(record: Record) -> list[str]:
    named = [record.get("phase", record["bench"]), record["preset"], milliseconds(record)]
    return [
        *named,
        *work_cells(record),
        *(f"{record[key]:.4g}" if key in record else "-" for key in ("launches", "host_reads")),
    ]


def work_cells(record: Record) -> list[str]:
    """Nothing for what has no matrix product."""
    if not record.get("flops"):
        return ["-"] * 4
    shares = (f"{record[key]:.1%}" for key in ("fraction_of_floor", "fraction_of_peak_flops"))
    return [f"{record['flops'] / 1e9:.3g}", f"{record['bytes'] / 1e6:.3g}", *shares]


def env_cells(record: Record) -> list[str]:
    return [
        record["game"],
        str(record["num_envs"]),
        record["env_backend"],
        milliseconds(record),
        f"{record['steps_per_second']:,.0f}",
    ]


def milliseconds(record: Record) -> str:
    return f"{record['seconds'] * 1e3:.3g} ({record['seconds_iqr'] * 1e3:.2g})"


def heading(result: dict[str, Any]) -> str:
    """Machine, versions, commit and command of a result, in one line."""
    machine = result["machine_info"]
    dirty = {True: " (dirty)", None: " (tree unknown)", False: ""}[machine["dirty"]]
    driver = f", driver {machine['driver']}" if machine.get("driver") else ""
    versions = f"torch {machine['torch']}, triton {machine['triton']}{driver}, {machine['threads']} threads"
    return f"{machine['device']}, {versions}, commit {machine['commit']}{dirty}: `{machine['command']}`"


def work() -> int:
    parser = Parser(__doc__)
    parser.add_argument(
        "files", nargs="+", type=Path, help="what `make bench`, or `pytest bench --benchmark-json=FILE`, wrote"
    )
    for path in parser.parse_args().files:
        try:
            result = json.loads(path.read_text())
            text = f"{heading(result)}\n\n{markdown([benchmark['extra_info'] for benchmark in result['benchmarks']])}\n"
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:  # JSON of any other shape
            raise UserError(
                f"expected a file that `make bench` wrote, got {path}: {type(error).__name__}: {error}"
            ) from None
        print(text)
    return 0


def main() -> int:
    return status_of("table", work)


if __name__ == "__main__":
    sys.exit(main())
