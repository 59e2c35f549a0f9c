"""Tests, benches, profiles and trains stormfast on this machine's GPU, unattended, as a table of jobs.

    bench/gpu_suite.sh                               # ten minutes; a second call goes on with what is missing
    bench/gpu_suite.sh --jobs tests,profile-storm    # only these jobs, even if they have passed before
    bench/gpu_suite.sh --device cpu                  # the same jobs at small sizes, to see that they work
    while bench/gpu_suite.sh; [ $? -eq 3 ]; do :; done

Each job has a time limit and a log of its own; where one fails, the later ones still run. Prints a table at the end,
and writes OUT/DEVICE/suite-DATE-TIME-COMMIT.json whenever a job ends; logs and full outputs are in OUT/DEVICE/logs/.
Ctrl-C stops the running job and keeps the results so far; a second Ctrl-C kills it.

Exit status: 0 every job has passed; 1 a job failed or reached its limit; 2 bad input, or no such device; 3 the time was
up before the last job: call again; 128 + N after signal N. Set STORMFAST_COMMIT=... where the tree has no git history.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.jobs import Ended, last_lines, only_one, run
from bench.record_tables import markdown
from bench.script import ROOT, Parser, status_of, written
from stormfast.errors import UserError
from stormfast.runs.signals import SignalWatch

LEAST = 20.0  # seconds of time left without which no job begins
SAME = ("device", "commit", "dirty", "driver", "torch", "cuda", "triton")  # equal: a result can be continued
UNFINISHED = 3  # exit status
FAILED = ("failed", "timed out")  # statuses of a job; the others are passed, unfinished and missing
PYTEST = "-m pytest -p no:cacheprovider --color=no --continue-on-collection-errors"
CHANGE_RESULTS = (  # variables that a user may have set, and that change what is measured
    "CUDA_LAUNCH_BLOCKING PYTEST_ADDOPTS STORMFAST_KERNELS TORCHDYNAMO_DISABLE TORCH_COMPILE_DISABLE TRITON_INTERPRET"
)
MACHINE = """
import json, sys
from bench.devices import describe, device_name, slug
from stormfast.device import resolve_device
device = resolve_device(sys.argv[1])
print(json.dumps({"folder": slug(device_name(device)), **describe(device)}))
"""


# --- the jobs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A command of the suite. In braces: what table_of_jobs fills in, and {logs} and {out}, the folders of run_job."""

    name: str  # with {preset}: a job for each preset
    command: str  # of the Python interpreter; one that ends in --json prints what goes to logs/NAME.json
    limit: float  # seconds; enough to compile everything
    grace: float = 15.0  # seconds to end in, once it is told to stop
    passes_with: tuple[int, ...] = (0,)  # exit statuses
    saved_as: str = ""  # where the tables of results look for logs/NAME.json; {run} is DATE-TIME-COMMIT

    @property
    def is_pytest(self) -> bool:
        return self.command.startswith(PYTEST)


BENCHES = f"{PYTEST} bench --device {{device}} {{rounds}} --benchmark-json {{logs}}/benches.json"
PROFILE = "-m stormfast profile --preset {preset} --game {game} --steps {steps} --device {device} --json"
TRACE = "-m profiling.trace --preset {preset} --device {device} --out {logs}/trace.json.gz"
LEARNING = "-m stormfast study examples/catch.json --preset {preset} {training} --seeds 1 --device {device}"
LEARNED = "--out {logs}/study --results {logs}/../../learning --replace-older"
JOBS = (  # the most important first
    Job(
        "doctor", "-m stormfast doctor", 60, passes_with=(0, 1)
    ),  # 1: a package is missing, but perhaps not for the suite
    Job("tests", f"{PYTEST} {{tests}}", 300),
    Job("profile-{preset}", PROFILE, 240, saved_as="profile-{preset}-{run}.json"),
    Job("memory", "-m profiling.memory --preset {presets} {measure} --json", 120),
    Job("benches", BENCHES, 300, saved_as="{run}.json"),
    Job("roofline", "-m profiling.roofline --preset {preset} --device {roofs}", 60),
    Job("trace", TRACE, 180),
    Job("kernel-report", "-m profiling.kernel_report --presets {preset}", 180),
    Job("counts", "-m bench.counts --groups phases,compiled", 240),
    Job("training", f"{LEARNING} {LEARNED}", 300, grace=60),  # it finishes a step, or compiling, and saves
)
ON_GPU = {
    "roofs": "measured",
    "steps": "200",
    "rounds": "",
    "measure": "--measure",
    "training": "--steps 4500",
}
ON_CPU = {"roofs": "h200", "steps": "8", "rounds": "--rounds 2", "measure": "", "training": "--steps 200 --episodes 2"}


