"""Metrics gather without a host sync; their log survives a crash and a resume."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stormfast.errors import UserError
from stormfast.runs.metrics import Metrics, MetricsLog


class CountSyncs(TorchDispatchMode):
    """Counts what would make the host wait for a device: reading a scalar, or copying a tensor to the host."""

    def __init__(self):
        super().__init__()
        self.syncs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.syncs += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


def readings(**values):
    return {name: torch.tensor(value) for name, value in values.items()}


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_flush_returns_means_and_starts_anew():
    metrics = Metrics("cpu")
    for i in range(3):
        metrics.add(readings(a=float(i), b=10.0))
    metrics.add(readings(c=7.0))
    assert metrics.flush(3) == {"a": 1.0, "b": 10.0, "c": 7.0, "episodes": 0.0}
    metrics.add(readings(a=5.0, b=6.0))
    assert metrics.flush(4) == {"a": 5.0, "b": 6.0, "episodes": 0.0}
    assert metrics.flush(5) == {"episodes": 0.0}


def test_a_name_in_different_company_is_one_metric():
    metrics = Metrics("cpu")
    metrics.add(readings(a=1.0, b=2.0))
    metrics.add(readings(a=4.0))
    assert metrics.flush(0) == {"a": 2.5, "b": 2.0, "episodes": 0.0}


def test_a_reading_may_be_overwritten_afterwards():
    metrics, static = Metrics("cpu"), torch.tensor(1.0)
    metrics.add({"a": static})
    static.fill_(100)
    metrics.add({"a": static})
    static.fill_(-100)
    assert metrics.flush(0)["a"] == 50.5


def test_mixed_dtypes_and_gradients():
    metrics = Metrics("cpu")
    metrics.add(
        {"a": torch.tensor(0.5, dtype=torch.bfloat16), "b": torch.tensor(3), "c": torch.tensor(2.0, requires_grad=True)}
    )
    assert metrics.flush(0) == {"a": 0.5, "b": 3.0, "c": 2.0, "episodes": 0.0}


def test_add_does_not_sync():
    metrics = Metrics("cpu")
    with CountSyncs() as counter:
        for _ in range(3):
            metrics.add(readings(a=1.0, b=2.0))
        assert counter.syncs == 0
        torch.tensor(1.0).item()
        assert counter.syncs == 1  # the counter does count


def test_a_reading_that_is_not_there_is_left_out_without_a_sync():
    metrics, nan = Metrics("cpu"), float("nan")
    with CountSyncs() as counter:
        for rare in (1.0, nan, 4.0):
            metrics.add_at_times(readings(rare=rare, never=nan))
        metrics.add_at_times({})
        assert counter.syncs == 0
    metrics.add(readings(a=2.0))
    metrics.add_at_times(readings(rare=7.0))  # in other company
    assert metrics.flush(0) == {"a": 2.0, "rare": 4.0, "episodes": 0.0}
    metrics.add_at_times(readings(rare=nan))
    assert metrics.flush(1) == {"episodes": 0.0}


def test_an_infinite_reading_that_is_there_at_times_is_named():
    metrics = Metrics("cpu")
    metrics.add_at_times(readings(rare=float("inf")))
    with pytest.raises(FloatingPointError, match="rare is inf"):
        metrics.flush(0)


def test_episodes():
    metrics = Metrics("cpu")
    metrics.add_episode(-21.0, 800)
    metrics.add_episode(3.0, 1200)
    assert metrics.flush(0) == {"episode_return": -9.0, "episode_length": 1000.0, "episodes": 2.0}
    assert "episode_return" not in metrics.flush(1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_metric_that_is_not_finite_is_named(value):
    metrics = Metrics("cpu")
    metrics.add(readings(fine=1.0, reward_loss=value))
    metrics.add(readings(fine=1.0, reward_loss=2.0))
    with pytest.raises(FloatingPointError, match=r"step 42.*reward_loss") as error:
        metrics.flush(42)
    assert "fine" not in str(error.value)


def test_a_metric_must_be_a_scalar():
    with pytest.raises(ValueError, match=r"loss must be a 0-d tensor, got \(2,\)"):
        Metrics("cpu").add({"loss": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"loss must be a 0-d tensor, got \(2,\)"):
        Metrics("cpu").add_at_times({"loss": torch.zeros(2)})


def test_log_writes_a_line_at_once(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=False, resume_step=None)
    log.write(10, {"loss": 1.5})
    assert lines(tmp_path)[0] | {"seconds": 0} == {"step": 10, "seconds": 0, "loss": 1.5}  # before close()
    log.write(20, {"loss": 0.5, "episodes": 0.0})
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [10, 20]
    assert 0 <= lines(tmp_path)[0]["seconds"] <= lines(tmp_path)[1]["seconds"] < 60
    assert not (tmp_path / "tensorboard").exists()


def write_log(run_dir, steps, seconds=100.0):
    text = "".join(json.dumps({"step": step, "seconds": seconds + step, "loss": 1.0}) + "\n" for step in steps)
    (run_dir / "metrics.jsonl").write_text(text)
    return text


def test_resume_drops_later_lines_and_goes_on_counting_seconds(tmp_path):
    write_log(tmp_path, [10, 20, 30])
    log = MetricsLog(tmp_path, tensorboard=False, resume_step=20)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20]
    log.write(25, {"loss": 2.0})
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 25]
    assert 120 <= lines(tmp_path)[-1]["seconds"] < 180


@pytest.mark.parametrize("torn", ['{"step": 4', '{"step": 40, "seconds": 1.0}', "\x00\x00", '{"loss": "é'])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    text = write_log(tmp_path, [10, 20]).encode()
    (tmp_path / "metrics.jsonl").write_bytes(text + torn.encode()[:-1])
    MetricsLog(tmp_path, tensorboard=False, resume_step=50).close()
    assert [line["step"] for line in lines(tmp_path)] == [10, 20]


@pytest.mark.parametrize(
    "damage",
    [
        "rubbish",
        "{}",
        "[1]",
        '{"step": 3}',
        '{"step": 3, "seconds": "x"}',
        '{"step": 3, "seconds": 1e999}',
        '{"step": 3, "seconds": NaN}',
        '{"step": 3, "seconds": 1' + 400 * "0" + "}",
        '{"step": 1e999, "seconds": 1}',
        '{"step": 3, "seconds": 1, "loss": NaN}',
        '{"step": 3, "seconds": 1, "loss": "low"}',
        100_000 * "[",
    ],
    ids=lambda damage: damage[:40],
)
def test_a_damaged_line_in_the_middle_is_told(tmp_path, damage):
    text = write_log(tmp_path, [10]) + damage + "\n" + write_log(tmp_path, [20])
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match="line 2"):
        MetricsLog(tmp_path, tensorboard=False, resume_step=50)
    assert (tmp_path / "metrics.jsonl").read_text() == text  # nothing lost


def test_a_log_that_is_no_file_is_told(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(
        UserError, match=r"metrics\.jsonl must be a file that can be read and written: Is a directory; .* then resume"
    ):
        MetricsLog(tmp_path, tensorboard=False, resume_step=50)


@pytest.mark.parametrize("resume_step", [None, 50])
def test_a_tensorboard_that_is_no_directory_is_told(tmp_path, resume_step):
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(
        UserError, match=r"tensorboard must be a directory that can be written: .*--logging\.no-tensorboard"
    ):
        MetricsLog(tmp_path, tensorboard=True, resume_step=resume_step)


def test_resume_without_a_log_starts_one(tmp_path):
    MetricsLog(tmp_path, tensorboard=False, resume_step=50).close()
    assert lines(tmp_path) == []


def test_a_new_run_does_not_overwrite_a_log(tmp_path):
    text = write_log(tmp_path, [10])
    with pytest.raises(FileExistsError):
        MetricsLog(tmp_path, tensorboard=False, resume_step=None)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_what_is_not_json_is_refused(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=False, resume_step=None)
    with pytest.raises(ValueError, match="JSON"):
        log.write(1, {"loss": float("nan")})
    with pytest.raises(ValueError, match="step or seconds"):
        log.write(1, {"seconds": 1.0})
    log.close()


def scalars(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars("a/loss")]


def test_tensorboard_holds_the_same_and_drops_what_a_resume_forgets(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=True, resume_step=None)
    for step in (10, 20, 30):
        log.write(step, {"a/loss": float(step)})
    log.close()
    assert scalars(tmp_path) == [(10, 10.0), (20, 20.0), (30, 30.0)]
    log = MetricsLog(tmp_path, tensorboard=True, resume_step=20)
    log.write(30, {"a/loss": -1.0})
    log.close()
    assert scalars(tmp_path) == [(10, 10.0), (20, 20.0), (30, -1.0)]
