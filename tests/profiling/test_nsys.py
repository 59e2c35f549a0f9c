"""nsys.sh calls Nsight Systems as it must be called, and says in one line what is missing. The tool is a fake."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.profiling.fake_tool import LABEL, FakeTool, is_one_line


@pytest.fixture
def nsys(tmp_path: Path) -> FakeTool:
    return FakeTool("nsys.sh", tmp_path)


def test_it_captures_warm_steps_and_prints_the_summaries(nsys: FakeTool) -> None:
    done = nsys("--preset", "tiny", "--game", "two words")
    report = f"{nsys.directory}/out put/nsys-{LABEL}.nsys-rep"
    assert done.status == 0 and done.err == "" and done.out == report + "\n"
    profile, stats = done.calls
    split = profile.index(str(nsys.python))
    assert profile[:split] == [
        "profile",
        "--trace=cuda,nvtx,osrt",
        "--sample=none",
        "--cpuctxsw=none",
        "--capture-range=cudaProfilerApi",
        "--capture-range-end=stop",
        "--cuda-graph-trace=node",
        f"--output={report.removesuffix('.nsys-rep')}",
    ]
    steps = ["profiling/warm_steps.py", "--device", "cuda", "--steps", "10", "--preset", "tiny", "--game", "two words"]
    assert profile[split + 1 :] == steps
    reports = [word for flag, word in pairwise(stats) if flag == "--report"]
    assert (
        reports == ["nvtx_gpu_proj_sum", "nvtx_sum", "cuda_gpu_kern_sum"]
        and stats[0] == "stats"
        and stats[-1] == report
    )


def test_reports_lie_where_the_caller_says(nsys: FakeTool, tmp_path: Path) -> None:
    done = nsys(cwd=tmp_path, OUT="here")
    assert done.out == f"{tmp_path}/here/nsys-{LABEL}.nsys-rep\n" and (tmp_path / "here").is_dir()
    (tmp_path / "file").touch()
    done = nsys(cwd=tmp_path, OUT="file")
    assert done.status == 2 and "OUT must be a directory that can be written" in done.err


def test_without_the_tool_is_one_line_before_all_else(nsys: FakeTool) -> None:
    (nsys.bin / "nsys").unlink()
    assert is_one_line(
        nsys(PYTHON="no-python"), 2, "needs Nsight Systems, but there is no nsys; it comes with the CUDA toolkit"
    )
    assert is_one_line(nsys(NSYS="/opt/none/nsys"), 2, "there is no /opt/none/nsys")


def test_without_python_is_one_line(nsys: FakeTool) -> None:
    assert is_one_line(nsys(PYTHON="no-python"), 2, "no-python is none that has torch; run make")


def test_what_cannot_be_profiled_is_one_line_and_no_call(nsys: FakeTool) -> None:
    """By the real warm_steps.py."""
    done = nsys("--device", "cpu", PYTHON=sys.executable)
    assert is_one_line(done, 2, "warm_steps: nsys looks at CUDA kernels, got --device cpu") and not done.calls


def test_bad_settings_end_it_before_the_tool_starts(nsys: FakeTool) -> None:
    done = nsys("--preset", "tin")
    assert is_one_line(done, 2, "bad preset") and not done.calls


def test_a_tool_that_fails_is_told(nsys: FakeTool, tmp_path: Path) -> None:
    assert is_one_line(nsys(FAKE="fails"), 1, "nsys profile ended with status 9")
    assert is_one_line(nsys(FAKE="writes-nothing", OUT=str(tmp_path / "empty")), 1, "nsys wrote no ")
    done = nsys(FAKE="fails-after")
    assert is_one_line(done, 1, "nsys stats ended with status 9; the report is there: ")


def test_it_finds_the_root_whatever_cd_prefers(nsys: FakeTool) -> None:
    done = nsys(CDPATH=str(ROOT))
    assert done.status == 0 and done.out.count("\n") == 1 and done.err == "", done


def test_help_needs_no_tool(nsys: FakeTool) -> None:
    (nsys.bin / "nsys").unlink()
    done = nsys("--preset", "storm", "--help")
    assert done.status == 0 and done.out.startswith("When does the host launch what") and "set -euo" not in done.out
