"""Targets of the agent: lambda-returns and the percentile scale of returns.

B rollouts   H horizon
"""

from typing import Literal

import torch
from torch import Tensor, nn


def lambda_return(
    reward: Tensor,
    discount: Tensor,
    value: Tensor,
    lam: float | Tensor,
    bootstrap: Literal["next", "current"] = "next",
) -> Tensor:
    """Lambda-returns of imagined rollouts, by one backward scan.

    G[t] = reward[t] + discount[t] * ((1 - lam) * value[t+1] + lam * G[t+1]),   G[H] = value[H]

    Args:
        reward: [B, H], game score of action t (not symlog).
        discount: [B, H] in [0, 1], gamma * P(episode goes on).
        value: [B, H+1], critic at states 0..H.
        lam: in [0, 1]; 0 is one-step TD, 1 is Monte Carlo. One for all steps, or [B, H].
        bootstrap: "next" as above; "current" mixes in value[t] instead of value[t+1], as the original's code does.
    Returns: [B, H].
    Raises: ValueError when the shapes do not fit.
    Source: STORM, arXiv 2310.09615, eq. (7); upstream's calc_lambda_return differs from it in the bootstrap.
    """
    batch, horizon = reward.shape
    if discount.shape != reward.shape or value.shape != (batch, horizon + 1):
        raise ValueError(
            f"reward [B, H], discount [B, H] and value [B, H+1] must fit, got {tuple(reward.shape)}, "
            f"{tuple(discount.shape)}, {tuple(value.shape)}"
        )
    mixed_in = value[:, 1:] if bootstrap == "next" else value[:, :-1]
    base = reward + discount * (1 - lam) * mixed_in
    carry = discount * lam
    following, returns = value[:, -1], []
    for t in reversed(range(horizon)):
        following = base[:, t] + carry[:, t] * following
        returns.append(following)
    return torch.stack(returns[::-1], 1)


def percentiles(x: Tensor, *shares: float) -> list[Tensor]:
    """For each share, the int(share * n)-th smallest of the n values of x, counted from 1, as upstream takes it.

    0-d each; one sort.
    """
    ascending = x.flatten().sort().values
    return [ascending[max(1, int(share * x.numel())) - 1] for share in shares]


class ReturnScale(nn.Module):
    """Decayed 95th minus 5th percentile of the lambda-returns; both averages start at 0 and live on the device.

    Source: STORM, arXiv 2310.09615, eq. (6); DreamerV3, arXiv 2301.04104.
    """

    low: Tensor
    high: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.decay = decay

    @torch.no_grad()
    def update(self, returns: Tensor) -> Tensor:
        """Takes one step of both averages with returns [B, H]; returns the scale S >= 0, 0-d."""
        low, high = percentiles(returns, 0.05, 0.95)
        self.low.lerp_(low, 1 - self.decay)
        self.high.lerp_(high, 1 - self.decay)
        return self.high - self.low
