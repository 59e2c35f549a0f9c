"""Which device and which precision a run computes with, and why."""

import re

import torch

from stormfast.config import Preset
from stormfast.errors import UserError


def resolve_device(name: str) -> torch.device:
    """The device of a name: auto (CUDA where there is one), cpu, cuda or cuda:N.

    Raises: UserError for another name, for CUDA where there is none, and for a CUDA index that is not there.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, got '{name}'")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    if not count:
        build = f"torch {torch.__version__} finds no CUDA device" if torch.version.cuda else f"torch {torch.__version__} is a CPU build"
        raise UserError(f"device {name} was asked for, but {build}; use --device cpu, or see `stormfast doctor`")
    index = int(name.partition(":")[2] or torch.cuda.current_device())
    if index >= count:
        raise UserError(f"device {name} was asked for, but there are {count} CUDA devices, the last being cuda:{count - 1}")
    return torch.device("cuda", index)


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast: float32 or bfloat16 as named; auto takes bfloat16 where the device computes it natively."""
    if name == "auto":
        return torch.bfloat16 if native_bfloat16(device)[0] else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


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


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed. On a CPU torch raises a plain RuntimeError for it."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def auto_preset(device_name: str) -> tuple[Preset, str]:
    """The preset that `--preset auto` takes for a device name, and why."""
    device = resolve_device(device_name)
    if device.type == "cuda":
        return "fast", f"{device} is {torch.cuda.get_device_name(device)}"
    return "cpu", "--device cpu was asked for" if device_name == "cpu" else "there is no CUDA device"
