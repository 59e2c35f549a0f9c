"""Score runs together, beside published scores: a table by game, and the aggregates of Atari 100k.

PATHS are runs, directories that hold runs (such as a group of `stormfast train --seeds 5`), patterns of them, or result
files of `stormfast study`. Each run counts with its newest evaluation; nothing is played. Runs of another
preset or protocol have tables of their own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from typing_extensions import Doc

from stormfast.envs.games import ATARI_100K
from stormfast.errors import UserError
from stormfast.schema import check_name, check_whole_number
from stormfast.settings import Seed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from stormfast.aggregates import Estimate
    from stormfast.runs.scoreboard import Block

UNKNOWN = "-"
WIDE = 10_000  # columns: a terminal wraps long lines, where rich would cut numbers off


@dataclass(frozen=True)
class Config:
    """What to score, and what to compare it with."""

    paths: Annotated[tuple[str, ...], Doc("runs, directories that hold runs, patterns, or result files")]
    baselines: Annotated[str | None, Doc("published methods, as storm,iris; or none; default STORM")] = None
    against: Annotated[str | None, Doc("method of the probability of improvement; default the first baseline")] = None
    json: Annotated[bool, Doc("print one JSON object, and nothing else, on stdout")] = False
    seed: Annotated[Seed, Doc("seed of the bootstrap intervals")] = 0


def check(config: Config) -> None:
    """Raises UserError for a bad value, before anything is read."""
    if not config.paths:
        raise UserError("PATHS is missing: give runs, directories that hold runs, patterns, or result files")
    for path in config.paths:
        check_name("PATHS", path)
    check_whole_number("--seed", config.seed, least=0)


def run(config: Config) -> int:
    """Prints tables, or JSON. Raises: UserError for paths without runs, damaged files, and unknown methods."""
    from rich.console import Console

    from stormfast.baselines import find_baseline, find_baselines
    from stormfast.runs.results import find_results
    from stormfast.runs.scoreboard import make_blocks, to_dict

    baselines = find_baselines(config.baselines)
    against = find_baseline(config.against) if config.against else next(iter(baselines), None)
    blocks = make_blocks(find_results(config.paths), baselines, against, config.seed)
    if config.json:
        print(json.dumps({"blocks": [to_dict(block) for block in blocks]}, indent=2))
        return 0
    console = Console(width=WIDE, highlight=False, markup=False)
    for block in blocks:
        print_block(block, console)
    return 0


def print_block(block: "Block", console: "Console") -> None:
    """The tables of a preset and protocol, and what there is to know of them."""
    title = f"preset {block.preset}, protocol {block.protocol}"
    console.print(games_table(block, title) if block.games else f"{title}: no run has been evaluated")
    if block.aggregates:
        console.print("", aggregates_table(block), "", sep="\n")
    if block.improvement:
        against, found = block.improvement.against, block.improvement.probability
        why = "" if found else " (only its means are published)"
        console.print(f"P(ours > {against}) = {estimate(found)}{why}")
    for line in [*block.notes, *(f"missing: {line}" for line in block.missing), ""]:
        console.print(line)


def games_table(block: "Block", title: str) -> "Table":
    num_runs = sum(len(row.returns) for row in block.games)
    names = list(block.games[0].baselines)
    table = new_table(
        f"{title}: {num_runs} runs of {len(block.games)} games",
        ["seeds", "return", "HNS", "random", "human", *names, "minutes\na run"],
    )
    for row in block.games:
        unfinished = f" ({row.num_unfinished} unfinished)" if row.num_unfinished else ""
        table.add_row(
            row.game,
            f"{len(row.seeds)}{unfinished}",
            number(row.mean) + ("" if row.sem is None else f" ± {number(row.sem)}"),
            UNKNOWN if row.human_normalised is None else f"{row.human_normalised:.3f}",
            *map(number, (row.random, row.human, *row.baselines.values(), row.minutes)),
        )
    return table


def aggregates_table(block: "Block") -> "Table":
    num_others = len(set(block.aggregated_games) - set(ATARI_100K))
    num_of_26 = len(block.aggregated_games) - num_others
    table = new_table(
        f"human-normalised, {num_of_26} of the {len(ATARI_100K)} games of Atari 100k"
        + (f" and {num_others} others" if num_others else ""),
        ["seeds", "mean", "median", "IQM", "optimality\ngap", "minutes\na run"],
    )
    for row in block.aggregates:
        found = row.aggregates
        table.add_row(
            row.name,
            UNKNOWN if row.seeds is None else "-".join(map(str, sorted(set(row.seeds)))),
            *(estimate(each, "\n") for each in (found.mean, found.median, found.iqm, found.optimality_gap)),
            number(row.minutes),
        )
    return table


def new_table(title: str, columns: Sequence[str]) -> "Table":
    """A table of numbers, whose rows begin with a name. Narrow: all of it fits 80 columns with one baseline."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def number(value: float | None) -> str:
    """At least three digits."""
    if value is None:
        return UNKNOWN
    return f"{value:,.{0 if abs(value) >= 1_000 else 1 if abs(value) >= 100 else 2}f}"


def estimate(found: "Estimate | None", separator: str = " ") -> str:
    if found is None:
        return UNKNOWN
    interval = "" if found.interval_95 is None else "{}[{:.2f}, {:.2f}]".format(separator, *found.interval_95)
    return f"{found.value:.3f}{interval}"
