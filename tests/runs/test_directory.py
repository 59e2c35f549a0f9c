"""Run directories: made, refused, read back; whole files survive a failing write."""

import json
import os
from pathlib import Path

import pytest

from stormfast.errors import UserError
from stormfast.runs import directory as run_dir
from stormfast.schema import flatten
from stormfast.settings import TrainConfig, preset_config
from tests.model_fixtures import create

CONFIG = preset_config("tiny", "reference")


def config_in(path: Path, **changes: object) -> TrainConfig:
    return run_dir.dataclasses.replace(CONFIG, run_dir=str(path), **changes)


def message(call: object, *args: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_created_config_reads_back(tmp_path: Path) -> None:
    path = create(config_in(tmp_path / "deep" / "run"))
    assert path == tmp_path / "deep" / "run"
    assert [entry.name for entry in path.iterdir()] == ["config.json"]
    assert flatten(run_dir.load_config(path)) == flatten(config_in(path))


def test_default_directories_are_distinct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_dir.time, "strftime", lambda _: "20260102-030405")
    paths = [create(CONFIG) for _ in range(3)]
    assert paths == [
        Path("runs/Pong/20260102-030405"),
        Path("runs/Pong/20260102-030405-2"),
        Path("runs/Pong/20260102-030405-3"),
    ]


def test_moved_run_knows_where_it_is(tmp_path: Path) -> None:
    create(config_in(tmp_path / "old")).rename(tmp_path / "new")
    assert run_dir.load_config(tmp_path / "new").run_dir == str(tmp_path / "new")


def files_in(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("saved", "told"),
    [
        ("checkpoint.json", "already holds a run. Add --resume"),
        ("state-400.safetensors", "if the run was killed in its first save, delete {}/checkpoint and start it anew"),
    ],
)
def test_refuses_a_run_and_keeps_it(tmp_path: Path, saved: str, told: str) -> None:
    path = create(config_in(tmp_path / "run"))
    (path / "checkpoint").mkdir()
    (path / "checkpoint" / saved).write_text("{}")
    (path / "metrics.jsonl").write_text("")
    before = files_in(path)
    assert told.format(path) in message(create, config_in(path, steps=7))
    assert files_in(path) == before


def unsaved_run(path: Path) -> Path:
    """What a run leaves that was killed while it wrote its first checkpoint."""
    create(config_in(path))
    for name in ("plan.json", "metrics.jsonl", "tensorboard/events.1", "checkpoint/replay-0-9.safetensors", ".x.tmp"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("{}\n")
    return path


def test_a_run_without_a_checkpoint_starts_anew_and_says_so(tmp_path: Path) -> None:
    path, said = unsaved_run(tmp_path / "run"), list[str]()
    create(config_in(path, steps=7), said.append)
    assert said == [f"{path} holds a run that ended before its first checkpoint: starting anew there"]
    assert set(files_in(path)) == {"config.json", ".x.tmp"}
    assert run_dir.load_config(path).steps == 7
    said.clear()
    create(config_in(tmp_path / "new"), said.append)
    assert not said


def test_a_kill_while_a_run_is_cleared_leaves_one_that_can_be_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = unsaved_run(tmp_path / "run")

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_dir.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            create(config_in(path))
    assert (path / "tensorboard").exists()
    create(config_in(path, steps=7))
    assert set(files_in(path)) == {"config.json", ".x.tmp"}


def test_a_run_without_a_checkpoint_stays_where_others_have_put_files(tmp_path: Path) -> None:
    path = unsaved_run(tmp_path / "run")
    before = files_in(path)
    (path / "notes.txt").write_text("")
    assert "other files, such as notes.txt" in message(create, config_in(path))
    assert files_in(path) == before | {"notes.txt": b""}


def test_a_run_of_another_game_does_not_take_its_place(tmp_path: Path) -> None:
    path = unsaved_run(tmp_path / "run")
    before = files_in(path)
    expected = f"{path} holds a run of Pong without a checkpoint, and this one is of Breakout; choose another --run-dir"
    assert message(create, config_in(path, game="Breakout")).startswith(expected)
    assert files_in(path) == before
    create(config_in(path, game="ALE/Pong-v5"))
    (path / "config.json").write_text("{}")  # of whatever it may be
    assert "a run whose settings cannot be read" in message(create, config_in(path))
    assert files_in(path)["config.json"] == b"{}"


@pytest.mark.parametrize("resume", [False, True])
def test_nothing_changes_where_another_process_trains(tmp_path: Path, resume: bool) -> None:
    path = tmp_path / "run"
    with run_dir.opened(config_in(path)):
        before = files_in(path)
        assert "another process trains there" in message(create, config_in(path, steps=7, resume=resume))
        assert "another process trains there" in message(run_dir.check_free, path, "Pong")
        assert files_in(path) == before
    run_dir.check_free(path, "Pong")
    create(config_in(path, steps=7, resume=resume))
    assert run_dir.load_config(path).steps == 7


def test_no_other_process_comes_in_while_a_run_without_a_checkpoint_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, remove, refused = unsaved_run(tmp_path / "run"), run_dir.shutil.rmtree, list[str]()

    def another_comes(directory: Path) -> None:
        refused.append(message(run_dir.held(path).__enter__))
        remove(directory)

    monkeypatch.setattr(run_dir.shutil, "rmtree", another_comes)
    create(config_in(path))
    assert len(refused) == 2
    assert all("another process trains there" in line for line in refused)


def test_a_directory_that_another_process_discards_before_the_lock_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(run_dir.fcntl, "flock", lambda *_: (tmp_path / "run").rmdir())
    assert "another process trains there" in message(create, config_in(tmp_path / "run"))


def test_resume_rewrites_the_config(tmp_path: Path) -> None:
    path = create(config_in(tmp_path / "run"))
    create(config_in(path, steps=4321, resume=True))
    saved = run_dir.load_config(path)
    assert saved.steps == 4321
    assert not saved.resume


def test_refuses_other_files_but_not_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "new or empty" in message(create, config_in(tmp_path))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".config.json.tmp").write_text("left by a crash")
    assert create(config_in(tmp_path / "empty")) == tmp_path / "empty"


