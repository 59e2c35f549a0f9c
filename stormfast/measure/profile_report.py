"""The table of `stormfast profile`."""

from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 130  # of the table where the output is no terminal, or a narrower one
COLUMNS = ("phase", "per step", "ms", "p20", "p80", "GFLOP", "MB", "floor ms", "of floor", "launches", "host reads")


def show(result: dict[str, Any]) -> None:
    """Prints the result of profile.measure on stdout."""
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, WIDTH)
    for line in head(result):
        console.print(line, markup=False)
    console.print(table(result))
    for line in foot(result):
        console.print(line, markup=False)


def head(result: dict[str, Any]) -> list[str]:
    peaks = result["peaks"]
    return [
        f"{result['game']}, preset {result['preset']}, protocol {result['protocol']}, "
        f"{result['num_envs']} x {result['env_backend']}, {result['precision']}, compile {result['compile']}, "
        f"on {result['device_name']} ({result['device']}), torch {result['torch']}",
        f"measured peaks: bfloat16 {peaks['bfloat16_flops'] / 1e12:.3g} TFLOP/s, "
        f"float32 {peaks['float32_flops'] / 1e12:.3g} TFLOP/s, "
        f"copy {peaks['copy_bytes'] / 1e9:.3g} GB/s",
    ]


def table(result: dict[str, Any]) -> Table:
    made = Table()
    for column in COLUMNS:
        made.add_column(column, justify="left" if column == "phase" else "right", no_wrap=True)
    for name, row in result["phases"].items():
        made.add_row(
            name, f"{row['calls_per_step']:g}", number(row["ms"]), number(row["p20"]), number(row["p80"]), *work(row)
        )
    made.add_section()
    step = [number(result[key]) for key in ("step_ms", "step_ms_p20", "step_ms_p80")]
    made.add_row("step", "", *step, *work(result))
    return made


def work(row: dict[str, Any]) -> list[str]:
    """The columns that phases and the step have in common; a floor of nothing is left out."""
    has_floor = row["floor_ms"] > 0
    return [
        number(row["flops"] / 1e9) if has_floor else "-",
        number(row["bytes"] / 1e6) if has_floor else "-",
        number(row["floor_ms"]) if has_floor else "-",
        f"{row['fraction_of_floor']:.1%}" if has_floor else "-",
        f"{row['launches']:,.0f}",
        f"{row['host_reads']:g}",
    ]


def foot(result: dict[str, Any]) -> list[str]:
    num_envs = result["num_envs"]
    shared = f", with 1/{num_envs} of act and env for the {num_envs} environments they serve," if num_envs > 1 else ""
    lines = [
        f"{result['steps_per_second']:.3g} steps/s; one call of each phase{shared} takes "
        f"{number(result['full_step_ms'])} ms, the phases of a step alone {number(result['phases_ms'])} ms; "
        f"peak memory {result['peak_memory_bytes'] / 2**30:.2f} GiB",
        "a row is of one call; the step is the loop's own time, and the sum of rows x per step",
        "floor: matrix products, convolutions and attention at the measured peaks, all else taken as fused away",
    ]
    return lines + [
        f"host read in {name}: {line}"
        for name, row in result["phases"].items()
        for line in sorted(set(row["host_read_at"]))
    ]


def number(value: float) -> str:
    """Three significant digits, without exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"
