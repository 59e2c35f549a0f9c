"""What a result was measured on: the device's name, its driver and clocks, versions, commit."""

import re
import shutil
import subprocess
from typing import Any

import torch

from stormfast.device import device_name
from stormfast.runs.provenance import commit

CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem")  # MHz


def slug(name: str) -> str:
    """A device's name as a folder's: lower case, words joined by dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def describe(device: torch.device) -> dict[str, Any]:
    """Everything a reader needs to know about the machine, for the JSON."""
    head, dirty = commit()
    return {
        "device": device_name(device),
        "device_type": device.type,
        **(_nvidia_smi(device) if device.type == "cuda" else {}),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _triton_version(),
        "threads": torch.get_num_threads(),
        "commit": head,
        "dirty": dirty,
    }


def _triton_version() -> str | None:
    from stormfast_kernels import launch  # imports triton, which most callers of this module do not need

    return launch.triton.__version__ if launch.triton is not None else None


def _nvidia_smi(device: torch.device) -> dict[str, Any]:
    """Driver and clocks (MHz) where nvidia-smi is there and knows the device; else nothing."""
    if not shutil.which("nvidia-smi"):
        return {}
    uuid = str(torch.cuda.get_device_properties(device).uuid)  # its index may differ from torch's
    query = f"--query-gpu={','.join(('driver_version', *CLOCKS))}"
    command = ["nvidia-smi", f"--id=GPU-{uuid.removeprefix('GPU-')}", query, "--format=csv,noheader,nounits"]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    fields = output.strip().split(", ")
    return dict(zip(("driver", *CLOCKS), fields, strict=True)) if len(fields) == 1 + len(CLOCKS) else {}
