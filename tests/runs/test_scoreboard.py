"""Blocks of results: what is pooled, what the aggregates are of, and what a reader is told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stormfast.aggregates import aggregate, normalised, probability_of_improvement
from stormfast.baselines import find_baseline, find_baselines
from stormfast.runs.results import Result
from stormfast.runs.scoreboard import OURS, Block, make_blocks

STORM = find_baseline("STORM")
BBF = find_baseline("BBF")


def result(game: str = "Pong", seed: int = 0, mean: float | None = 1.0, **fields: object) -> Result:
    known = Result(Path(f"runs/{game}-seed{seed}"), game, seed, "fast", "standard", mean, 100, 100, 100, 7.0)
    return replace(known, **fields)  # type: ignore[arg-type]


def one_block(results: list[Result], baselines: str = "storm", against: str | None = "storm") -> Block:
    (block,) = make_blocks(results, find_baselines(baselines), find_baseline(against) if against else None)
    return block


def test_a_game() -> None:
    results = [result(seed=k, mean=mean, minutes=k) for k, mean in ((2, -3.1), (0, 14.6), (5, -20.7))]
    (row,) = one_block(results, "storm,bbf").games
    assert (row.seeds, row.returns) == ([0, 2, 5], [14.6, -3.1, -20.7])
    assert row.mean == pytest.approx(-9.2 / 3)
    assert row.sem == pytest.approx(np.std([14.6, -3.1, -20.7], ddof=1) / 3**0.5)
    assert row.human_normalised == pytest.approx((-9.2 / 3 + 20.7) / (14.6 + 20.7))
    assert (row.random, row.human, row.minutes) == (-20.7, 14.6, 2)
    assert row.baselines == {"STORM": pytest.approx(11.28), "BBF": 16.7}


def test_the_released_runs_of_storm_score_as_storm() -> None:
    """The same numbers as results and as a baseline give the same row, and neither is better."""
    results = [result(game, seed, mean) for game, returns in STORM.returns.items() for seed, mean in enumerate(returns)]
    block = one_block(results, "storm,bbf")
    ours, storm, bbf = block.aggregates
    assert (ours.name, storm.name, bbf.name) == (OURS, "STORM", "BBF")
    assert ours.aggregates == storm.aggregates and ours.seeds == storm.seeds == (5, 5)
    assert (len(block.aggregated_games), ours.minutes, storm.minutes) == (26, 7.0, None)
    assert block.improvement and block.improvement.probability
    assert block.improvement.probability.value == pytest.approx(0.5)
    assert (bbf.seeds, bbf.aggregates.iqm) == (None, None)
    assert (block.notes, block.missing) == ([], [])


def test_aggregates_are_of_the_shared_games_alone() -> None:
    """Catch has no scores, Berzerk none of STORM: both have a row, and count in no aggregate."""
    results = [result(game, seed, seed + 1.0) for game in ("Catch", "Pong", "Berzerk") for seed in (0, 1)]
    block = one_block(results)
    assert [row.game for row in block.games] == ["Berzerk", "Catch", "Pong"]
    assert [row.human_normalised is None for row in block.games] == [False, True, False]
    assert block.aggregated_games == ["Pong"]
    ours, storm = block.aggregates
    assert ours.aggregates == aggregate(normalised({"Pong": [1.0, 2.0]}, ["Pong"]))
    assert storm.aggregates == aggregate(normalised(STORM.returns, ["Pong"]))
    assert "Catch (no random and human scores are published)" in block.notes[0]
    assert "Berzerk (no scores of STORM; see --baselines none)" in block.notes[1]
    assert one_block(results, "none", None).aggregated_games == ["Berzerk", "Pong"]


def test_without_any_shared_game() -> None:
    block = one_block([result("Catch")])
    assert (block.aggregates, block.improvement, len(block.games)) == ([], None, 1)


def test_the_probability_is_against_who_is_named() -> None:
    results = [result(seed=seed, mean=10.0 * seed) for seed in (0, 1)]
    found = one_block(results, "storm", "iris").improvement
    assert found and found.against == "IRIS"
    theirs = normalised(find_baseline("IRIS").returns, ["Pong"])
    assert found.probability == probability_of_improvement(normalised({"Pong": [0.0, 10.0]}, ["Pong"]), theirs)
    means = one_block(results, "storm", "bbf").improvement
    assert means and (means.against, means.probability) == ("BBF", None)


def test_presets_and_protocols_are_never_pooled() -> None:
    kinds = [("fast", "standard"), ("storm", "standard"), ("fast", "reference"), ("fast", "standard")]
    results = [result(seed=k, preset=preset, protocol=protocol) for k, (preset, protocol) in enumerate(kinds)]
    blocks = make_blocks(results, [], None)
    assert [(block.preset, block.protocol) for block in blocks] == kinds[:3]
    assert [block.games[0].seeds for block in blocks] == [[0, 3], [1], [2]]


def test_runs_without_a_score_are_listed_with_their_command() -> None:
    block = one_block(
        [
            result(seed=0),
            result(seed=1, mean=None, step=None, saved_step=60, source=Path("my runs/Pong-seed1")),
            result(seed=2, mean=None, step=None, saved_step=None),
        ]
    )
    assert block.games[0].seeds == [0]
    assert block.missing == [
        "Pong seed 1 (60 of 100 steps): `stormfast evaluate 'my runs/Pong-seed1'`",
        "Pong seed 2: no checkpoint to evaluate in runs/Pong-seed2",
    ]


def test_what_a_reader_is_told() -> None:
    block = one_block(
        [
            result(seed=0, step=50, saved_step=80, settings={"agent.entropy": 0.001, "device": "cpu", "seed": 0}),
            result(seed=1, settings={"agent.entropy": 0.01, "device": "cuda", "seed": 1}),
            result(seed=1, source=Path("again"), settings={"agent.entropy": 0.01, "steps": 100}),
            result("Boxing", steps=120, step=120, saved_step=120),
        ]
    )
    assert block.games[1].num_unfinished == 1
    assert block.notes == [
        "no intervals: they need two seeds of each game, and there is one of Boxing",
        "unfinished, scored as they are: Pong seed 0 (step 50 of 100)",
        "Pong seed 0 was evaluated at step 50 and is now at 80: `stormfast evaluate runs/Pong-seed0`",
        "Pong seed 1 is there 2 times, and each counts: runs/Pong-seed1, again",
        "pooled, though they differ in agent.entropy (0.001, 0.01); steps (100, 120)",
    ]
