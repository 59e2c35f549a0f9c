"""What scores of many games and seeds say together, with stratified bootstrap intervals.

G games  S seeds of a game (each game may have another number of them)  R resamples

Seeds are resampled within each game, as Agarwal et al. 2021 (arXiv 2108.13264) advise, by scipy.stats.bootstrap with
one sample a game. Scores are human-normalised: 0 is the random policy, 1 the human of the table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from stormfast.envs.games import human_normalised

RESAMPLES = 2_000
GAMMA = 1.0  # of the optimality gap: what a game must reach to have none
TRIM = 0.25  # of the runs at each end, that the interquartile mean leaves out

Games = Sequence[np.ndarray]  # G arrays [S] float64: the score of each seed


@dataclass(frozen=True)
class Estimate:
    value: float
    interval_95: tuple[float, float] | None = None  # None where a game has fewer than two seeds


@dataclass(frozen=True)
class Aggregates:
    """Of means alone, without seeds, only mean and median are known."""

    mean: Estimate  # over games, of each game's mean over seeds
    median: Estimate  # the same
    iqm: Estimate | None = None  # interquartile mean of all runs
    optimality_gap: Estimate | None = None  # mean over games of how far runs fall short of GAMMA


def normalised(returns: Mapping[str, Sequence[float]], games: Sequence[str]) -> list[np.ndarray]:
    """Human-normalised scores [S] of these games. Raises: UserError for a game without published scores."""
    return [np.array([human_normalised(game, value) for value in returns[game]]) for game in games]


def aggregate(scores: Games, seed: int = 0) -> Aggregates:
    """Mean, median, interquartile mean and optimality gap of a method. seed: of the bootstrap.

    Raises: ValueError for no game, or a game without a seed.
    """
    return Aggregates(*_estimates(_statistics, scores, seed))


def aggregate_means(means: Sequence[float]) -> Aggregates:
    """Of a method of which only each game's mean is known: human-normalised [G]."""
    return Aggregates(Estimate(float(np.mean(means))), Estimate(float(np.median(means))))


def probability_of_improvement(ours: Games, theirs: Games, seed: int = 0) -> Estimate:
    """P(X > Y) + P(X = Y) / 2 of a run X of ours and a run Y of theirs of the same game, mean over games.

    Args: ours, theirs: of the same games, in the same order. seed: of the bootstrap, which resamples both.
    Raises: ValueError where the games are not as many, there is none, or one has no seed.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"ours and theirs must be of the same games, got {len(ours)} and {len(theirs)}")
    (estimate,) = _estimates(_improvement, [*ours, *theirs], seed)
    return estimate


def _statistics(*scores: np.ndarray, axis: int = -1) -> np.ndarray:
    """G arrays [..., S] -> [4, ...]: the fields of Aggregates."""
    of_game = np.stack([game.mean(axis) for game in scores])  # [G, ...]
    short = np.stack([GAMMA - np.minimum(game, GAMMA).mean(axis) for game in scores])  # [G, ...]
    iqm = stats.trim_mean(np.concatenate(scores, axis), TRIM, axis=axis)
    return np.stack([of_game.mean(0), np.median(of_game, 0), iqm, short.mean(0)])


def _improvement(*both: np.ndarray, axis: int = -1) -> np.ndarray:
    """2 G arrays [..., S], ours before theirs -> [1, ...]. A tie counts half: the mean of (1 + sign) / 2."""
    ours, theirs = both[: len(both) // 2], both[len(both) // 2 :]
    signs = [np.sign(x[..., :, None] - y[..., None, :]).mean((-2, -1)) for x, y in zip(ours, theirs, strict=True)]
    return (1 + np.stack(signs).mean(0, keepdims=True)) / 2


def _estimates(statistics: Callable[..., np.ndarray], scores: Games, seed: int) -> list[Estimate]:
    """Statistics of the scores, each with its percentile interval of R resamples."""
    if not scores or not all(len(game) for game in scores):
        raise ValueError(f"each game must have a seed, got {[len(game) for game in scores]}")
    values = [float(value) for value in statistics(*scores)]
    if min(len(game) for game in scores) < 2:
        return [Estimate(value) for value in values]
    resampled: Any = stats.bootstrap(
        scores,
        statistics,
        n_resamples=RESAMPLES,
        vectorized=True,
        paired=False,
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    bounds = zip(*resampled.confidence_interval, strict=True)
    return [Estimate(value, (float(low), float(high))) for value, (low, high) in zip(values, bounds, strict=True)]
