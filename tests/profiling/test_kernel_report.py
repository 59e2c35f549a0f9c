"""The report's faults and refusals. What it measures: tests/kernels/test_ahead_of_time.py."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.kernel_cases import CASES, PresetCase
from profiling import kernel_report as report
from profiling.kernel_resources import Resources
from stormfast_kernels import launch

GOOD = Resources(
    registers=40, shared=512, stack=0, spilled=0, instructions=400, wide_loads=2, wide_stores=2, tensor_core=0
)
SAMPLE, ATTENTION = (PresetCase("storm", CASES[name], "bf16") for name in ("rollout-sample", "attention-step"))


class Tool:
    """triton's knobs, where looking for the disassembler raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    @property
    def cuobjdump(self) -> None:
        raise self.error


def fake_triton(error: Exception | None = None, cache: str = "/tmp") -> SimpleNamespace:
    nvidia = Tool(error or RuntimeError("no tool"))
    return SimpleNamespace(knobs=SimpleNamespace(nvidia=nvidia, cache=SimpleNamespace(dir=cache)))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"IMPORT_TROUBLE": "No module named 'triton'"}, "No module named 'triton'"),
        ({"INTERPRETED": True}, "TRITON_INTERPRET"),
        ({"triton": fake_triton(RuntimeError("Cannot find cuobjdump"))}, "TRITON_CUOBJDUMP_PATH"),
        ({"triton": fake_triton(PermissionError(13, "Permission denied", "/etc/passwd"))}, "/etc/passwd"),
    ],
)
def test_what_the_report_needs_is_named_in_one_line(settings, word, capsys, monkeypatch):
    for name, value in ({"IMPORT_TROUBLE": None, "INTERPRETED": False} | settings).items():
        monkeypatch.setattr(launch, name, value)
    assert report.main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and word in err


@pytest.mark.parametrize("folder", ["", "file", "file/below"])
def test_a_cache_that_cannot_be_written_is_named(folder, capsys, monkeypatch, tmp_path: Path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(report, "find_cuobjdump", lambda: "cuobjdump")
    monkeypatch.setattr(launch, "triton", fake_triton(cache=str(tmp_path / folder) if folder else ""))
    assert report.main([]) == 2
    assert "TRITON_CACHE_DIR" in capsys.readouterr().err


def test_a_disassembler_that_fails_is_named(capsys, monkeypatch):
    def fail(compiled, cuobjdump):
        raise RuntimeError("it returned 1\nand said nothing")

    monkeypatch.setattr(report, "find_cuobjdump", lambda: "cat")
    monkeypatch.setattr(report, "check_cache", lambda: None)
    monkeypatch.setattr(report, "measure", fail)
    monkeypatch.setattr(launch.Launch, "compile_for", lambda self, target: None)
    monkeypatch.setattr(report, "specialisation", lambda case, target: case.name)
    assert report.main(["--presets", "tiny", "--targets", "90"]) == 2
    assert "it returned 1 and said nothing" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--targets", "75"], ["--targets", ""], ["--presets", "storm,huge"]])
def test_bad_options_are_refused(arguments, capsys):
    assert report.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"got '{arguments[1]}'" in err


@pytest.mark.parametrize(
    ("found", "case", "words"),
    [
        (GOOD, SAMPLE, []),
        (Resources(40, 512, 8, 0, 400, 2, 2, 0), SAMPLE, ["spills"]),
        (Resources(40, 100 * 1024, 0, 0, 400, 2, 2, 0), SAMPLE, ["102400 bytes of shared memory"]),
        (Resources(40, 512, 0, 0, 400, 0, 0, 0), SAMPLE, ["no load of 16 bytes", "no store of 16 bytes"]),
        (Resources(40, 512, 0, 0, 400, 0, 0, 0), ATTENTION, ["no load of 16 bytes"]),
        (Resources(40, 512, 0, 0, 400, 2, 2, 4), SAMPLE, ["4 tensor-core instructions"]),
    ],
)
def test_faults(found, case, words):
    lines = report.Row(case, 86, found).faults()
    assert len(lines) == len(words) and all(word in line for word, line in zip(words, lines, strict=True))


def test_a_fault_is_an_exit_status_where_it_is_asked_for(capsys, monkeypatch):
    rows = [report.Row(SAMPLE, 90, GOOD), report.Row(SAMPLE, 86, Resources(40, 512, 8, 0, 400, 2, 2, 0))]
    monkeypatch.setattr(report, "survey", lambda cases, targets: rows)
    for arguments, status in ([], 0), (["--check"], 1):
        assert report.main(arguments) == status
        out, err = capsys.readouterr()
        assert len(out.splitlines()) == 3 and err.count("storm/rollout-sample/bf16 on sm_86") == status
