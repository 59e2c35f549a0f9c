"""The count of a run's memory: against what real tensors take, and what is said where it does not fit."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stormfast.errors import UserError
from stormfast.learner import Learner
from stormfast.memory import estimate as memory
from stormfast.memory.estimate import GB, PHASES, check_fits, estimate, run_phases
from stormfast.memory.meta_tensors import LiveBytes
from stormfast.plan import Plan
from stormfast.player import Player
from stormfast.presets import preset_config
from stormfast.replay import ROW_BYTES, Replay
from stormfast.schema import override
from stormfast.settings import TrainConfig
from tests.model_fixtures import NUM_ACTIONS, make_batch, plan_on, tiny_config

CPU = torch.device("cpu")


def full_replay(config: TrainConfig) -> Replay:
    replay = Replay(config.replay.capacity, config.num_envs, CPU, recency=config.replay.recency)
    replay._store.zero_()
    replay.restore_written(np.full(config.num_envs, replay.rows_per_stream), replay.id)
    return replay


def real_bytes(config: TrainConfig, precision: torch.dtype) -> dict[str, int]:
    """Bytes of a run's tensors on this CPU: all the time, and beyond that at the peak of each phase's second call."""
    with LiveBytes("cpu") as live:
        replay = full_replay(config)
        learner = Learner(config, NUM_ACTIONS, CPU, precision)
        player = Player(learner.inference, learner.agent, config.acting, config.num_envs)
        phases = run_phases(config, learner, replay, player, torch.default_generator)
        for phase in phases.values():
            phase()
        found = {"persistent": live.now}
        for name, phase in phases.items():
            live.begin()
            phase()
            found[name] = live.peak.num_bytes - found["persistent"]
    return found


# --- the count is right ------------------------------------------------------------------------------------------


def short_config(values: dict[str, Any]) -> TrainConfig:
    """One layer and two imagined steps in float32: the count takes as long as there are operators."""
    return tiny_config(values={"world_model.layers": 1, "imagination.horizon": 2, "precision": "float32"} | values)


ODD = {"replay.capacity": 50, "num_envs": 2}  # a small store, beside which the rest is seen
SIZES = {
    "odd": ODD,
    "wide": ODD
    | {
        "world_model.width": 96,
        "world_model.heads": 3,
        "agent.width": 120,
        "agent.minibatches": 3,
        "imagination.batch_size": 60,
    },
    "contexts of the batch": ODD | {"imagination.contexts": "batch", "imagination.batch_size": 16},
    "prior, separate tokens": ODD
    | {"imagination.start": "prior", "world_model.tokens": "separate", "world_model.dropout": 0.0},
}


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("odd", torch.float32),
        ("odd", torch.bfloat16),
        ("wide", torch.float32),
        ("contexts of the batch", torch.bfloat16),
        ("prior, separate tokens", torch.bfloat16),
    ],
)
def test_the_count_is_what_real_tensors_take(name, precision):
    config = tiny_config(values=SIZES[name])
    real, found = real_bytes(config, precision), estimate(config, NUM_ACTIONS, precision, "cpu")
    assert found.persistent == pytest.approx(real["persistent"], rel=0.01)
    for phase in PHASES:
        assert getattr(found, phase) == pytest.approx(real[phase], rel=0.04), phase


@pytest.mark.slow
def test_the_count_is_what_real_tensors_take_in_the_cpu_preset():
    config = override(preset_config("cpu", "standard"), {"replay.capacity": 1_000})
    real, found = real_bytes(config, torch.float32), estimate(config, NUM_ACTIONS, torch.float32, "cpu")
    assert found.persistent == pytest.approx(real["persistent"], rel=0.01)
    for name in PHASES:
        assert getattr(found, name) == pytest.approx(real[name], rel=0.03), name


def test_each_part_that_is_always_there_is_its_formula():
    config = tiny_config()
    learner = Learner(config, NUM_ACTIONS, CPU, torch.float32)
    trained = 4 * sum(p.numel() for parameters in learner.trained.values() for p in parameters)
    found = estimate(config, NUM_ACTIONS, torch.float32)
    assert (found.gradients, found.moments) == (trained, 2 * trained)
    slow_critic = 4 * sum(p.numel() for p in learner.agent.slow_critic.parameters())
    buffers = sum(b.nbytes for module in (learner.world_model, learner.agent) for b in module.buffers())
    assert found.weights == trained + slow_critic + buffers
    cache = learner.imagination.cache
    assert found.cache == cache.key.nbytes + cache.value.nbytes
    half = estimate(config, NUM_ACTIONS, torch.bfloat16)
    assert (half.weights, half.gradients, half.moments, half.cache) == (
        found.weights,
        found.gradients,
        found.moments,
        found.cache // 2,
    )


@pytest.mark.parametrize(("capacity", "num_envs"), [(100, 1), (101, 4), (7_777, 3)])
def test_replay_is_counted_to_the_byte(capacity, num_envs):
    config = short_config({"replay.capacity": capacity, "num_envs": num_envs})
    assert estimate(config, NUM_ACTIONS, torch.float32).replay == Replay(capacity, num_envs, CPU).nbytes


def write_demonstration(path: Path, steps: int) -> None:
    termination = np.zeros(steps, np.bool_)
    np.savez(
        path,
        obs=np.zeros((steps, 64, 64, 3), np.uint8),
        action=np.zeros(steps, np.int64),
        reward=np.zeros(steps),
        termination=termination,
    )


def test_a_demonstration_takes_its_rows_too(tmp_path):
    write_demonstration(tmp_path / "play.npz", 37)
    config = short_config({})
    plain = estimate(config, NUM_ACTIONS, torch.float32)
    values = {"replay.demonstration": str(tmp_path / "play.npz"), "replay.demonstration_share": 0.5}
    assert estimate(override(config, values), NUM_ACTIONS, torch.float32).replay == plain.replay + 37 * ROW_BYTES


@pytest.mark.parametrize(
    ("name", "grows"),
    [("world_model.batch_size", "world_model"), ("imagination.batch_size", "agent"), ("num_envs", "acting")],
)
def test_a_phase_grows_with_its_batch(name, grows):
    smaller, larger = (estimate(short_config({name: size}), NUM_ACTIONS, torch.float32) for size in (6, 17))
    assert getattr(smaller, grows) < getattr(larger, grows) < getattr(smaller, grows) * 17 / 6 * 1.05
    assert smaller.total <= larger.total


def test_the_parts_add_up():
    found = estimate(tiny_config(), NUM_ACTIONS, torch.float32)
    assert found.total == sum(found.parts().values()) == found.tensors + found.allowance + found.context
    assert found.tensors == found.persistent + max(found.world_model, found.agent, found.acting)
    assert min(getattr(found, f.name) for f in fields(found) if f.name != "pool") > 0


def test_captured_graphs_keep_the_smaller_update_too():
    """One update's pool is held while the other still runs eagerly."""
    eager, captured = (estimate(tiny_config(), NUM_ACTIONS, torch.float32, captured=graphs) for graphs in (False, True))
    smaller = min(eager.world_model, eager.agent)
    assert (eager.pool, captured.pool, captured.tensors) == (0, smaller, eager.tensors)
    assert (
        captured.total
        == sum(captured.parts().values())
        == pytest.approx(eager.total + (1 + memory.ROUNDING) * smaller, abs=1)
    )


