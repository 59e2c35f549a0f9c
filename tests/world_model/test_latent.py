"""KL and samples of the latent against torch.distributions."""

import pytest
import torch
from torch.distributions import Categorical
from torch.distributions import kl_divergence as torch_kl

from stormfast.world_model.latent import LatentHead, sample_latent
from stormfast.world_model.losses import kl_divergence
from stormfast_kernels import unimix_log_probs


def kl_of(logits, other, unimix):
    return kl_divergence(unimix_log_probs(logits, unimix), unimix_log_probs(other, unimix))


def mixed(logits, unimix):
    return Categorical(probs=(1 - unimix) * logits.softmax(-1) + unimix / logits.shape[-1])


@pytest.mark.parametrize("unimix", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("shape", [(3, 5), (2, 7, 3, 5), (1, 1, 1, 2)])
def test_kl_is_that_of_the_mixed_categoricals_summed(unimix, shape):
    logits, other = 2 * torch.randn(2, *shape)
    got = kl_of(logits, other, unimix)
    assert got.shape == shape[:-2]
    torch.testing.assert_close(
        got, torch_kl(mixed(logits, unimix), mixed(other, unimix)).sum(-1), rtol=1e-10, atol=1e-12
    )


def test_kl_gradients_are_those_of_autograd_through_distributions():
    logits, other = (torch.randn(4, 3, 5, requires_grad=True) for _ in range(2))
    ours = torch.autograd.grad(kl_of(logits, other, 0.01).sum(), (logits, other))
    theirs = torch.autograd.grad(torch_kl(mixed(logits, 0.01), mixed(other, 0.01)).sum(), (logits, other))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_kl_of_half_precision_logits_is_float32():
    logits, other = torch.randn(2, 4, 3, 5).to(torch.bfloat16)
    got = kl_of(logits, other, 0.01)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), kl_of(logits.double(), other.double(), 0.01), rtol=1e-4, atol=1e-5)


def test_kl_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"\(2, 3, 5\) and \(1, 3, 5\)"):
        kl_divergence(torch.zeros(2, 3, 5), torch.zeros(1, 3, 5))


def test_sample_is_category_major_one_hot():
    logits = torch.full((1, 3, 5), -20.0)
    for s, k in enumerate((4, 0, 2)):
        logits[0, s, k] = 20
    expected = torch.zeros(1, 15)
    expected[0, [4, 5, 12]] = 1
    assert torch.equal(sample_latent(logits, torch.full((1, 3), 0.5), 0.01), expected)
    assert torch.equal(sample_latent(logits, None, 0.01), expected)


def test_sample_gradient_is_that_of_the_probabilities():
    logits = torch.randn(4, 3, 5, requires_grad=True)
    weight = torch.randn(4, 15)
    sample = sample_latent(logits, torch.rand(4, 3), 0.2)
    assert set(sample.detach().flatten().tolist()) == {0.0, 1.0}
    (got,) = torch.autograd.grad((weight * sample).sum(), logits)
    (expected,) = torch.autograd.grad((weight * mixed(logits, 0.2).probs.flatten(-2)).sum(), logits)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    assert got.abs().max() > 0


def test_frequencies_are_the_mixed_probabilities():
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 5, generator=g)
    count = 40_000
    sample = sample_latent(logits.expand(count, 2, 5), torch.rand(count, 2, generator=g), 0.1).unflatten(-1, (2, 5))
    probs = mixed(logits, 0.1).probs
    error = (sample.mean(0) - probs).abs() / (probs * (1 - probs) / count).sqrt()
    assert error.max() < 4.5  # standard errors; ten draws of a fixed seed


def test_head_gives_logits_of_each_categorical():
    head = LatentHead(6, 3, 5)
    features = torch.randn(2, 4, 6)
    logits = head(features)
    assert logits.shape == (2, 4, 3, 5)
    for s in range(3):
        rows = slice(5 * s, 5 * s + 5)
        torch.testing.assert_close(logits[:, :, s], features @ head.linear.weight[rows].T + head.linear.bias[rows])
