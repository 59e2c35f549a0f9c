"""Memory of a training run: counted before it starts, and compared with what is there.

The count runs the phases that train, on tensors without memory (weightless.py), and follows every storage. It says what
tensors take. What torch's allocator, cuBLAS, cuDNN or oneDNN take on top is an allowance, stated below.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

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
from stormfast.schema import flatten, override
from stormfast.settings import TrainConfig, validate
from stormfast.world_model.encoder import FEATURE_SIZE

GB = 10**9
# Not counted but taken. On a CPU resident memory grew by 14 % more than the count (storm's sizes with 256 rollouts of 4 steps, float32,
# 1.80 GB counted) and by 0.10 GB (cpu preset, 0.18 GB counted; both torch 2.13, AMD EPYC). On CUDA they are not measured yet, but from
# the libraries' defaults: `profiling/memory.py --measure` prints what a GPU takes.
ROUNDING = 0.10  # of all but replay: blocks rounded up to 512 bytes or 2 MB, and holes between them
LIBRARIES = {
    "cuda": 250_000_000,
    "cpu": 250_000_000,
}  # workspaces: cuBLAS takes 32 MiB a stream on sm_90, cuDNN and oneDNN theirs
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
    "pool": "kept by captured graphs",
    "allowance": "allowance: rounding, libraries",
    "context": "allowance: CUDA context",
}


@dataclass(frozen=True)
class Estimate:
    """Bytes of each part of a run. The phases are what each has alive at its peak beyond what is always kept."""

    replay: int  # the store, with the demonstration
    weights: int  # float32 masters and buffers of world model, actor, critic and slow critic
    copies: int  # for inference, in the dtype of the arithmetic, and what else is kept: the acting context
    gradients: int
    moments: int  # Adam's
    cache: int  # keys and values of imagination
    world_model: int
    agent: int
    acting: int
    pool: int  # what graphs keep to themselves while another phase still runs eagerly
    allowance: int
    context: int

    @property
    def kept(self) -> int:
        return self.replay + self.weights + self.copies + self.gradients + self.moments + self.cache

    @property
    def tensors(self) -> int:
        """The most that tensors take at once: what torch.cuda.max_memory_allocated counts. It leaves out what a captured graph has freed."""
        return self.kept + max(getattr(self, phase) for phase in PHASES)

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

    Takes no memory and no random numbers. Raises: UserError for a bad demonstration.
    """
    return count(config, num_actions, precision, device_type, captured=captured)[0]


def count(
    config: TrainConfig,
    num_actions: int,
    precision: torch.dtype,
    device_type: str,
    *,
    captured: bool = False,
    trace: bool = False,
) -> tuple[Estimate, dict[str, Peak]]:
    """The estimate, and the peak of each phase by name; with trace it says where that is, what is alive, and what came and went."""
    with meta_autocast(device_type), LiveBytes(trace=trace) as live:
        replay = full_replay(config, num_actions)
        learner = MetaTensorLearner(config, num_actions, precision)
        player = Player(learner.inference, learner.agent, config.acting, config.num_envs)
        kept = {"replay": replay.nbytes, **learner.kept()}
        rest, peaks = live.now, {}
        for name, phase in run_phases(
            config, learner, replay, player, torch.default_generator
        ).items():  # it draws nothing for meta tensors
            live.begin()
            phase()
            peaks[name] = live.traced_peak()
    kept["copies"] = rest - sum(kept.values())
    above = {name: peak.num_bytes - rest for name, peak in peaks.items()}
    # Graphs share a pool that eager calls have no part in. One update may be captured before the other's first, eager calls: then the
    # memory of both is held. Once both are captured the pool is as large as the larger; the allocator gives nothing back before it must.
    pool = min(above["world_model"], above["agent"]) if captured else 0
    tensors = rest - kept["replay"] + max(above.values())
    allowance = LIBRARIES[device_type] + int(ROUNDING * (tensors + pool))
    return Estimate(**kept, **above, pool=pool, allowance=allowance, context=CONTEXT[device_type]), peaks


def run_phases(
    config: TrainConfig, learner: Learner, replay: Replay, player: Player, generator: torch.Generator
) -> dict[str, Callable[[], object]]:
    """Name -> phase of a training step, for PHASES."""
    updates = Updates(config, learner, replay, generator)
    return {"world_model": updates.update_world_model, "agent": updates.update_agent, "acting": lambda: acting(player)}


def acting(player: Player) -> None:
    """What a player does between two updates, on frames that are all black."""
    obs, flags = np.zeros((player.num_envs, *OBS_SHAPE), np.uint8), np.zeros(player.num_envs, np.bool_)
    player.refresh()
    player.act(obs, flags, flags)


def full_replay(config: TrainConfig, num_actions: int) -> Replay:
    """A full store of the run's size; a demonstration counts as more rows."""
    settings = config.replay
    longest = max(config.world_model.batch_length, config.imagination.context)
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
    """A learner of meta tensors in mid-training. Clipping and fused Adam refuse them; both work in place, so their state is all that counts."""

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

    def kept(self) -> dict[str, int]:
        """Bytes of each part of Estimate that is the learner's and always there."""
        modules = (self.world_model, self.agent)
        cache = self.imagination.cache
        return {
            "weights": storage_bytes([t for module in modules for t in (*module.parameters(), *module.buffers())]),
            "gradients": storage_bytes([p.grad for p in self.parameters() if p.grad is not None]),
            "moments": storage_bytes(self.moments),
            "cache": storage_bytes([cache.key, cache.value]),
        }


