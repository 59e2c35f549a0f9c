"""How long does an update take, against TorchRL's DreamerV3 at comparable sizes, in turn in one process?

    python bench/peers/world_model.py --json bench/results/DEVICE/peers-world-model.json      # presets tiny and cpu; storm and fast on CUDA
    python bench/peers/world_model.py --preset storm --precision bfloat16 --rounds 4 --threads 2
    python bench/peers/world_model.py --table bench/results/DEVICE/peers-world-model.json     # print a result again

It needs torchrl, which stormfast does not: pip install "torchrl>=0.14.1,<0.15".

Three updates, each from data at hand to weights moved: the world model's (forward, losses, backward, optimiser); imagination and the
agent's; and both, as each library runs them on this device: ours compiled and captured on CUDA and eager on a CPU, as in training,
TorchRL's by its own stepper, which chooses the same. The first two are eager on both sides. Precision is the same on both sides.

The models are not the same (a transformer and an RSSM), so that FLOPs, launches, parameters and starts of imagination stand
beside the times, counted in the same way. TorchRL's convolutions need an odd kernel: 3 and 5 lie on either side of our 4.
Exit codes: 0 done, 1 an update computed what is not finite or moved nothing, 2 bad arguments or no torchrl.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # so that it runs as a script, on this checkout

from bench.grid import grid  # noqa: E402

from bench.peers import side_by_side  # noqa: E402
from bench.peers.side_by_side import CheckError, Row, compare, heading, over_text, take_turns  # noqa: E402
from bench.peers.sizes import NUM_ACTIONS, Sizes, sizes_of  # noqa: E402
from stormfast.compile import WARMUP_CALLS, GraphedCall, GraphPool, compile_parts, resolve_mode  # noqa: E402
from stormfast.device import (
    keep_freed_memory,  # noqa: E402
    native_bfloat16,  # noqa: E402
)
from stormfast.errors import UserError  # noqa: E402
from stormfast.learner import Learner  # noqa: E402
from stormfast.measure.op_counts import count  # noqa: E402
from stormfast.player import Player
from stormfast.records import OBS_SHAPE, Batch  # noqa: E402
from stormfast.settings import PRESETS, TrainConfig, preset_config  # noqa: E402

OURS, RIVAL, INSTALL = "stormfast", "torchrl", 'pip install "torchrl>=0.14.1,<0.15"'
PARTS = {"world_model": "world model", "agent": "imagination and agent", "both": "both"}
DEFAULT_PRESETS = {"cpu": ["tiny", "cpu"], "cuda": ["storm", "fast"]}
HEADER = ["preset", "precision", "update", "library", "ms (spread)", "over ours"]
HEADER += ["GFLOP", "GFLOP/s", "launches", "host reads", "parameters", "starts"]
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Update:
    """One library's way to make an update."""

    library: str
    call: Callable[[], Losses]  # makes one, and returns its losses
    counted: Callable[[], Losses]  # the same, eager: what a graph launches cannot be counted
    weights: list[nn.Parameter]
    starts: int  # rollouts that it imagines


# --- the updates -------------------------------------------------------------------------------------------------


def random_batch(batch: int, length: int, device: torch.device) -> Batch:
    """Windows of noise, nowhere an episode's start or end: an update takes as long on them as on frames."""
    no = torch.zeros(batch, length, dtype=torch.bool, device=device)
    return Batch(
        obs=torch.randint(256, (batch, length, *OBS_SHAPE), dtype=torch.uint8, device=device),
        action=torch.randint(NUM_ACTIONS, (batch, length), device=device),
        reward=torch.randn(batch, length, device=device),
        **dict.fromkeys(("terminated", "truncated", "life_lost", "is_first", "is_last"), no),
    )


