"""What each phase of a step asks of the device, of each preset: launches, host reads, FLOPs, bytes of large operators.

Launches and host reads are counted on a warm run of Catch on the CPU. The presets cpu and tiny run as they are. storm and fast run
their layers, steps and minibatches at small widths, with the operators that a GPU has: launches depend on none of the sizes that
were made small. FLOPs and bytes are counted at the presets' own sizes for 18 actions, on tensors without memory, so that no
machine is too small or too slow; attention is one operator there. Arithmetic is bfloat16 in storm and fast, float32 in cpu and tiny.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stormfast.loop import advance
from stormfast.measure.op_counts import OpCounts, count
from stormfast.measure.phases import FullStep, count_phases, cycle_steps
from stormfast.measure.profile import training_config
from stormfast.memory.estimate import MetaTensorLearner, full_replay
from stormfast.memory.meta_tensors import META, LiveBytes, meta_autocast
from stormfast.player import Player
from stormfast.records import OBS_SHAPE
from stormfast.runs.run import Run, build
from stormfast.schema import override
from stormfast.settings import PRESETS, ProfileConfig, TrainConfig
from stormfast_kernels import dispatch, launch

NUM_ACTIONS = 18  # the most of any game
HOST_PHASES = {"env"}  # not of the device: what it counts on a CPU is the host's work
ON_GPU = {"storm", "fast"}  # presets counted as a GPU runs them
HEAD_SIZE = 16  # the smallest that the attention kernel takes
QUICK = {"acting.random_steps": 64}
SMALL: dict[str, Any] = QUICK | {
    "world_model.channels": (4, 4, 4, 4),
    "world_model.categoricals": 4,
    "world_model.classes": 8,
    "world_model.batch_size": 2,
    "imagination.batch_size": 4,
    "agent.width": 8,
}


def collect() -> dict[str, int]:
    """Of all presets."""
    return {name: value for preset in PRESETS for name, value in of_preset(preset).items()}


def of_preset(preset: str) -> dict[str, int]:
    """PRESET.PHASE.launches, .host_reads, .flops and .bytes; of `append` and `loop` launches and host reads alone."""
    counts: dict[str, int] = {}
    work = at_full_size(preset)
    for phase, asked in as_run(preset).items():
        quantities = {
            "launches": asked.launches,
            "host_reads": len(asked.host_reads),
            "flops": work[phase].flops,
            "bytes": work[phase].bytes,
        }
        counts |= {f"{preset}.{phase}.{quantity}": value for quantity, value in quantities.items()}
    for part, asked in around(preset).items():
        counts |= {f"{preset}.{part}.launches": asked.launches, f"{preset}.{part}.host_reads": len(asked.host_reads)}
    return counts


# --- launches and host reads -------------------------------------------------------------------------------------


def as_run(preset: str) -> dict[str, OpCounts]:
    """OpCounts of each phase that is the device's, of a warm run."""
    with operators_as_on_a_gpu() if preset in ON_GPU else ExitStack(), warm_run(small_config(preset)) as run:
        return of_the_device(count_phases(run))


def around(preset: str) -> dict[str, OpCounts]:
    """What lies around the phases: `append`, a step's rows into replay, and `loop`, a cycle of the training loop with all that is in it.

    Frames on a CPU are the device's, so that what the loop does with them on the host counts too.
    """
    with operators_as_on_a_gpu() if preset in ON_GPU else ExitStack(), warm_run(small_config(preset)) as run:
        device, end = run.learner.device, run.step + cycle_steps(run.config)
        rows = run.collector.step(run.collector.act(at_random=True))

        def cycle() -> None:
            while run.step < end:
                advance(run)

        return {"append": count(lambda: run.replay.append(rows), device), "loop": count(cycle, device)}


