"""What the compiler makes of each Triton kernel: instructions, registers and memory, for five GPUs that need not be here.

Measured by profiling/kernel_report.py of the same checkout, at the shapes of every preset.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "profiling"))  # its scripts import each other by name

import kernel_report as report

QUANTITIES = ("instructions", "registers", "shared", "stack", "spilled")


def collect() -> dict[str, int]:
    """As flat(), of every case and target; a minute of one core. Raises: UserError where kernels cannot be compiled or disassembled."""
    return flat(report.survey([case for preset in report.PRESETS for case in report.cases(preset)], list(report.GPUS)))


def flat(rows: Sequence[report.Row]) -> dict[str, int]:
    """kernels.CASE.sm_TARGET.instructions, .registers, .shared, .stack and .spilled (bytes of a program, and two of a thread)."""
    return {
        f"kernels.{row.case.name}.sm_{row.target}.{quantity}": getattr(row.found, quantity)
        for row in rows
        for quantity in QUANTITIES
    }
