"""Which kernels a preset launches, with what shapes: the launches that training makes, on tensors without memory.

B windows   T steps a window   C context steps   R rollouts   S categoricals   K classes   H heads   L positions of the cache
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stormfast.settings import PRESETS as PRESET_TABLE
from stormfast.settings import TrainConfig, preset_config
from stormfast_kernels import attention, categorical
from stormfast_kernels.launch import Launch

PRESETS = tuple(PRESET_TABLE)
DTYPES = {
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
}  # under autocast, and as --precision float32 and acting compute


@dataclass(frozen=True)
class Case:
    """One launch that a preset makes."""

    preset: str
    what: str
    dtype: str
    shape: tuple[int, ...]  # of the logits, or of the cache
    launch: Launch

    @property
    def name(self) -> str:
        return f"{self.preset}/{self.what}/{self.dtype}"

    @property
    def kernel(self) -> str:
        return self.launch.kernel.__name__

    @property
    def programs(self) -> int:
        return torch.Size(self.launch.grid).numel()

    @property
    def loops(self) -> bool:
        """Whether a warp executes a part of the code more than once."""
        return bool(self.launch.arguments.get("LOOP", False))

    @property
    def bytes_moved(self) -> int:
        """Every tensor once. Exact for the sampling kernels; for attention it is the step that fills the cache, the longest."""
        tensors = {
            id(x): x for x in self.launch.arguments.values() if isinstance(x, Tensor)
        }  # an unused argument repeats another
        return sum(x.numel() * x.element_size() for x in tensors.values())


def cases(preset: str) -> list[Case]:
    """Every kernel launch of a training step of a preset, in both precisions."""
    config, built = preset_config(preset, "standard"), []
    for name, dtype in DTYPES.items():
        for what, (build, shape) in table(config).items():
            built.append(Case(preset, what, name, shape, build(shape, dtype, config.world_model.unimix)))
    return built


Builder = Callable[[tuple[int, ...], torch.dtype, float], Launch]


def table(config: TrainConfig) -> dict[str, tuple[Builder, tuple[int, ...]]]:
    """What is launched -> (who builds the launch, shape); who calls it with that shape stands behind it."""
    model, imagination = config.world_model, config.imagination
    latent = (model.categoricals, model.classes)
    tokens = (imagination.context + imagination.horizon) * (1 if model.tokens == "fused" else 2)
    head_size = model.width // model.heads
    return {
        "rollout-sample": (sample, (imagination.batch_size, *latent)),  # Imagination.__call__, each imagined step
        "context-sample": (sample, (imagination.batch_size, imagination.context, *latent)),  # Imagination.__call__
        "rollout-mode": (mode, (imagination.batch_size, *latent)),
        "model-sample": (sample_with_log_probs, (model.batch_size, model.batch_length, *latent)),  # WorldModel.predict
        "model-sample-gradient": (gradient_of_both, (model.batch_size, model.batch_length, *latent)),
        "prior-log-probs": (log_probs, (model.batch_size, model.batch_length - 1, *latent)),  # world_model_loss
        "prior-log-probs-gradient": (gradient_of_log_probs, (model.batch_size, model.batch_length - 1, *latent)),
        "attention-step": (
            attention_step,
            (imagination.batch_size, model.heads, tokens, head_size),
        ),  # SequenceModel.step
        "attention-step-256": (
            attention_step,
            (imagination.batch_size, model.heads, 256, head_size),
        ),  # no preset's: a long cache is read in a loop
    }


def empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor with shape and dtype and no memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def sample(shape: tuple[int, ...], dtype: torch.dtype, unimix: float) -> Launch:
    return sample_from(empty(shape[:-1]), shape, dtype, unimix)


def mode(shape: tuple[int, ...], dtype: torch.dtype, unimix: float) -> Launch:
    return sample_from("mode", shape, dtype, unimix)


def sample_from(draw: Tensor | Literal["mode"], shape: tuple[int, ...], dtype: torch.dtype, unimix: float) -> Launch:
    index = empty(shape[:-1], torch.int64)
    return categorical.forward_launch(empty(shape, dtype), draw, unimix, empty(shape, dtype), index, None)


def sample_with_log_probs(shape: tuple[int, ...], dtype: torch.dtype, unimix: float) -> Launch:
    index = empty(shape[:-1], torch.int64)
    return categorical.forward_launch(
        empty(shape, dtype), empty(shape[:-1]), unimix, empty(shape, dtype), index, empty(shape)
    )


def log_probs(shape: tuple[int, ...], dtype: torch.dtype, unimix: float) -> Launch:
    return categorical.forward_launch(empty(shape, dtype), "nothing", unimix, None, None, empty(shape))


def gradient_of_both(shape: tuple[int, ...], dtype: torch.dtype, unimix: float) -> Launch:
    return categorical.backward_launch(
        empty(shape, dtype), empty(shape, dtype), empty(shape), unimix, empty(shape, dtype)
    )


def gradient_of_log_probs(shape: tuple[int, ...], dtype: torch.dtype, unimix: float) -> Launch:
    return categorical.backward_launch(empty(shape, dtype), None, empty(shape), unimix, empty(shape, dtype))


def attention_step(shape: tuple[int, ...], dtype: torch.dtype, unimix: float) -> Launch:
    """shape: [R, H, L, head size] of the caches."""
    batch, heads, _, size = shape
    query, key, value, out = (empty((batch, heads, size), dtype) for _ in range(4))
    key_cache, value_cache = empty(shape, dtype), empty(shape, dtype)
    return attention.step_launch(
        query, key, value, key_cache, value_cache, empty((), torch.int64), empty((batch,), torch.int64), out
    )
