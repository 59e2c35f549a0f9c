"""How long does an update take beside TorchRL's DreamerV3 at comparable sizes?

    pip install -e ".[peers]"                                                                # torchrl
    python -m bench.peers.world_model --json bench/results/DEVICE/peers-world-model.json
    python -m bench.peers.world_model --preset storm --precision bfloat16 --kernel-size 3 --rounds 8 --threads 1

Three updates, each from data in memory to changed weights. world_model: forward, losses, backward, optimiser. agent:
imagination and the agent's update. Both of these are eager in both libraries. both: the two together as each library
runs them on this device: ours compiled and captured on CUDA and eager on a CPU, as in training; TorchRL's by its own
stepper, which does the same.

The models differ (a transformer and an RSSM), so FLOPs, launches, parameters and starts of imagination, counted alike,
stand beside the times. TorchRL's convolutions need an odd kernel: 3 and 5 are on either side of our 4. Exit status:
0 done, 1 an update gave losses that are not finite or left weights unchanged, 2 bad arguments or no torchrl.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from bench.peers import runner
from bench.peers.runner import OURS, CheckError, Row, summarize, time_interleaved
from bench.script import Parser
from stormfast.compile import WARMUP_CALLS, GraphedCall, GraphPool, compile_parts
from stormfast.device import keep_freed_memory, native_bfloat16
from stormfast.learner import Learner
from stormfast.measure.op_counts import count
from stormfast.plan import choose_compile
from stormfast.player import Player
from stormfast.presets import PRESETS, preset_config
from stormfast.records import OBS_SHAPE, Batch
from stormfast.settings import TrainConfig

NUM_ACTIONS = 18  # the most of any game
PARTS = ("world_model", "agent", "both")
DEFAULT_PRESETS = {"cpu": ["tiny", "cpu"], "cuda": ["storm", "fast"]}
CHECKED_CALLS = 4  # the first does not change all weights: behind an output layer of zeros there is no gradient
Call = Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class Update:
    """One library's update.

    Attributes:
        call: makes one, and returns its losses.
        eager: the same without a CUDA graph, whose launches cannot be counted.
        weights: what it changes.
        starts: rollouts that it imagines.
    """

    library: str
    call: Call
    eager: Call
    weights: Sequence[nn.Parameter]
    starts: int


def random_batch(batch: int, length: int, device: torch.device) -> Batch:
    """[batch, length] steps of noise, no episode begins or ends: an update takes as long on them as on frames."""
    no = torch.zeros(batch, length, dtype=torch.bool, device=device)
    return Batch(
        obs=torch.randint(256, (batch, length, *OBS_SHAPE), dtype=torch.uint8, device=device),
        action=torch.randint(NUM_ACTIONS, (batch, length), device=device),
        reward=torch.randn(batch, length, device=device),
        **dict.fromkeys(("terminated", "truncated", "life_lost", "is_first", "is_last"), no),
    )


def our_updates(config: TrainConfig, device: torch.device, precision: torch.dtype, batch: Batch) -> dict[str, Update]:
    """Part -> update. `both` has a learner of its own: compiling it leaves the parts eager."""
    starts = config.imagination.batch_size
    context = random_batch(starts, config.imagination.context, device)
    parts, whole = (Learner(config, NUM_ACTIONS, device, precision) for _ in range(2))
    world_model, agent = partial(parts.update_world_model, batch), partial(parts.update_agent, context)
    as_trained: list[Call] = [partial(whole.update_world_model, batch), partial(whole.update_agent, context)]
    mode, _ = choose_compile("auto", device)
    if mode != "off":
        compile_parts(whole, Player(whole.inference, whole.agent, config.acting, config.num_envs))
    if mode == "graphs":
        pool = GraphPool(device)
        as_trained = [GraphedCall(call, pool) for call in as_trained]

    def both() -> dict[str, Tensor]:
        return as_trained[0]() | as_trained[1]()

    for _ in range(0 if mode == "off" else WARMUP_CALLS + 1):  # compiles and captures
        both()
    weights = [*whole.trained["world_model"], *whole.trained["agent"]]
    return {
        "world_model": Update(OURS, world_model, world_model, parts.trained["world_model"], 0),
        "agent": Update(OURS, agent, agent, parts.trained["agent"], starts),
        "both": Update(OURS, both, lambda: world_model() | agent(), weights, starts),
    }


def torchrl_updates(
    config: TrainConfig, kernel: int, device: torch.device, precision: torch.dtype, batch: Batch
) -> dict[str, Update]:
    """Part -> update, by TorchRL with convolutions of this kernel size. Raises: ImportError without torchrl."""
    from bench.peers.torchrl_dreamer import Dreamer

    parts, whole, eager = (Dreamer(config, kernel, device, precision, whole=each) for each in (False, True, True))
    world_model = partial(parts.update_world_model, parts.sample(batch))
    agent = partial(parts.update_agent, parts.starts())
    both = whole.whole_update(whole.sample(batch), eager=False)
    counted = eager.whole_update(eager.sample(batch), eager=True)
    weights = [*whole.trained["world_model"], *whole.trained["agent"]]
    name, starts = f"torchrl, kernel {kernel}", config.imagination.batch_size
    return {
        "world_model": Update(name, world_model, world_model, parts.trained["world_model"], 0),
        "agent": Update("torchrl", agent, agent, parts.trained["agent"], starts),
        "both": Update(name, both, counted, weights, batch.action.numel()),
    }


def check_update(update: Update) -> None:
    """Losses are finite and every weight changes. Raises: CheckError."""
    before = [weight.detach().clone() for weight in update.weights]
    for _ in range(CHECKED_CALLS):
        losses = update.call()
    infinite = [name for name, loss in losses.items() if isinstance(loss, Tensor) and not bool(loss.isfinite().all())]
    if infinite:
        raise CheckError(f"{update.library}: not finite: {', '.join(infinite)}")
    unchanged = sum(torch.equal(old, new) for old, new in zip(before, update.weights, strict=True))
    if unchanged:
        raise CheckError(f"{update.library}: {unchanged} of {len(before)} weights unchanged by {CHECKED_CALLS} updates")


def count_work(update: Update, device: torch.device) -> Row:
    update.eager()  # the first call creates the optimiser's state
    work = count(update.eager, device)
    counts = {"flops": work.flops, "launches": work.launches, "host_reads": len(work.host_reads)}
    return counts | {"parameters": sum(weight.numel() for weight in update.weights), "starts": update.starts}


def measure_part(updates: Sequence[Update], rounds: int, device: torch.device) -> list[Row]:
    """A row of each library for one part of the update, ours first."""
    for update in updates:
        check_update(update)
    measured = summarize(time_interleaved({update.library: update.call for update in updates}, rounds, device))
    return [{"library": update.library} | measured[update.library] | count_work(update, device) for update in updates]


def measure(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, list[Row]]]:
    presets = options.preset or DEFAULT_PRESETS[device.type]
    precisions = options.precision or ["float32", *(["bfloat16"] if native_bfloat16(device)[0] else [])]
    keep_freed_memory()  # as training does; it holds for the process, so TorchRL has it too
    for preset, precision in product(presets, precisions):
        config, dtype = preset_config(preset, "standard"), getattr(torch, precision)
        torch.manual_seed(0)
        batch = random_batch(config.world_model.batch_size, config.world_model.batch_length, device)
        peers = [torchrl_updates(config, kernel, device, dtype, batch) for kernel in options.kernel_size]
        ours = our_updates(config, device, dtype, batch)
        for part in PARTS:
            theirs = [peer[part] for peer in (peers[:1] if part == "agent" else peers)]  # the agent has no convolutions
            rows = measure_part([ours[part], *theirs], options.rounds, device)
            yield {"rows": [{"preset": preset, "precision": precision, "part": part} | row for row in rows]}


def add_options(parser: Parser) -> None:
    parser.add_argument(
        "--preset", nargs="+", choices=list(PRESETS), help="default: tiny and cpu; on CUDA storm and fast"
    )
    parser.add_argument("--precision", nargs="+", choices=["float32", "bfloat16"], help="default: what the device has")
    kernels = "of TorchRL's convolutions (default: 3 5)"
    parser.add_argument("--kernel-size", nargs="+", type=int, choices=[3, 5, 7], default=[3, 5], help=kernels)


def main(words: Sequence[str] | None = None) -> int:
    packages = ("torchrl", "tensordict")
    return runner.main("world_model", __doc__, measure, words, rounds=16, add_options=add_options, packages=packages)


if __name__ == "__main__":
    sys.exit(main())
