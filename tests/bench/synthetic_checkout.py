"""A small checkout with one commit, whose benches take milliseconds: what comparing is tested on."""

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
    spin(0.002)
"""
CONFTEST = """
import pytest


def pytest_addoption(parser):
    parser.addoption("--device")
    parser.addoption("--rounds", type=int, default=15)


@pytest.fixture
def time_rounds(benchmark, request):
    def run(call):
        benchmark.pedantic(call, rounds=request.config.getoption("--rounds"), warmup_rounds=1)
        benchmark.extra_info.update(bench=request.node.name, calls=1)

    return run


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.update(device="synthetic")
"""
BENCH = """
import pytest

from stormfast import work


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_one(name, time_rounds):
    time_rounds(getattr(work, name))
"""


def write_work(root: Path, encode: float = 0.003) -> None:
    """Args: encode: seconds that it takes."""
    (root / "stormfast" / "work.py").write_text(WORK.format(encode=encode))


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=someone", "-c", "user.email=someone@example.org", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def make_checkout(root: Path) -> Path:
    """Its benches: test_one[encode], 3 ms; test_one[decode], 2 ms."""
    for name in ("bench", "stormfast", "kernels"):
        (root / name).mkdir(parents=True)
    (root / "stormfast" / "__init__.py").touch()
    write_work(root)
    (root / "bench" / "conftest.py").write_text(CONFTEST)
    (root / "bench" / "bench_work.py").write_text(BENCH)
    (root / ".gitignore").write_text("__pycache__\n")
    shutil.copy(ROOT / "pyproject.toml", root)
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "all")
    return root
