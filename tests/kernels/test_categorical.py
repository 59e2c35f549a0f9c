"""Sampling and log-probabilities on both paths, the reference and the Triton kernel, against float64 oracles.

Tensors are on the CPU: the kernel runs in Triton's interpreter, which truncates when it stores bfloat16 (a GPU rounds).
Where Triton compiles, test_on_gpu.py shows the kernel, and here the reference alone runs.
"""

import numpy as np
import pytest
import torch
from torch.library import opcheck

from stormfast_kernels import (
    categorical,
    dispatch,
    launch,
    sample_categorical,
    sample_categorical_with_log_probs,
    unimix_log_probs,
)

BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def oracle_probs(logits: torch.Tensor, unimix: float) -> torch.Tensor:
    exp = (logits.double() - logits.double().amax(-1, keepdim=True)).exp()
    return (1 - unimix) * exp / exp.sum(-1, keepdim=True) + unimix / logits.shape[-1]


def oracle_index(probs: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    rows = [
        np.searchsorted(np.cumsum(p), u, side="right")
        for p, u in zip(probs.reshape(-1, probs.shape[-1]), uniform.ravel(), strict=True)
    ]
    return np.minimum(rows, probs.shape[-1] - 1).reshape(uniform.shape)


def is_one_hot(sample: torch.Tensor, index: torch.Tensor) -> bool:
    expected = torch.zeros_like(sample).scatter(-1, index.unsqueeze(-1), 1)
    return torch.equal(sample, expected)


@pytest.mark.parametrize("unimix", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("classes", [2, 7, 32])
def test_counts_on_a_quantile_grid_are_within_one(classes, unimix, path):
    draws, rows = 16_384, 4
    logits = torch.randn(rows, classes, generator=torch.Generator().manual_seed(classes)) * 3
    uniform = ((torch.arange(draws, dtype=torch.float64) + 0.5) / draws).float().unsqueeze(1).expand(draws, rows)
    _, index = sample_categorical(logits.expand(draws, rows, classes), uniform, unimix)
    counts = torch.nn.functional.one_hot(index, classes).sum(0).double()
    expected = draws * oracle_probs(logits, unimix)
    slack = 1 + draws * classes * torch.finfo(torch.float32).eps  # rounding of the cdf moves an edge
    assert (counts - expected).abs().max() <= slack


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 3, 7, 13), (4, 64, 64), (5, 3, 1), (2, 3, 1000)])
def test_index_equals_the_float64_oracle(shape, path):
    rng = torch.Generator().manual_seed(sum(shape))
    logits, uniform = torch.randn(shape, generator=rng).double() * 2, torch.rand(shape[:-1], generator=rng).double()
    expected = oracle_index(oracle_probs(logits, 0.01).numpy(), uniform.numpy())
    sample, index = sample_categorical(logits, uniform, 0.01)
    assert index.dtype == torch.int64
    assert np.array_equal(index.numpy(), expected)
    sample, index = sample_categorical(logits.float(), uniform.float(), 0.01)
    assert index.dtype == torch.int64
    assert index.shape == shape[:-1]
    assert (index.numpy() != expected).sum() <= 1e-5 * index.numel()  # a uniform may lie on an edge of the float32 cdf
    assert is_one_hot(sample, index)


