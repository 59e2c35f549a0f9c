"""Results on disk: the runs under some paths, and what the newest evaluation of each found. Imports no torch.

A path is a run, a directory above runs (such as a group of `stormfast train --seeds 5`), a pattern that the shell did
not expand, or a result file: that of `stormfast study`, or {"game", "preset", "protocol", "seeds": [{"seed",
"mean_return", "minutes"}]}.
"""

import glob
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stormfast.envs.games import canonical_name
from stormfast.errors import UserError
from stormfast.runs.directory import CONFIG, METRICS, load_config
from stormfast.runs.manifest import DIRECTORY, read_manifest
from stormfast.schema import flatten
from stormfast.settings import from_json

EVALUATION = re.compile(r"evaluation-(\d+)\.json")


@dataclass(frozen=True)
class Result:
    """What is known of a run. None is not known."""

    source: Path  # run directory, or result file
    game: str
    seed: int
    preset: str
    protocol: str
    mean_return: float | None = None  # of the newest evaluation; None: the run was not evaluated
    step: int | None = None  # of the evaluated checkpoint
    saved_step: int | None = None  # of the checkpoint that is there now
    steps: int | None = None  # of the whole run
    minutes: float | None = None  # of training, up to the evaluated step
    settings: Mapping[str, Any] = field(default_factory=dict)  # all of them, by dotted name

    @property
    def is_unfinished(self) -> bool:
        """Whether it was scored before its last step."""
        return self.step is not None and self.steps is not None and self.step < self.steps

    @property
    def is_outdated(self) -> bool:
        """Whether the run went on after its evaluation."""
        return self.step is not None and self.saved_step is not None and self.step < self.saved_step


def find_results(paths: Sequence[str]) -> list[Result]:
    """All runs under some paths, each once however often it is named, in the order of the paths.

    Raises: UserError for a path that leads to no run, and for files that are damaged.
    """
    sources = dict.fromkeys(source for path in paths for source in _sources(path))
    results: dict[Path, list[Result]] = {}
    for source in sources:
        if source.resolve() not in results:
            results[source.resolve()] = [read_run(source)] if source.is_dir() else read_result_file(source)
    return [result for of_source in results.values() for result in of_source]


def _sources(path: str) -> list[Path]:
    """The run directories and result files of one path."""
    if Path(path).exists():
        return _sources_at(Path(path))
    if not glob.has_magic(path):
        raise UserError(f"{path} does not exist; give runs, directories that hold runs, or result files")
    matches = [Path(match) for match in sorted(glob.glob(path, recursive=True))]
    found = [source for match in matches if match.is_dir() for source in _runs_at(match)]
    files = [match for match in matches if match.suffix == ".json" and match.is_file()]
    found += [file for file in files if not set(file.parents) & set(found)]  # ** also matches what runs are made of
    if not found:
        what = f"{len(matches)} paths and no run or result file" if matches else "nothing"
        raise UserError(f"'{path}' must match runs, directories that hold runs, or result files, but it matches {what}")
    return found


def _sources_at(path: Path) -> list[Path]:
    if path.is_dir():
        found = list(_runs_at(path))
        if not found:
            raise UserError(
                f"{path} must be a run or hold runs, but there is no {CONFIG} in it or below; `stormfast train` makes "
                "runs. Result files must be named themselves"
            )
        return found
    if path.suffix == ".log" and path.with_suffix("").is_dir():  # of a group: GROUP/* names runs and their logs
        return []
    return [path]


def _runs_at(path: Path) -> Iterator[Path]:
    """A directory that is a run, or the runs below it."""
    if (path / CONFIG).exists():
        yield path
    else:
        yield from sorted(config.parent for config in path.rglob(CONFIG))


# --- runs ------------------------------------------------------------------------------------------------------------


