"""What should a profiler look at? A few warm steps of the training loop, and nothing of what comes before them.

    python -m profiling.warm_steps --preset storm --device cuda --steps 3      # alone: milliseconds a step
    profiling/nsys.sh --preset storm                                           # under Nsight Systems
    profiling/ncu.sh attention_step_kernel --preset storm                      # under Nsight Compute

A scratch run of the preset takes its random steps, so that replay is filled, then warms up until all is compiled and
captured. Then the steps are taken, between cudaProfilerStart and cudaProfilerStop where there is a CUDA device, with
NVTX ranges around each step and its phases (domain stormfast). Their time is from an idle device to an idle device.

Steps are environment steps, rounded up to whole cycles: those after which each update was made a whole number of
times (4 steps of `fast`). An iteration of the loop in which the environments only reset is no step: it has act, env
and append alone.
"""

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from bench import script
from stormfast import annotate
from stormfast.commands.profile import check
from stormfast.compile import is_compiler_error
from stormfast.device import device_name, out_of_memory, resolve_device
from stormfast.errors import UserError
from stormfast.measure.peaks import synchronize
from stormfast.measure.phases import compile_mode, take_steps, training_config, warm_run, whole_cycles
from stormfast.measure.profile import exit_at_sigterm
from stormfast.plan import choose_preset
from stormfast.presets import PRESETS
from stormfast.runs.provenance import commit
from stormfast.runs.run import Run
from stormfast.settings import ProfileConfig


@contextlib.contextmanager
def capture_range(device: torch.device) -> Iterator[None]:
    """cudaProfilerStart to cudaProfilerStop, from an idle device to an idle device; on a CPU nothing."""
    if device.type == "cpu":
        yield
        return
    synchronize(device)
    torch.cuda.profiler.start()
    try:
        yield
        synchronize(device)
    finally:
        torch.cuda.profiler.stop()


# --- shared with trace.py ----------------------------------------------------------------------------------------


def about(run: Run) -> str:
    """The run, its device and its commit, in a few words."""
    config, precision = run.config, str(run.learner.precision).removeprefix("torch.")
    head, dirty = commit()
    where = f"{device_name(run.learner.device)}, {precision}, compile {compile_mode(run)}"
    return f"{config.preset}, {config.game}, {where}, commit {head}{' and changes' if dirty else ''}"


def label(preset: str) -> str:
    """PRESET-DATE-COMMIT, as the files of a profile are named."""
    head, dirty = commit()
    return f"{preset}-{time.strftime('%Y-%m-%d-%H%M%S')}-{head}{'-dirty' if dirty else ''}"


class Parser(script.Parser):
    """The settings of warm steps; a script adds its own."""

    def __init__(self, doc: str | None) -> None:
        super().__init__(doc)
        default = ProfileConfig()
        presets, modes = ["auto", *PRESETS], ["auto", "off", "default", "graphs"]
        self.add_argument("--preset", default=default.preset, choices=presets, help="default: fast with CUDA, else cpu")
        self.add_argument("--game", default=default.game, help=f"default {default.game}, which is built in")
        self.add_argument("--device", default=default.device, help="auto (default), cpu, cuda or cuda:N")
        self.add_argument("--compile", default=default.compile, choices=modes, help="as of `stormfast train`")
        self.add_argument("--precision", default=default.precision, choices=["auto", "float32", "bfloat16"])
        self.add_argument("--steps", type=int, default=3, help="environment steps to look at; default 3")
        self.add_argument("--warmup", type=int, default=2, help="steps with updates before them, at least; default 2")


def settings(options: argparse.Namespace) -> ProfileConfig:
    """The steps that options ask for, checked, with the preset by name. Raises: UserError."""
    names = {field.name for field in dataclasses.fields(ProfileConfig)} - {"json"}
    config = ProfileConfig(**{name: value for name, value in vars(options).items() if name in names})
    check(config)
    resolve_device(config.device)
    preset = choose_preset(config.preset, config.device)[0]
    return dataclasses.replace(config, preset=preset)


def exit_status(program: str, work: Callable[[], int]) -> int:
    """Does a script's work. Returns its exit status, or 2 after one line where what was asked for cannot be had."""

    def run() -> int:
        try:
            with exit_at_sigterm():
                return work()
        except (MemoryError, RuntimeError) as error:
            if is_compiler_error(error):
                raise UserError(f"torch.compile failed: {error}; give --compile off") from None
            if not out_of_memory(error):
                raise
            raise UserError("these steps do not fit in memory; take a smaller --preset or another --device") from None

    return script.status_of(program, run)


# --- this script -------------------------------------------------------------------------------------------------


def work(arguments: Sequence[str] | None) -> int:
    parser = Parser(__doc__)
    parser.add_argument(
        "--name-for", metavar="TOOL", help="only print PRESET-DATE-COMMIT, if a CUDA profiler can run here"
    )
    options = parser.parse_args(arguments)
    config = settings(options)
    if tool := options.name_for:
        if resolve_device(config.device).type != "cuda":
            raise UserError(f"{tool} needs a CUDA GPU, but got --device {config.device}; profiling.trace takes a CPU")
        print(label(config.preset))
        return 0
    with (
        warm_run(training_config(config), config.warmup) as run,
        annotate.recorded_by(annotate.nvtx_ranges()),
        capture_range(run.learner.device),
    ):
        started = time.perf_counter()
        steps = take_steps(run, whole_cycles(run.config, options.steps))
        synchronize(run.learner.device)
        seconds = time.perf_counter() - started
    print(f"{about(run)}: {1000 * seconds / steps:.3f} ms a step, over {steps} steps", flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    return exit_status("warm_steps", lambda: work(arguments))


if __name__ == "__main__":
    sys.exit(main())
