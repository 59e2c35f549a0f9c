"""The cached attention step on both paths, reference and Triton kernel, against full causal attention in float64.

Without a CUDA device the kernel runs in Triton's interpreter, which truncates where it stores bfloat16 (a GPU rounds).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from stormfast_kernels import attention, cached_attention_step, dispatch, launch

DEVICE = "cuda" if torch.cuda.is_available() and not launch.INTERPRETED else "cpu"  # where the kernel runs, if it does
NAN = float("nan")
# Of one element: bfloat16 truncated, float16 and float32 rounded; the float32 of the kernel adds little.
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-5},
    torch.float16: {"rtol": 2**-10, "atol": 1e-5},
}


def need_kernel():
    pytest.importorskip("triton")
    if DEVICE == "cpu" and not launch.INTERPRETED:
        pytest.skip("no CUDA device: the kernel needs TRITON_INTERPRET=1")


@pytest.fixture(params=["reference", "triton"])
def path(request, monkeypatch):
    """The test runs once on each path, on DEVICE, and the path that ran is asserted."""
    if request.param == "triton":
        need_kernel()
    monkeypatch.setenv(dispatch.VARIABLE, request.param)
    before = launches()
    yield request.param
    assert (launches() > before) == (request.param == "triton"), f"{request.param} was asked for, but did not run"


@pytest.fixture
def triton_path(monkeypatch):
    need_kernel()
    monkeypatch.setenv(dispatch.VARIABLE, "triton")


def launches():
    return launch.launched["attention_step_kernel"]


def full_attention(query, key, value, first=None):
    """Causal attention of [B, heads, T, head_dim] in float64. Unseen: positions before first[b], save the own token."""
    query, key, value = query.double(), key.double(), value.double()
    out = torch.zeros_like(query)
    for b in range(query.shape[0]):
        for t in range(query.shape[2]):
            start = 0 if first is None else min(int(first[b]), t)
            weights = torch.softmax(
                torch.einsum("hd,hsd->hs", query[b, :, t], key[b, :, start : t + 1]) / query.shape[-1] ** 0.5, -1
            )
            out[b, :, t] = torch.einsum("hs,hsd->hd", weights, value[b, :, start : t + 1])
    return out


def run_steps(query, key, value, cache_length, first=None, device="cpu"):
    query, key, value, first = (None if x is None else x.to(device) for x in (query, key, value, first))
    batch, heads, steps, head_dim = query.shape
    key_cache = torch.zeros(batch, heads, cache_length, head_dim, dtype=query.dtype, device=device)
    value_cache, length, out = torch.zeros_like(key_cache), torch.zeros((), dtype=torch.int64, device=device), []
    for t in range(steps):
        out.append(
            cached_attention_step(query[:, :, t], key[:, :, t], value[:, :, t], key_cache, value_cache, length, first)
        )
        assert length.item() == t  # the caller's to advance
        length += 1
    return torch.stack(out, 2), key_cache, value_cache


def tokens(batch, heads, steps, head_dim, dtype, seed=0):
    return torch.randn(3, batch, heads, steps, head_dim, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("batch", "heads", "head_dim", "cache_length"), [(3, 2, 16, 24), (5, 3, 20, 31), (1, 1, 1, 24)]
)
def test_24_steps_equal_full_attention(dtype, masked, batch, heads, head_dim, cache_length):
    query, key, value = tokens(batch, heads, 24, head_dim, dtype, seed=batch)
    first = torch.tensor([0, 7, 23, 1, 12])[:batch] if masked else None
    got, key_cache, value_cache = run_steps(query, key, value, cache_length, first)
    expected = full_attention(query, key, value, first)
    error = (got.double() - expected).norm() / expected.norm()
    assert got.dtype == dtype
    assert (
        error < {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype]
    )  # bf16: rounding of the output alone is 2e-3
    assert torch.equal(key_cache[:, :, :24], key)
    assert torch.equal(value_cache[:, :, :24], value)
    assert not key_cache[:, :, 24:].any()


def test_first_hides_what_came_before_exactly():
    query, key, value = tokens(2, 2, 9, 8, torch.float32)
    first = torch.tensor([4, 6])
    before, *_ = run_steps(query, key, value, 9, first)
    key[0, :, :4], value[0, :, :4], key[1, :, :6], value[1, :, :6] = 100, -100, 100, -100
    after, *_ = run_steps(query, key, value, 9, first)
    assert torch.equal(before[0, :, 4:], after[0, :, 4:])
    assert torch.equal(before[1, :, 6:], after[1, :, 6:])
    assert not torch.equal(before[1, :, 5], after[1, :, 5])


def test_what_lies_past_length_does_not_count():
    query, key, value = tokens(2, 3, 1, 8, torch.float32)
    out = []
    for filler in (0.0, 1e4):
        caches = torch.full((2, 2, 3, 6, 8), filler)
        caches[:, :, :, :2] = 0.5
        out.append(
            cached_attention_step(query[:, :, 0], key[:, :, 0], value[:, :, 0], caches[0], caches[1], torch.tensor(2))
        )
    assert torch.equal(out[0], out[1])


def test_scores_that_overflow_a_plain_softmax_stay_finite():
    query, key, value = tokens(1, 2, 5, 4, torch.float32)
    got, *_ = run_steps(query * 1e3, key * 1e3, value, 5)
    torch.testing.assert_close(got.double(), full_attention(query * 1e3, key * 1e3, value), rtol=1e-4, atol=1e-4)


class NoSync(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), (
            f"{func} waits for the device"
        )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("masked", [False, True])
def test_no_op_waits_for_the_device(masked):
    query, key, value = tokens(2, 2, 1, 8, torch.float32).squeeze(3)
    caches, length = torch.zeros(2, 2, 2, 4, 8), torch.tensor(1)
    with NoSync(), torch.no_grad():
        cached_attention_step(query, key, value, caches[0], caches[1], length, torch.tensor([0, 1]) if masked else None)
    with NoSync(), pytest.raises(AssertionError, match="waits"):
        length.item()  # the mode does see a sync


def test_a_slice_of_stacked_caches_is_written_in_place():
    query, key, value = tokens(2, 2, 1, 8, torch.float32).squeeze(3)
    stacked = torch.zeros(2, 3, 2, 2, 5, 8)  # [K or V, layers, B, heads, L, head_dim]
    cached_attention_step(query, key, value, stacked[0, 1], stacked[1, 1], torch.tensor(3))
    assert torch.equal(stacked[0, 1, :, :, 3], key)
    assert torch.equal(stacked[1, 1, :, :, 3], value)
    assert not stacked[:, [0, 2]].any()


@pytest.mark.parametrize("masked", [False, True])
def test_an_empty_batch_works(masked):
    query = torch.zeros(0, 2, 8)
    cache = torch.zeros(0, 2, 4, 8)
    first = torch.zeros(0, dtype=torch.int64) if masked else None
    assert cached_attention_step(query, query, query, cache, cache.clone(), torch.tensor(0), first).shape == (0, 2, 8)


def test_non_contiguous_tokens_work():
    packed = torch.randn(3, 2, 30, generator=torch.Generator().manual_seed(7))  # one projection, as a layer makes it
    query, key, value = (x.view(3, 2, 10).transpose(0, 1) for x in packed.flatten(1).split(20, -1))
    outs = []
    for q, k, v in ((query, key, value), (query.contiguous(), key.contiguous(), value.contiguous())):
        caches = torch.zeros(2, 2, 3, 4, 10)
        outs.append(cached_attention_step(q, k, v, caches[0], caches[1], torch.tensor(0)))
    assert not query.is_contiguous()
    assert torch.equal(outs[0], outs[1])


# --- on both paths -----------------------------------------------------------------------------------------------


def one_step(batch, heads, head_dim, cache_length, dtype, length, first=None, beyond=0.0):
    """Arguments of a step on DEVICE, `length` positions filled with random numbers and the rest with `beyond`."""
    rng = torch.Generator().manual_seed(1000 * length + head_dim)
    token = torch.randn(3, batch, heads, head_dim, generator=rng).to(dtype)
    caches = torch.randn(2, batch, heads, cache_length, head_dim, generator=rng).to(dtype)
    caches[:, :, :, length:] = beyond
    first = None if first is None else torch.tensor(first).to(DEVICE)
    return [*token.to(DEVICE), *caches.to(DEVICE), torch.tensor(length).to(DEVICE), first]


def expected_step(query, key, value, key_cache, value_cache, length, first):
    """The output of a step in float64, of arguments as they were before it."""
    keys, values = (
        torch.cat([cache[:, :, : int(length)], new[:, :, None]], 2).cpu()
        for cache, new in ((key_cache, key), (value_cache, value))
    )
    queries = query[:, :, None].cpu().expand(keys.shape)
    return full_attention(queries, keys, values, None if first is None else first.cpu())[:, :, -1]


def assert_is_step(got, before, after):
    """That `got` and the caches are right, and that nothing but position `length` changed."""
    query, key, value, key_cache, value_cache, length, _ = before
    torch.testing.assert_close(got.cpu().double(), expected_step(*before), **TOLERANCE[query.dtype])
    for new, cache, cache_after in ((key, key_cache, after[3]), (value, value_cache, after[4])):
        written = cache.clone()
        written[:, :, int(length)] = new
        torch.testing.assert_close(cache_after, written, rtol=0, atol=0, equal_nan=True)


def step_and_check(arguments):
    before = [None if x is None else x.clone() for x in arguments]
    assert_is_step(cached_attention_step(*arguments), before, arguments)


@pytest.mark.parametrize(
    ("batch", "heads", "head_dim", "cache_length", "lengths"),
    [
        (1, 1, 16, 1, [0]),
        (3, 3, 16, 5, [0, 2, 4]),
        (5, 1, 32, 31, [1, 30]),
        (1, 5, 64, 24, [23]),
        (1, 1, 128, 17, [16]),  # the longest that one tile holds
        (3, 1, 64, 40, [0, 32, 39]),  # tiles repeat from here on
        (1, 1, 128, 256, [0, 100, 255]),
    ],
)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_the_kernel_equals_full_attention(dtype, batch, heads, head_dim, cache_length, lengths, triton_path):
    """Each size masked in one or two of the dtypes, each dtype masked in half of the sizes."""
    before = launches()
    masked = (list(TOLERANCE).index(dtype) + cache_length) % 2 == 0
    for length in lengths:
        first = [length // 2, cache_length + 7, 0, length, 3][:batch] if masked else None
        step_and_check(one_step(batch, heads, head_dim, cache_length, dtype, length, first, beyond=NAN))
    assert launches() == before + len(lengths)


def test_successive_steps_of_the_kernel_equal_full_attention(triton_path):
    query, key, value = tokens(2, 1, 12, 32, torch.float32)
    first, before = torch.tensor([0, 7]), launches()
    got, key_cache, value_cache = run_steps(query, key, value, 12, first, DEVICE)
    torch.testing.assert_close(got.cpu().double(), full_attention(query, key, value, first), **TOLERANCE[torch.float32])
    assert torch.equal(key_cache.cpu(), key)
    assert torch.equal(value_cache.cpu(), value)
    assert launches() == before + 12


@pytest.mark.parametrize("first", [[-5, 100, 3], [3, 4, 2], [2**40, 2 - 2**40, 2]])
@pytest.mark.parametrize("cache_length", [6, 140])
def test_any_first_is_understood(first, cache_length, path):
    step_and_check(one_step(3, 1, 16, cache_length, torch.float32, 3, first))


def test_scores_that_overflow_a_plain_softmax_stay_finite_on_both_paths(path):
    arguments = one_step(1, 2, 16, 40, torch.float32, 20)
    arguments[0] *= 1e3
    arguments[1] *= 1e3
    arguments[3] *= 1e3
    expected = expected_step(*arguments)
    torch.testing.assert_close(cached_attention_step(*arguments).cpu().double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("cache_length", "length"), [(4, 4), (4, -1), (4, 2**33), (200, 200), (200, 2**33 + 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_full_cache_gives_nan_and_is_left_alone(cache_length, length, masked, triton_path):
    arguments = one_step(2, 1, 16, cache_length, torch.float32, 0, [0, 1] if masked else None)
    arguments[5] = torch.tensor(length).to(DEVICE)
    for cache in arguments[3:5]:
        cache.copy_(torch.arange(cache.numel()).view(cache.shape))
    before = [cache.clone() for cache in arguments[3:5]]
    assert cached_attention_step(*arguments).isnan().all()
    assert torch.equal(arguments[3], before[0])
    assert torch.equal(arguments[4], before[1])


@pytest.mark.parametrize("length", [6, -1, 2**33])
def test_a_full_cache_is_refused_by_the_reference(length, monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    caches = torch.zeros(2, 2, 3, 6, 4)
    with pytest.raises(ValueError, match=r"length must lie in 0..5 for caches \(2, 3, 6, 4\)"):
        cached_attention_step(*torch.ones(3, 2, 3, 4), caches[0], caches[1], torch.tensor(length))
    assert not caches.any()


# --- layouts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout", ["packed", "transposed", "unlike query", "unlike key", "unlike value", "strided", "expanded"]
)
def test_tokens_of_any_layout(layout, path):
    arguments = one_step(3, 2, 16, 4, torch.float32, 2)
    token = torch.stack(arguments[:3])  # [3, B, H, D]
    if layout == "packed":  # one projection, as a layer may make it
        token = token.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "transposed":
        token = token.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "strided":
        token = torch.stack([token, token + 1], -1)[..., 0]
    elif layout == "expanded":
        token = token[:, :1].expand(token.shape)
    arguments[:3] = token.unbind()
    if layout.startswith("unlike"):
        i = ("query", "key", "value").index(layout.split()[1])
        arguments[i] = arguments[i].transpose(0, 1).contiguous().transpose(0, 1)
    step_and_check_in_place(arguments)


@pytest.mark.parametrize("cache_length", [6, 140])
def test_a_first_of_any_layout(cache_length, path):
    arguments = one_step(3, 2, 16, cache_length, torch.float32, 4)
    arguments[6] = torch.tensor([[1, 4], [4, 0], [3, 0]]).to(DEVICE)[:, 0]
    assert not arguments[6].is_contiguous()
    step_and_check_in_place(arguments)


def step_and_check_in_place(arguments):
    """step_and_check for views: the caches are looked at where they are."""
    before = [None if x is None else x.clone() for x in arguments]
    got = cached_attention_step(*arguments)
    assert_is_step(got, before, arguments)


@pytest.mark.parametrize("order", [(2, 0, 1, 3), (0, 1, 3, 2), (0, 2, 3, 1), (1, 3, 2, 0)])
@pytest.mark.parametrize("cache_length", [7, 150])
def test_caches_of_any_layout(order, cache_length, path):
    arguments = one_step(2, 3, 16, cache_length, torch.bfloat16 if cache_length == 7 else torch.float32, 5, [0, 2])
    for i in (3, 4):
        arguments[i] = arguments[i].permute(order).contiguous().permute(*(order.index(d) for d in range(4)))
        assert not arguments[i].is_contiguous()
    if arguments[0].dtype == torch.bfloat16 and dispatch.requested() == "reference":
        arguments = [
            x.float() if x is not None and x.is_floating_point() else x for x in arguments
        ]  # it rounds in between
    step_and_check_in_place(arguments)


def test_slices_of_stacked_caches_are_written_in_place(path):
    stacked = torch.zeros(3, 2, 2, 1, 9, 32, device=DEVICE)  # [layers, K or V, B, H, L, D]
    for layer, length in ((0, 1), (2, 3), (2, 4)):
        arguments = one_step(2, 1, 32, 9, torch.float32, 0)
        arguments[3:6] = *stacked[layer].unbind(), torch.tensor(length).to(DEVICE)
        untouched = stacked[1 if layer == 0 else 0].clone()
        step_and_check_in_place(arguments)
        assert torch.equal(stacked[1 if layer == 0 else 0], untouched)
    assert not stacked[1].any()
    assert stacked[2, :, :, :, [3, 4]].all()


def test_a_window_of_a_longer_cache_is_all_that_is_written(path):
    whole = torch.full((2, 2, 1, 20, 16), 5.0, device=DEVICE)
    arguments = one_step(2, 1, 16, 6, torch.float32, 4)
    arguments[3:5] = whole[:, :, :, 7:13].unbind()
    step_and_check_in_place(arguments)
    changed = (whole != 5).any(-1).any(2).any(1).any(0)
    assert changed.nonzero().tolist() == [[11]]


@pytest.mark.parametrize(
    ("dtype", "head_dim", "alike"),
    [(torch.float64, 16, True), (torch.float32, 20, True), (torch.float32, 256, True), (torch.float32, 16, False)],
)
def test_what_the_kernel_does_not_take_goes_to_the_reference(dtype, head_dim, alike, triton_path, monkeypatch):
    arguments, before = one_step(2, 2, head_dim, 5, dtype, 3), launches()
    if not alike:
        arguments[4] = arguments[4].transpose(2, 3).contiguous().transpose(2, 3)
    monkeypatch.setitem(TOLERANCE, torch.float64, {"rtol": 1e-12, "atol": 1e-12})
    step_and_check_in_place(arguments)
    assert launches() == before


@pytest.mark.parametrize("choice", ["reference", "triton"])
def test_caches_that_overlap_are_refused(choice, monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, choice)
    good = one_step(2, 3, 16, 5, torch.float32, 4)
    for i, shape in ((3, (1, 3, 5, 16)), (4, (2, 1, 5, 16))):
        arguments = list(good)
        arguments[i] = torch.zeros(shape, device=DEVICE).expand(2, 3, 5, 16)
        with pytest.raises(ValueError, match=r"\(2, 3, 5, 16\) with strides .* is expanded"):
            cached_attention_step(*arguments)
    for value_cache in (good[3], good[3].view(2, 3, 5, 16)):
        with pytest.raises(ValueError, match=r"\(2, 3, 5, 16\) share their memory"):
            cached_attention_step(*good[:4], value_cache, *good[5:])


def test_every_position_lies_in_a_tile():
    for head_dim in attention.HEAD_SIZES:
        for itemsize in (2, 4):
            for older in range(400):
                wave, waves, more, loop = attention._waves(older, head_dim, itemsize)
                assert wave * head_dim * itemsize == attention.LOAD
                assert waves * wave * head_dim <= attention.TILE
                assert all(n & (n - 1) == 0 for n in (wave, waves, more))
                assert loop == (older > attention.TILE // head_dim)
                assert loop or older <= wave * (waves + more) < max(2 * older, 2 * wave)


def test_the_stride_of_a_dimension_of_one_does_not_count():
    sliced = torch.empty(7, 3, 5)[2:3]
    assert attention._strides(sliced) == attention._strides(sliced.as_strided((1, 3, 5), (1, 5, 1))) == (0, 5, 1)


# --- gradients, and as a registered op ---------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["reference", "triton"])
@pytest.mark.parametrize("which", range(5))
def test_gradients_are_refused(which, choice, monkeypatch):
    if choice == "triton":
        need_kernel()
    monkeypatch.setenv(dispatch.VARIABLE, choice)
    arguments = one_step(1, 2, 16, 5, torch.float32, 4)
    arguments[which].requires_grad_()
    shape = r"\(1, 2, 16\)" if which < 3 else r"\(1, 2, 5, 16\)"
    with pytest.raises(ValueError, match=rf"{shape} .*torch.no_grad"):
        cached_attention_step(*arguments)
    with torch.no_grad():
        assert cached_attention_step(*arguments).isfinite().all()


def test_the_op_has_no_gradient(triton_path):
    arguments = one_step(1, 2, 16, 5, torch.float32, 4)
    out = attention.cached_attention_step_op(arguments[0].requires_grad_(), *arguments[1:])
    with pytest.raises(RuntimeError, match="no autograd formula"):
        out.sum().backward()


@pytest.mark.parametrize("masked", [False, True])
def test_the_op_is_registered_as_torch_wants_it(masked, triton_path):
    arguments, before = one_step(2, 1, 16, 5, torch.float32, 3, [0, 2] if masked else None), launches()
    if masked:
        arguments[3:5] = torch.zeros(2, 2, 1, 5, 16, device=DEVICE).unbind()  # slices of stacked caches
    opcheck(attention.cached_attention_step_op, tuple(arguments))
    assert launches() > before


def test_the_op_runs_the_reference_on_a_cpu_without_the_interpreter(monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED", False)
    before = launches()
    results = []
    for run in (attention.cached_attention_step_op, attention.cached_attention_step_reference):
        arguments = [None if x is None else x.cpu() for x in one_step(2, 3, 16, 5, torch.float32, 3, [0, 2])]
        results.append((run(*arguments), *arguments[3:5]))
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)
    assert launches() == before


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_a_graph_break(backend, path):
    def two_layers(x, caches, length, first):
        for layer in range(2):
            query, key, value = (x * (layer + 1)).unbind()
            mixed = cached_attention_step(query, key, value, caches[layer, 0], caches[layer, 1], length, first)
            x = x + mixed
        length += 1
        return x

    results, compiled = [], torch.compile(two_layers, backend=backend, fullgraph=True)
    for run in (two_layers, compiled):
        caches, length, first = (
            torch.zeros(2, 2, 2, 1, 6, 16, device=DEVICE),
            torch.tensor(0).to(DEVICE),
            torch.tensor([0, 1]).to(DEVICE),
        )
        x = torch.randn(3, 2, 1, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        with torch.no_grad():
            out = [run(x + step, caches, length, first) for step in range(3)]
        results.append((torch.stack(out), caches, length))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)
    assert results[1][2].item() == 3
    assert results[1][1][:, :, :, :, :3].all() and not results[1][1][:, :, :, :, 3:].any()


@pytest.mark.slow
def test_batches_of_two_sizes_compile_with_dynamic_shapes(path):
    """The second size makes torch compile with symbolic sizes; each layer's caches are sliced inside the graph."""

    def two_layers(x, caches, length, first):
        for layer in range(2):
            cache = caches[layer]
            x = x + cached_attention_step(*(x * (layer + 1)).unbind(), cache[0], cache[1], length, first)
        return x

    torch.compiler.reset()
    compiled = torch.compile(two_layers, fullgraph=True)  # dynamic shapes as torch decides
    for batch in (2, 3, 5):
        rng, results = torch.Generator().manual_seed(batch), []
        x, filled = torch.randn(3, batch, 2, 16, generator=rng), torch.randn(2, 2, batch, 2, 7, 16, generator=rng)
        first = torch.arange(batch).to(DEVICE)
        for run in (two_layers, compiled):
            caches = filled.clone().to(DEVICE)
            with torch.no_grad():
                out = [run(x.to(DEVICE) + step, caches, torch.tensor(3 + step).to(DEVICE), first) for step in range(2)]
            results.append((torch.stack(out), caches))
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected)
        assert torch.equal(results[1][1][..., 5:, :].cpu(), filled[..., 5:, :])
        assert not torch.equal(results[1][1][..., 3:5, :].cpu(), filled[..., 3:5, :])


