"""Run directories: made, refused, read; and files that are written whole or not at all.

A run is a directory with a config.json. Everything else in it belongs to the module that writes it. A run that ended
before its first checkpoint has nothing to go on from, so a new one may begin in its place.
"""

import contextlib
import dataclasses
import fcntl
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from stormfast.envs.games import canonical_name, find
from stormfast.errors import UserError
from stormfast.runs.manifest import DIRECTORY, MANIFEST
from stormfast.schema import to_json
from stormfast.settings import TrainConfig, from_json

CONFIG = "config.json"
PLAN = "plan.json"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
RUNS = Path("runs")


def create(config: TrainConfig, say: Callable[[str], None] = lambda line: None) -> Path:
    """Makes the run directory of a config and writes config.json into it; on a resume, rewrites config.json.

    Removes what a run left there that ended before its first checkpoint (unless config.resume).

    Args: say: gets a line where that is so.
    Returns: config.run_dir, or a new runs/GAME/DATE-TIME.
    Raises: UserError for a directory that holds a checkpoint (unless config.resume), a run that another process trains,
        or anything else, or cannot be written.
    """
    path = Path(config.run_dir) if config.run_dir else None
    try:
        if path is None:
            path = make_default(RUNS / find(config.game).slug)
        else:
            if config.resume:
                load_config(path)
            else:
                check_free(path)
                if (path / CONFIG).exists():
                    _clear(path)
                    say(f"{path} holds a run that ended before its first checkpoint: starting anew there")
            path.mkdir(parents=True, exist_ok=True)
        saved = dataclasses.replace(config, game=canonical_name(config.game), run_dir=str(path), resume=False)
        write_whole(path / CONFIG, to_json(saved).encode())
    except OSError as error:
        raise UserError(
            f"--run-dir must be a directory that can be written, but {path or RUNS}: {error.strerror or error}; "
            "choose another"
        ) from None
    return path


def make_default(parent: Path) -> Path:
    """Makes parent/DATE-TIME, a directory nobody else has. Raises: OSError as the file system gives it."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for count in itertools.count(1):
        path = parent / (stamp if count == 1 else f"{stamp}-{count}")  # several may start in one second
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if not path.exists():  # a file in place of a parent directory: counting on would not help
                raise
        else:
            return path
    raise AssertionError("itertools.count ends never")


def check_free(path: Path) -> None:
    """Raises UserError when a directory is in the way of a new run."""
    if path.exists() and not path.is_dir():
        raise UserError(f"--run-dir must be a directory, but {path} is a file; choose another")
    elif (path / CONFIG).exists():
        _refuse_run(path)
    elif path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise UserError(f"--run-dir must be new or empty, but {path} holds other files; choose another")


def _refuse_run(path: Path) -> None:
    """Raises UserError unless the run in a directory ended before its first checkpoint, and nothing else is there."""
    if has_checkpoint(path):
        raise UserError(f"{path} already holds a run. Add --resume to go on with it, or choose another --run-dir.")
    written = {CONFIG, PLAN, METRICS, TENSORBOARD, DIRECTORY}
    others = sorted(name for name in os.listdir(path) if name not in written and not name.startswith("."))
    if others:
        raise UserError(
            f"{path} holds a run without a checkpoint, and other files, such as {others[0]}; move them away to start "
            "anew there, or choose another --run-dir"
        )
    with held(path):  # else another process trains it
        pass


def has_checkpoint(path: Path) -> bool:
    """Whether a run has saved a checkpoint, be it damaged since."""
    return (path / DIRECTORY / MANIFEST).exists() or any((path / DIRECTORY).glob("state-*"))


def _clear(path: Path) -> None:
    """Removes what a run without a checkpoint wrote."""
    for name in (METRICS, PLAN, CONFIG):
        (path / name).unlink(missing_ok=True)
    for name in (TENSORBOARD, DIRECTORY):
        if (path / name).exists():
            shutil.rmtree(path / name)


def discard_unused(path: Path) -> None:
    """Removes a run directory that holds nothing but its config.json and plan.json: the run ended before it began."""
    files = set(os.listdir(path))
    if CONFIG in files and files <= {CONFIG, PLAN}:
        with contextlib.suppress(UserError), held(path):  # it may be another process's by now
            for name in files:
                (path / name).unlink()
            path.rmdir()


@contextlib.contextmanager
def held(path: Path, option: str = "--run-dir") -> Iterator[None]:
    """While the context is open, no other process may train in a directory: two would mix their files.

    Args: option: by which another directory can be chosen.
    Raises: UserError where another one does.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{path} is in use: another process trains there; wait until it has ended, or choose another {option}"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


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
