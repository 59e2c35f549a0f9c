"""A loss as terms x weights."""

from collections.abc import Mapping

from torch import Tensor


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum of the terms, each times its weight, in the order of the terms; terms of weight 0 are left out.

    Args:
        terms: 0-d tensors.
        weights: the same names; at least one is not 0.
    Raises: ValueError where the names differ, or all weights are 0.
    """
    if terms.keys() != weights.keys():
        raise ValueError(
            f"each term needs a weight: {sorted(terms.keys() ^ weights.keys())} is in one of the two alone"
        )
    weighted = [term if weights[name] == 1 else weights[name] * term for name, term in terms.items() if weights[name]]
    if not weighted:
        raise ValueError(f"one weight at least must not be 0, got {dict(weights)}")
    total = weighted[0]
    for term in weighted[1:]:
        total = total + term
    return total
