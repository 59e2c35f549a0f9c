"""Updates move what they should and nothing else, losses fall, and bfloat16 stays close to float32."""

import dataclasses

import pytest
import torch

from stormfast.learner import Learner, build_models, minibatches
from stormfast.presets import preset_config
from stormfast.records import Rollout
from stormfast.world_model.encoder import normalize_frames
from tests.model_fixtures import NUM_ACTIONS, make_batch, no_sync, tiny_config, tiny_learner

B, C = 6, 4
BATCH_CONTEXTS = {"imagination.contexts": "batch", "imagination.batch_size": 16}  # 4 in each of 4 windows


def fresh_learner(values=None, precision=torch.float32):
    """As training starts: zero-initialised heads, unit norms."""
    torch.manual_seed(0)
    return Learner(tiny_config(values=values), NUM_ACTIONS, torch.device("cpu"), precision)


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def test_a_world_model_update_moves_the_world_model_alone():
    learner = tiny_learner()
    model, agent = weights(learner.world_model), weights(learner.agent)
    metrics = learner.update_world_model(make_batch())
    assert changed(learner.world_model, model) == set(model) - {"encoder.mean_frame"}  # weights, batch-norm averages
    assert changed(learner.agent, agent) == set()
    assert metrics["world_model/grad_norm"] > 0
    assert all(value.shape == () and not value.requires_grad and value.isfinite() for value in metrics.values())


@pytest.mark.parametrize("balance", ["fixed", "harmony"])
def test_a_sequence_update_moves_what_predicts_and_nothing_that_sees(balance):
    learner, batch = tiny_learner(values={"world_model.balance": balance, "world_model.dropout": 0.0}), make_batch()
    learner.update_world_model(batch)  # leaves gradients and Adam's averages behind
    model, agent = weights(learner.world_model), weights(learner.agent)
    metrics = learner.update_sequence_model(batch)
    predicts = ("sequence.", "prior.", "reward.", "termination.")
    moved = {name for name in model if name.startswith(predicts)}
    moved |= {"scales.log_scale"} if balance == "harmony" else set()
    assert changed(learner.world_model, model) == moved
    assert changed(learner.agent, agent) == set()
    assert all(value.shape == () and not value.requires_grad and value.isfinite() for value in metrics.values())
    if balance == "harmony":  # what is not there says nothing of its scale
        gradient = learner.world_model.scales.log_scale.grad
        assert gradient[0] == 0 and (gradient[1:] != 0).all()


def test_a_sequence_loss_is_the_loss_of_the_same_latents_without_the_reconstruction():
    learner, batch = tiny_learner(values={"world_model.dropout": 0.0}), make_batch()
    model, uniform = learner.world_model, torch.rand(*batch.action.shape, learner.config.world_model.categoricals)
    whole = model.loss_with_uniform(batch, uniform)  # in evaluation mode
    part = model.sequence_loss_with_uniform(batch, learner.inference.model.encode(batch.obs), uniform)
    assert part.keys() == whole.keys() - {"reconstruction"}
    for name in part.keys() - {"total"}:
        torch.testing.assert_close(part[name], whole[name], rtol=1e-4, atol=1e-5)
    rest = whole["total"] - learner.config.world_model.loss.reconstruction * whole["reconstruction"]
    torch.testing.assert_close(part["total"], rest, rtol=1e-4, atol=1e-4)


def test_an_agent_update_moves_the_agent_alone():
    learner = tiny_learner()
    learner.update_world_model(make_batch())  # leaves gradients behind
    model, agent = weights(learner.world_model), weights(learner.agent)
    metrics = learner.update_agent(make_batch(B, C))
    assert changed(learner.world_model, model) == set()  # not even the batch-norm averages
    assert changed(learner.agent, agent) == set(agent)
    assert metrics["agent/grad_norm"] > 0
    assert all(value.shape == () and not value.requires_grad and value.isfinite() for value in metrics.values())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("minibatches", [1, 4])
