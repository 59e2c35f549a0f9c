"""What a run will really use, decided once, before anything is made: device, precision, compilation, kernels, emulator.

`auto` settings are resolved here and nowhere else. The plan is the first line a run prints, lies beside its config.json
as plan.json, and is what `stormfast doctor` shows.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from stormfast.device import native_bfloat16, resolve_device
from stormfast.envs import check_settings, choose_backend
from stormfast.errors import UserError
from stormfast.runs.directory import PLAN, write_whole
from stormfast.settings import Preset, TrainConfig
from stormfast_kernels import dispatch

CompileMode = Literal["off", "default", "graphs"]


@dataclass(frozen=True)
class Plan:
    """What a run will use, and why."""

    preset: Preset
    device: torch.device
    precision: torch.dtype  # of autocast
    compile: CompileMode
    kernels: str  # "triton" or "reference"
    env_backend: str  # "envpool", "ale" or "gymnasium"
    why: dict[str, str]  # field -> the reason, for each field above

    def rows(self) -> dict[str, str]:
        """Field -> its value as text."""
        return {
            "preset": self.preset,
            "device": str(self.device),
            "precision": str(self.precision).removeprefix("torch."),
            "compile": self.compile,
            "kernels": self.kernels,
            "env_backend": self.env_backend,
        }

    def __str__(self) -> str:
        """One line: `device cpu, precision float32, ...`."""
        return ", ".join(f"{name} {value}" for name, value in self.rows().items())

    def save(self, run_dir: Path) -> None:
        """Writes plan.json. Raises: UserError where it cannot."""
        document = {name: {"value": value, "why": self.why[name]} for name, value in self.rows().items()}
        try:
            write_whole(run_dir / PLAN, (json.dumps(document, indent=2) + "\n").encode())
        except OSError as error:
            raise UserError(f"{run_dir / PLAN} cannot be written: {error.strerror or error}") from None


def plan(config: TrainConfig) -> Plan:
    """The plan of a run. Tries the Triton kernels on the device, once a process.

    Raises: UserError for a device, kernels or an emulator that cannot be had, and for settings that the game has no
        use for.
    """
    if not config.resume:  # a saved run goes on with whatever it was given
        check_settings(config)
    device, device_why = choose_device(config.device)
    preset, preset_why = choose_preset(config.preset, config.device)
    precision, precision_why = choose_precision(config.precision, device)
    kernels, kernels_why = choose_kernels(device)
    compile_mode, compile_why = choose_compile(config.compile, device)
    backend = choose_backend(
        config.game, config.env, config.atari, num_envs=config.num_envs, backend=config.env_backend
    )
    why = {
        "preset": preset_why,
        "device": device_why,
        "precision": precision_why,
        "compile": compile_why,
        "kernels": kernels_why,
        "env_backend": backend.reason,
    }
    return Plan(preset, device, precision, compile_mode, kernels, backend.name, why)


def choose_device(name: str) -> tuple[torch.device, str]:
    """The device of a name, and why. Raises: UserError for one that is not here."""
    device = resolve_device(name)
    if device.type == "cuda":
        return device, torch.cuda.get_device_name(device)
    if name == "cpu":
        return device, "asked for by --device"
    is_cpu_build = torch.version.cuda is None and torch.version.hip is None
    return device, "torch is a CPU build" if is_cpu_build else "torch finds no CUDA device"


def choose_preset(name: Preset, device_name: str) -> tuple[Preset, str]:
    """The preset as named; auto takes fast with CUDA, cpu without. Raises: UserError for a device that is not here."""
    device, why = choose_device(device_name)
    if name != "auto":
        return name, "named by the run's settings"  # where the command resolved auto, too
    return ("fast" if device.type == "cuda" else "cpu"), f"--preset auto on {device} ({why})"


def choose_precision(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """float32 or bfloat16 as named; auto takes bfloat16 where the device computes it natively."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name], "asked for by --precision"
    native, why = native_bfloat16(device)
    return (torch.bfloat16 if native else torch.float32), why


def choose_compile(name: str, device: torch.device) -> tuple[CompileMode, str]:
    """The mode as named; auto takes graphs on CUDA where Triton, which compiles for it, works, else off.

    On a CPU compiling does not pay. CPU time of an update on one core of an AMD EPYC, preset cpu: world model 0.102 s
    eager, 0.108 compiled; agent 0.093 and 0.108.
    """
    if name != "auto":
        return name, "asked for by --compile"  # type: ignore[return-value]
    if device.type != "cuda":
        return "off", "compiling does not pay on a CPU"
    trouble = dispatch.why_not_triton(device)
    return ("graphs", "Triton works on this GPU") if trouble is None else ("off", f"Triton does not work: {trouble}")


def choose_kernels(device: torch.device) -> tuple[str, str]:
    """The implementation of the kernels, and why. Raises: UserError for one that STORMFAST_KERNELS asks for in vain."""
    try:
        return dispatch.backend(device), dispatch.why(device)
    except ValueError as error:
        raise UserError(str(error)) from None
