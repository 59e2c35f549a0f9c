"""Ratios and their intervals: by hand, and on simulated times whose true ratio is known."""

import math
import subprocess
import sys

import numpy as np
import pytest

from bench.comparing import ratios
from bench.comparing.ratios import (
    Noise,
    Ratio,
    flagged,
    median_interval,
    median_ranks,
    paired_ratio,
    signed_ranks,
    simulate_launch,
    unpaired_ratio,
)

QUIET = Noise(spread=0.05, drift=0, outliers=0, neighbour=0, after_other=0, process=0, unlucky=0)


@pytest.mark.parametrize(
    ("count", "left_out", "missed"),
    [
        (1, 0, 2 / 2),
        (8, 0, 2 / 256),
        (10, 0, 2 / 1024),
        (11, 0, 2 / 2048),
        (12, 1, 26 / 4096),
        (20, 3, 2 * (1 + 20 + 190 + 1140) / 2**20),
    ],
)
def test_ranks_of_the_median_by_hand(count: int, left_out: int, missed: float) -> None:
    k, coverage = median_ranks(count, 0.99)
    assert k == left_out
    assert coverage == pytest.approx(1 - missed)


@pytest.mark.parametrize(
    ("count", "left_out", "missed"),
    [(1, 0, 2 / 2), (7, 0, 2 / 128), (8, 0, 2 / 256), (9, 1, 4 / 512), (10, 3, 10 / 1024)],
)
def test_signed_ranks_by_hand(count: int, left_out: int, missed: float) -> None:
    """Of 10: subsets of 1..10 that sum to 3 at most are {}, {1}, {2}, {3} and {1, 2}."""
    k, coverage = signed_ranks(count, 0.99)
    assert k == left_out
    assert coverage == pytest.approx(1 - missed)


def test_signed_ranks_are_those_of_all_sums_of_ranks() -> None:
    sums = [sum(rank for rank in range(1, 13) if bits >> (rank - 1) & 1) for bits in range(2**12)]
    k, coverage = signed_ranks(12, 0.95)
    share = [sum(each <= limit for each in sums) / 2**12 for limit in (k, k + 1)]
    assert 2 * share[0] <= 0.05 < 2 * share[1]
    assert coverage == pytest.approx(1 - 2 * share[0])


def test_the_interval_of_a_median_is_of_its_sample() -> None:
    assert median_interval([5, 1, 4, 2, 3, 9, 7, 8], 0.99)[:3] == (4.5, 1, 9)
    sample = np.random.default_rng(0).permutation(20)
    assert median_interval(sample, 0.99)[:3] == (9.5, 3, 16)


def test_a_drift_and_a_neighbour_cancel() -> None:
    machine = np.linspace(1, 3, 24) * np.where(np.arange(24) % 7 < 3, 2, 1)
    found = paired_ratio([(machine, 1.2 * machine), (7 * machine, 7 * 1.2 * machine)])
    assert (found.value, found.low, found.high) == pytest.approx((1.2, 1.2, 1.2))
    assert found.by_launch == pytest.approx((1.2, 1.2))
    assert found.coverage >= 0.99
    assert (
        unpaired_ratio(machine, 1.2 * machine).low < 1 < unpaired_ratio(machine, 1.2 * machine).high
    )  # alone, these say nothing


def test_the_centre_of_the_ratios_by_hand() -> None:
    """Logs 0, 1 and 5: the means of pairs are 0, 0.5, 1, 2.5, 3 and 5, their median 1.75."""
    found = paired_ratio([(np.ones(3), np.exp([0, 1, 5]))])
    assert (found.value, found.low, found.high) == pytest.approx((math.exp(1.75), 1, math.exp(5)))
    assert found.coverage == pytest.approx(0.75)
    assert found.by_launch == pytest.approx((math.e,))


def test_unpaired_by_hand() -> None:
    found = unpaired_ratio(np.arange(1, 10), 2.0 * np.arange(1, 10))
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 / 9, 18))
    assert found.coverage == pytest.approx(1 - 4 / 512)