def test_the_agent_starts_from_the_windows_and_latents_of_the_world_model(precision, minibatches):
    """Of the update before, with the latents that its loss sampled."""
    learner = tiny_learner(values=BATCH_CONTEXTS | {"agent.minibatches": minibatches}, precision=precision)
    other, batch = tiny_learner(precision=precision), make_batch(seed=3)
    learner.update_world_model(make_batch(seed=2))
    where = learner.learned.latent.data_ptr()
    learner.world_model.load_state_dict(other.world_model.state_dict())
    torch.manual_seed(5)
    learner.update_world_model(batch)
    torch.manual_seed(5)
    uniform = torch.rand(4, 7, 3)
    with other.autocast(), torch.no_grad():
        logits = other.world_model.train().posterior(other.world_model.encoder(normalize_frames(batch.obs)))
        latent = other.world_model.sample(logits.unflatten(0, (4, 7)), uniform)
    assert torch.equal(learner.learned.latent, latent)
    assert latent.dtype == learner.learned.latent.dtype == precision
    assert learner.learned.latent.data_ptr() == where
    windows = learner.learned.windows
    assert windows.obs.shape == (4, 7, 0)
    assert all(torch.equal(getattr(windows, f.name), getattr(batch, f.name)) for f in dataclasses.fields(batch)[1:])
    torch.manual_seed(6)
    with learner.autocast():
        expected = learner.imagination(windows, latent)
    seen, model, loss = [], weights(learner.world_model), learner.agent.loss
    learner.agent.loss = lambda rollout: seen.append(rollout) or loss(rollout)
    torch.manual_seed(6)
    assert learner.update_agent()["agent/grad_norm"] > 0
    assert changed(learner.world_model, model) == set()
    assert len(seen) == minibatches
    for i, part in enumerate(seen):
        assert torch.equal(part.state, expected.state[i::minibatches])


def test_models_are_in_evaluation_mode_but_for_the_world_model_loss():
    learner = tiny_learner()
    seen = []
    learner.world_model.encoder.register_forward_hook(lambda module, *_: seen.append(module.training))
    assert not any(m.training for m in [*learner.world_model.modules(), *learner.agent.modules()])
    learner.update_world_model(make_batch())
    learner.update_agent(make_batch(B, C))
    assert seen == [True]  # imagination uses the folded copy
    assert not any(m.training for m in learner.inference.model.modules())
    assert not any(m.training for m in [*learner.world_model.modules(), *learner.agent.modules()])


@pytest.mark.parametrize("tokens", ["fused", "separate"])
def test_the_loss_falls_on_a_fixed_batch(tokens):
    learner = fresh_learner(
        {"world_model.learning_rate": 3e-3, "world_model.dropout": 0.0, "world_model.tokens": tokens}
    )
    batch = make_batch(resets=False)
    history = [learner.update_world_model(batch) for _ in range(30)]
    for name, most in (("total", 0.8), ("reconstruction", 0.8), ("reward", 0.85), ("termination", 0.9)):
        first, last = (sum(h[f"world_model/{name}"].item() for h in part) / 3 for part in (history[:3], history[-3:]))
        assert last < most * first, name


def test_the_update_is_adam_on_clipped_gradients():
    """Against torch's plain Adam on the gradients of the same loss."""
    values = {"world_model.clip_norm": 0.5, "world_model.dropout": 0.0}
    learner, other = tiny_learner(values=values), tiny_learner(values=values)
    plain = torch.optim.Adam(other.world_model.parameters(), lr=1e-4)
    for step in range(3):
        batch = make_batch(seed=step)
        torch.manual_seed(step)
        norm = learner.update_world_model(batch)["world_model/grad_norm"]
        torch.manual_seed(step)
        other.world_model.train()
        plain.zero_grad()
        other.world_model.loss(batch)["total"].backward()
        gradients = [p.grad for p in other.world_model.parameters()]
        total = torch.stack([g.norm() for g in gradients]).norm()
        torch.testing.assert_close(norm, total, rtol=1e-4, atol=0)
        assert total > 0.5
        for g in gradients:
            g.mul_(0.5 / total)
        plain.step()
    for (name, a), b in zip(learner.world_model.named_parameters(), other.world_model.parameters(), strict=True):
        torch.testing.assert_close(
            a, b, rtol=0, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}"
        )  # a step is 1e-4; the sign is what counts


