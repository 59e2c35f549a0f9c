"""For all benches: the device they run on, the machine in the JSON, and `measure`, which times one provider of one kernel.

A bench is a test in a file bench_*.py that asks for `measure`. Its sizes are a marker, one list a kind of device:

    @pytest.mark.cases(cpu=[...], cuda=[...])
    def test_kernel(case, measure): ...

It then runs once for each case and provider.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.devices import copy_bandwidth, describe
from bench.kernels import table
from bench.kernels.timing import assert_same_call, num_sets, prepare
from bench.kernels.work import Work
from stormfast.device import resolve_device
from stormfast.errors import UserError
from stormfast_kernels import launch

RECORDS = pytest.StashKey[list[dict[str, Any]]]()
DEVICE = pytest.StashKey[torch.device]()
PROVIDERS = ("eager", "compile", "triton")
NO_TRITON = "Triton is timed on CUDA devices: on a CPU its interpreter runs, whose time means nothing"
ROUNDS = {"cuda": 30, "cpu": 15}
WARMUP_ROUNDS = 3
Forward = Callable[..., Any]
Measure = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="what the benches run on: cpu (default, small sizes), cuda or cuda:N (the presets' sizes)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cases(cpu, cuda): what a bench runs with on each kind of device")
    config.option.benchmark_quiet = True  # its table shows rounds of many calls; ours shows calls
    config.stash[RECORDS] = []
    try:
        config.stash[DEVICE] = resolve_device(config.getoption("--device"))
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    if path := config.getoption("benchmark_json"):
        _check_writable(path)


def _check_writable(path: Path) -> None:
    """Refuses now what pytest-benchmark would fail to write after all has been timed."""
    try:
        if path.exists() and not path.is_file():
            raise pytest.UsageError(f"--benchmark-json must be a file, got {path}")
        with tempfile.TemporaryFile(dir=path.parent):  # access rights do not tell: root has them everywhere
            pass
    except OSError as error:
        raise pytest.UsageError(f"--benchmark-json must lie in a directory that can be written, got {path}: {error.strerror}") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("cases")
    if marker is None:
        return
    kind = metafunc.config.stash[DEVICE].type
    absent = pytest.mark.skip(reason=NO_TRITON) if kind == "cpu" else ()
    providers = [pytest.param(name, marks=absent if name == "triton" else ()) for name in PROVIDERS]
    metafunc.parametrize("case", marker.kwargs[kind], ids=str)
    metafunc.parametrize("provider", providers, indirect=True)


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    chosen = pytestconfig.stash[DEVICE]
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return chosen


@pytest.fixture(scope="session")
def copy_bytes_per_second(device: torch.device) -> float:
    return copy_bandwidth(device)


@pytest.fixture
def provider(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the provider, and the public functions following it."""
    monkeypatch.setenv("STORMFAST_KERNELS", "triton" if request.param == "triton" else "reference")
    return request.param


@pytest.fixture
def measure(
    benchmark: Any, device: torch.device, provider: str, copy_bytes_per_second: float, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> Measure:
    def run(
        *,
        kernel: str,
        shape: str,
        dtype: str,
        public: Forward,
        reference: Forward,
        arguments: Callable[[torch.Generator], Sequence[tuple]],
        work: Work,
        around: Callable[..., Any] = lambda forward, *given: forward(*given),
        comparable: bool = True,
        target: dict[str, Any] | None = None,
    ) -> None:
        """Times around(forward, *arguments), forward being what the provider makes of a kernel, and keeps the evidence.

        Args:
            public:     the public function, with what does not vary filled in; it asks dispatch what to run.
            reference:  what it runs as reference, fit to compile; same arguments, same outputs.
            arguments:  makes one set of inputs on the device: the arguments of successive calls.
            work:       of one call, averaged over them.
            around:     a whole call, as forward and backward.
            comparable: whether two calls on the same arguments have the same outputs.
            target:     what to reach on a CUDA device: {"quantity": ..., "at_least": ...}.
        """
        forward = public
        if provider == "compile":
            torch.compiler.reset()  # else the eighth case is one recompilation too many
            forward = torch.compile(reference, fullgraph=True, dynamic=False)
        generator = torch.Generator(device).manual_seed(0)
        sets = [arguments(generator) for _ in range(num_sets(work.bytes, device))]
        if provider != "eager" and comparable:
            for given in sets[0]:
                assert_same_call(lambda *x: around(forward, *x), lambda *x: around(reference, *x), given, tolerance=2e-2)
        launches = _triton_launches(lambda: around(forward, *sets[0][0]))
        assert (launches > 0) == (provider == "triton"), f"{provider} launched {launches} Triton kernels of stormfast"
        timed = prepare(lambda *given: around(forward, *given), sets, device)
        benchmark.pedantic(timed.run, rounds=ROUNDS[device.type], warmup_rounds=WARMUP_ROUNDS)
        if not benchmark.enabled:  # --benchmark-disable runs everything once
            return
        seconds, spread = benchmark.stats["median"] / timed.launches, benchmark.stats["iqr"] / timed.launches
        benchmark.extra_info.update(
            kernel=kernel,
            shape=shape,
            dtype=dtype,
            provider=provider,
            device=device.type,
            timing=timed.method,
            launches=timed.launches,
            input_sets=len(sets),
            triton_launches_per_call=launches,
            seconds=seconds,
            seconds_iqr=spread,
            bytes=work.bytes,
            flops=work.flops,
            bytes_per_second=work.bytes / seconds,
            flops_per_second=work.flops / seconds,
            copy_bytes_per_second=copy_bytes_per_second,
            fraction_of_copy_bandwidth=work.bytes / seconds / copy_bytes_per_second,
        )
        if target and provider == "triton":
            benchmark.extra_info["target"] = target
        pytestconfig.stash[RECORDS].append(benchmark.extra_info)

    return run


def _triton_launches(call: Callable[[], Any]) -> int:
    """How many of our Triton kernels one call launches."""
    before = launch.launched.total()
    call()
    return launch.launched.total() - before


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)  # the host's name is nobody's business
    machine_info.update(describe(config.stash[DEVICE]))


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    table.evaluate([benchmark["extra_info"] for benchmark in output_json["benchmarks"]])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if records := config.stash[RECORDS]:
        terminalreporter.section("medians of one call (interquartile range)")
        terminalreporter.write_line(table.markdown(records))
