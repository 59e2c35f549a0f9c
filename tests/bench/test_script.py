"""What ends a script is one line and its own status; what cannot be written is refused before the work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import script
from stormfast.errors import UserError
from tests.conftest import ROOT


def raises(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(("error", "status"), [(UserError("no such\nthing"), 2), (KeyboardInterrupt(), 130)])
def test_what_ends_a_script_is_one_line(error: BaseException, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.status_of("x", lambda: raises(error)) == status
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("x: ") and err.count("\n") == 1


def test_a_status_is_kept_and_a_fault_is_not_hidden() -> None:
    assert script.status_of("x", lambda: 7) == 7
    for fault in (ZeroDivisionError(), OSError(28, "No space left on device")):  # stdout works
        with pytest.raises(type(fault)):
            script.status_of("x", lambda fault=fault: raises(fault))


@pytest.mark.parametrize("length", [1, 10**5])  # held until the end; written at once
def test_a_reader_that_leaves_and_a_full_disk(length: int) -> None:
    program = (
        f"import sys; from bench.script import status_of; sys.exit(status_of('x', lambda: print('y' * {length}) or 0))"
    )
    command = [sys.executable, "-c", program]
    reader, writer = os.pipe()
    os.close(reader)
    gone = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (gone.returncode, gone.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr


def test_what_cannot_be_written_is_refused_before(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, Path("/dev/null"), tmp_path / "missing" / "x.json", tmp_path / "file" / "x.json"):
        with pytest.raises(UserError, match=rf"^--json .*{path}"):
            script.check_writable("--json", path)
    with pytest.raises(UserError, match=r"\.json or \.json\.gz.*x\.gif"):
        script.check_writable("--json", Path("x.gif"), ".json", ".json.gz")
    script.check_writable("--json", tmp_path / "x.json", ".json")
    script.check_writable("--json", tmp_path / "missing" / "x.json", make=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "missing"]


def test_a_file_that_fails_in_the_end_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(script, "write_whole", lambda path, data: raises(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"rows\.json"):
        script.written(tmp_path / "rows.json", b"{}")


def test_provenance_names_the_command() -> None:
    found = script.provenance("python -m bench.x", ["--preset", "two words"])
    assert found["command"] == "python -m bench.x --preset 'two words'"
    assert set(found) == {"commit", "dirty", "date", "command"}
