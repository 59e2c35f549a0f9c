"""Dreams against imagination, and against a plain list of each dream's past.

N dreams   C context steps   H horizon   L steps remembered   S categoricals   K classes   D width
"""

import dataclasses

import numpy as np
import pytest
import torch

from stormfast.dream_env import DreamEnv, open_loop
from stormfast.player import Player
from stormfast.scoring import RandomPolicy, play_episodes
from tests.model_fixtures import NUM_ACTIONS, double_precision, make_batch, tiny_learner

N, C, L, S, K, D = 6, 4, 7, 3, 5, 12


@pytest.fixture(autouse=True)
def _float64():
    with double_precision():
        yield


class Contexts:
    """Other windows at each call, without an end of an episode; keeps the last frames it gave."""

    def __init__(self):
        self.count, self.last_frames = 0, np.zeros(0)

    def __call__(self, num):
        self.count += 1
        context = make_batch(num, C, resets=False, seed=self.count)
        self.last_frames = context.obs[:, -1].numpy()
        return context


def model_that_ends(chance=0.0, values=None):
    """A tiny model whose dreams end with this chance at every step, whatever they hold."""
    model = tiny_learner(values=values).world_model
    last = model.termination[-1]
    last.weight.data.zero_()
    last.bias.data.fill_(torch.tensor(chance).logit(1e-30).item())
    return model


def make_env(num_envs=N, *, chance=0.0, **options):
    return DreamEnv(model_that_ends(chance), Contexts(), num_envs, **options)


def actions(count, num=N, seed=0):
    return np.random.default_rng(seed).integers(NUM_ACTIONS, size=(count, num))


def give_uniform(monkeypatch, *numbers):
    """torch.rand gives these, in their order."""
    left = list(numbers)
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: left.pop(0))
    return left


# --- what the model sees ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["fused", "separate"])
def test_a_dream_is_what_imagination_imagines(tokens, monkeypatch):
    """The same draws and actions, over more steps than the context has: the K/V cache and the whole window agree."""
    horizon = 7
    values = {"imagination.horizon": horizon, "world_model.batch_length": C + horizon, "world_model.tokens": tokens}
    learner, context = tiny_learner(values=values), make_batch(N, C, resets=False)
    torch.manual_seed(7)
    rollout = learner.imagination(context)
    torch.manual_seed(7)
    latent_uniform, _ = torch.rand(C + horizon + 1, N, S), torch.rand(horizon, N)
    env = DreamEnv(learner.world_model, lambda num: context, N)
    left = give_uniform(monkeypatch, latent_uniform[:C].transpose(0, 1), *latent_uniform[C + 1 :])
    env.reset()
    close = {"rtol": 1e-10, "atol": 1e-10}
    for t in range(horizon + 1):
        torch.testing.assert_close(torch.cat([env.latent, env.hidden], -1), rollout.state[:, t], **close)
        if t < horizon:
            _, reward, continuation = env.imagine(rollout.action[:, t])
            torch.testing.assert_close(reward, rollout.reward[:, t], **close)
            torch.testing.assert_close(continuation, rollout.continuation[:, t], **close)
    assert left == []
    assert len({tuple(row.tolist()) for row in rollout.action.T}) > 1


@torch.no_grad()
def test_the_hidden_state_is_that_of_the_last_steps_however_long_the_dream():
    env = make_env()
    model = env.world_model
    env.reset()
    past = [(env.latents[:, t].clone(), env.actions[:, t].clone()) for t in range(C - 1)]
    for action in actions(3 * L):
        past.append((env.latent.clone(), torch.from_numpy(action)))
        env.step(action)
        latent, taken = (torch.stack(part, 1) for part in zip(*past[-L:], strict=True))
        expected = model.sequence(latent, taken, None)[:, -1]
        torch.testing.assert_close(env.hidden, expected, rtol=1e-10, atol=1e-10)
    assert len(past) > 2 * L


