"""For all tests: Triton kernels run interpreted where there is no CUDA device, and gpu tests are skipped there."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # triton reads it once, when it is imported

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as a shell starts what it runs in the background; what is tested here must get it
    signal.signal(signal.SIGINT, signal.default_int_handler)


INSTRUMENTS = {"bench", "profiling"}  # folders of tests of what measures, not of what is measured


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of instruments are marked, and run after those of the product."""
    for item in items:
        if INSTRUMENTS & set(item.path.relative_to(ROOT).parts[1:2]):
            item.add_marker(pytest.mark.instruments)
    items.sort(key=lambda item: item.get_closest_marker("instruments") is not None)  # stable
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture
def command() -> list[str]:
    """The start of a stormfast command line, for subprocess: works with and without an installed stormfast, in any
    directory.
    """
    paths = [str(ROOT), str(ROOT / "kernels")]
    code = f"import sys; sys.path[:0] = {paths!r}; from stormfast.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code]
