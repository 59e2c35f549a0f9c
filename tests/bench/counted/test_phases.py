"""What the counts of phases rest on: real runs at small widths, shapes alone at full ones; and what they hold."""

import pytest
import torch

from bench.counted import phases
from stormfast.compile import GraphedCall, capture_updates
from stormfast.loop import advance
from stormfast.measure import phases as full_step
from stormfast.measure.op_counts import count
from stormfast.measure.phases import count_phases, time_phases
from stormfast.replay import Replay
from stormfast.schema import override
from stormfast.settings import PRESETS, TrainConfig


@pytest.mark.parametrize("preset", PRESETS)
def test_no_phase_but_acting_reads_from_the_device_and_kernels_launch_as_on_a_gpu(preset):
    counts = phases.as_run(preset)
    reads = {phase: asked.host_reads for phase, asked in counts.items()}
    (action,) = reads.pop("act")
    assert action.startswith("cpu at stormfast/player.py")
    assert not any(reads.values()), reads
    config = phases.full_config(preset)
    steps = counts["imagination"].operators["stormfast.cached_attention_step"]
    assert steps == (config.world_model.layers * config.imagination.horizon if preset in phases.ON_GPU else 0)


def launches(config: TrainConfig) -> dict[str, int]:
    with phases.warm_run(config) as run:
        return {phase: asked.launches for phase, asked in count_phases(run).items()}


def test_launches_do_not_depend_on_widths():
    wider = {
        "world_model.channels": (3, 5, 6, 7),
        "world_model.width": 48,
        "world_model.categoricals": 5,
        "world_model.classes": 7,
    }
    wider |= {"world_model.batch_size": 3, "world_model.batch_length": 9, "imagination.batch_size": 7, "agent.width": 9}
    tiny = phases.small_config("tiny")
    assert launches(override(tiny, wider)) == launches(tiny)


def test_what_the_loop_and_replay_do_beside_the_phases_is_counted(monkeypatch):
    before = phases.around("tiny")
    assert len(before["loop"].host_reads) == 1 and before["append"].host_reads == []
    assert before["loop"].launches > sum(asked.launches for asked in phases.as_run("tiny").values())
    append = Replay.append

    def slower(replay, rows):
        torch.ones(3).sum()
        return append(replay, rows)

    monkeypatch.setattr(Replay, "append", slower)
    after = phases.around("tiny")
    assert [after[name].launches - before[name].launches for name in ("append", "loop")] == [2, 2]


@pytest.mark.parametrize("preset", sorted(phases.ON_GPU))
def test_shapes_alone_tell_the_work_of_a_real_run(preset):
    """Also that no host read is new or lost there."""
    real, weightless = phases.as_run(preset), phases.weightless(phases.small_config(preset), num_actions=3)  # of Catch
    assert real.keys() == weightless.keys()
    for phase, asked in real.items():
        got = weightless[phase]
        assert (got.flops, got.bytes, len(got.host_reads)) == (asked.flops, asked.bytes, len(asked.host_reads)), phase


@pytest.mark.parametrize("preset", PRESETS)
def test_the_work_of_a_refresh_is_that_counted_by_hand(preset):
    """Four convolutions of 4x4 with stride 2, and a layer to the logits, of each remembered frame."""
    config = phases.full_config(preset)
    a, b, c, d = config.world_model.channels
    features = config.world_model.categoricals * config.world_model.classes
    multiplications = 16 * (3 * a * 32**2 + a * b * 16**2 + b * c * 8**2 + c * d * 4**2) + d * 4**2 * features
    assert phases.at_full_size(preset)["refresh"].flops == 2 * multiplications * config.num_envs * config.acting.context


def test_captured_phases_are_counted_as_written(monkeypatch):
    with phases.warm_run(phases.small_config("tiny")) as run:
        eager = count_phases(run)
        capture_updates(run.updates, run.collector.player)
        monkeypatch.setattr(full_step, "compile_mode", lambda run: "graphs")
        times = time_phases(run, 2)
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in times.values())
        captured = run.collector.player.act_on_device
        assert isinstance(captured, GraphedCall)
        assert count_phases(run) == eager
        assert run.collector.player.act_on_device is captured


def test_a_step_of_the_loop_reads_an_action_and_nothing_else():
    with phases.warm_run(phases.small_config("tiny")) as run:
        counts = count(lambda: [advance(run) for _ in range(5)], torch.device("cpu"))
    assert len(counts.host_reads) == 5
    assert {read.partition(":")[0] for read in counts.host_reads} == {"cpu at stormfast/player.py"}
