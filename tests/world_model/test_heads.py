"""The two-hot code of scalars against loops in plain Python, and the MLP heads."""

import math

import pytest
import torch
from torch import nn

from stormfast.world_model.heads import NUM_BINS, TwoHot, mlp, symexp, symlog, upcast

VALUES = [0.0, 1.0, -1.0, 0.3, -7.25, 21.0, 1e4, -3e6, 4.8e8, -4.8e8]


def naive_two_hot(x):
    """255 weights, the long way."""
    bins = [-20 + 40 * i / 254 for i in range(255)]
    scaled = math.copysign(math.log(1 + abs(x)), x)
    weights = [0.0] * 255
    if scaled <= bins[0]:
        weights[0] = 1.0
    elif scaled >= bins[-1]:
        weights[-1] = 1.0
    else:
        lower = max(i for i in range(255) if bins[i] <= scaled)
        share = (scaled - bins[lower]) / (bins[lower + 1] - bins[lower])
        weights[lower], weights[lower + 1] = 1 - share, share
    return torch.tensor(weights)


def coded(two_hot, x):
    """The two-hot code of x as two_hot.loss sees it: with the log-probabilities of class i set apart, the loss is -code
    . log_probs.
    """
    logits = torch.zeros(NUM_BINS, requires_grad=True)
    (gradient,) = torch.autograd.grad(two_hot.loss(logits, torch.tensor(x)), logits)
    return logits.softmax(-1).detach() - gradient  # d loss / d logits = softmax - code


def test_symlog_and_symexp_are_inverse():
    x = torch.tensor([*VALUES, 1e-9, -1e-9])
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        symlog(x), torch.tensor([math.copysign(math.log1p(abs(v)), v) for v in x.tolist()]), rtol=1e-12, atol=0
    )
    assert symlog(torch.tensor(-3.0)) == -symlog(torch.tensor(3.0))


@pytest.mark.parametrize("x", [*VALUES, 1e12, -1e12, 5e8, -5e8])
def test_code_of_a_scalar(x):
    torch.testing.assert_close(coded(TwoHot(), x), naive_two_hot(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("index", [0, 1, 2, 100, 126, 127, 128, 253, 254])
def test_a_bin_edge_is_one_hot(index):
    two_hot = TwoHot()
    code = coded(two_hot, symexp(two_hot.bins[index]).item())
    assert code.argmax() == index
    torch.testing.assert_close(code[index], torch.tensor(1.0), rtol=0, atol=1e-9)


def test_loss_is_the_cross_entropy_to_the_code():
    two_hot, logits = TwoHot(), torch.randn(2, 5, NUM_BINS)
    target = torch.tensor(VALUES).view(2, 5)
    expected = torch.stack(
        [-(naive_two_hot(x) @ row) for x, row in zip(VALUES, logits.log_softmax(-1).view(10, NUM_BINS), strict=True)]
    )
    torch.testing.assert_close(two_hot.loss(logits, target), expected.view(2, 5), rtol=1e-9, atol=0)


def test_decoding_a_code_gives_the_scalar_back():
    codes = torch.stack([naive_two_hot(x) for x in VALUES])
    torch.testing.assert_close(TwoHot().decode(codes.log()), torch.tensor(VALUES), rtol=1e-9, atol=1e-12)


def test_decoding_out_of_range_gives_the_end_of_the_range():
    two_hot = TwoHot()
    top = symexp(torch.tensor(20.0))
    decoded = two_hot.decode(torch.stack([naive_two_hot(x) for x in (1e15, -1e15)]).log())
    torch.testing.assert_close(decoded, torch.stack([top, -top]))


def test_decode_is_the_symexp_of_the_mean_bin():
    two_hot, logits = TwoHot(), torch.randn(3, 4, NUM_BINS)
    expected = symexp((logits.softmax(-1) * two_hot.bins).sum(-1))
    torch.testing.assert_close(two_hot.decode(logits), expected)
    assert two_hot.decode(logits).shape == (3, 4)


def test_a_zero_head_decodes_to_zero():
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        head, two_hot = mlp(6, 8, NUM_BINS, zero=True).to(dtype), TwoHot().to(dtype)
        assert two_hot.decode(head(torch.randn(9, 6, dtype=dtype))).abs().max() < tolerance
    assert mlp(6, 8, NUM_BINS)[-1].weight.abs().max() > 0


def test_autocast_does_not_round_what_is_decoded():
    """Rewards and values of imagination are decoded under autocast: bfloat16 would keep three digits of them."""
    two_hot, logits = TwoHot().float(), 3 * torch.randn(50, NUM_BINS, dtype=torch.float32)
    target = torch.randn(50, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoded, loss = two_hot.decode(logits), two_hot.loss(logits, target)
    assert decoded.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(decoded, two_hot.decode(logits))
    torch.testing.assert_close(loss, two_hot.loss(logits, target))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_widened(dtype):
    two_hot, logits = TwoHot().float(), torch.randn(5, NUM_BINS).to(dtype)
    assert two_hot.decode(logits).dtype == torch.float32
    assert two_hot.loss(logits, torch.randn(5)).dtype == torch.float32
    torch.testing.assert_close(two_hot.decode(logits), two_hot.decode(logits.float()))
    assert upcast(torch.zeros((), dtype=torch.float64)).dtype == torch.float64


def test_loss_refuses_targets_that_would_broadcast():
    with pytest.raises(ValueError, match=r"\(3, 4, 255\) and \(3, 1\)"):
        TwoHot().loss(torch.zeros(3, 4, NUM_BINS), torch.zeros(3, 1))


def test_mlp_layers():
    head = mlp(6, 8, 5)
    assert [type(layer) for layer in head] == [
        nn.Linear,
        nn.LayerNorm,
        nn.ReLU,
        nn.Linear,
        nn.LayerNorm,
        nn.ReLU,
        nn.Linear,
    ]
    assert head[0].bias is None
    assert head[3].bias is None
    assert [tuple(layer.weight.shape) for layer in (head[0], head[3], head[6])] == [(8, 6), (8, 8), (5, 8)]
    assert head[6].bias.shape == (5,)


@pytest.mark.parametrize(("value", "chance"), [(1.0, 0.1), (100.0, 0.1), (-1000.0, 0.1), (150.0, 0.5)])
def test_the_mean_of_a_chance_reward_is_read(value, chance):
    """What the cross-entropy converges to for a reward that comes with a chance, else 0; symlog reads far less."""
    odds = chance * naive_two_hot(value) + (1 - chance) * naive_two_hot(0.0)
    torch.testing.assert_close(TwoHot("mean").decode(odds.log()), torch.tensor(chance * value), rtol=0.007, atol=0)
    assert TwoHot().decode(odds.log()).abs() < 0.8 * chance * abs(value)


def test_the_mean_of_a_code_is_its_scalar_and_of_a_zero_head_exactly_zero():
    for x in VALUES:
        decoded = TwoHot("mean").decode(naive_two_hot(x).log())
        torch.testing.assert_close(decoded, torch.tensor(max(-1e5, min(1e5, x))), rtol=0.007, atol=0.004)
    for dtype in (torch.float32, torch.float64):
        assert TwoHot("mean").to(dtype).decode(torch.zeros(3, NUM_BINS, dtype=dtype)).tolist() == [0.0, 0.0, 0.0]
