"""Play full episodes with a run's agent and score them.

The result is RUN/evaluation-STEP.json, STEP being the checkpoint's, or RUN/evaluation-random.json; evaluating the same
checkpoint again replaces it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typing_extensions import Doc

from stormfast.envs.games import find
from stormfast.errors import UserError
from stormfast.schema import check_fields
from stormfast.settings import POSITIVE, NumEnvs, Seed
from stormfast.video import VIDEOS, check_path, enlarged, write_video

if TYPE_CHECKING:
    from stormfast.runs.evaluation import Evaluation

SCALE = 4  # pixels of a video beside each other that one of a frame becomes


@dataclass(frozen=True)
class Config:
    """Settings of an evaluation; the rules of play come from the run."""

    run: Annotated[str, Doc("run directory, as `stormfast train` printed it")]
    episodes: Annotated[
        int | None, POSITIVE, Doc("full episodes; default 100, or 20 where evaluation.episodes_from is first_finished")
    ] = None
    num_envs: Annotated[NumEnvs, Doc("environments stepped together; never more than episodes")] = 5
    seed: Annotated[Seed, Doc("seed of environments and policy")] = 0
    device: Annotated[str, Doc("auto, cpu, cuda or cuda:N")] = "auto"
    video: Annotated[str | None, Doc("write the first episode to this .mp4, .gif or .webp")] = None
    policy: Annotated[Literal["agent", "random"], Doc("score the trained agent, or random actions")] = "agent"


def check(config: Config) -> None:
    """Raises UserError for a value of the wrong type or out of range, before anything is loaded."""
    check_fields(config)
    if config.video is not None:
        check_path(Path(config.video), "video", VIDEOS)


def run(config: Config) -> int:
    """Prints a table, and writes the result beside the run. Raises: UserError for what cannot be used or written."""
    from stormfast.runs.directory import load_config

    saved = load_config(Path(config.run))
    from rich.console import Console

    from stormfast.device import resolve_device
    from stormfast.runs.evaluation import default_episodes, evaluate
    from stormfast.runs.progress import Progress
    from stormfast.runs.trained import load

    device = resolve_device(config.device)
    trained = None if config.policy == "random" else load(config.run, str(device))
    total = config.episodes or default_episodes(saved)
    with Progress(total, 0, f"evaluate {find(saved.game).slug}", unit="episodes") as progress:
        found = evaluate(
            saved,
            trained,
            episodes=total,
            num_envs=config.num_envs,
            seed=config.seed,
            film=config.video is not None,
            on_finish=lambda done: progress.update(
                len(done), {"episode_return": sum(episode.game_return for episode in done) / len(done)}
            ),
        )
    print_table(found, Console())
    used = {"episodes": total, "num_envs": found.num_envs, "device": str(device)}
    settings = asdict(config) | used | {"env_seed": found.env_seed, "env_backend": found.env_backend}
    save(found.to_dict() | {"settings": settings}, Path(config.run))
    if config.video is not None and found.frames is not None:
        write_video(Path(config.video), (enlarged(frame, SCALE) for frame in found.frames))
        print(f"Video of the first episode: {config.video}")
    return 0


def save(result: dict[str, object], run_dir: Path) -> None:
    """Raises: UserError where the file cannot be written."""
    from stormfast.runs.directory import write_whole

    path = run_dir / f"evaluation-{'random' if result['step'] is None else result['step']}.json"
    try:
        write_whole(path, (json.dumps(result, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"The result above could not be written to {path}: {error.strerror or error}") from None
    print(f"Written to {path}")


def print_table(found: "Evaluation", console: object) -> None:
    """The statistics of an evaluation, on a rich console."""
    from rich.table import Table

    policy = "random policy" if found.step is None else f"agent at step {found.step:,}"
    title = f"{find(found.config.game).slug}: {policy}, {len(found.episodes)} episodes"
    table, score = Table(title=title, show_header=False, title_justify="left"), found.score
    low, high = score.mean_interval_95
    table.add_row("mean return", f"{score.mean:.2f}  [{low:.2f}, {high:.2f}] 95 % bootstrap interval")
    for name in ("median", "std", "standard_error", "min", "max"):
        value = getattr(score, name)
        table.add_row(name.replace("_", " "), "-" if value is None else f"{value:.2f}")
    if score.human_normalised is not None and score.human_normalised_interval_95 is not None:
        low, high = score.human_normalised_interval_95
        table.add_row("human-normalised", f"{score.human_normalised:.3f}  [{low:.3f}, {high:.3f}]")
    else:
        table.add_row("human-normalised", "- (no random and human scores are published)")
    lengths = [episode.length for episode in found.episodes]
    table.add_row("mean length", f"{sum(lengths) / len(lengths):.0f} steps")
    console.print(table)  # type: ignore[attr-defined]
