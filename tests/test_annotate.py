"""Ranges cost nothing to speak of while nobody looks, and say where each phase begins and ends when somebody does."""

import contextlib
import os
import re
import subprocess
import sys
import timeit
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from stormfast import annotate
from stormfast.errors import UserError
from stormfast.loop import advance, train
from stormfast.measure.phases import training_config, warm_run
from stormfast.presets import preset_config
from stormfast.schema import override
from stormfast.settings import ProfileConfig
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has had no range yet."""
    monkeypatch.setattr(annotate, "_recorder", annotate._as_the_environment_asks)
    monkeypatch.delenv(annotate.VARIABLE, raising=False)


class Nvtx:
    """Stands for the package: notes what is pushed and popped, in which domain."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.events: list[str] = []

    def annotate(self, message: str, domain: str) -> contextlib.AbstractContextManager[None]:
        self.made.append(message)
        events = self.events

        class Annotation:
            def __enter__(self) -> None:
                events.append(f"push {domain}:{message}")

            def __exit__(self, *_: object) -> None:
                events.append(f"pop {domain}:{message}")

        return Annotation()


def test_off_all_ranges_are_one_object():
    with annotate.phase("act"), annotate.phase("act"):
        assert annotate.phase("act") is annotate.phase("env") is annotate.NO_RANGE


def test_off_nvtx_is_not_imported_by_a_step_of_training(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "nvtx", None)  # import nvtx then fails
    values = {"acting.random_steps": 40, "world_model.channels": (2, 3, 4, 5), "imagination.batch_size": 4}
    config = override(training_config(ProfileConfig(preset="tiny", device="cpu", compile="off")), values)
    with warm_run(config) as run:
        before = run.step
        advance(run)
    assert run.step == before + 1


def test_no_module_imports_nvtx_when_it_is_imported():
    """Only functions do, where ranges are on."""
    sources = [*ROOT.glob("stormfast/**/*.py"), *ROOT.glob("kernels/**/*.py")]
    assert len(sources) > 50
    at_once = re.compile(r"^(import|from) nvtx\b", re.MULTILINE)
    assert at_once.search("import os\nimport nvtx\n")
    assert [path.name for path in sources if at_once.search(path.read_text())] == []


@pytest.mark.slow
def test_off_nvtx_is_in_no_process_that_trains():
    """In a process of its own: here another test may have imported it."""
    code = f"""
import sys
sys.path[:0] = {[str(ROOT), str(ROOT / "kernels")]!r}
from stormfast.settings import ProfileConfig
from stormfast.measure.phases import scratch_run, training_config
from stormfast.loop import advance
with scratch_run(training_config(ProfileConfig(preset="tiny", device="cpu"))) as run:
    advance(run)
assert run.step == 1
assert "nvtx" not in sys.modules, "imported"
"""
    environment = {name: value for name, value in os.environ.items() if name != annotate.VARIABLE}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_off_a_range_costs_less_than_one_of_nvtx_without_a_tool():
    nvtx = pytest.importorskip("nvtx")

    def off() -> None:
        with annotate.phase("act"):
            pass

    def as_nvtx() -> None:
        with nvtx.annotate("act"):
            pass

    cost = {function: min(timeit.repeat(function, number=2000, repeat=20)) / 2000 for function in (off, as_nvtx)}
    assert cost[off] < cost[as_nvtx]
    assert cost[off] < 5e-6  # 0.15 us where nobody else runs; a step of training takes milliseconds


def test_on_ranges_are_nvtx_ranges_in_their_domain(monkeypatch: pytest.MonkeyPatch):
    nvtx = Nvtx()
    monkeypatch.setitem(sys.modules, "nvtx", nvtx)  # type: ignore[arg-type]
    monkeypatch.setenv(annotate.VARIABLE, "1")
    for _ in range(2):
        with annotate.phase("step"), annotate.phase("act"):
            pass
    with pytest.raises(KeyError), annotate.phase("act"):
        raise KeyError
    once = ["push stormfast:step", "push stormfast:act", "pop stormfast:act", "pop stormfast:step"]
    assert nvtx.events == [*once, *once, "push stormfast:act", "pop stormfast:act"]
    assert nvtx.made == ["step", "act"]  # each name once, not each time


def test_on_the_package_takes_them(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("nvtx")
    monkeypatch.setenv(annotate.VARIABLE, "1")
    with annotate.phase("act"), annotate.phase("act"):
        pass
    assert annotate.phase("act") is not annotate.NO_RANGE


@pytest.mark.parametrize("value", ["0", "", "true", "2"])
def test_another_value_is_one_line(value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(annotate.VARIABLE, value)
    with pytest.raises(UserError, match=rf"^STORMFAST_NVTX must be 1, or unset .*, got '{value}'$"):
        annotate.phase("act")


def test_a_run_that_cannot_have_them_is_not_begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv(annotate.VARIABLE, "yes")
    with pytest.raises(UserError, match="STORMFAST_NVTX must be 1"):
        train(preset_config("tiny", "standard"), tmp_path)
    assert not any(tmp_path.iterdir())


def test_without_the_package_it_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "nvtx", None)  # import nvtx then fails
    monkeypatch.setenv(annotate.VARIABLE, "1")
    with pytest.raises(UserError, match=r"need the package nvtx, but .*; `pip install nvtx`, or unset STORMFAST_NVTX"):
        annotate.phase("act")


def test_a_recorder_takes_them_for_a_while(monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []

    @contextlib.contextmanager
    def recorder(name: str) -> Iterator[None]:
        seen.append(name)
        yield

    nvtx = Nvtx()
    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=nvtx.annotate))  # type: ignore[arg-type]
    monkeypatch.setenv(annotate.VARIABLE, "1")
    with annotate.recorded_by(recorder):
        with annotate.phase("act"):
            pass
        with annotate.recorded_by(None):
            assert annotate.phase("env") is annotate.NO_RANGE
        with pytest.raises(ZeroDivisionError), annotate.recorded_by(None):
            raise ZeroDivisionError
        with annotate.phase("env"):
            pass
    assert seen == ["act", "env"] and nvtx.events == []
    with annotate.phase("agent"):
        pass
    assert seen == ["act", "env"] and nvtx.events == ["push stormfast:agent", "pop stormfast:agent"]
