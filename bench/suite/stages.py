"""What the suite runs, in order of worth: the environment, the tests, the speed of a step, of its kernels, its memory, its phases."""

import importlib.util
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.suite import readers

ROOT = Path(__file__).resolve().parents[2]
RUN = ("gymnasium", "rich", "safetensors", "tyro")  # modules that a run of the agent imports, beside torch and numpy
PYTEST = ("-m", "pytest", "-v", "--color=no", "--continue-on-collection-errors", "-p", "no:cacheprovider")
BENCH = ("pytest", "pytest_benchmark")
ATARI = (("ale_py", "cv2"), ("envpool",))  # either steps an Atari game
PRESETS = {"cuda": ("storm", "fast"), "cpu": ("tiny",)}
PROFILE_STEPS = {"cuda": 200, "cpu": 20}
LIMITS = {  # seconds that each kind of stage may take at most on CUDA: all first compile what they time
    "doctor": 30,
    "tests": 150,
    "profile": 200,
    "kernels": 180,
    "memory": 60,
    "phases": 180,
}


@dataclass(frozen=True)
class Stage:
    """A command, and what is kept of what it says."""

    name: str
    command: tuple[str, ...]  # of the Python interpreter
    limit: float  # seconds it may take at most
    least: float  # seconds without which it is not begun
    read: Callable[
        [Path, Path], dict[str, Any]
    ]  # log, output -> result; raises ValueError where the output is not what it should be
    needs: tuple[str, ...] = ()  # modules
    stop_with: signal.Signals = signal.SIGTERM
    writes: str = ""  # suffix of its output; "" where all is in the log
    accepts: tuple[int, ...] = (0,)  # exit statuses of a stage that passed
    prints: bool = False  # whether its output is what it prints, or a file of the name put for {output} in the command

    def missing(self) -> list[str]:
        """Its modules that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def plan(device: str, steps: int | None = None, game: str | None = None) -> list[Stage]:
    """All stages for a device, "cuda", "cuda:N" or "cpu"; `steps` environment steps to profile, of `game`."""
    kind = device.partition(":")[0]
    profiled = [
        _profile(preset, device, kind, steps or PROFILE_STEPS[kind], game or default_game()) for preset in PRESETS[kind]
    ]
    return [_doctor(kind), _tests(kind), *profiled, _kernels(device, kind), _memory(kind), _phases(device, kind)]


def default_game() -> str:
    """Pong where an emulator is installed, else the built-in game."""
    return "Pong" if any(all(importlib.util.find_spec(name) for name in needs) for needs in ATARI) else "Catch"


def _limits(name: str, kind: str) -> tuple[float, float]:
    """A stage's `limit` and `least`."""
    return LIMITS[name], 10 if kind == "cpu" else min(30, LIMITS[name] / 4)


def _doctor(kind: str) -> Stage:
    """It says 1 where a package is missing: the stages that need it say so too."""
    return Stage("doctor", ("-m", "stormfast", "doctor"), *_limits("doctor", kind), read=readers.doctor, accepts=(0, 1))


def _tests(kind: str) -> Stage:
    """Only files that have such tests: the rest may need packages that are not here."""
    files = sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text()
    )
    command = (*PYTEST, "-m", "gpu", *files)
    read = readers.gpu_tests if kind == "cuda" else readers.tests
    return Stage("tests", command, *_limits("tests", kind), read=read, needs=("pytest", *RUN), stop_with=signal.SIGINT)


def _profile(preset: str, device: str, kind: str, steps: int, game: str) -> Stage:
    asked = ("--preset", preset, "--game", game, "--device", device, "--steps", str(steps), "--json")
    command = ("-m", "stormfast", "profile", *asked)
    return Stage(
        f"profile-{preset}",
        command,
        *_limits("profile", kind),
        read=readers.profile,
        needs=RUN,
        writes=".json",
        prints=True,
    )


def _kernels(device: str, kind: str) -> Stage:
    return _benches("kernels", ("bench/kernels",), device, kind, BENCH)


def _phases(device: str, kind: str) -> Stage:
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "bench").glob("bench_*.py"))
    return _benches("phases", tuple(files), device, kind, (*BENCH, *RUN))


def _benches(name: str, files: tuple[str, ...], device: str, kind: str, needs: tuple[str, ...]) -> Stage:
    """Stopped by SIGINT, at which pytest-benchmark still writes what it has."""
    command = (*PYTEST, *files, "--device", device, "--benchmark-json", "{output}")
    return Stage(
        name, command, *_limits(name, kind), read=readers.benches, needs=needs, stop_with=signal.SIGINT, writes=".json"
    )


def _memory(kind: str) -> Stage:
    measure = ("--measure",) if kind == "cuda" else ()
    presets = tuple(word for preset in PRESETS[kind] for word in ("--preset", preset))
    command = ("profiling/memory.py", *presets, *measure, "--json")
    return Stage(
        "memory", command, *_limits("memory", kind), read=readers.memory, needs=RUN, writes=".json", prints=True
    )


def choose(stages: list[Stage], names: str | None) -> list[Stage]:
    """The stages of a list of names, "profile" being all of that kind; all where no list is given. Raises: ValueError for another name."""
    if names is None:
        return stages
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {stage.name for stage in stages} | {stage.name.partition("-")[0] for stage in stages}
    strange = [name for name in wanted if name not in known]
    if strange or not wanted:
        raise ValueError(
            f"--stages must be some of {','.join(stage.name for stage in stages)}, got '{strange[0] if strange else names}'"
        )
    return [stage for stage in stages if {stage.name, stage.name.partition("-")[0]} & set(wanted)]


def interpreter() -> str:
    return sys.executable
