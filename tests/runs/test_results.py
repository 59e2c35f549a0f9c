"""What is on disk, as results: which runs a path leads to, which evaluation counts, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from stormfast.errors import UserError
from stormfast.runs.results import find_results, read_run
from tests.conftest import ROOT
from tests.scored_runs import write_evaluation, write_run

LEARNING = ROOT / "bench" / "results" / "amd-epyc-1-cores"


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """As `stormfast train --game Pong,Breakout --seeds 2` makes it."""
    for game in ("Pong", "Breakout"):
        for seed in (0, 1):
            write_run(tmp_path / "runs" / "group" / f"{game}-seed{seed}", game=game, seed=seed)
            (tmp_path / "runs" / "group" / f"{game}-seed{seed}.log").write_text("step 1\n")
    return tmp_path / "runs" / "group"


def named(paths: list[str | Path]) -> list[tuple[str, int]]:
    return [(result.game, result.seed) for result in find_results([str(path) for path in paths])]


def refusal(*paths: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        find_results([str(path) for path in paths])
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- a run -----------------------------------------------------------------------------------------------------------


def test_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "R", game="Pong", seed=7, evaluated={100: -3.5}, minutes=5, protocol="reference")
    (result,) = find_results([str(run)])
    assert (result.game, result.seed, result.preset, result.protocol) == ("Pong", 7, "tiny", "reference")
    assert (result.mean_return, result.step, result.saved_step, result.steps) == (-3.5, 100, 100, 100)
    assert result.minutes == pytest.approx(5)
    assert result.settings["world_model.width"] == 32
    assert not result.is_unfinished and not result.is_outdated


def test_a_run_of_an_earlier_version(tmp_path: Path) -> None:
    (result,) = find_results([str(ROOT / "tests" / "data" / "run-8b83cc7")])
    assert (result.game, result.seed, result.saved_step) == ("Catch", 1, 100)
    assert (result.mean_return, result.step, result.minutes) == (None, None, None)


def test_the_evaluation_of_the_highest_step_counts(tmp_path: Path) -> None:
    """100 is higher than 20, though not as text; random actions and half-written files are no evaluations."""
    run = write_run(tmp_path / "R", evaluated={100: 2.0, 20: 1.0}, minutes=5)
    write_evaluation(run / "evaluation-random.json", None, 9.0)
    (run / ".evaluation-200.json.tmp").write_text("{")
    assert (read_run(run).mean_return, read_run(run).step) == (2.0, 100)
    (run / "evaluation-100.json").unlink()
    result = read_run(run)
    assert (result.mean_return, result.step) == (1.0, 20)
    assert result.minutes == pytest.approx(1)  # of the steps that led to what was scored
    assert result.is_unfinished and result.is_outdated


def test_an_unfinished_run(tmp_path: Path) -> None:
    result = read_run(write_run(tmp_path / "R", saved=60, evaluated={60: 0.5}))
    assert result.is_unfinished and not result.is_outdated


def test_a_run_without_evaluation_or_checkpoint(tmp_path: Path) -> None:
    result = read_run(write_run(tmp_path / "R", saved=60, evaluated={}))
    assert (result.mean_return, result.step, result.saved_step, result.minutes) == (None, None, 60, None)
    result = read_run(write_run(tmp_path / "S", saved=None, evaluated={}))
    assert (result.mean_return, result.saved_step) == (None, None)


def test_minutes_are_unknown_without_metrics(tmp_path: Path) -> None:
    run = write_run(tmp_path / "R")
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text + '{"step": 100, "seco')  # cut short by a crash
    assert read_run(run).minutes == pytest.approx(2)
    (run / "metrics.jsonl").unlink()
    assert read_run(run).minutes is None


# --- paths -----------------------------------------------------------------------------------------------------------


def test_groups_directories_and_patterns(group: Path) -> None:
    everything = [("Breakout", 0), ("Breakout", 1), ("Pong", 0), ("Pong", 1)]
    assert named([group]) == named([group.parent]) == named([group.parent.parent]) == everything
    assert named([group / "*"]) == named([group.parent / "**"]) == everything
    assert named([group / "Pong-*", group / "Breakout-seed1"]) == [("Pong", 0), ("Pong", 1), ("Breakout", 1)]


def test_what_the_shell_makes_of_a_pattern(group: Path) -> None:
    """GROUP/* names the logs beside the runs, too."""
    assert len(named(sorted(group.iterdir()))) == 4
    assert "must be a file of JSON" in refusal(group, ROOT / "README.md")


def test_a_run_counts_once_however_often_it_is_named(group: Path) -> None:
    (group.parent / "newest").symlink_to(group / "Pong-seed0")
    again = Path(f"{group}/../group/Pong-seed0")
    assert named([group / "Pong-seed0", group / "Pong-*0", group.parent / "newest", again]) == [("Pong", 0)]


def test_brackets_in_a_name_are_no_pattern(tmp_path: Path) -> None:
    write_run(tmp_path / "pong [old]", game="Pong")
    assert named([tmp_path / "pong [old]"]) == [("Pong", 0)]


def test_paths_without_runs_are_refused(tmp_path: Path, group: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "nowhere does not exist; give runs" in refusal(group, tmp_path / "nowhere")
    assert "empty must be a run or hold runs, but there is no config.json" in refusal(tmp_path / "empty")
    assert "Breakou-*' must match runs" in (line := refusal(group / "Breakou-*")) and "matches nothing" in line
    assert "matches 4 paths and no run or result file" in refusal(group / "*.log")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{}", "is damaged"),
        ("evaluation-100.json", '{"return": {"mean": NaN}}', "must hold the mean return of an evaluation"),
        ("evaluation-100.json", '{"return": 3}', "must hold the mean return of an evaluation"),
        ("evaluation-100.json", "[]", "must hold a JSON object, got list"),
        ("evaluation-100.json", "half a fi", "must be a file of JSON"),
        ("metrics.jsonl", '{"step": 10}\n', "must hold a JSON object with step and seconds a line"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    run = write_run(tmp_path / "R")
    (run / name).write_text(content)
    line = refusal(run)
    assert line.startswith(str(run / name)) and message in line


# --- result files ----------------------------------------------------------------------------------------------------


def test_results_of_the_learning_bench() -> None:
    results = find_results([str(LEARNING / "learning-*.json")])
    assert [(each.game, each.seed, each.preset, each.protocol) for each in results] == [
        *(("Catch", seed, "cpu", "standard") for seed in (0, 1, 2)),
        ("UpNDown", 0, "cpu", "standard"),
    ]
    assert [(each.step, each.steps) for each in results] == [(4500, 4500)] * 3 + [(12002, 12000)]
    assert [round(each.mean_return or 0, 2) for each in results] == [4.80, 4.80, 4.67, 1557.0]  # docs/results.md
    assert [round(each.minutes or 0) for each in results] == [10, 10, 10, 26]  # docs/results.md


def of_seeds(**changes: Any) -> dict[str, Any]:
    seeds = [{"seed": k, "mean_return": 10.0 + k, "episodes": 30, "minutes": 7.5} for k in (0, 1)]
    about = {"game": "Pong", "preset": "fast", "protocol": "standard", "device": "a card", "commit": "abc"}
    return about | {"command": "x", "random": {"mean": -20.0, "sem": 0.1}, "seeds": seeds} | changes


def test_results_of_seeds(tmp_path: Path) -> None:
    (tmp_path / "pong.json").write_text(json.dumps(of_seeds()))
    first, second = find_results([str(tmp_path / "pong.json")])
    assert (first.game, first.preset, first.protocol, first.seed, second.seed) == ("Pong", "fast", "standard", 0, 1)
    assert (first.mean_return, first.minutes, first.step, first.steps) == (10.0, 7.5, None, None)
    assert not first.is_unfinished


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"game": "Pong"}, "but: 'seeds' is missing"),
        (of_seeds(seeds=[{"seed": 0}]), "but: 'mean_return' is missing"),
        (of_seeds(seeds=[{"seed": 0.5, "mean_return": 1}]), "but: expected an integer, got 0.5"),
        (of_seeds(seeds=[{"seed": 0, "mean_return": "1"}]), "but: expected a number, got '1'"),
        (of_seeds(seeds=["0"]), "must be a result file"),
        (of_seeds(game=3), "must be a result file"),
        (
            of_seeds(seeds=[]),
            "must be a result file, with the game, the preset, and the runs or seeds, but: it has none",
        ),
        ({"game": "Pong", "preset": "cpu", "runs": [{"seed": 0}]}, "but: 'config' is missing"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "other.json").write_text(json.dumps(content))
    assert message in refusal(tmp_path / "other.json")
