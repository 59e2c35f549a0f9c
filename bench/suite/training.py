"""A whole run of a game, in as many calls as it takes: trained with checkpoints, then evaluated.

RUN/              the run directory of `stormfast train`
    calls.json    what each call did: date, commit, steps, seconds
"""

import dataclasses
import itertools
import json
import math
import re
import shlex
import signal
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.suite.process import Ended, last_lines, run
from bench.suite.record import ROOT, Record, only_one
from bench.suite.run import GRACE, Around, date, log_line
from bench.suite.stages import interpreter
from stormfast.errors import UserError
from stormfast.runs.directory import CONFIG, load_config, write_whole

CALLS = "calls.json"
LOCK = ".lock"
SAVING = 60.0  # seconds in which a run that is told to stop finishes its step, or its compiling, and writes its replay
LEAST_EVALUATION = 20.0  # seconds without which none is begun
CURVE_POINTS = 200  # kept of the learning curve
NOT_FINISHED = 3  # exit status: call again
BAD_INPUT = 2  # exit status of stormfast
LEFT_UNSAVED = re.compile(  # what a run killed before its first checkpoint leaves behind
    r"\.lock|config\.json|\.config\.json\.tmp|metrics\.jsonl|tensorboard(/events\.out\.tfevents\.[^/]*)?"
    r"|checkpoint(/\.checkpoint\.json\.tmp|/\.?(state|replay)-[^/]*\.safetensors(\.tmp)?)?"
)
STORMFAST = ("-m", "stormfast")


@dataclass(frozen=True)
class Training:
    """A run to be had."""

    game: str
    preset: str
    seed: int
    steps: int
    episodes: int
    run_dir: Path
    device: str
    more: tuple[str, ...] = ()  # arguments for `stormfast train`
    stormfast: tuple[str, ...] = STORMFAST  # of the Python interpreter

    @property
    def name(self) -> str:
        return " ".join([self.game, self.preset, str(self.seed), *self.more])

    def train_command(self) -> list[str]:
        """The same settings whether it begins or goes on: a run whose settings are others then refuses."""
        sizes = ("--game", self.game, "--preset", self.preset, "--seed", str(self.seed), "--steps", str(self.steps))
        place = ("--run-dir", str(self.run_dir), "--device", self.device, "--logging.no-tensorboard")
        return [
            *self.stormfast,
            "train",
            *sizes,
            *place,
            *self.more,
            *(["--resume"] if saved_step(self.run_dir) is not None else []),
        ]

    def evaluate_command(self) -> list[str]:
        return [
            *self.stormfast,
            "evaluate",
            str(self.run_dir),
            "--episodes",
            str(self.episodes),
            "--device",
            self.device,
        ]

    def told(self, command: list[str]) -> str:
        """A command as one would type it in the root of the repository; a run elsewhere is RUN."""
        inside = self.run_dir.is_relative_to(ROOT)
        names = {str(self.run_dir): str(self.run_dir.relative_to(ROOT)) if inside else "RUN"}
        return shlex.join(["stormfast", *(names.get(word, word) for word in command[len(self.stormfast) :])])


def saved_step(run_dir: Path) -> int | None:
    """The step of a run's checkpoint, None where it has none. Raises: UserError where that is damaged."""
    return parsed(run_dir / "checkpoint" / "checkpoint.json", lambda text: int(json.loads(text)["step"]))


def parsed(path: Path, parse: Callable[[str], Any]) -> Any:
    """What `parse` makes of a file of the run, None where there is none. Raises: UserError where it is damaged."""
    try:
        return parse(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}); repair it, or start anew with another --run-dir"
        ) from None


def go_on(training: Training, record: Record, around: Around) -> int:
    """Trains as far as the time allows, evaluates once all steps are made, and writes down where the run is.

    Returns: 0 when trained and evaluated, 3 when another call is to go on, 1 where something failed, 128 + a signal that stopped it.
    Raises: UserError for a run directory that cannot be used, and for what `stormfast train` takes for bad input.
    """
    record.logs.mkdir(parents=True, exist_ok=True)
    try:
        before = {path.name for path in training.run_dir.iterdir()} if training.run_dir.exists() else None
        training.run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--run-dir must be a folder that can be written, but {training.run_dir}: {error.strerror or error}"
        ) from None
    with only_one(
        training.run_dir / LOCK, f"another suite trains in {training.run_dir}; wait until it has ended"
    ) as lock:
        try:
            if saved_step(training.run_dir) is None:
                clear_unsaved(training.run_dir, began=LOCK in (before or ()))
            calls(training.run_dir)  # damage is told before hours of training, not after
            return _go_on(training, record, dataclasses.replace(around, held=(*around.held, lock)))
        except UserError:
            discard_unused(training.run_dir, before)
            raise


