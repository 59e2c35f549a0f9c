"""Where does the time of a step go: which phase, which operator, which kernel, and how long does the GPU wait?

    python profiling/trace.py --preset storm                         # 3 warm steps; a trace under profiling/out/, a table here
    python profiling/trace.py --preset cpu --device cpu --steps 12 --out step.json
    python profiling/trace.py --preset fast --compile off --stacks   # with the Python lines of each operator; large, and slow to take

torch.profiler watches the steps, on a CPU too. The trace opens in Perfetto (ui.perfetto.dev) or chrome://tracing: one range a
phase and step on the host's row, named stormfast:PHASE, and on CUDA the kernels below, also those of a captured graph. It says
under `stormfast` what it is of. Steps are chosen as in warm_steps.py.

How to read the table; everything is for one environment step:
    host        milliseconds between the start and the end of a phase's range, and its share of the step. `outside` is the loop itself.
    operators   the part of it spent in torch's operators. On a CPU the rest is Python, or emulators in env. On CUDA operators only
                launch, and a captured phase has next to none.
    kernels, GPU  how many kernels the phase launched, and how long they ran. The host waits for them in act, where it reads the
                action: a long act with short kernels is the work of the step before, still under way.
    idle        share of the time, from the first step to the last kernel, in which the GPU did nothing. High, with --compile
                off: launches are the limit, capture them. High, with graphs: the host is; look at env and append.
The profiler takes time itself, some microseconds an operator: for speed, believe warm_steps.py or `stormfast profile`.
"""

import argparse
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # the trace is of this checkout, whatever is installed

import torch  # noqa: E402
from trace_summary import PREFIX, summarise  # noqa: E402
from warm_steps import Parser, about, exit_status, label, settings, take_steps  # noqa: E402

from bench.devices import describe  # noqa: E402
from bench.script import check_writable, written  # noqa: E402
from stormfast import annotate
from stormfast.device import resolve_device  # noqa: E402
from stormfast.errors import UserError  # noqa: E402
from stormfast.measure.peaks import synchronize  # noqa: E402
from stormfast.measure.profile import warm_run  # noqa: E402
from stormfast.runs.run import Run  # noqa: E402

OUT = ROOT / "profiling" / "out"
SUFFIXES = (".json", ".json.gz")
TOP = 12  # operators and kernels shown


# --- tracing -----------------------------------------------------------------------------------------------------


def traced(run: Run, steps: int, stacks: bool) -> tuple[dict[str, Any], int]:
    """The trace of `steps` steps, as torch.profiler exports it, and how many they were."""
    device = run.learner.device
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * (
        device.type == "cuda"
    )
    once = torch.profiler.schedule(
        wait=0, warmup=1, active=1
    )  # the profiler's own first calls are slow: they fall into its warm-up
    with (
        torch.profiler.profile(activities=activities, schedule=once, with_stack=stacks) as profiler,
        annotate.recorded_by(record),
    ):
        take_steps(run, 1)
        synchronize(device)
        profiler.step()
        taken = take_steps(run, steps)
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


def packed(path: Path, value: dict[str, Any]) -> bytes:
    """JSON, compressed where the name says so."""
    data = json.dumps(value).encode()
    return gzip.compress(data) if path.name.endswith(".gz") else data


def report(found: dict[str, Any]) -> str:
    on_gpu = found["gpu"] is not None
    lines = [
        f"{'a step':<16}{'ranges':>8}{'host ms':>10}{'share':>8}{'operators ms':>14}"
        + (f"{'kernels':>10}{'GPU ms':>10}" if on_gpu else "")
    ]
    for name, row in found["phases"].items():
        line = f"{name:<16}{row['ranges']:>8.4g}{row['ms']:>10.3f}{row['share']:>8.1%}{row['operators_ms']:>14.3f}"
        lines.append(line + (f"{row['kernels']:>10.4g}{row['gpu_ms']:>10.3f}" if on_gpu else ""))
    lines += [
        f"{'all':<16}{'':>8}{found['ms']:>10.3f}",
        "",
        *top("operators, without those they call", found["operators"]),
    ]
    if on_gpu:
        gpu = found["gpu"]
        lines += ["", *top("kernels and copies on the GPU", gpu["top"]), ""]
        lines.append(
            f"GPU: {gpu['kernels']:.4g} kernels a step, busy {gpu['busy_ms']:.3f} of {gpu['ms']:.3f} ms, idle {gpu['idle_share']:.1%}"
        )
    return "\n".join(lines)


def top(title: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"{'ms':>10}{'share':>8}{'calls':>9}  {'phase':<14}{title}"]
    return lines + [
        f"{r['ms']:>10.3f}{r['share']:>8.1%}{r['calls']:>9.4g}  {r['phase']:<14}{r['name'][:90]}" for r in rows[:TOP]
    ]


# --- command line ------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "--out", type=Path, help="the trace, .json or .json.gz; default profiling/out/trace-PRESET-DATE-COMMIT.json.gz"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the numbers of the table there, too, all operators and kernels"
    )
    parser.add_argument("--stacks", action="store_true", help="record the Python lines of each operator")
    return parser.parse_args(arguments)


def work(arguments: Sequence[str] | None) -> int:
    options = parse(arguments)
    config = settings(options)
    path = options.out or OUT / f"trace-{label(config.preset)}.json.gz"
    check_writable("--out", path, *SUFFIXES, make=True)
    if options.json:
        check_writable("--json", options.json, *SUFFIXES, make=True)
    watch_graphs(resolve_device(config.device))
    with warm_run(config) as run:
        trace, steps = traced(run, options.steps, options.stacks)
        command = f"python profiling/trace.py {' '.join(sys.argv[1:] if arguments is None else arguments)}".strip()
        origin = {
            "run": about(run),
            **describe(run.learner.device),
            "date": time.strftime("%Y-%m-%d %H:%M:%S"),
            "command": command,
        }
    found = summarise(trace, steps)
    if origin["device_type"] == "cuda" and found["gpu"] is None:
        raise UserError(
            "torch.profiler saw nothing on the GPU; where CUPTI may not watch, as torch says above, run as root, or trace --device cpu"
        )
    written(path, packed(path, trace | {"stormfast": origin}))
    if options.json:
        written(options.json, packed(options.json, origin | found))
    print(
        f"{origin['run']}, commit {origin['commit']}{' and changes' if origin['dirty'] else ''}: {steps} steps under the profiler\n"
    )
    print(f"{report(found)}\n\n{path} opens in ui.perfetto.dev", flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    return exit_status("trace", lambda: work(arguments))


if __name__ == "__main__":
    sys.exit(main())
