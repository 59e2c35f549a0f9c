"""Which file a result goes to, what it holds of this machine, and who may write it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.suite import record as record_module
from bench.suite.record import LOGS, only_one, open_record, writable_folder
from stormfast.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
MACHINE = {
    "device": "Fake GPU",
    "commit": "abc",
    "dirty": False,
    "torch": "2",
    "cuda": None,
    "triton": None,
    "python": "3",
    "threads": 1,
}
TODAY = time.strftime("%Y-%m-%d")


def make(folder: Path, fresh: bool = True, **machine) -> Path:
    record = open_record(folder, MACHINE | machine, fresh)
    record.put_stage({"stage": "a", "status": "passed", "command": "x"})
    return record.path


def test_a_name_says_the_day_and_the_commit(tmp_path: Path) -> None:
    assert make(tmp_path) == tmp_path / f"suite-{TODAY}-abc.json"
    assert make(tmp_path, dirty=True) == tmp_path / f"suite-{TODAY}-abc-dirty.json"
    assert make(tmp_path, commit="unknown", dirty=None) == tmp_path / f"suite-{TODAY}-unknown.json"
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json"] * 3 + [".md"] * 3


def test_calls_on_one_commit_and_machine_share_a_file(tmp_path: Path) -> None:
    first = make(tmp_path)
    again = open_record(tmp_path, MACHINE | {"clocks.sm": "1980"}, fresh=False)
    assert again.path == first and [row["stage"] for row in again.document["stages"]] == ["a"]
    assert again.document["machine"]["clocks.sm"] == "1980"
    assert open_record(tmp_path, MACHINE, fresh=True).path == first  # the same day


def test_other_versions_or_another_day_begin_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(tmp_path)
    second = make(tmp_path, torch="3")
    assert second.name == f"suite-{TODAY}-abc-2.json"
    assert open_record(tmp_path, MACHINE | {"torch": "3"}, fresh=False).path == second
    assert open_record(tmp_path, MACHINE, fresh=False).path == first
    monkeypatch.setattr(record_module.time, "strftime", lambda form: "2999-01-01")
    assert open_record(tmp_path, MACHINE, fresh=True).path.name == "suite-2999-01-01-abc.json"
    assert open_record(tmp_path, MACHINE, fresh=False).path == first  # what is added to is the newest there is


def test_a_commit_that_begins_like_another_is_another(tmp_path: Path) -> None:
    make(tmp_path, commit="abc-d")
    assert open_record(tmp_path, MACHINE, fresh=False).document["stages"] == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"machine": {}, "begun": 1, "stages": [], "training": []}'])
def test_a_damaged_result_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / f"suite-{TODAY}-abc.json").write_text(text)
    with pytest.raises(UserError, match="move it away"):
        open_record(tmp_path, MACHINE, fresh=False)


@pytest.mark.parametrize(
    "damage",
    [
        {"stages": ["x"]},
        {"stages": [{"stage": "a", "status": "passed"}]},
        {"stages": [{"stage": "memory", "status": "passed", "command": "x", "result": 3}]},
        {"training": ["x"]},
        {"machine": {"device": 1}},
    ],
)
def test_a_result_with_a_damaged_part_is_one_line(damage: dict, tmp_path: Path) -> None:
    path = make(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(UserError, match="move it away"):
        open_record(tmp_path, MACHINE, fresh=False)


def test_a_training_row_without_its_run_is_one_line(tmp_path: Path) -> None:
    record = open_record(tmp_path, dict(MACHINE), fresh=True)
    row = {
        "game": "Pong",
        "preset": "tiny",
        "seed": 0,
        "step": 1,
        "steps": 2,
        "status": "paused",
        "training_seconds": 1,
        "calls": [],
    }
    record.put_training(row | {"run": "a", "evaluate_command": "e"})
    record.path.write_text(record.path.read_text().replace('"run"', '"ran"'))
    with pytest.raises(UserError, match="move it away"):
        open_record(tmp_path, MACHINE, fresh=False)


def test_no_path_of_this_machine_is_kept(tmp_path: Path) -> None:
    site = tmp_path / "site-1"
    record = open_record(tmp_path, dict(MACHINE), fresh=True, site=site)
    tail = [
        f"{ROOT}/bench/x.py:3",
        f"at {ROOT}",
        f"{site}/gymnasium/core.py",
        f"{sys.prefix}/lib/python",
        f"{Path.home()}/.cache",
        f"{ROOT}-other",
    ]
    record.put_stage({"stage": "a", "status": "failed", "command": "x", "tail": tail})
    kept = json.loads(record.path.read_text())["stages"][0]["tail"]
    assert kept[:3] == ["bench/x.py:3", "at .", "SITE/gymnasium/core.py"]
    assert kept[3].endswith("PYTHON/lib/python") and kept[5] == f"{ROOT}-other"
    assert str(Path.home()) + "/" not in kept[4]


def test_training_rows_are_one_a_run(tmp_path: Path) -> None:
    record = open_record(tmp_path, dict(MACHINE), fresh=True)
    row = {
        "game": "Pong",
        "preset": "tiny",
        "seed": 0,
        "steps": 2,
        "status": "paused",
        "training_seconds": 1,
        "calls": [],
        "evaluate_command": "e",
    }
    for run, step in (("Pong", 1), ("Catch", 1), ("Pong", 2)):
        record.put_training(row | {"run": run, "step": step})
    assert [(row["run"], row["step"]) for row in json.loads(record.path.read_text())["training"]] == [
        ("Catch", 1),
        ("Pong", 2),
    ]


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="give --results another"):
        writable_folder(tmp_path / "file" / "gpu")
    assert (writable_folder(tmp_path / "gpu") / LOGS).is_dir()


def test_a_result_that_can_no_longer_be_written_is_one_line(tmp_path: Path) -> None:
    record = open_record(tmp_path / "gone", dict(MACHINE), fresh=True)
    with pytest.raises(UserError, match="cannot be written"):
        record.write()


def test_a_lock_is_held_by_what_was_given_its_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with only_one(path, "busy") as descriptor, pytest.raises(UserError, match="busy"), only_one(path, "busy"):
        pass
    with only_one(path, "busy") as descriptor:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[descriptor])
    with pytest.raises(UserError, match="busy"), only_one(path, "busy"):
        pass
    child.communicate(b"\n")
    with only_one(path, "busy"):
        pass
