"""Signals are noted, counted and given back; training that is stopped by one saves first."""

import signal
import subprocess
import threading
import time

import pytest

from stormfast.errors import UserError
from stormfast.loop import train
from stormfast.presets import preset_config
from stormfast.runs.checkpoint import load_checkpoint
from stormfast.runs.signals import SignalWatch
from stormfast.schema import override
from tests.model_fixtures import create

WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers():
    """Handlers of our own, whatever started the tests; what was there comes back."""

    def mine(number, frame):
        pytest.fail(f"signal {number} was not watched")

    before = {number: signal.signal(number, mine) for number in WATCHED}
    yield mine
    assert all(signal.getsignal(number) is mine for number in WATCHED)  # each watch gave them back
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("sent", "noted"), [("SIGINT", "SIGINT"), ("SIGTERM", "SIGTERM"), ("SIGHUP", "SIGTERM")])
def test_a_signal_is_noted_and_handlers_come_back(sent, noted, handlers):
    with SignalWatch() as signals:
        assert (signals.first, signals.caught) == (0, [])
        signal.raise_signal(getattr(signal, sent))
        assert signals.first == getattr(signal, noted)
    assert signals.caught == [getattr(signal, noted)]  # still there after the context


def test_each_signal_calls_with_how_many_came():
    counts = []
    with SignalWatch(counts.append) as signals:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.raise_signal(number)
    assert counts == [1, 2, 3]
    assert signals.first == signal.SIGTERM


def test_what_the_callback_raises_interrupts_and_handlers_come_back():
    def at_the_second(count):
        if count > 1:
            raise KeyboardInterrupt

    def interrupted():
        with SignalWatch(at_the_second):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("went on after the second signal")

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_handlers_are_back_already_while_things_are_closed(handlers):
    def interrupt(count):
        raise KeyboardInterrupt

    with SignalWatch(interrupt):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert all(signal.getsignal(number) is handlers for number in WATCHED)


def test_under_nohup_a_hangup_stays_ignored(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with SignalWatch() as signals:
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
    assert signals.caught == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    signal.signal(signal.SIGHUP, handlers)


def test_another_thread_changes_nothing(handlers):
    seen = {}

    def watch():
        with SignalWatch() as signals:
            seen["handlers"] = [signal.getsignal(number) for number in WATCHED]
        seen["first"] = signals.first

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join(10)
    assert seen == {"handlers": [handlers] * 3, "first": 0}


# --- training -----------------------------------------------------------------------------------------------------

SETTINGS = {
    "game": "Catch",
    "steps": 1_000_000,
    "device": "cpu",
    "acting.random_steps": 40,
    "logging.every": 5,
    "logging.save_every": 1_000_000,
    "logging.tensorboard": False,
}


def train_until(run_dir, callback):
    config = override(preset_config("tiny", "standard"), SETTINGS | {"run_dir": str(run_dir)})
    return train(config, create(config), callback=callback, quiet=True)


@pytest.mark.parametrize(("sent", "noted"), [(signal.SIGHUP, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)])
def test_training_that_is_told_to_end_saves(tmp_path, sent, noted, capfd):
    run = train_until(tmp_path / "run", lambda step, metrics: signal.raise_signal(sent) if step == 10 else None)
    assert run.stopped_by == noted
    assert load_checkpoint(tmp_path / "run", "cpu").step == 10
    assert "stopping after this step" in capfd.readouterr().err


def test_training_under_nohup_goes_on_after_a_hangup(tmp_path, handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    sent_at = {10: signal.SIGHUP, 20: signal.SIGTERM}
    run = train_until(
        tmp_path / "run", lambda step, metrics: signal.raise_signal(sent_at[step]) if step in sent_at else None
    )
    assert run.stopped_by == signal.SIGTERM
    assert load_checkpoint(tmp_path / "run", "cpu").step == 20
    signal.signal(signal.SIGHUP, handlers)


def test_a_second_signal_ends_training_unsaved(tmp_path):
    def twice(step, metrics):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train_until(tmp_path / "run", twice)
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "run", "cpu")


@pytest.mark.slow
def test_the_command_hung_up_by_its_terminal_saves(command, tmp_path):
    run_dir = tmp_path / "run"
    arguments = "train --game Catch --preset tiny --steps 1000000 --device cpu --logging.no-tensorboard"
    process = subprocess.Popen(
        [*command, *arguments.split(), "--run-dir", str(run_dir)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # these tests may run under nohup
    )
    limit = time.monotonic() + 300
    while not (run_dir / "metrics.jsonl").exists() or not (run_dir / "metrics.jsonl").read_text():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.1)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert f"go on with `stormfast train --run-dir {run_dir} --resume`" in " ".join(err.split())
    assert load_checkpoint(run_dir, "cpu").step > 0
