"""nsys.sh and ncu.sh call their tools as they must be called, and mistakes are one line. The tools are fakes."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from bench.kernel_cases import preset_cases
from tests.conftest import ROOT

KERNEL = "attention_step_kernel"
KERNELS = sorted({case.kernel for case in preset_cases("tiny")})
LABEL = "tiny-2026-01-02-030405-abc123"
TOOL = """#!/usr/bin/env bash
printf '%s\\0' "$@" --end-of-call >> "$RECORD"
for ((i = 1; i <= $#; i++)); do
  argument="${!i}"
  case "$argument" in
    --output=*) file="${argument#*=}" ;;
    --export) next=$((i + 1)); file="${!next}" ;;
  esac
done
[[ -n "${file:-}" ]] && echo report > "$file$SUFFIX"
exit "${STATUS:-0}"
"""
PYTHON = f"""#!/usr/bin/env bash
[[ "$*" == *--name-for* ]] && echo {LABEL}
exit 0
"""


class FakeTool:
    """A script of profiling/, with a tool that notes its arguments and a Python whose torch has CUDA."""

    def __init__(self, tool: str, directory: Path) -> None:
        self.tool, self.directory = tool, directory
        self.out, self.record = directory / "out put", directory / "calls"
        self.python = self.program("fake-python", PYTHON)
        self.program(tool, TOOL)

    def program(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.directory}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT / "kernels"),
            "PYTHON": str(self.python),
            "RECORD": str(self.record),
            "SUFFIX": f".{self.tool}-rep",
            "OUT": str(self.out),
        }
        command = [str(ROOT / f"profiling/{self.tool}.sh"), *arguments]
        return subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)

    def calls(self) -> list[list[str]]:
        """Arguments of each call of the tool."""
        text = self.record.read_text() if self.record.exists() else ""
        return [call.split("\0")[:-1] for call in text.split("--end-of-call\0")[:-1]]


@pytest.fixture(params=["nsys", "ncu"])
def tool(request: pytest.FixtureRequest, tmp_path: Path) -> FakeTool:
    return FakeTool(request.param, tmp_path)


def is_one_line(done: subprocess.CompletedProcess[str], status: int, message: str) -> bool:
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1), done
    return message in done.stderr


def test_nsys_captures_warm_steps_and_prints_the_summaries(tmp_path: Path) -> None:
    nsys = FakeTool("nsys", tmp_path)
    done = nsys("--preset", "tiny", "--game", "two words")
    report = f"{nsys.out}/nsys-{LABEL}.nsys-rep"
    assert (done.returncode, done.stdout, done.stderr) == (0, report + "\n", "")
    profile, stats = nsys.calls()
    split = profile.index(str(nsys.python))
    assert {"--capture-range=cudaProfilerApi", "--cuda-graph-trace=node"} < set(profile[:split])
    steps = "-m profiling.warm_steps --device cuda --steps 10 --preset tiny --game".split()
    assert profile[split + 1 :] == [*steps, "two words"] and stats[-1] == report


def test_ncu_profiles_launches_of_one_kernel(tmp_path: Path) -> None:
    ncu = FakeTool("ncu", tmp_path)
    done = ncu("--preset", "tiny", KERNEL, "--count", "03", "--skip", "010")
    report = f"{ncu.out}/ncu-{KERNEL}-{LABEL}.ncu-rep"
    assert (done.returncode, done.stdout, done.stderr) == (0, report + "\n", "")
    profile, shown = ncu.calls()
    split = profile.index(str(ncu.python))
    options = dict(pairwise(profile[:split]))
    assert options["--kernel-name"] == f"regex:^{KERNEL}$" and options["--profile-from-start"] == "off"
    assert (options["--launch-count"], options["--launch-skip"]) == ("3", "10")  # decimal
    assert profile[split + 1 :] == "-m profiling.warm_steps --device cuda --steps 1 --preset tiny".split()
    assert shown[:2] == ["--import", report]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], f"needs the name of a kernel, one of {' '.join(KERNELS)}"),
        (["attention"], "'attention' is none of our kernels"),
        ([KERNEL, "--count", "x"], "--count must be a number of launches, got 'x'"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    ncu = FakeTool("ncu", tmp_path)
    assert is_one_line(ncu(*arguments), 2, message) and not ncu.calls()


def test_what_is_missing_is_one_line(tool: FakeTool) -> None:
    assert is_one_line(tool(KERNEL, PYTHON="no-python"), 2, "no-python is none that has torch; run make")
    (tool.directory / tool.tool).unlink()
    assert is_one_line(tool(KERNEL), 2, f"there is no {tool.tool}; it comes with the CUDA toolkit")


def test_what_cannot_be_profiled_is_one_line_and_no_call(tmp_path: Path) -> None:
    """By the real warm_steps."""
    nsys = FakeTool("nsys", tmp_path)
    done = nsys("--device", "cpu", PYTHON=sys.executable)
    assert is_one_line(done, 2, "warm_steps: error: nsys needs a CUDA GPU, but got --device cpu") and not nsys.calls()


def test_a_tool_that_fails_is_one_line(tool: FakeTool) -> None:
    arguments = [KERNEL] if tool.tool == "ncu" else []
    assert is_one_line(tool(*arguments, STATUS="9"), 1, "ended with status 9")