def _go_on(training: Training, record: Record, around: Around) -> int:
    first = saved_step(training.run_dir) or 0
    train_status, reason = train(training, record, around)
    status = train_status
    if train_status == "trained" and evaluation(training) is None:
        status, reason = evaluate(training, record, around, alone=first >= training.steps)
    elif train_status == "trained":
        status = "finished"
    row = describe(training, status, reason)
    record.put_training(row)
    log_line(f"{training.name}: {status}, step {row['step']:,} of {row['steps']:,}{': ' * bool(reason)}{reason}")
    if around.signals.caught:
        return 128 + around.signals.caught
    return {"finished": 0, "paused": NOT_FINISHED, "trained": NOT_FINISHED}.get(status, 1)


def train(training: Training, record: Record, around: Around) -> tuple[str, str]:
    """One call of `stormfast train`, where steps are left. Returns: trained, paused or failed; and why."""
    before = saved_step(training.run_dir)
    if (before or 0) >= training.steps:
        return "trained", ""
    saving = min(SAVING, around.left / 4)
    if around.signals.caught or around.left - saving < 1:
        return "paused", "no time was left to train"
    log, command = record.logs / f"train-{slug(training.name)}.log", training.train_command()
    log_line(f"{training.name}: training from step {before or 0:,}{at_most(around.left - saving)}; its log is {log}")
    ended = call(command, log, around, around.left - saving, saving)
    after = saved_step(training.run_dir)
    if after is not None:  # else there is no run yet that a call could be told of
        add_call(training, record, command, ended, (before or 0, after))
    if after is not None and after >= training.steps:
        return "trained", ""
    if ended.status in ("timed out", "interrupted") and ended.code == 128 + signal.SIGTERM:
        return "paused", ""
    if ended.status in ("timed out", "interrupted"):
        reason = (
            f"it did not save within {saving:.0f} s of being told to stop; the checkpoint of step {after or 0} holds"
        )
        return "paused" if after else "failed", reason
    last = last_lines(log)[-1:]
    if ended.code == BAD_INPUT and last:
        raise UserError(last[0].removeprefix("stormfast: error: "))
    return "failed", ": ".join([f"stormfast train ended with {ended.code}", *last])


def evaluate(training: Training, record: Record, around: Around, alone: bool) -> tuple[str, str]:
    """Scores the trained agent. `alone`: the whole of this call's time was for it, so that another call would fare no better."""
    if around.signals.caught or around.left - GRACE < LEAST_EVALUATION:
        return "trained", "no time was left to evaluate"
    log = record.logs / f"evaluate-{slug(training.name)}.log"
    log_line(f"{training.name}: evaluating {training.episodes} episodes{at_most(around.left - GRACE)}")
    ended = call(training.evaluate_command(), log, around, around.left - GRACE, GRACE)
    if evaluation(training) is not None:
        return "finished", ""
    if ended.status == "interrupted":
        return "trained", "interrupted while evaluating"
    if ended.status == "timed out":
        more = "give more --minutes or fewer --episodes" if alone else "the next call has more time"
        return (
            "failed" if alone else "trained",
            f"{training.episodes} episodes did not fit in {ended.seconds:.0f} s; {more}",
        )
    return "failed", ": ".join([f"stormfast evaluate ended with {ended.code}", *last_lines(log)[-1:]])


def call(command: list[str], log: Path, around: Around, limit: float, grace: float) -> Ended:
    return run(
        [interpreter(), *command],
        log=log,
        limit=limit,
        grace=grace,
        signals=around.signals,
        environment=around.environment,
        folder=ROOT,
        held=around.held,
    )


