"""One step of causal attention with a key/value cache in preallocated buffers.

B sequences   H heads   L length of the cache (positions)   D head size   W positions of a wave   G waves of a tile
"""

import math
import operator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from stormfast_kernels import launch
from stormfast_kernels.dispatch import implementation, register, register_trial
from stormfast_kernels.launch import Launch, jit, next_power_of_2, tl

# --- reference ---------------------------------------------------------------------------------------------------


@register("cached_attention_step", "reference")
def cached_attention_step_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    length: Tensor,
    first: Tensor | None,
) -> Tensor:
    """cached_attention_step by the library: static shapes, the whole cache under a mask."""
    try:
        key_cache.index_copy_(2, length.view(1), key.unsqueeze(2))
    except IndexError as error:  # on the CPU only: a GPU notices in the kernel, and stops the process
        raise ValueError(
            f"length must lie in 0..{key_cache.shape[2] - 1} for caches {tuple(key_cache.shape)}: {error}"
        ) from None
    value_cache.index_copy_(2, length.view(1), value.unsqueeze(2))
    position = torch.arange(key_cache.shape[2], device=query.device)
    visible = (position <= length).unsqueeze(0)  # [1, L]
    if first is not None:
        start = torch.minimum(first, length).unsqueeze(-1)  # [B, 1]
        visible = (visible & (position >= start)).view(-1, 1, 1, len(position))  # [B, 1, 1, L]
    with torch.autocast(query.device.type, enabled=False):  # in the dtype of the arguments, as the kernel
        if query.device.type == "cpu":
            return _attend_by_products(
                query, key_cache, value_cache, visible.expand(1, 1, 1, -1) if first is None else visible
            )
        return scaled_dot_product_attention(query.unsqueeze(2), key_cache, value_cache, attn_mask=visible).squeeze(2)


def _attend_by_products(query: Tensor, key_cache: Tensor, value_cache: Tensor, visible: Tensor) -> Tensor:
    """Attention by two batched products; visible [B or 1, 1, 1, L]. Scores are rounded to the dtype, as under autocast.

    On one CPU core (AMD EPYC, torch 2.13), against scaled_dot_product_attention: [1024, 8, 24, 64] bfloat16 8.0 ms for
    27.5, float32 7.5 for 11.6; [128, 4, 14, 32] 0.27 for 0.80, 0.18 for 0.27.
    """
    batch, heads, positions, head_dim = key_cache.shape
    bias = (
        query.new_zeros(visible.shape)
        .masked_fill(~visible, float("-inf"))
        .expand(batch, heads, 1, positions)
        .reshape(-1, 1, positions)
    )
    keys, values = key_cache.flatten(0, 1), value_cache.flatten(0, 1)
    scores = torch.baddbmm(bias, query.reshape(-1, 1, head_dim), keys.transpose(1, 2), alpha=head_dim**-0.5)
    weights = torch.softmax(scores, -1, dtype=torch.float64 if query.dtype == torch.float64 else torch.float32)
    return torch.bmm(weights.to(query.dtype), values).view(batch, heads, head_dim)


# --- kernel ------------------------------------------------------------------------------------------------------
# One program, of one warp, a sequence and head. The new token never comes from the cache: its key and value are in
# registers, its score begins the softmax, and the tiles hold older positions only.
#
# A wave is what the warp loads with one instruction, 16 bytes a thread: W positions, as W * D numbers side by side. A
# tile is G waves, a constant apart: no address arithmetic. The new token is loaded as a wave of W copies, so that its
# numbers lie in the same threads; where they are summed, each copy counts 1 / W, a power of two and thus exact.

