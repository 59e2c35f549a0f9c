"""The table of a study, and its figure."""

from pathlib import Path
from typing import Any

import pytest

from stormfast.runs.study_report import lines_of, mean_sem, table, write_report
from stormfast.runs.study_results import write_entry
from stormfast.runs.study_runs import Series
from stormfast.study import Study, config_of


@pytest.fixture
def series(tmp_path: Path) -> Series:
    study = Study("Why?", {"a": {}, "b": {"agent.entropy": 0.03}}, ("Pong", "Catch"), show="world_model/total")
    configs = {arm: config_of(study, arm, preset="tiny") for arm in study.arms}
    return Series("mine", study, configs, study.games, 3, 30, tmp_path, tmp_path / "results", "new")


def write(series: Series, arm: str, seed: int, mean: float, commit: str, **more: Any) -> None:
    entry = {"seed": seed, "mean_return": mean, "minutes": 10.0, "steps": 1_000 + seed, "commit": commit}
    write_entry(series.run_of(arm, "Pong", 0).result, {"random": {"mean": -20.5}}, entry | more)


def test_the_table_has_means_errors_and_marks_other_commits(series: Series) -> None:
    for seed, mean in enumerate((1.0, 2.0, 6.0)):
        write(series, "a", seed, mean, "old" if seed else "new")
    write(series, "a", 3, 99.0, "new")  # more seeds than are asked for
    write(series, "b", 0, 1234.5, "new")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table(series, lines_of(series)).split("\n")
    ]
    assert rows[0] == ["game", "arm", "runs", "mean return", "random", "minutes", "steps", "commit"]
    error = (14 / 2 / 3) ** 0.5  # variance 7 of three values
    assert rows[2] == ["Pong", "a", "3/3", f"3.00 ± {error:.3g}", "-20.50", "10.0", "1,000 to 1,002", "new, old*"]
    assert rows[3] == ["Pong", "b", "1/3", "1,234", "-20.50", "10.0", "1,000", "new"]
    assert rows[4] == ["Catch", "a", "0/3", "-", "-", "-", "-", "-"]
    assert rows[-1] == ["\\* not of the current commit, new"]
    assert mean_sem([]) == "-"


def test_curves_are_drawn_where_there_are_some(series: Series, monkeypatch: pytest.MonkeyPatch) -> None:
    Axes = pytest.importorskip("matplotlib.axes").Axes
    write_report(series)
    assert "Why?" in (series.out / "table.md").read_text() and not (series.out / "curves.png").exists()
    drawn: list[Any] = []
    plot = Axes.plot

    def noted(self: Any, *xy: Any, **style: Any) -> Any:
        drawn.append((*xy, style["color"]))
        return plot(self, *xy, **style)

    monkeypatch.setattr(Axes, "plot", noted)
    curve = {"seconds": [60, 120, 180], "return": [1, 2, 3], "world_model/total": [None, 5.0, 4.0]}
    write(series, "a", 0, 1.0, "new", curve=curve)
    write(series, "b", 0, 1.0, "new")  # a result without a curve
    write_report(series)
    assert drawn == [((2.0, 3.0), (5.0, 4.0), "C0"), ((), (), "C1")]
    assert (series.out / "curves.png").read_bytes().startswith(b"\x89PNG")
