"""Eager, compiled and static-buffer phases compute the same; a captured function's buffers stay where they are."""

import dataclasses

import numpy as np
import pytest
import torch

from stormfast.compile import (
    WARMUP_CALLS,
    GraphedCall,
    GraphPool,
    Updates,
    capture_updates,
    compile_parts,
)
from stormfast.demonstration import Demonstration
from stormfast.learner import Learner
from stormfast.player import Player
from stormfast.records import Transition
from stormfast.replay import Replay
from stormfast.runs.run import default_generator
from tests.model_fixtures import NUM_ACTIONS, tiny_learner
from tests.tape import Taped

CPU = torch.device("cpu")
STEPS = 50


# --- one captured function ---------------------------------------------------------------------------------------


def test_a_captured_function_gives_what_the_function_gives():
    total = torch.zeros(3)

    def add(x, y):
        total.add_(x)
        return {"sum": total + y, "difference": total - y}

    captured = GraphedCall(add, GraphPool(CPU))
    outputs = []
    for t in range(WARMUP_CALLS + 3):
        x, y = torch.full((3,), float(t)), torch.tensor([t, 1.0, 2.0])
        outputs.append(captured(x, y))
        expected = torch.full((3,), t * (t + 1) / 2)
        assert torch.equal(outputs[-1]["sum"], expected + y), t
        assert torch.equal(outputs[-1]["difference"], expected - y), t
        assert torch.equal(total, expected)  # each call ran once, those before the capture too


def test_outputs_and_inputs_of_a_captured_function_lie_in_buffers_made_once():
    seen = []
    captured = GraphedCall(lambda x: seen.append(x.data_ptr()) or x * 2, GraphPool(CPU))
    outputs = [captured(torch.full((2,), float(t))) for t in range(WARMUP_CALLS + 4)]
    assert len(set(seen[WARMUP_CALLS:])) == 1
    assert len({output.data_ptr() for output in outputs[WARMUP_CALLS:]}) == 1
    assert outputs[WARMUP_CALLS].tolist() == [2.0 * (WARMUP_CALLS + 3)] * 2  # overwritten since
    assert outputs[0].tolist() == [0.0, 0.0]


def test_arguments_are_copied_and_another_shape_is_refused():
    captured = GraphedCall(lambda x: x.add_(1), GraphPool(CPU))
    for _ in range(WARMUP_CALLS + 2):
        x = torch.zeros(2)
        captured(x)
    assert x.tolist() == [0.0, 0.0]
    with pytest.raises(RuntimeError):
        captured(torch.zeros(3))


# --- a run's phases ----------------------------------------------------------------------------------------------


def learner_on(device, values, precision):
    given = tiny_learner(values=values, precision=precision)
    if device == CPU:
        return given
    learner = Learner(given.config, NUM_ACTIONS, device, precision)
    learner.world_model.load_state_dict(given.world_model.state_dict())
    learner.agent.load_state_dict(given.agent.state_dict())
    return learner


def lived_through(device=CPU, rows=60, **options):
    """A replay of random play, with ends of episodes."""
    replay, rng = Replay(256, 2, device, **options), np.random.default_rng(0)
    for t in range(rows):
        flags = {name: rng.random(2) < 0.1 for name in ("terminated", "truncated", "life_lost")}
        is_first, is_last = np.full(2, t % 13 == 0), np.full(2, t % 13 == 12)
        obs, action = rng.integers(256, size=(2, 3, 64, 64), dtype=np.uint8), rng.integers(NUM_ACTIONS, size=2)
        replay.append(
            Transition(obs, action, rng.normal(size=2).astype(np.float32), **flags, is_first=is_first, is_last=is_last)
        )
    return replay


