"""Compare settings: train every arm of a study on its games and seeds, evaluate, and make a table and a figure.

NAME is table, agent-state, tokens, model-size, budget, demonstration, small-objects, seeing, random-policy,
autoencoder, frozen-autoencoder, or a file of your own: a JSON object with a question and arms, which are names of
dotted settings (docs/studies.md). Results are in OUT/results, one file for each game and arm; OUT/table.md and
OUT/curves.png show them. Ctrl-C saves the runs, and the same command goes on; it skips what is finished.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typing_extensions import Doc

from stormfast.errors import UserError
from stormfast.schema import check_fields, check_name
from stormfast.settings import POSITIVE, Bounds, Preset, TrainConfig
from stormfast.study import Study, choose, choose_games, config_of, read_study, takes_demonstration

if TYPE_CHECKING:
    from stormfast.runs.study_runs import Series

COUNT = Bounds(ge=1, le=1_000)


@dataclass(frozen=True)
class Config:
    """Which runs of a study, and where they are kept. What is not given is as the study has it."""

    name: Annotated[str, Doc("a built-in study, or path/to/file.json")]
    games: Annotated[str | None, Doc("games of `stormfast games`, as Pong,Boxing")] = None
    seeds: Annotated[int | None, COUNT, Doc("runs of each arm and game: seeds 0, 1, ...")] = None
    steps: Annotated[int | None, POSITIVE, Doc("environment steps of each run")] = None
    preset: Annotated[Preset | None, Doc("sizes; auto takes fast with CUDA and cpu without")] = None
    arms: Annotated[str | None, Doc("only these arms, as latent,both")] = None
    episodes: Annotated[int, Bounds(ge=2, le=10_000), Doc("of each evaluation")] = 30
    device: Annotated[str, Doc("auto, cpu, cuda or cuda:N")] = "auto"
    demonstration: Annotated[str | None, Doc("the .npz that the demonstration study mixes into batches")] = None
    out: Annotated[str | None, Doc("directory of the runs; default studies/NAME")] = None
    results: Annotated[str | None, Doc("directory of the results; default OUT/results")] = None
    next: Annotated[int | None, POSITIVE, Doc("make only the next runs that are missing, this many")] = None
    parallel: Annotated[int | None, COUNT, Doc("runs at once; default all with CUDA, one a core without")] = None
    low_priority: Annotated[bool, Doc("run only when nothing else wants the CPU")] = False
    replace_older: Annotated[bool, Doc("make runs of another commit or other settings anew; old ones are kept")] = False


def check(config: Config) -> None:
    """Raises UserError for a bad value, an unknown study and settings that cannot be, before anything is made."""
    check_fields(config)
    study = read_study(config.name)
    arms = choose("arms", config.arms, list(study.arms))
    choose_games(config.games, study.games)
    for option in ("out", "results", "demonstration"):
        if (value := getattr(config, option)) is not None:
            check_name(f"--{option}", value)
    if config.demonstration is not None and not takes_demonstration(study):
        raise UserError(f"--demonstration is for studies with an arm that takes one, and {config.name} has none")
    preset = config.preset or study.preset
    for arm in arms:
        settings_of(config, study, arm, "cpu" if preset == "auto" else preset)


def settings_of(config: Config, study: Study, arm: str, preset: str) -> TrainConfig:
    """The settings of an arm as the command asks for it."""
    steps, device, demonstration = config.steps, config.device, config.demonstration
    return config_of(study, arm, preset=preset, steps=steps, device=device, demonstration=demonstration)


def run(config: Config) -> int:
    """Makes the runs that are missing. Returns: 0, 1 where one failed, 128 + the signal that stopped them.

    Raises: UserError for what is in the way of a run, before the first starts, and for what cannot be written.
    """
    from stormfast.runs.opened import held
    from stormfast.runs.progress import log_line
    from stormfast.runs.study_report import write_report
    from stormfast.runs.study_runs import missing_runs
    from stormfast.runs.study_work import make_runs

    series = series_of(config)
    make_directory(series.out)
    with held(series.out, "--out"):
        missing = missing_runs(series)
        chosen = missing[: config.next]

        def show() -> None:
            print(write_report(series), flush=True)

        low = config.low_priority
        status = make_runs(series, chosen, config.parallel, show, low_priority=low) if chosen else 0
        if status or not chosen:  # else it has been shown after the last run
            show()
        left = len(missing_runs(series))
    log_line(f"{left} runs are missing; the same command goes on" if left else f"finished: {series.out}/table.md")
    return status


def series_of(config: Config) -> "Series":
    """All runs that the command asks for. Raises: UserError."""
    from stormfast.plan import choose_preset
    from stormfast.runs.study_results import current_commit
    from stormfast.runs.study_runs import Series

    study, head = read_study(config.name), current_commit()
    if config.replace_older and head == "unknown":
        raise UserError("--replace-older compares commits, but this is no git checkout; set STORMFAST_COMMIT")
    preset, _ = choose_preset(config.preset or study.preset, config.device)
    out = Path(config.out or Path("studies") / Path(config.name).stem)
    return Series(
        name=config.name,
        study=study,
        configs={arm: settings_of(config, study, arm, preset) for arm in choose("arms", config.arms, list(study.arms))},
        games=choose_games(config.games, study.games),
        seeds=config.seeds or study.seeds,
        episodes=config.episodes,
        out=out,
        results=Path(config.results) if config.results else out / "results",
        commit=head,
        replace_older=config.replace_older,
        steps=config.steps,
        demonstration=config.demonstration,
    )


def make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out must be a directory that can be written, but {path}: {error.strerror or error}; choose another"
        ) from None
