"""Film what a run's world model imagines, beside the real game.

The agent of the last checkpoint plays; after some steps of context the model imagines the same stretch from the same
actions, without seeing more of it. The film shows the real frames, the imagined ones and their absolute difference, and
beneath them rewards and continuation: blue is real, orange is imagined. A .png is a strip of some of the frames.

An error is the squared error divided by that of the mean frame: 0 is perfect, 1 no better than it. A reward is right
within half of 1, or within half of the real reward where that is more.

The first wrong frame is the first whose mean squared error, on the pixels that move or on the rest, is over 0.5 of the
mean frame's and over 0.05 squared, which nobody sees; frame 0 is the last one shown, 0 stands for a dream without a
wrong frame, and of several dreams it is the frame by which half of them are wrong.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from typing_extensions import Doc

from stormfast.schema import Bounds, check_fields
from stormfast.settings import Seed
from stormfast.video import VIDEOS, check_path, write_png, write_video

RULE = " ".join(__doc__.split("\n\n")[-1].split())
STRIP = ".png"
UP_TO_1000 = Bounds(ge=1, le=1_000)


@dataclass(frozen=True)
class Config:
    """Settings of a film of dreams."""

    run: Annotated[str, Doc("run directory, as `stormfast train` printed it")]
    out: Annotated[str, tyro.conf.arg(aliases=["-o"]), Doc("film as .mp4, .gif or .webp, or a strip as .png")] = (
        "dream.gif"
    )
    horizon: Annotated[int, UP_TO_1000, Doc("steps imagined in each dream")] = 45
    starts: Annotated[int, UP_TO_1000, Doc("dreams, each from another moment of play")] = 4
    seed: Annotated[Seed, Doc("seed of games and dreams")] = 0
    device: Annotated[str, Doc("auto, cpu, cuda or cuda:N")] = "auto"
    json: Annotated[bool, Doc("print one JSON object, and nothing else, on stdout")] = False


def check(config: Config) -> None:
    """Raises UserError for a value of the wrong type or out of range, and a file that cannot be, before all else."""
    check_fields(config)
    check_path(Path(config.out), "out", (*VIDEOS, STRIP))


def run(config: Config) -> int:
    """Writes the film and prints its numbers. Raises: UserError for what is no run, cannot dream or be written."""
    from stormfast.runs.dreams import film_of

    film = film_of(
        Path(config.run), horizon=config.horizon, starts=config.starts, seed=config.seed, device=config.device
    )
    path, score = Path(config.out), film.score
    if path.suffix == STRIP:
        write_png(path, film.strip())
    else:
        write_video(path, film.frames())
    if config.json:
        found = asdict(score) | {"first_wrong": score.first_wrong, "rule": RULE}
        print(json.dumps(found | {"step": film.step, "file": str(path), "settings": asdict(config)}, indent=2))
    else:
        dreams, horizon = film.dream.action.shape
        starts = "1 start" if dreams == 1 else f"{dreams} starts"
        print(f"{film.title}: {starts} x {horizon} steps; {score}\n{RULE}\nWritten to {path}")
    return 0
