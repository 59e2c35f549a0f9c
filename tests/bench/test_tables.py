"""The documents' tables: what the committed results say, and nothing without its device, commit and command."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import record_tables, tables
from stormfast.errors import UserError
from tests.conftest import ROOT

Main = Callable[..., int]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Main:
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["tables", *arguments])
        return tables.main()

    return run


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A document with every table, and the committed results, in a repository of their own."""
    shutil.copytree(ROOT / "bench" / "results", tmp_path / "bench" / "results")
    shutil.copy(ROOT / "bench" / "counts.json", tmp_path / "bench")
    blocks = [f"{name}:\n<!-- results: {name} -->\n<!-- end of results -->\n" for name in tables.TABLES]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "speed.md").write_text("\n".join(blocks))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    return tmp_path


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_committed_documents_say_what_the_results_say(main: Main) -> None:
    assert main("--check") == 0


def test_tables_are_written_between_their_markers(repository: Path, main: Main) -> None:
    document = repository / "docs" / "speed.md"
    before = document.read_text()
    assert main("--check") == 1 and document.read_text() == before
    assert main() == 0 and main("--check") == 0
    after = document.read_text()
    assert after.count("<details>") == len(tables.TABLES)
    change(next(repository.glob("bench/results/*/profile-storm.json")), step_ms=1234.5)
    assert main("--check") == 1 and main() == 0
    assert "| 1,234 |" in document.read_text() and "| 1,234 |" not in after
    assert tables.BLOCK.sub("", after) == tables.BLOCK.sub("", before)
    machine = json.loads(next(repository.glob("bench/results/*/profile-storm.json")).read_text())
    assert f", commit {machine['commit']}: `{machine['command']}`" in after


def test_profiles_of_the_suite_are_steps_too(repository: Path) -> None:
    result = json.loads(next(repository.glob("bench/results/*/profile-storm.json")).read_text())
    machine = {"device": "Some GPU", "commit": "abc", "dirty": False}
    names = {"profile-storm": "passed", "profile-fast": "failed", "counts": "passed"}
    jobs = [{"job": job, "status": status, "command": job, "result": result} for job, status in names.items()]
    path = repository / "bench" / "results" / "some-gpu" / "suite-1.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"machine": machine, "jobs": jobs}))
    rows = [line for line in tables.TABLES["steps"]().splitlines() if line.endswith("| Some GPU | abc |")]
    assert len(rows) == 1 and rows[0].startswith("| storm |")


def test_only_the_last_result_of_a_device_is_shown(repository: Path) -> None:
    folder = repository / "bench" / "results" / "some-gpu"
    folder.mkdir()
    record = {"bench": "agent", "preset": "storm", "seconds_iqr": 0.0, "launches": 3, "host_reads": 0}
    machine = {"device": "Some GPU", "commit": "abc", "dirty": False, "command": "python -m pytest bench"}
    for day, seconds in (("2026-01-02", 0.002), ("2026-01-01", 0.007)):
        benchmarks = [{"extra_info": record | {"seconds": seconds}}, {"extra_info": {"bench": "env"}}]
        content = {"machine_info": machine, "benchmarks": benchmarks, "datetime": f"{day}T00:00:00"}
        (folder / f"{day}-abc.json").write_text(json.dumps(content))
    rows = [line for line in tables.TABLES["benches"]().splitlines() if line.endswith("| Some GPU | abc |")]
    assert rows == ["| agent | storm | 2 (0) | - | - | - | - | 3 | 0 | Some GPU | abc |"]


def test_results_of_studies_name_the_commit_of_each_seed(repository: Path) -> None:
    entry = {"mean_return": 1.25, "sem": 0.5, "minutes": 9.6, "steps": 15_000, "device": "A CPU"}
    entries = [entry | {"seed": 0, "commit": "abc"}, entry | {"seed": 1, "commit": "def", "mean_return": 2}]
    about = {"game": "Pong", "preset": "cpu", "device": "A CPU", "commit": "def", "command": "stormfast study table"}
    path = repository / "bench" / "results" / "learning" / "Pong-cpu.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(about | {"random": {"mean": -2, "sem": 0.1}, "seeds": entries}))
    text = tables.TABLES["learning"]()
    cells = "| Pong | cpu | 0, 1 | 15,000 | 10, 10 | 1.25 ± 0.500, 2.00 ± 0.500 | -2.00 ± 0.100 | A CPU | abc, def |"
    assert cells in text.splitlines() and "- A CPU, commit abc: `stormfast study table`" in text.splitlines()
    change(path, seeds=[entries[0] | {"commit": "abc-dirty"}])
    with pytest.raises(UserError, match=r"Pong-cpu.json"):
        tables.TABLES["learning"]()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("profile-storm.json", {"commit": "unknown"}),
        ("profile-storm.json", {"command": ""}),
        ("profile-storm.json", {"dirty": True}),
        ("learning-Catch-cpu.json", []),
        ("counts.json", {"counts": {}}),
    ],
)
def test_a_result_without_its_source_or_of_another_shape_is_refused_in_one_line(
    repository: Path, main: Main, name: str, content: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next((repository / "bench").rglob(name))
    old = json.loads(path.read_text())
    path.write_text(json.dumps(old | content if isinstance(content, dict) else content))
    assert main() == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and str(path) in err


def test_an_unknown_table_is_refused(repository: Path, main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "README.md").write_text("<!-- results: sped -->\n<!-- end of results -->\n")
    assert main() == 2
    assert "'sped'" in capsys.readouterr().err


def test_a_kernel_is_compared_with_its_eager_provider() -> None:
    kernel = {"kernel": "sample", "shape": "[2, 3]", "dtype": "float32", "timing": "CUDA graph", "seconds_iqr": 1e-7}
    records: list[dict[str, Any]] = [
        kernel | {"provider": "eager", "seconds": 60e-6, "fraction_of_copy_bandwidth": 0.11},
        kernel | {"provider": "triton", "seconds": 10e-6, "fraction_of_copy_bandwidth": 0.68},
    ]
    last = record_tables.of_records(records).splitlines()[-1]
    assert last == "| sample | [2, 3] | float32 | triton | 10.0 (0.1) | 6.00x | 68% | CUDA graph |"
