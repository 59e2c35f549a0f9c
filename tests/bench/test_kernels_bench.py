"""The harness of the kernel benchmarks: formulae against counts by hand, what is timed, the table, and one bench as a user runs it.

N categoricals   K classes   B sequences   T positions
"""

import contextlib
import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import rounds
from bench.kernels import table, timing
from bench.kernels.work import Work, attention_work, gradient_work, log_probs_work, sample_work
from stormfast_kernels import sample_categorical_with_log_probs, unimix_log_probs
from stormfast_kernels.attention import cached_attention_step_reference

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | (env or {})
    )


def nbytes(*tensors: torch.Tensor) -> int:
    return sum(x.numel() * x.itemsize for x in tensors)


# --- bytes and operations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_sampling_are_those_of_its_tensors(dtype: torch.dtype) -> None:
    logits, uniform = torch.randn(3, 5, 7).to(dtype).requires_grad_(), torch.rand(3, 5)
    sample, index, log_probs = sample_categorical_with_log_probs(logits, uniform, 0.01)
    grad_sample, grad_log_probs = torch.randn_like(sample), torch.randn_like(log_probs)
    (gradient,) = torch.autograd.grad((sample, log_probs), logits, (grad_sample, grad_log_probs))
    size = dtype.itemsize
    assert sample_work(15, 7, size, log_probs=True).bytes == nbytes(logits, uniform, sample, index, log_probs)
    assert sample_work(15, 7, size).bytes == nbytes(logits, uniform, sample, index)
    assert sample_work(15, 7, size, uniform_given=False).bytes == nbytes(logits, sample, index)
    assert gradient_work(15, 7, size).bytes == nbytes(logits, grad_sample, grad_log_probs, gradient)
    assert gradient_work(15, 7, size, sample=False).bytes == nbytes(logits, grad_log_probs, gradient)
    assert log_probs_work(15, 7, size).bytes == nbytes(logits, unimix_log_probs(logits, 0.01))


def test_a_rollout_of_storm_by_hand() -> None:
    """[16384, 32, 32] is 16,777,216 elements in 524,288 rows."""
    assert sample_work(16384 * 32, 32, 2) == Work(16_777_216 * 4 + 524_288 * 12, 167_772_160)
    assert sample_work(16384 * 32, 32, 4, log_probs=True) == Work(16_777_216 * 12 + 524_288 * 12, 184_549_376)
    assert log_probs_work(16384 * 32, 32, 2) == Work(16_777_216 * 6, 134_217_728)
    assert gradient_work(16384 * 32, 32, 2) == Work(16_777_216 * 10, 251_658_240)
    assert sample_work(1, 2, 4) + log_probs_work(1, 2, 4) == Work(28 + 16, 20 + 16)


def test_attention_work_is_that_of_its_tensors_and_of_its_products() -> None:
    batch, heads, head_dim, length = 3, 2, 8, 5
    query, key, value = torch.randn(3, batch, heads, head_dim).unbind()
    caches, position = torch.randn(2, batch, heads, length + 1, head_dim), torch.tensor(length)
    first = torch.zeros(batch, dtype=torch.int64)
    out = cached_attention_step_reference(query, key, value, caches[0], caches[1], position, first)
    written, read = caches[:, :, :, length], caches[:, :, :, :length]
    plain = attention_work(batch, heads, head_dim, range(length, length + 1), 4)
    assert plain.bytes == nbytes(query, key, value, out, written, read, position)
    assert attention_work(
        batch, heads, head_dim, range(length, length + 1), 4, masked=True
    ).bytes == plain.bytes + nbytes(first)
    with FlopCounterMode(display=False) as counter:
        weights = (query.unsqueeze(-2) @ caches[0].transpose(-1, -2) * head_dim**-0.5).softmax(-1)
        torch.testing.assert_close((weights @ caches[1]).squeeze(-2), out)
    assert plain.flops == counter.get_total_flops() + batch * heads * (length + 1) * 6


def test_attention_work_is_averaged_over_lengths() -> None:
    """storm: 1024 * 8 * 64 numbers of 2 bytes are 1 MiB; lengths 8..23 are 15.5 on average."""
    work = attention_work(1024, 8, 64, range(8, 24), 2)
    assert work == Work((6 + 2 * 15.5) * 2**20 + 8, 1024 * 8 * 16.5 * (4 * 64 + 6))
    each = [attention_work(1024, 8, 64, range(n, n + 1), 2) for n in range(8, 24)]
    assert sum(w.bytes for w in each) == 16 * work.bytes
    assert sum(w.flops for w in each) == 16 * work.flops


# --- what is timed -----------------------------------------------------------------------------------------------


def test_sets_take_turns() -> None:
    first, second = [("a0",), ("a1",)], [("b0",), ("b1",)]
    assert timing.interleave([first, second]) == [("a0",), ("b0",), ("a1",), ("b1",)]
    with pytest.raises(ValueError, match="zip"):
        timing.interleave([first, second[:1]])


