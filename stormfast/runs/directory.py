"""What lies in a run directory, and files that are written whole or not at all.

A run is a directory with a config.json. Everything else in it belongs to the module that writes it.
"""

import dataclasses
import os
from pathlib import Path

from stormfast.errors import UserError
from stormfast.runs.manifest import DIRECTORY, MANIFEST
from stormfast.settings import TrainConfig, from_json

CONFIG = "config.json"
PLAN = "plan.json"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
DREAMS = "dreams"
RUNS = Path("runs")


def has_checkpoint(path: Path) -> bool:
    """Whether a run has saved a checkpoint, be it damaged since."""
    return (path / DIRECTORY / MANIFEST).exists() or any((path / DIRECTORY).glob("state-*"))


def load_config(run_dir: Path) -> TrainConfig:
    """The config saved in a run directory, its run_dir set to where the run is now.

    Raises: UserError for a directory that is missing or no run, and for a config.json that is not what was saved.
    """
    path = Path(run_dir) / CONFIG
    try:
        _check_is_run(path.parent)
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        config = from_json(text.decode())
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return dataclasses.replace(config, run_dir=str(path.parent))


def _check_is_run(path: Path) -> None:
    """Raises: UserError where there is no run; OSError for a name that no file can have."""
    if not path.exists():
        raise UserError(f"Run directory {path} does not exist.{_hint()}")
    if not path.is_dir():
        raise UserError(f"{path} is a file, not a run directory.{_hint()}")
    if not (path / CONFIG).exists():
        raise UserError(f"{path} is not a run: it holds no {CONFIG}.{_hint()}")


def newest_run() -> Path | None:
    """The run under runs/ that was started last, if there is one."""
    configs = sorted(RUNS.glob(f"*/*/{CONFIG}"), key=lambda path: path.stat().st_mtime)
    return configs[-1].parent if configs else None


def _hint() -> str:
    newest = newest_run()
    return f" The newest run is {newest}." if newest else " `stormfast train` makes one."


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that a reader, or a crash at any moment, finds the old content or the new, never a part.

    One writer at a time: the temporary file beside the target has one name, so that an interrupted write leaves no
    litter behind the next. Raises: OSError as the file system gives it; the old content then stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable: a rename is on disk only after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
