"""Tables of text, and the tables of what the benches recorded: phases of a step, environments, kernels.

Times are medians of one call, with the interquartile range in brackets.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

Record = dict[str, Any]  # the extra_info of one bench


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in [header, ["---"] * len(header), *rows])


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\|", " ".join(text.split()))


def aligned(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for terminals: the first column to the left, the others to the right."""
    table = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    )


# --- records of the benches --------------------------------------------------------------------------------------

PHASES = ["bench", "preset", "ms", "GFLOP", "MB", "of floor", "of peak FLOP/s", "launches", "host reads"]
ENVS = ["game", "environments", "backend", "ms", "steps/s"]
KERNELS = ["kernel", "shape", "dtype", "provider", "us", "faster than eager", "of copy bandwidth", "timed by"]


def of_records(records: Sequence[Record]) -> str:
    """All records of a run of the benches, a table for each kind."""
    parts = [
        (PHASES, [phase_row(record) for record in records if "preset" in record]),
        (ENVS, [env_row(record) for record in records if record.get("bench") == "env"]),
        (KERNELS, kernel_rows([record for record in records if "kernel" in record])),
    ]
    return "\n\n".join(markdown(header, rows) for header, rows in parts if rows)


def phase_row(record: Record) -> list[str]:
    work = ["-"] * 4
    if record.get("flops"):
        shares = (f"{record[key]:.1%}" for key in ("fraction_of_floor", "fraction_of_peak_flops"))
        work = [f"{record['flops'] / 1e9:.3g}", f"{record['bytes'] / 1e6:.3g}", *shares]
    counts = (f"{record[key]:.4g}" if key in record else "-" for key in ("launches", "host_reads"))
    return [record.get("phase", record["bench"]), record["preset"], milliseconds(record), *work, *counts]


def env_row(record: Record) -> list[str]:
    rate = f"{record['steps_per_second']:,.0f}"
    return [record["game"], str(record["num_envs"]), record["env_backend"], milliseconds(record), rate]


def milliseconds(record: Record) -> str:
    return f"{record['seconds'] * 1e3:.3g} ({record['seconds_iqr'] * 1e3:.2g})"


def kernel_rows(records: Sequence[Record]) -> list[list[str]]:
    """Each provider beside the eager one of the same kernel, shape and dtype, where that was timed too."""

    def size(record: Record) -> tuple[str, str, str]:
        return record["kernel"], record["shape"], record["dtype"]

    eager = {size(record): record["seconds"] for record in records if record["provider"] == "eager"}
    rows = []
    for record in records:
        took = f"{record['seconds'] * 1e6:.1f} ({record['seconds_iqr'] * 1e6:.1f})"
        ratio = f"{eager[size(record)] / record['seconds']:.2f}x" if size(record) in eager else "-"
        share = f"{record['fraction_of_copy_bandwidth']:.0%}"
        rows.append([*size(record), record["provider"], took, ratio, share, record["timing"]])
    return rows
