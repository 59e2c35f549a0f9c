"""Rounds of calls, CUDA graphs, and outputs that must be right before anything is timed."""

import time
from collections.abc import Callable

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
