"""Result files of studies: what they hold, that an entry is replaced, and that nothing is lost."""

import json
from pathlib import Path

import pytest

from stormfast.errors import UserError
from stormfast.runs import study_results
from stormfast.runs.study_results import current_commit, entry_of, read_curve, read_result, write_entry


def test_entries_are_kept_by_seed_and_the_top_is_that_of_the_last(tmp_path: Path) -> None:
    path = tmp_path / "new" / "Pong-cpu.json"
    for seed, mean, commit in ((1, 5.0, "a"), (0, 6.0, "b"), (1, 7.0, "c")):
        write_entry(path, {"game": "Pong", "commit": commit}, {"seed": seed, "mean_return": mean, "x": [1, None]})
    found = read_result(path)
    assert (found["game"], found["commit"]) == ("Pong", "c")
    assert [(entry["seed"], entry["mean_return"]) for entry in found["seeds"]] == [(0, 6.0), (1, 7.0)]
    assert entry_of(found, 1) == {"seed": 1, "mean_return": 7.0, "x": [1, None]} and entry_of(found, 2) is None
    assert '\n  {"seed": 0, "mean_return": 6.0, "x": [1, null]},\n' in path.read_text()
    assert read_result(tmp_path / "none.json") == {"seeds": []}


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"seeds": 3}', '{"seeds": [{"seed": 0}]}', '{"seeds": [{"seed": "0"}]}']
)
def test_a_damaged_file_is_refused_and_stays(text: str, tmp_path: Path) -> None:
    path = tmp_path / "Pong-cpu.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"Pong-cpu.json must hold results of a study, but .*; move it away"):
        write_entry(path, {}, {"seed": 0, "mean_return": 1.0})
    assert path.read_text() == text


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/Pong.json cannot be (read|written): Not a directory; "):
        write_entry(tmp_path / "file" / "Pong.json", {}, {"seed": 0, "mean_return": 1.0})


def test_a_curve_is_lists_without_what_was_never_measured(tmp_path: Path) -> None:
    lines = [{"step": 10, "seconds": 1.5, "mine": 3, "other": 1}, {"step": 20, "seconds": 2.5, "episode_return": 4.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected = {"step": [10, 20], "seconds": [1.5, 2.5], "return": [None, 4.0]}
    assert read_curve(tmp_path, "mine") == expected | {"mine": [3, None]}
    assert read_curve(tmp_path, "episode_return") == expected
    for text in ("", "{}\n", "3\n", '{"seconds": null}\n'):
        (tmp_path / "metrics.jsonl").write_text(text)
        with pytest.raises(UserError, match=r"metrics.jsonl must hold a JSON object a line"):
            read_curve(tmp_path, "mine")


def test_changes_that_no_commit_has_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, expected in ((("abc", False), "abc"), (("abc", True), "abc-dirty"), (("unknown", None), "unknown")):
        monkeypatch.setattr(study_results, "commit", lambda found=found: found)
        assert current_commit() == expected
