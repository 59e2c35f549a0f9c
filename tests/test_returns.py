"""Lambda-returns against the recursion that defines them, percentiles against sorting, and the running scale."""

import pytest
import torch

from stormfast.returns import ReturnScale, lambda_return, percentiles


def draw(batch=3, horizon=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    reward, value = (
        torch.randn(batch, horizon, generator=g).double(),
        torch.randn(batch, horizon + 1, generator=g).double(),
    )
    return reward, torch.rand(batch, horizon, generator=g).double(), value


def naive(reward, discount, value, lam, bootstrap, t=0):
    """G[t] of one rollout, from lists of numbers, by recursion."""
    if t == len(reward):
        return value[t]
    mixed_in = value[t + 1] if bootstrap == "next" else value[t]
    return reward[t] + discount[t] * (
        (1 - lam) * mixed_in + lam * naive(reward, discount, value, lam, bootstrap, t + 1)
    )


@pytest.mark.parametrize("bootstrap", ["next", "current"])
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("shape", [(3, 7), (1, 1), (2, 16)])
def test_lambda_return_is_the_recursion(bootstrap, lam, shape):
    reward, discount, value = draw(*shape)
    expected = [
        [naive(*(x[b].tolist() for x in (reward, discount, value)), lam, bootstrap, t) for t in range(shape[1])]
        for b in range(shape[0])
    ]
    torch.testing.assert_close(
        lambda_return(reward, discount, value, lam, bootstrap),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-12,
        atol=1e-12,
    )


def test_lambda_0_is_one_step_td_and_lambda_1_monte_carlo():
    reward, discount, value = draw()
    torch.testing.assert_close(lambda_return(reward, discount, value, 0.0), reward + discount * value[:, 1:])
    torch.testing.assert_close(
        lambda_return(reward, discount, value, 0.0, "current"), reward + discount * value[:, :-1]
    )
    gamma = torch.full_like(reward, 0.9)
    expected = sum(0.9**t * reward[:, t] for t in range(7)) + 0.9**7 * value[:, 7]
    for bootstrap in ("next", "current"):
        torch.testing.assert_close(lambda_return(reward, gamma, value, 1.0, bootstrap)[:, 0], expected)


def test_exact_values_are_a_fixed_point():
    """Values that satisfy the Bellman equation are their own lambda-return, for "next" alone."""
    reward, discount, value = draw()
    for t in reversed(range(7)):
        value[:, t] = reward[:, t] + discount[:, t] * value[:, t + 1]
    torch.testing.assert_close(lambda_return(reward, discount, value, 0.6), value[:, :-1])
    assert (lambda_return(reward, discount, value, 0.6, "current") - value[:, :-1]).abs().max() > 0.1


def test_an_end_cuts_what_follows():
    reward, discount, value = draw()
    discount[:, 3] = 0
    before = lambda_return(reward, discount, value, 0.8)
    torch.testing.assert_close(before[:, 3], reward[:, 3])
    reward[:, 4:], discount[:, 4:], value[:, 4:] = 100, 0.5, -100
    after = lambda_return(reward, discount, value, 0.8)
    assert torch.equal(after[:, :4], before[:, :4])
    assert (after[:, 4:] != before[:, 4:]).all()


@pytest.mark.parametrize(
    ("discount", "value"), [((3, 6), (3, 8)), ((1, 7), (3, 8)), ((3, 7), (3, 7)), ((3, 7), (1, 8)), ((3, 7), (3, 9))]
)
def test_shapes_that_would_broadcast_are_refused(discount, value):
    with pytest.raises(ValueError, match=r"must fit, got \(3, 7\)"):
        lambda_return(torch.zeros(3, 7), torch.zeros(discount), torch.zeros(value), 0.5)


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 100, 333])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_percentile_counts_from_below(count, share):
    x = torch.randn(count, generator=torch.Generator().manual_seed(count))
    expected = sorted(x.tolist())[max(1, int(share * count)) - 1]
    assert percentiles(x, share)[0].item() == expected
    if count == 20:
        assert percentiles(x.view(4, 5), share)[0].item() == expected
        assert percentiles(torch.arange(1.0, 21.0), 0.5, share)[1].item() == {0.05: 1, 0.5: 10, 0.95: 19}[share]


def test_return_scale_is_the_decayed_spread():
    scale, low, high = ReturnScale(0.9).double(), 0.0, 0.0
    for seed in range(5):
        returns = 10 * torch.randn(8, 25, generator=torch.Generator().manual_seed(seed)).double() + seed
        ordered = sorted(returns.flatten().tolist())
        low, high = 0.9 * low + 0.1 * ordered[9], 0.9 * high + 0.1 * ordered[189]
        assert scale.update(returns).item() == pytest.approx(high - low, rel=1e-12)
    assert set(scale.state_dict()) == {"low", "high"}  # a resumed run goes on from them


def test_return_scale_of_equal_returns_is_zero():
    assert ReturnScale(0.5).update(torch.full((4, 5), 3.0)) == 0


def test_the_scale_handed_out_does_not_move_later():
    scale = ReturnScale(0.5)
    first = scale.update(torch.arange(20.0).view(4, 5))
    kept = first.clone()
    scale.update(100 * torch.arange(20.0).view(4, 5))
    assert torch.equal(first, kept)
