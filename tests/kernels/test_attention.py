"""The cached attention step against full causal attention in float64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stormfast_kernels import cached_attention_step


def full_attention(query, key, value, first=None):
    """Causal attention of [B, heads, T, head_dim] in float64, positions before first[b] unseen (its own token always seen)."""
    query, key, value = query.double(), key.double(), value.double()
    out = torch.zeros_like(query)
    for b in range(query.shape[0]):
        for t in range(query.shape[2]):
            start = 0 if first is None else min(int(first[b]), t)
            weights = torch.softmax(torch.einsum("hd,hsd->hs", query[b, :, t], key[b, :, start : t + 1]) / query.shape[-1] ** 0.5, -1)
            out[b, :, t] = torch.einsum("hs,hsd->hd", weights, value[b, :, start : t + 1])
    return out


def run_steps(query, key, value, cache_length, first=None):
    batch, heads, steps, head_dim = query.shape
    key_cache = torch.zeros(batch, heads, cache_length, head_dim, dtype=query.dtype)
    value_cache, length, out = torch.zeros_like(key_cache), torch.zeros((), dtype=torch.int64), []
    for t in range(steps):
        out.append(cached_attention_step(query[:, :, t], key[:, :, t], value[:, :, t], key_cache, value_cache, length, first))
        assert length.item() == t  # the caller's to advance
        length += 1
    return torch.stack(out, 2), key_cache, value_cache


def tokens(batch, heads, steps, head_dim, dtype, seed=0):
    return torch.randn(3, batch, heads, steps, head_dim, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "heads", "head_dim", "cache_length"), [(3, 2, 16, 24), (5, 3, 20, 31), (1, 1, 1, 24)])
def test_24_steps_equal_full_attention(dtype, masked, batch, heads, head_dim, cache_length):
    query, key, value = tokens(batch, heads, 24, head_dim, dtype, seed=batch)
    first = torch.tensor([0, 7, 23, 1, 12])[:batch] if masked else None
    got, key_cache, value_cache = run_steps(query, key, value, cache_length, first)
    expected = full_attention(query, key, value, first)
    error = (got.double() - expected).norm() / expected.norm()
    assert got.dtype == dtype
    assert error < {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype]  # bf16: rounding of the output alone is 2e-3
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
        out.append(cached_attention_step(query[:, :, 0], key[:, :, 0], value[:, :, 0], caches[0], caches[1], torch.tensor(2)))
    assert torch.equal(out[0], out[1])


def test_scores_that_overflow_a_plain_softmax_stay_finite():
    query, key, value = tokens(1, 2, 5, 4, torch.float32)
    got, *_ = run_steps(query * 1e3, key * 1e3, value, 5)
    torch.testing.assert_close(got.double(), full_attention(query * 1e3, key * 1e3, value), rtol=1e-4, atol=1e-4)


class NoSync(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), f"{func} waits for the device"
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
def test_bad_input_is_refused(name, bad, message):
    with pytest.raises(ValueError, match=message):
        cached_attention_step(**(GOOD | {name: bad}))


def test_integer_tokens_are_refused():
    with pytest.raises(ValueError, match="floating"):
        cached_attention_step(**{name: x.long() for name, x in GOOD.items()})
