"""A small checkout with one commit, whose benches take milliseconds: what comparing is tested on."""

import shutil
import subprocess
from pathlib import Path

from tests.conftest import ROOT

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
def pytest_addoption(parser):
    parser.addoption("--device")
    parser.addoption("--rounds", type=int)
"""
BENCH = """
import pytest

from stormfast import work


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_one(name, benchmark, pytestconfig):
    benchmark.pedantic(getattr(work, name), rounds=pytestconfig.getoption("--rounds"), warmup_rounds=1)
    benchmark.extra_info.update(bench=name, calls=1)
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
