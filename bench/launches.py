"""One launch of a checkout's benches: a pytest process, and the seconds of each bench that it measured."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import queue_clock
from stormfast.errors import UserError

# Fields of a result that say what was measured: benches with the same are the same, in whatever file they are defined.
PHASE_FIELDS = ("bench", "phase", "preset", "compile", "precision", "game", "num_envs", "env_backend")
KERNEL_FIELDS = ("kernel", "shape", "dtype", "provider")
FAILURE = re.compile(r"^(?:FAILED|ERROR) (\S.*?)(?: - (.*))?$", re.MULTILINE)  # a line of pytest's summary
NO_BENCHES = 5  # pytest's exit status
Bench = tuple[tuple[str, str], ...]  # fields and their values


@dataclass(frozen=True)
class Selection:
    """What to launch: FILE, FOLDER or FILE::BENCH from the root, and more options of pytest."""

    paths: tuple[str, ...]
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Launch:
    """What one process measured.

    Attributes:
        seconds: of a call in the fastest round, because other work on the machine only adds time; names: FILE::BENCH.
        failures: FILE or FILE::BENCH -> the error, one line.
    """

    seconds: dict[Bench, float] = field(default_factory=dict)
    names: dict[Bench, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def launch(checkout: Path, selection: Selection, temporary: Path) -> Launch:
    """Runs a checkout's own benches on its own product. Raises: UserError where pytest cannot run them."""
    result, log = temporary / "result.json", temporary / "log"
    result.unlink(missing_ok=True)
    shutil.copy(queue_clock.__file__, temporary)
    pytest = [sys.executable, "-m", "pytest", "-q", "-rfE", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    command = [*pytest, f"--benchmark-json={result}", *selection.options, *selection.paths]
    with open(log, "wb") as file:
        done = subprocess.run(
            command, cwd=checkout, env=environment(checkout, temporary), stdout=file, stderr=file, check=False
        )
    output = log.read_text(errors="replace")
    if done.returncode == NO_BENCHES:
        raise UserError("no bench is so named; `python -m pytest bench --collect-only -q` lists them")
    if done.returncode not in (0, 1):
        lines = [line for line in output.splitlines() if line.strip()] or ["no output"]
        error = ([line for line in lines if "error: " in line.lower() and "usage: " not in line] or lines)[-1]
        where = f"pytest ended with status {done.returncode} in the {checkout.name} checkout"
        raise UserError(f"{where}: {error}; choose benches that both checkouts have, with -k, or a later commit")
    failures = {name: error or "failed" for name, error in FAILURE.findall(output)}
    return read_result(json.loads(result.read_text()), failures) if result.exists() else Launch(failures=failures)


def environment(checkout: Path, temporary: Path) -> dict[str, str]:
    """With the checkout's packages first, and temporary files where they go when the process is killed."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # here: it takes a second

    search = map(str, (checkout, checkout / "kernels", temporary, os.environ.get("PYTHONPATH", "")))
    own = {"PYTHONPATH": os.pathsep.join(search), "TMPDIR": str(temporary), "PYTEST_ADDOPTS": ""}
    width = {"COLUMNS": "1000"}  # pytest cuts errors to it
    return {"TORCHINDUCTOR_CACHE_DIR": default_cache_dir()} | os.environ | own | width


def read_result(content: dict[str, Any], failures: dict[str, str]) -> Launch:
    """Of the JSON that the benches save."""
    seconds, names = dict[Bench, float](), dict[Bench, str]()
    for each in content["benchmarks"]:
        info = each["extra_info"]
        bench = tuple((name, str(info[name])) for name in (*PHASE_FIELDS, *KERNEL_FIELDS) if name in info)
        seconds[bench] = min(each["stats"]["data"]) / info["calls"]
        names[bench] = each["fullname"]
    return Launch(seconds, names, failures)
