"""Which implementation of a kernel runs: STORMFAST_KERNELS=reference|triton|auto (default auto) decides.

An implementation joins by registering itself under its function's name and its backend's; the public functions look
theirs up here at every call.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

VARIABLE = "STORMFAST_KERNELS"
CHOICES = ("reference", "triton", "auto")

F = TypeVar("F", bound=Callable[..., Any])

_implementations: dict[tuple[str, str], Callable[..., Any]] = {}


def register(function: str, backend: str) -> Callable[[F], F]:
    """Decorator: the decorated implementation is what `function` runs on `backend`."""

    def add(implementation: F) -> F:
        _implementations[function, backend] = implementation
        return implementation

    return add


def requested() -> str:
    """The choice in the environment. Raises: ValueError when it is none of CHOICES."""
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(CHOICES)}, got '{choice}'")
    return choice


def backend(device: torch.device | str) -> str:
    """The backend that runs on a device.

    Raises: ValueError when the environment asks for one that is not here.
    """
    if requested() == "triton":
        raise ValueError(
            f"{VARIABLE}=triton asks for Triton kernels on {device}, and this version has reference kernels only; set {VARIABLE}=auto or reference"
        )
    return "reference"


def implementation(function: str, device: torch.device) -> Callable[..., Any]:
    """What a public function calls for tensors on `device`."""
    return _implementations[function, backend(device)]


def report() -> str:
    """One line: which implementation runs, and why. Raises: as backend()."""
    choice = requested()
    return f"kernels: {backend('any device')} ({VARIABLE}={choice}; this version has reference kernels only)"
