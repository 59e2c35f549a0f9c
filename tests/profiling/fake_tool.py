"""A fake nsys or ncu, which notes its arguments and writes a report, and a fake Python whose torch has CUDA."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

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
[[ -n "${file:-}" && "${FAKE:-}" != writes-nothing ]] && echo report > "$file$SUFFIX"
case "${FAKE:-}:$1" in
  fails:profile | fails:--set | fails-after:stats | fails-after:--import) exit 9 ;;
esac
exit 0
"""
PYTHON = f"""#!/usr/bin/env bash
case "$*" in
  *--name-for*)
    [[ "$*" == *--preset\\ tin\\ * ]] && echo 'warm_steps: bad preset' >&2 && exit 2
    echo {LABEL} ;;
  *find_spec*) exit 0 ;;
esac
"""


@dataclass
class Result:
    status: int
    out: str
    err: str
    calls: list[list[str]]  # of the tool


class FakeTool:
    """A script of profiling/ with a tool beside it that only pretends."""

    def __init__(self, script: str, directory: Path) -> None:
        self.script, self.tool, self.directory = script, script.removesuffix(".sh"), directory
        self.bin, self.record = directory / "bin", directory / "calls"
        self.bin.mkdir()
        self.python = self.write("fake-python", PYTHON)
        self.write(self.tool, TOOL)

    def write(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def __call__(self, *arguments: str, cwd: Path = ROOT, **environment: str) -> Result:
        variables = {
            "PYTHON": str(self.python),
            "RECORD": str(self.record),
            "SUFFIX": f".{self.tool}-rep",
            "OUT": str(self.directory / "out put"),
        }
        paths = f"{self.bin}:/usr/bin:/bin"
        done = subprocess.run(
            [os.path.relpath(ROOT / "profiling" / self.script, cwd), *arguments],
            env={"PATH": paths, "PYTHONPATH": str(ROOT / "kernels"), "HOME": os.environ.get("HOME", "/")}
            | variables
            | environment,
            capture_output=True,
            text=True,
            cwd=cwd,
            check=False,
        )
        words = self.record.read_text().split("\0")[:-1] if self.record.exists() else []
        calls: list[list[str]] = [[]]
        for word in words:
            if word == "--end-of-call":
                calls.append([])
            else:
                calls[-1].append(word)
        return Result(done.returncode, done.stdout, done.stderr, calls[:-1])


def is_one_line(result: Result, status: int, message: str) -> bool:
    """Whether it ended so, with nothing on stdout and one line on stderr that holds the message."""
    fits = result.status == status and not result.out and result.err.count("\n") == 1 and message in result.err
    assert fits, result
    return fits
