"""Times the benches of two trees in turn, or of one alone, and reads what pytest-benchmark wrote: seconds a call, round by round."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench.comparing.trees import environment
from bench.comparing.turns import PACKAGES, Session, Told, TurnsError, Worker, alternate
from stormfast.errors import UserError
from stormfast.runs.progress import log_line

USAGE, NOTHING = 4, 5  # pytest's exit statuses: refused its arguments or could not start, and found no bench
NO_TURNS = "does not wait for its turn before each round, as time_rounds in bench/conftest.py does"
Rounds = list[float]


@dataclass(frozen=True)
class Choice:
    """Which benches run, and how."""

    paths: tuple[str, ...] = ("bench",)
    keyword: str = ""
    device: str = "cpu"
    rounds: int = 0  # 0: as many as the benches choose
    launches: int = 1
    patience: float = 600.0
    verbose: bool = False

    def command(self, result: Path) -> list[str]:
        options = [
            "--device",
            self.device,
            *(["--rounds", str(self.rounds)] if self.rounds else []),
            *(["-k", self.keyword] if self.keyword else []),
        ]
        quiet = ["-q", "--continue-on-collection-errors", "-p", "no:cacheprovider", "-p", "bench.comparing.turns"]
        return [sys.executable, "-m", "pytest", *quiet, f"--benchmark-json={result}", *options, *self.paths]


@dataclass(frozen=True)
class Side:
    """A tree whose benches are timed."""

    name: str
    tree: Path
    commit: str


@dataclass
class Timing:
    """What two sides took.

    Attributes:
        pairs: bench -> old and new seconds a call, round by round, of each launch.
        failures: side -> bench or file -> why it has no times, in one line.
        machine, copies: side -> the machine as pytest-benchmark has it, and the bytes a second of a copy, measured beside the benches.
        packages: side -> package -> the directory that it was imported from.
    """

    pairs: dict[str, list[tuple[Rounds, Rounds]]] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    machine: dict[str, dict[str, Any]] = field(default_factory=dict)
    copies: dict[str, list[float]] = field(default_factory=dict)
    packages: dict[str, dict[str, str]] = field(default_factory=dict)


def time_in_turn(old: Side, new: Side, choice: Choice, scratch: Path) -> Timing:
    """Launches both `choice.launches` times, and lets their rounds alternate; which side starts alternates too.

    Raises: UserError where pytest refuses; TurnsError where a side crashes, hangs, or times other code than its tree's.
    """
    timing, found = Timing(failures={old.name: {}, new.name: {}}), []
    for launch in range(choice.launches):
        log_line(f"launch {launch + 1} of {choice.launches}: {old.name} and {new.name} in turn ...")
        found.append(launch_pair([old, new] if launch % 2 == 0 else [new, old], choice, scratch, timing))
    names = [
        bench
        for bench in found[0][new.name]
        if all(bench in sides[each.name] for sides in found for each in (old, new))
    ]
    timing.pairs = {bench: [(sides[old.name][bench], sides[new.name][bench]) for sides in found] for bench in names}
    return timing


def launch_pair(sides: Sequence[Side], choice: Choice, scratch: Path, timing: Timing) -> dict[str, dict[str, Rounds]]:
    """One launch of both. Returns: side -> bench -> rounds, of those that ran in pairs throughout; the rest goes to `timing`."""
    logs, results = [scratch / f"{side.name}.log" for side in sides], [scratch / f"{side.name}.json" for side in sides]
    for result in results:
        result.unlink(missing_ok=True)
    session = alternate([starter(*each, choice) for each in zip(sides, logs, results, strict=True)], choice.patience)
    rounds: dict[str, dict[str, Rounds]] = {}
    for side, told, status, log, result in zip(sides, session.told, session.status, logs, results, strict=True):
        check_status(side, status, log)
        check_packages(side, told)
        rounds[side.name] = read_result(side, result, timing, told.queued if choice.device == "cpu" else {})
        timing.packages[side.name] = told.packages
        timing.failures[side.name] |= told.failures
    drop_unmatched(rounds, session, timing)
    return rounds


def starter(side: Side, log: Path, result: Path, choice: Choice) -> Callable[[], Worker]:
    def start() -> Worker:
        with open(log, "wb") as file:
            output = sys.stderr.fileno() if choice.verbose else file
            return Worker(
                side.name, choice.command(result), side.tree, environment(side.tree, side.commit, result.parent), output
            )

    return start


def check_status(side: Side, status: int, log: Path) -> None:
    """Raises: UserError for what pytest takes as a user's error, TurnsError for what it takes as its own."""
    if status == NOTHING:
        raise UserError(f"no bench of {side.name} is so named; `python -m pytest bench --collect-only -q` lists them")
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["it said nothing"]
    errors = [
        line.removeprefix("ERROR:").removeprefix("E ").strip() for line in said if line.startswith(("ERROR:", "E "))
    ]
    error = (errors or said)[-1]
    if status == USAGE:
        raise UserError(f"{side.name}: pytest cannot run these benches: {error}; choose others, or another ref")
    if status not in (0, 1):
        raise TurnsError(f"{side.name}: pytest ended with status {status}: {error}")


