"""What holds memory at the peak: how much does each preset take, what takes it, and where is the peak of each phase?

    python -m profiling.memory                      # presets storm, fast and cpu; no GPU and no memory needed
    python -m profiling.memory --preset storm --preset tiny
    python -m profiling.memory --picture FILE.png   # what is alive over the operators of each phase
    python -m profiling.memory --measure            # on CUDA: what the allocator says

The count runs the real phases on meta tensors and follows every storage (stormfast/memory/estimate.py). It is exact
for what tensors take. Not tensors, and so an allowance: blocks rounded up by the allocator, workspaces of cuBLAS and
cuDNN, the CUDA context. Storm and fast are counted as on CUDA in bfloat16 with captured graphs, cpu and tiny as on a
CPU in float32, for 18 actions.

For each phase: the bytes alive at its peak, the operator and line that made the last of them, and the largest tensors
it had made by then. A line in a backward pass names the autograd node.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.record_tables import aligned
from bench.script import Parser, check_writable, provenance, status_of, written
from stormfast.learner import Learner
from stormfast.measure.work import MOST_ACTIONS
from stormfast.memory.estimate import GB, LABELS, PHASES, count, run_phases
from stormfast.memory.meta_tensors import Peak
from stormfast.player import Player
from stormfast.presets import preset_config
from stormfast.replay import Replay
from stormfast.settings import TrainConfig

TARGETS = {
    "storm": ("cuda", "bfloat16"),
    "fast": ("cuda", "bfloat16"),
    "cpu": ("cpu", "float32"),
    "tiny": ("cpu", "float32"),
}
PERSISTENT = ("replay", "weights", "copies", "gradients", "moments", "cache")


# --- counting and measuring --------------------------------------------------------------------------------------


def counted(preset: str) -> tuple[dict[str, Any], dict[str, Peak]]:
    """The record of a preset, as JSON types, and the traced peak of each phase."""
    device_type, dtype = TARGETS[preset]
    config, captured = preset_config(preset, "standard"), device_type == "cuda"
    found, peaks = count(config, MOST_ACTIONS, getattr(torch, dtype), device_type, captured=captured, trace=True)
    record = {
        "preset": preset,
        "device_type": device_type,
        "precision": dtype,
        "bytes": asdict(found) | {"tensors": found.tensors, "total": found.total},
        "peaks": {name: described(peak) for name, peak in peaks.items()},
    }
    return record, peaks


def described(peak: Peak) -> dict[str, Any]:
    largest = [
        {"bytes": b.num_bytes, "shape": list(b.shape), "dtype": str(b.dtype).removeprefix("torch."), "line": b.line}
        for b in peak.blocks
    ]
    return {"bytes": peak.num_bytes, "op": peak.op.removeprefix("aten."), "line": peak.line, "largest": largest}


def measured(config: TrainConfig, precision: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Bytes that the allocator and the device report, with a replay full of zeros.

    Each phase runs three times: the first makes optimiser state and loads libraries, the last is measured.
    """
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    replay = Replay(config.replay.capacity, config.num_envs, device, recency=config.replay.recency)
    for start in range(0, replay.capacity, 10_000):
        replay._store[start : start + 10_000].zero_()  # actions must be actions
    replay.restore_written(replay.written + replay.rows_per_stream, replay.id)
    learner = Learner(config, MOST_ACTIONS, device, precision)
    player = Player(learner.inference, learner.agent, config.acting, config.num_envs)
    generator = torch.cuda.default_generators[device.index or 0]
    phases = run_phases(config, learner, replay, player, generator)
    for phase in (*phases.values(), *phases.values()):
        phase()
    peaks: dict[str, int] = {}
    for name, phase in phases.items():
        torch.cuda.reset_peak_memory_stats(device)
        phase()
        peaks[name] = torch.cuda.max_memory_allocated(device) - before
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    return {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "persistent": torch.cuda.memory_allocated(device) - before,
        "peaks": peaks,
        "reserved": reserved,
        "outside_allocator": total - free - reserved,  # of every process on the device
    }


# --- printing ----------------------------------------------------------------------------------------------------


def table(records: Sequence[dict[str, Any]]) -> str:
    """A column for each preset, a line for each part, in GB."""
    header = ["GB", *(f"{r['preset']}, {r['device_type']} {r['precision']}" for r in records)]
    parts = {**LABELS, "tensors": "tensors at the peak", "total": "total"}
    return aligned(header, [[label, *(gb(r["bytes"][name]) for r in records)] for name, label in parts.items()])


def gb(num_bytes: int) -> str:
    return f"{num_bytes / GB:.3f}"


def peak_lines(record: dict[str, Any]) -> str:
    """Where each phase of a preset has its peak, and what it measured there."""
    lines = []
    for name, peak in record["peaks"].items():
        lines.append(f"{record['preset']}, {PHASES[name]}: {gb(peak['bytes'])} GB in {peak['op']} at {peak['line']}")
        lines += [f"    {gb(b['bytes'])} {b['dtype']} {b['shape']} from {b['line']}" for b in peak["largest"][:5]]
    if "measured" in record:
        found, persistent = record["measured"], sum(record["bytes"][name] for name in PERSISTENT)
        lines.append(f"{record['preset']} on {found['device']}, torch {found['torch']}: measured GB, counted GB, ratio")
        pairs = {"all the time": (found["persistent"], persistent)}
        pairs |= {PHASES[name]: (peak, persistent + record["bytes"][name]) for name, peak in found["peaks"].items()}
        lines += [f"    {label:30} {gb(a)}  {gb(b)}  {a / b:.3f}" for label, (a, b) in pairs.items()]
        lines.append(
            f"    reserved by the allocator {gb(found['reserved'])}, outside it {gb(found['outside_allocator'])}"
        )
    return "\n".join(lines)


# --- command line ------------------------------------------------------------------------------------------------


def report(arguments: Sequence[str] | None) -> int:
    """Prints and writes what the arguments ask for. Returns the exit status. Raises: UserError."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--preset", action="append", choices=list(TARGETS), help="repeatable; default storm, fast and cpu"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE.png", help="draw what is alive over the operators of each phase"
    )
    parser.add_argument("--measure", action="store_true", help="also run the phases on the CUDA device")
    options = parser.parse_args(arguments)
    if options.measure and not torch.cuda.is_available():
        parser.error("--measure needs a CUDA device, and torch finds none; leave it out to count")
    if options.picture:
        check_writable("--picture", options.picture, ".png")
    rows = [counted(preset) for preset in options.preset or ["storm", "fast", "cpu"]]
    records = [record for record, _ in rows]
    if options.picture:
        from profiling.memory_picture import picture  # matplotlib takes a second to load

        written(options.picture, picture(rows))
    for record in records if options.measure else ():
        device, precision = torch.device("cuda", torch.cuda.current_device()), getattr(torch, record["precision"])
        record["measured"] = measured(preset_config(record["preset"], "standard"), precision, device)
    if options.json:
        print(json.dumps({**provenance("python -m profiling.memory", arguments), "presets": records}))
    else:
        print("\n\n".join([table(records), *map(peak_lines, records)]))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    return status_of("memory", lambda: report(arguments))


if __name__ == "__main__":
    sys.exit(main())