def test_the_trial_passes_here_and_fails_where_the_kernel_does_nothing(monkeypatch, triton_path):
    attention._trial(torch.device(DEVICE))
    monkeypatch.setattr(launch.Launch, "run", lambda self: None)
    with pytest.raises(AssertionError):
        attention._trial(torch.device(DEVICE))


COMPILED_AHEAD = """
import torch
from stormfast_kernels.attention import step_launch

def cache(order, batch, heads, positions, head_dim):
    sizes = (batch, heads, positions, head_dim)
    laid_out = torch.empty([sizes[d] for d in order], dtype=torch.bfloat16, device="meta")
    return laid_out.permute(*(order.index(d) for d in range(4)))

for order, sizes in (
    ((0, 1, 2, 3), (1, 1, 1, 16)),
    ((0, 1, 2, 3), (1, 1, 40, 64)),
    ((2, 0, 1, 3), (8192, 16, 256, 128)),
    ((0, 1, 3, 2), (2, 3, 24, 64)),
    ((0, 2, 3, 1), (2, 3, 24, 64)),
    ((1, 3, 2, 0), (2, 3, 24, 64)),
):
    batch, heads, _, head_dim = sizes
    token = torch.empty(batch, heads, head_dim, dtype=torch.bfloat16, device="meta")
    number = torch.empty((), dtype=torch.int64, device="meta")
    for first in (None, torch.empty(batch, dtype=torch.int64, device="meta")):
        caches = (cache(order, *sizes), cache(order, *sizes))
        step_launch(token, token, token, *caches, number, first, token).compile_for(90)
print("compiled")
"""