def history(prepare, values=None, steps=STEPS, precision=torch.float32, device=CPU):
    """Losses of each step, actions of each step, and parameters in the end, of a run whose phases were prepared."""
    learner = learner_on(device, {"world_model.dropout": 0.0} | (values or {}), precision)
    replay = lived_through(device)
    player = Player(learner.inference, learner.agent, learner.config.acting, 2)
    updates = Updates(learner.config, learner, replay, default_generator(device))
    prepare(learner, updates, player)
    of_a_step = [updates.update_world_model, updates.update_agent]
    if learner.config.world_model.autoencoder_every > 1:
        of_a_step.append(updates.update_sequence_model)
    torch.manual_seed(1)
    rng, losses, actions = np.random.default_rng(2), [], []
    for t in range(steps):
        obs = rng.integers(256, size=(2, 3, 64, 64), dtype=np.uint8)
        actions.append(player.act(obs, np.full(2, t % 9 == 0), np.full(2, t % 9 == 8)).tolist())
        losses.append({name: float(x) for update in of_a_step for name, x in update().items()})
        player.refresh()
    weights = {**dict(learner.world_model.named_parameters()), **dict(learner.agent.named_parameters(prefix="agent"))}
    return losses, actions, {name: weight.detach().cpu() for name, weight in weights.items()}


def compiled_with(backend):
    def prepare(learner, updates, player):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()  # reset leaves them
        real = torch.compile
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "compile", lambda function, **options: real(function, backend=backend, **options))
            compile_parts(learner, player)

    return prepare


def assert_same_history(got, expected, steps, rtol):
    (got_losses, got_actions, got_weights), (losses, actions, weights) = got, expected
    assert len(got_losses) == len(losses) == steps
    for t, (a, b) in enumerate(zip(got_losses, losses, strict=True)):
        for name in b:
            assert a[name] == pytest.approx(b[name], rel=rtol, abs=rtol), f"step {t}: {name}"
    assert got_actions == actions
    for name, weight in weights.items():
        torch.testing.assert_close(
            got_weights[name], weight, rtol=rtol, atol=rtol, msg=lambda m, name=name: f"{name}: {m}"
        )


BATCH_CONTEXTS = {"imagination.contexts": "batch", "imagination.batch_size": 16}  # 4 in each of 4 windows
VARIANTS = [
    {},
    {"agent.minibatches": 2, "imagination.start": "prior", "world_model.tokens": "separate"},
    {
        "acting.latent": "prior",
        "acting.reset_context": False,
        "world_model.separate_episodes": False,
        "agent.state": "hidden",
        "world_model.dropout": 0.1,
    },
    {"world_model.autoencoder_every": 2, "world_model.balance": "harmony"},
    BATCH_CONTEXTS | {"agent.minibatches": 2, "agent.replay_value": 0.3},
]


@pytest.mark.parametrize("values", [{}, BATCH_CONTEXTS])
def test_static_buffers_change_nothing(values):
    captured = history(lambda learner, updates, player: capture_updates(updates, player), values, steps=9)
    assert_same_history(captured, history(lambda *parts: None, values, steps=9), 9, rtol=0)


@pytest.fixture
def taped(monkeypatch):
    monkeypatch.setattr("stormfast.compile.GraphedCall", Taped)
    return lambda learner, updates, player: capture_updates(updates, player)


@pytest.mark.parametrize(
    ("values", "precision", "steps"), [*((v, torch.float32, 9) for v in VARIANTS), ({}, torch.bfloat16, 9)]
)
def test_the_operators_of_one_call_are_those_of_every_call(values, precision, steps, taped):
    """As a graph would, each phase runs what was recorded once, into the same memory: to the bit what eager phases
    compute.
    """
    expected = history(lambda *parts: None, values, steps, precision)
    assert_same_history(history(taped, values, steps, precision), expected, steps, rtol=0)


def test_a_phase_that_rebinds_what_it_should_write_is_noticed(taped, monkeypatch):
    remember = Player.remember

    def rebinding(player, *args):
        player.length = player.length.clone()
        remember(player, *args)

    monkeypatch.setattr(Player, "remember", rebinding)
    expected = history(lambda *parts: None, steps=9)
    with pytest.raises(AssertionError):
        assert_same_history(history(taped, steps=9), expected, 9, rtol=0)


