"""The ratio of paired launches: the estimate, its interval, and how often it is right in simulated noise."""

import itertools

import numpy as np
import pytest

from bench.ratios import CONFIDENCE, LIMIT, MIN_PAIRS, Ratio, num_outside, paired_ratio

BENCHES = 4000


def simulate(rng: np.random.Generator, truth: float) -> list[tuple[float, float]]:
    """Launches A B, B A, ... of a bench on a machine that drifts; one process in 50 is 30 % slower throughout."""
    log = rng.normal(0, 0.04, (MIN_PAIRS, 2)) + np.log(1.3) * (rng.random((MIN_PAIRS, 2)) < 0.02)
    drift = rng.uniform(-0.3, 0.3) * np.arange(2 * MIN_PAIRS).reshape(MIN_PAIRS, 2) / (2 * MIN_PAIRS)
    drift[1::2] = drift[1::2, ::-1]
    old, new = np.exp(log + drift).T
    return list(zip(old.tolist(), (truth * new).tolist(), strict=True))


def share_slower(truth: float) -> float:
    """Of benches whose new side takes `truth` times as long, launched again as compare does."""
    rng, slower = np.random.default_rng(0), 0
    for _ in range(BENCHES):
        pairs, repeat = simulate(rng, truth), 0
        while (ratio := paired_ratio(pairs)).needs_more(LIMIT, repeat):
            pairs, repeat = pairs + simulate(rng, truth), repeat + 1
        slower += ratio.verdict(LIMIT) == "slower"
    return slower / BENCHES


def test_a_slowdown_of_a_fifth_is_found() -> None:
    assert share_slower(1.20) > 0.99


def test_false_alarms_are_rare() -> None:
    """In a comparison of 40 benches, one in a hundred at most."""
    assert share_slower(1.0) <= 0.01 / 40


@pytest.mark.parametrize("count", [6, 7, 10])
def test_the_interval_leaves_out_as_much_as_all_signs_say(count: int) -> None:
    sums = [sum(rank for rank, up in enumerate(signs, 1) if up) for signs in itertools.product([0, 1], repeat=count)]
    tails = [2 * np.mean(np.array(sums) <= k) for k in range(count + 10)]
    assert num_outside(count) == max(k for k, tail in enumerate(tails) if tail <= 1 - CONFIDENCE)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Ratio(1.2, 1.01, 1.4), "slower"),
        (Ratio(1.2, 0.99, 1.4), "unclear"),
        (Ratio(1.08, 1.05, 1.09), "same"),
        (Ratio(0.8, 0.7, 0.99), "faster"),
    ],
)
def test_the_verdict(ratio: Ratio, verdict: str) -> None:
    assert ratio.verdict(1.10) == verdict


def test_what_differs_is_confirmed_once_and_what_may_be_slower_is_launched_again() -> None:
    ratios = {"slower": Ratio(1.2, 1.1, 1.3), "faster": Ratio(0.8, 0.7, 0.9), "same": Ratio(1.0, 0.95, 1.05)}
    ratios |= {"may be slower": Ratio(1.0, 0.8, 1.2), "may be faster": Ratio(1.0, 0.8, 1.05)}
    again = [{name for name, ratio in ratios.items() if ratio.needs_more(1.10, repeats)} for repeats in range(3)]
    assert again == [{"slower", "faster", "may be slower"}, {"may be slower"}, set()]
