"""Wheels made by hand are installed where the suite's processes find them, once."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bench.suite import wheels
from stormfast.errors import UserError


def make_wheel(folder: Path, name: str, text: str = "") -> Path:
    """A wheel of one module, with a need that is nowhere: needs are not looked at."""
    folder.mkdir(exist_ok=True)
    path, notes = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", text)
        wheel.writestr(
            f"{notes}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: nowhere-to-be-found\n",
        )
        wheel.writestr(f"{notes}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{notes}/RECORD", "")
    return path


def test_packages_are_installed_once_and_found(tmp_path: Path) -> None:
    folder = tmp_path / "a folder's wheels"
    make_wheel(folder, "planted_one", "X = 3")
    make_wheel(folder, "planted_two")
    site = wheels.install(folder, tmp_path / "sites")
    made = site.stat().st_mtime_ns
    assert wheels.install(folder, tmp_path / "sites") == site and site.stat().st_mtime_ns == made
    given = wheels.sourced(folder, site, {"PYTHONPATH": "/elsewhere", "PATH": os.environ["PATH"]})
    assert given["PYTHONPATH"] == f"{site}{os.pathsep}/elsewhere"
    code = "import planted_one, planted_two; print(planted_one.X)"
    assert (
        subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True).stdout
        == "3\n"
    )
    assert [path.name for path in (tmp_path / "sites").iterdir()] == [site.name]
    make_wheel(folder, "planted_three")
    assert wheels.install(folder, tmp_path / "sites") != site


def test_a_script_beside_them_is_sourced(tmp_path: Path) -> None:
    folder, site = tmp_path / "wheels", tmp_path / "site"
    make_wheel(folder, "planted")
    (folder / wheels.SCRIPT).write_text('echo loud; export ASSETS="$1/the assets" LINES="a\nb=c"\n')
    given = wheels.sourced(folder, site, os.environ)
    assert given["ASSETS"] == f"{site}/the assets" and given["LINES"] == "a\nb=c"
    assert given["PYTHONPATH"].split(os.pathsep)[0] == str(site) and given["PATH"] == os.environ["PATH"]
    (folder / wheels.SCRIPT).write_text("echo it broke >&2; false\n")
    with pytest.raises(UserError, match="it broke"):
        wheels.sourced(folder, site, os.environ)


def test_what_does_not_install_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(UserError, match=r"must be a folder with \*.whl"):
            wheels.install(folder, tmp_path / "sites")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad-1.0-py3-none-any.whl").write_text("no zip")
    with pytest.raises(UserError, match="do not install"):
        wheels.install(tmp_path / "bad", tmp_path / "sites")
    assert not list((tmp_path / "sites").iterdir())
    (tmp_path / "file").write_text("")
    make_wheel(tmp_path / "good", "planted")
    with pytest.raises(UserError, match="must be a folder that can be written"):
        wheels.install(tmp_path / "good", tmp_path / "file")


def test_this_process_finds_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "planted_here.py").write_text("")
    wheels.use(tmp_path)
    assert wheels.importlib.util.find_spec("planted_here") is not None
