"""Rounds of calls, CUDA graphs by a fake, and outputs that must be right before anything is timed."""

import contextlib
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import timing
from bench.kernel_cases import Work
from bench.providers import KernelBench, assert_same

CPU = torch.device("cpu")


def test_a_round_is_as_many_calls_as_it_says() -> None:
    seen: list[tuple] = []
    plain = timing.as_calls(lambda: seen.append(()), CPU)
    kernel = timing.prepare(lambda *given: seen.append(given), [[(1,), (2,)], [(3,), (4,)]], CPU)
    for timed in (plain, kernel):
        assert timed.calls > 100 and timed.method == "calls"
        seen.clear()
        timed.run()
        assert len(seen) == timed.calls
    assert seen[:5] == [(1,), (3,), (2,), (4,), (1,)]  # sets take turns
    assert timing.as_calls(lambda: time.sleep(0.003), CPU).calls == 1


def test_input_sets_exceed_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(L2_cache_size=60_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    cuda = torch.device("cuda")
    sizes = [4_000_000, 3_999_999, 1e9]
    assert [timing.num_sets(size, cuda) for size in sizes] == [30, 31, 2]
    assert timing.num_sets(4_000_000, CPU) == 1


class FakeCuda:
    """torch.cuda as far as timing uses it: a graph remembers how many calls were made inside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capturable: bool) -> None:
        self.capturable, self.called, self.waits = capturable, 0, 0
        stream = SimpleNamespace(wait_stream=lambda other: None)
        names = {
            "CUDAGraph": lambda: SimpleNamespace(replay=None),
            "graph": self.graph,
            "synchronize": self.synchronize,
        }
        names |= {"Stream": lambda: stream, "current_stream": lambda: stream, "stream": contextlib.nullcontext}
        for name, value in names.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def call(self, *given: Any) -> None:
        self.called += 1

    def synchronize(self, device: Any = None) -> None:
        self.waits += 1

    @contextlib.contextmanager
    def graph(self, graph: SimpleNamespace) -> Any:
        before = self.called
        yield
        if not self.capturable:
            raise RuntimeError("operation not\npermitted when stream is capturing")
        calls, self.called = self.called - before, before  # nothing runs while it is captured

        def replay() -> None:
            self.called += calls

        graph.replay = replay


@pytest.mark.parametrize("capturable", [True, False])
def test_a_round_on_cuda_replays_a_graph_where_there_can_be_one(
    monkeypatch: pytest.MonkeyPatch, capturable: bool
) -> None:
    fake = FakeCuda(monkeypatch, capturable)
    timed = timing.prepare(fake.call, [[(1,), (2,), (3,)]] * 7, torch.device("cuda"))
    assert timed.calls % 63 == 0  # 21 calls, three times over to reach 50
    before, waits = fake.called, fake.waits
    timed.run()
    assert (fake.called - before, fake.waits - waits) == (timed.calls, 1)
    assert timed.method == "CUDA graph" if capturable else "stream is capturing" in timed.method


@pytest.mark.gpu
def test_a_graph_on_cuda_makes_the_calls_it_says() -> None:
    device = torch.device("cuda")
    counter, one = torch.zeros((2,), dtype=torch.int64, device=device).unbind()
    timed = timing.prepare(lambda x: counter.add_(x), [[(one + 1,)]] * 3, device)
    assert timed.method == "CUDA graph"
    before = counter.item()
    timed.run()
    assert counter.item() - before == timed.calls


def test_a_wrong_output_is_not_timed() -> None:
    right = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert_same((right * 1.001, right), (right, right), tolerance=2e-3)
    for wrong in (right * 1.01, torch.full_like(right, float("nan"))):
        with pytest.raises(AssertionError, match="output 1"):
            assert_same((right, wrong), (right, right), tolerance=2e-3)


def test_a_provider_is_compared_with_the_reference_before_it_is_timed() -> None:
    def append(token: Tensor, cache: Tensor, position: int) -> Tensor:
        cache[position] = token
        return cache[: position + 1].sum(0)

    def forget(token: Tensor, cache: Tensor, position: int) -> Tensor:
        return cache[:position].sum(0) + token

    def arguments(generator: torch.Generator) -> list[tuple]:
        cache = torch.randn(4, 5, generator=generator)
        return [(torch.randn(5, generator=generator), cache, position) for position in (2, 3)]

    def bench(public: Callable[..., Tensor]) -> KernelBench:
        return KernelBench("append", "[4, 5]", "float32", public, append, arguments, Work(0, 0))

    timed, about = bench(append).prepare("eager", CPU)
    assert timed.calls % 2 == 0 and about["triton_launches_per_call"] == 0
    with pytest.raises(AssertionError, match="output 0"):
        bench(forget).prepare("eager", CPU)
    with pytest.raises(AssertionError, match="launched 0 Triton kernels"):
        bench(append).prepare("triton", CPU)