@torch.no_grad()
def test_what_lies_before_a_reset_in_the_context_is_forgotten():
    env, context = make_env(), make_batch(N, C, resets=False)
    context.is_first[: N // 2, 2] = True
    altered = dataclasses.replace(context, obs=context.obs.clone(), action=context.action.clone())
    altered.obs[:, :2], altered.action[:, :2] = 255 - altered.obs[:, :2], (altered.action[:, :2] + 1) % NUM_ACTIONS
    hidden = []
    for window in (context, altered):
        env.generator.manual_seed(0)
        env.reset(window)
        hidden.append(env.hidden)
    assert env.length.tolist() == [C - 3] * (N // 2) + [C - 1] * (N - N // 2)
    assert torch.equal(hidden[0][: N // 2], hidden[1][: N // 2])
    assert (hidden[0] - hidden[1])[N // 2 :].abs().amax(1).gt(1e-6).all()


def test_a_context_that_ends_in_a_first_frame_leaves_no_past():
    env, context = make_env(), make_batch(N, C, resets=False)
    context.is_first[:, -1] = True
    env.reset(context)
    assert env.length.tolist() == [0] * N
    assert not env.hidden.any()


def test_a_model_that_does_not_separate_episodes_sees_across_a_reset():
    model = model_that_ends(values={"world_model.separate_episodes": False})
    context = make_batch(N, C, resets=False)
    context.is_first[:, 2] = True
    env = DreamEnv(model, lambda num: context, N)
    env.reset()
    assert env.length.tolist() == [C - 1] * N


# --- episodes -----------------------------------------------------------------------------------------------------


def test_steps_are_those_of_an_environment():
    env = make_env()
    now = env.reset()
    assert now.is_first.all()
    assert np.array_equal(now.obs, env.contexts.last_frames)  # a dream begins with a real frame
    assert env.continuation.tolist() == [1] * N
    for action in actions(5):
        now = env.step(action)
        assert now.obs.shape == (N, 3, 64, 64)
        assert now.obs.dtype == np.uint8
        assert len(np.unique(now.obs)) > 10  # frames in 0 .. 255, not in 0 .. 1
        assert now.reward.dtype == np.float32
        assert np.abs(now.reward).max() > 0
        assert not (now.is_first | now.terminated | now.truncated | now.life_lost).any()


def test_a_dream_that_ends_starts_anew_while_others_go_on():
    env = make_env(chance=0.3)
    now, ends = env.reset(), np.zeros(N, int)
    for action in actions(40):
        over, before = now.terminated | now.truncated, env.length.clone()
        now = env.step(action)
        assert now.is_first.tolist() == over.tolist()
        grown = (before + 1).clamp(max=L)
        assert env.length.tolist() == torch.where(torch.from_numpy(over), C - 1, grown).tolist()
        for n in np.flatnonzero(over):
            assert np.array_equal(now.obs[n], env.contexts.last_frames[n])
            assert now.reward[n] == 0
            assert not now.terminated[n]
            assert env.continuation[n] == 1
        ends += now.terminated
    assert ends.min() > 0
    assert len(set(ends.tolist())) > 1  # they do not end together


def test_a_dream_ends_as_often_as_the_model_says():
    env = make_env(12, chance=0.25)
    now, ended, lived = env.reset(), 0, 0
    for action in actions(45, 12):
        now = env.step(action)
        ended += now.terminated.sum()
        lived += (~now.is_first).sum()
    assert lived > 400
    assert ended / lived == pytest.approx(0.25, abs=0.085)  # four standard errors


def test_the_horizon_truncates():
    env = make_env(2, horizon=3)
    env.reset()
    steps = [env.step(action) for action in actions(12, 2)]
    assert [step.truncated.tolist() for step in steps] == [[t % 4 == 2] * 2 for t in range(12)]
    assert [step.is_first.tolist() for step in steps] == [[t % 4 == 3] * 2 for t in range(12)]
    assert not any(step.terminated.any() for step in steps)


def test_an_end_at_the_horizon_is_terminated_and_not_truncated():
    env = make_env(chance=1.0, horizon=1)
    env.reset()
    step = env.step(actions(1)[0])
    assert step.terminated.all()
    assert not step.truncated.any()


def test_a_reset_starts_every_dream_anew():
    env = make_env(horizon=5)
    env.reset()
    for action in actions(4):
        env.step(action)
    assert env.reset().is_first.all()
    assert not any(env.step(action).truncated.any() for action in actions(4))
    assert env.step(actions(1)[0]).truncated.all()


def test_the_seed_decides():
    def play(seed):
        env = make_env(chance=0.2, seed=seed)
        steps = [env.reset(), *(env.step(action) for action in actions(12))]
        return np.concatenate([np.stack([step.reward, step.terminated, step.is_first]) for step in steps])

    torch.manual_seed(1)
    first = play(3)
    torch.manual_seed(2)  # the dreams' generator is their own
    assert np.array_equal(first, play(3))
    assert not np.array_equal(first, play(4))


def test_episodes_are_played_in_dreams():
    env = make_env(3, horizon=4)
    episodes = play_episodes(env, RandomPolicy(env.num_actions, np.random.default_rng(0)), 6)
    assert [episode.length for episode in episodes] == [4] * 6
    assert all(episode.truncated for episode in episodes)
    assert len({episode.game_return for episode in episodes}) == 6


def test_a_player_plays_dreams():
    learner = tiny_learner()
    env = DreamEnv(learner.world_model, Contexts(), 2, horizon=6)
    player = Player(learner.inference, learner.agent, learner.config.acting, 2)
    assert len(play_episodes(env, player, 4)) == 4


# --- refusals -----------------------------------------------------------------------------------------------------


def test_a_model_without_a_decoder_is_refused():
    model = tiny_learner(values={"world_model.loss.reconstruction": 0.0}).world_model
    with pytest.raises(ValueError, match="decoder"):
        DreamEnv(model, Contexts(), N)


@pytest.mark.parametrize("horizon", [0, -1])
def test_a_horizon_below_one_is_refused(horizon):
    with pytest.raises(ValueError, match="horizon"):
        make_env(horizon=horizon)


def test_a_step_must_follow_a_reset_and_be_an_action_each():
    env, good = make_env(), actions(1)[0]
    with pytest.raises(ValueError, match="reset"):
        env.step(good)
    env.reset()
    for wrong in (good[:-1], good.astype(float), good + NUM_ACTIONS, good - NUM_ACTIONS, good.tolist()):
        with pytest.raises(ValueError, match="action must"):
            env.step(wrong)
    env.close()
    with pytest.raises(ValueError, match="closed"):
        env.step(good)


@pytest.mark.parametrize("num", [1, N + 1])
def test_a_context_for_another_number_of_dreams_is_refused(num):
    with pytest.raises(ValueError, match=f"each of {N} dreams, got {num}"):
        make_env().reset(make_batch(num, C))


# --- open loop ----------------------------------------------------------------------------------------------------

H = 5


def test_open_loop_lays_imagination_beside_what_was_real():
    window = make_batch(N, C + H, resets=True, seed=3)
    dream = open_loop(model_that_ends(0.2), window, C)
    kinds = {f.name: (getattr(dream, f.name).shape, getattr(dream, f.name).dtype) for f in dataclasses.fields(dream)}
    frames, numbers = ((N, H + 1, 3, 64, 64), np.uint8), ((N, H), np.float32)
    assert kinds == {
        "context": ((N, C, 3, 64, 64), np.uint8),
        "real": frames,
        "imagined": frames,
        "action": ((N, H), np.int64),
        "real_reward": numbers,
        "reward": numbers,
        "real_end": ((N, H), np.bool_),
        "continuation": numbers,
        "acted": ((N, H), np.bool_),
        "same_episode": ((N, H), np.bool_),
    }
    assert np.array_equal(dream.context, window.obs[:, :C])
    for n in range(N):
        begins = [bool(window.is_first[n, t]) for t in range(C, C + H)]
        assert dream.same_episode[n].tolist() == [not any(begins[: t + 1]) for t in range(H)]
        last = [bool(window.is_last[n, t]) for t in range(C - 1, C + H - 1)]
        assert dream.acted[n].tolist() == [not any(begins[:t]) and not last[t] for t in range(H)]
    assert not dream.same_episode.all()
    assert np.array_equal(dream.real, window.obs[:, C - 1 :])
    assert np.array_equal(dream.imagined[:, 0], dream.real[:, 0])
    assert not np.array_equal(dream.imagined[:, 1], dream.real[:, 1])
    done = slice(C - 1, C + H - 1)
    assert np.array_equal(dream.action, window.action[:, done])
    assert np.array_equal(dream.real_reward, window.reward[:, done].float())
    assert dream.continuation == pytest.approx(0.8)


@pytest.mark.parametrize("life_loss_terminates", [True, False])
def test_a_real_end_is_what_the_model_learns_to_predict(life_loss_terminates):
    model, window = tiny_learner().world_model, make_batch(N, C + H, resets=False)
    model.config = dataclasses.replace(model.config, life_loss_terminates=life_loss_terminates)
    for flags in (window.life_lost, window.terminated):
        flags.zero_()
    window.life_lost[0, C] = window.terminated[1, C + 2] = True
    expected = np.zeros((N, H), np.bool_)
    expected[0, 1], expected[1, 3] = life_loss_terminates, True
    assert np.array_equal(open_loop(model, window, C).real_end, expected)


def test_open_loop_takes_the_actions_of_the_window():
    """A later action changes nothing before it, and the prediction that follows it."""
    model, window, at = tiny_learner().world_model, make_batch(N, C + H, resets=False), 2
    altered = dataclasses.replace(window, action=window.action.clone())
    altered.action[:, C - 1 + at] = (altered.action[:, C - 1 + at] + 1) % NUM_ACTIONS
    first, second = (open_loop(model, batch, C) for batch in (window, altered))
    assert np.array_equal(first.imagined[:, : at + 1], second.imagined[:, : at + 1])
    assert np.array_equal(first.reward[:, :at], second.reward[:, :at])
    assert (first.reward[:, at] != second.reward[:, at]).all()
    assert not np.array_equal(first.imagined[:, at + 1 :], second.imagined[:, at + 1 :])


def test_open_loop_sees_no_frame_after_the_context():
    model, window = tiny_learner().world_model, make_batch(N, C + H, resets=False)
    altered = dataclasses.replace(window, obs=window.obs.clone())
    altered.obs[:, C:] = 255 - altered.obs[:, C:]
    first, second = (open_loop(model, batch, C) for batch in (window, altered))
    assert np.array_equal(first.imagined, second.imagined)
    altered.obs[:, :C] = 255 - altered.obs[:, :C]
    assert not np.array_equal(first.imagined[:, 1:], open_loop(model, altered, C).imagined[:, 1:])


def test_the_seed_decides_an_open_loop():
    model, window = tiny_learner().world_model, make_batch(N, C + H, resets=False)
    first, again, other = (open_loop(model, window, C, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.imagined, again.imagined)
    assert not np.array_equal(first.imagined, other.imagined)


@pytest.mark.parametrize("context", [-1, 0, C + H, C + H + 1])
def test_a_context_that_leaves_nothing_to_imagine_is_refused(context):
    with pytest.raises(ValueError, match=rf"window of {C + H} steps, got {context}"):
        open_loop(tiny_learner().world_model, make_batch(N, C + H), context)
