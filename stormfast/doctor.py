"""stormfast doctor: what is installed, what a run will use, and why.

A line that starts with "problem:" is something to mend; the rest is what was found.
"""

import importlib
import platform
import sys
from importlib import metadata

from stormfast import __version__
from stormfast.errors import UserError

PYTHON = ((3, 11), (3, 13))  # the oldest and newest that requires-python in pyproject.toml lets in

# distribution -> module, of what no run goes without
REQUIRED = {
    "torch": "torch",
    "numpy": "numpy",
    "gymnasium": "gymnasium",
    "ale-py": "ale_py",
    "opencv-python-headless": "cv2",
    "safetensors": "safetensors",
    "tensorboard": "tensorboard",
    "rich": "rich",
    "tyro": "tyro",
    "typing_extensions": "typing_extensions",
    "nvtx": "nvtx",
}


def doctor() -> int:
    """Prints the report. Returns: 0, or 1 when something required is missing or does not import."""
    missing = _installed()
    for line in missing:
        print(f"problem: {line}")
    if missing:
        return 1
    for topic in (_device, _precision, _triton, _kernels, _envpool, _environments, _preset):
        print(topic())
    return 0


def _installed() -> list[str]:
    """Prints the versions. Returns: one line for each required thing that is missing."""
    version = sys.version_info[:2]
    print(f"stormfast {__version__}, Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    missing = []
    if not PYTHON[0] <= version <= PYTHON[1]:
        missing.append(f"Python must be 3.11 to 3.13, and is {platform.python_version()}")
    for distribution, module in REQUIRED.items():
        trouble = _import_trouble(module)
        if trouble:
            missing.append(f"{distribution} is required, but {trouble}; `pip install {distribution}`")
        else:
            print(f"{distribution} {_version(distribution, module)}")
    trouble = _import_trouble("stormfast_kernels")
    if trouble:
        missing.append(f"stormfast_kernels is required, but {trouble}; install stormfast, as `make train` or `pip install -e .` does")
    return missing


def _import_trouble(module: str) -> str:
    """Why a module cannot be imported, or nothing. It is really imported: a package can be there and broken."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken package may raise anything at import, and saying what is the point here
        return f"import {module} fails: {type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def _version(distribution: str, module: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # the same module from another distribution, such as opencv-python
        return str(getattr(sys.modules[module], "__version__", "of unknown version"))


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        why = "torch is a CPU build" if torch.version.cuda is None and torch.version.hip is None else "torch finds no CUDA device"
        return f"device: cpu, {torch.get_num_threads()} threads, because {why}"
    lines = [f"device: cuda:{torch.cuda.current_device()}, the current one of {torch.cuda.device_count()} (--device cuda:N takes another)"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        lines.append(f"  cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB, capability {properties.major}.{properties.minor}")
    return "\n".join(lines)


def _precision() -> str:
    from stormfast.device import native_bfloat16, resolve_device, resolve_precision

    device = resolve_device("auto")
    dtype = str(resolve_precision("auto", device)).removeprefix("torch.")
    return f"precision: {dtype} on {device}, because {native_bfloat16(device)[1]}"


def _triton() -> str:
    import torch

    trouble = _import_trouble("triton")
    found = f"{trouble}" if trouble else f"version {_version('triton', 'triton')}"
    if torch.cuda.is_available():
        return f"problem: Triton is not usable on this CUDA device: {found}" if trouble else f"Triton: usable, {found}"
    return f"Triton: not used, because there is no CUDA device ({found})"


def _kernels() -> str:
    from stormfast.device import resolve_device
    from stormfast_kernels import dispatch

    try:
        return dispatch.report(resolve_device("auto"))
    except ValueError as error:  # STORMFAST_KERNELS asks for what is not here
        return f"problem: {error}"


def _envpool() -> str:
    trouble = _import_trouble("envpool")
    if trouble:
        return f"problem: {trouble}; several environments step on the slower ale backend until `pip install 'envpool>=1.2.5'`"
    return f"envpool: usable, version {_version('envpool', 'envpool')}"


def _environments() -> str:
    from stormfast.config import EnvConfig
    from stormfast.envs import resolve_backend

    lines = []
    for num_envs in (1, 4):
        try:
            name, reason = resolve_backend("Pong", EnvConfig(), num_envs=num_envs, backend="auto")
            lines.append(f"environments: {name} for --num-envs {num_envs}: {reason}")
        except UserError as error:
            lines.append(f"problem: {error}")
    return "\n".join(lines)


def _preset() -> str:
    from stormfast.device import auto_preset

    preset, reason = auto_preset("auto")
    return f"preset: --preset auto takes {preset}, because {reason}"