def test_input_sets_exceed_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=60_000_000))
    cuda = torch.device("cuda")
    assert timing.num_sets(4_000_000, cuda) == 30
    assert timing.num_sets(4_000_001, cuda) == 30
    assert timing.num_sets(3_999_999, cuda) == 31
    assert timing.num_sets(1e9, cuda) == 2  # the second evicts the first
    assert timing.num_sets(4_000_000, CPU) == 1


def test_a_round_on_a_cpu_is_as_many_calls_as_it_says() -> None:
    seen: list[Any] = []
    timed = timing.prepare(lambda *given: seen.append(given), [[(1,), (2,)]], CPU)
    assert timed.method == "calls"
    assert timed.calls > 2  # two calls alone do not fill a round
    seen.clear()
    timed.run()
    assert len(seen) == timed.calls
    assert seen[:4] == [(1,), (2,), (1,), (2,)]


class FakeCuda:
    """Just enough of torch.cuda: a graph remembers what was called inside, and replays its number."""

    def __init__(self, capturable: bool) -> None:
        self.capturable, self.called, self.synchronized = capturable, 0, 0

    def call(self, *given: Any) -> int:
        self.called += 1
        return self.called

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake, stream = self, SimpleNamespace(wait_stream=lambda other: None)

        class Graph:
            calls = 0

            def replay(self) -> None:
                fake.called += self.calls

        @contextlib.contextmanager
        def graph(captured: Graph) -> Any:
            before = fake.called
            yield
            captured.calls, fake.called = fake.called - before, before  # nothing runs while it is captured
            if not fake.capturable:
                raise RuntimeError("operation not\npermitted when stream is capturing")

        def synchronize(device: Any = None) -> None:
            fake.synchronized += 1

        names = {
            "CUDAGraph": Graph,
            "graph": graph,
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "synchronize": synchronize,
        }
        for name, value in {**names, "stream": lambda stream: contextlib.nullcontext()}.items():
            monkeypatch.setattr(torch.cuda, name, value)


@pytest.mark.parametrize("capturable", [True, False])
def test_a_round_on_cuda_is_replays_of_a_graph(monkeypatch: pytest.MonkeyPatch, capturable: bool) -> None:
    fake = FakeCuda(capturable)
    fake.patch(monkeypatch)
    timed = timing.prepare(fake.call, [[(1,), (2,), (3,)]] * 7, torch.device("cuda"))
    assert timed.calls % 63 == 0  # 21 calls, three times over to reach 50
    before, waits = fake.called, fake.synchronized
    timed.run()
    assert fake.called - before == timed.calls
    assert fake.synchronized == waits + 1
    expected = (
        "CUDA graph" if capturable else "CUDA graph capture failed: operation not permitted when stream is capturing"
    )
    assert timed.method.endswith(expected)


@pytest.mark.gpu
def test_a_graph_on_cuda_computes_what_calls_compute() -> None:
    device = torch.device("cuda")
    counter = torch.zeros((), dtype=torch.int64, device=device)
    timed = timing.prepare(
        lambda x: counter.add_(x), [[(torch.ones((), dtype=torch.int64, device=device),)]] * 3, device
    )
    assert timed.method == "CUDA graph"
    before = counter.item()
    timed.run()
    assert counter.item() - before == timed.calls


def test_a_wrong_answer_is_not_timed() -> None:
    right = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    timing.assert_same((right * 1.001, right), (right, right), tolerance=2e-3)
    timing.assert_same(right.bfloat16(), right.bfloat16(), tolerance=0)
    for wrong in (right * 1.01, torch.full_like(right, float("nan"))):
        with pytest.raises(AssertionError, match=r"output 1 of shape \(4, 5\)"):
            timing.assert_same((right, wrong), (right, right), tolerance=2e-3)
    with pytest.raises(ValueError, match="zip"):
        timing.assert_same((right, right), right, tolerance=1)


def test_what_is_written_into_arguments_is_compared_too() -> None:
    def append(token: torch.Tensor, cache: torch.Tensor, position: int) -> torch.Tensor:
        cache[:, position] = token
        return token * 2

    def forgets(token: torch.Tensor, cache: torch.Tensor, position: int) -> torch.Tensor:
        return token * 2

    def elsewhere(token: torch.Tensor, cache: torch.Tensor, position: int) -> torch.Tensor:
        cache[:, position - 1] = token
        return append(token, cache, position)

    rng = torch.Generator().manual_seed(0)
    given = torch.randn(3, 5, generator=rng), torch.randn(3, 200, 5, generator=rng), 7
    before = given[1].clone()
    timing.assert_same_call(append, append, given, tolerance=0)
    assert torch.equal(given[1], before)
    for wrong in (forgets, elsewhere):
        with pytest.raises(AssertionError, match=r"argument 1 of shape \(3, 200, 5\)"):
            timing.assert_same_call(wrong, append, given, tolerance=0.5)
    with pytest.raises(AssertionError, match="argument 1"):  # what the reference leaves alone is left alone
        timing.assert_same_call(append, forgets, given, tolerance=0.5)
    with pytest.raises(AssertionError, match="output 0"):
        timing.assert_same_call(
            lambda token, cache, position: append(token, cache, position) * 1.1, append, given, tolerance=1e-2
        )


