"""What holds memory at the peak: how much does each preset take, what takes it, and where is the peak of each phase?

    python profiling/memory.py                                  # presets storm, fast and cpu; no GPU and no memory needed
    python profiling/memory.py --preset storm --precision float32
    python profiling/memory.py --picture FILE.png               # what is alive over the operators of each phase; --by line: by the lines that made it
    python profiling/memory.py --check                          # exit 1 where a preset is over its goal
    python profiling/memory.py --measure                        # on a CUDA device: what torch's allocator says, beside the count
    python profiling/memory.py --measure --snapshot FOLDER      # and torch's own history of each phase, as pages for a browser

The count runs the real phases on tensors without memory and follows every storage (stormfast/memory/estimate.py). It is exact for
what tensors take. Not tensors, and so an allowance: blocks rounded up by the allocator, workspaces of cuBLAS and cuDNN, the
CUDA context. Storm and fast are counted as on CUDA in bfloat16 with captured graphs, cpu and tiny as on a CPU in float32, for
18 actions.

For each phase: the bytes alive at its peak, the operator and line that made the last of them, and the largest tensors it had
made by then. A line in a backward pass names the autograd node.

A snapshot is three files a preset and phase: PRESET-PHASE-timeline.html, what is alive over time; PRESET-PHASE-segments.html,
how it lies in the allocator's segments; PRESET-PHASE.json, the blocks alive at the peak with the lines that made them.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # the count is of this checkout, whatever is installed

import torch  # noqa: E402

from bench.script import Parser, check_writable, provenance, status_of, written  # noqa: E402
from stormfast.errors import UserError  # noqa: E402
from stormfast.learner import Learner  # noqa: E402
from stormfast.memory.estimate import GB, LABELS, PHASES, count, run_phases  # noqa: E402
from stormfast.memory.meta_tensors import Peak  # noqa: E402
from stormfast.player import Player
from stormfast.replay import Replay  # noqa: E402
from stormfast.settings import TrainConfig, preset_config  # noqa: E402

NUM_ACTIONS = 18  # the most of any game
TARGETS = {
    "storm": ("cuda", "bfloat16"),
    "fast": ("cuda", "bfloat16"),
    "cpu": ("cpu", "float32"),
    "tiny": ("cpu", "float32"),
}
GOALS = {"storm": 8 * GB, "fast": 5 * GB}
Around = Callable[[str], contextlib.AbstractContextManager[Any]]  # what a phase of that name runs in


# --- counting and measuring --------------------------------------------------------------------------------------


def counted(preset: str, precision: str | None) -> tuple[dict[str, Any], dict[str, Peak]]:
    """One preset's record: what was counted, for which target, against which goal; and the traced peak of each phase."""
    device_type, native = TARGETS[preset]
    dtype = precision or native
    found, peaks = count(
        preset_config(preset, "standard"),
        NUM_ACTIONS,
        getattr(torch, dtype),
        device_type,
        captured=device_type == "cuda",
        trace=True,
    )
    record = {
        "preset": preset,
        "device_type": device_type,
        "precision": dtype,
        "bytes": asdict(found) | {"tensors": found.tensors, "total": found.total},
        "goal": GOALS.get(preset),
        "peaks": {name: described(peak) for name, peak in peaks.items()},
    }
    return record, peaks


def described(peak: Peak) -> dict[str, Any]:
    largest = [
        {"bytes": b.num_bytes, "shape": list(b.shape), "dtype": str(b.dtype).removeprefix("torch."), "line": b.line}
        for b in peak.blocks
    ]
    return {"bytes": peak.num_bytes, "op": peak.op.removeprefix("aten."), "line": peak.line, "largest": largest}


def measured(config: TrainConfig, precision: torch.dtype, device: torch.device, around: Around) -> dict[str, Any]:
    """Bytes that the allocator and the device report, of a run with an empty replay's rows taken as they lie.

    Each phase runs three times: the first makes optimiser state and loads libraries, the last is measured and runs inside `around`.
    """
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    replay = Replay(config.replay.capacity, config.num_envs, device, recency=config.replay.recency)
    for start in range(0, replay.capacity, 10_000):
        replay._store[start : start + 10_000].zero_()  # actions must be actions
    replay.restore_written(replay.written + replay.rows_per_stream, replay.id)
    learner = Learner(config, NUM_ACTIONS, device, precision)
    player = Player(learner.inference, learner.agent, config.acting, config.num_envs)
    phases = run_phases(config, learner, replay, player, torch.cuda.default_generators[device.index or 0])
    peaks: dict[str, int] = {}
    for turn in range(3):
        for name, phase in phases.items():
            torch.cuda.reset_peak_memory_stats(device)
            with around(name) if turn == 2 else contextlib.nullcontext():
                phase()
            if turn == 2:
                peaks[name] = torch.cuda.max_memory_allocated(device) - before
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    return {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "kept": torch.cuda.memory_allocated(device) - before,
        "peaks": peaks,
        "reserved": reserved,
        "outside_allocator": total - free - reserved,  # of every process on the device
    }


# --- printing ----------------------------------------------------------------------------------------------------


