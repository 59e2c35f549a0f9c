"""What the compiler makes of each Triton kernel on five GPUs: instructions, registers and memory."""

from collections.abc import Sequence

from bench.kernel_cases import PRESETS, preset_cases
from profiling.kernel_report import GPUS, Row, survey

QUANTITIES = ("instructions", "registers", "shared", "stack", "spilled")


def collect() -> dict[str, int]:
    """As flat(), of every case and target; a minute of one core. Raises: UserError where kernels cannot be compiled."""
    return flat(survey([case for preset in PRESETS for case in preset_cases(preset)], list(GPUS)))


def flat(rows: Sequence[Row]) -> dict[str, int]:
    """kernels.CASE.sm_TARGET.QUANTITY: instructions and registers, shared bytes of a program, others of a thread."""
    return {
        f"kernels.{row.case.name}.sm_{row.target}.{name}": getattr(row.found, name)
        for row in rows
        for name in QUANTITIES
    }
