"""The Triton kernel launches that training makes: one row each, with its shape, bytes and operations.

profiling/kernel_report.py, bench/counts.py, the kernel benches and the table in kernels/README.md read these rows, so a
new kernel is added here alone. Launches are built on meta tensors, which have no memory.

B windows   T steps a window   C context steps   R rollouts   S categoricals   K classes   H heads   L cache positions
D head size
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from stormfast.presets import PRESETS as PRESET_TABLE
from stormfast.presets import preset_config
from stormfast.settings import TrainConfig
from stormfast_kernels import attention, categorical
from stormfast_kernels.launch import Launch

Shape = tuple[int, ...]
PRESETS = tuple(PRESET_TABLE)
UNIMIX = 0.01  # of every preset
DTYPES = {
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
}  # what autocast, and what acting and --precision float32, compute in


@dataclass(frozen=True)
class Work:
    """What one call must do, at least.

    Attributes:
        bytes: each input read once and each output written once.
        flops: additions, multiplications, divisions, comparisons, exponentials and logarithms, one each.
    """

    bytes: float
    flops: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bytes + other.bytes, self.flops + other.flops)


@dataclass(frozen=True)
class KernelCase:
    """One way in which training launches a kernel, at any size.

    Attributes:
        name: in reports and in counts.json.
        caller: what launches it, for readers.
        shape: of the logits, or of the key cache, under a configuration.
        build: launch for a shape and a dtype.
        flops: of one launch, for a shape.
        wide_stores: whether its stores must be 16 bytes wide. Its loads always must.
    """

    name: str
    caller: str
    shape: Callable[[TrainConfig], Shape]
    build: Callable[[Shape, torch.dtype], Launch]
    flops: Callable[[Shape], float]
    wide_stores: bool = True

    def work(self, shape: Shape, dtype: torch.dtype) -> Work:
        return Work(bytes_moved(self.build(shape, dtype)), self.flops(shape))


@dataclass(frozen=True)
class PresetCase:
    """A kernel case at the sizes of a preset, dtype a key of DTYPES."""

    preset: str
    case: KernelCase
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.preset}/{self.case.name}/{self.dtype}"

    @cached_property
    def config(self) -> TrainConfig:
        return preset_config(self.preset, "standard")

    @property
    def shape(self) -> Shape:
        return self.case.shape(self.config)

    @cached_property
    def launch(self) -> Launch:
        return self.case.build(self.shape, DTYPES[self.dtype])

    @property
    def kernel(self) -> str:
        return self.launch.kernel.__name__

    @property
    def programs(self) -> int:
        """Thread blocks of the launch."""
        return math.prod(self.launch.grid)

    @property
    def has_loop(self) -> bool:
        """Whether a warp executes a part of the code more than once."""
        return bool(self.launch.arguments.get("LOOP", False))

    @property
    def bytes_moved(self) -> int:
        return bytes_moved(self.launch)


def preset_cases(preset: str) -> list[PresetCase]:
    """Every kernel launch of a training step of a preset, in both precisions."""
    return [PresetCase(preset, case, dtype) for dtype in DTYPES for case in CASES.values()]


def bytes_moved(launch: Launch) -> int:
    """Each tensor once. For attention this is the step that fills its cache: a shorter one reads less."""
    tensors = {
        id(x): x for x in launch.arguments.values() if isinstance(x, Tensor)
    }  # one that is not read repeats another
    return sum(x.numel() * x.element_size() for x in tensors.values())


# --- launches on meta tensors ------------------------------------------------------------------------------------


def empty(shape: Shape, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def sample(shape: Shape, dtype: torch.dtype, mode: bool = False, with_log_probs: bool = False) -> Launch:
    """Sample [..., K] and index [...] of logits [..., K], from uniform numbers or the mode."""
    draw, index = "mode" if mode else empty(shape[:-1]), empty(shape[:-1], torch.int64)
    log_probs = empty(shape) if with_log_probs else None
    return categorical.forward_launch(empty(shape, dtype), draw, UNIMIX, empty(shape, dtype), index, log_probs)


def log_probs(shape: Shape, dtype: torch.dtype) -> Launch:
    return categorical.forward_launch(empty(shape, dtype), "nothing", UNIMIX, None, None, empty(shape))


def gradient(shape: Shape, dtype: torch.dtype, of_sample: bool) -> Launch:
    """Gradient of the logits from that of the log-probabilities, and of the sample where there is one."""
    grad_sample = empty(shape, dtype) if of_sample else None
    return categorical.backward_launch(empty(shape, dtype), grad_sample, empty(shape), UNIMIX, empty(shape, dtype))


def attention_step(shape: Shape, dtype: torch.dtype, with_first: bool = True) -> Launch:
    """shape [R, H, L, D] of each cache; with_first: each sequence has a first visible position of its own."""
    batch, heads, _, head_dim = shape
    query, key, value, out = (empty((batch, heads, head_dim), dtype) for _ in range(4))
    caches, length = (empty(shape, dtype), empty(shape, dtype)), empty((), torch.int64)
    first = empty((batch,), torch.int64) if with_first else None
    return attention.step_launch(query, key, value, *caches, length, first, out)


# --- the rows ----------------------------------------------------------------------------------------------------


def latent(config: TrainConfig) -> Shape:
    """S, K."""
    return config.world_model.categoricals, config.world_model.classes


def rollout_logits(config: TrainConfig) -> Shape:
    """[R, S, K]: one imagined step."""
    return config.imagination.batch_size, *latent(config)


def window_logits(config: TrainConfig, without_first: bool = False) -> Shape:
    """[B, T, S, K]; T - 1 for priors, as nothing predicts a window's first step."""
    return config.world_model.batch_size, config.world_model.batch_length - without_first, *latent(config)


