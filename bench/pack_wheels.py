"""Which packages does the GPU suite need on a machine without a network? Downloads them, as a folder for --wheels.

    python bench/pack_wheels.py FOLDER                    # for Python 3.12 on Linux x86-64
    python bench/pack_wheels.py FOLDER --python 3.13
    python bench/pack_wheels.py FOLDER --without-atari    # the built-in game alone
    bench/gpu_suite.sh --wheels FOLDER                    # there

The least that the suite needs beside torch, triton and numpy, in the versions of constraints.txt: some 13 MB. OpenCV is not in it (61
MB): envpool steps the Atari games, cut down to its Atari part and given the ROMs of ale-py's wheel, so that its other 600 MB stay away.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # of this checkout, whatever is installed

from stormfast.errors import UserError  # noqa: E402

RUN = {
    "gymnasium": ["cloudpickle", "farama-notifications"],
    "rich": ["markdown-it-py", "mdurl", "pygments"],
    "safetensors": [],
    "tyro": ["docstring-parser", "typeguard"],
}
BENCH = {"pytest": ["iniconfig", "packaging", "pluggy"], "pytest-benchmark": ["py-cpuinfo2"]}
ATARI = {"ale-py": [], "envpool": ["dm-env", "optree"]}
PLATFORMS = [*(f"manylinux_2_{n}_x86_64" for n in range(35, 16, -1)), "manylinux2014_x86_64", "manylinux1_x86_64"]
ENTRY = b"import envpool.atari.registration  # noqa: F401 - the other families are left out of this wheel\n"


class Parser(argparse.ArgumentParser):
    """Every mistake is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"pack_wheels: {message}; see --help\n")


def pins(python: str) -> dict[str, str]:
    """Package -> version that constraints.txt takes for a Python version, as "3.12"."""
    old, taken = python == "3.11", {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        pin, _, marker = line.partition(";")
        name, _, version = pin.strip().partition("==")
        if version and (not marker or ("<" in marker) == old):
            taken[name] = version
    return taken


def packages(atari: bool) -> list[str]:
    groups = [RUN, BENCH, *([ATARI] if atari else [])]
    return sorted({name for group in groups for package, needs in group.items() for name in (package, *needs)})


def download(names: Sequence[str], python: str, folder: Path) -> None:
    """Raises: UserError where pip finds no wheel."""
    known = pins(python)
    wanted = [f"{name}=={known[name]}" if name in known else name for name in names]
    what = (
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--implementation",
        "cp",
        "--python-version",
        python,
    )
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *what, *platforms, "--dest", folder, *wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise UserError(f"pip finds not all wheels for Python {python}: {lines[-1] if lines else done.stderr[-300:]}")


def only_atari(envpool: Path, ale: Path, target: Path) -> None:
    """Writes envpool's wheel with its Atari part alone, and ale-py's ROMs where it looks for them. Raises: UserError where they look otherwise."""
    with (
        zipfile.ZipFile(envpool) as source,
        zipfile.ZipFile(ale) as roms,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made,
    ):
        kept = [name for name in source.namelist() if _is_atari(name)]
        games = [name for name in roms.namelist() if name.startswith("ale_py/roms/") and name.endswith(".bin")]
        if "envpool/entry.py" not in kept or not games:
            raise UserError(
                f"{envpool.name} and {ale.name} are laid out otherwise than this script knows; pack them with --without-atari"
            )
        record = next(name for name in kept if name.endswith(".dist-info/RECORD"))
        contents = {name: source.read(name) for name in kept if name != record} | {
            "envpool/entry.py": ENTRY,
            "envpool_assets/__init__.py": b"",
        }
        contents |= {f"envpool_assets/atari/roms/{Path(name).name}": roms.read(name) for name in games}
        contents[record] = "".join(f"{name},,\n" for name in [*contents, record]).encode()
        for name, content in contents.items():
            made.writestr(name, content)


def _is_atari(name: str) -> bool:
    """Of envpool's own wheel: the package's top, what all families share, and Atari; of its notes, what pip needs and its licence."""
    top, *rest = name.split("/")
    if top == "envpool":
        return len(rest) == 1 or rest[0] in ("atari", "python")
    return top.endswith(".dist-info") and (len(rest) == 1 or "qt6" not in rest)


def pack(folder: Path, python: str, atari: bool) -> list[Path]:
    """Fills a folder that is new or empty. Raises: UserError."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"the folder must be new or empty, but {folder} is not; choose another")
    with tempfile.TemporaryDirectory() as scratch:  # whole or not at all
        found = Path(scratch)
        download(packages(atari), python, found)
        if atari:
            (envpool,), (ale,) = found.glob("envpool-*.whl"), found.glob("ale_py-*.whl")
            only_atari(envpool, ale, found / "cut")
            (found / "cut").replace(envpool)
        try:
            shutil.copytree(found, folder, dirs_exist_ok=True)
        except (OSError, shutil.Error) as error:
            raise UserError(f"{folder} cannot be written: {error}") from None
    return sorted(folder.glob("*.whl"))


def main(arguments: Sequence[str] | None = None) -> int:
    about, _, more = (__doc__ or "").partition("\n")
    parser = Parser(description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--python", default="3.12", choices=["3.11", "3.12", "3.13"], help="the other machine's; default 3.12"
    )
    parser.add_argument(
        "--without-atari", action="store_true", help="no emulator: the suite then profiles the built-in game"
    )
    options = parser.parse_args(arguments)
    try:
        wheels = pack(options.folder, options.python, not options.without_atari)
    except UserError as error:
        print(f"pack_wheels: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print("\n".join(f"{wheel.stat().st_size / 1e6:6.2f} MB  {wheel.name}" for wheel in wheels))
    print(f"{sum(wheel.stat().st_size for wheel in wheels) / 1e6:6.2f} MB in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
