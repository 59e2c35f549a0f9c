"""The runs of a study: in which order, which are missing, how they go on, and what is put aside."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from stormfast.commands.train import read_config
from stormfast.errors import UserError
from stormfast.runs.manifest import File, Manifest, ReplayFiles
from stormfast.runs.study_results import write_entry
from stormfast.runs.study_runs import Series, StudyRun, commits_of, missing_runs, note_commit, put_aside, training
from stormfast.study import Study, changed_settings, config_of
from tests.model_fixtures import create


@pytest.fixture
def series(tmp_path: Path) -> Series:
    return series_in(tmp_path / "out")


def series_in(out: Path, arms: Any = None, **changes: Any) -> Series:
    study = Study("Why?", arms or {"a": {}, "b": {"agent.entropy": 0.03}}, ("Catch", "Pong"))
    configs = {arm: config_of(study, arm, preset="tiny", steps=100, device="cpu") for arm in study.arms}
    made = Series("mine", study, configs, study.games, 2, 30, out, out / "results", "new")
    return dataclasses.replace(made, **changes)


def finish(run: StudyRun, commit: str = "new", **settings: Any) -> None:
    """Writes a result."""
    entry = {"seed": run.config.seed, "mean_return": 1.0, "commit": commit}
    write_entry(run.result, {}, entry | {"settings": changed_settings(run.config) | settings})


def begin(run: StudyRun, step: int, commit: str = "new") -> None:
    """Writes a run directory with a checkpoint of a step."""
    note_commit(run, commit)
    create(run.config)
    (run.run_dir / "checkpoint").mkdir()
    manifest = Manifest(step, File("state.safetensors", 0, ""), ReplayFiles("", 1, (0,), ()), {})
    (run.run_dir / "checkpoint" / "checkpoint.json").write_text(manifest.to_json())


def test_the_first_seeds_of_all_come_first_and_finished_ones_are_skipped(series: Series) -> None:
    names = [f"{arm}/{game}-seed{seed}" for seed in (0, 1) for game in ("Catch", "Pong") for arm in ("a", "b")]
    runs = series.runs()
    assert [run.name for run in runs] == names
    assert len({run.result for run in runs}) == 4 and runs[1].result == series.out / "results" / "Catch-tiny-b.json"
    assert runs[1].config.agent.entropy == 0.03 and runs[7].config.run_dir == str(series.out / "b" / "Pong-seed1")
    for k in (0, 3, 4):
        finish(runs[k])
    assert [run.name for run in missing_runs(series)] == [names[k] for k in (1, 2, 5, 6, 7)]
    alone = series_in(series.out, {"a": {}})
    assert alone.runs()[0].result == series.out / "results" / "Catch-tiny.json"


def test_results_of_another_commit_are_missing_only_when_they_are_to_be_replaced(series: Series) -> None:
    for run in series.runs():
        finish(run, "old" if run.arm == "a" else "new")
    assert missing_runs(series) == []
    replacing = dataclasses.replace(series, replace_older=True)
    assert {run.arm for run in missing_runs(replacing)} == {"a"} and len(missing_runs(replacing)) == 4


def test_more_steps_go_on_and_other_settings_are_refused(series: Series) -> None:
    first = series.runs()[0]
    finish(first, steps=50)
    assert missing_runs(series)[0] == first
    for settings, message in (
        ({"steps": 200}, "has steps 200, and 100 is asked for"),
        ({"agent.entropy": 0.5}, "has agent.entropy 0.5, and that of its preset is asked for"),
    ):
        finish(first, **settings)
        with pytest.raises(UserError, match=f"seed 0 in .*Catch-tiny-a.json {message}; choose another --out, or add"):
            missing_runs(series)
        assert missing_runs(dataclasses.replace(series, replace_older=True))[0] == first


def test_a_run_begins_or_goes_on_with_the_settings_of_its_arm(series: Series) -> None:
    _, new = series.runs()[:2]
    planned = training(new)
    assert (planned.start_step, planned.name, planned.log.name) == (0, "b/Catch-seed0", "Catch-seed0.log")
    assert read_config(list(planned.flags)).one_run() == new.config
    begin(new, 40)
    planned = training(new)
    assert list(planned.flags) == [f"--run-dir={new.run_dir}", "--resume"] and planned.start_step == 40
    more = series_in(series.out, steps=None)
    longer = dataclasses.replace(more.runs()[1], config=dataclasses.replace(new.config, steps=300))
    assert read_config(list(training(longer).flags)).one_run() == dataclasses.replace(longer.config, resume=True)


def test_directories_in_the_way_are_refused(series: Series) -> None:
    longer, other, foreign = series.runs()[:3]
    begin(longer, 200)
    with pytest.raises(UserError, match="a/Catch-seed0 has 200 steps already, more than 100; choose another --out"):
        training(longer)
    begin(dataclasses.replace(other, config=dataclasses.replace(other.config, num_envs=2)), 40)
    with pytest.raises(UserError, match=r"b/Catch-seed0: .* num_envs was 2 and is now 1; choose another --out, or add"):
        training(other)
    foreign.run_dir.mkdir(parents=True)
    (foreign.run_dir / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="a/Pong-seed0 holds other files"):
        training(foreign)


@pytest.mark.parametrize(
    ("step", "commit", "settings", "is_moved"),
    [
        (100, "old", {}, True),
        (100, "new", {}, False),  # trained, and not yet evaluated
        (40, "old", {}, False),  # it goes on
        (40, "new", {"agent.entropy": 0.5}, True),
    ],
)
def test_only_what_cannot_go_on_is_put_aside(
    step: int, commit: str, settings: Any, is_moved: bool, series: Series
) -> None:
    run = series.runs()[0]
    put_aside(series, run)  # there is none yet
    before = series_in(series.out, {"a": settings, "b": {}}).runs()[0]
    begin(before, step, commit)
    put_aside(series, run)
    assert run.run_dir.exists() != is_moved
    aside = list(series.out.parent.glob("out-replaced/a/Catch-seed0-*/config.json"))
    assert len(aside) == is_moved
    assert training(run).start_step == (0 if is_moved else step)


def test_commits_are_noted_in_order_each_once_in_a_row(series: Series) -> None:
    run = series.runs()[0]
    assert commits_of(run) == ["unknown"]
    for commit in ("a", "a", "b"):
        note_commit(run, commit)
    assert commits_of(run) == ["a", "b"]
    create(run.config)  # what notes them is not in the way of the run
