"""How many rounds does a comparison need, so that a slowdown of 20 % is seen and none is seen where there is none?

    python bench/comparing/ratios.py                          # simulates comparisons on a shared machine: half a minute, and a table
    python bench/comparing/ratios.py --rounds 20 --launches 2 --limit 1.1

A ratio is new over old: above 1 is slower. No interval here assumes how times are distributed.

Simulated times are lognormal with 10 % spread, drift by 20 % within a launch, have neighbours that slow both sides for a
while, are tripled in 5 % of the rounds, cost 3 % more after the other side's round (whose data are in the cache), and differ
by 2 % between any two processes of the same code; one process in 50 is 30 % slower throughout. How to read the table: `caught`
is the share of benches flagged where the new side is slower by so much; `false alarms` that of comparisons of 40 benches, three
in a row, with any flag and no change.
"""

import argparse
import functools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import numpy as np  # noqa: E402
from numpy.typing import ArrayLike, NDArray  # noqa: E402

from stormfast.errors import UserError  # noqa: E402

CONFIDENCE = 0.99  # of one bench's interval
LIMIT = 1.10
ROUNDS, LAUNCHES = 30, 3
AGAIN = 2  # times that what may be slower is timed again, with as many launches more
FALSE_ALARMS = 10  # times as many benches are simulated for them: they are rare
Floats = NDArray[np.float64]
Verdict = Literal["slower", "faster", "same", "unclear"]


@dataclass(frozen=True)
class Ratio:
    """New over old, with the interval that covers the ratio of these processes with probability `coverage`.

    Two processes of the same code differ too, by the luck of their memory: the code's own ratio is covered less often, in 87 to 94 of
    100 simulated comparisons. That is what the limit's distance from 1 and the launches' agreement are for.

    Attributes:
        by_launch: the median ratio of each pair of processes.
    """

    value: float
    low: float
    high: float
    coverage: float
    by_launch: tuple[float, ...]

    def verdict(self, limit: float) -> Verdict:
        """slower: the whole interval lies beyond limit, and every launch says so; faster: the same below 1 / limit.

        same: the interval lies between the two. unclear: none of these, or too few rounds for an interval. A launch says so when
        its median is beyond the limit's square root: one process that had bad luck with its memory is no slowdown. Of more than
        three launches, one in three may say otherwise.
        """
        if self.coverage < CONFIDENCE:
            return "unclear"
        launches, spared = sorted(self.by_launch), (len(self.by_launch) - 1) // 3
        if self.low > limit and launches[spared] > math.sqrt(limit):
            return "slower"
        if self.high < 1 / limit and launches[-1 - spared] < 1 / math.sqrt(limit):
            return "faster"
        return "same" if self.low >= 1 / limit and self.high <= limit else "unclear"

    def doubtful(self, limit: float) -> bool:
        """Whether it may be slower, and more launches would tell."""
        return self.verdict(limit) == "unclear" and self.high > limit


def median_ranks(count: int, confidence: float) -> tuple[int, float]:
    """How many order statistics may be left out at either end, and the coverage of the median by what remains.

    The interval from x[k] to x[count - 1 - k] of a sorted sample misses the median when at most k of the sample lie on one side
    of it: 2 P(Binomial(count, 1/2) <= k). Returns: the largest k that leaves `confidence`; k = 0, with what coverage it has, where
    the sample is too small for it.
    """
    if count < 1:
        raise ValueError(f"an interval of a median needs a sample, got {count} values")
    tail, k = 0.5**count, 0
    while k + 1 < count / 2 and 1 - 2 * (wider := tail + math.comb(count, k + 1) * 0.5**count) >= confidence:
        tail, k = wider, k + 1
    return k, max(0.0, 1 - 2 * tail)


def median_interval(sample: ArrayLike, confidence: float) -> tuple[float, float, float, float]:
    """Median, lower and upper end of its interval, and its coverage. Source: David and Nagaraja, Order Statistics, section 7.1."""
    values = np.sort(np.asarray(sample, np.float64))
    k, coverage = median_ranks(len(values), confidence)
    return float(np.median(values)), float(values[k]), float(values[len(values) - 1 - k]), coverage


