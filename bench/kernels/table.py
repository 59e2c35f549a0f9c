"""Results of the kernel benchmarks as a Markdown table: providers side by side, and whether targets are met.

Times are medians of one call, with the interquartile range in brackets. A target is evaluated on CUDA devices alone.
"""

from typing import Any

from bench.grid import grid

PROVIDERS = ("triton", "eager", "compile")
Record = dict[str, Any]  # the extra_info of one benchmark
Row = dict[str, Record]  # provider -> record, of one kernel at one shape and dtype

HEADER = [
    *("kernel", "shape", "dtype"),
    *("triton us", "eager us", "compile us"),
    *("over eager", "over compile", "% of copy bandwidth: triton, eager, compile", "target"),
]


def rows(records: list[Record]) -> list[Row]:
    """Records that differ in the provider alone, together, in the order of their first appearance."""
    found: dict[tuple[str, str, str], Row] = {}
    for record in records:
        found.setdefault((record["kernel"], record["shape"], record["dtype"]), {})[record["provider"]] = record
    return list(found.values())


def speedup(row: Row, over: str) -> float | None:
    """Of Triton over another provider; None where one of them was not measured."""
    return row[over]["seconds"] / row["triton"]["seconds"] if "triton" in row and over in row else None


def evaluate(records: list[Record]) -> None:
    """Adds to each target what was measured, and whether that meets it; None where the run does not say."""
    for row in rows(records):
        for record in row.values():
            if target := record.get("target"):
                value = (
                    speedup(row, "eager") if target["quantity"] == "speedup_over_eager" else record[target["quantity"]]
                )
                target["value"], target["met"] = value, None if value is None else value >= target["at_least"]


def target_text(target: Record | None) -> str:
    """As "met: 2.4 >= 2"."""
    if not target:
        return ""
    if target["met"] is None:
        return f"not evaluated: >= {target['at_least']:g}"
    return f"{'met' if target['met'] else 'MISSED'}: {target['value']:.2f} {'>=' if target['met'] else '<'} {target['at_least']:g}"


def cells(row: Row) -> list[str]:
    """One row of the table, in the order of HEADER."""
    any_record = next(iter(row.values()))
    times = [
        f"{row[p]['seconds'] * 1e6:.1f} ({row[p]['seconds_iqr'] * 1e6:.1f})" if p in row else "-" for p in PROVIDERS
    ]
    ratios = [f"{ratio:.2f}x" if (ratio := speedup(row, over)) else "-" for over in ("eager", "compile")]
    fractions = ", ".join(f"{100 * row[p]['fraction_of_copy_bandwidth']:.0f}" if p in row else "-" for p in PROVIDERS)
    target = target_text(row["triton"].get("target")) if "triton" in row else ""
    return [any_record["kernel"], any_record["shape"], any_record["dtype"], *times, *ratios, fractions, target]


def markdown(records: list[Record]) -> str:
    """The table, and below it what is to be known about how some of it was timed."""
    evaluate(records)
    notes = {
        f"{r['kernel']} {r['shape']} {r['dtype']} {r['provider']}: timed by {r['timing']}"
        for r in records
        if ":" in r["timing"]
    }
    return "\n".join([grid(HEADER, list(map(cells, rows(records)))), *sorted(notes)])
