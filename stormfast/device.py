"""Devices: found by name, what they can do, how data gets there, and the memory of a CPU run."""

import ctypes
import platform
import re
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stormfast.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def resolve_device(name: str) -> torch.device:
    """The device of a name: auto (CUDA where there is one), cpu, cuda or cuda:N.

    Raises: UserError for another name, for CUDA where there is none, and for a CUDA index that is not there.
    """
    if not isinstance(name, str) or not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    if not count:
        build = (
            f"torch {torch.__version__} finds no CUDA device"
            if torch.version.cuda
            else f"torch {torch.__version__} is a CPU build"
        )
        raise UserError(f"device {name} was asked for, but {build}; use --device cpu, or see `stormfast doctor`")
    index = int(name.partition(":")[2] or torch.cuda.current_device())
    if index >= count:
        raise UserError(
            f"device {name} was asked for, but there are {count} CUDA devices, the last being cuda:{count - 1}"
        )
    return torch.device("cuda", index)


def native_bfloat16(device: torch.device) -> tuple[bool, str]:
    """Whether the device multiplies bfloat16 matrices in hardware, and how that is known."""
    if device.type == "cuda":
        if torch.version.hip:
            return True, "ROCm devices compute bfloat16"
        major, minor = torch.cuda.get_device_capability(device)
        return major >= 8, f"compute capability {major}.{minor}; bfloat16 starts at 8.0"
    # The probes are private names of torch, so an absent one means "no". A float32 run is never wrong, only slower.
    for probe, feature in (("_is_amx_tile_supported", "AMX"), ("_is_avx512_bf16_supported", "AVX512_BF16")):
        supported = getattr(torch.cpu, probe, None)
        if supported is not None and supported():
            return True, f"the CPU has {feature}"
    return False, "the CPU has neither AMX nor AVX512_BF16"


def device_name(device: torch.device, threads: int | None = None) -> str:
    """The GPU's name; of a CPU its model and how many cores torch uses, as "AMD EPYC 2 cores".

    Args: threads: as many cores; by default those of this process.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")  # Linux only
    model = (
        re.search(r"^model name\s*:\s*(.+)$", info.read_text(errors="replace"), re.MULTILINE) if info.exists() else None
    )
    return f"{model[1].strip() if model else platform.machine()} {threads or torch.get_num_threads()} cores"


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed. On a CPU torch raises a plain RuntimeError for it."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def to_device_packed(arrays: list[np.ndarray], device: torch.device) -> list[Tensor]:
    """Copies arrays to the device in one transfer; on CUDA from pinned memory, so without waiting for the device.

    Args:
        arrays: any dtypes and shapes, each itemsize dividing all earlier ones' bytes (widest first does).
    """
    buffer = torch.empty(sum(array.nbytes for array in arrays), dtype=torch.uint8, pin_memory=device.type == "cuda")
    host, offset = buffer.numpy(), 0
    for array in arrays:
        host[offset : offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        offset += array.nbytes
    packed, offset, tensors = buffer.to(device, non_blocking=True), 0, []
    for array in arrays:
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        tensors.append(packed[offset : offset + array.nbytes].view(dtype).view(array.shape))
        offset += array.nbytes
    return tensors


def keep_freed_memory() -> bool:
    """Has glibc keep the memory that this process frees, from now on. Returns whether there is a glibc.

    glibc gives each large tensor a mapping of its own and returns it to the kernel when it is freed, so that every step
    faults its gigabytes in anew, page by page. Kept, they are there for the next step. Preset storm, two cores of an
    AMD EPYC (a virtual machine that hands freed pages back to its host), `stormfast profile --steps 3`: a step of the
    loop took 17.9 s, and takes 2.8; the phases timed one by one 3.5 and 2.8; most memory held 2.3 GiB and 3.7.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))  # no mappings of their own; never trim
