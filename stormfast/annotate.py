"""Named ranges around the phases of a step, for profilers.

    with annotate.phase("world_model"):
        ...

STORMFAST_NVTX=1 in the environment emits them as NVTX ranges in the domain `stormfast`, which Nsight Systems and Nsight
Compute read; recorded_by() hands them to another tool. Without either, all of them are one object that does nothing,
and nvtx is not imported. Ranges stand around what the host launches, a graph's replay too; inside captured code they
would mark the capture alone.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from stormfast.errors import UserError

VARIABLE = "STORMFAST_NVTX"
DOMAIN = "stormfast"
Recorder = Callable[[str], AbstractContextManager[Any]]

NO_RANGE = contextlib.nullcontext()


def phase(name: str) -> AbstractContextManager[Any]:
    """A range of that name, to be entered at once. Raises: UserError in the first call, as from_environment()."""
    return NO_RANGE if _recorder is None else _recorder(name)


@contextlib.contextmanager
def recorded_by(recorder: Recorder | None) -> Iterator[None]:
    """Meanwhile ranges are what recorder(name) returns, as of torch.profiler.record_function; None for no ranges.

    For all threads.
    """
    global _recorder
    before, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = before


def from_environment() -> Recorder | None:
    """What STORMFAST_NVTX asks for; None for no ranges.

    Raises: UserError where it is neither unset nor 1, and as nvtx_ranges().
    """
    asked = os.environ.get(VARIABLE)
    if asked is None:
        return None
    if asked != "1":
        raise UserError(f"{VARIABLE} must be 1, or unset for no NVTX ranges, got '{asked}'")
    return nvtx_ranges()


def nvtx_ranges() -> Recorder:
    """Ranges of the domain `stormfast`. Raises: UserError where nvtx cannot be imported."""
    try:
        import nvtx
    except ImportError as error:
        raise UserError(
            f"NVTX ranges need the package nvtx, but {error}; `pip install nvtx`, or unset {VARIABLE}"
        ) from None
    return functools.cache(
        functools.partial(nvtx.annotate, domain=DOMAIN)
    )  # one object a name: it may be entered again, also inside itself


def _as_the_environment_asks(name: str) -> AbstractContextManager[Any]:
    """The recorder until the first range asks for one."""
    global _recorder
    _recorder = from_environment()
    return phase(name)


_recorder: Recorder | None = _as_the_environment_asks
