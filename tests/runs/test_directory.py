"""Run directories: read back, refused where damaged; whole files survive a failing write."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from stormfast.errors import UserError
from stormfast.presets import preset_config
from stormfast.runs import directory
from stormfast.schema import flatten
from stormfast.settings import TrainConfig
from tests.model_fixtures import create

CONFIG = preset_config("tiny", "reference")


def config_in(path: Path, **changes: object) -> TrainConfig:
    return replace(CONFIG, run_dir=str(path), **changes)


def message(call: object, *args: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_created_config_reads_back(tmp_path: Path) -> None:
    path = create(config_in(tmp_path / "deep" / "run"))
    assert path == tmp_path / "deep" / "run"
    assert [entry.name for entry in path.iterdir()] == ["config.json"]
    assert flatten(directory.load_config(path)) == flatten(config_in(path))


def test_moved_run_knows_where_it_is(tmp_path: Path) -> None:
    create(config_in(tmp_path / "old")).rename(tmp_path / "new")
    assert directory.load_config(tmp_path / "new").run_dir == str(tmp_path / "new")


def test_missing_directory_names_the_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert directory.newest_run() is None
    for age, name in ((200, "b"), (100, "a")):
        path = create(config_in(Path("runs/Pong") / name))
        os.utime(path / "config.json", (1e9 - age, 1e9 - age))
    assert directory.newest_run() == Path("runs/Pong/a")
    assert "newest run is runs/Pong/a" in message(directory.load_config, Path("runs/Pong/c"))
    (tmp_path / "none").mkdir()
    assert "is not a run" in message(directory.load_config, tmp_path / "none")


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff\xfe{",
        b"null",
        b"[" * 100_000,
        b'{"game": 3}',
        b'{"game": "Pong", "agent": 3}',
        b'{"game": "Pong", "seed": ' + 5000 * b"1" + b"}",
        600 * b'{"agent": ' + b"1" + 600 * b"}",
    ],
)
def test_damaged_config(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "config.json").write_bytes(damage)
    assert "config.json is damaged" in message(directory.load_config, tmp_path)


@pytest.mark.parametrize("name", ["steps", "agent.gamma", "logging.tensorboard"])
def test_config_without_a_setting_names_it(tmp_path: Path, name: str) -> None:
    path = create(config_in(tmp_path / "run")) / "config.json"
    saved = json.loads(path.read_text())
    *group, leaf = name.split(".")
    (saved[group[0]] if group else saved).pop(leaf)
    path.write_text(json.dumps(saved))
    assert f"must hold every setting, but {name} is missing" in message(directory.load_config, path.parent)


@pytest.mark.parametrize("length", range(0, 700, 61))
def test_truncated_config(tmp_path: Path, length: int) -> None:
    path = create(config_in(tmp_path / "run"))
    (path / "config.json").write_bytes((path / "config.json").read_bytes()[:length])
    assert "config.json is damaged" in message(directory.load_config, path)


def test_write_whole_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"one", b"", b"three" * 1000):
        directory.write_whole(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_write_whole_keeps_the_old_content_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    directory.write_whole(tmp_path / "file", b"old")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(KeyboardInterrupt):
        directory.write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
