"""Memory of a training run: counted before it starts, and compared with what is there.

The count runs the phases that train, on meta tensors (meta_tensors.py), and follows every storage. It says what
tensors take. What torch's allocator, cuBLAS, cuDNN or oneDNN take on top is an allowance, stated below.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from stormfast.compile import Updates
from stormfast.demonstration import load_demonstration
from stormfast.errors import UserError
from stormfast.learner import Learner
from stormfast.memory.free import available_memory
from stormfast.memory.meta_tensors import META, LiveBytes, Peak, meta_autocast, storage_bytes
from stormfast.plan import Plan
from stormfast.player import Player
from stormfast.records import OBS_SHAPE
from stormfast.replay import ROW_BYTES, Replay
from stormfast.settings import TrainConfig

GB = 10**9
# Not counted but taken. On a CPU resident memory grew by 14 % more than the count (storm's sizes with 256 rollouts of
# 4 steps, float32, 1.80 GB counted) and by 0.10 GB (cpu preset, 0.18 GB counted; both torch 2.13, AMD EPYC). On CUDA
# they are not measured yet, but from the libraries' defaults: `python -m profiling.memory --measure` prints what a
# GPU takes.
ROUNDING = 0.10  # of all but replay: blocks rounded up to 512 bytes or 2 MB, and holes between them
LIBRARIES = {"cuda": 250_000_000, "cpu": 250_000_000}  # workspaces of cuBLAS (32 MiB a stream on sm_90), cuDNN, oneDNN
CONTEXT = {"cuda": 600_000_000, "cpu": 0}  # the CUDA context and its loaded code, outside torch's allocator
PHASES = {"world_model": "world-model update", "agent": "imagination + agent update", "acting": "acting"}
LABELS = {
    "replay": "replay",
    "weights": "weights (float32)",
    "copies": "inference copies, acting context",
    "gradients": "gradients",
    "moments": "Adam moments",
    "cache": "K/V cache",
    **PHASES,
    "pool": "pool of captured graphs",
    "allowance": "allowance: rounding, libraries",
    "context": "allowance: CUDA context",
}
FLAGS = {  # part -> the setting that makes it smaller
    "replay": "--replay.capacity",
    "world_model": "--world-model.batch-size",
    "agent": "--imagination.batch-size",
    "cache": "--imagination.batch-size",
    "moments": "--world-model.width",
    "acting": "--num-envs",
}


@dataclass(frozen=True)
class Estimate:
    """Bytes of each part of a run. The phases are what each has alive at its peak beyond what is there all the time."""

    replay: int  # the store, with the demonstration
    weights: int  # float32 masters and buffers of world model, actor, critic and slow critic
    copies: int  # for inference, in the dtype of the arithmetic, and the acting context
    gradients: int
    moments: int  # Adam's
    cache: int  # keys and values of imagination
    world_model: int
    agent: int
    acting: int
    pool: int  # what the pool of captured graphs holds while another phase still runs eagerly
    allowance: int
    context: int

    @property
    def persistent(self) -> int:
        return self.replay + self.weights + self.copies + self.gradients + self.moments + self.cache

    @property
    def tensors(self) -> int:
        """The most that tensors take at once, as torch.cuda.max_memory_allocated counts: without the graphs' pool."""
        return self.persistent + max(getattr(self, phase) for phase in PHASES)

    @property
    def total(self) -> int:
        return self.tensors + self.pool + self.allowance + self.context

    def parts(self) -> dict[str, int]:
        """Label -> bytes, of all that adds up to the total: the largest phase stands for the three."""
        largest = max(PHASES, key=lambda phase: getattr(self, phase))
        return {
            LABELS[f.name]: getattr(self, f.name) for f in fields(self) if f.name not in PHASES or f.name == largest
        }


# --- counting ----------------------------------------------------------------------------------------------------


def estimate(
    config: TrainConfig, num_actions: int, precision: torch.dtype, device_type: str = "cuda", *, captured: bool = False
) -> Estimate:
    """Bytes that a run will take on a device of that type, with its updates captured as CUDA graphs or not.

    Takes no memory and no random numbers, and counts the same sizes once a process: a count takes 0.3 to 1 s of a CPU.
    Raises: UserError for a bad demonstration.
    """
    if config.replay.demonstration is not None:  # the file may change
        return count(config, num_actions, precision, device_type, captured=captured)[0]
    sizes = replace(
        TrainConfig(),
        num_envs=config.num_envs,
        replay=config.replay,
        world_model=config.world_model,
        imagination=config.imagination,
        agent=config.agent,
        acting=config.acting,
    )
    return _estimate(sizes, num_actions, precision, device_type, captured)


@functools.lru_cache(maxsize=64)
def _estimate(
    sizes: TrainConfig, num_actions: int, precision: torch.dtype, device_type: str, captured: bool
) -> Estimate:
    return count(sizes, num_actions, precision, device_type, captured=captured)[0]


def count(
    config: TrainConfig,
    num_actions: int,
    precision: torch.dtype,
    device_type: str,
    *,
    captured: bool = False,
    trace: bool = False,
) -> tuple[Estimate, dict[str, Peak]]:
    """The estimate, and the peak of each phase by name; with trace also where it is and which tensors are alive."""
    with meta_autocast(device_type), LiveBytes(trace=trace) as live:
        replay = full_replay(config, num_actions)
        learner = MetaTensorLearner(config, num_actions, precision)
        player = Player(learner.inference, learner.agent, config.acting, config.num_envs)
        persistent = {"replay": replay.nbytes, **learner.persistent()}
        rest, peaks = live.now, {}
        for name, phase in run_phases(
            config, learner, replay, player, torch.default_generator
        ).items():  # it draws nothing for meta tensors
            live.begin()
            phase()
            peaks[name] = live.traced_peak()
    persistent["copies"] = rest - sum(persistent.values())
    above = {name: peak.num_bytes - rest for name, peak in peaks.items()}
    # Graphs share a pool that eager calls have no part in. One update may be captured before the other's first, eager
    # calls: then the memory of both is taken. Once both are captured the pool is as large as the larger; the allocator
    # gives nothing back before it must.
    pool = min(above["world_model"], above["agent"]) if captured else 0
    tensors = rest - persistent["replay"] + max(above.values())
    allowance = LIBRARIES[device_type] + int(ROUNDING * (tensors + pool))
    return Estimate(**persistent, **above, pool=pool, allowance=allowance, context=CONTEXT[device_type]), peaks