TILE = 2_048  # elements of keys, and as many of values, that the warp holds
LOAD = 32 * 16  # bytes that the warp loads with one instruction
HEAD_SIZES = (16, 32, 64, 128)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@jit
def upcast(x):
    """float32. Of bfloat16 by its bits: one instruction an element, where .to(tl.float32) takes 1.5 on average."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@jit
def is_visible(position, start, count):
    """Whether position is one of start..start + count - 1, by one comparison: what lies before start wraps around."""
    return (position - start).to(tl.uint32) < count.to(tl.uint32)


@jit
def load_tile(
    cache,
    begin,
    start,
    count,
    POSITION_STRIDE: tl.constexpr,
    FEATURE_STRIDE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WAVE: tl.constexpr,
    WAVES: tl.constexpr,
):
    """[G, W * D] of the cache of one head, from position `begin`; what is not visible is 0 and not fetched."""
    wave = tl.arange(0, WAVES)[:, None]
    element = tl.arange(0, WAVE * HEAD_DIM)[None, :]
    visible = is_visible(begin + wave * WAVE + element // HEAD_DIM, start, count)
    in_wave = (begin + element // HEAD_DIM).to(tl.int64) * POSITION_STRIDE + (element % HEAD_DIM).to(
        tl.int64
    ) * FEATURE_STRIDE
    # Added last and alone, the wave becomes the constant offset of a load instruction.
    return tl.load((cache + in_wave) + wave.to(tl.int64) * (WAVE * POSITION_STRIDE), mask=visible, other=0.0)


@jit
def tile_scores(query, keys, begin, start, count, HEAD_DIM: tl.constexpr, WAVE: tl.constexpr, WAVES: tl.constexpr):
    """[G, W] base-2 scores, -inf where not visible."""
    position = begin + tl.arange(0, WAVES)[:, None] * WAVE + tl.arange(0, WAVE)[None, :]
    scores = tl.sum(tl.reshape(upcast(keys) * query[None, :], [WAVES, WAVE, HEAD_DIM]), 2)
    return tl.where(is_visible(position, start, count), scores, float("-inf"))


@jit
def weighted_sum(weight, values, HEAD_DIM: tl.constexpr, WAVE: tl.constexpr, WAVES: tl.constexpr):
    """[W, D]: over the waves only, so that threads exchange their sums once, at the end."""
    return tl.sum(weight[:, :, None] * tl.reshape(upcast(values), [WAVES, WAVE, HEAD_DIM]), 0)


@jit
def attention_step_kernel(
    query,  # [B, H, D]
    key,
    value,
    key_cache,  # [B, H, L, D], one position of it written
    value_cache,
    length_pointer,  # [] int64
    first,  # [B] int64, or None
    out,  # [B, H, D] contiguous, written
    positions,  # L
    scale,
    token_sequence_stride,
    token_head_stride,
    cache_sequence_stride,
    cache_head_stride,
    POSITION_STRIDE: tl.constexpr,
    FEATURE_STRIDE: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WAVE: tl.constexpr,  # W
    WAVES: tl.constexpr,  # G
    MORE_WAVES: tl.constexpr,  # G of a second tile, or 0
    LOOP: tl.constexpr,
):
    tl.assume(token_sequence_stride >= 0)  # products of two such numbers are one instruction
    tl.assume(token_head_stride >= 0)
    tl.assume(cache_sequence_stride >= 0)
    tl.assume(cache_head_stride >= 0)
    program = tl.program_id(0)
    sequence = (program // HEADS).to(tl.int64)
    head = (program % HEADS).to(tl.int64)
    element = tl.arange(0, WAVE * HEAD_DIM)
    token_at = sequence * token_sequence_stride + head * token_head_stride + element % HEAD_DIM
    cache_at = sequence * cache_sequence_stride + head * cache_head_stride
    keys = key_cache + cache_at
    values = value_cache + cache_at
    length = tl.load(length_pointer)
    q = upcast(tl.load(query + token_at)) * scale
    new_key = tl.load(key + token_at)
    new_value = tl.load(value + token_at)
    has_room = (length >= 0) & (length < positions)
    end = tl.where(has_room, length, 0).to(tl.int32)  # the new token's position
    start = tl.zeros_like(end)
    if first is not None:
        start = tl.maximum(tl.minimum(tl.load(first + sequence), positions), 0).to(tl.int32)
    count = tl.maximum(end - start, 0)  # of older positions that are visible

    if not LOOP:  # every load before any arithmetic: one wait for memory
        MORE: tl.constexpr = WAVES * WAVE
        k = load_tile(keys, 0, start, count, POSITION_STRIDE, FEATURE_STRIDE, HEAD_DIM, WAVE, WAVES)
        if MORE_WAVES > 0:
            more_k = load_tile(keys, MORE, start, count, POSITION_STRIDE, FEATURE_STRIDE, HEAD_DIM, WAVE, MORE_WAVES)
        v = load_tile(values, 0, start, count, POSITION_STRIDE, FEATURE_STRIDE, HEAD_DIM, WAVE, WAVES)
        if MORE_WAVES > 0:
            more_v = load_tile(values, MORE, start, count, POSITION_STRIDE, FEATURE_STRIDE, HEAD_DIM, WAVE, MORE_WAVES)
    # Not before the loads nor at the end: there ptxas moves the loads of values behind the scores, a second wait.
    new_at = end.to(tl.int64) * POSITION_STRIDE + (element % HEAD_DIM).to(tl.int64) * FEATURE_STRIDE
    one_copy = has_room & (element < HEAD_DIM)
    tl.store(keys + new_at, new_key, mask=one_copy)
    tl.store(values + new_at, new_value, mask=one_copy)

    new_score = tl.sum(q * upcast(new_key), 0) * (1.0 / WAVE)
    new_copies = tl.reshape(upcast(new_value), [WAVE, HEAD_DIM])
    if LOOP:
        highest = new_score
        total = tl.exp2(new_score - new_score)
        mixed = new_copies * (1.0 / WAVE)
        begin = start
        while begin < end:
            k = load_tile(keys, begin, start, count, POSITION_STRIDE, FEATURE_STRIDE, HEAD_DIM, WAVE, WAVES)
            v = load_tile(values, begin, start, count, POSITION_STRIDE, FEATURE_STRIDE, HEAD_DIM, WAVE, WAVES)
            score = tile_scores(q, k, begin, start, count, HEAD_DIM, WAVE, WAVES)
            higher = tl.maximum(tl.max(tl.max(score, 0), 0), highest)
            shrink = tl.exp2(highest - higher)
            weight = tl.exp2(score - higher)
            total = total * shrink + tl.sum(tl.sum(weight, 0), 0)
            mixed = mixed * shrink + weighted_sum(weight, v, HEAD_DIM, WAVE, WAVES)
            highest = higher
            begin += WAVES * WAVE
    else:
        score = tile_scores(q, k, 0, start, count, HEAD_DIM, WAVE, WAVES)
        highest = tl.maximum(tl.max(tl.max(score, 0), 0), new_score)
        if MORE_WAVES > 0:
            more_score = tile_scores(q, more_k, MORE, start, count, HEAD_DIM, WAVE, MORE_WAVES)
            highest = tl.maximum(tl.max(tl.max(more_score, 0), 0), highest)
        weight = tl.exp2(score - highest)
        total_W = tl.sum(weight, 0)
        mixed = weighted_sum(weight, v, HEAD_DIM, WAVE, WAVES)
        if MORE_WAVES > 0:
            more_weight = tl.exp2(more_score - highest)
            total_W += tl.sum(more_weight, 0)
            mixed += weighted_sum(more_weight, more_v, HEAD_DIM, WAVE, MORE_WAVES)
        new_weight = tl.exp2(new_score - highest)
        total = tl.sum(total_W, 0) + new_weight
        mixed += new_copies * (new_weight * (1.0 / WAVE))

    # One reciprocal a program, not a division an element. A cache without room shows as NaN.
    mixed = tl.sum(mixed, 0) * tl.where(has_room, 1.0 / total, float("nan"))
    tl.store(out + program.to(tl.int64) * HEAD_DIM + tl.arange(0, HEAD_DIM), mixed.to(out.dtype.element_ty))


def step_launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    length: Tensor,
    first: Tensor | None,
    out: Tensor,
) -> Launch:
    """Of tensors as in cached_attention_step; tokens laid out alike with features side by side, caches laid out alike.

    out: [B, heads, head_dim] contiguous, written.
    """
    batch, heads, head_dim = query.shape
    positions = key_cache.shape[2]
    wave, waves, more_waves, loop = _waves(positions - 1, head_dim, query.element_size())
    token, cache = _strides(query), _strides(key_cache)
    tensors = {"query": query, "key": key, "value": value, "key_cache": key_cache, "value_cache": value_cache}
    arguments = {
        **tensors,
        "length_pointer": length,
        "first": first,
        "out": out,
        "positions": positions,
        "scale": head_dim**-0.5 * math.log2(math.e),
        "token_sequence_stride": token[0],
        "token_head_stride": token[1],
        "cache_sequence_stride": cache[0],
        "cache_head_stride": cache[1],
        "POSITION_STRIDE": cache[2],
        "FEATURE_STRIDE": cache[3],
        "HEADS": heads,
        "HEAD_DIM": head_dim,
        "WAVE": wave,
        "WAVES": waves,
        "MORE_WAVES": more_waves,
        "LOOP": loop,
    }
    return Launch(attention_step_kernel, (batch * heads,), arguments, num_warps=1)


def _waves(older: int, head_dim: int, itemsize: int) -> tuple[int, int, int, bool]:
    """How a warp covers `older` positions: positions of a wave, waves of a tile, of a second one, whether tiles repeat.

    The second tile is what a power of two leaves: 23 positions are 16 and 8, not 32.
    """
    wave = LOAD // (head_dim * itemsize)
    most, needed = TILE // (head_dim * wave), max(-(-older // wave), 1)
    if needed > most:
        return wave, most, 0, True
    waves = next_power_of_2(needed + 1) // 2  # the largest power of two in `needed`
    more = next_power_of_2(needed - waves) if needed > waves else 0
    return (wave, 2 * waves, 0, False) if more == waves else (wave, waves, more, False)


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """In elements; 0 where a dimension has one entry, whose stride says nothing and may be anything."""
    return tuple(stride if size > 1 else 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


# --- registered op -----------------------------------------------------------------------------------------------
# On a CPU tensor it runs the reference, or the interpreted kernel where Triton interprets. torch registers no gradient
# formula for an op that writes its inputs; going backward through one that has none raises as well.


@torch.library.custom_op(
    "stormfast::cached_attention_step", mutates_args=("key_cache", "value_cache"), device_types="cuda"
)
def cached_attention_step_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    length: Tensor,
    first: Tensor | None,
) -> Tensor:
    """cached_attention_step by the kernel, for what _fits."""
    return _run_kernel(query, key, value, key_cache, value_cache, length, first)


def _run_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    length: Tensor,
    first: Tensor | None,
) -> Tensor:
    alike = _strides(query) == _strides(key) == _strides(value) and query.stride(2) == 1
    if not alike:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    if first is not None:
        first = first.contiguous()
    out = query.new_empty(query.shape)
    step_launch(query, key, value, key_cache, value_cache, length, first, out).run()
    return out


@cached_attention_step_op.register_kernel("cpu")
def _(query, key, value, key_cache, value_cache, length, first):
    run = _run_kernel if launch.INTERPRETED else cached_attention_step_reference
    return run(query, key, value, key_cache, value_cache, length, first)


@cached_attention_step_op.register_fake
def _(query, key, value, key_cache, value_cache, length, first):
    return query.new_empty(query.shape)


def _fits(query: Tensor, key_cache: Tensor, value_cache: Tensor) -> bool:
    return query.dtype in DTYPES and query.shape[2] in HEAD_SIZES and _strides(key_cache) == _strides(value_cache)


@register("cached_attention_step", "triton")
def cached_attention_step_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    length: Tensor,
    first: Tensor | None,
) -> Tensor:
    """By the kernel; float64, other head sizes and caches of different layouts by the reference."""
    # Read one by one, sizes and strides become constants of a compiled graph. With symbolic ones Inductor (torch 2.13)
    # hands a mutating op the wrong part of a cache that was sliced inside the graph.
    _ = [operator.index(n) for n in (*key_cache.shape, *key_cache.stride(), *value_cache.stride())]
    run = cached_attention_step_op if _fits(query, key_cache, value_cache) else cached_attention_step_reference
    return run(query, key, value, key_cache, value_cache, length, first)


@register_trial
def _trial(device: torch.device) -> None:
    """Two steps of a small case, against the reference on the same device."""
    batch, heads, positions, head_dim = 3, 2, 24, 64
    numbers = torch.linspace(-3, 3, 2 * batch * heads * positions * head_dim, device=device)
    filled = numbers.sin().view(2, batch, heads, positions, head_dim).bfloat16()  # keys and values
    tokens = (numbers * 7).cos()[: 6 * batch * heads * head_dim].view(2, 3, batch, heads, head_dim).bfloat16()
    first, results = torch.tensor([0, 18, 30], device=device), []
    for run in (cached_attention_step_triton, cached_attention_step_reference):
        caches, length, out = filled.clone(), torch.full((), 17, device=device), []
        for query, key, value in tokens.unbind():
            out.append(run(query, key, value, caches[0], caches[1], length, first))
            length += 1
        results.append((torch.stack(out), caches))
    (got, got_caches), (expected, expected_caches) = results
    torch.testing.assert_close(got_caches, expected_caches, rtol=0, atol=0)
    torch.testing.assert_close(
        got, expected, rtol=2e-2, atol=2e-2
    )  # bfloat16 rounds to 2^-9, the library in between as well


# --- public functions --------------------------------------------------------------------------------------------


def cached_attention_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    length: Tensor,
    first: Tensor | None = None,
) -> Tensor:
    """Appends one key and value a sequence at position `length`, and attends over positions first[b]..length.

    Scores are scaled by head_dim ** -0.5; the softmax is float32 (float64 for float64). `length` is read on the device,
    so that one captured graph serves every step, and it is not advanced here. There is no gradient.

    The caches must be finite everywhere (allocate them with zeros): in the reference a position not attended has weight
    0, and 0 times NaN is NaN. The kernel does not fetch such positions. A full cache cannot be noticed on the host
    without waiting for the device: the caller counts (KVCache.reserve). Where `length` is none of 0..L-1 after all, the
    kernel writes no position and returns NaN; the reference raises in eager mode on a CPU, stops the process on a GPU,
    and is undefined where it was compiled.

    Under torch.compile the sizes and strides of the caches are constants. With dynamic shapes Inductor (torch 2.13)
    mistakes one part of a buffer for another where two caches that are views of it are arguments of the compiled
    function, or where caches are sliced from a number of layers that changes: compile such code with dynamic=False, as
    training does.

    The kernel takes float32, bfloat16 and float16, head sizes 16, 32, 64 and 128, and caches of one layout with any
    strides; for the rest the reference runs in its place. Tokens that are not laid out alike, or not with features side
    by side, are copied first.

    Args:
        query, key, value:      [B, heads, head_dim] floating, the new token.
        key_cache, value_cache: [B, heads, L, head_dim] of the same dtype, written in place.
        length:                 0-d int64, on the same device, tokens already in the cache; < L.
        first:                  [B] int64, the first position each sequence sees, or None for 0; the new token always
                                sees itself.
    Returns: [B, heads, head_dim] in the dtype of query.
    Raises: ValueError when shapes, dtypes or devices do not fit, the caches share their start or an entry of one
        its memory with another (other overlaps are not looked for), or a gradient would have to be recorded.
    """
    _check_step(query, key, value, key_cache, value_cache)
    _check_caches(key_cache, value_cache)
    if length.dim() != 0 or length.dtype != torch.int64:
        raise ValueError(f"length must be a 0-d int64 tensor, got {tuple(length.shape)} {length.dtype}")
    if first is not None and (first.shape != query.shape[:1] or first.dtype != torch.int64):
        raise ValueError(
            f"first must be int64 {tuple(query.shape[:1])} for query {tuple(query.shape)}, "
            f"got {first.dtype} {tuple(first.shape)}"
        )
    for name, tensor in (("length", length), ("first", first)):
        if tensor is not None and tensor.device != query.device:
            raise ValueError(
                f"query {tuple(query.shape)} is on {query.device}, "
                f"but {name} {tuple(tensor.shape)} is on {tensor.device}"
            )
    return implementation("cached_attention_step", query.device)(
        query, key, value, key_cache, value_cache, length, first
    )


def _check_step(query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor) -> None:
    shapes = [tuple(x.shape) for x in (query, key, value, key_cache, value_cache)]
    fits = (
        len(shapes[0]) == 3 and len(shapes[3]) == 4 and shapes[0] == shapes[1] == shapes[2] and shapes[3] == shapes[4]
    )
    if not fits or (*shapes[3][:2], shapes[3][3]) != shapes[0] or shapes[3][2] < 1 or shapes[0][2] < 1:
        raise ValueError(
            "query, key, value must be [B, heads, head_dim] and the caches [B, heads, L, head_dim], "
            f"got {', '.join(map(str, shapes))}"
        )
    names = ("query", "key", "value", "key_cache", "value_cache")
    for name, tensor in zip(names, (query, key, value, key_cache, value_cache), strict=True):
        if tensor.dtype != query.dtype or tensor.device != query.device:
            raise ValueError(
                f"query {shapes[0]} is {query.dtype} on {query.device}, "
                f"but {name} {tuple(tensor.shape)} is {tensor.dtype} on {tensor.device}"
            )
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} {tuple(tensor.shape)} asks for a gradient, which a step with a cache has not: "
                "call it under torch.no_grad()"
            )
    if not query.is_floating_point():
        raise ValueError(f"query {shapes[0]} must be floating, got {query.dtype}")


def _check_caches(key_cache: Tensor, value_cache: Tensor) -> None:
    """That a position can be written, once, in each."""
    shape = tuple(key_cache.shape)
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        if any(size > 1 and stride == 0 for size, stride in zip(cache.shape, cache.stride(), strict=True)):
            raise ValueError(
                f"{name} {shape} with strides {cache.stride()} is expanded: its entries share memory, "
                "and cannot be written apart"
            )
    same = key_cache is value_cache
    if not torch.compiler.is_compiling() and type(key_cache) is type(value_cache) is Tensor and not key_cache.is_meta:
        same = same or (key_cache.numel() > 0 and key_cache.data_ptr() == value_cache.data_ptr())
    if same:
        raise ValueError(f"key_cache {shape} and value_cache {shape} share their memory: each needs its own")
