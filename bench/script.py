"""What scripts have in common: arguments, errors of one line, files written whole, provenance."""

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from stormfast.errors import UserError
from stormfast.exit_status import exit_status
from stormfast.runs.directory import write_whole
from stormfast.runs.provenance import commit

ROOT = Path(__file__).resolve().parents[1]
status_of = exit_status  # how a script ends: one line on stderr for bad input


class Parser(argparse.ArgumentParser):
    """--help is the script's docstring; a mistake is a UserError."""

    def __init__(self, docstring: str | None) -> None:
        about, _, more = (docstring or "").partition("\n")
        super().__init__(
            description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        """argparse prints its usage, many lines, and exits."""
        raise UserError(f"{message}; `{self.prog} --help` lists all arguments")


def check_writable(option: str, path: Path, *endings: str, make: bool = False) -> None:
    """Refuses now what could not be written after the work.

    Args:
        endings: of the name, one of them; any where there are none.
        make: its directory, too.
    Raises: UserError.
    """
    if endings and not path.name.endswith(endings):
        raise UserError(f"{option} must end in {' or '.join(endings)}, got {path}")
    try:
        if path.exists() and not path.is_file():  # a device would be replaced by the file
            raise UserError(f"{option} must be a file, but {path} is a directory or a device; name another")
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):  # access rights do not tell: root has them everywhere
            pass
    except OSError as error:
        raise UserError(
            f"{option} must lie in a directory that can be written, got {path}: {error.strerror or error}; name another"
        ) from None


def written(path: Path, data: bytes) -> None:
    """Raises: UserError where the file cannot be written."""
    try:
        write_whole(path, data)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}; name a file in a directory that can be"
        ) from None


def provenance(script: str, words: Sequence[str] | None) -> dict[str, Any]:
    """Commit, date and command of a result.

    Args:
        script: the command that runs it, as from the root of the repository.
        words: its arguments; None for those of this process.
    """
    head, dirty = commit()
    command = shlex.join([*script.split(), *(sys.argv[1:] if words is None else words)])
    return {"commit": head, "dirty": dirty, "date": time.strftime("%Y-%m-%d"), "command": command}