@pytest.mark.parametrize("unimix", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("classes", [1, 2, 31, 32, 33, 255])
def test_both_paths_draw_the_same_classes(classes, unimix, monkeypatch, triton_path):
    rng = torch.Generator().manual_seed(classes)
    logits, uniform = torch.randn(999, 3, classes, generator=rng) * 3, torch.rand(999, 3, generator=rng)
    kernel = sample_categorical(logits, uniform, unimix)
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    reference = sample_categorical(logits, uniform, unimix)
    assert (kernel[1] != reference[1]).sum() <= max(1, 1e-5 * 2997)
    assert is_one_hot(*kernel)


def test_mode_is_the_first_most_probable_class(path):
    logits = torch.tensor([[[0.0, 2.0, 2.0], [5.0, 1.0, 0.0]]])
    sample, index = sample_categorical(logits, None, 0.01)
    assert index.tolist() == [[1, 0]]
    assert is_one_hot(sample, index)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grad", [False, True])
def test_forward_is_exactly_one_hot(dtype, grad, path):
    rng = torch.Generator().manual_seed(0)
    logits = (torch.randn(50, 8, 17, generator=rng) * 4).to(dtype).requires_grad_(grad)
    sample, index = sample_categorical(logits, torch.rand(50, 8, generator=rng), 0.01)
    assert sample.dtype == dtype
    assert sample.requires_grad == grad
    assert not index.requires_grad
    assert is_one_hot(sample.detach(), index)


def gradients(logits, uniform, unimix, on_sample, on_log_probs):
    """Gradient of sample and of log_probs, alone and together, with respect to logits."""
    logits = logits.detach().requires_grad_()
    sample, _, log_probs = sample_categorical_with_log_probs(logits, uniform, unimix)
    losses = {"sample": (sample * on_sample).sum(), "log_probs": (log_probs * on_log_probs).sum()}
    losses["both"] = losses["sample"] + losses["log_probs"]
    return {name: torch.autograd.grad(loss, logits, retain_graph=True)[0] for name, loss in losses.items()}


def oracle_gradients(logits, unimix, on_sample, on_log_probs):
    exact = logits.double().detach().requires_grad_()
    probs = oracle_probs(exact, unimix)
    log_probs = torch.log_softmax(exact, -1) if unimix == 0 else probs.log()
    losses = {"sample": (probs * on_sample.double()).sum(), "log_probs": (log_probs * on_log_probs.double()).sum()}
    losses["both"] = losses["sample"] + losses["log_probs"]
    return {name: torch.autograd.grad(loss, exact, retain_graph=True)[0] for name, loss in losses.items()}


@pytest.mark.parametrize("unimix", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 9), (7, 32, 32), (2, 3, 65), (130, 1, 17)])
def test_gradients_are_those_of_the_probabilities(shape, dtype, unimix, path):
    rng = torch.Generator().manual_seed(1)
    logits, on_sample = (torch.randn(shape, generator=rng).to(dtype) for _ in range(2))
    on_log_probs = torch.randn(shape, generator=rng)
    got = gradients(logits, torch.rand(shape[:-1], generator=rng), unimix, on_sample, on_log_probs)
    expected = oracle_gradients(logits, unimix, on_sample, on_log_probs)
    for name, gradient in got.items():
        assert gradient.dtype == dtype
        # float32 throughout, rounded (bfloat16 in the interpreter: truncated, 2^-7 an element) at the end
        error = (gradient.double() - expected[name]).norm() / expected[name].norm().clamp(min=1e-3)
        assert error < {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype], f"{name}: {error}"


def test_float64_gradients_are_exact_to_rounding():
    rng = torch.Generator().manual_seed(1)
    logits, on_sample, on_log_probs = (torch.randn(3, 5, 9, generator=rng).double() for _ in range(3))
    for unimix in (0.0, 0.01, 1.0):
        got = gradients(logits, torch.rand(3, 5, generator=rng), unimix, on_sample, on_log_probs)
        expected = oracle_gradients(logits, unimix, on_sample, on_log_probs)
        for name, gradient in got.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-12, atol=1e-14)
            by_hand = {
                "sample": (on_sample, None),
                "log_probs": (None, on_log_probs),
                "both": (on_sample, on_log_probs),
            }[name]
            torch.testing.assert_close(
                categorical.gradient_reference(logits, *by_hand, unimix), expected[name], rtol=1e-12, atol=1e-14
            )


def test_a_gradient_that_is_not_contiguous_counts(path):
    rng = torch.Generator().manual_seed(2)
    logits, uniform = torch.randn(6, 4, 8, generator=rng), torch.rand(6, 4, generator=rng)
    weight = torch.randn(8, 4, 6, generator=rng).permute(2, 1, 0)
    got, expected = (gradients(logits, uniform, 0.01, w, w) for w in (weight, weight.contiguous()))
    for name in got:
        assert torch.equal(got[name], expected[name])


def view_of(kind, logits):
    """The same numbers, not contiguous."""
    if kind == "sliced":  # all but the last step of a window, as the loss of a prior takes
        return torch.cat([logits, logits[:, :1] + 9], 1)[:, :-1]
    return logits.transpose(0, 1).contiguous().transpose(0, 1)


