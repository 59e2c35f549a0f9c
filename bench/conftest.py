"""For all benches: the device they run on, how rounds are timed, and what the JSON says of the machine.

    python -m pytest bench                     # CPU, small sizes
    python -m pytest bench --device cuda --save            # the presets' sizes; saved under bench/results/DEVICE/
    python -m pytest bench/bench_phases.py bench/bench_replay.py --preset storm --compile off

A bench of a kernel runs once for each provider and each case of its device, which a marker lists:

    @pytest.mark.cases(cpu=[...], cuda=[...])
    def test_kernel(case, measure_kernel): ...
"""

import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import record_tables
from bench.devices import commit, describe, device_name, slug
from bench.providers import PROVIDERS, KernelBench
from bench.script import ROOT, check_writable
from bench.timing import Timed, as_calls
from bench.warm_step import WarmStep, warm_step
from stormfast.device import keep_freed_memory, resolve_device
from stormfast.errors import UserError
from stormfast.measure.peaks import Peaks, measure_peaks

RECORDS = pytest.StashKey[list[dict[str, Any]]]()
DEVICE = pytest.StashKey[torch.device]()
RESULT = pytest.StashKey[Path | None]()
PRESETS = {"cpu": ["cpu"], "cuda": ["storm", "fast"]}  # kind of device -> what is timed there by default
ROUNDS = {"cuda": 30, "cpu": 15}
WARMUP_ROUNDS = 3
NO_TRITON = "Triton is timed on CUDA devices: on a CPU its interpreter runs, whose time means nothing"
TimeRounds = Callable[[Timed], float | None]
MeasurePhase = Callable[[str], None]
MeasureKernel = Callable[[KernelBench], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("stormfast")
    group.addoption("--device", default="cpu", help="cpu (default, small sizes), cuda or cuda:N (the presets' sizes)")
    sizes = "sizes of the phases, may be given more than once; default storm and fast on CUDA, else cpu"
    group.addoption("--preset", action="append", choices=["storm", "fast", "cpu", "tiny"], help=sizes)
    modes = ["auto", "off", "default", "graphs"]
    group.addoption("--compile", default="auto", choices=modes, help="of the phases, as of `stormfast train`")
    group.addoption("--rounds", type=int, help="timed rounds of each bench; default 30 on CUDA, else 15")
    group.addoption("--save", action="store_true", help="write the results to bench/results/DEVICE/DATE-COMMIT.json")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cases(cpu, cuda): what a bench runs with on each kind of device")
    config.option.benchmark_quiet = True  # its table shows rounds of many calls; ours shows calls
    config.stash[RECORDS] = []
    try:
        config.stash[DEVICE] = resolve_device(config.getoption("--device"))
        if (rounds := config.getoption("--rounds")) is not None and rounds < 1:
            raise UserError(f"--rounds must be at least 1, got {rounds}")
        config.stash[RESULT] = path = result_file(config)
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    if path:
        config.option.benchmark_json = path.with_name(path.name + ".partial")  # renamed when it is whole


def result_file(config: pytest.Config) -> Path | None:
    """Where the results go, checked to be writable before anything is timed. Raises: UserError."""
    path, save = config.getoption("benchmark_json"), config.getoption("--save")
    if save and path:
        raise UserError("--save chooses the file itself; give it or --benchmark-json, not both")
    if save:
        path = new_result(config.stash[DEVICE])
    if path:
        check_writable("--save" if save else "--benchmark-json", path, make=save)
    return path


def new_result(device: torch.device) -> Path:
    """bench/results/DEVICE/DATE-COMMIT.json, numbered where there are earlier ones. Raises: UserError."""
    head, dirty = commit()
    name = f"{time.strftime('%Y-%m-%d')}-{head}{'-dirty' if dirty else ''}"
    folder = ROOT / "bench" / "results" / slug(device_name(device))
    suffixes = itertools.chain([""], (f"-{n}" for n in itertools.count(2)))
    return next(path for suffix in suffixes if not (path := folder / f"{name}{suffix}.json").exists())


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keeps what pytest-benchmark has written by now; of an interrupted session nothing."""
    partial = session.config.option.benchmark_json
    if partial and partial.exists():
        if exitstatus == pytest.ExitCode.INTERRUPTED:
            partial.unlink()
        else:
            os.replace(partial, session.config.stash[RESULT])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    kind = metafunc.config.stash[DEVICE].type
    if "preset" in metafunc.fixturenames:
        presets = metafunc.config.getoption("--preset") or PRESETS[kind]
        metafunc.parametrize("preset", presets, scope="session")
    if marker := metafunc.definition.get_closest_marker("cases"):
        absent = pytest.mark.skip(reason=NO_TRITON) if kind == "cpu" else ()
        providers = [pytest.param(name, marks=absent if name == "triton" else ()) for name in PROVIDERS]
        metafunc.parametrize("case", marker.kwargs[kind], ids=str)
        metafunc.parametrize("provider", providers, indirect=True)


# --- fixtures ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    chosen = pytestconfig.stash[DEVICE]
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    else:
        keep_freed_memory()  # as training does
    return chosen


@pytest.fixture(scope="session")
def peaks(device: torch.device) -> Callable[[], Peaks]:
    """Measured when first asked for: it takes seconds, and --benchmark-disable never asks."""
    return functools.cache(lambda: measure_peaks(device))


@pytest.fixture(scope="session")
def step(preset: str, device: torch.device, pytestconfig: pytest.Config) -> Iterator[WarmStep]:
    try:
        with warm_step(preset, str(device), pytestconfig.getoption("--compile")) as warm:
            yield warm
    except UserError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def time_rounds(benchmark: Any, request: pytest.FixtureRequest) -> TimeRounds:
    """Times rounds, records what a call took and returns it in seconds; None under --benchmark-disable."""
    config = request.config
    device, item = config.stash[DEVICE], request.node

    def run(timed: Timed) -> float | None:
        num_rounds = config.getoption("--rounds") or ROUNDS[device.type]
        benchmark.pedantic(timed.run, rounds=num_rounds, warmup_rounds=WARMUP_ROUNDS)
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
    benchmark: Any, step: WarmStep, peaks: Callable[[], Peaks], device: torch.device, time_rounds: TimeRounds
) -> MeasurePhase:
    """Times a phase of a step by its name, and records its work and its share of what the device can do."""

    def run(name: str) -> None:
        took = time_rounds(as_calls(step.phases[name], device))
        if took is not None:
            benchmark.extra_info.update(step.about(), phase=name, **step.work(name, took, peaks()))

    return run


@pytest.fixture
def measure_kernel(
    benchmark: Any, provider: str, device: torch.device, peaks: Callable[[], Peaks], time_rounds: TimeRounds
) -> MeasureKernel:
    """Times a kernel by the provider of the test, and records its rates beside that of a copy."""

    def run(bench: KernelBench) -> None:
        timed, about = bench.prepare(provider, device)
        took = time_rounds(timed)
        if took is not None:
            moved, flops, copied = bench.work.bytes / took, bench.work.flops / took, peaks().copy_bytes
            about |= {"bytes_per_second": moved, "flops_per_second": flops, "copy_bytes_per_second": copied}
            benchmark.extra_info.update(about, fraction_of_copy_bandwidth=moved / copied)

    return run


@pytest.fixture
def provider(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its name; the public functions follow it."""
    monkeypatch.setenv("STORMFAST_KERNELS", "triton" if request.param == "triton" else "reference")
    return request.param


# --- results -----------------------------------------------------------------------------------------------------


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)  # the host's name is nobody's business
    words = [word for word in config.invocation_params.args if not word.startswith("--benchmark-json")]
    command = " ".join(["python -m pytest", *words])
    machine_info.update(describe(config.stash[DEVICE]), command=command, load=os.getloadavg()[0])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if records := config.stash[RECORDS]:
        terminalreporter.section("medians of one call (interquartile range)")
        terminalreporter.write_line(record_tables.of_records(records))
        if (path := config.stash[RESULT]) and path.exists():
            terminalreporter.write_line(f"\nwritten to {path}")
