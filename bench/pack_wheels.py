"""Downloads the packages that the GPU suite needs on a machine without a network, as a folder of wheels.

    python -m bench.pack_wheels                       # into .whl/, for Python 3.12 on Linux x86-64
    python -m bench.pack_wheels FOLDER --python 3.13
    bench/gpu_suite.sh --wheels FOLDER                # on the other machine; .whl/ is found without the flag

These are the fewest that the suite needs beside torch, triton and numpy, in the versions of constraints.txt: 13 MB. The
Atari games come from envpool, whose wheel is cut down to its Atari part and given the ROMs of ale-py's wheel, since the
whole of it takes 600 MB. The folder has a .gitignore, so that it leaves the checkout clean.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from bench.script import ROOT, Parser, status_of
from stormfast.errors import UserError

PACKAGES = {  # of the project -> what they import that torch does not bring
    "ale-py": [],
    "envpool": ["dm-env", "optree"],
    "gymnasium": ["cloudpickle", "farama-notifications"],
    "pytest": ["iniconfig", "packaging", "pluggy"],
    "pytest-benchmark": ["py-cpuinfo2"],
    "rich": ["markdown-it-py", "mdurl", "pygments"],
    "safetensors": [],
    "tyro": ["docstring-parser", "typeguard"],
}
PLATFORMS = [*(f"manylinux_2_{n}_x86_64" for n in range(35, 16, -1)), "manylinux2014_x86_64", "manylinux1_x86_64"]
ENTRY = b"import envpool.atari.registration  # noqa: F401 - the other families are left out of this wheel\n"


def requirements(python: str) -> list[str]:
    """NAME==VERSION of every package, as constraints.txt has it for a Python version such as "3.12"."""
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        pin, _, marker = line.partition(";")
        if not marker or ("<" in marker) == (python == "3.11"):
            pinned[pin.partition("==")[0].strip()] = pin.strip()
    names = sorted({name for package, needs in PACKAGES.items() for name in (package, *needs)})
    return [pinned.get(name, name) for name in names]


def download(python: str, folder: Path) -> None:
    """Raises: UserError where pip does not find all wheels."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, "--dest", str(folder)]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    done = subprocess.run([*command, *requirements(python)], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise UserError(f"pip finds not all wheels for Python {python}: {lines[-1] if lines else done.stderr[-300:]}")


def keep_atari(envpool: Path, ale: Path) -> None:
    """Rewrites envpool's wheel with its Atari part alone, and ale-py's ROMs where envpool looks for them.

    Raises: UserError where one of the wheels has another layout.
    """
    cut = envpool.with_suffix(".cut")
    with zipfile.ZipFile(envpool) as source, zipfile.ZipFile(ale) as roms:
        contents = {name: source.read(name) for name in source.namelist() if _is_atari(name)}
        games = [name for name in roms.namelist() if name.startswith("ale_py/roms/") and name.endswith(".bin")]
        record = next((name for name in contents if name.endswith(".dist-info/RECORD")), None)
        if "envpool/entry.py" not in contents or not games or not record:
            raise UserError(f"{envpool.name} and {ale.name} have another layout than this script expects; update it")
        contents |= {"envpool/entry.py": ENTRY, "envpool_assets/__init__.py": b""}
        contents |= {f"envpool_assets/atari/roms/{Path(name).name}": roms.read(name) for name in games}
    contents[record] = "".join(f"{name},,\n" for name in contents).encode()
    with zipfile.ZipFile(cut, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in contents.items():
            target.writestr(name, content)
    cut.replace(envpool)


def _is_atari(name: str) -> bool:
    """True for the top of the package, what all families share, Atari, and metadata without Qt's licences."""
    top, *rest = name.split("/")
    if top == "envpool":
        return len(rest) == 1 or rest[0] in ("atari", "python")
    return top.endswith(".dist-info") and (len(rest) == 1 or "qt6" not in rest)


def pack(folder: Path, python: str) -> list[Path]:
    """Fills a folder that is new or empty. Returns: the wheels. Raises: UserError."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"the folder must be new or empty, but {folder} is not; choose another")
    with tempfile.TemporaryDirectory() as scratch:  # whole or not at all
        download(python, Path(scratch))
        (envpool,), (ale,) = Path(scratch).glob("envpool-*.whl"), Path(scratch).glob("ale_py-*.whl")
        keep_atari(envpool, ale)
        (Path(scratch) / ".gitignore").write_text("*\n")
        try:
            shutil.copytree(scratch, folder, dirs_exist_ok=True)
        except (OSError, shutil.Error) as error:
            raise UserError(f"{folder} cannot be written: {error}; choose another") from None
    return sorted(folder.glob("*.whl"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Raises: UserError."""
    parser = Parser(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / ".whl", help="new or empty; default .whl")
    parser.add_argument("--python", default="3.12", choices=["3.11", "3.12", "3.13"], help="of the other machine")
    options = parser.parse_args(arguments)
    wheels = pack(options.folder, options.python)
    print("\n".join(f"{wheel.stat().st_size / 1e6:6.2f} MB  {wheel.name}" for wheel in wheels))
    print(f"{sum(wheel.stat().st_size for wheel in wheels) / 1e6:6.2f} MB in all")
    return 0


if __name__ == "__main__":
    sys.exit(status_of("pack_wheels", main))
