"""Sampling and log-probabilities against float64 oracles."""

import numpy as np
import pytest
import torch

from stormfast_kernels import sample_categorical, unimix_log_probs

BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


def oracle_probs(logits: torch.Tensor, unimix: float) -> torch.Tensor:
    exp = (logits.double() - logits.double().amax(-1, keepdim=True)).exp()
    return (1 - unimix) * exp / exp.sum(-1, keepdim=True) + unimix / logits.shape[-1]


def oracle_index(probs: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    rows = [np.searchsorted(np.cumsum(p), u, side="right") for p, u in zip(probs.reshape(-1, probs.shape[-1]), uniform.ravel(), strict=True)]
    return np.minimum(rows, probs.shape[-1] - 1).reshape(uniform.shape)


def is_one_hot(sample: torch.Tensor, index: torch.Tensor) -> bool:
    expected = torch.zeros_like(sample).scatter(-1, index.unsqueeze(-1), 1)
    return torch.equal(sample, expected)


@pytest.mark.parametrize("unimix", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("classes", [2, 7, 32])
def test_counts_on_a_quantile_grid_are_within_one(classes, unimix):
    draws, rows = 16_384, 4
    logits = torch.randn(rows, classes, generator=torch.Generator().manual_seed(classes)) * 3
    uniform = ((torch.arange(draws, dtype=torch.float64) + 0.5) / draws).float().unsqueeze(1).expand(draws, rows)
    _, index = sample_categorical(logits.expand(draws, rows, classes), uniform, unimix)
    counts = torch.nn.functional.one_hot(index, classes).sum(0).double()
    expected = draws * oracle_probs(logits, unimix)
    slack = 1 + draws * classes * torch.finfo(torch.float32).eps  # rounding of the cdf moves an edge
    assert (counts - expected).abs().max() <= slack


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 3, 7, 13), (4, 64, 64), (5, 3, 1)])
def test_index_equals_the_float64_oracle(shape):
    rng = torch.Generator().manual_seed(sum(shape))
    logits, uniform = torch.randn(shape, generator=rng).double() * 2, torch.rand(shape[:-1], generator=rng).double()
    sample, index = sample_categorical(logits, uniform, 0.01)
    assert index.dtype == torch.int64
    assert index.shape == shape[:-1]
    assert np.array_equal(index.numpy(), oracle_index(oracle_probs(logits, 0.01).numpy(), uniform.numpy()))
    single = sample_categorical(logits.float(), uniform.float(), 0.01)[1]
    assert (single != index).sum() <= 1e-5 * index.numel()  # a uniform may lie on an edge of the float32 cdf
    assert is_one_hot(sample, index)


def test_mode_is_the_first_most_probable_class():
    logits = torch.tensor([[[0.0, 2.0, 2.0], [5.0, 1.0, 0.0]]])
    sample, index = sample_categorical(logits, None, 0.01)
    assert index.tolist() == [[1, 0]]
    assert is_one_hot(sample, index)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grad", [False, True])
def test_forward_is_exactly_one_hot(dtype, grad):
    rng = torch.Generator().manual_seed(0)
    logits = (torch.randn(50, 8, 17, generator=rng) * 4).to(dtype).requires_grad_(grad)
    sample, index = sample_categorical(logits, torch.rand(50, 8, generator=rng), 0.01)
    assert sample.dtype == dtype
    assert sample.requires_grad == grad
    assert not index.requires_grad
    assert is_one_hot(sample.detach(), index)


@pytest.mark.parametrize("unimix", [0.0, 0.01, 1.0])
def test_gradient_is_that_of_the_probabilities(unimix):
    rng = torch.Generator().manual_seed(1)
    logits, weight = torch.randn(3, 5, 9, generator=rng).double().requires_grad_(), torch.randn(3, 5, 9, generator=rng).double()
    (expected,) = torch.autograd.grad((oracle_probs(logits, unimix) * weight).sum(), logits)
    sample, _ = sample_categorical(logits, torch.rand(3, 5, generator=rng), unimix)
    (got,) = torch.autograd.grad((sample * weight).sum(), logits)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_bfloat16_gradient_is_the_rounded_float32_one():
    rng = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 6, 32, generator=rng).bfloat16().requires_grad_()
    weight = torch.randn(4, 6, 32, generator=rng).bfloat16()
    sample, _ = sample_categorical(logits, torch.rand(4, 6, generator=rng), 0.01)
    (got,) = torch.autograd.grad((sample * weight).sum(), logits)
    exact = logits.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad((oracle_probs(exact, 0.01) * weight).sum(), exact)
    assert got.dtype == torch.bfloat16
    assert (got.double() - expected).norm() / expected.norm() < 2**-7


