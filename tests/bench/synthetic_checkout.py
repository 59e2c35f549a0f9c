"""A small checkout with a history, whose benches take a few milliseconds of processor time: what comparisons are tested on."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORK = """
import time

def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass

def encode():
    spin({encode})

def decode():
    spin(0.003)
"""
CONFTEST = """
import itertools

import pytest

from bench.comparing.turns import join


def pytest_addoption(parser):
    parser.addoption("--device")
    parser.addoption("--rounds", type=int, default=15)


@pytest.fixture
def time_rounds(benchmark, request):
    def run(call):
        turns, rounds = join(), itertools.count()

        def take_turn():
            if turns is not None:
                turns.wait(request.node.name, request.session.items.index(request.node), next(rounds))

        benchmark.pedantic(call, setup=take_turn, rounds=request.config.getoption("--rounds"), warmup_rounds=1)
        benchmark.extra_info.update(copy_bytes_per_second=2e9)

    return run
"""
BENCH = """
import pytest

from stormfast import work


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_one(name, time_rounds):
    time_rounds(getattr(work, name))


def test_both(time_rounds):
    time_rounds(lambda: (work.encode(), work.decode()))
"""


def write_work(root: Path, encode: float = 0.004, more: str = "") -> None:
    (root / "stormfast" / "work.py").write_text(WORK.format(encode=encode) + more)


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=someone", "-c", "user.email=someone@example.org", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout


def make_checkout(root: Path) -> Path:
    """A checkout with one commit. Its benches: encode, 4 ms; decode, 3 ms; both."""
    for name in ("bench/comparing", "stormfast", "kernels/stormfast_kernels"):
        (root / name).mkdir(parents=True)
    for name in ("stormfast", "kernels/stormfast_kernels"):
        (root / name / "__init__.py").touch()
    write_work(root)
    (root / "bench" / "conftest.py").write_text(CONFTEST)
    (root / "bench" / "bench_work.py").write_text(BENCH)
    shutil.copy(ROOT / "bench" / "comparing" / "turns.py", root / "bench" / "comparing")
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copy(ROOT / "stormfast" / "errors.py", root / "stormfast")
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "all")
    return root
