"""`stormfast study`: a small one from beginning to end, and one line for each refusal."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stormfast import cli
from stormfast.commands import study as command
from stormfast.runs import study_work
from stormfast.runs.processes import Planned

SETTINGS = {"acting.random_steps": 64, "logging.tensorboard": False}
OWN = {
    "question": "Does entropy matter?",
    "games": ["Catch"],
    "seeds": 1,
    "steps": 68,
    "preset": "tiny",
    "arms": {"a": SETTINGS, "b": SETTINGS | {"agent.entropy": 0.03}},
}


def in_process(waiting: list[Planned], parallel: int, environment: Any, *, before: Any, after: Any, **_: Any) -> Any:
    """In place of processes, which take seconds to start."""
    for first in waiting:
        planned: Planned | None = first
        while planned:
            before(planned)
            assert cli.main([planned.command, *planned.flags]) == 0
            planned = after(planned)
    return [SimpleNamespace(failed=False)] * len(waiting), 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a study was made of one arm, and then of what was missing."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(study_work, "watch", in_process)
        Path("own.json").write_text(json.dumps(OWN))
        for more in (["--next", "1"], []):
            assert cli.main(["study", "own.json", "--episodes", "2", "--device", "cpu", *more]) == 0
            count = len(list(folder.glob("studies/own/results/*.json")))
            Path(f"after-{count}").touch()
    return folder


def test_next_makes_one_run_and_the_rest_comes_later(folder: Path) -> None:
    assert (folder / "after-1").exists() and (folder / "after-2").exists()
    for arm in "ab":
        found = json.loads((folder / "studies" / "own" / "results" / f"Catch-tiny-{arm}.json").read_text())
        assert (found["game"], found["preset"], found["protocol"], found["arm"]) == ("Catch", "tiny", "standard", arm)
        (entry,) = found["seeds"]
        assert (entry["seed"], entry["episodes"], entry["steps"], entry["curve"]["step"][-1]) == (0, 2, 68, 68)
        assert entry["mean_return"] == sum(entry["episode_returns"]) / 2 and 0 < entry["minutes"] < 1
        assert found["random"]["mean"] in range(-5, 6)
    assert len(list(folder.glob("studies/own/*/*/evaluation-random.json"))) == 1


def test_what_is_finished_is_not_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(study_work, "watch", lambda *_, **__: pytest.fail("something was started"))
    assert cli.main(["study", "own.json"]) == 0
    out, err = capsys.readouterr()
    assert out.count("| Catch | ") == 2 and err == "finished: studies/own/table.md\n"
    assert out in (folder / "studies" / "own" / "table.md").read_text()
    assert (folder / "studies" / "own" / "curves.png").exists()
    assert cli.main(["study", "own.json", "--seeds", "2", "--arms", "b", "--steps", "50"]) == 2
    assert "has steps 68, and 50 is asked for" in capsys.readouterr().err


def test_low_priority_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    asked: list[bool] = []
    monkeypatch.setattr(study_work, "watch", lambda *_, low_priority, **__: (asked.append(low_priority), ([], 0))[1])
    for flags, expected in (([], [False]), (["--low-priority"], [False, True])):
        cli.main(["study", "own.json", "--seeds", "2", "--parallel", "1", *flags])
        assert asked == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("tokns", "Unknown study 'tokns'. Did you mean 'tokens'?"),
        ("none.json", "none.json cannot be read: No such file"),
        ("bad.json", "arm b: Unknown field 'agent.entropi'"),
        ("tokens --arms fused,seperate", "--arms must be some of fused,separate, got 'seperate'."),
        ("tokens --games Pongg", "Unknown game 'Pongg'. Did you mean 'Pong'?"),
        ("tokens --games Pong,Pong", "--games must name each game once"),
        ("tokens --seeds 0", "seeds must be >= 1"),
        ("tokens --episodes 1", "episodes must be >= 2"),
        ("tokens --next 0", "next must be >= 1"),
        ("tokens --preset big", "Invalid choice 'big'"),
        ("tokens --device tpu", "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        ("tokens --demonstration x.npz", "--demonstration is for studies with an arm that takes one, and tokens has"),
        ("demonstration", "arm with: replay.demonstration needs a file: add --demonstration FILE.npz"),
        ("tokens --out file --preset tiny", "--out must be a directory that can be written, but file: File exists"),
        ("tokens --preset tiny --replace-older", "--replace-older compares commits, but this is no git checkout"),
        ("atari.json", "--atari.sticky is for Atari games, and Catch is none"),
    ],
)
def test_bad_input_is_one_line_before_any_run_starts(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study_work, "watch", lambda *_, **__: pytest.fail("something was started"))
    monkeypatch.setattr("stormfast.runs.study_results.commit", lambda: ("unknown", None))
    Path("file").write_text("")
    Path("bad.json").write_text(json.dumps(OWN | {"arms": {"a": {}, "b": {"agent.entropi": 1}}}))
    Path("atari.json").write_text(json.dumps(OWN | {"arms": {"a": {}, "b": {"atari.sticky": 0.5}}}))
    assert cli.main(["study", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("stormfast: error: ") and message in err
    assert not list(tmp_path.rglob("config.json"))


def test_two_at_once_in_one_directory_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stormfast.runs.opened import held

    monkeypatch.chdir(folder)
    with held(Path("studies/own")):
        assert cli.main(["study", "own.json"]) == 2
    assert "studies/own is in use: another process trains there; wait until it has ended, or choose another --out" in (
        capsys.readouterr().err
    )


def test_the_help_text_names_every_study() -> None:
    from stormfast.study import STUDIES

    assert all(name in str(command.__doc__) for name in STUDIES)