@pytest.mark.parametrize("u", [0.0, 0.5, BELOW_ONE])
@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_extreme_logits_and_uniforms(u, unimix):
    rows = torch.zeros(6, 33)
    rows[0, 0], rows[1, -1], rows[2, 16] = 80, 80, 80
    rows[3], rows[4, :] = -80, 1e30
    rows[5, :] = torch.linspace(-40, 40, 33)  # e^-80 is a normal float32
    _, index = sample_categorical(rows, torch.full((6,), u), unimix)
    expected = oracle_index(oracle_probs(rows, unimix).numpy(), np.full(6, u))
    assert ((index >= 0) & (index < 33)).all()
    assert np.array_equal(index.numpy(), expected)


def test_minus_infinity_is_never_drawn_without_unimix():
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 1.0]]).expand(1001, 1, 4)
    _, index = sample_categorical(logits, torch.linspace(0, BELOW_ONE, 1001).unsqueeze(1), 0.0)
    assert set(index.unique().tolist()) == {1, 3}


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (0, 1, 1)])
@pytest.mark.parametrize("mode", [True, False])
def test_empty_batches_work(shape, mode):
    logits = torch.zeros(shape, requires_grad=True)
    sample, index = sample_categorical(logits, None if mode else torch.zeros(shape[:-1]), 0.01)
    assert sample.shape == shape
    assert index.shape == shape[:-1]
    sample.sum().backward()
    assert logits.grad is not None


def test_non_contiguous_input_gives_the_same_sample():
    rng = torch.Generator().manual_seed(3)
    logits, uniform = torch.randn(7, 5, 6, generator=rng).transpose(0, 1), torch.rand(7, 5, generator=rng).T
    assert not logits.is_contiguous()
    got, expected = sample_categorical(logits, uniform, 0.1), sample_categorical(logits.contiguous(), uniform.contiguous(), 0.1)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("unimix", [0.0, 0.01, 1.0])
def test_log_probs_equal_the_oracle(unimix):
    logits = torch.randn(3, 4, 11, generator=torch.Generator().manual_seed(4)) * 5
    expected = oracle_probs(logits, unimix).log()
    torch.testing.assert_close(unimix_log_probs(logits.double(), unimix), expected, rtol=1e-12, atol=1e-13)
    for dtype in (torch.float32, torch.bfloat16):
        rounded = logits.to(dtype)
        got = unimix_log_probs(rounded, unimix)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), oracle_probs(rounded, unimix).log(), rtol=1e-5, atol=2e-6)


def test_log_probs_without_unimix_do_not_underflow():
    assert unimix_log_probs(torch.tensor([0.0, 200.0]), 0.0).tolist() == [-200.0, 0.0]


def test_gradcheck():
    rng = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 3, 4, generator=rng).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: unimix_log_probs(x, 0.01), logits)


@pytest.mark.parametrize(
    ("logits", "uniform", "unimix", "message"),
    [
        (torch.zeros(4), torch.zeros(()), 0.0, r"\(4,\)"),
        (torch.zeros(2, 0), torch.zeros(2), 0.0, r"\(2, 0\)"),
        (torch.zeros(2, 3, 4), torch.zeros(2), 0.0, r"\(2, 3\) for logits \(2, 3, 4\), got \(2,\)"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 1), 0.0, r"\(2, 3, 1\)"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.bfloat16), 0.0, "bfloat16"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), 0.0, "int64"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2), 0.0, "int64"),
        (torch.zeros(2, 3), torch.zeros(2, device="meta"), 0.0, "meta"),
        (torch.zeros(2, 3), torch.zeros(2), 1.5, r"1\.5"),
        (torch.zeros(2, 3), torch.zeros(2), float("nan"), "nan"),
    ],
)
def test_bad_input_is_refused(logits, uniform, unimix, message):
    with pytest.raises(ValueError, match=message):
        sample_categorical(logits, uniform, unimix)


def test_compiles_without_a_graph_break():
    rng = torch.Generator().manual_seed(6)
    logits, uniform = torch.randn(3, 5, 7, generator=rng), torch.rand(3, 5, generator=rng)
    compiled = torch.compile(sample_categorical, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(logits, uniform, 0.01)[1], sample_categorical(logits, uniform, 0.01)[1])
