"""Runs stages one after the other, each within what is left of the time, and writes down each as it ends."""

import contextlib
import os
import shlex
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.suite.process import Ended, Signals, last_lines, run
from bench.suite.record import ROOT, Record
from bench.suite.stages import Stage, interpreter

GRACE = 15.0  # seconds in which a stage that is told to stop writes what it has
NAMED = 3  # failures named in a reason
CHOSEN_BY_STAGES = (  # a user's would change what is measured
    "CUDA_LAUNCH_BLOCKING",
    "PYTEST_ADDOPTS",
    "STORMFAST_KERNELS",
    "TORCHDYNAMO_DISABLE",
    "TORCH_COMPILE_DISABLE",
    "TRITON_INTERPRET",
)
MODULES = (str(ROOT), str(ROOT / "kernels"))  # of this checkout, whatever is installed


@dataclass(frozen=True)
class Around:
    """What every process of the suite has in common."""

    environment: Mapping[str, str]
    signals: Signals
    deadline: float  # of time.monotonic(): all has ended by then
    held: tuple[int, ...] = ()  # descriptors that a stage keeps open

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """What stages run with: `given` without what stages choose for themselves, and this checkout's modules first."""
    kept = {name: value for name, value in given.items() if name not in CHOSEN_BY_STAGES}
    path = os.pathsep.join([*MODULES, *filter(None, [given.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}


def run_stages(stages: Sequence[Stage], record: Record, around: Around) -> int:
    """Runs all that fit, whatever becomes of the others.

    Returns: 0; 1 where one failed or took too long; 128 + the signal that stopped the suite.
    """
    record.logs.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        record.put_stage({"stage": stage.name, "status": "waiting", "command": command_line(stage)})
    statuses = []
    for stage in stages:
        row = left_out(stage, around) or one_stage(stage, record, around)
        record.put_stage(row)
        statuses.append(row["status"])
        took = f" in {row['seconds']:.0f} s" if "seconds" in row else ""
        log_line(f"{stage.name}: {row['status']}{took}{': ' * bool(row['reason'])}{row['reason']}")
    if around.signals.caught:
        return 128 + around.signals.caught
    return 1 if {"failed", "timed out"} & set(statuses) else 0


def left_out(stage: Stage, around: Around) -> dict[str, Any] | None:
    """The row of a stage that cannot begin, or None."""
    if around.signals.caught:
        reason = f"not begun: the suite got {signal.Signals(around.signals.caught).name}"
    elif missing := stage.missing():
        reason = f"needs {', '.join(missing)}, not installed here; give wheels with --wheels FOLDER"
    elif around.left - GRACE < stage.least:
        reason = f"no time: {max(0, around.left):.0f} s were left, and it is not begun with less than {stage.least + GRACE:.0f}"
    else:
        return None
    return {"stage": stage.name, "status": "left out", "reason": reason, "command": command_line(stage), "date": date()}


def one_stage(stage: Stage, record: Record, around: Around) -> dict[str, Any]:
    """Runs a stage. Returns its row."""
    log, output = record.logs / f"{stage.name}.log", record.logs / f"{stage.name}{stage.writes or '.out'}"
    limit = min(stage.limit, around.left - GRACE)
    row = {"stage": stage.name, "status": "running", "reason": "", "command": command_line(stage), "date": date()}
    record.put_stage(row)
    log_line(f"{stage.name}: running, {limit:.0f} s at most")
    output.unlink(missing_ok=True)  # an earlier call's
    command = [interpreter(), *(str(output) if word == "{output}" else word for word in stage.command)]
    ended = run(
        command,
        log=log,
        limit=limit,
        grace=GRACE,
        signals=around.signals,
        stop_with=stage.stop_with,
        output=output if stage.prints else None,
        environment=around.environment,
        folder=ROOT,
        held=around.held,
    )
    return row | {"limit_seconds": round(limit, 1), "log": record.log_name(log)} | outcome(stage, ended, log, output)


def outcome(stage: Stage, ended: Ended, log: Path, output: Path) -> dict[str, Any]:
    """What a stage came to: its result, even in part; and where it did not pass, why, and the end of its log."""
    status, reason, result = (
        ("passed" if ended.status == "failed" and ended.code in stage.accepts else ended.status),
        "",
        None,
    )
    try:
        result = stage.read(log, output)
    except ValueError as error:
        if status == "passed":
            status, reason = "failed", str(error)
    tail = last_lines(log)
    if status == "failed" and result and result.get("failures"):
        names = [failure["test"] for failure in result["failures"]]
        reason = f"{', '.join(names[:NAMED])}{f' and {len(names) - NAMED} more' if len(names) > NAMED else ''} failed"
    elif status == "failed" and not reason:
        how = f"killed by {signal.Signals(-ended.code).name}" if ended.code < 0 else f"exit status {ended.code}"
        reason = ": ".join([how, *tail[-1:]])
    elif status == "timed out":
        reason = "stopped at its limit; what it had done by then is kept" if result else "stopped at its limit"
    found = {"status": status, "reason": reason, "seconds": round(ended.seconds, 1)}
    return found | ({"result": result} if result else {}) | ({} if status == "passed" else {"tail": tail})


def command_line(stage: Stage) -> str:
    """As one would type it."""
    return shlex.join(["python", *("FILE" if word == "{output}" else word for word in stage.command)])


def date() -> str:
    return time.strftime("%Y-%m-%d %H:%M")


def log_line(line: str) -> None:
    """Prints a line. A reader that has left must not end the suite."""
    with contextlib.suppress(OSError):
        print(line, flush=True)