@pytest.mark.slow
def test_unusual_layouts_compile_for_a_gpu():
    pytest.importorskip("triton")
    kernels = Path(attention.__file__).parents[1]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {
        "PYTHONPATH": str(kernels)
    }
    done = subprocess.run([sys.executable, "-c", COMPILED_AHEAD], env=environment, capture_output=True, text=True)
    assert done.stdout == "compiled\n", done.stderr


@pytest.mark.gpu
def test_offsets_past_two_billion_elements(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    caches = torch.zeros(3, 1, 2, 2**30 // 16, 16, dtype=torch.bfloat16, device="cuda").permute(
        2, 0, 1, 3, 4
    )  # K or V, B, H, L, D
    token = torch.randn(3, 3, 1, 16, dtype=torch.bfloat16, device="cuda")
    arguments = [*token, *caches[..., -9:, :], torch.tensor(4, device="cuda"), None]
    assert caches.stride(1) == 2**31
    step_and_check_in_place(arguments)


# --- bad input ---------------------------------------------------------------------------------------------------


GOOD = {
    "query": torch.zeros(2, 3, 4),
    "key": torch.zeros(2, 3, 4),
    "value": torch.zeros(2, 3, 4),
    "key_cache": torch.zeros(2, 3, 5, 4),
    "value_cache": torch.zeros(2, 3, 5, 4),
    "length": torch.tensor(0),
}


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("query", torch.zeros(2, 12), r"\(2, 12\)"),
        ("key", torch.zeros(2, 3, 5), r"\(2, 3, 5\)"),
        ("value", torch.zeros(3, 3, 4), r"\(3, 3, 4\)"),
        ("key_cache", torch.zeros(2, 5, 3, 4), r"\(2, 5, 3, 4\)"),
        ("value_cache", torch.zeros(2, 3, 6, 4), r"\(2, 3, 6, 4\)"),
        ("key", torch.zeros(2, 3, 4).bfloat16(), "bfloat16"),
        ("value_cache", torch.zeros(2, 3, 5, 4, device="meta"), "meta"),
        ("length", torch.zeros(2, dtype=torch.int64), r"\(2,\)"),
        ("length", torch.tensor(0, dtype=torch.int32), "int32"),
        ("length", torch.tensor(0, device="meta"), "meta"),
        ("first", torch.zeros(3, dtype=torch.int64), r"\(3,\)"),
        ("first", torch.zeros(2), "float32"),
    ],
)
@pytest.mark.parametrize("choice", ["reference", "triton"])
def test_bad_input_is_refused(name, bad, message, choice, monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, choice)  # refused before either is looked up
    with pytest.raises(ValueError, match=message):
        cached_attention_step(**(GOOD | {name: bad}))


def test_integer_tokens_are_refused():
    with pytest.raises(ValueError, match="floating"):
        cached_attention_step(**{name: x.long() for name, x in GOOD.items()})
