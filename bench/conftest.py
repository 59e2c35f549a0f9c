"""For all benches: the device they run on, how rounds are timed, and what the JSON says of the machine.

python -m pytest bench                     # CPU, small sizes        make bench: the same, saved under bench/results/DEVICE/
python -m pytest bench --device cuda       # the presets' sizes
python -m pytest bench/bench_act.py bench/bench_step.py --preset storm --compile off
"""

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import table
from bench.comparing.turns import Turns, join
from bench.devices import ROOT, commit, describe, device_name, slug
from bench.rounds import Timed, as_calls
from bench.warm_step import WarmStep, warm_step
from stormfast.device import keep_freed_memory, resolve_device
from stormfast.errors import UserError
from stormfast.measure.peaks import Peaks, measure_peaks

RECORDS = pytest.StashKey[list[dict[str, Any]]]()
DEVICE = pytest.StashKey[torch.device]()
TURNS = pytest.StashKey[Turns | None]()
SAVE_AS = pytest.StashKey[Path | None]()
PRESETS = {"cpu": ["cpu"], "cuda": ["storm", "fast"]}  # kind of device -> what is timed there by default
ROUNDS = {"cuda": 30, "cpu": 15}
WARMUP_ROUNDS = 3
TimeRounds = Callable[[Timed], float | None]
MeasurePhase = Callable[[str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("stormfast")
    group.addoption(
        "--device",
        default="cpu",
        help="what the benches run on: cpu (default, small sizes), cuda or cuda:N (the presets' sizes)",
    )
    sizes = "sizes of the phases, may be given more than once; default storm and fast on CUDA, else cpu"
    group.addoption("--preset", action="append", choices=["storm", "fast", "cpu", "tiny"], help=sizes)
    group.addoption(
        "--compile",
        default="auto",
        choices=["auto", "off", "default", "graphs"],
        help="of the phases, as of `stormfast train`",
    )
    group.addoption("--rounds", type=int, help="timed rounds of each bench; default 30 on CUDA, else 15")
    group.addoption("--save", action="store_true", help="write the results to bench/results/DEVICE/DATE-COMMIT.json")


def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_quiet = True  # its table shows rounds of many calls; ours shows calls
    config.stash[RECORDS] = []
    try:
        config.stash[DEVICE] = resolve_device(config.getoption("--device"))
        config.stash[TURNS] = join()
        if config.getoption("--save"):
            choose_file(config)
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    if (rounds := config.getoption("--rounds")) is not None and rounds < 1:
        raise pytest.UsageError(f"--rounds must be at least 1, got {rounds}")
    config.stash[SAVE_AS] = path = config.getoption("benchmark_json")
    if path:
        check_writable(path)
        config.option.benchmark_json = path.with_name(path.name + ".partial")  # renamed when it is whole


def choose_file(config: pytest.Config) -> None:
    """Raises: UserError."""
    if config.getoption("benchmark_json"):
        raise UserError("--save chooses the file itself; give it or --benchmark-json, not both")
    config.option.benchmark_json = path = result_path(config.stash[DEVICE])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--save must be able to make {path.parent}: {error.strerror}") from None


def result_path(device: torch.device) -> Path:
    """Of a file that is not there yet: an earlier run stays. Raises: UserError where the commit cannot be told."""
    head, dirty = commit()
    stem = (
        ROOT
        / "bench"
        / "results"
        / slug(device_name(device))
        / f"{time.strftime('%Y-%m-%d')}-{head}{'-dirty' if dirty else ''}"
    )
    names = (
        stem.with_name(f"{stem.name}{suffix}.json")
        for suffix in itertools.chain([""], (f"-{n}" for n in itertools.count(2)))
    )
    return next(path for path in names if not path.exists())


def check_writable(path: Path) -> None:
    """Refuses now what pytest-benchmark would fail to write after all has been timed."""
    try:
        if path.exists() and not path.is_file():
            raise pytest.UsageError(f"--benchmark-json must be a file, got {path}")
        with tempfile.TemporaryFile(dir=path.parent):  # access rights do not tell: root has them everywhere
            pass
    except OSError as error:
        raise pytest.UsageError(
            f"--benchmark-json must lie in a directory that can be written, got {path}: {error.strerror}"
        ) from None


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keeps what pytest-benchmark has written by now; with --save not of a run that was interrupted, which no later one is to be compared with."""
    partial = session.config.option.benchmark_json
    if not partial or not partial.exists():
        return
    if exitstatus == pytest.ExitCode.INTERRUPTED and session.config.getoption("--save"):
        partial.unlink()
    else:
        os.replace(partial, session.config.stash[SAVE_AS])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "preset" in metafunc.fixturenames:
        config = metafunc.config
        metafunc.parametrize(
            "preset", config.getoption("--preset") or PRESETS[config.stash[DEVICE].type], scope="session"
        )


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    chosen = pytestconfig.stash[DEVICE]
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    else:
        keep_freed_memory()  # as training does
    return chosen


@pytest.fixture(scope="session")
def peaks(device: torch.device) -> Peaks:
    return measure_peaks(device)


@pytest.fixture(scope="session")
def step(preset: str, device: torch.device, pytestconfig: pytest.Config) -> Iterator[WarmStep]:
    try:
        with warm_step(preset, str(device), pytestconfig.getoption("--compile")) as warm:
            yield warm
    except UserError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def time_rounds(benchmark: Any, request: pytest.FixtureRequest) -> TimeRounds:
    """Times rounds, keeps in extra_info what a call took, and returns it in seconds; None under --benchmark-disable."""
    config = request.config
    device, turns, item = config.stash[DEVICE], config.stash[TURNS], request.node

    def run(timed: Timed) -> float | None:
        rounds = iter(range(sys.maxsize))

        def take_turn() -> None:
            if turns is not None:
                turns.wait(item.name, request.session.items.index(item), next(rounds))

        benchmark.pedantic(
            timed.run,
            setup=take_turn,
            rounds=config.getoption("--rounds") or ROUNDS[device.type],
            warmup_rounds=WARMUP_ROUNDS,
        )
        if not benchmark.enabled:  # everything ran once
            return None
        seconds = benchmark.stats["median"] / timed.calls
        benchmark.extra_info.update(
            bench=item.originalname.removeprefix("test_"),
            device=device.type,
            timing=timed.method,
            calls=timed.calls,
            seconds=seconds,
            seconds_iqr=benchmark.stats["iqr"] / timed.calls,
        )
        config.stash[RECORDS].append(benchmark.extra_info)
        return seconds

    return run


@pytest.fixture
def measure_phase(
    benchmark: Any, step: WarmStep, peaks: Peaks, device: torch.device, time_rounds: TimeRounds
) -> MeasurePhase:
    """Times a phase of a step by its name, and keeps its work and its share of what the device can do."""

    def run(name: str) -> None:
        took = time_rounds(as_calls(step.phases[name], device))
        if took is not None:
            benchmark.extra_info.update(step.about(), phase=name, **step.work(name, took, peaks))

    return run


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)  # the host's name is nobody's business
    arguments = [argument for argument in config.invocation_params.args if not argument.startswith("--benchmark-json")]
    machine_info.update(
        describe(config.stash[DEVICE]), command=" ".join(["python -m pytest", *arguments]), load=os.getloadavg()[0]
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if records := config.stash[RECORDS]:
        terminalreporter.section("medians of one call (interquartile range)")
        terminalreporter.write_line(table.markdown(records))
    if (path := config.stash[SAVE_AS]) and path.exists() and records:
        terminalreporter.write_line(f"\nwritten to {path}")
