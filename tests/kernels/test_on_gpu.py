"""The kernels on a CUDA device, at the presets' sizes, against their references; in captured graphs too.

B sequences   H heads   S categoricals   K classes   L cache positions
"""

from collections.abc import Iterator

import pytest
import torch

from stormfast_kernels import (
    cached_attention_step,
    dispatch,
    launch,
    sample_categorical,
    sample_categorical_with_log_probs,
    unimix_log_probs,
)

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda", 0)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


@pytest.fixture(autouse=True)
def triton_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    before = launch.launched.total()
    yield
    assert launch.launched.total() > before, "no kernel was launched"


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, device=CUDA, generator=torch.Generator(CUDA).manual_seed(seed)).to(dtype)


def uniform(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, device=CUDA, generator=torch.Generator(CUDA).manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1024 * 16, 32, 32), (16, 64, 32, 32), (77, 64, 64), (1000, 3, 17), (5, 1, 1000), (0, 4, 8)]
)
def test_sampling_equals_the_reference(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for choice in ("triton", "reference"):
        monkeypatch.setenv(dispatch.VARIABLE, choice)
        logits = (normal(*shape) * 2).to(dtype).requires_grad_()
        sample, index, log_probs = sample_categorical_with_log_probs(logits, uniform(*shape[:-1]), 0.01)
        on_sample, on_log_probs = normal(*shape, seed=2, dtype=dtype), normal(*shape, seed=3)
        (gradient,) = torch.autograd.grad((sample * on_sample).sum() + (log_probs * on_log_probs).sum(), logits)
        results.append((sample.detach(), index, log_probs.detach(), gradient))
    (sample, index, log_probs, gradient), (_, expected_index, expected_log_probs, expected_gradient) = results
    assert torch.equal(sample, torch.zeros_like(sample).scatter(-1, index[..., None], 1))
    assert (index != expected_index).sum() <= max(1, 1e-5 * index.numel())
    torch.testing.assert_close(log_probs, expected_log_probs, rtol=1e-5, atol=2e-6)
    error = (gradient.double() - expected_gradient.double()).norm()
    assert error <= 10 * ROUNDING[dtype] * expected_gradient.double().norm()
    sample_categorical(torch.zeros(1, 1, 2, device=CUDA), None, 0.0)  # an empty batch launches nothing


def test_sampling_past_two_billion_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, classes = 2**26 + 77, 32  # logits, sample and gradient of 4 GiB each, log-probabilities of 8
    if torch.cuda.mem_get_info(CUDA)[0] < 20e9:
        sample_categorical(torch.zeros(1, 1, 2, device=CUDA), None, 0.0)  # triton_path waits for a launch
        pytest.skip("needs 20 GB of free GPU memory")
    generator = torch.Generator(CUDA).manual_seed(8)
    logits = torch.randn(rows, 1, classes, dtype=torch.bfloat16, device=CUDA, generator=generator)
    assert logits.numel() > 2**31
    numbers, ends = uniform(rows, 1), [slice(0, 999), slice(-999, None)]
    given = logits.detach().requires_grad_()
    sample, index = sample_categorical(given, numbers, 0.01)
    (gradient,) = torch.autograd.grad(sample, given, logits)
    got = [(sample[end].detach().clone(), index[end].clone(), gradient[end].clone()) for end in ends]
    del sample, index, gradient, given
    log_probs = unimix_log_probs(logits, 0.01)
    got_log_probs = [log_probs[end].clone() for end in ends]
    del log_probs
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    for end, (sample, index, gradient), log_probs in zip(ends, got, got_log_probs, strict=True):
        given = logits[end].clone().requires_grad_()
        expected, expected_index = sample_categorical(given, numbers[end], 0.01)
        (expected_gradient,) = torch.autograd.grad(expected, given, logits[end])
        assert (index != expected_index).sum() <= 1
        assert torch.equal(sample, torch.zeros_like(sample).scatter(-1, index[..., None], 1))
        error = (gradient.double() - expected_gradient.double()).norm()
        assert error <= 10 * ROUNDING[torch.bfloat16] * expected_gradient.double().norm()
        torch.testing.assert_close(log_probs, unimix_log_probs(logits[end], 0.01), rtol=1e-5, atol=2e-6)


def test_a_replayed_graph_draws_from_the_numbers_that_are_in_its_buffer() -> None:
    logits, numbers = torch.zeros(64, 8, 32, device=CUDA), uniform(64, 8)
    sample_categorical(logits, numbers, 0.0)  # compiled before capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        index = sample_categorical(logits, numbers, 0.0)[1]
    for seed in (1, 2):
        numbers.copy_(uniform(64, 8, seed=seed))
        graph.replay()
        assert (index != (numbers * 32).long()).sum() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "heads", "head_dim", "length"),
    [(1024, 8, 64, 24), (2048, 4, 64, 20), (8192, 1, 16, 8), (3, 16, 128, 256), (1, 1, 32, 1)],
)
@pytest.mark.parametrize("masked", [False, True])
def test_one_captured_attention_step_serves_every_position(
    batch: int,
    heads: int,
    head_dim: int,
    length: int,
    masked: bool,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = normal(length, 3, batch, heads, head_dim, dtype=dtype)
    first = (
        torch.randint(0, length, (batch,), device=CUDA, generator=torch.Generator(CUDA).manual_seed(4))
        if masked
        else None
    )

    def caches() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return (
            *torch.zeros(2, batch, heads, length, head_dim, dtype=dtype, device=CUDA),
            torch.zeros((), dtype=torch.int64, device=CUDA),
        )

    key_cache, value_cache, position = caches()
    key_cache.fill_(float("nan"))  # the kernel never looks at what was not written
    value_cache.fill_(float("nan"))
    token = tokens[0].clone()
    cached_attention_step(*token, key_cache, value_cache, position, first)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        out = cached_attention_step(*token, key_cache, value_cache, position, first)
        position += 1
    position.zero_()
    got = []
    for t in range(length):
        token.copy_(tokens[t])
        graph.replay()
        got.append(out.clone())
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    *expected_caches, at = caches()
    for t in range(length):
        exact = cached_attention_step(*tokens[t], *expected_caches, at + t, first).double()
        assert (got[t].double() - exact).norm() <= 4 * ROUNDING[dtype] * exact.norm(), t
    assert torch.equal(key_cache, expected_caches[0])
    assert torch.equal(value_cache, expected_caches[1])


def test_a_full_cache_is_loud_and_untouched() -> None:
    token, caches = normal(3, 2, 4, 16), torch.ones(2, 2, 4, 5, 16, device=CUDA)
    for position in (5, 2**40, -1):
        out = cached_attention_step(*token, *caches, torch.tensor(position, device=CUDA))
        assert out.isnan().all()
    assert (caches == 1).all()


def test_both_compile_without_a_graph_break() -> None:
    def step(logits, numbers, query, caches, position):
        sample, _ = sample_categorical(logits, numbers, 0.01)
        mixed = cached_attention_step(query + sample.sum(), query, query, *caches, position)
        return sample, mixed

    logits, numbers, query, position = (
        normal(64, 8, 32),
        uniform(64, 8),
        normal(64, 4, 32),
        torch.tensor(2, device=CUDA),
    )
    caches = normal(2, 64, 4, 6, 32, seed=6)
    expected_caches = caches.clone()
    with torch.no_grad():
        expected = step(logits, numbers, query, expected_caches, position)
        got = torch.compile(step, fullgraph=True, dynamic=False)(logits, numbers, query, caches, position)
    for a, b in zip((*got, caches), (*expected, expected_caches), strict=True):
        torch.testing.assert_close(a, b)