def run_phases(
    config: TrainConfig, learner: Learner, replay: Replay, player: Player, generator: torch.Generator
) -> dict[str, Callable[[], object]]:
    """Name -> phase of a training step, for PHASES."""
    updates = Updates(config, learner, replay, generator)

    def acting() -> None:
        player.refresh()
        act_on_black_frames(player)

    return {"world_model": updates.update_world_model, "agent": updates.update_agent, "acting": acting}


def act_on_black_frames(player: Player) -> None:
    obs, flags = np.zeros((player.num_envs, *OBS_SHAPE), np.uint8), np.zeros(player.num_envs, np.bool_)
    player.act(obs, flags, flags)


def full_replay(config: TrainConfig, num_actions: int) -> Replay:
    """A full store of the run's size; a demonstration counts as more rows."""
    settings = config.replay
    longest = max(config.world_model.batch_length, config.imagination.window_length)
    demonstration = load_demonstration(settings.demonstration, num_actions, longest) if settings.demonstration else ()
    replay = Replay(
        settings.capacity,
        config.num_envs,
        META,
        recency=settings.recency,
        keep_last_obs=config.world_model.separate_episodes,
    )
    replay._store = torch.empty(replay.capacity + len(demonstration), ROW_BYTES, dtype=torch.uint8, device=META)
    replay.restore_written(np.full(config.num_envs, replay.rows_per_stream), replay.id)
    return replay


class MetaTensorLearner(Learner):
    """A learner of meta tensors in mid-training.

    Clipping and fused Adam refuse them; both work in place, so that their state is all that counts.
    """

    def __init__(self, config: TrainConfig, num_actions: int, precision: torch.dtype) -> None:
        with META:
            super().__init__(config, num_actions, META, precision)
        for parameter in self.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.moments = [torch.zeros_like(parameter) for _ in range(2) for parameter in self.parameters()]

    def parameters(self) -> list[Tensor]:
        return [parameter for trained in self.trained.values() for parameter in trained]

    def descend(self, name: str, loss: Tensor, clip_norm: float) -> Tensor:
        self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()

    def persistent(self) -> dict[str, int]:
        """Bytes of each part of Estimate that the learner has all the time."""
        modules = (self.world_model, self.agent)
        cache = self.imagination.cache
        return {
            "weights": storage_bytes([t for module in modules for t in (*module.parameters(), *module.buffers())]),
            "gradients": storage_bytes([p.grad for p in self.parameters() if p.grad is not None]),
            "moments": storage_bytes(self.moments),
            "cache": storage_bytes([cache.key, cache.value]),
        }


# --- comparing ---------------------------------------------------------------------------------------------------


def check_fits(config: TrainConfig, decided: Plan, num_actions: int) -> None:
    """Raises UserError when the run needs more memory than is free on the device. Passes where that cannot be known."""
    device = decided.device
    free = available_memory(device)
    if free is None:
        return
    found = as_filled(estimate_of(decided, config, num_actions), config, device)
    needed = found.total - found.context  # asking for free memory has made the context
    if needed > free:
        raise UserError(
            f"This run does not fit in memory: it needs {gigabytes(needed)} on {device}, but {gigabytes(free)} are "
            f"free; {advice(found)}, or take a smaller --preset"
        )


def as_filled(found: Estimate, config: TrainConfig, device: torch.device) -> Estimate:
    """On a CPU, replay without the rows that no step will bring: pages are taken as rows arrive.

    A step brings two rows at most: a last observation is a row too. On CUDA the whole store is taken at the start.
    """
    if device.type == "cuda":
        return found
    unused = max(0, config.replay.capacity - 2 * config.steps - config.num_envs)
    return replace(found, replay=found.replay - unused * ROW_BYTES)


def advice(found: Estimate) -> str:
    """The largest part that a setting makes smaller, with its flag."""
    largest = max(FLAGS, key=lambda name: getattr(found, name))
    return f"{LABELS[largest]} takes {gigabytes(getattr(found, largest))}: lower {FLAGS[largest]}"


def num_fitting(config: TrainConfig, decided: Plan, num_actions: int) -> int:
    """How many processes with such a run fit in the free memory of a CUDA device: 0 or more. Raises: UserError."""
    free = available_memory(decided.device)
    if free is None:
        raise ValueError(f"free memory is known on CUDA, not on {decided.device}")
    return free // estimate_of(decided, config, num_actions).total


def estimate_of(decided: Plan, config: TrainConfig, num_actions: int) -> Estimate:
    """The estimate with the precision and the capture that the run will have on this device. Raises: UserError."""
    captured = decided.device.type == "cuda" and decided.compile == "graphs"
    try:
        return estimate(config, num_actions, decided.precision, decided.device.type, captured=captured)
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise UserError(
            f"This run does not fit in memory: {str(error).splitlines()[0]}; take smaller sizes, or a --preset"
        ) from None


def gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / GB:.1f} GB" if num_bytes >= GB else f"{num_bytes / GB:.2f} GB"