def read_run(run_dir: Path) -> Result:
    """Raises: UserError for a directory that is no run, and for files that are damaged."""
    config = load_config(run_dir)
    step, mean = _newest_evaluation(run_dir)
    return Result(
        source=run_dir,
        game=canonical_name(config.game),
        seed=config.seed,
        preset=config.preset,
        protocol=config.protocol,
        mean_return=mean,
        step=step,
        saved_step=_saved_step(run_dir),
        steps=config.steps,
        minutes=None if step is None else _minutes(run_dir / METRICS, step),
        settings=flatten(config),
    )


def _newest_evaluation(run_dir: Path) -> tuple[int | None, float | None]:
    """(step, mean return) of the evaluation of the highest step; (None, None) where the agent was not evaluated."""
    steps = [int(match[1]) for path in run_dir.iterdir() if (match := EVALUATION.fullmatch(path.name))]
    if not steps:
        return None, None
    path = run_dir / f"evaluation-{max(steps)}.json"
    document = _read_json(path)
    try:
        return max(steps), _finite(document["return"]["mean"])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} must hold the mean return of an evaluation, but it does not; remove it, and write it anew with "
            f"`stormfast evaluate {run_dir}`"
        ) from None


def _saved_step(run_dir: Path) -> int | None:
    try:
        return read_manifest(run_dir / DIRECTORY).step
    except UserError:  # an evaluation can be read without the checkpoint that it is of
        return None


def _minutes(path: Path, step: int) -> float | None:
    """Minutes of training up to a step, by metrics.jsonl; None where it does not say."""
    seconds = None
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for line in text.split("\n")[:-1]:  # what follows the last newline is nothing, or torn
            entry = json.loads(line)
            if entry["step"] <= step:
                seconds = _finite(entry["seconds"])
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} must hold a JSON object with step and seconds a line, but it does not; repair or remove it"
        ) from None
    return None if seconds is None else seconds / 60


# --- result files ----------------------------------------------------------------------------------------------------


def read_result_file(path: Path) -> list[Result]:
    """The runs of a result file of either form. Raises: UserError for any other file."""
    document = _read_json(path)
    try:
        read, entries = (_of_learning, document["runs"]) if "runs" in document else (_of_seeds, document["seeds"])
        if not entries:
            raise ValueError("it has none")
        return [read(path, document, entry) for entry in entries]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{path} must be a result file, with the game, the preset, and the runs or seeds, but: {what}; give runs, "
            "directories that hold runs, or result files"
        ) from None


def _of_learning(path: Path, document: dict[str, Any], run: dict[str, Any]) -> Result:
    config, step = run["config"], _whole(run["steps"])
    return Result(
        source=path,
        game=canonical_name(document["game"]),
        seed=_whole(run["seed"]),
        preset=str(document["preset"]),
        protocol=str(config["protocol"]),
        mean_return=_finite(run["agent"]["mean"]),
        step=step,
        saved_step=step,
        steps=_whole(config["steps"]),
        minutes=_finite(run["seconds"]) / 60,
        settings=_settings_of(config),
    )


def _settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """All settings, or none of a config of a version that this one cannot read in full."""
    try:
        return flatten(from_json(json.dumps(config | {"run_dir": None})))
    except UserError:
        return {}


def _of_seeds(path: Path, document: dict[str, Any], entry: dict[str, Any]) -> Result:
    minutes = entry.get("minutes")
    return Result(
        source=path,
        game=canonical_name(document["game"]),
        seed=_whole(entry["seed"]),
        preset=str(document["preset"]),
        protocol=str(document["protocol"]),
        mean_return=_finite(entry["mean_return"]),
        minutes=None if minutes is None else _finite(minutes),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} must be a file of JSON, but it is not; give runs or result files") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(document).__name__}; give runs or result files")
    return document


def _finite(value: Any) -> float:
    """Raises: TypeError, ValueError for anything but a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"expected a number, got {value!r:.40}")
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value}")
    return float(value)


def _whole(value: Any) -> int:
    """Raises: TypeError for anything but an integer."""
    if type(value) is not int:
        raise TypeError(f"expected an integer, got {value!r:.40}")
    return value
