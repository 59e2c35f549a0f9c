"""What a benchmark ran on: the device's name, its driver and clocks, versions, commit; and how fast it copies memory.

python bench/devices.py cuda        # the folder's name under bench/results, and the commit
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # as a script, of this checkout

from stormfast.errors import UserError  # noqa: E402

try:
    from stormfast.runs.provenance import commit
except ImportError:  # an older commit, timed by these benches: compare.py says which

    def commit() -> tuple[str, bool | None]:
        return os.environ.get("STORMFAST_COMMIT", "unknown"), None


COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 28}  # of one buffer: beyond every cache
CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem")  # MHz


def device_name(device: torch.device) -> str:
    """The GPU, or the CPU with the number of cores that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return f"{model[1] if model else os.uname().machine} {torch.get_num_threads()} cores"


def slug(name: str) -> str:
    """A device's name as a folder's: lower case, words joined by dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _output(*command: str) -> str:
    """Standard output of a command, empty where it fails."""
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()


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
    from stormfast_kernels import launch

    return launch.triton.__version__ if launch.triton is not None else None


def _nvidia_smi(device: torch.device) -> dict[str, Any]:
    """Driver and clocks (MHz) where nvidia-smi is there and knows the device; else nothing."""
    if not shutil.which("nvidia-smi"):
        return {}
    uuid = str(torch.cuda.get_device_properties(device).uuid)  # its index may differ from torch's
    query = f"--query-gpu={','.join(('driver_version', *CLOCKS))}"
    fields = _output(
        "nvidia-smi", f"--id=GPU-{uuid.removeprefix('GPU-')}", query, "--format=csv,noheader,nounits"
    ).split(", ")
    return dict(zip(("driver", *CLOCKS), fields, strict=True)) if len(fields) == 1 + len(CLOCKS) else {}


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy on the device, the bytes read and the bytes written both counted; the median of some."""
    size = COPY_BYTES[device.type]
    if device.type == "cuda":
        size = min(size, torch.cuda.mem_get_info(device)[0] // 4)
    source = torch.rand(size // 4, device=device)  # not zeros, which memory and caches may treat better
    target = torch.empty_like(source)
    copies, rounds, warmup = (10, 20, 3) if device.type == "cuda" else (1, 5, 2)
    seconds = [_seconds_of_copies(source, target, copies) for _ in range(warmup + rounds)]
    return 2 * source.nbytes * copies / statistics.median(seconds[warmup:])


def _seconds_of_copies(source: torch.Tensor, target: torch.Tensor, copies: int) -> float:
    if source.is_cuda:
        torch.cuda.synchronize(source.device)
    started = time.perf_counter()
    for _ in range(copies):
        target.copy_(source)
    if source.is_cuda:
        torch.cuda.synchronize(
            source.device
        )  # some 10 us beside the 5 ms that ten copies of 1 GiB take on the fastest card
    return time.perf_counter() - started


def main() -> int:
    from stormfast.device import resolve_device

    try:
        if len(sys.argv) != 2:
            raise UserError(
                f"expected one device: python bench/devices.py cpu|cuda|cuda:N, got {len(sys.argv) - 1} arguments"
            )
        device = resolve_device(sys.argv[1])
        head, dirty = commit()
    except UserError as error:
        print(f"devices: {error}", file=sys.stderr)
        return 2
    print(slug(device_name(device)), head + ("-dirty" if dirty else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
