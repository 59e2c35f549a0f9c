"""Categorical sampling with straight-through gradients, and log-probabilities, of unimixed softmaxes.

... leading dimensions, any number   S categoricals   K classes
"""

import torch
from torch import Tensor

from stormfast_kernels.dispatch import implementation, register


def _unimix_probs(logits: Tensor, unimix: float) -> Tensor:
    """(1 - unimix) * softmax(logits) + unimix / K, in float32 (float64 for float64 logits)."""
    probs = torch.softmax(logits, -1, dtype=_accumulate_dtype(logits))
    return probs if unimix == 0 else probs * (1 - unimix) + unimix / logits.shape[-1]


def _accumulate_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


# --- reference ---------------------------------------------------------------------------------------------------


@register("sample_categorical", "reference")
def sample_categorical_reference(logits: Tensor, uniform: Tensor | None, unimix: float) -> tuple[Tensor, Tensor]:
    """sample_categorical in plain differentiable torch."""
    probs = _unimix_probs(logits, unimix)
    if uniform is None:
        index = probs.argmax(-1)
    else:
        cdf = probs.detach().cumsum(-1)
        # The cdf never falls, so the classes at or below u are those before the one drawn. Its last value may round
        # to less than u: then, too, the last class is drawn.
        index = (cdf <= uniform.unsqueeze(-1)).sum(-1).clamp(max=logits.shape[-1] - 1)
    sample = torch.zeros_like(probs).scatter(-1, index.unsqueeze(-1), 1.0)
    if probs.requires_grad:
        sample = sample + (probs - probs.detach())  # the bracket is exactly 0: only its gradient counts
    return sample.to(logits.dtype), index


@register("unimix_log_probs", "reference")
def unimix_log_probs_reference(logits: Tensor, unimix: float) -> Tensor:
    """unimix_log_probs in plain differentiable torch."""
    if unimix == 0:
        return torch.log_softmax(logits, -1, dtype=_accumulate_dtype(logits))  # log(softmax) would underflow to -inf
    return _unimix_probs(logits, unimix).log()


# --- public functions --------------------------------------------------------------------------------------------


def sample_categorical(logits: Tensor, uniform: Tensor | None, unimix: float) -> tuple[Tensor, Tensor]:
    """Draws from categoricals whose softmax is mixed with the uniform distribution; straight-through gradient.

    probs = (1 - unimix) * softmax(logits) + unimix / K, computed in float32 (float64 for float64 logits). The class is
    the smallest k with cumsum(probs)[k] > uniform, and K - 1 where rounding leaves none. The gradient of sample with
    respect to logits is that of probs. Logits that are NaN or +inf make probs NaN: class 0, and a NaN sample where
    gradients are recorded.

    Args:
        logits:  [..., S, K] floating.
        uniform: [..., S] float32 or float64 in [0, 1) (not checked: that would wait for the device), or None for the
                 mode, the most probable class and the first of equals.
        unimix:  in [0, 1].
    Returns: sample [..., S, K] in the dtype of logits, exactly one-hot; index [..., S] int64, without gradient.
    Raises: ValueError when shapes, dtypes or devices do not fit.
    """
    _check_logits(logits, unimix)
    if logits.dim() < 2:
        raise ValueError(f"logits must be [..., S, K], got {tuple(logits.shape)}")
    if uniform is not None:
        if uniform.shape != logits.shape[:-1]:
            raise ValueError(f"uniform must be {tuple(logits.shape[:-1])} for logits {tuple(logits.shape)}, got {tuple(uniform.shape)}")
        if uniform.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"uniform {tuple(uniform.shape)} must be float32 or float64, got {uniform.dtype}")
        if uniform.device != logits.device:
            raise ValueError(f"logits {tuple(logits.shape)} are on {logits.device}, but uniform {tuple(uniform.shape)} is on {uniform.device}")
    return implementation("sample_categorical", logits.device)(logits, uniform, unimix)


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