def check_packages(side: Side, told: Told) -> None:
    """Raises: TurnsError where a side timed the code of another tree."""
    for name in PACKAGES:
        origin = told.packages.get(name, "")
        if origin and not Path(origin).is_relative_to(side.tree.resolve()):
            raise TurnsError(f"{side.name}: timed {name} of {origin} instead of its own in {side.tree}: has it one?")


def read_result(
    side: Side, result: Path, timing: Timing, queued: Mapping[str, Rounds] = MappingProxyType({})
) -> dict[str, Rounds]:
    """Bench -> seconds a call of each round, without those that it was `queued` for a core; the machine goes to `timing`."""
    if not result.exists():  # nothing ran to its end
        return {}
    content = json.loads(result.read_text())
    timing.machine[side.name] = content["machine_info"]
    timing.copies.setdefault(side.name, []).extend(copies_of(content))
    return rounds_of(content, queued)


def rounds_of(content: dict[str, Any], queued: Mapping[str, Rounds] = MappingProxyType({})) -> dict[str, Rounds]:
    """Bench -> seconds a call of each round. Raises: KeyError where the times of rounds were not saved.

    A round that stood in the queue right after it was timed would be left with no time: it keeps a hundredth, an outlier.
    """
    rounds = {}
    for each in content["benchmarks"]:
        name, calls, data = each["fullname"], each["extra_info"].get("calls", 1), each["stats"]["data"]
        waited = queued.get(name, [])[-len(data) :]  # those before them warmed up
        if len(waited) < len(data):  # it does not take turns
            waited = [0.0] * len(data)
        if data:
            rounds[name] = [max(taken - wait, taken / 100) / calls for taken, wait in zip(data, waited, strict=True)]
    return rounds


def copies_of(content: dict[str, Any]) -> list[float]:
    """Bytes a second of a copy, as measured beside the benches; once for each that says so."""
    key = "copy_bytes_per_second"
    return [each["extra_info"][key] for each in content["benchmarks"] if each["extra_info"].get(key)]


def drop_unmatched(rounds: dict[str, dict[str, Rounds]], session: Session, timing: Timing) -> None:
    """Takes the benches out of `rounds` whose rounds did not all run in pairs; why goes to `timing`."""
    for side, benches in rounds.items():
        told = timing.failures[side]
        others = next(other for name, other in rounds.items() if name != side)
        for bench in others:
            if bench not in benches and not {bench, bench.partition("::")[0]} & set(told):
                told[bench] = "was skipped here, and ran on the other side"
    one, other = rounds.values()
    for bench in set(one) | set(other):
        count = len(one.get(bench, [])), len(other.get(bench, []))
        in_turn = session.paired[bench] >= count[0] and not session.alone[bench]
        if count[0] == count[1] and in_turn:
            continue
        one.pop(bench, None)
        other.pop(bench, None)
        if 0 not in count:
            why = f"ran {count[0]} and {count[1]} rounds" if in_turn else NO_TURNS
            for told in timing.failures.values():
                told.setdefault(bench, why)


def time_alone(side: Side, choice: Choice, scratch: Path) -> tuple[dict[str, Rounds], Timing]:
    """Runs one side's benches `choice.launches` times. Returns: bench -> rounds of all launches; and all else as `Timing`.

    Raises: as time_in_turn.
    """
    timing, rounds = Timing(failures={side.name: {}}), dict[str, Rounds]()
    log, result = scratch / "log", scratch / "result.json"
    for launch in range(choice.launches):
        log_line(f"launch {launch + 1} of {choice.launches} ...")
        result.unlink(missing_ok=True)
        session = alternate([starter(side, log, result, choice)], choice.patience)
        check_status(side, session.status[0], log)
        check_packages(side, session.told[0])
        timing.failures[side.name] |= session.told[0].failures
        timing.packages[side.name] = session.told[0].packages
        for bench, seconds in read_result(side, result, timing).items():
            rounds.setdefault(bench, []).extend(seconds)
    return rounds, timing


def run_counts(side: Side, scratch: Path) -> tuple[Path, list[str]]:
    """Has bench/counts.py count in a side's tree. Returns: its file, and what it said on stderr. Raises: UserError where it fails."""
    result = scratch / f"{side.name}-counts.json"
    command = [sys.executable, "bench/counts.py", "--json", str(result)]
    done = subprocess.run(
        command,
        cwd=side.tree,
        env=environment(side.tree, side.commit, scratch),
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode or not result.exists():
        raise UserError(
            f"{side.name}: bench/counts.py cannot count there: {said[-1] if said else done.returncode}; --no-counts leaves counts out"
        )
    return result, [f"{side.name}: {line}" for line in said if "left out" in line]
