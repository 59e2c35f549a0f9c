"""For all tests: Triton kernels run interpreted where there is no CUDA device, and gpu tests are skipped there."""

import os
import signal
import sys
from pathlib import Path

import pytest

if os.environ.pop("PYTEST_XDIST_WORKER", None):  # a pytest that a test starts is no worker: its benches are timed
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores; torch reads it when it is imported

import torch

ROOT = Path(__file__).parents[1]

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # triton reads it once, when it is imported

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as a shell starts what it runs in the background; what is tested here must get it
    signal.signal(signal.SIGINT, signal.default_int_handler)


INSTRUMENTS = {"bench", "measure", "profiling"}  # folders of tests of what measures, not of what is measured

# They take half a minute each, and begin first: no worker is left with one when the others have nothing to do.
LONGEST = {
    "tests/bench/test_benches.py",
    "tests/bench/test_counts.py",
    "tests/envs/test_ale_backend.py",
    "tests/kernels/test_ahead_of_time.py",
    "tests/measure/test_work.py",
    "tests/test_compile.py",
    "tests/test_loop.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of instruments are marked. First come the longest files, then the product, then other instruments."""
    for item in items:
        if INSTRUMENTS & set(item.path.relative_to(ROOT).parts[1:2]):
            item.add_marker(pytest.mark.instruments)
    items.sort(key=place)  # stable
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


def place(item: pytest.Item) -> tuple[bool, bool]:
    is_short = item.path.relative_to(ROOT).as_posix() not in LONGEST
    return is_short, item.get_closest_marker("instruments") is not None


@pytest.fixture
def command() -> list[str]:
    """The start of a stormfast command line, for subprocess: works with and without an installed stormfast, in any
    directory.
    """
    paths = [str(ROOT), str(ROOT / "kernels")]
    code = f"import sys; sys.path[:0] = {paths!r}; from stormfast.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code]