def table_of_jobs(device: str) -> list[Job]:
    """The jobs for a device, "cpu", "cuda" or "cuda:N": all of storm on a GPU, most of fast too; tiny on a CPU."""
    presets = ["tiny"] if device == "cpu" else ["storm", "fast"]
    words = ON_CPU | {"tests": "tests/test_returns.py", "game": "Catch"}
    if device != "cpu":
        words = ON_GPU | {"tests": gpu_tests(), "game": emulated_game()}
    words |= {"device": device, "presets": " --preset ".join(presets), "logs": "{logs}", "out": "{out}", "run": "{run}"}

    def filled(job: Job, preset: str) -> Job:
        name, command, saved_as = (x.format(preset=preset, **words) for x in (job.name, job.command, job.saved_as))
        return replace(job, name=name, command=command, saved_as=saved_as)

    return [filled(job, preset) for job in JOBS for preset in (presets if "{preset}" in job.name else presets[:1])]


def emulated_game() -> str:
    """Pong where an Atari emulator is installed, else the built-in game."""
    return "Pong" if find_spec("envpool") or (find_spec("ale_py") and find_spec("cv2")) else "Catch"


def gpu_tests() -> str:
    """Arguments of pytest. Only files that have such tests: others may need packages that are not installed."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    return " ".join(["-m gpu", *(str(path.relative_to(ROOT)) for path in files)])


def choose(jobs: list[Job], names: str | None) -> list[Job]:
    """The jobs with these names, separated by commas; all where there are none. Raises: UserError."""
    known = {job.name: job for job in jobs}
    wanted = names.split(",") if names is not None else list(known)
    for name in wanted:
        if name not in known:
            raise UserError(f"--jobs must be some of {','.join(known)}, got '{name}'")
    return [known[name] for name in dict.fromkeys(wanted)]


def run_job(job: Job, logs: Path, out: Path, seconds: float, signals: SignalWatch) -> dict[str, Any]:
    """Runs a job for at most `seconds`, its grace included. Returns its row of the result."""
    log, output = logs / f"{job.name}.log", logs / f"{job.name}.json"
    output.unlink(missing_ok=True)  # of an earlier call
    limit = min(job.limit, seconds - job.grace)
    command = job.command.replace("{logs}", shlex.quote(str(logs))).replace("{out}", shlex.quote(str(out)))
    ended = run(
        [sys.executable, *shlex.split(command)],
        signals,
        log=log,
        output=output if job.command.endswith("--json") else None,
        limit=limit,
        grace=job.grace,
        stop_with=signal.SIGINT if job.is_pytest else signal.SIGTERM,  # pytest then reports, and writes what it has
    )
    try:
        result, problem = read_result(job, log, output), ""
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        result, problem = {}, f"its output cannot be used: {error}"
    status, reason = outcome(job, ended, limit, problem)
    if status == "failed" and not reason:
        reason = next(iter([*result.get("failures", []), *last_lines(log, 1)]), "it printed nothing")
    row = {"job": job.name, "status": status, "reason": reason, "seconds": round(ended.seconds, 1)}
    row |= {"date": time.strftime("%Y-%m-%d %H:%M"), "command": f"python {job.command}"}
    return row | {"log": str(log.relative_to(logs.parents[1]))} | ({"result": result} if result else {})


def read_result(job: Job, log: Path, output: Path) -> dict[str, Any]:
    """What the result keeps of a job's log and JSON. Raises: ValueError where no test ran, and what parsing raises."""
    result: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    for phase in result.get("phases", {}).values():  # of a profile: long lists, which the file in logs/ has
        phase.pop("operators", None)
    if job.is_pytest:
        result = {"records": [bench["extra_info"] for bench in result.get("benchmarks", [])]}
        lines = last_lines(log, 1000)
        result |= {name: int(n) for n, name in re.findall(r"(\d+) (passed|failed|error|skipped)", lines[-1])}
        result["failures"] = [line for line in lines if line.startswith(("FAILED ", "ERROR "))][:20]
        if not {"passed", "failed", "error"} & result.keys():
            raise ValueError(f"no test ran, {result.get('skipped', 0)} were skipped")
    return result


