"""What others would write in the place of our kernels: plain torch, through its public functions.

S categoricals   K classes   B sequences   L cache positions

Each function does one call of the work that a kernel of ours does, on the same arguments.
"""

import torch
from torch import Tensor
from torch.distributions import Categorical, OneHotCategoricalStraightThrough
from torch.nn.functional import scaled_dot_product_attention

from stormfast_kernels import cached_attention_step, sample_categorical, unimix_log_probs

UNIMIX = 0.01

# --- sampling ----------------------------------------------------------------------------------------------------


def sample_ours(logits: Tensor) -> Tensor:
    """One-hot sample [..., S, K] of logits [..., S, K], its random numbers drawn in the call."""
    return sample_categorical(logits, torch.rand(logits.shape[:-1], device=logits.device), UNIMIX)[0]


def mixed_probs(logits: Tensor) -> Tensor:
    """As implementations of Dreamer have it: softmax in float32, mixed with the uniform distribution."""
    return (1 - UNIMIX) * torch.softmax(logits.float(), -1) + UNIMIX / logits.shape[-1]


def sample_distributions(logits: Tensor) -> Tensor:
    """torch.distributions as it comes, which checks its arguments in each call."""
    return OneHotCategoricalStraightThrough(probs=mixed_probs(logits)).rsample().to(logits.dtype)


def sample_unchecked(logits: Tensor) -> Tensor:
    """torch.distributions without the checks, whose answer the host has to wait for on CUDA."""
    return OneHotCategoricalStraightThrough(probs=mixed_probs(logits), validate_args=False).rsample().to(logits.dtype)


def log_probs_ours(logits: Tensor) -> Tensor:
    return unimix_log_probs(logits, UNIMIX)


def log_probs_distributions(logits: Tensor) -> Tensor:
    return Categorical(probs=mixed_probs(logits)).logits


def log_probs_unchecked(logits: Tensor) -> Tensor:
    return Categorical(probs=mixed_probs(logits), validate_args=False).logits


# --- a step of attention with a cache ----------------------------------------------------------------------------


def attend_ours(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, length: Tensor, past: Tensor
) -> Tensor:
    """[B, heads, head_dim] over a cache [B, heads, L, head_dim] that `length` tokens fill; the new one is added in place."""
    return cached_attention_step(query, key, value, keys, values, length)


def attend_static(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, length: Tensor, past: Tensor
) -> Tensor:
    """A cache of fixed size and a mask: what compiles once and can be captured."""
    keys.index_copy_(2, length.view(1), key.unsqueeze(2))
    values.index_copy_(2, length.view(1), value.unsqueeze(2))
    mask = torch.arange(keys.shape[2], device=query.device) <= length
    return scaled_dot_product_attention(query.unsqueeze(2), keys, values, attn_mask=mask[None]).squeeze(2)


def attend_growing(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, length: Tensor, past: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A cache that torch.cat makes anew, one longer each step; no mask. past: [2, B, heads, length, head_dim], keys and values."""
    keys, values = torch.cat([past[0], key.unsqueeze(2)], 2), torch.cat([past[1], value.unsqueeze(2)], 2)
    return scaled_dot_product_attention(query.unsqueeze(2), keys, values).squeeze(2), keys, values
