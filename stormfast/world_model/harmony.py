"""Learned scales of the world model's losses, so that none of them drowns the others."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stormfast.objective import weighted_sum

GROUPS = (("reconstruction",), ("reward",), ("dynamics", "representation"))  # terms that share a scale


class LossScales(nn.Module):
    """One scale s a group of terms, in place of constants: the sum of L / s + ln(1 + s) over groups.

    The best s for a constant L is (L + sqrt(L^2 + 4 L)) / 2, so that a group of large loss weighs less and one of small
    loss, such as that of a rare reward, weighs more. Other terms count as they are.

    Source: HarmonyDream, arXiv 2310.00344, eq. (6).
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(len(GROUPS)))

    def forward(self, terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        """The total of weighted 0-d terms, 0-d; arguments as of weighted_sum. A scale without a term is left out."""
        inverse, penalty = (-self.log_scale).exp(), F.softplus(self.log_scale)
        scaled = dict(terms)
        for k, group in enumerate(GROUPS):
            for name in group:
                if name in scaled:
                    scaled[name] = scaled[name] * inverse[k]
        present = [k for k, group in enumerate(GROUPS) if any(weights.get(name) for name in group)]
        if len(present) < len(GROUPS):
            penalty = torch.stack([penalty[k] for k in present])
        return weighted_sum(scaled, weights) + penalty.sum()
