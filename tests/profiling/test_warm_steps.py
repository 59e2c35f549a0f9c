"""Profilers get whole warm steps, each phase in its range, and what cannot be had is one line."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
import warm_steps

from stormfast import annotate
from stormfast.measure import profile
from stormfast.measure.profile import training_config
from stormfast.runs.run import Run
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


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with profile.warm_run(TINY) as run:
        yield run


def test_a_warm_run_has_made_its_updates_and_no_more(run: Run) -> None:
    assert run.step == run.config.acting.random_steps + TINY.warmup
    steps = {
        name: int(next(iter(optimizer.state.values()))["step"]) for name, optimizer in run.learner.optimizers.items()
    }
    assert steps == {"world_model": 2, "agent": 2}


def test_each_step_is_a_range_with_its_phases_in_it(run: Run) -> None:
    names, before = Names(), run.step
    with annotate.recorded_by(names):
        assert warm_steps.take_steps(run, 20) == run.step - before == 20
    turns = [turn.splitlines() for turn in "\n".join(names.seen).split("step\n")[1:]]
    whole = ["  " + phase for phase in PHASES]
    reset = ["  " + phase for phase in ("act", "env", "append")]
    assert Counter(map(tuple, turns)) == {tuple(whole): 20, tuple(reset): len(turns) - 20}
    assert len(turns) > 20  # Catch ends within 20 steps


def test_metrics_and_checkpoints_have_ranges_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names()
    for every, save_every, expected in ((1, 10**9, "  log"), (1, 1, "  save")):
        monkeypatch.setattr(
            run, "config", override(run.config, {"logging.every": every, "logging.save_every": save_every})
        )
        names.seen.clear()
        with annotate.recorded_by(names):
            warm_steps.take_steps(run, 1)
        assert names.seen[-1] == expected


def test_steps_come_in_whole_cycles_after_the_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        profile, "training_config", lambda config: override(training_config(config), {"agent.updates_per_step": 0.25})
    )
    monkeypatch.setattr(profile, "calls_until_captured", lambda run: 4)
    names = Names()
    with annotate.recorded_by(names), profile.warm_run(TINY) as run:
        assert Counter(names.seen)["agent"] == 4  # one a cycle
        names.seen.clear()
        assert warm_steps.take_steps(run, 5) == 8
    found = Counter(name.strip() for name in names.seen)
    assert (found["world_model"], found["agent"]) == (8, 2)


def test_the_script_prints_milliseconds_a_step_with_ranges_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names()
    monkeypatch.setattr(annotate, "nvtx_ranges", lambda: names)
    assert warm_steps.main("--preset tiny --device cpu --steps 2".split()) == 0
    out, err = capsys.readouterr()
    line = r"tiny, Catch, .+, (bfloat16|float32), compile off, commit \S+( and changes)?: (\d+\.\d{3}) ms a step, over 2 steps\n"
    found = re.fullmatch(line, out)
    assert found and err == "", (out, err)
    assert 0.1 < float(found[3]) < 60_000
    assert Counter(names.seen)["  world_model"] == 2


def test_the_profiler_is_told_between_idle_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: said.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: said.append("stop"))
    monkeypatch.setattr(warm_steps, "synchronize", lambda device: said.append("wait"))
    with warm_steps.capture_range(torch.device("cuda", 0)):
        said.append("steps")
    assert said == ["wait", "start", "steps", "wait", "stop"]
    with pytest.raises(ZeroDivisionError), warm_steps.capture_range(torch.device("cuda", 0)):
        raise ZeroDivisionError
    assert said[5:] == ["wait", "start", "stop"]
    with warm_steps.capture_range(torch.device("cpu")):
        pass
    assert len(said) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--preset tin", "invalid choice: 'tin'"),
        ("--steps x", "invalid int value: 'x'"),
        ("--steps 0", "steps must be >= 1 and <= 1000000000, got 0"),
        ("--warmup -1", "warmup must be >= 1"),
        ("--game Pongg", "Did you mean 'Pong'"),
        ("--device tpu", "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        ("--ste 3", "unrecognized arguments: --ste 3"),
        ("stray", "unrecognized arguments: stray"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert warm_steps.main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("warm_steps: ") and err.count("\n") == 1 and message in err, err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"),
            "take a smaller --preset or another --device",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "take a smaller --preset"),
    ],
)
def test_what_does_not_fit_is_one_line(error: Exception, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise error

    assert warm_steps.exit_status("x", work) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message in err


def test_other_errors_are_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        warm_steps.exit_status("x", lambda: 1 // 0)


# --- for nsys.sh and ncu.sh --------------------------------------------------------------------------------------


def found_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert warm_steps.main([*arguments, "--name-for", "nsys"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_a_cuda_profiler_without_cuda_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "got --device cpu; leave it out" in found_line(capsys, "--device", "cpu")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert f"nsys needs torch with CUDA, but torch {torch.__version__} has none" in found_line(capsys)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert f"nsys needs a CUDA GPU, but torch {torch.__version__} finds none" in found_line(capsys)


def test_a_report_is_named_by_preset_date_and_commit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "some GPU")
    for dirty, end in ((False, ""), (True, "-dirty")):
        monkeypatch.setattr(warm_steps, "commit", lambda dirty=dirty: ("abc123", dirty))
        assert warm_steps.main(["--device", "cuda", "--name-for", "nsys"]) == 0
        assert re.fullmatch(rf"fast-\d{{4}}-\d\d-\d\d-\d{{6}}-abc123{end}\n", capsys.readouterr().out)
    assert "device cuda:3 was asked for, but there are 1" in found_line(capsys, "--device", "cuda:3")
