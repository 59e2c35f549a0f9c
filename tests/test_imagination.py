"""Rollouts against the full forward pass on the grown sequence, with the same random numbers."""

import dataclasses

import pytest
import torch

from stormfast.player import Player
from stormfast.records import Batch
from tests.model_fixtures import NUM_ACTIONS, double_precision, make_batch, no_sync, one_hot_latent, tiny_learner

B, C, H, S, K, D = 6, 4, 5, 3, 5, 12


@pytest.fixture(autouse=True)
def _float64():
    with double_precision():
        yield


def rollout_of(learner, context, seed=7):
    torch.manual_seed(seed)
    return learner.imagination(context)


def draws(seed=7):
    """The rollout's own uniform numbers: latents [C+H+1, B, S], actions [H, B]."""
    torch.manual_seed(seed)
    return torch.rand(C + H + 1, B, S), torch.rand(H, B)


@pytest.mark.parametrize(("state", "features"), [("both", S * K + D), ("latent", S * K), ("hidden", D)])
def test_shapes_and_no_gradient(state, features):
    rollout = rollout_of(tiny_learner(values={"agent.state": state}), make_batch(B, C))
    shapes = {f.name: tuple(getattr(rollout, f.name).shape) for f in dataclasses.fields(rollout)}
    two = (B, H)
    assert shapes == {
        "state": (B, H + 1, features),
        "action": two,
        "log_prob": two,
        "reward": two,
        "continuation": two,
        "alive": (B,),
    }
    assert not any(getattr(rollout, name).requires_grad for name in shapes)
    assert rollout.action.dtype == torch.int64
    actions = set(rollout.action.flatten().tolist())
    assert len(actions) > 1
    assert actions <= set(range(NUM_ACTIONS))


