"""FLOPs and bytes of each phase of a training step, at any sizes, on any machine.

The floor of a step is this work at a device's peaks (peaks.floor_seconds); there is no other definition.

The phases run on meta tensors, which have shapes but no memory, so that a step of any size is counted in about a
second. The operators are those that a GPU runs: attention is one operator, and so is each of our kernels. FLOPs and
bytes are counted as op counts count them: matrix products, convolutions and attention, each input read once and each
output written once. All other work (elementwise operators, normalisation, optimisers, gathers) is taken as fused
away.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stormfast.measure.op_counts import OpCounts, count
from stormfast.measure.phases import FullStep, count_phases
from stormfast.memory.estimate import MetaTensorLearner, full_replay
from stormfast.memory.meta_tensors import META, LiveBytes, meta_autocast
from stormfast.player import Player
from stormfast.runs.run import Run
from stormfast.settings import TrainConfig
from stormfast_kernels import dispatch, launch

MOST_ACTIONS = 18  # of any Atari game


def phase_work(
    config: TrainConfig, num_actions: int, precision: torch.dtype, device_type: str = "cuda"
) -> dict[str, OpCounts]:
    """The large operators of one call of each phase, by the phase's name; the phase env has none and is left out.

    Takes no memory and no random numbers.

    Args:
        precision: dtype of the arithmetic, float32 or bfloat16.
        device_type: cuda or cpu, whose autocast decides what stays float32.
    """
    with operators_as_on_a_gpu(), meta_autocast(device_type), LiveBytes():
        learner = MetaTensorLearner(config, num_actions, precision)
        player = Player(learner.inference, learner.agent, config.acting, config.num_envs)
        replay = full_replay(config, num_actions)
        step = FullStep(config, learner, replay, player, torch.default_generator)  # it draws nothing for meta tensors
        return {phase.name: OpCounts(work=count(phase.call, META).work) for phase in step.phases()}


def run_counts(run: Run) -> dict[str, OpCounts]:
    """Of each phase of a warm run: launches and host reads as it makes them here, and its work by phase_work."""
    num_actions = run.collector.env.num_actions
    work = phase_work(run.config, num_actions, run.learner.precision, run.learner.device.type)
    return {name: replace(counts, work=work.get(name, OpCounts()).work) for name, counts in count_phases(run).items()}


# --- operators as a GPU has them ---------------------------------------------------------------------------------


@contextlib.contextmanager
def operators_as_on_a_gpu() -> Iterator[None]:
    """Inside, what a CPU splits into several operators is one: our kernels, dropout and attention.

    On a CPU attention then goes without its dropout. What is computed means nothing; what is launched is what a GPU
    launches.
    """

    def attention(query: Tensor, *others: Any, dropout_p: float = 0.0, **kwargs: Any) -> Tensor:
        return (fused_attention if query.is_meta else original)(query, *others, **kwargs)

    original = F.scaled_dot_product_attention
    with (
        replaced(dispatch, "backend", lambda device: "triton"),
        replaced(launch, "INTERPRETED", False),
        replaced(F, "dropout", fused_dropout),
        replaced(F, "scaled_dot_product_attention", attention),
    ):
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def fused_dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, p, training)[0] if training and p > 0 else x


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any
) -> Tensor:
    """scaled_dot_product_attention of meta tensors, which torch would split into matrix products."""
    mask = None if attn_mask is None else torch.zeros_like(attn_mask, dtype=query.dtype)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=mask, **kwargs)[0]
