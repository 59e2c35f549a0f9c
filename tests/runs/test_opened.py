"""The directory of a run: made, refused, replaced and held."""

import os
from pathlib import Path

import pytest

from stormfast.errors import UserError
from stormfast.runs import opened
from stormfast.runs.directory import load_config
from tests.model_fixtures import create
from tests.runs.test_directory import CONFIG, config_in, message


def test_default_directories_are_distinct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opened.time, "strftime", lambda _: "20260102-030405")
    paths = [create(CONFIG) for _ in range(3)]
    assert paths == [
        Path("runs/Pong/20260102-030405"),
        Path("runs/Pong/20260102-030405-2"),
        Path("runs/Pong/20260102-030405-3"),
    ]


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
    assert load_config(path).steps == 7
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
        patch.setattr(opened.shutil, "rmtree", killed)
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
    with opened.opened(config_in(path)):
        before = files_in(path)
        assert "another process trains there" in message(create, config_in(path, steps=7, resume=resume))
        assert "another process trains there" in message(opened.check_free, path, "Pong")
        assert files_in(path) == before
    opened.check_free(path, "Pong")
    create(config_in(path, steps=7, resume=resume))
    assert load_config(path).steps == 7


def test_no_other_process_comes_in_while_a_run_without_a_checkpoint_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, remove, refused = unsaved_run(tmp_path / "run"), opened.shutil.rmtree, list[str]()

    def another_comes(directory: Path) -> None:
        refused.append(message(opened.held(path).__enter__))
        remove(directory)

    monkeypatch.setattr(opened.shutil, "rmtree", another_comes)
    create(config_in(path))
    assert len(refused) == 2
    assert all("another process trains there" in line for line in refused)


def test_a_directory_that_another_process_discards_before_the_lock_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(opened.fcntl, "flock", lambda *_: (tmp_path / "run").rmdir())
    assert "another process trains there" in message(create, config_in(tmp_path / "run"))


def test_resume_rewrites_the_config(tmp_path: Path) -> None:
    path = create(config_in(tmp_path / "run"))
    create(config_in(path, steps=4321, resume=True))
    saved = load_config(path)
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
        with opened.opened(config) as path:
            (path / written).touch()
            raise UserError("d.npz is missing")

    assert message(fail) == "d.npz is missing"
    assert (tmp_path / "run").exists() == (resume or written == "metrics.jsonl")
