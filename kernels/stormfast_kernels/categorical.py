"""Categorical sampling with straight-through gradients, and log-probabilities, of unimixed softmaxes.

... leading dimensions, any number   S categoricals   K classes   R rows, all but the last dimension flattened
"""

import math
from typing import Literal

import torch
from torch import Tensor

from stormfast_kernels import launch
from stormfast_kernels.dispatch import implementation, register, register_trial
from stormfast_kernels.launch import Launch, constant, jit, next_power_of_2, tl

# --- reference ---------------------------------------------------------------------------------------------------


@register("sample_categorical", "reference")
def sample_categorical_reference(
    logits: Tensor, uniform: Tensor | None, unimix: float, with_log_probs: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Sample, log-probabilities (where asked for) and index, in plain differentiable torch."""
    probs = _unimix_probs(logits, unimix)
    if uniform is None:
        index = probs.argmax(-1)
    else:
        # The classes at or below u are those before the one drawn. The cdf's last value may round to less than u: then,
        # too, the last class is drawn, or the last one that is possible at all.
        index = (probs.detach().cumsum(-1) <= uniform.unsqueeze(-1)).sum(-1).clamp(max=logits.shape[-1] - 1)
        if unimix == 0:
            possible = torch.where(probs.detach() > 0, torch.arange(logits.shape[-1], device=logits.device), 0)
            index = torch.minimum(index, possible.amax(-1))
    drawn = probs.detach().gather(-1, index.unsqueeze(-1))
    sample = torch.zeros_like(probs).scatter(-1, index.unsqueeze(-1), 1 + (drawn - drawn))  # NaN shows
    if probs.requires_grad:
        sample = sample + (probs - probs.detach())  # the bracket is exactly 0: only its gradient counts
    log_probs = None
    if with_log_probs:
        log_probs = unimix_log_probs_reference(logits, unimix) if unimix == 0 else probs.log()
    return sample.to(logits.dtype), log_probs, index


@register("unimix_log_probs", "reference")
def unimix_log_probs_reference(logits: Tensor, unimix: float) -> Tensor:
    """unimix_log_probs in plain differentiable torch."""
    if unimix == 0:
        return torch.log_softmax(logits, -1, dtype=_accumulate_dtype(logits))  # log(softmax) would underflow to -inf
    return _unimix_probs(logits, unimix).log()


def gradient_reference(
    logits: Tensor, grad_sample: Tensor | None, grad_log_probs: Tensor | None, unimix: float
) -> Tensor:
    """Gradient of both outputs with respect to logits, written out as the kernel computes it."""
    probs = torch.softmax(logits, -1, dtype=_accumulate_dtype(logits))
    pulled = torch.zeros_like(probs)  # softmax probabilities times the gradient with respect to the mixed ones
    if grad_sample is not None:
        pulled = pulled + probs * grad_sample
    if grad_log_probs is not None:
        share = 1.0 if unimix == 0 else probs / (probs * (1 - unimix) + unimix / logits.shape[-1])
        pulled = pulled + share * grad_log_probs
    return ((1 - unimix) * (pulled - probs * pulled.sum(-1, keepdim=True))).to(logits.dtype)


def _unimix_probs(logits: Tensor, unimix: float) -> Tensor:
    """(1 - unimix) * softmax(logits) + unimix / K, in float32 (float64 for float64 logits)."""
    probs = torch.softmax(logits, -1, dtype=_accumulate_dtype(logits))
    return probs if unimix == 0 else probs * (1 - unimix) + unimix / logits.shape[-1]


def _accumulate_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


# --- kernels -----------------------------------------------------------------------------------------------------
# A program holds a tile of rows; a row's classes lie in neighbouring threads, so that loads and stores are 16 bytes
# wide.

ELEMENTS = (
    65_536 if launch.INTERPRETED else 2_048
)  # of a tile: 16 a thread, and the interpreter's time goes by programs
WARPS = 4
LOG2_E, LN_2 = constant(math.log2(math.e)), constant(math.log(2))
MOST_CLASSES = 1_024  # a row must fit a tile; longer ones take the reference


@jit
def unimix_sample_kernel(
    logits,  # [R, K]
    uniform,  # [R], read where DRAW is "uniform"
    sample,  # [R, K], written unless DRAW is "nothing"
    index,  # [R] int64, likewise
    log_probs,  # [R, K] float32, written where LOG_PROBS
    rows,
    keep,  # 1 - unimix
    floor,  # unimix / K
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DRAW: tl.constexpr,
    LOG_PROBS: tl.constexpr,
    MIXED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows)[:, None]
    if COLUMNS != CLASSES:
        inside = inside & (column < CLASSES)
    at = row[:, None] * CLASSES + column
    x = tl.load(logits + at, mask=inside, other=float("-inf")).to(tl.float32)
    # Rows past the end are all -inf: NaN, and never stored.
    shifted = (x - tl.max(x, 1)[:, None]) * LOG2_E
    weight = tl.exp2(shifted)
    total = tl.sum(weight, 1)[:, None]
    # One reciprocal a row: dividing each element took a quarter of all instructions.
    probs = weight * (keep / total) + floor
    if DRAW != "nothing":
        if DRAW == "mode":
            drawn = tl.argmax(tl.where(column < CLASSES, probs, -1.0), 1, tie_break_left=True)
        else:
            u = tl.load(uniform + row, mask=row < rows, other=0.0).to(tl.float32)
            if COLUMNS != CLASSES:
                probs = tl.where(column < CLASSES, probs, 0.0)
            cdf = tl.cumsum(probs, 1)
            before = (cdf <= u[:, None]) & (column < CLASSES)
            # Counted in float32: of integers, LLVM packs the comparisons' bits through the stack.
            drawn = tl.minimum(tl.sum(tl.where(before, 1.0, 0.0), 1).to(tl.int32), CLASSES - 1)
            if not MIXED:  # rounding must not lead into impossible classes at the end
                drawn = tl.minimum(drawn, tl.max(tl.where(probs > 0, column, 0), 1))
        drawn = tl.where(total == total, tl.expand_dims(drawn, 1), 0)  # a row of NaN: class 0
        one_hot = tl.where(column == drawn, 1.0 + (total - total), 0.0)  # NaN shows
        tl.store(sample + at, one_hot.to(sample.dtype.element_ty), mask=inside)
        tl.store(index + row[:, None], drawn.to(tl.int64), mask=(row < rows)[:, None])
    if LOG_PROBS:
        if MIXED:
            tl.store(log_probs + at, tl.log2(probs) * LN_2, mask=inside)
        else:
            tl.store(log_probs + at, (shifted - tl.log2(total)) * LN_2, mask=inside)


@jit
def unimix_gradient_kernel(
    logits,  # [R, K]
    grad_sample,  # [R, K], read where SAMPLE
    grad_log_probs,  # [R, K] float32, read where LOG_PROBS
    grad_logits,  # [R, K], written
    rows,
    keep,
    floor,
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SAMPLE: tl.constexpr,
    LOG_PROBS: tl.constexpr,
    MIXED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows)[:, None]
    if COLUMNS != CLASSES:
        inside = inside & (column < CLASSES)
    at = row[:, None] * CLASSES + column
    x = tl.load(logits + at, mask=inside, other=float("-inf")).to(tl.float32)
    weight = tl.exp2((x - tl.max(x, 1)[:, None]) * LOG2_E)
    probs = weight * (1.0 / tl.sum(weight, 1)[:, None])
    pulled = tl.zeros_like(probs)
    if SAMPLE:
        pulled += probs * tl.load(grad_sample + at, mask=inside, other=0.0).to(tl.float32)
    if LOG_PROBS:
        upstream = tl.load(grad_log_probs + at, mask=inside, other=0.0)
        if MIXED:
            upstream = upstream * probs / (probs * keep + floor)
        pulled += upstream
    gradient = keep * (pulled - probs * tl.sum(pulled, 1)[:, None])
    tl.store(grad_logits + at, gradient.to(grad_logits.dtype.element_ty), mask=inside)


def forward_launch(
    logits: Tensor,
    draw: Tensor | Literal["mode", "nothing"],
    unimix: float,
    sample: Tensor | None,
    index: Tensor | None,
    log_probs: Tensor | None,
) -> Launch:
    """Of contiguous tensors, shapes as in sample_categorical.

    Args: draw: the uniform numbers; or "mode"; or "nothing", which writes log_probs only.
    """
    return _launch(
        unimix_sample_kernel,
        logits,
        unimix,
        uniform=draw if isinstance(draw, Tensor) else logits,  # a pointer that the kernel does not follow
        sample=logits if sample is None else sample,
        index=logits if index is None else index,
        log_probs=logits if log_probs is None else log_probs,
        DRAW="uniform" if isinstance(draw, Tensor) else draw,
        LOG_PROBS=log_probs is not None,
    )


def backward_launch(
    logits: Tensor, grad_sample: Tensor | None, grad_log_probs: Tensor | None, unimix: float, grad_logits: Tensor
) -> Launch:
    """Of contiguous tensors, [..., K] each."""
    return _launch(
        unimix_gradient_kernel,
        logits,
        unimix,
        grad_sample=logits if grad_sample is None else grad_sample,
        grad_log_probs=logits if grad_log_probs is None else grad_log_probs,
        grad_logits=grad_logits,
        SAMPLE=grad_sample is not None,
        LOG_PROBS=grad_log_probs is not None,
    )


def _launch(kernel, logits: Tensor, unimix: float, **arguments) -> Launch:
    classes = logits.shape[-1]
    columns = next_power_of_2(classes)
    rows, tile = logits.numel() // classes, max(ELEMENTS // columns, 1)
    sizes = {
        "rows": rows,
        "keep": 1.0 - unimix,
        "floor": unimix / classes,
        "CLASSES": classes,
        "ROWS": tile,
        "COLUMNS": columns,
    }
    return Launch(kernel, (-(-rows // tile),), {"logits": logits, **arguments, **sizes, "MIXED": unimix != 0}, WARPS)


# --- registered ops ----------------------------------------------------------------------------------------------
# On a CPU tensor they run the reference, or the interpreted kernel where Triton interprets.


@torch.library.custom_op("stormfast::sample_categorical", mutates_args=(), device_types="cuda")
def sample_categorical_op(
    logits: Tensor, uniform: Tensor | None, unimix: float, with_log_probs: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample, log-probabilities (empty where not asked for) and index. Without uniform numbers it is the mode."""
    logits = logits.contiguous()
    sample, log_probs, index = _empty_outputs(logits, with_log_probs)
    forward_launch(
        logits,
        "mode" if uniform is None else uniform.contiguous(),
        unimix,
        sample,
        index,
        log_probs if with_log_probs else None,
    ).run()
    return sample, log_probs, index


def _empty_outputs(logits: Tensor, with_log_probs: bool) -> tuple[Tensor, Tensor, Tensor]:
    log_probs = logits.new_empty(logits.shape if with_log_probs else (0,), dtype=torch.float32)
    return logits.new_empty(logits.shape), log_probs, logits.new_empty(logits.shape[:-1], dtype=torch.int64)


@sample_categorical_op.register_kernel("cpu")
def _(logits, uniform, unimix, with_log_probs):
    if launch.INTERPRETED:
        return sample_categorical_op._init_fn(logits, uniform, unimix, with_log_probs)
    sample, log_probs, index = sample_categorical_reference(logits, uniform, unimix, with_log_probs)
    return sample, logits.new_empty(0, dtype=torch.float32) if log_probs is None else log_probs, index


@sample_categorical_op.register_fake
def _(logits, uniform, unimix, with_log_probs):
    return _empty_outputs(logits, with_log_probs)


@torch.library.custom_op("stormfast::unimix_log_probs", mutates_args=(), device_types="cuda")
def unimix_log_probs_op(logits: Tensor, unimix: float) -> Tensor:
    """unimix_log_probs by the kernel."""
    logits = logits.contiguous()
    log_probs = logits.new_empty(logits.shape, dtype=torch.float32)
    forward_launch(logits, "nothing", unimix, None, None, log_probs).run()
    return log_probs


@unimix_log_probs_op.register_kernel("cpu")
def _(logits, unimix):
    return (
        unimix_log_probs_op._init_fn(logits, unimix)
        if launch.INTERPRETED
        else unimix_log_probs_reference(logits, unimix)
    )


@unimix_log_probs_op.register_fake
def _(logits, unimix):
    return logits.new_empty(logits.shape, dtype=torch.float32)


@torch.library.custom_op("stormfast::unimix_gradient", mutates_args=(), device_types="cuda")
def unimix_gradient_op(
    logits: Tensor, grad_sample: Tensor | None, grad_log_probs: Tensor | None, unimix: float
) -> Tensor:
    """Gradient of both outputs with respect to logits."""
    logits = logits.contiguous()
    grad_logits = torch.empty_like(logits)
    grad_sample, grad_log_probs = (
        None if grad is None else grad.contiguous() for grad in (grad_sample, grad_log_probs)
    )
    backward_launch(logits, grad_sample, grad_log_probs, unimix, grad_logits).run()
    return grad_logits


@unimix_gradient_op.register_kernel("cpu")
def _(logits, grad_sample, grad_log_probs, unimix):
    run = unimix_gradient_op._init_fn if launch.INTERPRETED else gradient_reference
    return run(logits, grad_sample, grad_log_probs, unimix)


@unimix_gradient_op.register_fake
def _(logits, grad_sample, grad_log_probs, unimix):
    return logits.new_empty(logits.shape)


def _save_for_sample(ctx, inputs, output) -> None:
    logits, _, ctx.unimix, with_log_probs = inputs
    ctx.save_for_backward(logits)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*(output[2:] if with_log_probs else output[1:]))


