"""One step of causal attention with a key/value cache in preallocated buffers.

B sequences   L length of the cache (positions)
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from stormfast_kernels.dispatch import implementation, register

# --- reference ---------------------------------------------------------------------------------------------------


@register("cached_attention_step", "reference")
def cached_attention_step_reference(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, length: Tensor, first: Tensor | None
) -> Tensor:
    """cached_attention_step by the library: static shapes, the whole cache under a mask."""
    key_cache.index_copy_(2, length.view(1), key.unsqueeze(2))
    value_cache.index_copy_(2, length.view(1), value.unsqueeze(2))
    position = torch.arange(key_cache.shape[2], device=query.device)
    visible = (position <= length).unsqueeze(0)  # [1, L]
    if first is not None:
        start = torch.minimum(first, length).unsqueeze(-1)  # [B, 1]
        visible = (visible & (position >= start)).view(-1, 1, 1, len(position))  # [B, 1, 1, L]
    # Softmax in float32 inside, and 1.4 to 1.6 times the speed of matmul, softmax, matmul on one CPU core at
    # [128, 4, 16, 32] and [1024, 8, 24, 64] float32 (torch 2.13).
    return scaled_dot_product_attention(query.unsqueeze(2), key_cache, value_cache, attn_mask=visible).squeeze(2)


# --- public functions --------------------------------------------------------------------------------------------


def cached_attention_step(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, length: Tensor, first: Tensor | None = None
) -> Tensor:
    """Appends one key and value a sequence at position `length`, and attends over positions first[b]..length.

    Scores are scaled by head_dim ** -0.5; the softmax is float32 (float64 for float64). `length` is read on the device,
    so that one captured graph serves every step, and it is not advanced here. For the same reason a full cache cannot
    be noticed here: the caller counts the tokens on the host. The caches must be finite everywhere
    (allocate them with zeros): a position not attended has weight 0, and 0 times NaN is NaN.

    Args:
        query, key, value:      [B, heads, head_dim] floating, the new token.
        key_cache, value_cache: [B, heads, L, head_dim] of the same dtype, written in place.
        length:                 0-d int64, on the same device, tokens already in the cache; < L.
        first:                  [B] int64, the first position each sequence sees, or None for 0; the new token always
                                sees itself.
    Returns: [B, heads, head_dim] in the dtype of query.
    Raises: ValueError when shapes, dtypes or devices do not fit.
    """
    _check_step(query, key, value, key_cache, value_cache)
    if length.dim() != 0 or length.dtype != torch.int64:
        raise ValueError(f"length must be a 0-d int64 tensor, got {tuple(length.shape)} {length.dtype}")
    if first is not None and (first.shape != query.shape[:1] or first.dtype != torch.int64):
        raise ValueError(f"first must be int64 {tuple(query.shape[:1])} for query {tuple(query.shape)}, got {first.dtype} {tuple(first.shape)}")
    for name, tensor in (("length", length), ("first", first)):
        if tensor is not None and tensor.device != query.device:
            raise ValueError(f"query {tuple(query.shape)} is on {query.device}, but {name} {tuple(tensor.shape)} is on {tensor.device}")
    return implementation("cached_attention_step", query.device)(query, key, value, key_cache, value_cache, length, first)


def _check_step(query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor) -> None:
    shapes = [tuple(x.shape) for x in (query, key, value, key_cache, value_cache)]
    fits = len(shapes[0]) == 3 and len(shapes[3]) == 4 and shapes[0] == shapes[1] == shapes[2] and shapes[3] == shapes[4]
    if not fits or (*shapes[3][:2], shapes[3][3]) != shapes[0] or shapes[3][2] < 1 or shapes[0][2] < 1:
        raise ValueError(f"query, key, value must be [B, heads, head_dim] and the caches [B, heads, L, head_dim], got {', '.join(map(str, shapes))}")
    for name, tensor in (("key", key), ("value", value), ("key_cache", key_cache), ("value_cache", value_cache)):
        if tensor.dtype != query.dtype or tensor.device != query.device:
            raise ValueError(
                f"query {shapes[0]} is {query.dtype} on {query.device}, but {name} {tuple(tensor.shape)} is {tensor.dtype} on {tensor.device}"
            )
    if not query.is_floating_point():
        raise ValueError(f"query {shapes[0]} must be floating, got {query.dtype}")
