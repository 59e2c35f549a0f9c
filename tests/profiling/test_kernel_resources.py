"""Reading the disassembler's output, and occupancy against NVIDIA's calculator."""

from types import SimpleNamespace

import pytest

from profiling import kernel_resources as resources
from profiling.kernel_resources import GPUS, Resources, measure, resident_warps

SASS = """
 Function kernel:
  REG:40 STACK:16 SHARED:0 LOCAL:0 CONSTANT[0]:568 TEXTURE:0 SURFACE:0 SAMPLER:0
        /*0000*/                   LDC R1, c[0x0][0x28] ;                /* 0x00000a00ff017b82 */
                                                                         /* 0x000e220000000800 */
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR6][R10.64] ;     /* 0x0000000606040981 */
        /*0020*/             @!UP1 UMOV UR4, 0x1 ;                       /* 0x0000000606040981 */
        /*0030*/                   LDG.E.EF.64 R8, desc[UR6][R10.64] ;   /* 0x0000000606040981 */
        /*0040*/                   STL.64 [R1+0x8], R4 ;                 /* 0x0000000606040981 */
        /*0050*/                   STL [R1], R4 ;                        /* 0x0000000606040981 */
        /*0070*/                   HMMA.16816.F32.BF16 R4, R4, R6, R8 ;  /* 0x0000000606040981 */
        /*0080*/                   STG.E.128 desc[UR6][R10.64], R4 ;     /* 0x0000000606040981 */
        /*0090*/               @P1 BRA 0x10 ;                            /* 0x0000000606040981 */
        /*00a0*/                   EXIT ;                                /* 0x000000000000794d */
        /*00b0*/                   BRA 0xb0;                             /* 0xfffffffc00fc7947 */
        /*00c0*/                   NOP;                                  /* 0x0000000000007918 */
"""


def measured(monkeypatch: pytest.MonkeyPatch, **output: object) -> Resources:
    monkeypatch.setattr(resources.subprocess, "run", lambda *args, **kwargs: SimpleNamespace(**output))
    return measure(SimpleNamespace(asm={"cubin": b""}, metadata=SimpleNamespace(shared=512)), "cuobjdump")


def test_measure_reads_the_disassembler_and_does_not_count_padding(monkeypatch):
    found = measured(monkeypatch, stdout=SASS, stderr="", returncode=0)
    assert found == Resources(40, 512, 16, spilled=12, instructions=10, wide_loads=1, wide_stores=1, tensor_core=1)


def test_an_output_without_a_kernel_is_refused(monkeypatch):
    with pytest.raises(RuntimeError, match=r"255: cuobjdump fatal"):
        measured(monkeypatch, stdout="", stderr="cuobjdump fatal", returncode=255)


@pytest.mark.parametrize(
    ("registers", "shared", "num_warps", "target", "warps"),
    [
        (32, 0, 4, 80, 64),  # nothing limits
        (33, 0, 4, 80, 48),  # registers: 40 a thread
        (32, 0, 1, 86, 16),  # programs: 16 an SM
        (32, 48 * 1024, 4, 86, 8),  # shared memory: 49 KiB of 100 each
        (168, 0, 8, 80, 8),  # 12 warps fit, and a program has 8
    ],
)
def test_resident_warps(registers, shared, num_warps, target, warps):
    taken = Resources(registers, shared, 0, 0, 1, 0, 0, 0)
    assert resident_warps(taken, num_warps, GPUS[target]) == warps