def outcome(job: Job, ended: Ended, limit: float, problem: str) -> tuple[str, str]:
    """A job's status, and why it did not pass; "" where its log says why. problem: what is wrong with its output."""
    if ended.code in job.passes_with:
        return ("failed", problem) if problem else ("passed", "")
    if ended.interrupted:
        return "unfinished", "interrupted"
    if ended.timed_out and limit < job.limit:
        return "unfinished", f"the suite's time was up after {limit:.0f} s"
    if ended.timed_out:
        return "timed out", f"stopped at its limit of {limit:.0f} s"
    return "failed", f"killed by {signal.Signals(-ended.code).name}" if ended.code < 0 else ""


# --- the result ----------------------------------------------------------------------------------------------------


def describe_machine(device: str) -> dict[str, Any]:
    """Device, commit and versions, and the folder of its results. Raises: UserError where there is no such device.

    It asks another process, so that the suite itself holds no GPU memory.
    """
    command = [sys.executable, "-c", MACHINE, device]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(done.stderr.strip().rpartition("\n")[2].removeprefix("stormfast.errors.UserError: "))
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def open_result(folder: Path, machine: dict[str, Any]) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The newest result of this machine and commit, or a new one. Returns: path, rows by job. Raises: UserError."""
    for path in sorted(folder.glob("suite-*.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            document = json.loads(path.read_text())
            if all(document["machine"].get(name) == machine.get(name) for name in SAME):
                return path, {row["job"]: row for row in document["jobs"]}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{path} must be a result of the suite, but {error!r}; move it away") from None
    commit = machine["commit"] + ("-dirty" if machine["dirty"] else "")
    return folder / f"suite-{time.strftime('%Y-%m-%d-%H%M%S')}-{commit}.json", {}


def save(path: Path, document: dict[str, Any]) -> None:
    """Writes the result, without the paths of this machine. Raises: UserError."""
    text = json.dumps(document, indent=1, allow_nan=False)
    for place, name in ((f"{ROOT}/", ""), (sys.prefix, "PYTHON"), (str(Path.home()), "~")):
        text = text.replace(place, name) if len(place) > 1 else text
    written(path, (text + "\n").encode())


def summary(jobs: Sequence[Job], rows: dict[str, dict[str, Any]]) -> str:
    """The table that is printed at the end."""
    shown = [rows[job.name] for job in jobs]
    cells = [[row["job"], row["status"], str(row.get("seconds", "-")), "; ".join(facts(row))] for row in shown]
    return markdown(["job", "status", "seconds", ""], cells)


def facts(row: dict[str, Any]) -> Iterator[str]:
    """Why a job did not pass, and what its result says in a few words."""
    result = row.get("result", {})
    if row.get("reason"):
        yield row["reason"]
    yield from (f"{result[name]} {name}" for name in ("passed", "failed", "error", "skipped") if name in result)
    if "step_ms" in result:
        yield f"{result['step_ms']:.3g} ms a step, {result['fraction_of_floor']:.0%} of the floor"
    yield from (f"{found['preset']} {found['bytes']['total'] / 1e9:.2f} GB" for found in result.get("presets", ()))


def suite(arguments: Sequence[str]) -> int:
    """Raises: UserError."""
    deadline = time.monotonic() + 60 * (options := parse(arguments)).minutes
    for name in CHANGE_RESULTS.split():
        os.environ.pop(name, None)
    os.environ |= {"COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    jobs = choose(table_of_jobs(options.device), options.jobs)
    machine = describe_machine(options.device)
    if machine["commit"] == "unknown":
        raise UserError("results name their commit, but this is no git checkout; set STORMFAST_COMMIT=...")
    out = options.out.resolve()
    folder = out / machine.pop("folder")
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out must be a folder that can be written, but {folder}: {error.strerror}") from None
    busy = f"another suite runs on this device: it holds {folder}/logs/lock; wait until it has ended"
    with SignalWatch() as signals, only_one(folder / "logs" / "lock", busy):
        path, earlier = open_result(folder, machine)
        rows = {job.name: {"job": job.name, "status": "missing"} for job in jobs} | earlier
        logs = folder / "logs" / path.stem
        logs.mkdir(exist_ok=True)
        todo = [job for job in jobs if options.jobs or rows[job.name]["status"] != "passed"]
        todo.sort(key=lambda job: rows[job.name]["status"] in FAILED)  # what is missing goes first
        on = f"{machine['device']}, commit {machine['commit']}"
        print(f"{on}: {len(todo)} of {len(jobs)} jobs to run; logs in {logs}", flush=True)
        for job in todo:
            seconds = deadline - time.monotonic()
            if signals.caught or seconds < job.grace + LEAST:
                break
            print(f"{job.name}: at most {min(job.limit, seconds - job.grace):.0f} s ...", flush=True)
            rows[job.name] = run_job(job, logs, out, seconds, signals)
            command = shlex.join(["bench/gpu_suite.sh", *arguments])
            save(path, {"machine": machine, "command": command, "jobs": list(rows.values())})
            if job.saved_as and rows[job.name]["status"] == "passed" and not machine["dirty"]:
                name = job.saved_as.format(run=path.stem.removeprefix("suite-"))
                written(folder / name, (logs / f"{job.name}.json").read_bytes())
            print(f"{job.name}: {rows[job.name]['status']} after {rows[job.name]['seconds']:.0f} s", flush=True)
    print(f"\n{summary(jobs, rows)}\n\n{path}")
    if signals.first:
        print(f"stopped by {signal.Signals(signals.first).name}; the same command goes on with what is missing")
        return 128 + signals.first
    statuses = {rows[job.name]["status"] for job in jobs}
    return UNFINISHED if statuses - {"passed", *FAILED} else int(statuses != {"passed"})


def parse(arguments: Sequence[str]) -> Any:
    """Raises: UserError."""
    parser = Parser(__doc__)
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:N, or cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", metavar="DIR", help="folder of results")
    parser.add_argument("--minutes", type=float, default=10.0, help="for this call; default 10")
    parser.add_argument("--jobs", metavar="NAME,...", help="only these, in this order, even if they have passed before")
    options = parser.parse_args(arguments)
    if not re.fullmatch(r"cpu|cuda(:\d+)?", options.device):
        raise UserError(f"--device must be cuda, cuda:N or cpu, got '{options.device}'")
    if not 0 < options.minutes < 1e6:
        raise UserError(f"--minutes must be above 0, got {options.minutes}")
    return options


if __name__ == "__main__":
    sys.exit(status_of("gpu_suite", lambda: suite(sys.argv[1:])))