def our_updates(config: TrainConfig, device: torch.device, precision: torch.dtype, batch: Batch) -> dict[str, Update]:
    """Part -> update, by learners of their own: what compiles and captures one leaves the other eager."""
    context = random_batch(config.imagination.batch_size, config.imagination.context, device)
    learner = Learner(config, NUM_ACTIONS, device, precision)
    model, agent = learner.trained["world_model"], learner.trained["agent"]
    alone = {"world_model": partial(learner.update_world_model, batch), "agent": partial(learner.update_agent, context)}
    starts = config.imagination.batch_size
    updates = {"world_model": Update(OURS, alone["world_model"], alone["world_model"], model, 0)}
    updates["agent"] = Update(OURS, alone["agent"], alone["agent"], agent, starts)
    both, weights = our_whole_update(config, device, precision, batch, context)
    updates["both"] = Update(OURS, both, lambda: alone["world_model"]() | alone["agent"](), weights, starts)
    return updates


def our_whole_update(
    config: TrainConfig, device: torch.device, precision: torch.dtype, batch: Batch, context: Batch
) -> tuple[Callable[[], Losses], list[nn.Parameter]]:
    """Both updates as training runs them on the device, warm; and the weights that they move."""
    learner = Learner(config, NUM_ACTIONS, device, precision)
    calls: list[Callable[[], Losses]] = [
        partial(learner.update_world_model, batch),
        partial(learner.update_agent, context),
    ]
    mode = resolve_mode("auto", device)
    if mode != "off":
        compile_parts(learner, Player(learner.inference, learner.agent, config.acting, config.num_envs))
    if mode == "graphs":
        shared = GraphPool(device)
        calls = [GraphedCall(call, shared) for call in calls]

    def both() -> Losses:
        return calls[0]() | calls[1]()

    for _ in range(0 if mode == "off" else WARMUP_CALLS + 1):
        both()
    return both, [*learner.trained["world_model"], *learner.trained["agent"]]


def load_rival() -> Any:
    """The module that builds TorchRL's. Raises: UserError where torchrl is not installed, or is one without DreamerV3."""
    try:
        return importlib.import_module("bench.peers.torchrl_dreamer")
    except ImportError as error:
        raise UserError(f"this needs torchrl with its DreamerV3 ({error}); {INSTALL}") from None


def rival_updates(
    sizes: Sizes, kernel: int, device: torch.device, precision: torch.dtype, batch: Batch
) -> dict[str, Update]:
    """Part -> update, by TorchRL. Raises: UserError without it."""
    rival = load_rival()
    alone, whole, plain = (
        rival.Dreamer(sizes, kernel, device, precision, whole=is_whole) for is_whole in (False, True, True)
    )
    model, agent = alone.world_model_update(alone.sample(batch)), alone.agent_update(alone.starts())
    both = whole.whole_update(whole.sample(batch), eager=False)
    eager = plain.whole_update(plain.sample(batch), eager=True)
    name = f"{RIVAL}, kernel {kernel}"
    return {
        "world_model": Update(name, model, model, alone.world_model_parameters, 0),
        "agent": Update(RIVAL, agent, agent, alone.agent_parameters, sizes.starts),
        "both": Update(
            name, both, eager, [*whole.world_model_parameters, *whole.agent_parameters], sizes.batch * sizes.length
        ),
    }


# --- checking and timing -----------------------------------------------------------------------------------------


def check(update: Update, calls: int = 4) -> None:
    """That it is an update: losses finite, and every weight moved by `calls` of them. Raises: CheckError.

    One does not move all: a head whose output layer begins at 0 gives the layers before it no gradient.
    """
    before = [weight.detach().clone() for weight in update.weights]
    for _ in range(calls):
        losses = update.call()
    infinite = [
        name for name, value in losses.items() if isinstance(value, Tensor) and not bool(value.isfinite().all())
    ]
    if infinite:
        raise CheckError(f"{update.library}: not finite: {', '.join(infinite)}")
    still = sum(torch.equal(old, new) for old, new in zip(before, update.weights, strict=True))
    if still:
        raise CheckError(
            f"{update.library}: {still} of {len(before)} weights are what they were before {calls} updates"
        )