@functools.cache
def signed_ranks(count: int, confidence: float) -> tuple[int, float]:
    """As median_ranks, of the sorted means of all pairs (each value with itself too) of a sample that is symmetric.

    The interval misses the centre with probability 2 P(W <= k), W being Wilcoxon's signed-rank statistic: the sum of those of the
    ranks 1..count whose coin shows heads.
    """
    if count < 1:
        raise ValueError(f"an interval of a centre needs a sample, got {count} values")
    chance = np.zeros(count * (count + 1) // 2 + 1)  # of each sum
    chance[0] = 1.0
    for rank in range(1, count + 1):
        chance[rank:] = chance[rank:] / 2 + chance[:-rank] / 2
        chance[:rank] /= 2
    tails = np.cumsum(chance)
    k = max(0, int(np.searchsorted(tails, (1 - confidence) / 2, side="right")) - 1)
    return k, max(0.0, float(1 - 2 * tails[k]))


def paired_ratio(launches: Sequence[tuple[ArrayLike, ArrayLike]], confidence: float = CONFIDENCE) -> Ratio:
    """The ratio of a bench timed in turn: the centre of the ratios of rounds, and the interval of the signed-rank test.

    A drift, or a neighbour, is in both rounds of a pair and cancels. What remains is as likely to be on either side, whatever its
    distribution: logarithms of the ratios are symmetric around the true one, which is all that the test asks. The centre is the
    median of the means of all pairs of them (Hodges and Lehmann, 1963). The median with its order statistics asks less, and needs
    half as many rounds again for an interval as narrow.

    Args:
        launches: for each pair of processes, old and new [R], seconds of their rounds in the order they ran.
    """
    logs = [log_ratios(old, new) for old, new in launches]
    sample = np.concatenate(logs)
    k, coverage = signed_ranks(len(sample), confidence)
    first, second = np.triu_indices(len(sample))
    means = np.sort((sample[first] + sample[second]) / 2)
    value, low, high = np.exp([np.median(means), means[k], means[len(means) - 1 - k]])
    return Ratio(
        float(value), float(low), float(high), coverage, tuple(float(np.exp(np.median(each))) for each in logs)
    )


def log_ratios(old: ArrayLike, new: ArrayLike) -> Floats:
    """log(new / old), [R], of rounds [R] in seconds."""
    olds, news = np.asarray(old, np.float64), np.asarray(new, np.float64)
    if olds.shape != news.shape or olds.ndim != 1 or not olds.size:
        raise ValueError(
            f"rounds are paired: old {olds.shape} and new {news.shape} must be alike, of one dimension and not empty"
        )
    return np.log(news / olds)


def unpaired_ratio(old: ArrayLike, new: ArrayLike, confidence: float = CONFIDENCE) -> Ratio:
    """The ratio of the medians of two runs at different times.

    Each median has its own interval, missed half as often; the ratio's goes from the lowest to the highest quotient of both, and
    so covers at least `confidence`. It knows the spread within either run, and nothing of what changed on the machine between.
    """
    each = (1 + confidence) / 2
    old_median, old_low, old_high, old_coverage = median_interval(old, each)
    new_median, new_low, new_high, new_coverage = median_interval(new, each)
    value = new_median / old_median
    return Ratio(value, new_low / old_high, new_high / old_low, max(0.0, old_coverage + new_coverage - 1), (value,))


# --- simulation --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """What a shared machine does to times, as factors less one; see the module's docstring."""

    spread: float = 0.10
    drift: float = 0.20
    outliers: float = 0.05
    outlier_factor: float = 3.0
    neighbour: float = 0.30
    neighbour_share: float = 0.25
    after_other: float = 0.03
    process: float = 0.02
    unlucky: float = 1 / 50
    unlucky_factor: float = 1.3


def simulate_launch(truth: float, rounds: int, rng: np.random.Generator, noise: Noise) -> tuple[Floats, Floats]:
    """Old and new [rounds], in seconds, of two processes that took turns old new new old ..., one round of old being about 1."""
    order = np.resize([0, 1, 1, 0], 2 * rounds)  # which side ran
    process = rng.normal(0, noise.process, 2) + np.log(noise.unlucky_factor) * (rng.random(2) < noise.unlucky)
    log = rng.normal(0, noise.spread, 2 * rounds) + process[order]
    log += rng.uniform(-1, 1) * np.log1p(noise.drift) * np.arange(2 * rounds) / (2 * rounds)
    start = rng.uniform(-noise.neighbour_share, 1) * 2 * rounds  # a neighbour's work begins, and ends
    log[max(0, int(start)) : max(0, int(start + noise.neighbour_share * 2 * rounds))] += np.log1p(noise.neighbour)
    log[1:] += np.log1p(noise.after_other) * (order[1:] != order[:-1])
    log += np.log(noise.outlier_factor) * (rng.random(2 * rounds) < noise.outliers)
    seconds = np.exp(log)
    return seconds[order == 0], truth * seconds[order == 1]


def flagged(
    truth: float, rounds: int, launches: int, limit: float, benches: int, seed: int = 0, noise: Noise | None = None
) -> float:
    """The share of simulated benches found slower than limit, where the new side takes `truth` times as long."""
    rng, noise = np.random.default_rng(seed), noise or Noise()
    slower = 0
    for _ in range(benches):
        pairs: list[tuple[Floats, Floats]] = []
        for _ in range(1 + AGAIN):
            pairs += [simulate_launch(truth, rounds, rng, noise) for _ in range(launches)]
            ratio = paired_ratio(pairs)
            if not ratio.doubtful(limit):
                break
        slower += ratio.verdict(limit) == "slower"
    return slower / benches


def table(choices: Sequence[tuple[int, int]], limit: float, benches: int) -> str:
    """Markdown: for each number of rounds and launches, what is caught and what is flagged without a change."""
    truths = (1.10, 1.15, 1.20, 1.30)
    lines = [
        "| rounds | launches | "
        + " | ".join(f"caught at {truth:.2f}" for truth in truths)
        + f" | false alarms, limit {limit:g} |"
    ]
    lines.append("|---" * (3 + len(truths)) + "|")
    for rounds, launches in choices:
        caught = [flagged(truth, rounds, launches, limit, benches) for truth in truths]
        false = flagged(1.0, rounds, launches, limit, FALSE_ALARMS * benches)
        shown = f"{1 - (1 - false) ** 120:.1%}" if false else f"none in {FALSE_ALARMS * benches:,} benches"
        lines.append(f"| {rounds} | {launches} | " + " | ".join(f"{share:.1%}" for share in caught) + f" | {shown} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="of a launch; default some of 10 to 40")
    parser.add_argument("--launches", type=int, default=LAUNCHES, help="default %(default)s")
    parser.add_argument("--limit", type=float, default=LIMIT, help="default %(default)s")
    parser.add_argument("--benches", type=int, default=2000, help="simulated for each figure; default %(default)s")
    arguments = parser.parse_args()
    try:
        for name, least in (("rounds", 2), ("launches", 1), ("benches", 1)):
            if (value := getattr(arguments, name)) is not None and value < least:
                raise UserError(f"--{name} must be at least {least}, got {value}")
        if not 1 <= arguments.limit < math.inf:
            raise UserError(f"--limit must be at least 1 and finite, got {arguments.limit}")
    except UserError as error:
        print(f"ratios: {error}", file=sys.stderr)
        return 2
    rounds = [arguments.rounds] if arguments.rounds else [10, 20, 30, 40]
    print(table([(each, arguments.launches) for each in rounds], arguments.limit, arguments.benches))
    return 0


if __name__ == "__main__":
    sys.exit(main())
