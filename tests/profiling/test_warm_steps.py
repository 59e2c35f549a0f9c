"""Profilers get whole warm steps, each phase in its range, and what cannot be had is one line."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from profiling import warm_steps
from stormfast import annotate
from stormfast.measure import phases as measure_phases
from stormfast.measure.phases import take_steps, training_config, warm_run, whole_cycles
from stormfast.schema import override
from stormfast.settings import ProfileConfig

TINY = ProfileConfig(preset="tiny", device="cpu", warmup=2)
PHASES = ["act", "sample_windows", "world_model", "sample_contexts", "imagination", "agent", "refresh", "env", "append"]


class Names:
    """Notes the ranges that are entered, and how deep."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.depth = 0

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.seen.append("  " * self.depth + name)
        self.depth += 1
        yield
        self.depth -= 1


def test_a_warm_run_takes_steps_with_each_phase_in_its_range() -> None:
    names, config = Names(), training_config(TINY)
    with warm_run(config, TINY.warmup) as run:
        assert run.step == config.acting.random_steps + TINY.warmup
        with annotate.recorded_by(names):
            assert take_steps(run, 20) == 20
        iterations = [lines.splitlines() for lines in "\n".join(names.seen).split("step\n")[1:]]
        whole, reset = (tuple("  " + phase for phase in phases) for phases in (PHASES, ("act", "env", "append")))
        assert Counter(map(tuple, iterations)) == {whole: 20, reset: len(iterations) - 20}
        assert len(iterations) > 20  # Catch ends within 20 steps


def test_steps_come_in_whole_cycles_after_the_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_phases, "calls_until_captured", lambda run: 4)
    config = override(training_config(TINY), {"agent.updates_per_step": 0.25})
    names = Names()
    with warm_run(config) as run:
        assert int(next(iter(run.learner.optimizers["agent"].state.values()))["step"]) == 4  # one a cycle
        with annotate.recorded_by(names):
            assert take_steps(run, whole_cycles(config, 5)) == 8
    found = Counter(name.strip() for name in names.seen)
    assert (found["world_model"], found["agent"]) == (8, 2)


def test_the_script_prints_milliseconds_a_step_with_ranges_on(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names()
    monkeypatch.setattr(annotate, "nvtx_ranges", lambda: names)
    assert warm_steps.main("--preset tiny --device cpu --steps 2".split()) == 0
    out, err = capsys.readouterr()
    found = re.fullmatch(r"tiny, Catch, .+, compile off, commit .+: (\d+\.\d{3}) ms a step, over 2 steps\n", out)
    assert found and float(found[1]) > 0.1 and err == "", (out, err)
    assert Counter(names.seen)["  world_model"] == 2


def test_the_profiler_starts_and_stops_between_idle_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: calls.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: calls.append("stop"))
    monkeypatch.setattr(warm_steps, "synchronize", lambda device: calls.append("wait"))
    with warm_steps.capture_range(torch.device("cuda", 0)):
        calls.append("steps")
    assert calls == ["wait", "start", "steps", "wait", "stop"]
    with pytest.raises(ZeroDivisionError), warm_steps.capture_range(torch.device("cuda", 0)):
        raise ZeroDivisionError
    assert calls[5:] == ["wait", "start", "stop"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--steps 0", "steps must be >= 1"),
        ("--game Pongg", "Did you mean 'Pong'"),
        ("--device tpu", "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        ("--device cpu --name-for nsys", "nsys needs a CUDA GPU, but got --device cpu"),
        ("--device cuda --name-for nsys", "device cuda"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: str, message: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert warm_steps.main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("warm_steps: ") and err.count("\n") == 1 and message in err, err


def test_what_does_not_fit_is_one_line(capsys) -> None:
    def work() -> int:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    assert warm_steps.exit_status("x", work) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "take a smaller --preset or another --device" in err


def test_a_report_is_named_by_preset_date_and_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    for dirty, end in ((False, ""), (True, "-dirty")):
        monkeypatch.setattr(warm_steps, "commit", lambda dirty=dirty: ("abc123", dirty))
        assert re.fullmatch(rf"fast-\d{{4}}-\d\d-\d\d-\d{{6}}-abc123{end}", warm_steps.label("fast"))
