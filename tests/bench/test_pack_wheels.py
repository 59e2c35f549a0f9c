"""What is packed for a machine without a network."""

import tomllib
import zipfile
from pathlib import Path

import pytest

from bench import pack_wheels
from bench.suite import stages
from stormfast.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_it_holds_what_stages_need() -> None:
    names = {name.replace("-", "_") for name in pack_wheels.packages(atari=True)}
    assert set(stages.RUN) | set(stages.BENCH) | {"ale_py", "envpool"} <= names
    assert not {"ale_py", "envpool"} & {name.replace("-", "_") for name in pack_wheels.packages(atari=False)}
    assert not {"torch", "triton", "numpy", "opencv_python_headless"} & names


def test_versions_are_those_of_the_constraints() -> None:
    old, new = pack_wheels.pins("3.11"), pack_wheels.pins("3.12")
    assert (old["envpool"], new["envpool"]) == ("1.2.5", "1.2.7")
    assert old["rich"] == new["rich"]
    assert set(pack_wheels.packages(atari=True)) <= set(new)


def test_direct_needs_are_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = {
        line.split(">")[0].split("<")[0] for line in project["dependencies"] + project["optional-dependencies"]["dev"]
    }
    assert {*pack_wheels.RUN, *pack_wheels.BENCH, *pack_wheels.ATARI} <= direct


def make_wheel(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        for name in names:
            wheel.writestr(name, name)
    return path


def test_envpool_keeps_atari_alone_and_gets_the_roms(tmp_path: Path) -> None:
    notes = "envpool-1.dist-info"
    kept = [
        "envpool/__init__.py",
        "envpool/entry.py",
        "envpool/atari/x.so",
        "envpool/python/y.py",
        f"{notes}/METADATA",
        f"{notes}/licenses/LICENSE",
    ]
    left = ["envpool/mujoco/z.so", "envpool.libs/libqt.so", f"{notes}/licenses/qt6/a", "stray.txt"]
    envpool = make_wheel(tmp_path / "envpool-1.whl", *kept, *left, f"{notes}/RECORD")
    ale = make_wheel(tmp_path / "ale_py-1.whl", "ale_py/__init__.py", "ale_py/roms/pong.bin", "ale_py/roms/__init__.py")
    pack_wheels.only_atari(envpool, ale, tmp_path / "cut.whl")
    with zipfile.ZipFile(tmp_path / "cut.whl") as cut:
        added = ["envpool_assets/__init__.py", "envpool_assets/atari/roms/pong.bin"]
        assert set(cut.namelist()) == {*kept, *added, f"{notes}/RECORD"}
        assert (
            cut.read("envpool/entry.py") == pack_wheels.ENTRY
            and cut.read("envpool/atari/x.so") == b"envpool/atari/x.so"
        )
        listed = {line.split(",")[0] for line in cut.read(f"{notes}/RECORD").decode().splitlines()}
        assert listed == set(cut.namelist())
    with pytest.raises(UserError, match="--without-atari"):
        pack_wheels.only_atari(envpool, make_wheel(tmp_path / "bare.whl", "ale_py/__init__.py"), tmp_path / "cut.whl")


def test_a_folder_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("")
    assert pack_wheels.main([str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and "new or empty" in err


def test_what_pip_does_not_find_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert pack_wheels.main([str(tmp_path / "folder")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and "pip finds not all wheels for Python 3.12" in err
    assert not (tmp_path / "folder").exists()


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        pack_wheels.main(["folder", "--python", "2.7"])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
