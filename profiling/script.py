"""What the scripts here have in common: mistakes are one line on stderr and status 2, files are written whole, a reader may leave."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from stormfast.errors import UserError
from stormfast.run_dir import write_whole


class Parser(argparse.ArgumentParser):
    """--help is the script's docstring; a mistake is a UserError."""

    def __init__(self, docstring: str | None) -> None:
        about, _, more = (docstring or "").partition("\n")
        super().__init__(description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """argparse prints its usage, many lines, and exits."""
        raise UserError(f"{message}; `{self.prog} --help` lists all arguments")


def status_of(name: str, call: Callable[[], int]) -> int:
    """What the call returns; 2 for a UserError, told in one line; 141 where the reader of stdout left, as in `SCRIPT | head`."""
    try:
        status = call()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at exit
        return 141
    except UserError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return status


def written(path: Path, data: bytes) -> None:
    """Raises: UserError where the file cannot be written."""
    try:
        write_whole(path, data)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; name a file in a directory that can be") from None


def provenance(script: str, words: Sequence[str] | None) -> dict[str, Any]:
    """Commit, date and command of a result. words: the arguments, or None for those of this process. Loads torch."""
    from bench.devices import commit

    head, dirty = commit()
    command = shlex.join([f"profiling/{script}", *(sys.argv[1:] if words is None else words)])
    return {"commit": head, "dirty": dirty, "date": time.strftime("%Y-%m-%d"), "command": command}
