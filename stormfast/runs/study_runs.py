"""The runs of a study: which they are, which are missing, and how each begins or goes on.

OUT/ARM/GAME-seedK/             a run like any other, and GAME-seedK.log beside it
OUT/results/GAME-PRESET[-ARM].json
"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from stormfast.envs.games import find
from stormfast.errors import UserError
from stormfast.runs.command import flags
from stormfast.runs.directory import has_checkpoint, load_config
from stormfast.runs.launch import new_run
from stormfast.runs.manifest import DIRECTORY, read_manifest
from stormfast.runs.opened import check_free
from stormfast.runs.processes import Planned
from stormfast.runs.progress import log_line
from stormfast.runs.study_results import entry_of, read_result
from stormfast.settings import TrainConfig, check_resumable
from stormfast.study import Study, changed_settings

COMMITS = ".commits"  # in a run's directory: each commit that trained it, a line each; hidden, as train wants it empty


@dataclass(frozen=True)
class StudyRun:
    """One run of a study: an arm on a game with a seed."""

    arm: str
    config: TrainConfig  # with its game, seed and directory
    result: Path  # the file that it is written into

    @property
    def run_dir(self) -> Path:
        return Path(str(self.config.run_dir))

    @property
    def name(self) -> str:
        return f"{self.arm}/{self.run_dir.name}"


@dataclass(frozen=True)
class Series:
    """What all runs of a study have in common."""

    name: str  # as given: of a built-in study, or the path of a file
    study: Study
    configs: dict[str, TrainConfig]  # arm -> its settings
    games: tuple[str, ...]
    seeds: int
    episodes: int
    out: Path
    results: Path
    commit: str
    replace_older: bool = False
    steps: int | None = None  # as given, as is the next
    demonstration: str | None = None

    def runs(self) -> list[StudyRun]:
        """All of them: the first seed of every game and arm first, so that a table fills evenly."""
        return [
            self.run_of(arm, game, seed) for seed in range(self.seeds) for game in self.games for arm in self.configs
        ]

    def run_of(self, arm: str, game: str, seed: int) -> StudyRun:
        slug, config = find(game).slug, self.configs[arm]
        run_dir = self.out / arm / f"{slug}-seed{seed}"
        ending = f"-{arm}" if len(self.study.arms) > 1 else ""
        result = self.results / f"{slug}-{config.preset}{ending}.json"
        return StudyRun(arm, dataclasses.replace(config, game=game, seed=seed, run_dir=str(run_dir)), result)


# --- which runs are missing --------------------------------------------------------------------------------------


def missing_runs(series: Series) -> list[StudyRun]:
    """The runs without a result, in the order in which they are made.

    Raises: UserError where a result or a run that is there has other settings, unless it is to be replaced.
    """
    return [run for run in series.runs() if is_missing(series, run)]


def is_missing(series: Series, run: StudyRun) -> bool:
    entry = entry_of(read_result(run.result), run.config.seed)
    if entry is None:
        return True
    if series.replace_older and entry.get("commit") != series.commit:
        return True
    before, now = dict(entry.get("settings", {})), changed_settings(run.config)
    if before == now or series.replace_older:
        return before != now
    if before | {"steps": 0} == now | {"steps": 0} and before.get("steps", 0) < now["steps"]:
        return True  # it goes on
    name = next(name for name in {**before, **now} if before.get(name) != now.get(name))
    raise UserError(
        f"seed {run.config.seed} in {run.result} has {name} {before.get(name, 'of its preset')}, and "
        f"{now.get(name, 'that of its preset')} is asked for; choose another --out, or add --replace-older"
    )


def trained_step(run: StudyRun) -> int:
    """Environment steps of the run's last checkpoint; 0 where there is none. Raises: UserError for a damaged one."""
    return read_manifest(run.run_dir / DIRECTORY).step if has_checkpoint(run.run_dir) else 0


def is_trained(run: StudyRun) -> bool:
    return trained_step(run) >= run.config.steps


def training(run: StudyRun) -> Planned:
    """What begins a run, or goes on with it. Raises: UserError for a directory that holds another run."""
    path, config = run.run_dir, run.config
    fresh = dataclasses.replace(new_run(config, path.parent, config.game, config.seed), label=run.name)
    if not has_checkpoint(path):
        check_in_the_way(path, config.game)
        return fresh
    saved, wanted = load_config(path), dataclasses.replace(fresh.config, resume=True)
    step = trained_step(run)
    if step >= config.steps + config.num_envs:
        raise UserError(f"{path} has {step} steps already, more than {config.steps}; choose another --out")
    try:
        check_resumable(saved, wanted)
    except UserError as error:
        reason = str(error).partition(". ")[0]
        raise UserError(f"{path}: {reason}; choose another --out, or add --replace-older") from None
    words = flags(wanted, dataclasses.replace(saved, run_dir=None))
    return Planned(wanted, tuple(words), step, label=run.name)


def check_in_the_way(path: Path, game: str) -> None:
    """Raises: UserError where a directory holds other things than a run."""
    if path.exists():
        check_free(path, game)


def put_aside(series: Series, run: StudyRun) -> None:
    """Moves a run that is to be replaced beside the study: nothing is lost, and nobody counts it among its runs.

    One that goes on is left: a run of this commit, and one that another commit began and none has finished.
    """
    if not has_checkpoint(run.run_dir):
        return
    other = changed_settings(load_config(run.run_dir)) | {"steps": 0} != changed_settings(run.config) | {"steps": 0}
    if other or (is_trained(run) and commits_of(run)[-1] != series.commit):
        target = series.out.with_name(f"{series.out.name}-replaced") / run.arm
        target.mkdir(parents=True, exist_ok=True)
        target /= f"{run.run_dir.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        run.run_dir.rename(target)
        log_line(f"{run.name}: the run of commit {commits_of(run, target)[-1]} is now {target}")


def commits_of(run: StudyRun, run_dir: Path | None = None) -> list[str]:
    """The commits that trained a run, the last one last."""
    path = (run_dir or run.run_dir) / COMMITS
    return path.read_text().split() if path.exists() else ["unknown"]


def note_commit(run: StudyRun, commit: str) -> None:
    path = run.run_dir / COMMITS
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or commits_of(run)[-1] != commit:
        with open(path, "a") as file:
            file.write(f"{commit}\n")