@pytest.mark.parametrize("skew", [0.1, 1.0])
def test_intervals_cover_the_truth_as_often_as_they_say(skew: float) -> None:
    """600 simulations; 99 % of them are 594, and fewer than 584 would come once in 10,000 times."""
    rng = np.random.default_rng(1)
    paired = unpaired = 0
    for _ in range(600):
        old, new = np.exp(skew * rng.exponential(size=(2, 30)))
        found = paired_ratio([(old[:15], 1.3 * new[:15]), (old[15:], 1.3 * new[15:])])
        paired += found.low <= 1.3 <= found.high
        found = unpaired_ratio(old, 1.3 * new)
        unpaired += found.low <= 1.3 <= found.high
    assert paired >= 584 and unpaired >= 584
    assert paired < 600  # not because they are wide


@pytest.mark.parametrize(
    ("low", "high", "by_launch", "verdict"),
    [
        (1.11, 1.3, (1.2, 1.2), "slower"),
        (1.09, 1.3, (1.2, 1.2), "unclear"),
        (1.11, 1.3, (1.0, 1.4), "unclear"),  # one launch does not say so
        (1.11, 1.3, (1.2, 1.0, 1.2, 1.2), "slower"),  # of more than three, one in three may say otherwise
        (1.11, 1.3, (1.2, 1.0, 1.0, 1.2), "unclear"),
        (0.92, 1.09, (1.0, 1.0), "same"),
        (0.90, 1.09, (1.0, 1.0), "unclear"),
        (0.7, 0.9, (0.8, 0.8), "faster"),
        (0.7, 0.9, (0.8, 1.0), "unclear"),
    ],
)
def test_verdicts(low: float, high: float, by_launch: tuple[float, ...], verdict: str) -> None:
    assert Ratio(1.0, low, high, 0.99, by_launch).verdict(1.10) == verdict
    assert Ratio(1.0, low, high, 0.98, by_launch).verdict(1.10) == "unclear"
    assert Ratio(1.0, low, high, 0.99, by_launch).doubtful(1.10) == (verdict == "unclear" and high > 1.10)


def test_a_slowdown_of_20_percent_is_caught_and_none_is_not() -> None:
    for rounds in (ratios.ROUNDS, ratios.ROUNDS + 1):
        assert flagged(1.20, rounds, ratios.LAUNCHES, ratios.LIMIT, benches=200) > 0.75
        assert flagged(1.00, rounds, ratios.LAUNCHES, ratios.LIMIT, benches=200) == 0
    assert flagged(1.20, 10, 3, ratios.LIMIT, 200, noise=QUIET) == 1


def test_one_process_with_bad_luck_is_no_slowdown() -> None:
    rng = np.random.default_rng(0)
    pairs = [simulate_launch(truth, 30, rng, QUIET) for truth in (1.0, 1.0, 2.0)]
    assert paired_ratio(pairs).verdict(1.10) == "unclear"


def test_rounds_must_have_partners() -> None:
    with pytest.raises(ValueError, match=r"old \(3,\) and new \(2,\)"):
        paired_ratio([([1, 1, 1], [1, 1])])
    with pytest.raises(ValueError, match="not empty"):
        paired_ratio([([], [])])
    with pytest.raises(ValueError, match="got 0 values"):
        unpaired_ratio([], [1])


def test_the_simulation_is_a_table_with_a_row_for_each_choice() -> None:
    rows = ratios.table([(10, 1), (20, 2)], 1.1, benches=5).splitlines()
    assert [row.split("|")[1:3] for row in rows[2:]] == [[" 10 ", " 1 "], [" 20 ", " 2 "]]
    assert len({row.count("|") for row in rows}) == 1


@pytest.mark.parametrize("arguments", [["--rounds", "1"], ["--limit", "0.5"], ["--limit", "nan"], ["--benches", "0"]])
def test_bad_input_is_one_line(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, ratios.__file__, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert done.stderr.startswith(f"ratios: {arguments[0]} must be at least ")