def _sample_backward(ctx, grad_sample, grad_log_probs, _):
    if grad_sample is None and grad_log_probs is None:
        return (None,) * 4
    return unimix_gradient_op(ctx.saved_tensors[0], grad_sample, grad_log_probs, ctx.unimix), None, None, None


def _save_for_log_probs(ctx, inputs, output) -> None:
    logits, ctx.unimix = inputs
    ctx.save_for_backward(logits)


def _log_probs_backward(ctx, grad_log_probs):
    return unimix_gradient_op(ctx.saved_tensors[0], None, grad_log_probs, ctx.unimix), None


sample_categorical_op.register_autograd(_sample_backward, setup_context=_save_for_sample)
unimix_log_probs_op.register_autograd(_log_probs_backward, setup_context=_save_for_log_probs)


def _fits(logits: Tensor) -> bool:
    return logits.dtype in (torch.float32, torch.bfloat16, torch.float16) and logits.shape[-1] <= MOST_CLASSES


@register("sample_categorical", "triton")
def sample_categorical_triton(
    logits: Tensor, uniform: Tensor | None, unimix: float, with_log_probs: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """By the kernel; float64 and rows of more than MOST_CLASSES by the reference."""
    if not _fits(logits):
        return sample_categorical_reference(logits, uniform, unimix, with_log_probs)
    sample, log_probs, index = sample_categorical_op(logits, uniform, unimix, with_log_probs)
    return sample, log_probs if with_log_probs else None, index


@register("unimix_log_probs", "triton")
def unimix_log_probs_triton(logits: Tensor, unimix: float) -> Tensor:
    """By the kernel; float64 and rows of more than MOST_CLASSES by the reference."""
    return unimix_log_probs_op(logits, unimix) if _fits(logits) else unimix_log_probs_reference(logits, unimix)


@register_trial
def _trial(device: torch.device) -> None:
    """Forward and backward of a small ragged case, against the reference on the same device."""
    logits = torch.linspace(-4, 4, 5 * 3 * 17, device=device).sin().view(5, 3, 17).mul(5).requires_grad_()
    uniform = torch.linspace(0.01, 0.99, 15, device=device).view(5, 3)
    results = []
    for run in (sample_categorical_triton, sample_categorical_reference):
        sample, log_probs, index = run(logits, uniform, 0.01, True)
        assert log_probs is not None
        (gradient,) = torch.autograd.grad(
            (sample * logits.detach()).sum() + (log_probs * logits.detach().cos()).sum(), logits
        )
        results.append((index.float(), sample.detach(), log_probs.detach(), gradient))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


# --- public functions --------------------------------------------------------------------------------------------


def sample_categorical(logits: Tensor, uniform: Tensor | None, unimix: float) -> tuple[Tensor, Tensor]:
    """Draws from categoricals whose softmax is mixed with the uniform distribution; straight-through gradient.

    probs = (1 - unimix) * softmax(logits) + unimix / K, computed in float32 (float64 for float64 logits). The class is
    the smallest k with cumsum(probs)[k] > uniform, and the last possible one where rounding leaves none. The gradient
    of sample with respect to logits is that of probs (in reverse mode, once). Logits that are NaN or +inf, or -inf
    throughout, give class 0 and NaN in their row of sample.

    Args:
        logits:  [..., S, K] floating.
        uniform: [..., S] float32 or float64 in [0, 1) (not checked: that would wait for the device); or None for the
                 mode, the most probable class and the first of equals.
        unimix:  in [0, 1].
    Returns: sample [..., S, K] in the dtype of logits, exactly one-hot; index [..., S] int64, without gradient.
    Raises: ValueError when shapes, dtypes or devices do not fit.
    """
    _check_sampling(logits, uniform, unimix)
    sample, _, index = implementation("sample_categorical", logits.device)(logits, uniform, unimix, False)
    return sample, index


def sample_categorical_with_log_probs(
    logits: Tensor, uniform: Tensor | None, unimix: float
) -> tuple[Tensor, Tensor, Tensor]:
    """sample_categorical, and from the same pass the log-probabilities of the distributions it draws from.

    Returns: sample [..., S, K], index [..., S], log_probs [..., S, K] as in unimix_log_probs.
    """
    _check_sampling(logits, uniform, unimix)
    sample, log_probs, index = implementation("sample_categorical", logits.device)(logits, uniform, unimix, True)
    return sample, index, log_probs


def unimix_log_probs(logits: Tensor, unimix: float) -> Tensor:
    """Log-probabilities of the distributions that sample_categorical draws from.

    Args:
        logits: [..., K] floating.
        unimix: in [0, 1].
    Returns: [..., K] float32 (float64 for float64 logits).
    Raises: ValueError when shape or dtype does not fit.
    """
    _check_logits(logits, unimix)
    return implementation("unimix_log_probs", logits.device)(logits, unimix)


def _check_logits(logits: Tensor, unimix: float) -> None:
    if logits.dim() < 1 or logits.shape[-1] < 1:
        raise ValueError(f"logits must have at least one class in their last dimension, got {tuple(logits.shape)}")
    if not logits.is_floating_point():
        raise ValueError(f"logits {tuple(logits.shape)} must be floating, got {logits.dtype}")
    if not 0 <= unimix <= 1:
        raise ValueError(f"unimix must be in [0, 1], got {unimix}")


def _check_sampling(logits: Tensor, uniform: Tensor | None, unimix: float) -> None:
    _check_logits(logits, unimix)
    shape = tuple(logits.shape)
    if logits.dim() < 2:
        raise ValueError(f"logits must be [..., S, K], got {shape}")
    if uniform is None:
        return
    if uniform.shape != logits.shape[:-1]:
        raise ValueError(f"uniform must be {shape[:-1]} for logits {shape}, got {tuple(uniform.shape)}")
    if uniform.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"uniform {tuple(uniform.shape)} must be float32 or float64, got {uniform.dtype}")
    if uniform.device != logits.device:
        raise ValueError(
            f"logits {shape} are on {logits.device}, but uniform {tuple(uniform.shape)} is on {uniform.device}"
        )
