"""From a Chrome trace of torch.profiler to numbers: time of each phase, operators, kernels, and how long the GPU idled.

What the host does belongs to the phase in whose range it starts, on whichever thread: the loop waits for the backward
pass. What the GPU does belongs to the phase that launched it, though it runs later: a kernel carries the number of
its launch (correlation), and all kernels of a graph that of the graph's launch. Times in a trace are microseconds.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

PREFIX = "stormfast:"  # of our ranges among torch's own
STEP = "step"
OUTSIDE = "outside"  # in a step, and in none of its phases

RANGE, OPERATOR = "user_annotation", "cpu_op"
LAUNCHES = frozenset({"cuda_runtime", "cuda_driver"})  # Triton's launches are the driver's
KERNEL = "kernel"
ON_GPU = frozenset({KERNEL, "gpu_memcpy", "gpu_memset"})


@dataclass(frozen=True)
class Event:
    """Something that lasts, with microseconds since the same moment for all."""

    name: str
    category: str
    start: float
    end: float
    thread: tuple[Any, Any]
    correlation: int | None

    @property
    def length(self) -> float:
        return self.end - self.start


def read(trace: dict[str, Any]) -> list[Event]:
    """The lasting events of a trace, in order; of two that start at once the longer first."""
    events = []
    for e in trace["traceEvents"]:
        if e.get("ph") == "X":
            thread, correlation = (e.get("pid"), e.get("tid")), e.get("args", {}).get("correlation")
            events.append(Event(e["name"], e.get("cat", ""), e["ts"], e["ts"] + e.get("dur", 0), thread, correlation))
    return sorted(events, key=lambda e: (e.start, -e.end))


class PhaseRanges:
    """Which phase a moment lies in. Phases follow each other, on one thread."""

    def __init__(self, events: Iterable[Event]) -> None:
        ours = [e for e in events if e.category == RANGE and e.name.startswith(PREFIX)]
        self.steps = [e for e in ours if e.name == PREFIX + STEP]
        self.ranges = [e for e in ours if e.name != PREFIX + STEP]
        self.starts = [e.start for e in self.ranges]

    def at(self, moment: float) -> str | None:
        """Its name, OUTSIDE, or None before and after all steps."""
        i = bisect_right(self.starts, moment) - 1
        if i >= 0 and moment < self.ranges[i].end:
            return short(self.ranges[i])
        return OUTSIDE if any(step.start <= moment < step.end for step in self.steps) else None


def self_times(operators: Sequence[Event]) -> list[float]:
    """Of each operator: its length without that of the operators it called, on its thread."""
    times = [e.length for e in operators]
    open_on: dict[Any, list[int]] = defaultdict(list)  # thread -> operators under way, outermost first
    for i, event in enumerate(operators):
        stack = open_on[event.thread]
        while stack and operators[stack[-1]].end <= event.start:
            stack.pop()
        if stack:
            times[stack[-1]] -= event.length
        stack.append(i)
    return times


def covered(events: Iterable[Event], start: float, end: float) -> float:
    """How much of the time from start to end lies in any of the events, given in order of their starts."""
    total, until = 0.0, start
    for event in events:
        total += max(0.0, min(event.end, end) - max(event.start, until))
        until = max(until, min(event.end, end))
    return total


def summarise(trace: dict[str, Any], steps: int) -> dict[str, Any]:
    """All the numbers, as JSON types; ms, ranges, calls and kernels are an environment step's.

    Args: trace: as torch.profiler exports it. steps: environment steps in it.
    Raises: ValueError where the trace holds no step.
    """
    events = read(trace)
    phases = PhaseRanges(events)
    if not phases.steps:
        raise ValueError(f"the trace must hold ranges named {PREFIX}{STEP}, and holds none among {len(events)} events")
    host_us = sum(step.length for step in phases.steps)
    operators = [e for e in events if e.category == OPERATOR]
    own = list(zip(operators, self_times(operators), strict=True))
    on_gpu = launched(events, phases)
    return {
        "steps": steps,
        "ms": host_us / 1000 / steps,
        "phases": phase_rows(phases, own, on_gpu, host_us, steps),
        "operators": table(((phases.at(e.start), e.name, us) for e, us in own), host_us, steps),
        "gpu": gpu(on_gpu, phases, steps) if on_gpu else None,
    }


def launched(events: Sequence[Event], phases: PhaseRanges) -> list[tuple[Event, str]]:
    """What the GPU did for the steps, each with the phase that launched it."""
    launches = {e.correlation: e.start for e in events if e.category in LAUNCHES and e.correlation is not None}
    ran = (e for e in events if e.category in ON_GPU and e.correlation in launches)
    return [(e, phase) for e in ran if (phase := phases.at(launches[e.correlation])) is not None]


def phase_rows(
    phases: PhaseRanges,
    own: Sequence[tuple[Event, float]],
    on_gpu: Sequence[tuple[Event, str]],
    host_us: float,
    steps: int,
) -> dict[str, dict[str, float]]:
    """A row each phase in the order of a step, and one for what lies outside them."""
    ranges = Counter(short(e) for e in phases.ranges)
    kernels = Counter(phase for e, phase in on_gpu if e.category == KERNEL)
    host = summed((short(e), e.length) for e in phases.ranges)
    host[OUTSIDE] = host_us - sum(host.values())
    in_operators = summed((phases.at(e.start), us) for e, us in own)
    gpu_us = summed((phase, e.length) for e, phase in on_gpu)
    return {
        name: {
            "ranges": ranges[name] / steps,
            **time(us, host_us, steps),
            "operators_ms": in_operators[name] / 1000 / steps,
            "gpu_ms": gpu_us[name] / 1000 / steps,
            "kernels": kernels[name] / steps,
        }
        for name, us in host.items()
    }


def time(us: float, whole_us: float, steps: int) -> dict[str, float]:
    return {"ms": us / 1000 / steps, "share": us / whole_us}


def short(event: Event) -> str:
    return event.name.removeprefix(PREFIX)


def summed(pairs: Iterable[tuple[Any, float]]) -> dict[Any, float]:
    """Key -> the sum of its numbers, 0 for a key that is not there."""
    total: dict[Any, float] = defaultdict(float)
    for key, number in pairs:
        total[key] += number
    return total


def table(rows: Iterable[tuple[str | None, str, float]], whole_us: float, steps: int) -> list[dict[str, Any]]:
    """(phase, name, microseconds) summed by phase and name, most time first; what lies in no step is left out."""
    rows = [row for row in rows if row[0] is not None]
    calls = Counter(row[:2] for row in rows)
    total = summed((row[:2], row[2]) for row in rows)
    return [
        {"phase": phase, "name": name, "calls": calls[phase, name] / steps, **time(us, whole_us, steps)}
        for (phase, name), us in sorted(total.items(), key=lambda item: -item[1])
    ]


def gpu(on_gpu: Sequence[tuple[Event, str]], phases: PhaseRanges, steps: int) -> dict[str, Any]:
    """The GPU from the start of the first step to the end of the last, or of what the steps launched."""
    start, end = phases.steps[0].start, max(phases.steps[-1].end, *(e.end for e, _ in on_gpu))
    busy = covered((e for e, _ in on_gpu), start, end)
    return {
        "ms": (end - start) / 1000 / steps,
        "busy_ms": busy / 1000 / steps,
        "idle_share": 1 - busy / (end - start),
        "kernels": sum(e.category == KERNEL for e, _ in on_gpu) / steps,
        "top": table(((phase, e.name, e.length) for e, phase in on_gpu), end - start, steps),
    }
