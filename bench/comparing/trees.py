"""Throw-away copies of a checkout: its working tree as it stands, and any commit of its history with the same benches.

What measures must be one and the same: a commit's tree gets bench/ and pyproject.toml, which holds pytest's settings, of the
working tree. Copies also keep what is measured as it was when the measuring began, whatever is edited meanwhile.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from stormfast.errors import UserError

RULER = ("bench", "pyproject.toml")
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".benchmarks", "results")
SHORT = 12  # letters of a commit


def git(root: Path, *arguments: str) -> str:
    """What a git command prints. Raises: UserError, with the last line that it said, where it fails."""
    if not shutil.which("git"):
        raise UserError("git is needed, and is not installed; install it")
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise UserError(f"git {' '.join(arguments[:2])} failed: {said[-1]}")
    return done.stdout.strip()


def resolve(root: Path, ref: str) -> str:
    """The commit that a ref names, in full. Raises: UserError."""
    try:
        return git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    except UserError:
        git(root, "rev-parse", "--git-dir")  # says so where this is no checkout
        raise UserError(f"--against must be a branch, tag or commit of this checkout, got {ref!r}; `git log --oneline` lists commits") from None


def snapshot(root: Path, into: Path) -> Path:
    """Copies a working tree, changes and untracked files included, without its history, results and what tools leave behind."""
    shutil.copytree(root, into, ignore=LEFT_OUT, symlinks=True)
    return into


@contextlib.contextmanager
def worktree(root: Path, commit: str, into: Path, ruler: Path) -> Iterator[Path]:
    """A commit checked out into a new directory, with the benches of the tree `ruler`. It is gone afterwards, from git's list too.

    Raises: UserError where git cannot.
    """
    try:
        git(root, "worktree", "add", "--detach", "--force", str(into), commit)
        take_ruler(ruler, into)
        yield into
    finally:
        shutil.rmtree(into, ignore_errors=True)
        git(root, "worktree", "prune")


def take_ruler(ruler: Path, tree: Path) -> None:
    """Replaces the benches of a tree with those of another."""
    for name in RULER:
        if (tree / name).is_dir():
            shutil.rmtree(tree / name)
        if (ruler / name).is_dir():
            shutil.copytree(ruler / name, tree / name, ignore=LEFT_OUT)
        else:
            shutil.copy2(ruler / name, tree / name)


def environment(tree: Path, commit: str) -> Mapping[str, str]:
    """This process's environment, with a tree's packages before any that are installed, and its commit, which no .git tells there."""
    path = os.pathsep.join([str(tree), str(tree / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "STORMFAST_COMMIT": commit[:SHORT]}
