"""Which machine is this? Prints what the results say of it, as one JSON object, and ends: the suite itself holds no GPU memory.

python bench/suite/machine.py cuda
"""

import json
import platform
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # of this checkout, whatever is installed


def facts(name: str) -> dict[str, Any]:
    """What bench/devices.py tells of a device, the folder of its results, and how much of its memory was free. Raises: UserError."""
    import torch

    from bench.devices import describe, device_name, slug
    from stormfast.device import resolve_device

    device = resolve_device(name)
    memory = {}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)  # this process has a context of some 0.5 GB there
        memory = {"memory_free": free, "memory_total": total}
    return {"slug": slug(device_name(device)), **describe(device), "python": platform.python_version(), **memory}


def main() -> int:
    from stormfast.errors import UserError

    try:
        if len(sys.argv) != 2:
            raise UserError(
                f"expected one device: python bench/suite/machine.py cpu|cuda|cuda:N, got {len(sys.argv) - 1} arguments"
            )
        found = facts(sys.argv[1])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except ImportError as error:
        print(
            f"{sys.executable} must have torch and numpy, but: {error}; name another interpreter: PYTHON=...",
            file=sys.stderr,
        )
        return 2
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
