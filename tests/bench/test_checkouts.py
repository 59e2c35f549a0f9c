"""Temporary checkouts: what is in them, and that they are gone afterwards."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bench import checkouts
from stormfast.errors import UserError
from tests.bench.synthetic_checkout import git, make_checkout, write_work


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout; temporary files go to the test's directory."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return make_checkout(tmp_path / "checkout")


def assert_nothing_left(root: Path) -> None:
    assert len(checkouts.worktrees(root)) == 1
    assert not list(Path(tempfile.gettempdir()).iterdir())


def test_a_commit_and_the_working_tree_beside_each_other(root: Path) -> None:
    write_work(root, 0.009)
    (root / "new.txt").write_text("not added")
    before = git(root, "status", "--porcelain")
    with checkouts.temporary_directory(root) as temporary:
        old = checkouts.add_checkout(root, checkouts.commit_of_ref(root, "HEAD"), temporary / "old")
        new = checkouts.add_checkout(root, checkouts.commit_of_working_tree(root, temporary), temporary / "new")
        assert "spin(0.003)" in (old / "stormfast" / "work.py").read_text()
        assert "spin(0.009)" in (new / "stormfast" / "work.py").read_text()
        assert (new / "new.txt").exists() and not (old / "new.txt").exists()
    assert git(root, "status", "--porcelain") == before
    assert_nothing_left(root)


def test_they_are_removed_after_a_signal(root: Path) -> None:
    def stopped() -> None:
        with checkouts.temporary_directory(root) as temporary:
            checkouts.add_checkout(root, "HEAD", temporary / "old")
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit, match="143"):
        stopped()
    assert_nothing_left(root)


def test_those_of_a_killed_process_are_removed_by_the_next(root: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    abandoned = Path(tempfile.gettempdir()) / f"{checkouts.PREFIX}{ended.pid}-x"
    checkouts.add_checkout(root, "HEAD", abandoned / "old")
    other = Path(tempfile.gettempdir()) / "stormfast-of-somebody-else"
    other.mkdir()
    with checkouts.temporary_directory(root):
        assert not abandoned.exists()
        assert len(checkouts.worktrees(root)) == 1
    other.rmdir()
    assert_nothing_left(root)


def test_what_is_no_ref_or_no_checkout_is_an_error(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--against must be .*, got '--help'"):
        checkouts.commit_of_ref(root, "--help")
    with pytest.raises(UserError, match="not a git repository"), checkouts.temporary_directory(tmp_path):
        pass
