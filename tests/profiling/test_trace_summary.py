"""Numbers of a trace written by hand, two steps of 100 us: what belongs to which phase, and how long the GPU idled."""

from typing import Any

import pytest

from profiling.trace_summary import covered, read, self_times, summarise

LOOP, AUTOGRAD = 1, 2  # threads


def event(
    category: str, name: str, start: float, end: float, thread: int = LOOP, correlation: int | None = None
) -> dict[str, Any]:
    args = {} if correlation is None else {"correlation": correlation}
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "pid": 7,
        "tid": thread,
        "ts": start,
        "dur": end - start,
        "args": args,
    }


def phase(name: str, start: float, end: float) -> dict[str, Any]:
    return event("user_annotation", f"stormfast:{name}", start, end)


HOST = [
    phase("step", 0, 100),
    phase("act", 0, 20),
    phase("world_model", 20, 60),
    phase("agent", 60, 70),
    phase("env", 75, 90),
    phase("step", 100, 200),
    phase("act", 100, 150),
    phase("world_model", 150, 190),
    event("user_annotation", "Optimizer.step#Adam.step", 20, 60),  # torch's own
    event("gpu_user_annotation", "stormfast:act", 0, 500, thread=99),
    event("Trace", "PyTorch Profiler (0)", -500, 900),
    {"ph": "i", "name": "Iteration Start", "ts": 0, "pid": 7, "tid": LOOP},
]
OPERATORS = [
    event("cpu_op", "a", 21, 41),
    event("cpu_op", "b", 22, 30),
    event("cpu_op", "c", 23, 25),
    event("cpu_op", "d", 35, 41),
    event("cpu_op", "e", 25, 39, thread=AUTOGRAD),
    event("cpu_op", "a", 151, 155),
    event("cpu_op", "a", 72, 73),  # in no phase
    event("cpu_op", "a", 300, 400),  # after the steps
]
GPU = [
    event("cuda_runtime", "cudaLaunchKernel", -5, -4, correlation=9),  # before the steps
    event("kernel", "early", -4, 3, thread=90, correlation=9),
    event("cuda_runtime", "cudaMemcpyAsync", 5, 6, correlation=4),
    event("gpu_memcpy", "Memcpy HtoD", 6, 8, thread=90, correlation=4),
    event("cuda_runtime", "cudaLaunchKernel", 25, 26, correlation=1),
    event("kernel", "gemm", 30, 50, thread=90, correlation=1),
    event("cuda_driver", "cuLaunchKernelEx", 30, 31, correlation=3),
    event("kernel", "unimix_sample_kernel", 45, 55, thread=91, correlation=3),  # on another stream, over gemm's end
    event("cuda_runtime", "cudaGraphLaunch", 62, 64, correlation=2),
    event("kernel", "gemm", 80, 100, thread=90, correlation=2),
    event("kernel", "gemm", 100, 130, thread=90, correlation=2),
    event("kernel", "softmax", 140, 260, thread=90, correlation=2),  # launched by the agent, done after the last step
    event("kernel", "nobody's", 150, 160, thread=90),
]


def trace(*parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {"traceEvents": [e for part in reversed(parts) for e in reversed(part)]}  # the order of a file says nothing


def test_a_phase_has_its_time_and_share():
    found = summarise(trace(HOST, OPERATORS), steps=2)
    assert (found["steps"], found["gpu"]) == (2, None)
    assert found["ms"] == pytest.approx(0.1)
    rows = found["phases"]
    assert list(rows) == ["act", "world_model", "agent", "env", "outside"]
    us = {name: row["ms"] * 2000 for name, row in rows.items()}
    assert us == pytest.approx({"act": 70, "world_model": 80, "agent": 10, "env": 15, "outside": 25})
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    assert [row["ranges"] for row in rows.values()] == [1, 1, 0.5, 0.5, 0]


def test_an_operator_has_what_it_does_not_call():
    operators = [e for e in read(trace(OPERATORS)) if e.category == "cpu_op"]
    own = [(e.name, us) for e, us in zip(operators, self_times(operators), strict=True)]
    assert own == [("a", 6), ("b", 6), ("c", 2), ("e", 14), ("d", 6), ("a", 1), ("a", 4), ("a", 100)]
    found = summarise(trace(HOST, OPERATORS), steps=2)
    rows = [(row["phase"], row["name"], row["calls"], row["ms"] * 2000) for row in found["operators"]]
    assert [row[:3] for row in rows[:2]] == [("world_model", "e", 0.5), ("world_model", "a", 1)]
    us = [(name, round(us, 9)) for phase, name, _, us in rows if phase == "world_model"]
    assert sorted(us) == [("a", 10), ("b", 6), ("c", 2), ("d", 6), ("e", 14)]
    assert found["phases"]["world_model"]["operators_ms"] * 2000 == pytest.approx(38)


def test_a_kernel_belongs_to_the_phase_that_launched_it():
    rows = summarise(trace(HOST, OPERATORS, GPU), steps=2)["phases"]
    assert [row["kernels"] for row in rows.values()] == [0, 1, 1.5, 0, 0]
    gpu_us = {name: row["gpu_ms"] * 2000 for name, row in rows.items()}
    assert gpu_us == pytest.approx({"act": 2, "world_model": 30, "agent": 170, "env": 0, "outside": 0})


def test_the_gpu_idles_where_nothing_runs_on_any_stream():
    gpu = summarise(trace(HOST, GPU), steps=2)["gpu"]
    assert gpu["ms"] * 2000 == pytest.approx(260)
    assert gpu["busy_ms"] * 2000 == pytest.approx(2 + 25 + 50 + 120)
    assert gpu["idle_share"] == pytest.approx(1 - 197 / 260)
    assert gpu["kernels"] == 2.5
    top = [(row["phase"], row["name"], row["calls"]) for row in gpu["top"][:2]]
    assert top == [("agent", "softmax", 0.5), ("agent", "gemm", 1)]


def test_covered_time_is_counted_once_and_within_bounds():
    events = read(trace([event("kernel", "k", *span) for span in ((0, 10), (2, 4), (8, 12), (20, 30))]))
    assert covered(events, 0, 30) == 22
    assert covered(events, 5, 25) == 7 + 5
    assert covered(events, 13, 19) == 0


def test_a_trace_without_steps_is_refused():
    with pytest.raises(ValueError, match="must hold ranges named stormfast:step, and holds none among 10 events"):
        summarise(trace(HOST[9:11], OPERATORS), steps=1)
