"""Throw-away copies of a checkout: its working tree as it stands, and any commit of its history with the same benches.

What measures must be one and the same: a commit's tree gets bench/ and pyproject.toml, which holds pytest's settings, of the
working tree. Copies also keep what is measured as it was when the measuring began, whatever is edited meanwhile.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.comparing.scratch import is_abandoned, uninterrupted
from stormfast.errors import UserError

RULER = ("bench", "pyproject.toml")
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".benchmarks", "results"
)
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
        raise UserError(
            f"--against must be a branch, tag or commit of this checkout, got {ref!r}; `git log --oneline` lists commits"
        ) from None


def snapshot(root: Path, into: Path) -> Path:
    """Copies a working tree, changes and untracked files included, without its history, results and what tools leave behind.

    Raises: UserError for the first file that cannot be copied: a named pipe, one that may not be read, one that the disk has no space for.
    """
    try:
        shutil.copytree(root, into, ignore=LEFT_OUT, symlinks=True)
    except shutil.Error as error:
        file, _, why = error.args[0][0]
        raise UserError(
            f"{file} cannot be copied to {tempfile.gettempdir()}: {why}; remove it, or set TMPDIR to another directory"
        ) from None
    return into


@contextlib.contextmanager
def worktree(root: Path, commit: str, into: Path, ruler: Path) -> Iterator[Path]:
    """A commit checked out into a new directory, with the benches of the tree `ruler`. It is gone afterwards, from git's list too.

    So are those of comparisons that were killed, before. Raises: UserError where git cannot.
    """
    for each in worktrees(root):
        if is_abandoned(each.parent):
            remove_worktree(root, each)
    try:
        git(root, "worktree", "add", "--detach", "--force", str(into), commit)
        take_ruler(ruler, into)
        yield into
    finally:
        with uninterrupted():
            remove_worktree(root, into)


def worktrees(root: Path) -> list[Path]:
    lines = git(root, "worktree", "list", "--porcelain").splitlines()
    return [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")]


def remove_worktree(root: Path, path: Path) -> None:
    """Removes one, whole or half made, and its entry in git's list; no other entry, whose directory may only be away."""
    shutil.rmtree(path, ignore_errors=True)
    if path.resolve() in worktrees(root):
        git(root, "worktree", "remove", "--force", "--force", str(path))  # twice: it is locked while it is made


def take_ruler(ruler: Path, tree: Path) -> None:
    """Replaces the benches of a tree with those of another."""
    for name in RULER:
        if (tree / name).is_dir():
            shutil.rmtree(tree / name)
        if (ruler / name).is_dir():
            snapshot(ruler / name, tree / name)
        else:
            shutil.copy2(ruler / name, tree / name)


def environment(tree: Path, commit: str, scratch: Path) -> Mapping[str, str]:
    """This process's environment, with a tree's packages before any that are installed, and its commit, which no .git tells there.

    Temporary files go to `scratch`, because a worker is ended at once; what torch.compile made stays where it is kept. The user's
    options for pytest are not for these.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # here: it takes a second

    path = os.pathsep.join([str(tree), str(tree / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"PYTHONPATH": path, "STORMFAST_COMMIT": commit[:SHORT], "TMPDIR": str(scratch)}
    users = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    return {"TORCHINDUCTOR_CACHE_DIR": default_cache_dir()} | users | own
