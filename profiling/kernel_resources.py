"""What a compiled kernel needs of a GPU: registers, shared memory, spills, instructions, occupancy."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """Limits of a compute capability.

    Source: CUDA C++ Programming Guide, technical specifications per compute capability.
    """

    name: str
    shared_per_program: int  # KiB, the most one thread block may ask for
    shared_per_sm: int  # KiB
    warps_per_sm: int
    programs_per_sm: int


GPUS = {
    80: Gpu("A100", 163, 164, 64, 32),
    86: Gpu("RTX 3090", 99, 100, 48, 16),
    89: Gpu("RTX 4090", 99, 100, 48, 24),
    90: Gpu("H100, H200", 227, 228, 64, 32),
    120: Gpu("RTX 5090", 99, 100, 48, 24),
}
REGISTERS_PER_PARTITION = 65_536 // 4  # an SM of each of these has four partitions
REGISTER_STEP = 8  # registers of a thread are given out in eights
RESERVED_SHARED = 1  # KiB that the driver keeps for each program


@dataclass(frozen=True)
class Resources:
    """Of one kernel on one target. Instruction counts are static: of the code, not of what runs."""

    registers: int  # of a thread
    shared: int  # bytes of a program
    stack: int  # bytes of a thread in local memory, where spilled registers go
    spilled: int  # bytes stored there by a pass through the code
    instructions: int
    wide_loads: int  # of 16 bytes or more a thread
    wide_stores: int
    tensor_core: int  # matrix instructions


def resident_warps(resources: Resources, num_warps: int, gpu: Gpu) -> int:
    """Warps that an SM holds at once, if the grid has enough programs: occupancy, times gpu.warps_per_sm."""
    per_warp = -(-resources.registers // REGISTER_STEP) * REGISTER_STEP * 32
    by_registers = REGISTERS_PER_PARTITION // per_warp * 4 // num_warps
    by_shared = gpu.shared_per_sm * 1024 // (resources.shared + RESERVED_SHARED * 1024)
    return min(by_registers, by_shared, gpu.warps_per_sm // num_warps, gpu.programs_per_sm) * num_warps


def measure(compiled: Any, cuobjdump: str) -> Resources:
    """Resources of what Launch.compile_for returned. Raises: RuntimeError when cuobjdump does not disassemble it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        done = subprocess.run([cuobjdump, "-res-usage", "-sass", file.name], capture_output=True, text=True)
    usage = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    instructions = parse_sass(done.stdout)
    if usage is None or not instructions:
        raise RuntimeError(
            f"{cuobjdump} should disassemble a kernel, but it returned {done.returncode}: {done.stderr.strip()[:300]}"
        )
    return Resources(
        registers=int(usage[1]),
        shared=compiled.metadata.shared,
        stack=int(usage[2]),
        spilled=sum(width(name) for name in instructions if name.startswith("STL")),
        instructions=len(instructions),
        wide_loads=sum(name.startswith(("LDG.", "LDGSTS.")) and width(name) >= 16 for name in instructions),
        wide_stores=sum(name.startswith("STG.") and width(name) >= 16 for name in instructions),
        tensor_core=sum(name.split(".")[0].endswith("MMA") for name in instructions),
    )


INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)([^;]*);", re.MULTILINE)


def parse_sass(text: str) -> list[str]:
    """Names of the instructions with their modifiers, LDG.E.128 for instance.

    Left out is what never runs, and comes and goes with alignment: NOPs, and the branch to itself that guards the end.
    """
    found = INSTRUCTION.findall(text)
    return [
        name
        for address, name, rest in found
        if name != "NOP" and not (name == "BRA" and rest.strip() == f"0x{address.lstrip('0')}")
    ]


def width(name: str) -> int:
    """Bytes a thread moves by a load or store of that name."""
    modifiers = name.split(".")[1:]
    sizes = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((size for modifier, size in sizes.items() if modifier in modifiers), 4)
