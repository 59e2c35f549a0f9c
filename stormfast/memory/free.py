"""Memory that can still be taken: of a CUDA device, or of this machine and what it allows this process."""

import re
from pathlib import Path

import torch


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device; None where that cannot be known."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    limits = (_system_memory(Path("/proc/meminfo")), _cgroup_memory(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))
    return min((limit for limit in limits if limit is not None), default=None)


def _system_memory(meminfo: Path) -> int | None:
    """MemAvailable, which Linux gives in KiB: free, or in caches that it would drop."""
    if not meminfo.is_file():
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _cgroup_memory(membership: Path, root: Path) -> int | None:
    """What is left of the tightest limit on this process's control group (version 2) or one above it."""
    if not membership.is_file():
        return None
    group = re.search(r"^0::/(.*)$", membership.read_text(), re.MULTILINE)
    place = root / group[1] if group else root
    left = [_left(folder) for folder in (place, *place.parents) if folder.is_relative_to(root)]
    return min((bytes_left for bytes_left in left if bytes_left is not None), default=None)


def _left(group: Path) -> int | None:
    """The limit of one control group less what it uses; cached files that it would drop do not count as used."""
    limit, used, stat = (group / f"memory.{name}" for name in ("max", "current", "stat"))
    if not (limit.is_file() and used.is_file() and stat.is_file()) or limit.read_text().strip() == "max":
        return None
    cached = re.search(r"^inactive_file (\d+)$", stat.read_text(), re.MULTILINE)
    return max(0, int(limit.read_text()) - int(used.read_text()) + (int(cached[1]) if cached else 0))
