"""Which implementation of a kernel runs: STORMFAST_KERNELS=reference|triton|auto (default auto) decides.

auto takes Triton on a CUDA device where it works, which is tried once a device: each kernel runs there on a small case
and is compared with its reference. An implementation joins by registering itself under its function's name and its
backend's; the public functions look theirs up here at every call.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from stormfast_kernels import launch

VARIABLE = "STORMFAST_KERNELS"
CHOICES = ("reference", "triton", "auto")
LEAST_CAPABILITY = (8, 0)  # bfloat16 and the instructions the kernels are compiled for; nothing older is tested

F = TypeVar("F", bound=Callable[..., Any])

_implementations: dict[tuple[str, str], Callable[..., Any]] = {}
_trials: list[Callable[[torch.device], None]] = []
_trouble: dict[str, str | None] = {}  # device -> why Triton does not work there


def register(function: str, backend: str) -> Callable[[F], F]:
    """Decorator: the decorated implementation is what `function` runs on `backend`."""

    def add(implementation: F) -> F:
        _implementations[function, backend] = implementation
        return implementation

    return add


def register_trial(trial: Callable[[torch.device], None]) -> Callable[[torch.device], None]:
    """Decorator: a small case on a device that raises where the kernel fails there or differs from its reference."""
    _trials.append(trial)
    return trial


def requested() -> str:
    """The choice in the environment. Raises: ValueError when it is none of CHOICES."""
    choice = os.environ.get(VARIABLE) or "auto"
    if choice not in CHOICES:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(CHOICES)}, got '{choice}'")
    return choice


def backend(device: torch.device | str) -> str:
    """The backend that runs on a device: "reference" or "triton".

    Raises: ValueError when the environment asks for one that does not work there.
    """
    choice = requested()
    if choice == "reference":
        return "reference"
    device = torch.device(device)
    if choice == "auto" and (device.type != "cuda" or launch.INTERPRETED):
        return "reference"
    trouble = why_not_triton(device)
    if trouble is None:
        return "triton"
    if choice == "triton":
        raise ValueError(
            f"{VARIABLE}=triton, but the Triton kernels do not run on {device}: {trouble}; "
            f"set {VARIABLE}=auto or reference"
        )
    return "reference"


@torch.compiler.assume_constant_result
def why_not_triton(device: torch.device) -> str | None:
    """Why the Triton kernels do not work on a device, or None where they do; found out once for each device."""
    key = str(device)
    if key not in _trouble:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise ValueError(
                "the kernels must be tried before a CUDA graph is captured: "
                f"call stormfast_kernels.backend('{device}') first"
            )
        _trouble[key] = _find_trouble(device)
    return _trouble[key]


def _find_trouble(device: torch.device) -> str | None:
    if launch.IMPORT_TROUBLE is not None:
        return launch.IMPORT_TROUBLE
    if device.type != "cuda":
        return (
            None
            if launch.INTERPRETED and device.type == "cpu"
            else "Triton compiles for CUDA devices (TRITON_INTERPRET=1 interprets, for tests)"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        needed, found = (".".join(map(str, c)) for c in (LEAST_CAPABILITY, capability))
        return f"they need compute capability {needed} or newer, and this GPU has {found}"
    try:
        # Whatever the caller has switched on or off: gradients are part of the trial, and it must find the same.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            for trial in _trials:
                trial(device)
    except torch.OutOfMemoryError:
        raise  # says nothing about the kernels
    except (
        Exception
    ) as error:  # a compiler, an assembler and a driver take part: whatever fails, training goes on with the reference
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def implementation(function: str, device: torch.device) -> Callable[..., Any]:
    """What a public function calls for tensors on `device`."""
    return _implementations[function, backend(device)]


def why(device: torch.device | str = "cpu") -> str:
    """Why backend(device) is what it is. Raises: as backend()."""
    choice, chosen = requested(), backend(device)
    if choice == "reference":
        reason = "asked for"
    elif chosen == "triton" and launch.INTERPRETED:
        reason = "interpreted, for tests"
    elif chosen == "triton":
        reason = f"version {launch.triton.__version__}, compared with the reference at start"
    elif torch.device(device).type != "cuda":
        reason = "Triton is for CUDA devices"
    elif launch.INTERPRETED:
        reason = "TRITON_INTERPRET=1 interprets, for tests"
    else:
        reason = f"Triton does not work here: {why_not_triton(torch.device(device))}"
    return f"{VARIABLE}={choice}; {reason}"


def report(device: torch.device | str = "cpu") -> str:
    """One line: which implementation runs on a device, and why. Raises: as backend()."""
    return f"kernels: {backend(device)} on {device} ({why(device)})"
