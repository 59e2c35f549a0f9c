"""Which commit the running code is of, so that a result can say where it comes from."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from stormfast.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # of the checkout, where this is one
VARIABLE = "STORMFAST_COMMIT"  # names the commit where the tree came without its history


def commit() -> tuple[str, bool | None]:
    """The commit checked out, and whether files other than the results differ from it; ("unknown", None) where nothing
    says.

    A tree without a history of its own, as one that lies inside another repository, takes STORMFAST_COMMIT.
    Raises: UserError where that is no commit.
    """
    ours = shutil.which("git") and _git("rev-parse", "--show-toplevel") == str(ROOT)
    if ours and (head := _git("rev-parse", "--short=12", "HEAD")):
        return head, bool(_git("status", "--porcelain", "--", ":/", ":(top,exclude)bench/results"))
    named = os.environ.get(VARIABLE, "unknown")
    if not re.fullmatch(r"unknown|[0-9a-f]{7,40}(-dirty)?", named):
        raise UserError(f"{VARIABLE} must be a commit, 7 to 40 digits and letters a to f, got '{named}'")
    return named, None


def _git(*arguments: str) -> str:
    """Standard output, empty where it fails."""
    return subprocess.run(("git", *arguments), capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()
