"""A loss as terms x weights."""

from collections.abc import Mapping

from torch import Tensor


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum of the terms, each times its weight, in the order of the terms; terms of weight 0 are left out.

    Args:
        terms: 0-d tensors. One of weight 0 may be absent, so that a term that is off costs nothing.
        weights: of each term; at least one is not 0.
    Raises: ValueError where a term has no weight or a weight no term, or all weights are 0.
    """
    needed = {name for name, weight in weights.items() if weight}
    if odd := (terms.keys() - weights.keys()) | (needed - terms.keys()):
        raise ValueError(f"each term needs a weight: {sorted(odd)} is in one of the two alone")
    weighted = [term if weights[name] == 1 else weights[name] * term for name, term in terms.items() if weights[name]]
    if not weighted:
        raise ValueError(f"one weight at least must not be 0, got {dict(weights)}")
    total = weighted[0]
    for term in weighted[1:]:
        total = total + term
    return total
