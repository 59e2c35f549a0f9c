"""The READMEs' tables: what the committed results say, and nothing without its device, commit and command."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench import readme_tables
from bench.grid import grid

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The READMEs and the results in a folder of their own, which the script takes for the repository."""
    for name in readme_tables.READMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "bench" / "counts.json", tmp_path / "bench")
    for path in (ROOT / "bench" / "results").glob("*/*.json"):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    monkeypatch.setattr(readme_tables, "ROOT", tmp_path)
    return tmp_path


def change(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | values))


def test_the_committed_readmes_say_what_the_results_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert readme_tables.main(["--check"]) == 0
    assert "every table is what the results say" in capsys.readouterr().out
    text = "".join((ROOT / name).read_text() for name in readme_tables.READMES)
    assert set(readme_tables.BLOCKS) == {match[2] for match in readme_tables.BLOCK.finditer(text)}


def test_every_source_is_told_below_its_table(copied: Path) -> None:
    profile = next(copied.glob("bench/results/*/profile-storm.json"))
    found = json.loads(profile.read_text())
    text = readme_tables.steps()
    row = next(line for line in text.splitlines() if line.startswith("| storm | "))
    assert f"| {found['commit']} |" in row and found["device_name"] in row
    assert f"commit {found['commit']}: `{found['command']}`" in text


def test_a_changed_result_makes_the_readmes_stale_and_is_written(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(next(copied.glob("bench/results/*/profile-storm.json")), step_ms=1234.5)
    before = (copied / "README.md").read_text()
    assert readme_tables.main(["--check"]) == 1
    assert "README.md must say what the results say; run `make results`" in capsys.readouterr().err
    assert (copied / "README.md").read_text() == before
    assert readme_tables.main([]) == 0
    after = (copied / "README.md").read_text()
    assert "| 1,234 |" in after and after != before
    assert readme_tables.main(["--check"]) == 0
    outside = [readme_tables.BLOCK.sub("", text) for text in (before, after)]
    assert outside[0] == outside[1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"commit": None}, "lacks its commit"),
        ({"commit": "unknown", "command": ""}, "lacks its commit and command"),
        ({"commit": "abc-dirty"}, "changes that no commit has"),
    ],
)
def test_a_number_without_its_source_is_refused(
    copied: Path, values: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(next(copied.glob("bench/results/*/profile-storm.json")), **values)
    before = (copied / "README.md").read_text()
    assert readme_tables.main([]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and message in err and "profile-storm.json" in err
    assert (copied / "README.md").read_text() == before


def test_a_table_that_is_not_there_and_a_damaged_result_are_one_line(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "README.md").write_text("<!-- results: speed -->\n<!-- end of results -->\n")
    assert readme_tables.main([]) == 2
    assert "results named 'speed'" in capsys.readouterr().err
    next(copied.glob("bench/results/*/profile-storm.json")).write_text("{")
    (copied / "README.md").write_text("<!-- results: steps -->\n<!-- end of results -->\n")
    assert readme_tables.main([]) == 2
    assert "must hold a result" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pattern", "content"),
    [
        ("*/profile-storm.json", []),
        ("*/profile-storm.json", None),
        ("*/learning-Catch-cpu.json", {"runs": [{"commands": []}], "device": "a", "commit": "b"}),
        ("*/learning-Catch-cpu.json", {"runs": []}),
        ("../counts.json", {"counts": {}}),
    ],
)
def test_a_result_of_another_shape_is_one_line(
    copied: Path, pattern: str, content: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = (
        copied / "bench" / "counts.json"
        if pattern.startswith("..")
        else next((copied / "bench" / "results").glob(pattern))
    )
    path.write_text(json.dumps(content))
    before = (copied / "README.md").read_text()
    assert readme_tables.main([]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and path.name in err
    assert (copied / "README.md").read_text() == before


def test_every_run_must_have_its_commands(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next((copied / "bench" / "results").glob("*/learning-Catch-cpu.json"))
    content = json.loads(path.read_text())
    content["runs"][1]["commands"] = []
    path.write_text(json.dumps(content))
    assert readme_tables.main([]) == 2
    assert "lacks its command" in capsys.readouterr().err


def test_what_stands_in_a_cell_stays_there() -> None:
    assert grid(["a", "b"], [["x|y", "u\nv"], ["x\\|y", ""]]).splitlines()[2:] == ["| x\\|y | u v |", "| x\\|y |  |"]
    assert str(readme_tables.Source("d", "c", "echo `ls`")).endswith(": ``echo `ls` ``") or "``" in str(
        readme_tables.Source("d", "c", "`ls`")
    )


def test_only_the_last_saved_run_of_a_device_is_shown(copied: Path) -> None:
    folder = copied / "bench" / "results" / "some-gpu"
    folder.mkdir()
    record = {
        "bench": "agent",
        "phase": "agent",
        "preset": "storm",
        "seconds": 0.001,
        "seconds_iqr": 0.0,
        "launches": 3,
        "host_reads": 0,
    }
    machine = {"device": "Some GPU", "commit": "abc", "dirty": False, "command": "python -m pytest bench"}
    for day, seconds in (("2026-01-02", 0.002), ("2026-01-01", 0.007)):
        benchmarks = [{"extra_info": record | {"seconds": seconds}}, {"extra_info": {"bench": "env"}}]
        content = {"machine_info": machine, "benchmarks": benchmarks, "datetime": f"{day}T00:00:00"}
        (folder / f"{day}-abc.json").write_text(json.dumps(content))
    rows = [line for line in readme_tables.benches().splitlines() if line.startswith("| Some GPU |")]
    assert rows == ["| Some GPU | agent | storm | 2 (0) | - | - | - | - | 3 | 0 |"]


def test_a_run_that_the_suite_trained_is_among_the_scores(copied: Path) -> None:
    folder = copied / "bench" / "results" / "some-gpu"
    folder.mkdir()
    call = {"command": "stormfast train --game Pong", "commit": "abc"}
    evaluation = {"mean": 20.5, "mean_interval_95": [20.1, 20.9], "human_normalised": 1.1, "episodes": 100}
    run = {
        "game": "Pong",
        "preset": "storm",
        "seed": 3,
        "step": 100_000,
        "training_seconds": 660.0,
        "evaluation": evaluation,
        "calls": [call],
    }
    suite = {
        "machine": {"device": "Some GPU", "commit": "abc", "dirty": False},
        "begun": "2026-01-01",
        "stages": [],
        "training": [run],
    }
    (folder / "suite-2026-01-01-abc.json").write_text(json.dumps(suite))
    text = readme_tables.learning()
    assert "| Pong | storm | 3 | 100,000 | 11 | 20.5 (20.1 to 20.9) | - | Some GPU | abc |" in text
    assert "- Some GPU, commit abc: `stormfast train --game Pong`" in text
