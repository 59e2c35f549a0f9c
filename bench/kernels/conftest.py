"""`measure` for the kernels: one bench is timed for each provider of a kernel, and for each case of its device.

A case is a marker, one list a kind of device:

    @pytest.mark.cases(cpu=[...], cuda=[...])
    def test_kernel(case, measure): ...
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from bench.conftest import DEVICE, TimeRounds
from bench.devices import copy_bandwidth
from bench.kernels import table
from bench.kernels.timing import assert_same_call, num_sets, prepare
from bench.kernels.work import Work
from stormfast_kernels import launch

PROVIDERS = ("eager", "compile", "triton")
NO_TRITON = "Triton is timed on CUDA devices: on a CPU its interpreter runs, whose time means nothing"
Forward = Callable[..., Any]
Measure = Callable[..., None]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cases(cpu, cuda): what a bench runs with on each kind of device")


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
def copy_bytes_per_second(device: torch.device) -> float:
    return copy_bandwidth(device)


@pytest.fixture
def provider(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the provider, and the public functions following it."""
    monkeypatch.setenv("STORMFAST_KERNELS", "triton" if request.param == "triton" else "reference")
    return request.param


@pytest.fixture
def measure(
    benchmark: Any, device: torch.device, provider: str, copy_bytes_per_second: float, time_rounds: TimeRounds
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
                assert_same_call(
                    lambda *x: around(forward, *x), lambda *x: around(reference, *x), given, tolerance=2e-2
                )
        launches = _triton_launches(lambda: around(forward, *sets[0][0]))
        assert (launches > 0) == (provider == "triton"), f"{provider} launched {launches} Triton kernels of stormfast"
        timed = prepare(lambda *given: around(forward, *given), sets, device)
        if (took := time_rounds(timed)) is None:
            return
        benchmark.extra_info.update(
            kernel=kernel,
            shape=shape,
            dtype=dtype,
            provider=provider,
            input_sets=len(sets),
            triton_launches_per_call=launches,
            bytes=work.bytes,
            flops=work.flops,
            bytes_per_second=work.bytes / took,
            flops_per_second=work.flops / took,
            copy_bytes_per_second=copy_bytes_per_second,
            fraction_of_copy_bandwidth=work.bytes / took / copy_bytes_per_second,
        )
        if target and provider == "triton":
            benchmark.extra_info["target"] = target

    return run


def _triton_launches(call: Callable[[], Any]) -> int:
    """How many of our Triton kernels one call launches."""
    before = launch.launched.total()
    call()
    return launch.launched.total() - before


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    table.evaluate([info for benchmark in output_json["benchmarks"] if "kernel" in (info := benchmark["extra_info"])])
