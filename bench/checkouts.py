"""Temporary checkouts of this repository: any commit, or the working tree as it stands.

They lie in one temporary directory, which is removed whatever signal ends the process, except SIGKILL.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stormfast.errors import UserError
from stormfast.runs.signals import SignalWatch


@contextlib.contextmanager
def temporary_directory(root: Path) -> Iterator[Path]:
    """For checkouts of the repository `root`. Raises: UserError where it is none."""
    worktrees(root)  # fails where it is none

    def stop(count: int) -> None:
        raise KeyboardInterrupt if watch.first == signal.SIGINT else SystemExit(128 + watch.first)

    with SignalWatch(stop) as watch:
        path = Path(tempfile.mkdtemp(prefix="stormfast-compare-")).resolve()
        try:
            yield path
        finally:
            watch.on_signal = lambda count: None  # removing is not interrupted
            remove(root, path)


def git(root: Path, *arguments: str, **environment: str) -> str:
    """What a git command prints. Raises: UserError with the last line of its error."""
    if not shutil.which("git"):
        raise UserError("comparing needs git; install it")
    command, environment = ["git", *arguments], {**os.environ, **environment}
    done = subprocess.run(  # in a process group of its own: Ctrl-C does not reach it
        command, cwd=root, env=environment, capture_output=True, text=True, check=False, process_group=0
    )
    if done.returncode:
        error = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise UserError(f"`git {' '.join(arguments[:2])}` failed in {root}: {error[-1]}")
    return done.stdout.strip()


def commit_of_ref(root: Path, ref: str) -> str:
    """The full hash. Raises: UserError."""
    try:
        return git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    except UserError:
        wanted = "a branch, tag or commit of this checkout"
        raise UserError(f"--against must be {wanted}, got {ref!r}; `git log --oneline` lists commits") from None


def commit_of_working_tree(root: Path, temporary: Path) -> str:
    """A commit of all files that git does not ignore, as they stand; branches and the index are left alone."""
    index = {"GIT_INDEX_FILE": str(temporary / "index")}
    git(root, "read-tree", "HEAD", **index)
    git(root, "add", "--all", **index)
    author = ("-c", "user.name=stormfast", "-c", "user.email=stormfast@localhost")
    return git(root, *author, "commit-tree", git(root, "write-tree", **index), "-p", "HEAD", "-m", "the working tree")


def add_checkout(root: Path, commit: str, path: Path) -> Path:
    """Checks a commit out into a new directory below temporary_directory."""
    git(root, "worktree", "add", "--detach", "--force", str(path), commit)
    return path


def worktrees(root: Path) -> list[Path]:
    lines = git(root, "worktree", "list", "--porcelain").splitlines()
    return [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")]


def remove(root: Path, path: Path) -> None:
    """Removes a temporary directory, and its checkouts from git's list."""
    shutil.rmtree(path, ignore_errors=True)
    for each in worktrees(root):
        if path in each.parents:
            git(root, "worktree", "remove", "--force", "--force", str(each))  # twice: it is locked while it is made
