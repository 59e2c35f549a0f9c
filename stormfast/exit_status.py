"""How a program of this project ends: bad input is one line on stderr and status 2."""

import os
import sys
from collections.abc import Callable

from stormfast.errors import UserError


def exit_status(name: str, call: Callable[[], int]) -> int:
    """What the call returns; 2 for a UserError and 130 for Ctrl-C, each with one line that begins with the name.

    141 where the reader of stdout left, as in `stormfast games | head -1`, and 2 where stdout cannot be written.
    """
    try:
        if sys.stdout is None:
            raise UserError("standard output is closed; leave it open, or send it to a file")
        status = call()
        sys.stdout.flush()
    except UserError as error:
        return _fail(name, error)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _discard_stdout()
        return 141
    except OSError as error:
        if _stdout_works():
            raise
        _discard_stdout()
        return _fail(name, f"standard output cannot be written: {error.strerror or error}; send it elsewhere")
    return status


def _fail(name: str, error: object) -> int:
    """Prints an error in one line, whatever line breaks the names in it have. Returns the exit status."""
    if sys.stderr is not None:  # print would take stdout instead
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _stdout_works() -> bool:
    """False where it was stdout that failed: it then fails again."""
    try:
        print(flush=True)
    except OSError:
        return False
    return True


def _discard_stdout() -> None:
    """What is still to be written goes nowhere: the interpreter flushes once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