def cache(config: TrainConfig, positions: int | None = None) -> Shape:
    """[R, H, L, D] of a whole rollout, or of a number of positions."""
    model, imagination = config.world_model, config.imagination
    tokens = (imagination.context + imagination.horizon) * (1 if model.tokens == "fused" else 2)
    return imagination.batch_size, model.heads, positions or tokens, model.width // model.heads


def per_logit(operations: int) -> Callable[[Shape], float]:
    """Operations a logit.

    Softmax is maximum, subtract, exp, sum, divide = 5; mix 2; inverse cdf cumulative sum, compare, count = 3; argmax 1;
    log 1. Backward: softmax 5; of log-probabilities multiply, mix 2, divide = 4; of the sample multiply, add = 2; sum,
    multiply, subtract, scale = 4.
    """
    return lambda shape: operations * math.prod(shape)


def attention_flops(shape: Shape) -> float:
    """Two products of 2 D a position; softmax: scale, maximum, subtract, exp, sum, divide = 6."""
    batch, heads, positions, head_dim = shape
    return batch * heads * positions * (4 * head_dim + 6)


def attention_work(cache: Shape, lengths: range, dtype: torch.dtype, with_first: bool = False) -> Work:
    """Of a step on a cache [R, H, L, D], averaged over the positions in it before the step.

    Such a step moves what a launch moves whose cache has one position more, and is then full.
    """
    shapes = [(*cache[:2], length + 1, cache[3]) for length in lengths]
    moved = sum(bytes_moved(attention_step(shape, dtype, with_first=with_first)) for shape in shapes)
    return Work(moved / len(shapes), sum(map(attention_flops, shapes)) / len(shapes))


PRIOR = partial(window_logits, without_first=True)
ROWS = [
    KernelCase("rollout-sample", "each imagined step", rollout_logits, sample, per_logit(10)),
    KernelCase(
        "context-sample",
        "imagination's contexts",
        lambda config: (config.imagination.batch_size, config.imagination.context, *latent(config)),
        sample,
        per_logit(10),
    ),
    KernelCase("rollout-mode", "an imagined step's mode", rollout_logits, partial(sample, mode=True), per_logit(8)),
    KernelCase(
        "model-sample", "world model: posterior", window_logits, partial(sample, with_log_probs=True), per_logit(11)
    ),
    KernelCase(
        "model-sample-gradient", "its backward", window_logits, partial(gradient, of_sample=True), per_logit(15)
    ),
    KernelCase("prior-log-probs", "world model: prior", PRIOR, log_probs, per_logit(8)),
    KernelCase("prior-log-probs-gradient", "its backward", PRIOR, partial(gradient, of_sample=False), per_logit(13)),
    # A row of the attention's output is one head, less than 16 bytes a thread: narrow stores.
    KernelCase("attention-step", "each imagined step and layer", cache, attention_step, attention_flops, False),
    KernelCase(
        "attention-step-256",  # of no preset: a long cache is read in a loop
        "a cache of 256 positions",
        partial(cache, positions=256),
        attention_step,
        attention_flops,
        wide_stores=False,
    ),
]
CASES = {case.name: case for case in ROWS}
