"""The report's faults and refusals. What it measures: tests/kernels/test_ahead_of_time.py."""

import pytest

from bench.kernel_cases import CASES, PresetCase
from profiling import kernel_report as report
from profiling.kernel_resources import Resources
from stormfast_kernels import launch

GOOD = Resources(
    registers=40, shared=512, stack=0, spilled=0, instructions=400, wide_loads=2, wide_stores=2, tensor_core=0
)
SAMPLE, ATTENTION = (PresetCase("storm", CASES[name], "bf16") for name in ("rollout-sample", "attention-step"))


def is_one_line(capsys: pytest.CaptureFixture[str], *words: str) -> bool:
    out, err = capsys.readouterr()
    return out == "" and err.count("\n") == 1 and all(word in err for word in words)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"IMPORT_TROUBLE": "No module named 'triton'"}, "No module named 'triton'"),
        ({"INTERPRETED": True}, "unset TRITON_INTERPRET"),
    ],
)
def test_what_the_report_needs_is_named_in_one_line(settings, word, capsys, monkeypatch):
    for name, value in ({"IMPORT_TROUBLE": None, "INTERPRETED": False} | settings).items():
        monkeypatch.setattr(launch, name, value)
    assert report.main([]) == 2
    assert is_one_line(capsys, word)


@pytest.mark.parametrize(
    "error", [RuntimeError("it returned 1\nand said nothing"), PermissionError(13, "Permission denied", "/cache")]
)
def test_a_compiler_or_disassembler_that_fails_is_named(error, capsys, monkeypatch):
    def fail() -> str:
        raise error

    monkeypatch.setattr(launch, "IMPORT_TROUBLE", None)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(report, "find_cuobjdump", fail)
    assert report.main(["--presets", "tiny", "--targets", "90"]) == 2
    assert is_one_line(capsys, " ".join(str(error).split()), "TRITON_CACHE_DIR", "TRITON_CUOBJDUMP_PATH")


@pytest.mark.parametrize("arguments", [["--targets", "75"], ["--presets", "storm", "huge"]])
def test_bad_options_are_refused(arguments, capsys):
    assert report.main(arguments) == 2
    assert is_one_line(capsys, "invalid choice", arguments[-1])


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