@pytest.mark.parametrize(("preset", "goal"), [("storm", 8 * GB), ("fast", 5 * GB)])
def test_presets_keep_their_goals(preset, goal):
    """As they run by default on a GPU, in bfloat16 and captured; eagerly in float32 too, which takes more."""
    config = preset_config(preset, "standard")
    assert 2 * GB < estimate(config, 18, torch.bfloat16, captured=True).total <= goal
    assert 2 * GB < estimate(config, 18, torch.float32).total <= goal


# --- the count changes nothing -----------------------------------------------------------------------------------


def trained_weights(*, counted: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    config = tiny_config()
    if counted:
        estimate(config, NUM_ACTIONS, torch.bfloat16)
    learner = Learner(config, NUM_ACTIONS, CPU, torch.float32)
    learner.update_world_model(make_batch())
    learner.update_agent(make_batch(6, 4))
    if counted:
        estimate(config, NUM_ACTIONS, torch.float32, "cpu")
    learner.update_world_model(make_batch(seed=1))
    return learner.world_model.state_dict() | learner.agent.state_dict()


def test_training_is_the_same_to_the_bit_with_and_without_it():
    plain, counted = trained_weights(counted=False), trained_weights(counted=True)
    assert all(torch.equal(plain[name], counted[name]) for name in plain)


def test_it_leaves_nothing_behind():
    rng, autocast = torch.get_rng_state(), torch.autocast
    with LiveBytes("cpu") as live:
        estimate(preset_config("cpu", "standard"), NUM_ACTIONS, torch.bfloat16)
    assert live.peak.num_bytes < 2_000_000  # flags and frames of the host, no model
    assert torch.autocast is autocast
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.get_default_device() == CPU


# --- what is said ------------------------------------------------------------------------------------------------


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch):
    def set_free(num_bytes: int | None) -> None:
        monkeypatch.setattr("stormfast.memory.estimate.available_memory", lambda device: num_bytes)

    return set_free


