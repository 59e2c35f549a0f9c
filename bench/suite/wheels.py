"""Packages without a network: a folder of wheels, put where the suite's processes find them and nothing else does.

The folder holds one wheel of each package that the interpreter lacks. It may hold `atari-env.sh`, which is sourced by bash
with the folder of the installed packages as its argument; what it exports goes to every stage.
"""

import hashlib
import importlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from stormfast.errors import UserError

SCRIPT = "atari-env.sh"
SOURCE = '. "$1" "$2" >&2 && env -0'


def install(folder: Path, sites: Path) -> Path:
    """Installs all wheels of a folder under `sites`, once for the same wheels and interpreter. Returns: the site folder.

    Raises: UserError for a folder without wheels, and for wheels that do not install.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise UserError(f"--wheels must be a folder with *.whl files, got {folder}, which has none")
    site = sites / f"site-{_key(wheels)}"
    if site.exists():
        return site
    try:
        sites.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=sites) as scratch:  # renamed when it is whole
            _pip(wheels, Path(scratch) / "site")
            if not site.exists():  # another suite may have been quicker
                os.replace(Path(scratch) / "site", site)
    except OSError as error:
        raise UserError(
            f"wheels are installed under {sites}, which must be a folder that can be written: {error.strerror or error}"
        ) from None
    return site


def _key(wheels: list[Path]) -> str:
    """Of what is installed for whom."""
    names = [f"{wheel.name} {wheel.stat().st_size} {wheel.stat().st_mtime_ns}" for wheel in wheels]
    return hashlib.sha256("\n".join([platform.python_version(), sys.executable, *names]).encode()).hexdigest()[:12]


def _pip(wheels: list[Path], target: Path) -> None:
    quiet = ("--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--disable-pip-version-check")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *quiet, "--target", target, *wheels],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise UserError(
            f"the wheels do not install with {sys.executable}: {lines[-1] if lines else f'pip ended with {done.returncode}'}"
        )


def sourced(folder: Path, site: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for stages: `site` on the module path, and what the folder's script makes of it. Raises: UserError where it fails."""
    path = os.pathsep.join([str(site), *filter(None, [environment.get("PYTHONPATH")])])
    given = {**environment, "PYTHONPATH": path}
    script = folder / SCRIPT
    if not script.exists():
        return given
    bash = shutil.which("bash")
    if bash is None:
        raise UserError(f"{script} is to be sourced by bash, and there is none; install it, or take the script away")
    done = subprocess.run([bash, "-c", SOURCE, "bash", script, site], env=given, capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines()
        raise UserError(
            f"{script} must be a bash script that works, but: {lines[-1] if lines else f'exit status {done.returncode}'}"
        )
    pairs = (entry.split(b"=", 1) for entry in done.stdout.split(b"\0") if b"=" in entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, value in pairs}


def use(site: Path) -> None:
    """Lets this process find the installed packages too: it asks which stages lack one."""
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