def test_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is a file" in message(create, config_in(tmp_path / "file"))
    assert str(tmp_path / "file" / "run") in message(create, config_in(tmp_path / "file" / "run"))


def test_file_in_the_way_of_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("")
    assert "runs" in message(create, CONFIG)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_unwritable_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "Permission denied" in message(create, config_in(tmp_path / "run"))


def test_failing_write_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in message(create, config_in(tmp_path / "run"))


@pytest.mark.parametrize("written", ["config.json", "plan.json", "metrics.jsonl"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_fails_leaves_no_directory_unless_something_is_in_it(
    tmp_path: Path, written: str, resume: bool
) -> None:
    config = config_in(tmp_path / "run", resume=resume)
    if resume:
        create(config_in(tmp_path / "run"))

    def fail() -> None:
        with run_dir.opened(config) as path:
            (path / written).touch()
            raise UserError("d.npz is missing")

    assert message(fail) == "d.npz is missing"
    assert (tmp_path / "run").exists() == (resume or written == "metrics.jsonl")


def test_missing_directory_names_the_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_dir.newest_run() is None
    for age, name in ((200, "b"), (100, "a")):
        path = create(config_in(Path("runs/Pong") / name))
        os.utime(path / "config.json", (1e9 - age, 1e9 - age))
    assert run_dir.newest_run() == Path("runs/Pong/a")
    assert "newest run is runs/Pong/a" in message(run_dir.load_config, Path("runs/Pong/c"))
    (tmp_path / "none").mkdir()
    assert "is not a run" in message(run_dir.load_config, tmp_path / "none")


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
    assert "config.json is damaged" in message(run_dir.load_config, tmp_path)


@pytest.mark.parametrize("name", ["steps", "agent.gamma", "logging.tensorboard"])
def test_config_without_a_setting_names_it(tmp_path: Path, name: str) -> None:
    path = create(config_in(tmp_path / "run")) / "config.json"
    saved = json.loads(path.read_text())
    *group, leaf = name.split(".")
    (saved[group[0]] if group else saved).pop(leaf)
    path.write_text(json.dumps(saved))
    assert f"must hold every setting, but {name} is missing" in message(run_dir.load_config, path.parent)


@pytest.mark.parametrize("length", range(0, 700, 61))
def test_truncated_config(tmp_path: Path, length: int) -> None:
    path = create(config_in(tmp_path / "run"))
    (path / "config.json").write_bytes((path / "config.json").read_bytes()[:length])
    assert "config.json is damaged" in message(run_dir.load_config, path)


def test_write_whole_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"one", b"", b"three" * 1000):
        run_dir.write_whole(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_write_whole_keeps_the_old_content_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run_dir.write_whole(tmp_path / "file", b"old")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(KeyboardInterrupt):
        run_dir.write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