def test_a_step_that_is_not_finite_leaves_the_weights_as_they_were():
    learner, batch = tiny_learner(), make_batch()
    learner.update_world_model(batch)
    before = {name: p.detach().clone() for name, p in learner.world_model.named_parameters()}
    broken = dataclasses.replace(batch, reward=torch.full_like(batch.reward, float("nan")))
    metrics = learner.update_world_model(broken)
    assert not metrics["world_model/grad_norm"].isfinite()  # and so the run is told
    for name, parameter in learner.world_model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    learner.update_world_model(batch)
    assert not torch.equal(learner.world_model.posterior.linear.weight, before["posterior.linear.weight"])


def test_optimisers_have_the_settings_of_the_config():
    learner = tiny_learner(values={"world_model.learning_rate": 2e-4, "agent.learning_rate": 5e-5})
    model, agent = (learner.optimizers[name].param_groups[0] for name in ("world_model", "agent"))
    assert (model["lr"], model["eps"], model["betas"]) == (2e-4, 1e-8, (0.9, 0.999))
    assert (agent["lr"], agent["eps"], agent["betas"]) == (5e-5, 1e-5, (0.9, 0.999))
    slow = {id(p) for p in learner.agent.slow_critic.parameters()}
    assert not slow & {id(p) for p in agent["params"]}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_agent_update_takes_as_many_steps_as_minibatches(count):
    learner = tiny_learner(values={"agent.minibatches": count})
    seen = []
    loss = learner.agent.loss
    learner.agent.loss = lambda rollout: seen.append(rollout) or loss(rollout)
    learner.update_agent(make_batch(B, C))
    assert [rollout.action.shape[0] for rollout in seen] == [B // count] * count
    steps = {int(state["step"]) for state in learner.optimizers["agent"].state.values()}
    assert steps == {count}


def test_minibatches_are_the_rollout_dealt_out():
    rollout = Rollout(*(torch.randn(6, *shape) for shape in ((5, 7), (4,), (4,), (4,), (4,), ())))
    parts = list(minibatches(rollout, 3))
    for f in dataclasses.fields(rollout):
        for i, part in enumerate(parts):
            assert torch.equal(getattr(part, f.name), getattr(rollout, f.name)[[i, i + 3]])
    assert [part.alive.shape for part in parts] == [(2,)] * 3


@pytest.mark.parametrize("count", [1, 2])
def test_replayed_returns_come_with_whole_windows_and_move_the_agent_alone(count):
    values = BATCH_CONTEXTS | {"agent.replay_value": 0.3, "agent.minibatches": count}
    learner, batch = tiny_learner(values=values), make_batch(seed=3)
    learner.update_world_model(batch)
    model, agent, loss, seen = weights(learner.world_model), weights(learner.agent), learner.agent.loss, []
    learner.agent.loss = lambda rollout: seen.append(rollout) or loss(rollout)
    metrics = learner.update_agent()
    assert metrics["agent/replay_value"] > 0
    assert changed(learner.world_model, model) == set()
    assert changed(learner.agent, agent) == set(agent)
    assert len(seen) == count
    assert not any(rollout.state.requires_grad for rollout in seen)
    for i, rollout in enumerate(seen):
        assert torch.equal(rollout.replayed.reward, batch.reward[i::count, C - 1 :])
        ended = batch.terminated | batch.life_lost
        assert torch.equal(rollout.replayed.ended, ended[i::count, C - 1 :])
        latent = learner.learned.latent[i::count, C - 1 :].flatten(0, 1)
        assert torch.equal(rollout.state[:, 0, : latent.shape[1]], latent)


def test_the_same_seed_gives_the_same_updates():
    results = []
    for _ in range(2):
        learner = tiny_learner(values={"agent.minibatches": 2})
        torch.manual_seed(11)
        for seed in range(2):
            learner.update_world_model(make_batch(seed=seed))
            learner.update_agent(make_batch(B, C, seed=seed))
        results.append(
            weights(learner.world_model) | {f"agent.{name}": value for name, value in weights(learner.agent).items()}
        )
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


# --- bfloat16 ----------------------------------------------------------------------------------------------------


def test_bfloat16_losses_are_close_to_float32():
    losses = {}
    for precision in (torch.float32, torch.bfloat16):
        learner = tiny_learner(values={"world_model.dropout": 0.0}, precision=precision)
        torch.manual_seed(5)
        losses[precision] = learner.update_world_model(make_batch())
    for name, exact in losses[torch.float32].items():
        half = losses[torch.bfloat16][name]
        assert half.dtype == torch.float32, name
        torch.testing.assert_close(
            half, exact, rtol=0.03, atol=0.01, msg=lambda m, name=name: f"{name}: {m}"
        )  # a few samples fall otherwise


@pytest.mark.parametrize("tokens", ["fused", "separate"])
@pytest.mark.parametrize("state", ["both", "latent", "hidden"])
def test_bfloat16_updates_reach_every_weight_and_keep_float32(tokens, state):
    values = {"world_model.tokens": tokens, "agent.state": state, "agent.minibatches": 2}
    learner = tiny_learner(values=values, precision=torch.bfloat16)
    for seed in range(2):
        metrics = learner.update_world_model(make_batch(seed=seed)) | learner.update_agent(make_batch(B, C, seed=seed))
    assert all(value.isfinite() and value.dtype == torch.float32 for value in metrics.values())
    for parameter in [*learner.world_model.parameters(), *learner.agent.trained_parameters()]:
        assert parameter.dtype == torch.float32
        assert parameter.isfinite().all()
        assert parameter.grad is not None
        assert parameter.grad.any()


def test_a_bfloat16_rollout_keeps_rewards_and_chances_in_float32():
    """Rounding them to bfloat16 would make a return of 1000 uncertain by 4, and the running percentiles refuse the
    dtype.
    """
    learner = tiny_learner(precision=torch.bfloat16)
    with learner.autocast():
        rollout = learner.imagination(make_batch(B, C))
        targets = learner.agent.targets(rollout, learner.agent.critic(rollout.state))
    assert learner.imagination.cache.key.dtype == torch.bfloat16
    for record, names in (
        (rollout, ("log_prob", "reward", "continuation", "alive")),
        (targets, ("value", "slow_value", "returns", "advantage", "weight")),
    ):
        assert {getattr(record, name).dtype for name in names} == {torch.float32}
    assert (rollout.reward.bfloat16().float() != rollout.reward).any()


# --- syncs, building ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_updates_do_not_wait_for_the_device(precision):
    learner = tiny_learner(values={"agent.minibatches": 2}, precision=precision)
    batch, context = make_batch(), make_batch(B, C)
    learner.update_world_model(batch)  # the first makes the optimisers' state
    learner.update_agent(context)
    with no_sync():
        learner.update_world_model(batch)
        learner.update_agent(context)
    learner = tiny_learner(values=BATCH_CONTEXTS, precision=precision)
    learner.update_world_model(batch)
    learner.update_agent()
    with no_sync():
        learner.update_world_model(batch)
        learner.update_agent()


@pytest.mark.parametrize(("protocol", "marks"), [("standard", True), ("reference", False)])
def test_build_models_follows_the_protocol(protocol, marks):
    world_model, agent = build_models(tiny_config(protocol), NUM_ACTIONS, torch.device("cpu"))
    assert world_model.config.separate_episodes == marks
    assert not world_model.training
    assert not agent.training
    assert (world_model.num_actions, agent.num_actions) == (NUM_ACTIONS, NUM_ACTIONS)
    assert agent.config.bootstrap == ("next" if marks else "current")


def test_paper_sizes_have_the_papers_shapes():
    """Parameter counts at paper size, counted by hand from the architecture."""
    world_model, agent = build_models(preset_config("storm", "standard"), 6, torch.device("cpu"))
    width, latent, features = 512, 1024, 4096
    convolutions = [(3, 32), (32, 64), (64, 128), (128, 256)]
    encoder = sum(16 * a * b + 2 * b for a, b in convolutions)
    decoder = latent * features + 2 * 256 + sum(16 * a * b for a, b in convolutions) + 2 * (32 + 64 + 128) + 3
    heads = sum(2 * (width * width + 2 * width) + width * outputs + outputs for outputs in (255, 1))
    stem = (latent + 6) * width + width * width + 4 * width
    block = 4 * width * width + 2 * width + 2 * (2 * width * width) + 2 * width + width + 2 * width
    latents = features * latent + latent + width * latent + latent
    expected = encoder + decoder + heads + stem + 64 * width + 2 * width + 2 * block + latents
    assert sum(p.numel() for p in world_model.parameters()) == expected
    trained = sum(
        (latent + width) * width + width * width + 4 * width + width * outputs + outputs for outputs in (6, 255)
    )
    assert sum(p.numel() for p in agent.trained_parameters()) == trained