def clear_unsaved(run_dir: Path, began: bool) -> None:
    """Removes what a run that was killed before its first checkpoint left: it cannot go on.

    Args:
        began: an earlier call began the run.
    Raises: UserError, with all left as it is, where none did, or where anything else is there.
    """
    visible = sorted(path.name for path in run_dir.iterdir() if not path.name.startswith("."))
    if not visible:  # new, to `stormfast train` too
        return
    wanted = f"--run-dir must be a run with a checkpoint or a new folder, but {run_dir}"
    if not began:
        raise UserError(f"{wanted} has {visible[0]}; choose another")
    load_config(run_dir)  # it is stormfast's
    found = sorted(
        run_dir.rglob("*"), key=lambda path: (path.name != CONFIG, path), reverse=True
    )  # what tells whose it is goes last
    strange = [name for path in found if not LEFT_UNSAVED.fullmatch(name := path.relative_to(run_dir).as_posix())]
    if strange:
        raise UserError(f"{wanted} has {strange[-1]}; choose another")
    for path in found:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        elif path.name != LOCK:
            path.unlink()


def discard_unused(run_dir: Path, before: set[str] | None) -> None:
    """Removes what this call made for a run that never began. `before`: the names in its folder before, None where there was none."""
    made = {path.name for path in run_dir.iterdir()} - (before or set())
    if made <= {LOCK, CONFIG}:
        for name in made:
            (run_dir / name).unlink()
        if before is None:
            run_dir.rmdir()


def add_call(training: Training, record: Record, command: list[str], ended: Ended, steps: tuple[int, int]) -> None:
    machine = record.document["machine"]
    entry = {
        "date": date(),
        "commit": machine["commit"] + ("-dirty" if machine["dirty"] else ""),
        "device": machine["device"],
        "steps": list(steps),
        "wall_seconds": round(ended.seconds, 1),
        "command": training.told(command),
    }
    write_whole(training.run_dir / CALLS, (json.dumps([*calls(training.run_dir), entry], indent=1) + "\n").encode())


def calls(run_dir: Path) -> list[dict[str, Any]]:
    """What earlier calls did. Raises: UserError where it cannot be read."""

    def parse(text: str) -> list[dict[str, Any]]:
        made = json.loads(text)
        for entry in made:  # what a row is made of
            "".join((entry["commit"], entry["command"], format(entry["wall_seconds"], ".1f")))
        return made

    return parsed(run_dir / CALLS, parse) or []


def evaluation(training: Training) -> dict[str, Any] | None:
    """The score of the agent at its last step over as many episodes as are asked for, None where there is none. Raises: UserError."""

    def parse(text: str) -> dict[str, Any]:
        found = json.loads(text)
        return found["return"] | {"episodes": len(found["episode_returns"])}

    score = parsed(training.run_dir / f"evaluation-{saved_step(training.run_dir)}.json", parse)
    return score if score and score["episodes"] == training.episodes else None


def describe(training: Training, status: str, reason: str) -> dict[str, Any]:
    """The run's row."""
    step = saved_step(training.run_dir) or 0
    lines = [line for line in metrics(training.run_dir) if line["step"] <= step]
    made = calls(training.run_dir)
    return {
        "run": training.name,
        "game": training.game,
        "preset": training.preset,
        "seed": training.seed,
        "more": list(training.more),
        "status": status,
        "reason": reason,
        "date": date(),
        "step": step,
        "steps": training.steps,
        "training_seconds": lines[-1]["seconds"] if lines else 0.0,
        "wall_seconds": round(sum(entry["wall_seconds"] for entry in made), 1),
        "ms_per_step": ms_per_step(lines),
        "evaluation": evaluation(training),
        "evaluate_command": training.told(training.evaluate_command()),
        "calls": made,
        "curve": curve(lines),
    }


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl but one cut short. Raises: UserError."""
    return parsed(run_dir / "metrics.jsonl", lambda text: [json.loads(line) for line in text.split("\n")[:-1]]) or []


def ms_per_step(lines: list[dict[str, Any]]) -> float | None:
    """Median over the intervals between two lines in which it learned: what compiling and random play took is left out."""
    pairs = [(a, b) for a, b in itertools.pairwise(lines) if b["step"] > a["step"] and "world_model/total" in a]
    return (
        1000 * statistics.median((b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairs)
        if pairs
        else None
    )


def curve(lines: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Step, seconds and return of training episodes, at CURVE_POINTS lines at most."""
    points = [
        {key: line[key] for key in ("step", "seconds", "episode_return")} for line in lines if "episode_return" in line
    ]
    return points[:: -(-len(points) // CURVE_POINTS) or 1]


def at_most(limit: float) -> str:
    return "" if math.isinf(limit) else f", {limit:.0f} s at most"


def slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() or c in "._" else " " for c in name).split())
