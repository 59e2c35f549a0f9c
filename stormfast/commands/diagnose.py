"""Say what a run's world model sees, draws and predicts, and what is wrong with it.

Measured at the last checkpoint, on windows of the run's own replay: drawn uniformly from all of it, and from its last
tenth, which is the newest play; and of fresh play of the agent, which the model was never trained on. The verdicts
below the table are those of all of replay, and of how it differs from fresh play.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typing_extensions import Doc

from stormfast.schema import Bounds, check_fields
from stormfast.settings import Seed
from stormfast.verdicts import DEAD_BELOW, DRAWN_BELOW, LAG_ABOVE

if TYPE_CHECKING:
    from stormfast.runs.diagnosis import Diagnosis

UP_TO_1000 = Bounds(ge=1, le=1_000)

# number: (what it is, what a healthy one looks like)
MEASURES: dict[str, tuple[str, str]] = {
    "latent_information": ("nats that a latent tells of its frame", f"5 and more; dead below {DEAD_BELOW}"),
    "posterior_entropy": ("nats that a latent leaves to chance", "neither next to 0 nor its most, S ln K"),
    "codebook_use": ("share of the classes in use", "well above 1/K, a single class"),
    "statistics_kl": ("nats between latents by a batch's and by running statistics", f"below {LAG_ABOVE}"),
    "motion_explained": ("moving pixels, 1 perfect, 0 the mean frame", "0.5 and more"),
    "still_error": ("other pixels, 0 perfect, 1 the mean frame", "below 1"),
    "small_objects": ("brightness at which small moving things are drawn", f"near 1; too faint below {DRAWN_BELOW}"),
    "reward_zero": ("cross-entropy of rewards that are 0, nats", "below 0.1"),
    "reward_nonzero": ("cross-entropy of the other rewards, nats", "below 2; 5.5 is ignorance"),
}
SIGNS = ("negative", "zero", "positive")
REWARDS = {"count": "how many", "true": "true mean", "predicted": "predicted mean: near the true one"}
AHEAD = {  # of open-loop imagination: what a healthy one looks like
    "motion_explained": "moving pixels, > 0",
    "still_error": "other pixels, < 1",
    "reward": "rewards, < 1",
    "continuation": "ends, < 0.05",
}
AHEAD_TITLE = """\
imagination, by steps ahead. Pixels as above; rewards up to there:
error / that of predicting 0; ends up to there: cross-entropy, nats"""


@dataclass(frozen=True)
class Config:
    """Settings of a diagnosis."""

    run: Annotated[str, Doc("run directory, as `stormfast train` printed it")]
    windows: Annotated[
        int, UP_TO_1000, Doc("windows drawn from all of replay, and as many from its last tenth and from fresh play")
    ] = 64
    horizon: Annotated[int, UP_TO_1000, Doc("steps imagined ahead")] = 16
    play: Annotated[
        int, Bounds(ge=0, le=100_000), Doc("steps of fresh play; 0 for none, as where the game is not at hand")
    ] = 1_000
    seed: Annotated[Seed, Doc("seed of windows and imagination")] = 0
    device: Annotated[str, Doc("auto, cpu, cuda or cuda:N")] = "auto"
    json: Annotated[bool, Doc("print one JSON object, and nothing else, on stdout")] = False


def check(config: Config) -> None:
    """Raises UserError for a value of the wrong type or out of range, before anything is loaded."""
    check_fields(config)


def run(config: Config) -> int:
    """Prints a table and verdicts, or JSON. Raises: UserError for what is no run or cannot be measured."""
    from stormfast.runs.diagnosis import diagnose

    found = diagnose(
        Path(config.run),
        windows=config.windows,
        horizon=config.horizon,
        play=config.play,
        seed=config.seed,
        device=config.device,
    )
    if config.json:
        print(json.dumps({**asdict(found), "settings": asdict(config)}, indent=2))
    else:
        print_tables(found, config)
        print_verdicts(found)
    return 0


def print_tables(found: "Diagnosis", config: Config) -> None:
    """What it sees and draws; rewards by their sign; imagination by how far ahead it is."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for name in columns:
            table.add_column(name, justify="right" if name in numeric else "left", no_wrap=name in numeric)
        for row in rows:
            table.add_row(*row)
        console.print(table)

    console, draws = Console(), found.numbers
    steps = sorted({int(name.split("_")[2].split("/")[0]) for name in draws["all"] if name.startswith("open_loop_")})
    numeric = [*draws, *SIGNS, *map(str, steps)]
    title = f"{config.run}: world model at step {found.step:,}, after {found.updates:,} updates"
    shown = [(name, *text) for name, text in MEASURES.items() if name in draws["all"]]
    frames = [[name, *cells(draws.values(), [name]), f"{what}: {healthy}"] for name, what, healthy in shown]
    print_table(title, ["", *draws, "what it is, and what is healthy"], frames)
    rewards = [
        [draw, label, *cells([numbers], [f"reward_{what}_{sign}" for sign in SIGNS])]
        for draw, numbers in draws.items()
        for what, label in REWARDS.items()
    ]
    print_table("rewards by their sign", ["windows", "", *SIGNS], rewards)
    ahead = [
        [draw, label, *cells([numbers], [f"open_loop_{n}/{name}" for n in steps])]
        for name, label in AHEAD.items()
        for draw, numbers in draws.items()
    ]
    if steps:
        print_table(AHEAD_TITLE, ["windows", "", *map(str, steps)], ahead)


def cells(numbers: Iterable[dict[str, float | None]], names: list[str]) -> list[str]:
    """Numbers of these names, as text; - where there was nothing to measure."""
    values = [of_draw.get(name) for of_draw in numbers for name in names]
    return ["-" if value is None else f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}" for value in values]


def print_verdicts(found: "Diagnosis") -> None:
    for line in found.verdicts:
        print(line)
    if not found.verdicts:
        print("nothing is wrong by these numbers")
