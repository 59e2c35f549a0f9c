"""nsys.sh and ncu.sh call their tools as they must be called, and mistakes are one line. The tools are fakes."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.profiling.fake_tool import LABEL, FakeTool, is_one_line

KERNEL = "attention_step_kernel"
KERNELS = (KERNEL, "unimix_gradient_kernel", "unimix_sample_kernel")


@pytest.fixture
def nsys(tmp_path: Path) -> FakeTool:
    return FakeTool("nsys.sh", tmp_path)


@pytest.fixture
def ncu(tmp_path: Path) -> FakeTool:
    return FakeTool("ncu.sh", tmp_path)


@pytest.fixture(params=["nsys", "ncu"])
def tool(request: pytest.FixtureRequest) -> FakeTool:
    return request.getfixturevalue(request.param)


def test_nsys_captures_warm_steps_and_prints_the_summaries(nsys: FakeTool) -> None:
    done = nsys("--preset", "tiny", "--game", "two words")
    report = f"{nsys.directory}/out put/nsys-{LABEL}.nsys-rep"
    assert done.status == 0 and done.err == "" and done.out == report + "\n"
    profile, stats = done.calls
    split = profile.index(str(nsys.python))
    assert {"--capture-range=cudaProfilerApi", "--capture-range-end=stop", "--cuda-graph-trace=node"} < set(
        profile[:split]
    )
    steps = "-m profiling.warm_steps --device cuda --steps 10 --preset tiny --game".split()
    assert profile[split + 1 :] == [*steps, "two words"]
    reports = [word for flag, word in pairwise(stats) if flag == "--report"]
    assert reports == ["nvtx_gpu_proj_sum", "nvtx_sum", "cuda_gpu_kern_sum"] and stats[-1] == report


def test_ncu_profiles_launches_of_one_kernel(ncu: FakeTool) -> None:
    done = ncu("--preset", "tiny", KERNEL, "--count", "03", "--game=two words", "--skip", "010")
    report = f"{ncu.directory}/out put/ncu-{KERNEL}-{LABEL}"
    assert done.status == 0 and done.err == "" and done.out == f"{report}.ncu-rep\n"
    profile, shown = done.calls
    split = profile.index(str(ncu.python))
    options = dict(pairwise(profile[:split]))
    assert options["--kernel-name"] == f"regex:^{KERNEL}$" and options["--profile-from-start"] == "off"
    assert (options["--launch-count"], options["--launch-skip"]) == ("3", "10")  # decimal
    steps = "-m profiling.warm_steps --device cuda --steps 1 --preset tiny".split()
    assert profile[split + 1 :] == [*steps, "--game=two words"]
    assert shown[:2] == ["--import", f"{report}.ncu-rep"]


def test_ncu_takes_our_kernels_by_name_and_others_by_expression(ncu: FakeTool) -> None:
    for name in KERNELS:
        assert ncu(name).status == 0
    for name in ("attention", ".*"):
        assert is_one_line(ncu(name), 2, f"'{name}' is none of our kernels, {KERNELS[0]} {KERNELS[1]}")
    done = ncu("--any", "nvjet|void gemm<.*>")
    assert dict(pairwise(done.calls[-2]))["--kernel-name"] == "regex:nvjet|void gemm<.*>"
    assert done.out.endswith(f"/ncu-nvjet-void-gemm-----{LABEL}.ncu-rep\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], f"needs the name of a kernel, one of {' '.join(KERNELS)}"),
        ([KERNEL, "other"], f"takes one kernel, got '{KERNEL}' and 'other'"),
        ([KERNEL, "--count", "x"], "--count must be a number of launches, got 'x'"),
        ([KERNEL, "--skip", "9" * 20], f"--skip must be a number of launches, got '{'9' * 20}'"),
        ([KERNEL, "--count", "0"], "--count must be at least 1, got 0"),
        ([KERNEL, "--preset", "tin"], "bad preset"),
    ],
)
def test_bad_arguments_are_one_line(ncu: FakeTool, arguments: list[str], message: str) -> None:
    done = ncu(*arguments)
    assert is_one_line(done, 2, message) and not done.calls


def test_reports_lie_where_the_caller_says(nsys: FakeTool, tmp_path: Path) -> None:
    done = nsys(cwd=tmp_path, OUT="here", CDPATH=str(tmp_path))
    assert done.out == f"{tmp_path}/here/nsys-{LABEL}.nsys-rep\n"
    (tmp_path / "file").touch()
    done = nsys(cwd=tmp_path, OUT="file")
    assert done.status == 2 and "OUT must be a directory that can be written" in done.err


def test_what_is_missing_is_one_line(tool: FakeTool) -> None:
    assert is_one_line(tool(KERNEL, PYTHON="no-python"), 2, "no-python is none that has torch; run make")
    (tool.bin / tool.tool).unlink()
    assert is_one_line(tool(KERNEL), 2, f"there is no {tool.tool}; it comes with the CUDA toolkit")
    help_text = tool("--help")
    assert help_text.status == 0 and "set -euo" not in help_text.out


def test_what_cannot_be_profiled_is_one_line_and_no_call(nsys: FakeTool) -> None:
    """By the real warm_steps."""
    done = nsys("--device", "cpu", PYTHON=sys.executable)
    assert is_one_line(done, 2, "warm_steps: error: nsys needs a CUDA GPU, but got --device cpu") and not done.calls


def test_a_tool_that_fails_is_one_line(tool: FakeTool, tmp_path: Path) -> None:
    arguments = [KERNEL] if tool.tool == "ncu" else []
    assert is_one_line(tool(*arguments, FAKE="fails"), 1, "ended with status 9")
    assert is_one_line(tool(*arguments, FAKE="fails-after"), 1, "ended with status 9; the report is there: ")
    nothing = tool(*arguments, FAKE="writes-nothing", OUT=str(tmp_path / "empty"))
    assert nothing.status == 1 and nothing.err.count("\n") == 1
