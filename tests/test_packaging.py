"""The wheel holds the two packages and nothing else, and works anywhere; the pins are complete and exact."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = {"stormfast": ROOT / "stormfast", "stormfast_kernels": ROOT / "kernels" / "stormfast_kernels"}


def run(*args: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(arg) for arg in args], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _left_out(folder: str, names: list[str]) -> set[str]:
    """What a build leaves behind, and runs at the top of the tree (stormfast/runs is a package)."""
    left_out = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "results")(folder, names)
    return left_out | ({"runs"} if Path(folder) == ROOT else set())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the repository, tests and all, so that the build leaves nothing in the tree."""
    work = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, work / "source", ignore=_left_out)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(
        *pip,
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--wheel-dir",
        work,
        work / "source",
        cwd=work,
    )
    (path,) = work.glob("*.whl")
    return path


def test_wheel_holds_the_two_packages_and_nothing_else(wheel: Path) -> None:
    """Sources, and the data among them: what is neither is not committed there."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {
        f"{package}/{path.relative_to(folder)}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == sources
    assert {"stormfast/py.typed", "stormfast_kernels/py.typed"} <= names  # type checkers read the hints of both


def test_wheel_works_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", target, wheel, cwd=tmp_path)
    imports = "import stormfast.cli, stormfast_kernels as k; print(stormfast.__file__, k.__file__)"
    code = f"import sys; sys.path.insert(0, {str(target)!r}); {imports}"
    where = run(sys.executable, "-c", code, cwd=tmp_path).split()
    assert where == [str(target / "stormfast" / "__init__.py"), str(target / "stormfast_kernels" / "__init__.py")]
    script = (target / "bin" / "stormfast").read_text()
    assert "from stormfast.cli import main" in script


def test_wheel_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
    text = archive.read(name).decode()
    version = re.search(r'__version__ = "(.*)"', (ROOT / "stormfast" / "__init__.py").read_text())
    assert version
    assert f"\nVersion: {version[1]}\n" in text
    assert "\nRequires-Python: <3.14,>=3.11\n" in text
    assert "\nLicense-Expression: MIT\n" in text


def pins(python: str) -> dict[str, str]:
    """Normalised name -> version that constraints.txt takes for a Python version, "3.11" to "3.13"."""
    taken: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        pin, _, marker = (part.strip() for part in line.partition(";"))
        if not pin or pin.startswith("#"):
            continue
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin), f"not an exact pin of a normalised name: {line}"
        assert marker in ("", 'python_version < "3.12"', 'python_version >= "3.12"'), line
        if marker and (python == "3.11") != ("<" in marker):
            continue
        name, _, version = pin.partition("==")
        assert name not in taken, f"{name} is pinned twice for Python {python}"
        taken[name] = version
    return taken


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needs(requirements: list[str]) -> set[str]:
    """Names of requirements whose marker may hold on a supported Python, without those of extras and other systems."""
    other = (
        "extra ==",
        "extra==",
        "win32",
        "Windows",
        "Darwin",
        "darwin",
        'python_version < "3.11"',
        "python_version < '3.10'",
    )
    return {
        normalised(re.split(r"[ ;\[<>=!~(]", item)[0])
        for item in requirements
        if not any(word in item for word in other)
    }


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_constraints_pin_every_direct_dependency(python: str) -> None:
    direct = needs(PROJECT["dependencies"]) | needs(PROJECT["optional-dependencies"]["dev"])
    assert direct <= pins(python).keys()
    assert pins(python)["torch"] == "2.13.0"
    assert pins(python)["envpool"] == ("1.2.5" if python == "3.11" else "1.2.7")


def test_constraints_pin_what_is_needed_here() -> None:
    """Follows the requirements of the installed packages: each one met must have its pin."""
    pinned = pins(f"3.{sys.version_info.minor}")
    found: set[str] = set()
    waiting = needs(PROJECT["dependencies"]) | needs(PROJECT["optional-dependencies"]["dev"])
    while waiting:
        name = waiting.pop()
        found.add(name)
        try:
            waiting |= needs(metadata.requires(name) or []) - found
        except metadata.PackageNotFoundError:  # a marker that `needs` does not read keeps it out of this machine
            found.discard(name)
    assert "torch" in found
    assert found <= pinned.keys(), found - pinned.keys()


def test_pins_name_no_index() -> None:
    for name in ("constraints.txt", "pyproject.toml", "Makefile"):
        text = (ROOT / name).read_text()
        assert not re.search(r"https?://|index-url|find-links", text), name


def test_torch_is_one_we_support() -> None:
    assert tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 11)