@pytest.mark.parametrize("tokens", ["fused", "separate"])
@pytest.mark.parametrize("protocol", ["standard", "reference"])
@pytest.mark.parametrize("start", ["posterior", "prior"])
@pytest.mark.parametrize("cuts", [1, 3])
@torch.no_grad()
def test_every_state_is_that_of_the_full_forward_pass(tokens, protocol, start, cuts):
    """By growing the sequence of latents and actions one step at a time and running all of it anew."""
    values = {"world_model.tokens": tokens, "imagination.start": start, "imagination.contexts_per_window": cuts}
    learner, windows = tiny_learner(protocol, values), make_batch(B // cuts, C + cuts - 1, seed=2)
    windows.is_first[0, C - 1] = True  # where a context ends
    windows.is_first[1, 2] = True
    model, agent, rollout = learner.world_model, learner.agent, rollout_of(learner, windows)
    marked, (latent_uniform, action_uniform) = protocol == "standard", draws()
    num_windows, length = windows.action.shape
    frame_uniform = latent_uniform[:C].reshape(-1, S)[: num_windows * length].view(length, num_windows, S)
    latents = model.sample(model.encode(windows.obs), frame_uniform.transpose(0, 1))
    past, action, is_first = (
        torch.stack([x[w, k : k + C] for w in range(num_windows) for k in range(cuts)])
        for x in (latents, windows.action, windows.is_first)
    )
    if start == "posterior":  # the last frame is where the agent stands, its action is still to be chosen
        latent, past, action = past[:, -1], past[:, :-1], action[:, :-1]
    for t in range(H + 1):
        hidden = model.sequence(past, action, is_first[:, : action.shape[1]] if marked else None)[:, -1]
        if t == 0 and start == "posterior":
            hidden = torch.where(is_first[:, -1:] & marked, 0.0, hidden)
        else:
            latent = model.sample(model.prior(hidden), latent_uniform[C + t])
        close = {"rtol": 1e-10, "atol": 1e-10, "msg": lambda m, t=t: f"state {t}: {m}"}
        torch.testing.assert_close(rollout.state[:, t, : S * K], latent, **close)
        torch.testing.assert_close(rollout.state[:, t, S * K :], hidden, **close)
        if t == H:
            break
        log_policy = agent.log_policy(torch.cat([latent, hidden], -1))
        chosen = agent.sample_action(log_policy, action_uniform[t])
        assert torch.equal(rollout.action[:, t], chosen)
        torch.testing.assert_close(rollout.log_prob[:, t], log_policy[torch.arange(B), chosen])
        past, action = torch.cat([past, latent[:, None]], 1), torch.cat([action, chosen[:, None]], 1)
        is_first = torch.cat([is_first, torch.zeros(B, 1, dtype=torch.bool)], 1)


@pytest.mark.parametrize("tokens", ["fused", "separate"])
@pytest.mark.parametrize("start", ["posterior", "prior"])
@torch.no_grad()
def test_given_latents_are_a_prefill_of_the_same_rows_and_no_frame_is_encoded(tokens, start):
    """All contexts of each window, in order."""
    num_windows, length = 2, C + B // 2 - 1
    values = {"imagination.contexts": "batch", "world_model.tokens": tokens, "imagination.start": start}
    learner, windows = tiny_learner(values=values), make_batch(num_windows, length, seed=2)
    windows.is_first[0, C - 1] = True  # where a context ends
    windows.is_last[1, C] = True
    latent = one_hot_latent(num_windows, length, generator=torch.Generator().manual_seed(3))
    encoded = []
    learner.inference.folded.embed = encoded.append
    torch.manual_seed(7)
    rollout = learner.imagination(dataclasses.replace(windows, obs=windows.obs[:, :, :0]), latent)
    assert encoded == []
    torch.manual_seed(7)
    uniform = torch.rand(H + 1, B, S)
    spans = [(w, slice(k, k + C)) for w in range(num_windows) for k in range(length - C + 1)]
    context = Batch(
        **{f.name: torch.stack([getattr(windows, f.name)[at] for at in spans]) for f in dataclasses.fields(Batch)}
    )
    begun = torch.cat(learner.imagination.prefill(context, torch.stack([latent[at] for at in spans]), uniform[0]), -1)
    torch.testing.assert_close(rollout.state[:, 0], begun, rtol=0, atol=0)
    assert torch.equal(rollout.alive, learner.imagination.alive_at_start(context))
    assert not rollout.alive[B // 2 + 1]  # is_last, at the second context of the second window
    assert len(rollout.state[:, 0].unique(dim=0)) == B


@torch.no_grad()
def test_reward_and_continuation_of_an_action_are_judged_after_it():
    learner = tiny_learner()
    model, rollout = learner.world_model, rollout_of(learner, make_batch(B, C))
    for t in range(H):
        hidden = rollout.state[:, t + 1, S * K :]  # the step that took action t
        torch.testing.assert_close(rollout.reward[:, t], model.two_hot.decode(model.reward(hidden)))
        torch.testing.assert_close(rollout.continuation[:, t], 1 - model.termination(hidden).squeeze(-1).sigmoid())


def test_continuation_as_probability_or_threshold():
    soft_learner, hard_learner = (
        tiny_learner(values={"imagination.continuation": kind}) for kind in ("probability", "threshold")
    )
    context = make_batch(B, C)
    middle = (
        -rollout_of(soft_learner, context).continuation.logit().median() + 1e-6
    )  # the middle one is on neither edge
    for learner in (soft_learner, hard_learner):
        learner.world_model.termination[-1].bias.data -= middle  # half of the steps end, half go on
        learner.inference.refresh()
    soft, hard = rollout_of(soft_learner, context).continuation, rollout_of(hard_learner, context).continuation
    assert torch.equal(hard, (soft >= 0.5).to(soft.dtype))
    assert set(hard.flatten().tolist()) == {0.0, 1.0}
    assert ((soft > 0) & (soft < 1)).all()


def test_the_same_seed_gives_the_same_rollout():
    learner, context = tiny_learner(), make_batch(B, C)
    first = rollout_of(learner, context)
    rollout_of(learner, make_batch(B, C, seed=5), 1)
    again, other = rollout_of(learner, context), rollout_of(learner, context, 8)
    for f in dataclasses.fields(first):
        assert torch.equal(getattr(first, f.name), getattr(again, f.name)), f.name
    assert not torch.equal(first.action, other.action)
    assert not torch.equal(first.state, other.state)


def test_a_rollout_is_not_overwritten_by_the_next():
    learner = tiny_learner()
    first = rollout_of(learner, make_batch(B, C))
    kept = {f.name: getattr(first, f.name).clone() for f in dataclasses.fields(first)}
    rollout_of(learner, make_batch(B, C, seed=3), 9)
    for name, value in kept.items():
        assert torch.equal(getattr(first, name), value)


@torch.no_grad()
def test_the_first_state_is_what_the_player_sees():
    """On the same frames and actions, with the mode instead of samples: the agent is trained where it will act."""
    learner, context = tiny_learner(), make_batch(B, C, resets=False)
    context.is_first[:, 0] = True
    context.is_first[: B // 2, -1] = True
    mode = learner.inference.model.sample
    learner.inference.model.sample = lambda logits, uniform: mode(logits, None)
    player = Player(learner.inference, learner.agent, learner.config.acting, B)
    seen = []
    state = learner.agent.state
    learner.agent.state = lambda *parts: seen.append(state(*parts)) or seen[-1]
    for t in range(C):
        player.act(context.obs[:, t].numpy(), context.is_first[:, t].numpy())
        player.action.scatter_(1, (player.length - 1)[:, None], context.action[:, t : t + 1])  # what was really done
    acted = seen[-1]
    torch.testing.assert_close(rollout_of(learner, context).state[:, 0], acted, rtol=1e-10, atol=1e-10)


CASES = [
    ("terminated", "prior"),
    ("is_last", "both"),
    ("life_lost", "prior"),
    ("truncated", "none"),
    ("is_first", "none"),
]


@pytest.mark.parametrize("start_at", ["prior", "posterior"])
@pytest.mark.parametrize(("flag", "ends_for"), CASES)
def test_start_is_zero_where_nothing_follows_the_first_state(flag, ends_for, start_at):
    ends = ends_for in (start_at, "both")
    nothing = torch.zeros(B, C, dtype=torch.bool)
    context = dataclasses.replace(make_batch(B, C, resets=False), life_lost=nothing)
    marked = nothing.clone()
    marked[:3, -1] = True
    marked[3:, :-1] = True  # ends before the last row are over
    learner = tiny_learner(values={"imagination.start": start_at})
    alive = rollout_of(learner, dataclasses.replace(context, **{flag: marked})).alive
    assert alive.tolist() == ([0.0] * 3 if ends else [1.0] * 3) + [1.0] * 3
    assert rollout_of(tiny_learner(), context).alive.tolist() == [1.0] * B


def test_a_lost_life_starts_nothing_only_where_it_terminates():
    context = make_batch(B, C, resets=False)
    context.life_lost[:] = True
    at_prior = {"imagination.start": "prior"}
    assert not rollout_of(tiny_learner(values=at_prior), context).alive.any()
    assert rollout_of(tiny_learner(values=at_prior | {"world_model.life_loss_terminates": False}), context).alive.all()


def test_what_lies_before_a_reset_in_the_context_is_not_seen():
    learner, context = tiny_learner(), make_batch(B, C, resets=False)
    context.is_first[:, 2] = True
    altered = dataclasses.replace(context, obs=context.obs.clone(), action=(context.action + 1) % NUM_ACTIONS)
    altered.obs[:, :2] = 255 - altered.obs[:, :2]
    altered.action[:, 2:] = context.action[:, 2:]
    before, after = rollout_of(learner, context), rollout_of(learner, altered)
    torch.testing.assert_close(before.state, after.state, rtol=0, atol=1e-12)
    context.is_first[:], altered.is_first[:] = False, False
    before, after = rollout_of(learner, context), rollout_of(learner, altered)
    assert (before.state - after.state).abs().max() > 1e-6


def test_a_context_of_another_batch_size_is_refused():
    learner = tiny_learner()
    for wrong in (1, B + 1):
        with pytest.raises(ValueError, match=r"\(|fit"):
            learner.imagination(make_batch(wrong, C))
    with pytest.raises(ValueError, match=r"\(|fit"):
        learner.imagination(make_batch(B, C + 1))


def test_the_cache_is_made_once():
    learner = tiny_learner()
    key = learner.imagination.cache.key.data_ptr()
    for seed in range(2):
        rollout_of(learner, make_batch(B, C, seed=seed), seed)
    assert learner.imagination.cache.key.data_ptr() == key
    assert learner.imagination.cache.filled == C - 1 + H


def test_a_rollout_does_not_wait_for_the_device():
    learner, context = tiny_learner(), make_batch(B, C)
    with no_sync():
        learner.imagination(context)


def test_the_context_is_not_changed():
    learner, context = tiny_learner(), make_batch(B, C)
    kept = {f.name: getattr(context, f.name).clone() for f in dataclasses.fields(Batch)}
    learner.imagination(context)
    assert all(torch.equal(getattr(context, name), value) for name, value in kept.items())
