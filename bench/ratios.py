"""How much slower is the new side: the ratio of paired launches, its confidence interval and a verdict.

A pair is a launch of either checkout, one right after the other, so a drift of the machine is in both and cancels. What
remains is as likely on either side: that is all the signed-rank test asks, whatever the distribution.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

CONFIDENCE = 0.95
LIMIT = 1.10
MAX_REPEATS = 2
MIN_PAIRS = 6  # with fewer no interval reaches CONFIDENCE: that of six covers 1 - 2 / 2**6
Verdict = Literal["slower", "faster", "same", "unclear"]


@dataclass(frozen=True)
class Ratio:
    """New over old, above 1 is slower; low to high covers the true ratio with at least CONFIDENCE."""

    value: float
    low: float
    high: float

    def verdict(self, limit: float) -> Verdict:
        """slower: by more than limit, and the interval lies above 1; same: the interval lies within the limit."""
        if self.low > 1 and self.value > limit:
            return "slower"
        if self.high < 1 and self.value < 1 / limit:
            return "faster"
        return "same" if self.low >= 1 / limit and self.high <= limit else "unclear"

    def needs_more(self, limit: float, repeats: int) -> bool:
        """Whether to launch again: once to confirm slower or faster, and MAX_REPEATS times while it may be slower."""
        verdict = self.verdict(limit)
        if verdict == "unclear":
            return self.high > limit and repeats < MAX_REPEATS
        return verdict != "same" and repeats == 0


def paired_ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """The median of the means of any two log ratios, or one twice, and the interval of the signed-rank test.

    Args:
        pairs: [P >= MIN_PAIRS] of old and new seconds of a pair of launches.
    Source: Hodges and Lehmann, 1963, Estimates of location based on rank tests.
    """
    old, new = np.asarray(pairs, np.float64).T
    logs = np.log(new / old)
    first, second = np.triu_indices(len(logs))
    means = np.sort((logs[first] + logs[second]) / 2)
    outside = num_outside(len(logs))
    value, low, high = np.exp([np.median(means), means[outside], means[-1 - outside]])
    return Ratio(float(value), float(low), float(high))


@functools.cache
def num_outside(num_pairs: int) -> int:
    """How many of the sorted means lie outside the interval on either side.

    The largest k for which 2 P(W <= k) is at most 1 - CONFIDENCE. W is the signed-rank statistic: a coin is tossed for
    each of the ranks 1..num_pairs, and those that show heads are added.
    """
    ways = np.zeros(num_pairs * (num_pairs + 1) // 2 + 1)  # to reach each sum
    ways[0] = 1.0
    for rank in range(1, num_pairs + 1):
        ways[rank:] += ways[:-rank].copy()
    tails = np.cumsum(ways) / 2.0**num_pairs
    return int(np.searchsorted(tails, (1 - CONFIDENCE) / 2, side="right")) - 1