# --- the table ---------------------------------------------------------------------------------------------------


def record(
    kernel: str, provider: str, microseconds: float, fraction: float, target: dict[str, Any] | None = None
) -> dict[str, Any]:
    fixed = {"shape": "[2, 3]", "dtype": "float32", "timing": "CUDA graph", "copy_bytes_per_second": 4.3e12}
    measured = {"seconds": microseconds * 1e-6, "seconds_iqr": 1e-7, "fraction_of_copy_bandwidth": fraction}
    return {"kernel": kernel, "provider": provider, **fixed, **measured, **({"target": target} if target else {})}


SPEEDUP = {"quantity": "speedup_over_eager", "at_least": 2.0}
FRACTION = {"quantity": "fraction_of_copy_bandwidth", "at_least": 0.7}
RECORDS = [
    record("sample", "eager", 60, 0.11),
    record("sample", "compile", 15, 0.45),
    record("sample", "triton", 10, 0.68, FRACTION),
    record("attention", "eager", 30, 0.2),
    record("attention", "triton", 12, 0.504, SPEEDUP),
    record("log_probs", "eager", 1, 0.9),
]


def test_table() -> None:
    lines = table.markdown(copy.deepcopy(RECORDS)).splitlines()
    assert len(lines) == 2 + 3
    assert lines[2:] == [
        "| sample | [2, 3] | float32 | 10.0 (0.1) | 60.0 (0.1) | 15.0 (0.1) | 6.00x | 1.50x | 68, 11, 45 | MISSED: 0.68 < 0.7 |",
        "| attention | [2, 3] | float32 | 12.0 (0.1) | 30.0 (0.1) | - | 2.50x | - | 50, 20, - | met: 2.50 >= 2 |",
        "| log_probs | [2, 3] | float32 | - | 1.0 (0.1) | - | - | - | -, 90, - |  |",
    ]
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_targets_are_kept_with_the_results() -> None:
    records = copy.deepcopy(RECORDS)
    table.evaluate(records)
    assert records[2]["target"] == FRACTION | {"value": 0.68, "met": False}
    assert records[4]["target"] == SPEEDUP | {"value": pytest.approx(2.5), "met": True}
    alone = [copy.deepcopy(RECORDS[4])]  # without eager there is no speed-up
    table.evaluate(alone)
    assert alone[0]["target"] == SPEEDUP | {"value": None, "met": None}
    assert "not evaluated: >= 2" in table.markdown(alone)


def test_table_says_what_was_not_timed_in_a_graph() -> None:
    records = copy.deepcopy(RECORDS[:1])
    records[0]["timing"] = "calls: capture failed"
    assert table.markdown(records).splitlines()[-1] == "sample [2, 3] float32 eager: timed by calls: capture failed"


# --- as a user runs it -------------------------------------------------------------------------------------------


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "pytest", "bench/kernels", "-p", "no:cacheprovider", *arguments)


def test_one_bench_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    done = bench(
        "-k",
        "test_log_probs and not gradient and not compile or test_step and eager",
        "-rs",
        f"--benchmark-json={path}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Triton is timed on CUDA devices" in done.stdout
    assert "| unimix_log_probs | [4, 16, 16, 16] | float32 | - |" in done.stdout
    result = json.loads(path.read_text())
    assert "node" not in result["machine_info"]
    assert result["machine_info"]["device_type"] == "cpu"
    assert str(ROOT) not in path.read_text()
    info = {benchmark["extra_info"]["kernel"]: benchmark["extra_info"] for benchmark in result["benchmarks"]}
    assert set(info) == {"unimix_log_probs", "cached_attention_step"}
    for benchmark in result["benchmarks"]:
        one = benchmark["extra_info"]
        assert one["seconds"] == pytest.approx(benchmark["stats"]["median"] / one["calls"])
        assert benchmark["stats"]["median"] > 0.5 * rounds.ROUND_SECONDS["cpu"]
        assert one["bytes_per_second"] == pytest.approx(one["bytes"] / one["seconds"])
        assert 1e-4 < one["fraction_of_copy_bandwidth"] < 100  # small sizes may live in a cache
        assert one["fraction_of_copy_bandwidth"] == pytest.approx(
            one["bytes_per_second"] / one["copy_bytes_per_second"]
        )
        assert one["triton_launches_per_call"] == 0
        assert "target" not in one
    assert info["unimix_log_probs"]["bytes"] == 4 * 16 * 16 * 16 * 8
    assert run(sys.executable, "bench/table.py", str(path)).stdout.count("cached_attention_step") == 2


@pytest.mark.slow
def test_every_bench_runs_on_a_cpu() -> None:
    """All cases once, compiled ones too, without timing."""
    done = bench("--benchmark-disable")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_where_there_is_none_is_one_line() -> None:
    done = bench("--device", "cuda")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.strip().splitlines()[-1].startswith("ERROR: device cuda was asked for, but torch")
    assert not list((ROOT / "bench" / "results").glob("*cuda*"))
