"""What ends a script is one line and its own status; what cannot be written is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import script, table
from bench.peers import collection
from stormfast.errors import UserError
from tests.conftest import ROOT


def raises(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("no such\nthing"), 2, "x: no such thing\n"),
        (KeyboardInterrupt(), 130, "x: interrupted\n"),
    ],
)
def test_what_ends_a_script_is_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.status_of("x", lambda: raises(error)) == status
    assert capsys.readouterr() == ("", line)


def test_a_status_is_kept_and_a_fault_is_not_hidden() -> None:
    assert script.status_of("x", lambda: 7) == 7
    for fault in (ZeroDivisionError(), OSError(28, "No space left on device")):  # stdout works
        with pytest.raises(type(fault)):
            script.status_of("x", lambda fault=fault: raises(fault))


PRINTS = "import sys; from bench.script import status_of; sys.exit(status_of('x', lambda: print('y' * {}) or 0))"


def test_tables_may_be_left_too(tmp_path: Path) -> None:
    """As in `bench/table.py FILE | head`."""
    machine = {
        "device": "x",
        "torch": "2",
        "triton": "3",
        "threads": 1,
        "commit": "abc",
        "dirty": False,
        "command": "pytest bench",
    }
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"machine_info": machine, "benchmarks": []}))
    process = subprocess.Popen(
        [sys.executable, "bench/table.py", str(path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate(timeout=60)[1] == "" and process.returncode == 141


def test_what_nests_too_deep_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    for module, name, arguments in ((table, "table", [str(path)]), (collection, "collection", ["--table", str(path)])):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        assert module.main() == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith(f"{name}: ") and "RecursionError" in err


@pytest.mark.parametrize("length", [1, 10**5])  # held until the end; written at once
def test_a_reader_that_leaves_and_a_full_disk(length: int) -> None:
    command = [sys.executable, "-c", PRINTS.format(length)]
    reader, writer = os.pipe()
    os.close(reader)
    gone = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (gone.returncode, gone.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "x: standard output cannot be written: No space left on device; send it elsewhere\n",
    )


def test_what_cannot_be_written_is_refused_before(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(UserError, match=r"^--json must be a file, but .* is a directory or a device"):
            script.check_writable("--json", path)
    for path in (tmp_path / "missing" / "x.json", tmp_path / "file" / "x.json", Path("/proc/x.json")):
        with pytest.raises(UserError, match=rf"^--json must lie in a directory that can be written, got {path}: "):
            script.check_writable("--json", path)
    with pytest.raises(UserError, match=r"^--json must end in .json or .json.gz, got x.gif$"):
        script.check_writable("--json", Path("x.gif"), ".json", ".json.gz")
    script.check_writable("--json", tmp_path / "x.json", ".json")
    script.check_writable("--json", tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    script.check_writable("--json", tmp_path / "missing" / "x.json", make=True)
    assert list((tmp_path / "missing").iterdir()) == []


def test_a_file_that_fails_in_the_end_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(script, "write_whole", lambda path, data: raises(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"rows.json cannot be written: No space left on device; name a file"):
        script.written(tmp_path / "rows.json", b"{}")