@pytest.mark.parametrize("kind", ["sliced", "transposed"])
def test_gradients_for_logits_that_are_not_contiguous(kind, path):
    rng = torch.Generator().manual_seed(12)
    plain, on_sample, on_log_probs = (torch.randn(3, 5, 4, 9, generator=rng) for _ in range(3))
    uniform = torch.rand(3, 5, 4, generator=rng)
    logits = view_of(kind, plain)
    assert not logits.is_contiguous() and torch.equal(logits, plain)
    got, expected = (
        gradients(logits, uniform, 0.01, on_sample, on_log_probs),
        oracle_gradients(plain, 0.01, on_sample, on_log_probs),
    )
    given = logits.detach().requires_grad_()
    log_probs = unimix_log_probs(given, 0.01)
    torch.testing.assert_close(log_probs, unimix_log_probs(plain, 0.01))
    got["alone"], expected["alone"] = (
        torch.autograd.grad((log_probs * on_log_probs).sum(), given)[0],
        expected["log_probs"],
    )
    for name, gradient in got.items():
        torch.testing.assert_close(
            gradient.double(), expected[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_unused_outputs_get_no_gradient(path):
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(3)).requires_grad_()
    sample, index, log_probs = sample_categorical_with_log_probs(logits, torch.full((2, 3), 0.5), 0.01)
    assert sample.requires_grad and log_probs.requires_grad and not index.requires_grad
    (log_probs * 0).sum().backward()
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("u", [0.0, 0.5, BELOW_ONE])
@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_extreme_logits_and_uniforms(u, unimix, path):
    rows = torch.zeros(6, 33)
    rows[0, 0], rows[1, -1], rows[2, 16] = 80, 80, 80
    rows[3], rows[4, :] = -80, 1e30
    rows[5, :] = torch.linspace(-40, 40, 33)  # e^-80 is a normal float32
    _, index = sample_categorical(rows, torch.full((6,), u), unimix)
    expected = oracle_index(oracle_probs(rows, unimix).numpy(), np.full(6, u))
    assert ((index >= 0) & (index < 33)).all()
    assert np.array_equal(index.numpy(), expected)


@pytest.mark.parametrize("row", [[float("nan"), 0.0, 1.0], [0.0, float("inf"), 1.0], [float("-inf")] * 3])
@pytest.mark.parametrize("mode", [True, False])
def test_what_is_no_distribution_shows_as_nan(row, mode, path):
    logits = torch.tensor([[row], [[0.0, 9.0, 0.0]]])
    sample, index = sample_categorical(logits, None if mode else torch.full((2, 1), 0.5), 0.01)
    assert index.tolist() == [[0], [1]]
    assert sample[0].isnan().any()
    assert sample[1].tolist() == [[0, 1, 0]]


def test_minus_infinity_is_never_drawn_without_unimix(path):
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 1.0]]).expand(1001, 1, 4)
    _, index = sample_categorical(logits, torch.linspace(0, BELOW_ONE, 1001).unsqueeze(1), 0.0)
    assert set(index.unique().tolist()) == {1, 3}


def test_rounding_does_not_lead_into_impossible_classes(path):
    logits = torch.randn(2_000, 1, 33, generator=torch.Generator().manual_seed(12))
    logits[..., 30:] = float("-inf")
    for u in (torch.full((2_000, 1), BELOW_ONE), torch.full((2_000, 1), 1 - 1e-9, dtype=torch.float64)):
        assert sample_categorical(logits, u, 0.0)[1].max() == 29


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (0, 1, 1)])
@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("choice", ["reference", "triton"])
def test_empty_batches_work(shape, mode, choice, monkeypatch, request):
    if choice == "triton":
        request.getfixturevalue("triton_path")
    monkeypatch.setenv(dispatch.VARIABLE, choice)
    logits = torch.zeros(shape, requires_grad=True)
    sample, index = sample_categorical(logits, None if mode else torch.zeros(shape[:-1]), 0.01)
    assert sample.shape == shape
    assert index.shape == shape[:-1]
    sample.sum().backward()
    assert logits.grad is not None


def test_non_contiguous_input_gives_the_same_sample(path):
    rng = torch.Generator().manual_seed(3)
    logits, uniform = torch.randn(7, 5, 6, generator=rng).transpose(0, 1), torch.rand(7, 5, generator=rng).T
    assert not logits.is_contiguous()
    got, expected = (
        sample_categorical(logits, uniform, 0.1),
        sample_categorical(logits.contiguous(), uniform.contiguous(), 0.1),
    )
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("unimix", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("shape", [(3, 4, 11), (5, 32), (9,), (2, 1, 1), (70, 64)])
def test_log_probs_equal_the_oracle(unimix, shape, path):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(4)) * 5
    expected = torch.log_softmax(logits.double(), -1) if unimix == 0 else oracle_probs(logits, unimix).log()
    torch.testing.assert_close(unimix_log_probs(logits.double(), unimix), expected, rtol=1e-12, atol=1e-13)
    for dtype in DTYPES:
        rounded = logits.to(dtype)
        got = unimix_log_probs(rounded, unimix)
        assert got.dtype == torch.float32
        expected = torch.log_softmax(rounded.double(), -1) if unimix == 0 else oracle_probs(rounded, unimix).log()
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=2e-6)
        if len(shape) > 1:
            assert torch.equal(sample_categorical_with_log_probs(rounded, None, unimix)[2], got)


