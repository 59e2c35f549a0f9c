"""Say what is installed, what a run will use, and why. Status 1 when something required is missing.

A line that starts with "problem:" is something to mend; the rest is what was found.
"""

import importlib
import platform
import sys
from dataclasses import dataclass
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
    "av": "av",
    "pillow": "PIL",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "tensorboard": "tensorboard",
    "rich": "rich",
    "tyro": "tyro",
    "typing_extensions": "typing_extensions",
    "nvtx": "nvtx",
}


@dataclass(frozen=True)
class Config:
    """It takes no settings."""


def run(config: Config) -> int:
    """Prints the report. Returns: 0, or 1 when something required is missing or does not import."""
    missing = _installed()
    for line in missing:
        print(f"problem: {line}")
    if missing:
        return 1
    for topic in (_devices, _triton, _envpool, _plans):
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
        trouble = why_not_importable(module)
        if trouble:
            missing.append(f"{distribution} is required, but {trouble}; `pip install {distribution}`")
        else:
            print(f"{distribution} {_version(distribution, module)}")
    trouble = why_not_importable("stormfast_kernels")
    if trouble:
        missing.append(
            f"stormfast_kernels is required, but {trouble}; install stormfast, as `make train` or `pip install -e "
            ".` does"
        )
    return missing


def why_not_importable(module: str) -> str:
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


def _devices() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"CUDA devices: none; the CPU computes with {torch.get_num_threads()} threads"
    lines = [f"CUDA devices: {torch.cuda.device_count()} (--device cuda:N takes one)"]
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        size = f"{found.total_memory / 2**30:.0f} GiB"
        lines.append(f"  cuda:{index} {found.name}, {size}, capability {found.major}.{found.minor}")
    return "\n".join(lines)


def _triton() -> str:
    import torch

    trouble = why_not_importable("triton")
    found = f"{trouble}" if trouble else f"version {_version('triton', 'triton')}"
    if torch.cuda.is_available():
        return f"problem: Triton is not usable on this CUDA device: {found}" if trouble else f"Triton: usable, {found}"
    return f"Triton: not used, because there is no CUDA device ({found})"


def _envpool() -> str:
    trouble = why_not_importable("envpool")
    if trouble:
        until = "several environments step on the slower ale backend until `pip install 'envpool>=1.2.5'`"
        return f"problem: {trouble}; {until}"
    return f"envpool: usable, version {_version('envpool', 'envpool')}"


def _plans() -> str:
    """What `stormfast train` would use, with as many environments as its preset has, and with one or several."""
    from dataclasses import replace

    from stormfast.plan import choose_preset, plan
    from stormfast.presets import preset_config

    lines = ["plan of `stormfast train --game Pong`:"]
    try:
        preset, _ = choose_preset("auto", "auto")
        config = replace(preset_config(preset, "standard"), preset="auto")
        other = 4 if config.num_envs == 1 else 1
        made, with_other = plan(config), plan(replace(config, num_envs=other))
    except UserError as error:
        return f"problem: {error}"
    lines += [f"  {name}: {value}, because {made.why[name]}" for name, value in made.rows().items()]
    reason = f"{with_other.env_backend}, because {with_other.why['env_backend']}"
    return "\n".join([*lines, f"  with --num-envs {other}, env_backend: {reason}"])
