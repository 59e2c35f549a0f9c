"""What is packed for a machine without a network."""

import tomllib
import zipfile
from pathlib import Path

import pytest

from bench import pack_wheels
from stormfast.errors import UserError
from tests.conftest import ROOT


def test_packages_are_those_of_the_project_in_its_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert set(pack_wheels.PACKAGES) <= {line.split(">")[0].split("<")[0] for line in lines}
    old, new = pack_wheels.requirements("3.11"), pack_wheels.requirements("3.12")
    assert "envpool==1.2.5" in old and "envpool==1.2.7" in new
    assert all("==" in requirement for requirement in old + new)


def make_wheel(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        for name in names:
            wheel.writestr(name, name)
    return path


def test_envpool_keeps_atari_alone_and_gets_the_roms(tmp_path: Path) -> None:
    info = "envpool-1.dist-info"
    kept = {"envpool/__init__.py", "envpool/entry.py", "envpool/atari/x.so", "envpool/python/y.py", f"{info}/METADATA"}
    left = {"envpool/mujoco/z.so", "envpool.libs/libqt.so", f"{info}/licenses/qt6/a", "stray.txt"}
    envpool = make_wheel(tmp_path / "envpool-1.whl", *kept, *left, f"{info}/RECORD")
    ale = make_wheel(tmp_path / "ale_py-1.whl", "ale_py/__init__.py", "ale_py/roms/pong.bin")
    pack_wheels.keep_atari(envpool, ale)
    with zipfile.ZipFile(envpool) as wheel:
        added = {"envpool_assets/__init__.py", "envpool_assets/atari/roms/pong.bin", f"{info}/RECORD"}
        assert set(wheel.namelist()) == kept | added
        assert wheel.read("envpool/entry.py") == pack_wheels.ENTRY
        assert {line.split(",")[0] for line in wheel.read(f"{info}/RECORD").decode().splitlines()} == kept | added
    with pytest.raises(UserError, match="another layout"):
        pack_wheels.keep_atari(make_wheel(tmp_path / "other.whl", "envpool/__init__.py"), ale)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="new or empty"):
        pack_wheels.main([str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