def test_log_probs_have_the_gradient_of_the_oracle(path):
    rng = torch.Generator().manual_seed(6)
    logits, weight = (torch.randn(5, 7, 13, generator=rng) for _ in range(2))
    given = logits.clone().requires_grad_()
    (unimix_log_probs(given, 0.01) * weight).sum().backward()
    expected = oracle_gradients(logits, 0.01, weight, weight)["log_probs"]
    torch.testing.assert_close(given.grad.double(), expected, rtol=1e-4, atol=1e-6)


def test_log_probs_without_unimix_do_not_underflow(path):
    assert unimix_log_probs(torch.tensor([0.0, 200.0]), 0.0).tolist() == [-200.0, 0.0]


def test_the_straight_through_gradient_alone_does_not_underflow_either(path):
    logits = torch.tensor([[0.0, 200.0]]).requires_grad_()
    _, _, log_probs = sample_categorical_with_log_probs(logits, torch.tensor([0.5]), 0.0)
    log_probs[0, 0].backward()
    assert logits.grad.tolist() == [[1.0, -1.0]]


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
    for function in (sample_categorical, sample_categorical_with_log_probs):
        with pytest.raises(ValueError, match=message):
            function(logits, uniform, unimix)


def test_float64_and_long_rows_take_the_reference(triton_path):
    before = launch.launched.total()
    for logits in (torch.randn(2, 3, 4).double(), torch.randn(2, 1, categorical.MOST_CLASSES + 1)):
        assert is_one_hot(*sample_categorical(logits, torch.rand(logits.shape[:-1]), 0.01))
    assert launch.launched.total() == before


def test_the_tile_does_not_change_what_is_drawn(monkeypatch, triton_path):
    logits = torch.randn(61, 2, 12, generator=torch.Generator().manual_seed(7)) * 2
    uniform = torch.rand(61, 2, generator=torch.Generator().manual_seed(11))
    results = []
    for elements in (16, 64, 2_048, 65_536):
        monkeypatch.setattr(categorical, "ELEMENTS", elements)
        results.append(sample_categorical(logits, uniform, 0.01)[1])
    assert all(torch.equal(results[0], other) for other in results[1:])


# --- as a registered op ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_log_probs", [True, False])
def test_the_ops_are_registered_as_torch_wants_them(with_log_probs, triton_path):
    rng = torch.Generator().manual_seed(9)
    logits, uniform = torch.randn(3, 5, 7, generator=rng).requires_grad_(), torch.rand(3, 5, generator=rng)
    opcheck(
        categorical.sample_categorical_op,
        (logits, uniform, 0.01, True) if with_log_probs else (logits, None, 0.0, False),
    )
    if with_log_probs:
        opcheck(categorical.unimix_log_probs_op, (logits, 0.01))
    opcheck(
        categorical.unimix_gradient_op,
        (logits.detach(), logits.detach().cos(), logits.detach().sin() if with_log_probs else None, 0.01),
    )


def test_the_ops_run_the_reference_on_a_cpu_without_the_interpreter(monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED", False)
    rng = torch.Generator().manual_seed(10)
    logits, uniform = torch.randn(3, 5, 7, generator=rng).requires_grad_(), torch.rand(3, 5, generator=rng)
    before = launch.launched.total()
    for draw in (uniform, None):
        got = categorical.sample_categorical_op(logits, draw, 0.01, True)
        expected = categorical.sample_categorical_reference(logits, draw, 0.01, True)
        assert torch.equal(got[2], expected[2])
        for a, b in zip(got[:2], expected[:2], strict=True):
            torch.testing.assert_close(a, b)
            torch.testing.assert_close(
                *(torch.autograd.grad((x * logits.detach()).sum(), logits, retain_graph=True)[0] for x in (a, b))
            )
    torch.testing.assert_close(
        categorical.unimix_log_probs_op(logits, 0.01), categorical.unimix_log_probs_reference(logits, 0.01)
    )
    assert launch.launched.total() == before


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_a_graph_break(backend, path):
    def loss(logits, uniform):
        sample, index, log_probs = sample_categorical_with_log_probs(logits * 2, uniform, 0.01)
        mode, _ = sample_categorical(logits, None, 0.01)
        return (sample * log_probs).sum() + (mode * unimix_log_probs(logits, 0.01)).sum(), index

    rng = torch.Generator().manual_seed(6)
    logits, uniform = torch.randn(3, 5, 7, generator=rng).requires_grad_(), torch.rand(3, 5, generator=rng)
    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    (got, got_index), (expected, expected_index) = compiled(logits, uniform), loss(logits, uniform)
    assert torch.equal(got_index, expected_index)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, logits), torch.autograd.grad(expected, logits))