def measure(updates: Sequence[Update], rounds: int, device: torch.device) -> list[Row]:
    """Rows of one part, ours first."""
    for update in updates:
        check(update)
    seconds = take_turns({update.library: update.call for update in updates}, rounds, device)
    found = compare(seconds, OURS)
    rows = []
    for update in updates:
        update.counted()  # the first makes optimiser state
        work = count(update.counted, device)
        weights = sum(weight.numel() for weight in update.weights)
        counted = {
            "flops": work.flops,
            "launches": work.launches,
            "host_reads": len(work.host_reads),
            "parameters": weights,
            "starts": update.starts,
        }
        rows.append({"library": update.library} | found[update.library] | counted)
    return rows


def measure_preset(preset: str, precision: str, given: argparse.Namespace, device: torch.device) -> list[Row]:
    config = preset_config(preset, "standard")
    torch.manual_seed(0)
    batch, dtype = (
        random_batch(config.world_model.batch_size, config.world_model.batch_length, device),
        getattr(torch, precision),
    )
    rivals = [rival_updates(sizes_of(config), kernel, device, dtype, batch) for kernel in given.kernel_size]
    ours = our_updates(config, device, dtype, batch)
    rows = []
    for part in given.part:
        theirs = [rival[part] for rival in rivals]
        found = measure(
            [ours[part], *theirs[: 1 if part == "agent" else None]], given.rounds, device
        )  # no convolution is in it
        rows += [{"preset": preset, "precision": precision, "part": part} | row for row in found]
    return rows


# --- command line ------------------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    parser = side_by_side.parser_of(__doc__, rounds=16)
    several = "may be given more than once; default"
    parser.add_argument(
        "--preset", action="append", choices=list(PRESETS), help=f"{several} tiny and cpu, on CUDA storm and fast"
    )
    precision = f"of all sides; {several} both where the device has bfloat16"
    parser.add_argument("--precision", action="append", choices=["float32", "bfloat16"], help=precision)
    parser.add_argument("--part", action="append", choices=list(PARTS), help=f"{several} all")
    parser.add_argument(
        "--kernel-size", action="append", type=int, metavar="N", help="odd, of TorchRL's convolutions; default 3 and 5"
    )
    return parser.parse_args()


def run(given: argparse.Namespace) -> dict[str, Any]:
    device = side_by_side.check_common(given)
    given.kernel_size = given.kernel_size or [3, 5]
    if any(kernel not in (3, 5, 7) for kernel in given.kernel_size):
        raise UserError(f"--kernel-size must be 3, 5 or 7, got {', '.join(map(str, given.kernel_size))}")
    given.preset, given.part = given.preset or DEFAULT_PRESETS[device.type], given.part or list(PARTS)
    given.precision = given.precision or ["float32", *(["bfloat16"] if native_bfloat16(device)[0] else [])]
    load_rival()
    keep_freed_memory()  # as training does; it is the process's, so that TorchRL has it too
    names = ("device", "threads", "rounds", "preset", "precision", "part", "kernel_size")
    options = {name.replace("_", "-"): getattr(given, name) for name in names}
    result = side_by_side.begin("bench/peers/world_model.py", options, ("torchrl", "tensordict"), device)
    result["sizes"] = {preset: asdict(sizes_of(preset_config(preset, "standard"))) for preset in given.preset}
    for preset, precision in product(given.preset, given.precision):
        side_by_side.add(result, measure_preset(preset, precision, given, device), given.json)
        print(f"{preset}, {precision}: done", file=sys.stderr)
    return result


def show(result: dict[str, Any]) -> str:
    return f"{heading(result)}\n\n{grid(HEADER, [cells(row) for row in result['rows']])}"


def cells(row: Row) -> list[str]:
    """One row of the table, in the order of HEADER."""
    times = f"{1e3 * row['seconds']:.1f} ({1e3 * row['seconds_iqr']:.1f})"
    work = [
        f"{row['flops'] / 1e9:.3g}",
        f"{row['flops'] / row['seconds'] / 1e9:.0f}",
        f"{row['launches']:,}",
        f"{row['host_reads']:,}",
    ]
    what = [row["preset"], row["precision"], PARTS[row["part"]], row["library"]]
    return [*what, times, over_text(row), *work, f"{row['parameters']:,}", str(row["starts"] or "-")]


def main() -> int:
    return side_by_side.main_of("world_model", parse, run, show)


if __name__ == "__main__":
    sys.exit(main())
