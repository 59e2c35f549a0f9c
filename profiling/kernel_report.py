"""What does each Triton kernel compile to, on GPUs that need not be here, at the shapes of the presets?

    python -m profiling.kernel_report                                   # presets storm and fast, all targets
    python -m profiling.kernel_report --presets storm --targets 90      # one preset, one GPU
    python -m profiling.kernel_report --check                           # exit 1 and one line for each fault

No GPU is needed: the compiler and the disassembler come with triton. The first run takes a minute, later ones read
Triton's cache. Exit codes: 0 done, 1 a fault was found (--check), 2 the report cannot be made.

How to read a row (one launch that training makes, on one target):
    regs          registers of a thread. 64 and more begin to cost occupancy; 255 is the limit.
    smem          bytes of shared memory of a program.
    stack, spill  bytes of a thread in local memory, and how many of them its code stores. Both must be 0.
    SASS          machine instructions of the code, without padding. These kernels are straight lines but for the loop
                  over a long cache, so this is nearly what each warp executes.
    ld128, st128  loads and stores of 16 bytes or more a thread. Without them only a part of the bandwidth is used.
    mma           tensor-core instructions; none is expected, since no kernel multiplies matrices.
    occ           warps that an SM holds at once / that it could. 50 % is plenty to hide the latency of memory.
    programs      thread blocks of the launch; fewer than the GPU has SMs (82 to 170) leave it part idle.
    MB            moved by the launch, every tensor once.
    B/inst        bytes moved for each instruction that a warp issues. Bandwidth over issue rate is about 1 on RTX 4090
                  and 5090, 2 on RTX 3090 and A100, 5 on H200: well above that memory is the limit, else instructions.

A fault is what must never be, whatever the compiler: spills, more shared memory than the GPU gives, no wide access
where there should be some, tensor cores. bench/counts.py holds instructions, registers and memory exactly.
"""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

from bench.kernel_cases import PRESETS, PresetCase, preset_cases
from bench.record_tables import aligned
from bench.script import Parser, status_of
from profiling.kernel_resources import GPUS, Resources, measure, resident_warps
from stormfast.errors import UserError
from stormfast_kernels import launch

COLUMNS = "case shape sm regs smem stack spill SASS ld128 st128 mma occ programs MB B/inst".split()


@dataclass(frozen=True)
class Row:
    """A case on a target."""

    case: PresetCase
    target: int
    found: Resources

    def cells(self) -> list[str]:
        """In the order of COLUMNS."""
        case, found, gpu = self.case, self.found, GPUS[self.target]
        instructions = case.programs * case.launch.num_warps * found.instructions
        return [
            case.name,
            "x".join(map(str, case.shape)),
            *map(str, (self.target, found.registers, found.shared, found.stack, found.spilled, found.instructions)),
            *map(str, (found.wide_loads, found.wide_stores, found.tensor_core)),
            f"{resident_warps(found, case.launch.num_warps, gpu)}/{gpu.warps_per_sm}",
            str(case.programs),
            f"{case.bytes_moved / 1e6:.3g}",
            "-"
            if case.has_loop
            else f"{case.bytes_moved / instructions:.1f}",  # a loop's code does not say how many run
        ]

    def faults(self) -> list[str]:
        """One line each."""
        found, most = self.found, GPUS[self.target].shared_per_program * 1024
        lines = {
            f"spills: {found.stack} bytes of stack, {found.spilled} bytes stored there": found.stack or found.spilled,
            f"{found.shared} bytes of shared memory, and the GPU gives {most}": found.shared > most,
            "no load of 16 bytes": not found.wide_loads,
            "no store of 16 bytes": self.case.case.wide_stores and not found.wide_stores,
            f"{found.tensor_core} tensor-core instructions": found.tensor_core,
        }
        return [f"{self.case.name} on sm_{self.target}: {line}" for line, wrong in lines.items() if wrong]


# --- measuring ---------------------------------------------------------------------------------------------------


def survey(cases: Sequence[PresetCase], targets: Sequence[int]) -> list[Row]:
    """Every case on every target; equal specialisations are compiled once, and disassembled while others compile.

    Raises: UserError where kernels cannot be compiled or disassembled here.
    """
    if launch.IMPORT_TROUBLE is not None:
        raise UserError(f"the report needs triton, but {launch.IMPORT_TROUBLE}; pip install triton==3.7.1")
    if launch.INTERPRETED:
        raise UserError("kernels must be compiled, got TRITON_INTERPRET for the interpreter; unset TRITON_INTERPRET")
    pairs = list(product(cases, targets))
    found: dict[str, Future[Resources]] = {}
    try:
        cuobjdump = find_cuobjdump()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for case, target in pairs:
                if (key := specialisation(case, target)) not in found:
                    found[key] = pool.submit(measure, case.launch.compile_for(target), cuobjdump)
        return [Row(case, target, found[specialisation(case, target)].result()) for case, target in pairs]
    except (RuntimeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"kernels could not be compiled and disassembled: {reason}; "
            "see TRITON_CACHE_DIR, which must be writable, and TRITON_CUOBJDUMP_PATH"
        ) from None


def find_cuobjdump() -> str:
    """Path of the disassembler that comes with triton."""
    return launch.triton.knobs.nvidia.cuobjdump.path


def specialisation(case: PresetCase, target: int) -> str:
    """What makes Triton compile anew."""
    return repr((case.kernel, case.launch.signature(), case.launch.num_warps, target))


# --- command line ------------------------------------------------------------------------------------------------


def report(arguments: Sequence[str] | None) -> int:
    """Returns: exit code 0 or 1."""
    parser = Parser(__doc__)
    parser.add_argument("--presets", nargs="+", default=["storm", "fast"], choices=PRESETS, help="default storm fast")
    parser.add_argument("--targets", nargs="+", default=list(GPUS), choices=list(GPUS), type=int, help="default all")
    parser.add_argument("--check", action="store_true", help="exit 1 where a kernel has a fault, such as spills")
    options = parser.parse_args(arguments)
    rows = survey([case for preset in options.presets for case in preset_cases(preset)], options.targets)
    print(aligned(COLUMNS, [row.cells() for row in rows]))
    faults = [fault for row in rows for fault in row.faults()] if options.check else []
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def main(arguments: Sequence[str] | None = None) -> int:
    return status_of("kernel_report", lambda: report(arguments))


if __name__ == "__main__":
    sys.exit(main())
