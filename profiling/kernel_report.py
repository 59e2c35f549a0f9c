"""What does each Triton kernel compile to, on GPUs that need not be here, at the shapes of the presets?

    python profiling/kernel_report.py                                   # presets storm and fast, all targets
    python profiling/kernel_report.py --presets storm --targets 90      # one preset, one GPU
    python profiling/kernel_report.py --check                           # exit 1 and one line for each fault: see below

No GPU is needed: the compiler and the disassembler come with triton. The first run takes a minute, later ones read
Triton's cache. Exit codes: 0 done, 1 a fault was found (--check), 2 the report cannot be made.

How to read a row (one launch that training makes, on one target):
    regs          registers of a thread. 64 and more begin to cost occupancy; 255 is the limit.
    smem          bytes of shared memory of a program.
    stack, spill  bytes of a thread in local memory, and how many of them its code stores. Both must be 0: spilled
                  registers go to memory and back.
    SASS          machine instructions of the code, without padding. These kernels are straight lines but for the loop
                  over a long cache, so this is nearly what each warp executes: fewer is faster where memory is not the limit.
    ld128, st128  loads and stores of 16 bytes or more a thread. Where a kernel should have some and has 0, it uses a
                  part of the bandwidth only.
    mma           tensor-core instructions; none is expected, since no kernel multiplies matrices.
    occ           warps that an SM holds at once / that it could: how well memory's latency hides. 50 % is plenty.
    programs      thread blocks of the launch; fewer than the GPU has SMs (82 to 170) leave it part idle.
    MB            moved by the launch, every tensor once; over the copy bandwidth of the GPU, the least time it can take.
    B/inst        bytes moved for each instruction that a warp issues. Bandwidth over issue rate is about 1 on RTX 4090 and
                  5090, 2 on RTX 3090 and A100, 5 on H200: well above that memory is the limit, near or below instructions are.

A fault is what must never be, whatever the compiler: spills, more shared memory than the GPU gives, no wide access where there
should be some, tensor cores. Instructions, registers and memory are held exactly by bench/counts.py.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # the report is about this checkout, whatever is installed

from kernel_cases import PRESETS, Case, cases  # noqa: E402
from kernel_resources import GPUS, Resources, measure, resident_warps  # noqa: E402

from bench.script import Parser, check_writable, status_of, written  # noqa: E402
from stormfast.errors import UserError  # noqa: E402
from stormfast_kernels import launch  # noqa: E402

WIDE = {  # kernel -> (wide loads, wide stores): whether there must be some
    "unimix_sample_kernel": (True, True),
    "unimix_gradient_kernel": (True, True),
    "attention_step_kernel": (True, False),  # an output row is one head: fewer than 16 bytes a thread
}


@dataclass(frozen=True)
class Row:
    """A case on a target."""

    case: Case
    target: int
    found: Resources

    @property
    def name(self) -> str:
        return f"{self.case.name} on sm_{self.target}"

    @property
    def bytes_per_instruction(self) -> float | None:
        if self.case.loops:  # the code does not tell how many instructions run
            return None
        return round(
            self.case.bytes_moved / (self.case.programs * self.case.launch.num_warps * self.found.instructions), 3
        )

    @property
    def warps(self) -> int:
        return resident_warps(self.found, self.case.launch.num_warps, GPUS[self.target])

    def record(self) -> dict[str, Any]:
        case = self.case
        about = {
            "case": case.name,
            "preset": case.preset,
            "kernel": case.kernel,
            "dtype": case.dtype,
            "shape": case.shape,
            "target": self.target,
        }
        size = {"programs": case.programs, "num_warps": case.launch.num_warps, "bytes_moved": case.bytes_moved}
        occupancy = {"resident_warps": self.warps, "warps_per_sm": GPUS[self.target].warps_per_sm}
        return about | asdict(self.found) | size | occupancy | {"bytes_per_instruction": self.bytes_per_instruction}


# --- measuring ---------------------------------------------------------------------------------------------------


def find_cuobjdump() -> str:
    """Path of the disassembler. Raises: UserError when the report cannot be made here."""
    if launch.IMPORT_TROUBLE is not None:
        raise UserError(f"the report needs triton, but {launch.IMPORT_TROUBLE}; pip install triton==3.7.1")
    if launch.INTERPRETED:
        raise UserError(
            "kernels are compiled here, but TRITON_INTERPRET asks for the interpreter; unset TRITON_INTERPRET"
        )
    try:
        return launch.triton.knobs.nvidia.cuobjdump.path
    except (
        RuntimeError,
        OSError,
        ValueError,
    ) as error:  # none is found; the one named is not executable, or no cuobjdump
        raise UserError(
            f"the report needs cuobjdump, which comes with triton's wheels, but {error}; set TRITON_CUOBJDUMP_PATH"
        ) from None


def check_cache() -> None:
    """Raises UserError where Triton cannot keep what it compiles."""
    folder = launch.triton.knobs.cache.dir
    if not folder:
        raise UserError("triton needs a cache directory, but TRITON_CACHE_DIR is empty; unset it")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"triton needs a cache directory that can be written, but '{folder}': {error.strerror}; set TRITON_CACHE_DIR"
        ) from None


def survey(wanted: Sequence[Case], targets: Sequence[int]) -> list[Row]:
    """Every case on every target; equal specialisations are compiled once, and disassembled while others compile."""
    cuobjdump, known, keys = find_cuobjdump(), dict[str, Future[Resources]](), []
    check_cache()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for case, target in product(wanted, targets):
            keys.append(f"{specialisation(case)} {target}")
            if keys[-1] not in known:
                known[keys[-1]] = pool.submit(measure, case.launch.compile_for(target), cuobjdump)
    try:
        return [
            Row(case, target, known[key].result())
            for (case, target), key in zip(product(wanted, targets), keys, strict=True)
        ]
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"the disassembler did not work: {' '.join(str(error).split())}; unset TRITON_CUOBJDUMP_PATH, or set it to another"
        ) from None


def specialisation(case: Case) -> str:
    """What makes Triton compile anew."""
    return repr((case.kernel, case.launch.signature(), case.launch.num_warps))


# --- checking ----------------------------------------------------------------------------------------------------


def breaches(rows: Sequence[Row]) -> list[str]:
    """One line for each fault."""
    return [f"{row.name}: {line}" for row in rows for line in faults(row)]


def faults(row: Row) -> list[str]:
    """What is wrong with a row."""
    found, most = row.found, GPUS[row.target].shared_per_program * 1024
    loads, stores = WIDE[row.case.kernel]
    lines = {
        f"spills: {found.stack} bytes of stack, {found.spilled} bytes stored there": found.stack or found.spilled,
        f"{found.shared} bytes of shared memory, and the GPU gives {most}": found.shared > most,
        "no load of 16 bytes": loads and not found.wide_loads,
        "no store of 16 bytes": stores and not found.wide_stores,
        f"{found.tensor_core} tensor-core instructions in a kernel without a matrix product": found.tensor_core,
    }
    return [line for line, wrong in lines.items() if wrong]


# --- printing ----------------------------------------------------------------------------------------------------

COLUMNS = (
    "case",
    "shape",
    "sm",
    "regs",
    "smem",
    "stack",
    "spill",
    "SASS",
    "ld128",
    "st128",
    "mma",
    "occ",
    "programs",
    "MB",
    "B/inst",
)


def cells(row: Row) -> tuple[str, ...]:
    case, found, gpu = row.case, row.found, GPUS[row.target]
    counts = (
        found.registers,
        found.shared,
        found.stack,
        found.spilled,
        found.instructions,
        found.wide_loads,
        found.wide_stores,
        found.tensor_core,
    )
    numbers = map(str, (row.target, *counts))
    size = (
        str(case.programs),
        f"{case.bytes_moved / 1e6:.3g}",
        "-" if row.case.loops else f"{row.bytes_per_instruction:.1f}",
    )
    return case.name, "x".join(map(str, case.shape)), *numbers, f"{row.warps}/{gpu.warps_per_sm}", *size


def text_table(rows: Sequence[Row]) -> str:
    lines = [COLUMNS, *(cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    justified = [
        [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in justified)


def markdown_table(rows: Sequence[Row]) -> str:
    """One line a case: what does not change with the target, then registers, instructions and occupancy on each."""
    targets = list(dict.fromkeys(row.target for row in rows))
    head = ["case", "shape", "programs", "MB", *(f"sm_{t}" for t in targets)]
    lines = [head, ["---"] * len(head)]
    for case in dict.fromkeys(row.case.name for row in rows):
        of_case = [row for row in rows if row.case.name == case]
        first = dict(zip(COLUMNS, cells(of_case[0]), strict=True))
        each = [
            f"{r.found.registers} · {r.found.instructions} · {r.warps}/{GPUS[r.target].warps_per_sm}" for r in of_case
        ]
        lines.append([f"`{first['case']}`", first["shape"], first["programs"], first["MB"], *each])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary(rows: Sequence[Row]) -> str:
    distinct = len({specialisation(row.case) for row in rows})
    spilling = sum(bool(row.found.stack or row.found.spilled) for row in rows)
    return f"triton {launch.triton.__version__}: {len(rows)} rows, {distinct} specialisations; {spilling} rows spill"


# --- command line ------------------------------------------------------------------------------------------------


def listed(known: Sequence[Any], kind: type) -> Any:
    """Reads a comma-separated list of known values."""

    def read(text: str) -> list[Any]:
        chosen = [part.strip() for part in text.split(",")]
        if not set(chosen) <= set(map(str, known)):
            raise argparse.ArgumentTypeError(f"must be some of {','.join(map(str, known))}, got '{text}'")
        return [kind(part) for part in dict.fromkeys(chosen)]

    return read


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--presets", type=listed(PRESETS, str), help=f"some of {','.join(PRESETS)}; default storm,fast")
    parser.add_argument(
        "--targets",
        type=listed(list(GPUS), int),
        help=f"compute capabilities, some of {','.join(map(str, GPUS))}; default all",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to a file as well")
    parser.add_argument(
        "--markdown", action="store_true", help="print a table for kernels/README.md: registers · instructions · warps"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 where a kernel has a fault, as spills")
    return parser.parse_args(arguments)


def report(options: argparse.Namespace) -> int:
    """Makes the report. Returns: exit code 0 or 1."""
    if options.json:
        check_writable("--json", options.json)
    rows = survey(
        [case for preset in options.presets or ["storm", "fast"] for case in cases(preset)],
        options.targets or list(GPUS),
    )
    found = breaches(rows)
    if options.json:
        content = {"triton": launch.triton.__version__, "rows": [row.record() for row in rows], "breaches": found}
        written(options.json, json.dumps(content, indent=1).encode() + b"\n")
    print(markdown_table(rows) if options.markdown else f"{text_table(rows)}\n{summary(rows)}")
    if not options.check:
        return 0
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


def main(arguments: Sequence[str] | None = None) -> int:
    return status_of("kernel_report", lambda: report(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