def upper_bound(config: TrainConfig, num_actions: int) -> int:
    """Bytes that are more than enough for a run without demonstration on any device, from its sizes alone, in microseconds.

    float32 numbers of each parameter, frame and token, generously counted; tests hold it against the estimate.
    """
    model, imagination, agent = config.world_model, config.imagination, config.agent
    latent, width, tokens = model.categoricals * model.classes, model.width, 2 if model.tokens == "separate" else 1
    pairs = list(zip((OBS_SHAPE[0], *model.channels), model.channels, strict=False))
    cells = sum(
        channels * (OBS_SHAPE[1] >> i) ** 2 for i, channels in enumerate((OBS_SHAPE[0], *model.channels))
    )  # encoder outputs of a frame
    parameters = (
        sum(32 * a * b for a, b in pairs)
        + latent * (2 * FEATURE_SIZE**2 * model.channels[-1] + width)
        + tokens * width * (latent + num_actions + width + model.max_length)
        + width * ((8 * model.layers + 4) * width + 512)
        + agent.width * (3 * (latent + width + agent.width) + num_actions + 512)
    )
    steps, rollouts = model.batch_size * model.batch_length, imagination.batch_size
    context, imagined = rollouts * imagination.context, rollouts * (imagination.horizon + 1)
    numbers = (
        10 * parameters
        + cells * (8 * steps + 3 * context + 4 * config.num_envs * config.acting.context)
        + steps
        * tokens
        * (
            16 * latent
            + model.layers * (40 * width + 8 * model.heads * tokens * model.batch_length)
            + 20 * width
            + 4_000
        )
        + context * tokens * (10 * latent + 20 * width + 8 * model.heads * tokens * imagination.context)
        + imagined * (6 * (latent + width) + 40 * agent.width + 16 * num_actions + 4_000)
        + 2 * model.layers * tokens * width * (context + imagined)
    )
    return (
        config.replay.capacity * ROW_BYTES
        + int((1 + ROUNDING) * 4 * numbers)
        + max(LIBRARIES.values())
        + max(CONTEXT.values())
    )


# --- comparing ---------------------------------------------------------------------------------------------------


def check_fits(config: TrainConfig, decided: Plan, num_actions: int) -> None:
    """Raises UserError when the run needs more memory than is free on the device. Says nothing where that cannot be known."""
    device = decided.device
    free = available_memory(device)
    if free is None or (config.replay.demonstration is None and upper_bound(config, num_actions) <= free):
        return

    def need(changed: TrainConfig) -> Need:
        return Need(changed, device, estimate_of(decided, changed, num_actions))

    found = need(config)
    if found.num_bytes > free:
        raise UserError(
            f"This run does not fit in memory: it needs {found} on {device}, but {gigabytes(free)} are free; {_advice(found, free, need)}"
        )


def num_fitting(config: TrainConfig, decided: Plan, num_actions: int) -> int:
    """How many runs like this one, each a process, fit in the memory that is free on a CUDA device: 0 or more. Raises: UserError."""
    device = decided.device
    free = available_memory(device)
    if free is None:
        raise ValueError(f"free memory is known on CUDA, not on {device}")
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


@dataclass(frozen=True)
class Need:
    """What a run will take of the memory that is free before it."""

    config: TrainConfig
    device: torch.device
    estimate: Estimate

    @property
    def rows(self) -> int:
        """Rows of replay that will be in memory. On a CPU pages are taken as rows arrive, two a step at most: one for each last observation."""
        capacity = self.config.replay.capacity
        return capacity if self.device.type == "cuda" else min(capacity, 2 * self.config.steps + self.config.num_envs)

    @property
    def num_bytes(self) -> int:
        """Without the CUDA context: asking for free memory has made it."""
        return self.estimate.total - self.estimate.context - (self.config.replay.capacity - self.rows) * ROW_BYTES

    def __str__(self) -> str:
        """1.2 GB (replay 0.8 GB, ...), with the largest parts."""
        parts = self.estimate.parts()
        del parts[LABELS["context"]]
        parts[LABELS["replay"]] -= (self.config.replay.capacity - self.rows) * ROW_BYTES
        largest = sorted(parts.items(), key=lambda part: -part[1])[:3]
        return f"{gigabytes(self.num_bytes)} ({', '.join(f'{label} {gigabytes(size)}' for label, size in largest)})"


def _advice(found: Need, free: int, need: Callable[[TrainConfig], Need]) -> str:
    """The flag whose part is the largest of those that, made smaller alone, let the run fit, and a value that does."""
    config, parts = found.config, found.estimate
    sizes = {
        "replay.capacity": parts.replay,
        "world_model.batch_size": parts.world_model,
        "imagination.batch_size": parts.agent + parts.cache,
    }
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if found.num_bytes - (1 + ROUNDING) * sizes[name] > free:
            continue  # not even without it
        for value in _smaller(found, free) if name == "replay.capacity" else _halves(flatten(config)[name]):
            changed = override(config, {name: value})
            if not _is_valid(changed):
                break
            if need(changed).num_bytes <= free:
                return f"give --{name.replace('_', '-')} {value}"
    return "take a smaller --preset, or another --device"


def _smaller(found: Need, free: int) -> list[int]:
    """The capacity that just fits, to two digits."""
    rows = found.rows - -(-(found.num_bytes - free) // ROW_BYTES)
    digit = 10 ** max(0, len(str(rows)) - 2)
    return [rows // digit * digit] if rows > 0 else []


def _halves(size: int) -> list[int]:
    return [size >> i for i in range(1, size.bit_length())]


def _is_valid(config: TrainConfig) -> bool:
    try:
        validate(config)
    except UserError:
        return False
    return True


def gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / GB:.1f} GB" if num_bytes >= GB else f"{num_bytes / GB:.2f} GB"
