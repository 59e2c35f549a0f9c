"""How the runs of a study are made: what comes next, what is shared, and that a real one is stopped and goes on."""

import dataclasses
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stormfast.runs import study_work
from stormfast.runs.processes import Planned
from stormfast.runs.study_results import read_result
from stormfast.runs.study_runs import StudyRun
from stormfast.runs.study_work import make_runs, next_of, random_of
from tests.runs.test_study_runs import begin, series_in


def evaluate(run: StudyRun, name: int | str, mean: float = 3.0, episodes: int = 30) -> None:
    found = {"return": {"mean": mean, "standard_error": 0.5}, "episode_returns": [mean] * episodes}
    (run.run_dir / f"evaluation-{name}.json").write_text(json.dumps(found | {"step": 100}))


def log(run: StudyRun) -> None:
    (run.run_dir / "metrics.jsonl").write_text('{"step": 100, "seconds": 90.0, "episode_return": 2.0}\n')


def test_a_run_is_trained_then_evaluated_then_random_actions_are(tmp_path: Path) -> None:
    series = series_in(tmp_path)
    run = series.runs()[0]
    steps: list[Any] = [next_of(series, run)]
    begin(run, 100)
    steps.append(next_of(series, run))
    evaluate(run, 100, episodes=2)  # of another call, with fewer episodes
    assert next_of(series, run) == steps[1]
    evaluate(run, 100)
    steps.append(next_of(series, run))
    evaluate(run, "random")
    assert next_of(series, run) is None
    assert [planned.command for planned in steps] == ["train", "evaluate", "evaluate"]
    words = [str(run.run_dir), "--policy", "agent", "--episodes", "30", "--device", "cpu"]
    assert list(steps[1].flags) == words and list(steps[2].flags) == [*words[:2], "random", *words[3:]]
    assert {planned.name for planned in steps} == {"a/Catch-seed0"}


def test_random_actions_are_scored_once_for_the_arms_with_the_same_rules(tmp_path: Path) -> None:
    arms = {"a": {}, "b": {"agent.entropy": 0.03}, "c": {"env.max_episode_steps": 50}}
    series = series_in(tmp_path, arms)
    a, b, c, pong = series.runs()[:4]
    begin(a, 100)
    evaluate(a, "random", -3.0)
    assert random_of(series, b) == {"mean": -3.0, "sem": 0.5, "episodes": 30, "commit": "new"}
    assert random_of(series, c) is None and random_of(series, pong) is None
    later = dataclasses.replace(series, commit="later", replace_older=True)
    assert random_of(later, b) is None


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Planned]:
    """What would be started. Every process ends well, and what it would write is there."""
    begun: list[Planned] = []

    def watch(waiting: list[Planned], parallel: int, environment: Any, *, before: Any, after: Any, **_: Any) -> Any:
        for first in waiting:
            planned = first
            while planned:
                before(planned)
                begun.append(planned)
                run = StudyRun("", planned.config, Path())
                if planned.command == "train":
                    begin(run, 100)
                    log(run)
                else:
                    evaluate(run, 100 if "agent" in planned.flags else "random")
                planned = after(planned)
        return [SimpleNamespace(failed=False)] * len(waiting), 0

    monkeypatch.setattr(study_work, "watch", watch)
    return begun


def test_each_run_is_written_down_with_where_it_comes_from(tmp_path: Path, started: list[Planned]) -> None:
    series = series_in(tmp_path, games=("Catch",), steps=100)
    shown: list[int] = []
    runs = series.runs()[:2]
    begin(runs[1], 100, "old")  # trained, not evaluated, before anything changed
    log(runs[1])
    assert make_runs(series, runs, 1, lambda: shown.append(len(started))) == 0
    assert [planned.command for planned in started] == ["train", "evaluate", "evaluate", "evaluate"]
    assert shown == [3, 4]
    found, other = (read_result(run.result) for run in runs)
    (entry,) = found.pop("seeds")
    assert found == {
        "game": "Catch",
        "preset": "tiny",
        "protocol": "standard",
        "study": "mine",
        "arm": "a",
        "device": found["device"],
        "commit": "new",
        "command": "stormfast study mine --games Catch --preset tiny --arms a --steps 100 --seeds 2 --episodes 30",
        "random": {"mean": 3.0, "sem": 0.5, "episodes": 30, "commit": "new"},
    }
    assert (entry["seed"], entry["mean_return"], entry["sem"], entry["episodes"]) == (0, 3.0, 0.5, 30)
    assert (entry["minutes"], entry["steps"], entry["commit"], "begun_at" in entry) == (1.5, 100, "new", False)
    assert entry["command"] == "stormfast train --preset tiny --protocol standard --game=Catch --steps=100"
    assert entry["curve"] == {"step": [100], "seconds": [90.0], "return": [2.0]} and entry["settings"] == {"steps": 100}
    assert (other["seeds"][0]["commit"], other["seeds"][0]["begun_at"]) == ("new", "old")
    assert str(tmp_path) not in json.dumps([found, entry, other])


def test_runs_are_made_anew_where_older_ones_are_replaced(tmp_path: Path, started: list[Planned]) -> None:
    series = series_in(tmp_path / "out", games=("Catch",))
    runs = series.runs()[:1]
    make_runs(series, runs, 1, lambda: None)
    later = dataclasses.replace(series, commit="later", replace_older=True)
    make_runs(later, runs, 1, lambda: None)
    assert [planned.command for planned in started] == ["train", "evaluate", "evaluate"] * 2
    document = read_result(runs[0].result)
    assert (document["commit"], document["random"]["commit"], document["seeds"][0]["commit"]) == ("later",) * 3
    assert len(list(tmp_path.glob("out-replaced/a/Catch-seed0-*"))) == 1


@pytest.mark.slow
def test_a_real_study_is_stopped_and_goes_on(tmp_path: Path, command: list[str]) -> None:
    """Two processes at once; SIGTERM while they train, then the same command."""
    settings = {"acting.random_steps": 64, "logging.tensorboard": False, "logging.every": 10}
    study = {"question": "Why?", "games": ["Catch"], "arms": {"a": settings, "b": settings | {"agent.entropy": 0.03}}}
    (tmp_path / "own.json").write_text(json.dumps(study | {"preset": "tiny", "seeds": 1, "steps": 300}))
    words = [*command, "study", "own.json", "--episodes", "2", "--device", "cpu", "--parallel", "2"]
    first = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while first.poll() is None and len(list(tmp_path.glob("studies/own/*/*/metrics.jsonl"))) < 2:
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    error = first.communicate()[1]
    assert (first.returncode, error.splitlines()[-2]) == (128 + signal.SIGTERM, "stopped; the same command goes on"), (
        error
    )
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    for arm in "ab":
        (entry,) = read_result(tmp_path / "studies" / "own" / "results" / f"Catch-tiny-{arm}.json")["seeds"]
        steps = entry["curve"]["step"]
        assert entry["steps"] == steps[-1] == 300 and steps == sorted(set(steps))
    assert "| Catch | b   | 1/1  |" in done.stdout
