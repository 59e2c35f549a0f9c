"""Where does the time of a step go: which phase, which operator, which kernel, and how long does the GPU wait?

    python -m profiling.trace --preset storm                    # 3 warm steps: a table, and a trace in profiling/out/
    python -m profiling.trace --preset cpu --device cpu --steps 12 --out step.json.gz

torch.profiler watches the steps, on a CPU too. The trace opens in Perfetto (ui.perfetto.dev) or chrome://tracing: one
range for each phase and step on the host's row, named stormfast:PHASE, and on CUDA the kernels below, also those of a
captured graph. Under `stormfast` it says what it is of. Steps are chosen as in warm_steps.py.

How to read the table; everything is for one environment step:
    host        milliseconds between the start and the end of a phase's range, and its share of the step. `outside` is
                the loop itself.
    operators   the part of it spent in torch's operators. On a CPU the rest is Python, or emulators in env. On CUDA
                operators only launch, and a captured phase has next to none.
    kernels, GPU  how many kernels the phase launched, and how long they ran. The host waits for them in act, where it
                reads the action: a long act with short kernels is the work of the step before, still under way.
    idle        share of the time, from the first step to the last kernel, in which the GPU did nothing. High, with
                --compile off: launches are the limit, capture them. High, with graphs: the host is; see env and append.
The profiler takes time itself, some microseconds for each operator: for speed, believe warm_steps.py.
"""

import gzip
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.devices import describe
from bench.script import check_writable, provenance, written
from profiling.trace_summary import PREFIX, summarise
from profiling.warm_steps import Parser, about, exit_status, label, settings
from stormfast import annotate
from stormfast.device import resolve_device
from stormfast.errors import UserError
from stormfast.measure.peaks import synchronize
from stormfast.measure.phases import take_steps, training_config, warm_run, whole_cycles
from stormfast.runs.run import Run

OUT = Path(__file__).with_name("out")
TOP = 12  # operators and kernels shown


# --- tracing -----------------------------------------------------------------------------------------------------


def traced(run: Run, steps: int) -> tuple[dict[str, Any], int]:
    """The trace of `steps` steps, as torch.profiler exports it, and how many they were."""
    device = run.learner.device
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    once = torch.profiler.schedule(wait=0, warmup=1, active=1)  # the profiler's first calls are slow: not recorded
    with (
        torch.profiler.profile(activities=activities, schedule=once) as profiler,
        annotate.recorded_by(record),
    ):
        take_steps(run, 1)
        synchronize(device)
        profiler.step()
        taken = take_steps(run, whole_cycles(run.config, steps))
        synchronize(device)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_bytes()), taken


def record(name: str) -> torch.profiler.record_function:
    return torch.profiler.record_function(PREFIX + name)


def watch_graphs(device: torch.device) -> None:
    """Graphs that are captured before the profiler first runs are not seen by it."""
    prepare = getattr(getattr(torch.profiler, "_utils", None), "_init_for_cuda_graphs", None)  # private to torch
    if device.type == "cuda" and prepare is not None:
        prepare()


# --- printing ----------------------------------------------------------------------------------------------------


def report(found: dict[str, Any]) -> str:
    gpu = found["gpu"]
    head = f"{'a step':<18}{'ranges':>8}{'host ms':>10}{'share':>8}{'operators ms':>14}"
    lines = [head + (f"{'kernels':>10}{'GPU ms':>10}" if gpu else "")]
    for name, row in found["phases"].items():
        line = f"{name:<18}{row['ranges']:>8.4g}{row['ms']:>10.3f}{row['share']:>8.1%}{row['operators_ms']:>14.3f}"
        lines.append(line + (f"{row['kernels']:>10.4g}{row['gpu_ms']:>10.3f}" if gpu else ""))
    lines += [
        f"{'all':<18}{'':>8}{found['ms']:>10.3f}",
        "",
        *top("operators, without those they call", found["operators"]),
    ]
    if gpu:
        lines += ["", *top("kernels and copies on the GPU", gpu["top"]), ""]
        busy = f"busy {gpu['busy_ms']:.3f} of {gpu['ms']:.3f} ms, idle {gpu['idle_share']:.1%}"
        lines.append(f"GPU: {gpu['kernels']:.4g} kernels a step, {busy}")
    return "\n".join(lines)


def top(title: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    return [f"{'ms':>10}{'share':>8}{'calls':>9}  {'phase':<18}{title}"] + [
        f"{r['ms']:>10.3f}{r['share']:>8.1%}{r['calls']:>9.4g}  {r['phase']:<18}{r['name'][:80]}" for r in rows[:TOP]
    ]


# --- command line ------------------------------------------------------------------------------------------------


def work(arguments: Sequence[str] | None) -> int:
    parser = Parser(__doc__)
    parser.add_argument(
        "--out", type=Path, help="the trace, .json.gz; default profiling/out/trace-PRESET-DATE-COMMIT.json.gz"
    )
    options = parser.parse_args(arguments)
    config = settings(options)
    path = options.out or OUT / f"trace-{label(config.preset)}.json.gz"
    check_writable("--out", path, ".json.gz", make=True)
    watch_graphs(resolve_device(config.device))
    with warm_run(training_config(config), config.warmup) as run:
        trace, steps = traced(run, options.steps)
        origin = {
            "run": about(run),
            **describe(run.learner.device),
            **provenance("python -m profiling.trace", arguments),
        }
    found = summarise(trace, steps)
    if origin["device_type"] == "cuda" and found["gpu"] is None:
        raise UserError(
            "torch.profiler saw nothing on the GPU: CUPTI may not watch; run as root, or trace --device cpu"
        )
    written(path, gzip.compress(json.dumps(trace | {"stormfast": origin}).encode()))
    print(f"{origin['run']}: {steps} steps under the profiler\n")
    print(f"{report(found)}\n\n{path} opens in ui.perfetto.dev", flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    return exit_status("trace", lambda: work(arguments))


if __name__ == "__main__":
    sys.exit(main())
