"""Results of runs beside published ones: a block for each preset and protocol, which are never pooled.

A block has a row for each game, and the aggregates of the runs and of each baseline on the games that they share.
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stormfast.aggregates import (
    Aggregates,
    Estimate,
    aggregate,
    aggregate_means,
    normalised,
    probability_of_improvement,
)
from stormfast.baselines import Baseline
from stormfast.envs.games import SCORES, human_normalised
from stormfast.runs.results import Result
from stormfast.settings import RESUMABLE

OURS = "ours"


@dataclass(frozen=True)
class GameRow:
    """Scores of a game; None is not known, or not published."""

    game: str
    seeds: list[int]  # of the runs that were evaluated, each as often as it is there
    returns: list[float]  # of the same
    num_unfinished: int  # of them, scored before their last step
    mean: float
    sem: float | None  # standard error over seeds; None of a single one
    human_normalised: float | None  # of the mean
    random: float | None
    human: float | None
    baselines: dict[str, float | None]  # name: mean return
    minutes: float | None  # median of the runs'


@dataclass(frozen=True)
class AggregateRow:
    name: str
    seeds: tuple[int, int] | None  # fewest and most of a game; None of a baseline of which only means are known
    aggregates: Aggregates
    minutes: float | None  # median of the runs'


@dataclass(frozen=True)
class Improvement:
    """Probability that a run is better than one of a baseline on the same game."""

    against: str
    probability: Estimate | None  # None where only the baseline's means are known


@dataclass(frozen=True)
class Block:
    """Runs of one preset and protocol."""

    preset: str
    protocol: str
    games: list[GameRow]
    aggregated_games: list[str]
    aggregates: list[AggregateRow]  # the runs, then each baseline; empty where no game can be aggregated
    improvement: Improvement | None
    notes: list[str]  # what a reader must know of the numbers
    missing: list[str]  # runs without a score, with the command that gives them one


def make_blocks(
    results: Sequence[Result], baselines: Sequence[Baseline], against: Baseline | None, seed: int = 0
) -> list[Block]:
    """Blocks in the order in which their first runs are given. seed: of the bootstrap."""
    by_kind: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        by_kind.setdefault((result.preset, result.protocol), []).append(result)
    return [_block(of_kind, baselines, against, seed) for of_kind in by_kind.values()]


def _block(results: list[Result], baselines: Sequence[Baseline], against: Baseline | None, seed: int) -> Block:
    scored: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda each: (each.game, each.seed)):
        if result.mean_return is not None:
            scored.setdefault(result.game, []).append(result)
    compared = [*baselines, *([against] if against else [])]
    shared = [game for game in scored if game in SCORES and all(game in each.returns for each in compared)]
    of_shared = {game: scored[game] for game in shared}
    left_out = [game for game in scored if game not in shared]
    return Block(
        preset=results[0].preset,
        protocol=results[0].protocol,
        games=[_game_row(game, of_game, baselines) for game, of_game in scored.items()],
        aggregated_games=shared,
        aggregates=_aggregates(of_shared, baselines, seed) if shared else [],
        improvement=_improvement(of_shared, against, seed) if shared and against else None,
        notes=[*_left_out(left_out, compared), *_no_interval(of_shared), *_notes(results)],
        missing=[_missing(result) for result in results if result.mean_return is None],
    )


def _game_row(game: str, results: list[Result], baselines: Sequence[Baseline]) -> GameRow:
    returns = _returns(results)
    mean, (random, human) = float(np.mean(returns)), SCORES.get(game, (None, None))
    return GameRow(
        game=game,
        seeds=[result.seed for result in results],
        returns=returns,
        num_unfinished=sum(result.is_unfinished for result in results),
        mean=mean,
        sem=float(np.std(returns, ddof=1)) / len(returns) ** 0.5 if len(returns) > 1 else None,
        human_normalised=human_normalised(game, mean) if game in SCORES else None,
        random=random,
        human=human,
        baselines={each.name: each.mean(game) for each in baselines},
        minutes=_median_minutes(results),
    )


def _returns(results: Sequence[Result]) -> list[float]:
    return [result.mean_return for result in results if result.mean_return is not None]


def _median_minutes(results: Sequence[Result]) -> float | None:
    minutes = [result.minutes for result in results if result.minutes is not None]
    return float(np.median(minutes)) if minutes else None


def _normalised(scored: dict[str, list[Result]]) -> list[np.ndarray]:
    """Human-normalised scores [S] of each game."""
    return normalised({game: _returns(results) for game, results in scored.items()}, list(scored))


def _aggregates(scored: dict[str, list[Result]], baselines: Sequence[Baseline], seed: int) -> list[AggregateRow]:
    ours = _normalised(scored)
    minutes = _median_minutes([result for results in scored.values() for result in results])
    rows = [AggregateRow(OURS, _num_seeds(ours), aggregate(ours, seed), minutes)]
    for baseline in baselines:
        scores = normalised(baseline.returns, list(scored))
        if baseline.means_only:
            found = aggregate_means([float(score[0]) for score in scores])
            rows.append(AggregateRow(baseline.name, None, found, None))
        else:
            rows.append(AggregateRow(baseline.name, _num_seeds(scores), aggregate(scores, seed), None))
    return rows


def _num_seeds(scores: Sequence[np.ndarray]) -> tuple[int, int]:
    return min(map(len, scores)), max(map(len, scores))


def _improvement(scored: dict[str, list[Result]], against: Baseline, seed: int) -> Improvement:
    if against.means_only:
        return Improvement(against.name, None)
    theirs = normalised(against.returns, list(scored))
    return Improvement(against.name, probability_of_improvement(_normalised(scored), theirs, seed))


# --- what a reader must know -----------------------------------------------------------------------------------------


def name_of(result: Result) -> str:
    return f"{result.game} seed {result.seed}"


def _missing(result: Result) -> str:
    if result.saved_step is None:
        return f"{name_of(result)}: no checkpoint to evaluate in {result.source}"
    far = f" ({result.saved_step:,} of {result.steps:,} steps)" if result.steps is not None else ""
    return f"{name_of(result)}{far}: {_evaluate(result)}"


def _evaluate(result: Result) -> str:
    return f"`stormfast evaluate {shlex.quote(str(result.source))}`"


def _left_out(games: Sequence[str], compared: Sequence[Baseline]) -> list[str]:
    """Of games that the aggregates leave out."""
    unscored = [game for game in games if game not in SCORES]
    others = [game for game in games if game in SCORES]
    notes = []
    if unscored:
        notes.append(f"not in the aggregates: {', '.join(unscored)} (no random and human scores are published)")
    if others:
        names = ", ".join(dict.fromkeys(each.name for each in compared))
        notes.append(f"not in the aggregates: {', '.join(others)} (no scores of {names}; see --baselines none)")
    return notes


def _no_interval(scored: dict[str, list[Result]]) -> list[str]:
    single = [game for game, results in scored.items() if len(results) < 2]
    return (
        [f"no intervals: they need two seeds of each game, and there is one of {', '.join(single)}"] if single else []
    )


def _notes(results: Sequence[Result]) -> list[str]:
    """Of runs that are scored too early, counted twice, or not alike."""
    early = [
        f"{name_of(result)} (step {result.step:,} of {result.steps:,})" for result in results if result.is_unfinished
    ]
    outdated = [
        f"{name_of(result)} was evaluated at step {result.step:,} and is now at {result.saved_step:,}: "
        + _evaluate(result)
        for result in results
        if result.is_outdated
    ]
    unfinished = [f"unfinished, scored as they are: {', '.join(early)}"] if early else []
    return [*unfinished, *outdated, *_counted_twice(results), *_not_alike(results)]


def _counted_twice(results: Sequence[Result]) -> list[str]:
    """Of runs of the same game and seed: each counts, but they may be one and the same."""
    by_name: dict[str, list[str]] = {}
    for result in results:
        if result.mean_return is not None:
            by_name.setdefault(name_of(result), []).append(str(result.source))
    return [
        f"{name} is there {len(sources)} times, and each counts: {', '.join(sources)}"
        for name, sources in by_name.items()
        if len(sources) > 1
    ]


def _not_alike(results: Sequence[Result]) -> list[str]:
    """Of settings, beside preset and protocol, in which runs that are pooled differ."""
    values: dict[str, set[str]] = {}
    for result in results:
        known = {name: value for name, value in result.settings.items() if name not in RESUMABLE | {"game", "seed"}}
        for name, value in (known | ({} if result.steps is None else {"steps": result.steps})).items():
            values.setdefault(name, set()).add(str(value))
    different = [f"{name} ({', '.join(sorted(found))})" for name, found in values.items() if len(found) > 1]
    return [f"pooled, though they differ in {'; '.join(different)}"] if different else []


def to_dict(block: Block) -> dict[str, Any]:
    """JSON types."""
    return asdict(block)
