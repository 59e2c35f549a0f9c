"""What the report refuses, and says so in one line; what it calls a fault. What it measures: tests/kernels/test_ahead_of_time.py."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import kernel_report as report
import pytest
from kernel_cases import Case
from kernel_resources import Resources

from stormfast_kernels import launch

SCRIPT = Path(report.__file__)
GOOD = Resources(
    registers=40, shared=512, stack=0, spilled=0, instructions=400, wide_loads=2, wide_stores=2, tensor_core=0
)


def row(found: Resources, kernel: str = "unimix_sample_kernel", target: int = 86) -> report.Row:
    made = launch.Launch(SimpleNamespace(__name__=kernel), (512,), {}, 4)
    return report.Row(Case("storm", "sample", "bf16", (1024, 32, 32), made), target, found)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the report is refused, on stderr and with exit code 2."""
    assert report.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_the_interpreter_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(launch, "IMPORT_TROUBLE", None)
    monkeypatch.setattr(launch, "INTERPRETED", True)
    assert "unset TRITON_INTERPRET" in refused(capsys)


def test_the_interpreter_is_refused_by_the_script():
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "kernel_report: kernels are compiled here, but TRITON_INTERPRET asks for the interpreter; unset TRITON_INTERPRET\n"
    )


def test_a_missing_triton_is_named(capsys, monkeypatch):
    monkeypatch.setattr(launch, "IMPORT_TROUBLE", "import triton fails: No module named 'triton'")
    assert "No module named 'triton'; pip install triton" in refused(capsys)


class Toolless:
    @property
    def cuobjdump(self):
        raise RuntimeError("Cannot find cuobjdump")


def test_a_missing_disassembler_is_named(capsys, monkeypatch):
    monkeypatch.setattr(launch, "IMPORT_TROUBLE", None)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch, "triton", SimpleNamespace(knobs=SimpleNamespace(nvidia=Toolless())))
    assert "Cannot find cuobjdump; set TRITON_CUOBJDUMP_PATH" in refused(capsys)


class Refusing:
    @property
    def cuobjdump(self):
        raise PermissionError(13, "Permission denied", "/etc/passwd")


def test_a_disassembler_that_cannot_run_is_named(capsys, monkeypatch):
    monkeypatch.setattr(launch, "IMPORT_TROUBLE", None)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch, "triton", SimpleNamespace(knobs=SimpleNamespace(nvidia=Refusing())))
    assert "Permission denied: '/etc/passwd'; set TRITON_CUOBJDUMP_PATH" in refused(capsys)


def test_a_disassembler_of_something_else_is_named(capsys, monkeypatch):
    def fail(compiled, cuobjdump):
        raise RuntimeError("it returned 1\nand said nothing")

    monkeypatch.setattr(report, "find_cuobjdump", lambda: "cat")
    monkeypatch.setattr(report, "check_cache", lambda: None)
    monkeypatch.setattr(report, "measure", fail)
    monkeypatch.setattr(launch.Launch, "compile_for", lambda self, target: None)
    monkeypatch.setattr(report, "specialisation", lambda case: case.name)
    assert "did not work: it returned 1 and said nothing; unset TRITON_CUOBJDUMP_PATH" in refused(
        capsys, "--presets", "tiny", "--targets", "90"
    )


@pytest.mark.parametrize("folder", ["", "file", "file/below"])
def test_a_cache_that_cannot_be_written_is_named(capsys, monkeypatch, tmp_path, folder):
    (tmp_path / "file").touch()
    monkeypatch.setattr(report, "find_cuobjdump", lambda: "cuobjdump")
    path = str(tmp_path / folder) if folder else ""
    monkeypatch.setattr(launch, "triton", SimpleNamespace(knobs=SimpleNamespace(cache=SimpleNamespace(dir=path))))
    line = refused(capsys)
    assert path in line and "TRITON_CACHE_DIR" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--targets", "75"], "must be some of 80,86,89,90,120, got '75'"),
        (["--targets", ""], "got ''"),
        (["--presets", "storm,huge"], "must be some of storm,fast,cpu,tiny, got 'storm,huge'"),
    ],
)
def test_bad_options_are_refused(capsys, arguments, message):
    assert message in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("found", "kernel", "words"),
    [
        (GOOD, "unimix_sample_kernel", []),
        (Resources(40, 512, 8, 0, 400, 2, 2, 0), "unimix_sample_kernel", ["spills: 8 bytes of stack"]),
        (Resources(40, 100 * 1024, 0, 0, 400, 2, 2, 0), "unimix_sample_kernel", ["102400 bytes of shared memory"]),
        (
            Resources(40, 512, 0, 0, 400, 0, 0, 0),
            "unimix_sample_kernel",
            ["no load of 16 bytes", "no store of 16 bytes"],
        ),
        (Resources(40, 512, 0, 0, 400, 0, 0, 0), "attention_step_kernel", ["no load of 16 bytes"]),
        (Resources(40, 512, 0, 0, 400, 2, 2, 4), "unimix_sample_kernel", ["4 tensor-core instructions"]),
    ],
)
def test_faults(found, kernel, words):
    lines = report.faults(row(found, kernel))
    assert [word for word, line in zip(words, lines, strict=True) if not line.startswith(word)] == []


def test_the_limit_of_shared_memory_is_the_targets():
    found = Resources(40, 150 * 1024, 0, 0, 400, 2, 2, 0)
    assert [target for target in report.GPUS if report.faults(row(found, target=target))] == [86, 89, 120]


@pytest.mark.parametrize(("checking", "code"), [(["--check"], 1), ([], 0)])
def test_a_fault_is_a_line_and_an_exit_code_where_it_is_asked_for(capsys, monkeypatch, tmp_path, checking, code):
    fault = "storm/sample/bf16 on sm_86: spills: 8 bytes of stack, 0 bytes stored there"
    spilling = dataclasses.replace(GOOD, stack=8)
    monkeypatch.setattr(report, "survey", lambda wanted, targets: [row(GOOD, target=90), row(spilling)])
    monkeypatch.setattr(report, "text_table", lambda rows: f"{len(rows)} rows")
    monkeypatch.setattr(report, "summary", lambda rows: "")
    monkeypatch.setattr(launch, "triton", SimpleNamespace(__version__="3.7.1"))
    monkeypatch.setattr(report.Row, "record", lambda row: row.name)
    path = tmp_path / "rows.json"
    assert report.main([*checking, "--json", str(path)]) == code
    assert capsys.readouterr().err.splitlines() == [fault] * code
    saved = json.loads(path.read_text())
    assert saved["rows"] == ["storm/sample/bf16 on sm_90", "storm/sample/bf16 on sm_86"]
    assert saved["breaches"] == [fault]


def test_a_file_that_cannot_be_written_is_named_before_compiling(capsys, tmp_path):
    assert f"must be a file, but {tmp_path} is a directory or a device" in refused(capsys, "--json", str(tmp_path))
    assert "must be a file, but /dev/null is a directory or a device" in refused(capsys, "--json", "/dev/null")
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing" / "rows.json", tmp_path / "file" / "rows.json", Path("/proc/rows.json")):
        assert f"--json must lie in a directory that can be written, got {path}: " in refused(
            capsys, "--json", str(path)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