def full_config(preset: str) -> TrainConfig:
    """A preset's run on a CPU, eager and without logs, in the precision of where it belongs."""
    precision = "bfloat16" if preset in ON_GPU else "float32"
    return override(
        training_config(ProfileConfig(preset=preset, device="cpu", compile="off")), {"precision": precision}
    )  # type: ignore[arg-type]


def small_config(preset: str) -> TrainConfig:
    """The same at sizes that are counted in a second."""
    config = full_config(preset)
    return override(
        config, SMALL | {"world_model.width": HEAD_SIZE * config.world_model.heads} if preset in ON_GPU else QUICK
    )


@contextmanager
def warm_run(config: TrainConfig) -> Iterator[Run]:
    """A run past its random steps and its first updates of each kind, on Catch."""
    with TemporaryDirectory() as directory, build(config, Path(directory)) as run:
        while run.step < config.acting.random_steps + 4:
            advance(run)
        yield run


def of_the_device(counts: dict[str, OpCounts]) -> dict[str, OpCounts]:
    return {phase: asked for phase, asked in counts.items() if phase not in HOST_PHASES}


def fused_dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, p, training)[0] if training and p > 0 else x


@contextmanager
def operators_as_on_a_gpu() -> Iterator[None]:
    """What a CPU splits is one operator, as a GPU has it: our kernels, which run their references inside, dropout, and
    attention with dropout, which here goes without. The numbers that come out mean nothing."""

    def attention(query: Tensor, *others: Any, dropout_p: float = 0.0, **kwargs: Any) -> Tensor:
        return (fused_attention if query.is_meta else scaled_dot_product_attention)(query, *others, **kwargs)

    scaled_dot_product_attention = F.scaled_dot_product_attention
    with ExitStack() as patches:
        for owner, name, other in (
            (dispatch, "backend", lambda device: "triton"),
            (launch, "INTERPRETED", False),
            (F, "dropout", fused_dropout),
            (F, "scaled_dot_product_attention", attention),
        ):
            patches.enter_context(mock.patch.object(owner, name, other))
        yield


# --- FLOPs and bytes ---------------------------------------------------------------------------------------------


def at_full_size(preset: str) -> dict[str, OpCounts]:
    return weightless(full_config(preset), NUM_ACTIONS)


def weightless(config: TrainConfig, num_actions: int) -> dict[str, OpCounts]:
    """OpCounts of each phase of a run of any size, of which only the work means something: clipping and Adam are left out.

    Takes no memory and no random numbers.
    """
    device_type = "cuda" if config.preset in ON_GPU else "cpu"
    with operators_as_on_a_gpu(), meta_autocast(device_type), Numberless():
        learner = MetaTensorLearner(config, num_actions, getattr(torch, config.precision))
        player = Player(learner.inference, learner.agent, config.acting, config.num_envs)
        obs, flags = np.zeros((config.num_envs, *OBS_SHAPE), np.uint8), np.zeros(config.num_envs, np.bool_)
        collector = SimpleNamespace(player=player, act=lambda at_random: player.act(obs, flags, flags))
        phases = SimpleNamespace(generator=torch.default_generator)  # it draws nothing for meta tensors
        replay = full_replay(config, num_actions)
        step = FullStep(
            SimpleNamespace(config=config, learner=learner, replay=replay, collector=collector, phases=phases)
        )  # type: ignore[arg-type]
        return {phase.name: count(phase.call, META) for phase in step.phases() if phase.name not in HOST_PHASES}


class Numberless(LiveBytes):
    """Where the host reads a meta tensor, which has no numbers, it gets zeros: scalars too, so that a read is counted and does not raise."""

    def read_back(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.zeros((), dtype=args[0].dtype).item()
        return super().read_back(func, args, kwargs)


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any
) -> Tensor:
    """scaled_dot_product_attention of meta tensors, which torch would split into matrix products."""
    mask = None if attn_mask is None else torch.zeros_like(attn_mask, dtype=query.dtype)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=mask, **kwargs)[0]
