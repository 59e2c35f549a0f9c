"""What a PyTorch user would write in place of our kernels: torch's public functions, on the same arguments.

B sequences   S categoricals   K classes   L cache positions
"""

import torch
from torch import Tensor
from torch.distributions import Categorical, OneHotCategoricalStraightThrough
from torch.nn.functional import scaled_dot_product_attention

from stormfast_kernels import cached_attention_step, sample_categorical, unimix_log_probs

UNIMIX = 0.01


def mixed_probs(logits: Tensor) -> Tensor:
    """[..., K] float32 probabilities, mixed with the uniform distribution as implementations of Dreamer do it."""
    return (1 - UNIMIX) * torch.softmax(logits.float(), -1) + UNIMIX / logits.shape[-1]


def sample_ours(logits: Tensor) -> Tensor:
    """One-hot sample [..., S, K] of logits [..., S, K]; the random numbers are drawn in the call."""
    return sample_categorical(logits, torch.rand(logits.shape[:-1], device=logits.device), UNIMIX)[0]


def sample_torch(logits: Tensor, validate_args: bool | None = None) -> Tensor:
    """validate_args: None is torch's default, which checks the arguments, and on CUDA makes the host wait for that."""
    return (
        OneHotCategoricalStraightThrough(probs=mixed_probs(logits), validate_args=validate_args)
        .rsample()
        .to(logits.dtype)
    )


def log_probs_ours(logits: Tensor) -> Tensor:
    return unimix_log_probs(logits, UNIMIX)


def log_probs_torch(logits: Tensor, validate_args: bool | None = None) -> Tensor:
    return Categorical(probs=mixed_probs(logits), validate_args=validate_args).logits


def attention_ours(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, length: Tensor, past: Tensor
) -> Tensor:
    """[B, heads, head_dim], attending to a cache [B, heads, L, head_dim] of `length` tokens and one added in place."""
    return cached_attention_step(query, key, value, keys, values, length)


def attention_static(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, length: Tensor, past: Tensor
) -> Tensor:
    """A cache of fixed size and a mask, which compiles once and can be captured."""
    keys.index_copy_(2, length.view(1), key.unsqueeze(2))
    values.index_copy_(2, length.view(1), value.unsqueeze(2))
    mask = torch.arange(keys.shape[2], device=query.device) <= length
    return scaled_dot_product_attention(query.unsqueeze(2), keys, values, attn_mask=mask[None]).squeeze(2)


def attention_growing(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, length: Tensor, past: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A cache that torch.cat makes one longer; no mask. past: keys and values, [2, B, heads, length, head_dim]."""
    keys, values = torch.cat([past[0], key.unsqueeze(2)], 2), torch.cat([past[1], value.unsqueeze(2)], 2)
    return scaled_dot_product_attention(query.unsqueeze(2), keys, values).squeeze(2), keys, values
