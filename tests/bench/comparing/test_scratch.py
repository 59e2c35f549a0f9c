"""The scratch directory and the worktree in it: gone whatever ends a comparison; what a killed one left goes too, and nothing else."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.comparing import scratch, trees
from bench.comparing.scratch import PREFIX, scratch_directory
from tests.bench.synthetic_checkout import git, make_checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "checkout")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Ctrl-C, heeded even where the tests run in the background of a shell."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, previous)


def hold(checkout: Path, ended_by: Callable[[], None]) -> None:
    """What a comparison with a ref holds, until it ends."""
    with (
        scratch_directory() as folder,
        trees.worktree(checkout, trees.resolve(checkout, "HEAD"), folder / "old", checkout),
    ):
        assert folder / "old" in trees.worktrees(checkout)
        ended_by()


@pytest.mark.parametrize("begins", ["by itself", "by Ctrl-C", "by SIGHUP"])
def test_a_clean_up_is_not_interrupted(
    begins: str, checkout: Path, temporary: Path, interrupt: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C before each step of it."""
    heard = []

    def interrupted(step: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            interrupt()
            heard.append(step.__name__)
            return step(*args, **kwargs)

        return run

    def end() -> None:
        monkeypatch.setattr(trees.shutil, "rmtree", interrupted(trees.shutil.rmtree))
        monkeypatch.setattr(trees.subprocess, "run", interrupted(trees.subprocess.run))
        try:
            if begins != "by itself":
                interrupt() if begins == "by Ctrl-C" else os.kill(os.getpid(), signal.SIGHUP)
        finally:  # where workers are ended
            if begins != "by itself":
                interrupt()
            heard.append("end")

    handlers = [signal.getsignal(number) for number in scratch.SIGNALS]
    try:
        hold(checkout, end)
        ended = "by itself"
    except KeyboardInterrupt:
        ended = "by Ctrl-C"
    except SystemExit as error:
        ended = {129: "by SIGHUP"}.get(error.code)
    monkeypatch.undo()
    assert ended == begins
    assert heard == ["end", "rmtree", "run", "run", "rmtree"]
    assert trees.worktrees(checkout) == [checkout]
    assert not list(temporary.iterdir())
    assert [signal.getsignal(number) for number in scratch.SIGNALS] == handlers


def test_what_is_ignored_stays_ignored(checkout: Path) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        hold(checkout, lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_what_a_killed_comparison_left_goes_with_the_next(checkout: Path, tmp_path: Path, temporary: Path) -> None:
    """Its directory and its worktree, half made as well; not those of a live one, nor the user's, whose folder is away."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    killed, half = temporary / f"{PREFIX}{ended.pid}-a", tmp_path / f"{PREFIX}{ended.pid}-b"
    kept = [
        temporary / f"{PREFIX}{os.getppid()}-a",
        temporary / f"{PREFIX}notes",
        temporary / f"stormfast-compare-elsewhere-{ended.pid}-a",
    ]
    users = tmp_path / "users"
    for each in (killed / "old", half / "old", *(folder / "old" for folder in kept), users):
        git(checkout, "worktree", "add", "--quiet", "--detach", str(each), "HEAD")
    git(checkout, "worktree", "lock", "--reason", "initializing", str(half / "old"))
    users.rename(tmp_path / "away")
    hold(checkout, lambda: None)
    assert sorted(trees.worktrees(checkout)) == sorted([checkout, users, *(folder / "old" for folder in kept)])
    assert sorted(temporary.iterdir()) == sorted(kept)