def refusal(config: TrainConfig, decided: Plan | None = None) -> str:
    with pytest.raises(UserError) as caught:
        check_fits(config, decided or plan_on("cpu"), NUM_ACTIONS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_that_fits_goes_on_in_silence(free):
    config = short_config(ODD | {"replay.capacity": 3_000, "steps": 9_000})
    taken = estimate(config, NUM_ACTIONS, torch.float32, "cpu").total
    for num_bytes in (None, 10**12, taken):
        free(num_bytes)
        check_fits(config, plan_on("cpu"), NUM_ACTIONS)
    free(taken - 1)
    refusal(config)


@pytest.mark.parametrize(
    ("values", "largest", "flag"),
    [
        ({"replay.capacity": 100_000, "steps": 100_000}, "replay takes 1.2 GB", "--replay.capacity"),
        (ODD | {"world_model.batch_size": 900}, "world-model update", "--world-model.batch-size"),
        (ODD | {"imagination.batch_size": 9_000, "agent.minibatches": 3}, "imagination", "--imagination.batch-size"),
        ({"num_envs": 300, "replay.capacity": 3_000}, "acting", "--num-envs"),
    ],
)
def test_the_largest_part_is_named_with_the_setting_that_makes_it_smaller(free, values, largest, flag):
    free(1_000_000)
    message = refusal(short_config(values))
    assert largest in message and f"lower {flag}, or take a smaller --preset" in message
    assert " on cpu, but 0.00 GB are free; " in message


def test_rows_that_no_step_will_bring_are_not_asked_for_on_a_cpu(free):
    """Its pages are taken as rows arrive; on CUDA the store is taken at once."""
    config = short_config({"replay.capacity": 100_000, "steps": 1_000})
    found = estimate(config, NUM_ACTIONS, torch.float32, "cpu")
    free(found.total - found.replay + 2_001 * ROW_BYTES)
    check_fits(config, plan_on("cpu"), NUM_ACTIONS)
    refusal(override(config, {"steps": 1_001}))


def test_the_context_that_exists_is_not_asked_for_again(free):
    config = short_config({})
    found = estimate(config, NUM_ACTIONS, torch.float32, "cuda", captured=True)
    free(found.total - found.context)
    check_fits(config, plan_on("cuda:0", "graphs"), NUM_ACTIONS)
    free(found.total - found.context - 1)
    assert " on cuda:0, but " in refusal(config, plan_on("cuda:0", "graphs"))
    check_fits(config, plan_on("cuda:0"), NUM_ACTIONS)  # less without graphs


def test_sizes_beyond_any_memory_are_one_line(free):
    free(10**12)
    assert "overflow" in refusal(
        replace(short_config({}), world_model=replace(short_config({}).world_model, width=3 * 10**9))
    )