@pytest.mark.parametrize(
    ("backend", "steps"), [("eager", WARMUP_CALLS + 3), pytest.param("inductor", STEPS, marks=pytest.mark.slow)]
)
def test_compiled_and_captured_phases_agree_with_eager_ones_and_compile_once(backend, steps):
    """To rounding, which 50 steps of training amplify; fullgraph: a graph break would raise."""

    def both(learner, updates, player):
        compiled_with(backend)(learner, updates, player)
        capture_updates(updates, player)

    assert_same_history(history(both, steps=steps), history(lambda *parts: None, steps=steps), steps, rtol=1e-3)
    compiled = dict(torch._dynamo.utils.counters["stats"])
    assert compiled["unique_graphs"] == 7, (
        compiled
    )  # losses, observe, begin, step, judge, agent loss, respond: none of them twice


@pytest.mark.parametrize(
    "values", [{}, pytest.param(BATCH_CONTEXTS | {"agent.replay_value": 0.3}, marks=pytest.mark.slow)]
)
def test_bfloat16_phases_compile_too(values):
    """With their backward passes traced, as inductor has them."""
    got = history(compiled_with("aot_eager"), values, steps=2, precision=torch.bfloat16)
    expected = history(lambda *parts: None, values, steps=2, precision=torch.bfloat16)
    assert_same_history(got, expected, 2, rtol=1e-3)


def test_what_a_phase_learns_from_is_drawn_inside_it():
    learner = tiny_learner()
    replay = lived_through()
    updates = Updates(learner.config, learner, replay, torch.default_generator)
    drawn = []
    learner.update_world_model = lambda batch: drawn.append(batch) or {}
    learner.update_agent = lambda batch: drawn.append(batch) or {}
    torch.manual_seed(4)
    updates.update_world_model()
    updates.update_agent()
    torch.manual_seed(4)
    settings = learner.config
    expected = [
        replay.sample(settings.world_model.batch_size, settings.world_model.batch_length, torch.default_generator)
    ]
    expected.append(
        replay.sample(settings.imagination.batch_size, settings.imagination.context, torch.default_generator)
    )
    for got, batch in zip(drawn, expected, strict=True):
        for f in dataclasses.fields(batch):
            assert torch.equal(getattr(got, f.name), getattr(batch, f.name))


def test_contexts_of_the_batch_are_drawn_once_and_those_of_the_demonstration_come_last():
    learner = tiny_learner(values=BATCH_CONTEXTS)
    shown = Demonstration(
        obs=np.zeros((20, 3, 64, 64), np.uint8),
        action=np.full(20, 3),
        reward=np.ones(20, np.float32),
        terminated=np.zeros(20, np.bool_),
        is_first=np.zeros(20, np.bool_),
    )
    replay = lived_through(demonstration=shown, demonstration_share=0.25)
    updates, drawn, draw = Updates(learner.config, learner, replay, torch.default_generator), [], replay.draw
    replay.draw = lambda *args: drawn.append(args) or draw(*args)
    updates.update_world_model()
    updates.update_agent()
    assert [args[:2] for args in drawn] == [(4, 7)]
    windows = learner.learned.windows
    assert (windows.reward[3] == 1).all() and (windows.action[3] == 3).all()
    assert not (windows.reward[:3] == 1).any()


# --- captured for real -------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("values", [{}, BATCH_CONTEXTS])
@pytest.mark.parametrize("compiled", [False, True])
def test_on_cuda_replayed_graphs_agree_with_eager_phases(compiled, values):
    """The same random numbers too: a replay takes up the generator where the call before left it."""

    def prepare(learner, updates, player):
        if compiled:
            compile_parts(learner, player)
        capture_updates(updates, player)
        captured.extend([updates.update_world_model, updates.update_agent, player.act_on_device, player.refresh])

    captured, cuda = [], torch.device("cuda", 0)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        got = history(prepare, values, device=cuda)
        expected = history(lambda *parts: None, values, device=cuda)
    assert all(phase.graph is not None for phase in captured)
    assert_same_history(got, expected, STEPS, rtol=1e-3)


@pytest.mark.gpu
def test_on_cuda_replays_wait_for_nothing():
    def prepare(learner, updates, player):
        capture_updates(updates, player)
        kept.append(updates)

    kept, cuda = [], torch.device("cuda", 0)
    history(prepare, steps=WARMUP_CALLS + 2, device=cuda)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            kept[0].update_world_model()
            kept[0].update_agent()
    finally:
        torch.cuda.set_sync_debug_mode("default")
