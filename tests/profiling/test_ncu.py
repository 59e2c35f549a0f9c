"""ncu.sh calls Nsight Compute on one of our kernels, and says in one line what is missing. The tool is a fake."""

from pathlib import Path

import pytest

from bench import kernel_cases
from stormfast_kernels import launch
from tests.conftest import ROOT
from tests.profiling.fake_tool import LABEL, FakeTool, is_one_line

KERNEL = "attention_step_kernel"


@pytest.fixture
def ncu(tmp_path: Path) -> FakeTool:
    return FakeTool("ncu.sh", tmp_path)


def test_it_profiles_launches_of_one_kernel(ncu: FakeTool) -> None:
    done = ncu("--preset", "tiny", KERNEL, "--count", "3", "--game=two words", "--skip", "7")
    report = f"{ncu.directory}/out put/ncu-{KERNEL}-{LABEL}"
    assert done.status == 0 and done.err == "" and done.out == f"{report}.ncu-rep\n"
    profile, shown = done.calls
    split = profile.index(str(ncu.python))
    assert profile[:split] == [
        *("--set", "full"),
        *("--clock-control", "none"),
        *("--profile-from-start", "off"),
        *("--graph-profiling", "node"),
        *("--kernel-name", f"regex:^{KERNEL}$"),
        *("--launch-skip", "7"),
        *("--launch-count", "3"),
        *("--export", report),
    ]
    assert profile[split + 1 :] == [
        "profiling/warm_steps.py",
        "--device",
        "cuda",
        "--steps",
        "1",
        "--preset",
        "tiny",
        "--game=two words",
    ]
    assert shown[:2] == ["--import", f"{report}.ncu-rep"]


def test_without_more_it_takes_five_launches(ncu: FakeTool) -> None:
    profile = ncu(KERNEL).calls[0]
    assert profile[profile.index("--launch-count") + 1] == "5" and profile[profile.index("--launch-skip") + 1] == "0"


def test_numbers_are_decimal(ncu: FakeTool) -> None:
    profile = ncu(KERNEL, "--count", "08", "--skip", "010").calls[0]
    assert profile[profile.index("--launch-count") + 1] == "8" and profile[profile.index("--launch-skip") + 1] == "10"


def test_it_knows_the_kernels_that_training_launches(ncu: FakeTool) -> None:
    assert launch.triton is not None
    names = {case.kernel for preset in kernel_cases.PRESETS for case in kernel_cases.preset_cases(preset)}
    for name in names:
        assert ncu(name).status == 0
    assert is_one_line(ncu(), 2, f"needs the name of a kernel, one of {' '.join(sorted(names))}")


@pytest.mark.parametrize("name", ["attention", "attention_step_kerne", ".*", "_run_kernel"])
def test_another_name_is_one_line(ncu: FakeTool, name: str) -> None:
    done = ncu(name)
    assert is_one_line(done, 2, f"'{name}' is none of our kernels, {KERNEL} ") and not done.calls


def test_any_takes_a_regular_expression(ncu: FakeTool) -> None:
    done = ncu("--any", "nvjet|void gemm<.*>")
    profile = done.calls[0]
    assert profile[profile.index("--kernel-name") + 1] == "regex:nvjet|void gemm<.*>"
    assert done.out.endswith(f"/ncu-nvjet-void-gemm-----{LABEL}.ncu-rep\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([KERNEL, "other"], f"takes one kernel, got '{KERNEL}' and 'other'"),
        ([KERNEL, "--count", "x"], "--count must be a number of launches, got 'x'"),
        ([KERNEL, "--skip", "9" * 20], f"--skip must be a number of launches, got '{'9' * 20}'"),
        ([KERNEL, "--count", "0"], "--count must be at least 1, got 0"),
        ([KERNEL, "--skip"], "--skip must be a number of launches, got ''"),
        ([KERNEL, "--preset", "tin"], "bad preset"),
    ],
)
def test_bad_arguments_are_one_line(ncu: FakeTool, arguments: list[str], message: str) -> None:
    done = ncu(*arguments)
    assert is_one_line(done, 2, message) and not done.calls


def test_without_the_tool_is_one_line_before_all_else(ncu: FakeTool) -> None:
    (ncu.bin / "ncu").unlink()
    assert is_one_line(
        ncu("other", PYTHON="no-python"), 2, "needs Nsight Compute, but there is no ncu; it comes with the CUDA toolkit"
    )
    assert is_one_line(ncu(NCU="/opt/none/ncu"), 2, "there is no /opt/none/ncu")


def test_without_python_is_one_line(ncu: FakeTool) -> None:
    assert is_one_line(ncu(KERNEL, PYTHON="no-python"), 2, "no-python is none that has torch; run make")


def test_a_tool_that_fails_is_told(ncu: FakeTool, tmp_path: Path) -> None:
    assert is_one_line(
        ncu(KERNEL, FAKE="fails"), 1, "ncu ended with status 9, and says why above; ERR_NVGPUCTRPERM means"
    )
    nothing = ncu(KERNEL, FAKE="writes-nothing", OUT=str(tmp_path / "empty"))
    assert is_one_line(nothing, 1, f"ncu saw no launch of {KERNEL} in the steps after the first 0")
    assert is_one_line(ncu(KERNEL, FAKE="fails-after"), 1, "ncu --import ended with status 9; the report is there: ")


def test_it_finds_the_root_whatever_cd_prefers(ncu: FakeTool) -> None:
    done = ncu(KERNEL, CDPATH=str(ROOT))
    assert done.status == 0 and done.out.count("\n") == 1 and done.err == "", done


def test_help_needs_no_tool(ncu: FakeTool) -> None:
    (ncu.bin / "ncu").unlink()
    done = ncu("--help")
    assert done.status == 0 and done.out.startswith("What limits one kernel") and "set -euo" not in done.out