def table(records: Sequence[dict[str, Any]]) -> str:
    """One column a preset, one line a part, in GB."""
    head = ["GB", *(f"{r['preset']}, {r['device_type']} {r['precision']}" for r in records)]
    lines = [head, *([label, *(gb(r["bytes"][name]) for r in records)] for name, label in LABELS.items())]
    lines.append(["tensors at the peak", *(gb(r["bytes"]["tensors"]) for r in records)])
    lines.append(["total", *(gb(r["bytes"]["total"]) for r in records)])
    lines.append(
        [
            "goal",
            *("-" if r["goal"] is None else f"{gb(r['goal'])} {'over' if is_over(r) else 'kept'}" for r in records),
        ]
    )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def gb(num_bytes: int) -> str:
    return f"{num_bytes / GB:.3f}"


def peak_lines(record: dict[str, Any]) -> str:
    """Where each phase of a preset has its peak."""
    lines = []
    for name, peak in record["peaks"].items():
        lines.append(f"{record['preset']}, {PHASES[name]}: {gb(peak['bytes'])} GB in {peak['op']} at {peak['line']}")
        lines += [f"    {gb(b['bytes'])} {b['dtype']} {b['shape']} from {b['line']}" for b in peak["largest"][:5]]
    return "\n".join(lines)


def measured_lines(record: dict[str, Any]) -> str:
    found, counts = record["measured"], record["bytes"]
    kept = sum(counts[f] for f in ("replay", "weights", "copies", "gradients", "moments", "cache"))
    lines = [f"{record['preset']} on {found['device']}, torch {found['torch']}: measured GB, counted GB, ratio"]
    pairs = {"kept": (found["kept"], kept)} | {
        PHASES[name]: (peak, kept + counts[name]) for name, peak in found["peaks"].items()
    }
    lines += [f"    {label:30} {gb(a)}  {gb(b)}  {a / b:.3f}" for label, (a, b) in pairs.items()]
    lines.append(
        f"    reserved by the allocator {gb(found['reserved'])}, on the device outside it {gb(found['outside_allocator'])}"
    )
    return "\n".join(lines)


def is_over(record: dict[str, Any]) -> bool:
    return record["goal"] is not None and record["bytes"]["total"] > record["goal"]


# --- command line ------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "--preset",
        action="append",
        choices=list(TARGETS),
        help="may be given more than once; default storm, fast and cpu",
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        help="default bfloat16 for storm and fast, float32 for cpu and tiny",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE.png", help="draw what is alive over the operators of each phase"
    )
    parser.add_argument(
        "--by",
        choices=["kind", "line"],
        default="kind",
        help="stack the picture by kind (kept, forward, backward; default) or line",
    )
    parser.add_argument("--check", action="store_true", help="exit 1 where a total is over its goal")
    parser.add_argument("--measure", action="store_true", help="also run the phases on the CUDA device")
    parser.add_argument(
        "--snapshot",
        type=Path,
        metavar="FOLDER",
        help="with --measure: write torch's memory history of each phase there",
    )
    options = parser.parse_args(arguments)
    if options.snapshot and not options.measure:
        parser.error("--snapshot is of measured phases; add --measure")
    if options.measure and not torch.cuda.is_available():
        parser.error("--measure needs a CUDA device, and torch finds none; leave it out to count")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    return status_of("memory", lambda: report(arguments))


def report(arguments: Sequence[str] | None) -> int:
    """Prints and writes what the arguments ask for. Returns the exit status. Raises: UserError."""
    options = parse(arguments)
    if options.picture:
        check_writable("--picture", options.picture, ".png")
    rows = [counted(preset, options.precision) for preset in options.preset or ["storm", "fast", "cpu"]]
    records = [record for record, _ in rows]
    if options.picture:
        from memory_picture import picture

        written(options.picture, picture(rows, options.by))
    for record in records if options.measure else ():
        device = torch.device("cuda", torch.cuda.current_device())
        around = snapshots(options.snapshot, record["preset"], device)
        record["measured"] = measured(
            preset_config(record["preset"], "standard"), getattr(torch, record["precision"]), device, around
        )
    if options.json:
        print(
            json.dumps({**provenance("profiling/memory.py", arguments), "presets": records})
        )  # each says what it was counted for or measured on
    else:
        print(
            "\n\n".join(
                [table(records), *map(peak_lines, records), *(measured_lines(r) for r in records if "measured" in r)]
            )
        )
    over = [record for record in records if options.check and is_over(record)]
    for record in over:
        print(
            f"{record['preset']} takes {gb(record['bytes']['total'])} GB, over its goal of {gb(record['goal'])} GB",
            file=sys.stderr,
        )
    return 1 if over else 0


def snapshots(folder: Path | None, preset: str, device: torch.device) -> Around:
    """Records each phase into files of the folder, if there is one. Inside, OSError becomes UserError."""

    @contextlib.contextmanager
    def around(phase: str) -> Any:
        from memory_snapshot import recorded

        if folder is None:
            yield
            return
        try:
            with recorded(folder, f"{preset}-{phase}", device):
                yield
        except OSError as error:
            raise UserError(
                f"--snapshot must be a folder that can be written, but {folder}: {error.strerror or error}"
            ) from None

    return around


if __name__ == "__main__":
    sys.exit(main())
