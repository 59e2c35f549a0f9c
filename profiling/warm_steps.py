"""What should a profiler look at? A few warm steps of the training loop, and nothing of what comes before them.

    python profiling/warm_steps.py --preset storm --device cuda --steps 3      # alone: milliseconds a step
    profiling/nsys.sh --preset storm                                           # under Nsight Systems
    profiling/ncu.sh attention_step_kernel --preset storm                      # under Nsight Compute

A scratch run of the preset takes its random steps, so that replay is filled, then warms up until all is compiled and captured.
Then the steps are taken, between cudaProfilerStart and cudaProfilerStop where there is a CUDA device, with NVTX ranges around
each step and its phases (domain stormfast). Their time is from an idle device to an idle device.

Steps are environment steps, rounded up to whole cycles: those after which each update was made a whole number of times (4 steps
of `fast`). A turn of the loop in which the environments only reset is none: its range has act, env and append alone.
"""

import argparse
import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # the steps are of this checkout, whatever is installed

import torch  # noqa: E402

from bench import script  # noqa: E402
from bench.devices import commit  # noqa: E402
from stormfast import annotate
from stormfast.compile import is_compiler_error  # noqa: E402
from stormfast.device import auto_preset, out_of_memory, resolve_device  # noqa: E402
from stormfast.envs.games import check_game  # noqa: E402
from stormfast.errors import UserError  # noqa: E402
from stormfast.loop import advance  # noqa: E402
from stormfast.measure.peaks import synchronize  # noqa: E402
from stormfast.measure.phases import compile_mode, cycle_steps  # noqa: E402
from stormfast.measure.profile import device_name, exit_at_sigterm, warm_run  # noqa: E402
from stormfast.runs.run import Run  # noqa: E402
from stormfast.settings import PRESETS, ProfileConfig, validate_profile  # noqa: E402

STEP = "step"  # the range around a turn of the loop


# --- what profilers run, also of trace.py ------------------------------------------------------------------------


def take_steps(run: Run, steps: int) -> int:
    """Turns of the training loop, each in a range, until `steps` environment steps in whole cycles are taken. Returns how many were."""
    cycle, before = cycle_steps(run.config), run.step
    end = before + math.ceil(steps / cycle) * cycle
    while run.step < end:
        with annotate.phase(STEP):
            advance(run)
    return run.step - before


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


def about(run: Run) -> str:
    """The run and its device, in a few words."""
    config, precision = run.config, str(run.learner.precision).removeprefix("torch.")
    return (
        f"{config.preset}, {config.game}, {device_name(run.learner.device)}, {precision}, compile {compile_mode(run)}"
    )


def label(preset: str) -> str:
    """PRESET-DATE-COMMIT, as the files of a profile are named."""
    head, dirty = commit()
    return f"{preset}-{time.strftime('%Y-%m-%d-%H%M%S')}-{head}{'-dirty' if dirty else ''}"


# --- command line, also of trace.py ------------------------------------------------------------------------------


class Parser(script.Parser):
    """The settings that warm steps have; what a script adds is its own."""

    def __init__(self, doc: str | None) -> None:
        super().__init__(doc)
        default = ProfileConfig()
        self.add_argument(
            "--preset",
            default=default.preset,
            choices=["auto", *PRESETS],
            help="default auto: fast with CUDA, cpu without",
        )
        self.add_argument("--game", default=default.game, help=f"default {default.game}, which is built in")
        self.add_argument("--device", default=default.device, help="auto (default), cpu, cuda or cuda:N")
        self.add_argument(
            "--compile",
            default=default.compile,
            choices=["auto", "off", "default", "graphs"],
            help="as of `stormfast train`",
        )
        self.add_argument(
            "--precision",
            default=default.precision,
            choices=["auto", "float32", "bfloat16"],
            help="as of `stormfast train`",
        )
        self.add_argument("--steps", type=int, default=3, help="environment steps to look at; default 3")
        self.add_argument("--warmup", type=int, default=2, help="at least so many with updates before; default 2")


def settings(options: argparse.Namespace) -> ProfileConfig:
    """The steps that options ask for, checked, with the preset by name. Raises: UserError."""
    shared = {f.name: getattr(options, f.name) for f in dataclasses.fields(ProfileConfig) if hasattr(options, f.name)}
    config = ProfileConfig(**(shared | {"json": False}))
    validate_profile(config)
    check_game(config.game)
    resolve_device(config.device)
    if config.preset == "auto":
        config = dataclasses.replace(config, preset=auto_preset(config.device)[0])
    return config


def exit_status(program: str, work: Callable[[], int]) -> int:
    """Does a script's work. Returns its exit status, or 2 after one line where what was asked for cannot be had."""

    def steps_fit() -> int:
        try:
            with exit_at_sigterm():
                return work()
        except (MemoryError, RuntimeError) as error:
            if is_compiler_error(error):
                raise UserError(f"torch.compile failed: {error}; give --compile off") from None
            if not out_of_memory(error):
                raise
            raise UserError("these steps do not fit in memory; take a smaller --preset or another --device") from None

    return script.status_of(program, steps_fit)


# --- this script -------------------------------------------------------------------------------------------------


def needs_cuda(tool: str, device: str) -> None:
    """Raises UserError where a CUDA profiler would have nothing to look at."""
    instead = f"profiling/trace.py needs no {tool}"
    if device == "cpu":
        raise UserError(f"{tool} looks at CUDA kernels, got --device cpu; leave it out, or {instead} and takes a CPU")
    if torch.version.cuda is None:
        raise UserError(
            f"{tool} needs torch with CUDA, but torch {torch.__version__} has none; `pip install torch` brings it on Linux. {instead}"
        )
    if not torch.cuda.is_available():
        raise UserError(
            f"{tool} needs a CUDA GPU, but torch {torch.__version__} finds none; `nvidia-smi` says what the driver sees. {instead}"
        )


def work(arguments: Sequence[str] | None) -> int:
    parser = Parser(__doc__)
    parser.add_argument(
        "--name-for",
        metavar="TOOL",
        help="take no steps: print PRESET-DATE-COMMIT if a CUDA profiler could look at them",
    )
    options = parser.parse_args(arguments)
    if options.name_for:
        needs_cuda(options.name_for, options.device)
        print(label(settings(options).preset))
        return 0
    with (
        warm_run(settings(options)) as run,
        annotate.recorded_by(annotate.nvtx_ranges()),
        capture_range(run.learner.device),
    ):
        started = time.perf_counter()
        steps = take_steps(run, options.steps)
        synchronize(run.learner.device)
        seconds = time.perf_counter() - started
    head, dirty = commit()
    print(
        f"{about(run)}, commit {head}{' and changes' if dirty else ''}: {1000 * seconds / steps:.3f} ms a step, over {steps} steps",
        flush=True,
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    return exit_status("warm_steps", lambda: work(arguments))


if __name__ == "__main__":
    sys.exit(main())
