"""The directory of a run that begins or goes on: made, refused, and held while it is trained in.

A run that ended before its first checkpoint has nothing to go on from, so a new one may begin in its place.
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
from stormfast.runs.directory import (
    CONFIG,
    DREAMS,
    METRICS,
    PLAN,
    RUNS,
    TENSORBOARD,
    has_checkpoint,
    load_config,
    write_whole,
)
from stormfast.runs.manifest import DIRECTORY, MANIFEST, read_manifest
from stormfast.schema import to_json
from stormfast.settings import TrainConfig


@contextlib.contextmanager
def opened(config: TrainConfig, say: Callable[[str], None] = lambda line: None) -> Iterator[Path]:
    """The directory of a run, with its config.json; held while the context is open, so that nobody else trains there.

    Removes what a run left there that ended before its first checkpoint (unless config.resume). A new run that raises
    before it has written anything leaves no directory: the same call can be made again once what is wrong is put right.

    Args: say: gets a line where a run without a checkpoint is replaced.
    Yields: config.run_dir, or a new runs/GAME/DATE-TIME.
    Raises: UserError for a directory that holds a checkpoint (unless config.resume), a run that another process trains,
        or anything else, or cannot be written. What was there is then as it was.
    """
    with contextlib.ExitStack() as stack:
        with told_as_run_dir(config.run_dir or RUNS):
            path = _make(config)
            stack.enter_context(held(path))
            _begin(config, path, say)
        try:
            yield path
        except BaseException:
            if not config.resume:
                _discard_unused(path)
            raise


@contextlib.contextmanager
def told_as_run_dir(path: Path | str) -> Iterator[None]:
    """An OSError of a run directory that is looked at or made becomes a UserError of one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--run-dir must be a directory that can be written, but {path}: {error.strerror or error}; choose another"
        ) from None


def _make(config: TrainConfig) -> Path:
    """The directory of a run, made unless it is there."""
    if not config.run_dir:
        return make_default(RUNS / find(config.game).slug)
    path = Path(config.run_dir)
    if config.resume:
        load_config(path)
    elif path.exists() and not path.is_dir():
        raise UserError(f"--run-dir must be a directory, but {path} is a file; choose another")
    else:
        path.mkdir(parents=True, exist_ok=True)
    return path


def _begin(config: TrainConfig, path: Path, say: Callable[[str], None]) -> None:
    """Writes config.json into a directory that is held, once nothing is in its way."""
    if not config.resume:
        _check_free(path, config.game)
        if (path / CONFIG).exists():
            _clear(path)
            say(f"{path} holds a run that ended before its first checkpoint: starting anew there")
    saved = dataclasses.replace(config, game=canonical_name(config.game), run_dir=str(path), resume=False)
    write_whole(path / CONFIG, to_json(saved).encode())


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


def check_free(path: Path, game: str) -> None:
    """Raises UserError when a directory is in the way of a new run of a game, or another process trains there."""
    if path.is_dir():
        with held(path):
            _check_free(path, game)
    elif path.exists():
        raise UserError(f"--run-dir must be a directory, but {path} is a file; choose another")


def _check_free(path: Path, game: str) -> None:
    """Of a directory that is held."""
    if (path / CONFIG).exists():
        _refuse_run(path, game)
    elif any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise UserError(f"--run-dir must be new or empty, but {path} holds other files; choose another")


def _refuse_run(path: Path, game: str) -> None:
    """Raises UserError unless the run in a directory is of this game and ended before its first checkpoint, and nothing
    else is there.
    """
    if has_checkpoint(path):
        if not (path / DIRECTORY / MANIFEST).exists():
            read_manifest(path / DIRECTORY)  # says what to do: --resume cannot go on with it
        raise UserError(f"{path} already holds a run. Add --resume to go on with it, or choose another --run-dir.")
    written = {CONFIG, PLAN, METRICS, TENSORBOARD, DREAMS, DIRECTORY}
    others = sorted(name for name in os.listdir(path) if name not in written and not name.startswith("."))
    if others:
        raise UserError(
            f"{path} holds a run without a checkpoint, and other files, such as {others[0]}; move them away to start "
            "anew there, or choose another --run-dir"
        )
    instead = "choose another --run-dir, or delete that run"
    try:
        saved = load_config(path).game
    except UserError as error:
        raise UserError(f"{path} holds a run whose settings cannot be read ({error}); {instead}") from None
    if saved != canonical_name(game):
        raise UserError(f"{path} holds a run of {saved} without a checkpoint, and this one is of {game}; {instead}")


def _clear(path: Path) -> None:
    """Removes what a run without a checkpoint wrote, but for config.json: after a kill in between it is still a run."""
    for name in (METRICS, PLAN):
        (path / name).unlink(missing_ok=True)
    for name in (TENSORBOARD, DREAMS, DIRECTORY):
        if (path / name).exists():
            shutil.rmtree(path / name)


def _discard_unused(path: Path) -> None:
    """Removes a run directory that holds nothing but its config.json and plan.json: the run ended before it began."""
    with contextlib.suppress(OSError):  # what ended the run is the error to report
        files = set(os.listdir(path))
        if CONFIG in files and files <= {CONFIG, PLAN}:
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
        if not _lock(descriptor) or not _is_still(path, descriptor):
            raise UserError(
                f"{path} is in use: another process trains there; wait until it has ended, or choose another {option}"
            )
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether no other process has the lock; on a file system without locks nobody knows, and all may go on."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether a path names the directory that was opened: another process may have discarded it before the lock."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
