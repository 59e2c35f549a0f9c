"""The player against a memory of plain Python lists, and the collector against a scripted environment."""

import math

import numpy as np
import pytest
import torch

from stormfast.collect import Collector
from stormfast.envs.vector import VectorEnv
from stormfast.player import Player
from stormfast.records import EnvStep
from stormfast.replay import Replay
from tests.model_fixtures import NUM_ACTIONS, double_precision, no_sync, tiny_learner

N, C, S, K, D = 3, 5, 3, 5, 12
STEPS = 23


@pytest.fixture(autouse=True)
def _float64():
    with double_precision():
        yield


class ListPlayer:
    """The player as its description says it: a list of (latent, action) for each environment."""

    def __init__(self, learner):
        self.model, self.agent, self.config = learner.world_model, learner.agent, learner.config.acting
        self.memory = [[] for _ in range(N)]
        self.hidden_norms = []

    @torch.no_grad()
    def act(self, obs, is_first, is_last):
        latent_uniform, action_uniform = torch.rand(2, N, S), torch.rand(N)
        actions = []
        for n in range(N):
            if is_first[n] and self.config.reset_context:
                self.memory[n] = []
            actions.append(
                self.act_alone(
                    n,
                    torch.from_numpy(obs[n : n + 1]),
                    latent_uniform[:, n : n + 1],
                    action_uniform[n : n + 1],
                    is_last[n],
                )
            )
        return np.array(actions)

    def act_alone(self, n, obs, latent_uniform, action_uniform, is_last):
        model, agent, memory = self.model, self.agent, self.memory[n]
        latent = model.sample(model.encode(obs), latent_uniform[0])
        hidden = torch.zeros(1, D)
        if memory:
            past, action = torch.stack([m[0] for m in memory], 1), torch.tensor([[m[1] for m in memory]])
            hidden = model.sequence(past, action, None)[:, -1]
        self.hidden_norms.append(hidden.norm().item())
        seen = latent if self.config.latent == "posterior" else model.sample(model.prior(hidden), latent_uniform[1])
        log_policy = agent.log_policy(agent.state(seen, hidden))
        if self.config.latent == "prior" and not memory:
            log_policy = torch.full((1, NUM_ACTIONS), -math.log(NUM_ACTIONS))
        action = agent.sample_action(log_policy, action_uniform).item()
        if not is_last:
            self.memory[n] = [*memory, (latent, action)][-self.config.context :]
        return action


def frames(rng):
    return rng.integers(256, size=(N, 3, 64, 64), dtype=np.uint8)


def episode_flags():
    """is_first, is_last [STEPS, N]: environment 0 never ends; 1 has episodes shorter than the memory; 2 longer."""
    is_first, is_last = np.zeros((2, STEPS, N), bool)
    is_first[0] = True
    for n, length in ((1, 3), (2, 9)):
        is_last[length :: length + 1, n] = True
        is_first[length + 1 :: length + 1, n] = True
    return is_first, is_last


@pytest.mark.parametrize("latent", ["posterior", "prior"])
@pytest.mark.parametrize("reset_context", [True, False])
@pytest.mark.parametrize("context", [1, C])
def test_the_player_is_the_list_player(latent, reset_context, context):
    values = {"acting.latent": latent, "acting.reset_context": reset_context, "acting.context": context}
    learner = tiny_learner(values=values)
    ours, theirs = Player(learner.inference, learner.agent, learner.config.acting, N), ListPlayer(learner)
    rng, (is_first, is_last) = np.random.default_rng(0), episode_flags()
    for t in range(STEPS):
        obs = frames(rng)
        torch.manual_seed(t)
        got = ours.act(obs, is_first[t], is_last[t])
        torch.manual_seed(t)
        expected = theirs.act(obs, is_first[t], is_last[t])
        assert got.tolist() == expected.tolist(), f"step {t}"
        assert got.dtype == np.int64
        assert ours.length.tolist() == [len(memory) for memory in theirs.memory], f"step {t}"
        for n, memory in enumerate(theirs.memory):
            for i, (z, a) in enumerate(memory):
                assert torch.equal(ours.latent[n, i], z[0])
                assert ours.action[n, i] == a
    assert (ours.length == context).any()  # it was full, so that the oldest were dropped
    assert (
        min(theirs.hidden_norms[N:]) == 0
    ) == reset_context  # after the first step, only a reset leaves nothing to see


@torch.no_grad()
def test_hidden_is_zero_without_a_past_and_that_of_the_past_otherwise():
    learner = tiny_learner()
    player = Player(learner.inference, learner.agent, learner.config.acting, N)
    assert torch.equal(player.hidden(), torch.zeros(N, D))
    rng, nowhere = np.random.default_rng(0), np.zeros(N, bool)
    for _ in range(3):
        player.act(frames(rng), nowhere, np.array([False, True, False]))
    hidden = player.hidden()
    assert player.length.tolist() == [3, 0, 3]
    assert torch.equal(hidden[1], torch.zeros(D))
    expected = learner.world_model.sequence(player.latent[:1, :3], player.action[:1, :3], None)[0, -1]
    torch.testing.assert_close(hidden[0], expected, rtol=1e-11, atol=1e-11)


def test_without_is_last_every_step_is_remembered():
    learner = tiny_learner()
    player = Player(learner.inference, learner.agent, learner.config.acting, N)
    player.act(frames(np.random.default_rng(0)), np.ones(N, bool))
    assert player.length.tolist() == [1] * N


def test_a_prior_player_begins_at_random_and_a_posterior_player_does_not():
    """A policy that always takes action 1, asked at the first step."""
    obs, first = frames(np.random.default_rng(0)), np.ones(N, bool)
    for latent, expected in (("posterior", {1}), ("prior", set(range(NUM_ACTIONS)))):
        learner = tiny_learner(values={"acting.latent": latent})
        learner.agent.actor[-1].bias.data[1] += 100
        player = Player(learner.inference, learner.agent, learner.config.acting, N)
        actions = set()
        for _ in range(12):
            actions |= set(player.act(obs, first).tolist())
        assert actions == expected
        assert set(player.act(obs, ~first).tolist()) == {1}


@torch.no_grad()
def test_refresh_encodes_the_remembered_frames_with_the_new_weights():
    learner, rng = tiny_learner(), np.random.default_rng(0)
    model = learner.world_model
    player = Player(learner.inference, learner.agent, learner.config.acting, N)
    nowhere, seen = np.zeros(N, bool), []
    for _ in range(C + 2):  # two more than it holds
        seen.append(frames(rng))
        player.act(seen[-1], nowhere)
    before, action = player.latent.clone(), player.action.clone()
    for parameter in model.encoder.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    learner.inference.refresh()  # as a world-model update does
    torch.manual_seed(5)
    player.refresh()
    torch.manual_seed(5)
    remembered = torch.from_numpy(np.stack(seen[-C:], 1))
    expected = model.sample(model.encode(remembered), torch.rand(N, C, model.config.categoricals))
    assert torch.equal(player.latent, expected)
    assert not torch.equal(player.latent, before)
    assert torch.equal(player.action, action)


def test_state_brings_a_player_back():
    learner, rng = tiny_learner(), np.random.default_rng(0)
    first = np.ones(N, bool)
    player, other = (Player(learner.inference, learner.agent, learner.config.acting, N) for _ in range(2))
    for t in range(4):
        player.act(frames(rng), first & (t == 0))
    state = player.state()
    kept = {name: value.clone() for name, value in state.items()}
    other.load_state(state)
    rest = [frames(rng) for _ in range(6)]
    actions = []
    for p in (player, other):
        torch.manual_seed(3)
        actions.append([p.act(obs, first & (t == 2)).tolist() for t, obs in enumerate(rest)])
    assert actions[0] == actions[1]
    assert all(
        torch.equal(state[name], kept[name]) for name in kept
    )  # a state that was taken does not change with the player


def test_acting_waits_for_the_device_only_to_hand_over_the_actions():
    learner = tiny_learner()
    player = Player(learner.inference, learner.agent, learner.config.acting, N)
    with no_sync():
        player.act(frames(np.random.default_rng(0)), np.ones(N, bool), np.zeros(N, bool))


# --- collector ---------------------------------------------------------------------------------------------------


class ScriptedEnv(VectorEnv):
    """Environment n plays episodes of lengths[n] steps; step k of it pays k + n / 10, and every second step costs a
    life.

    Odd episodes of environment 1 are cut by the time limit. Pixel (0, 0, 0) is the step, pixel (1, 0, 0) the episode.
    """

    def __init__(self, lengths):
        super().__init__(len(lengths), NUM_ACTIONS, "scripted")
        self.lengths, self.actions = np.array(lengths), []

    def _reset(self):
        self.at, self.episode = np.zeros((2, self.num_envs), int)
        return self._made(np.ones(self.num_envs, bool))

    def _step(self, action):
        self.actions.append(action.copy())
        first = self.at == self.lengths
        self.episode = self.episode + first
        self.at = np.where(first, 0, self.at + 1)
        return self._made(first)

    def _made(self, first):
        obs = np.zeros((self.num_envs, 3, 64, 64), np.uint8)
        obs[:, 0, 0, 0], obs[:, 1, 0, 0] = self.at, self.episode
        reward = np.where(first, 0, self.at + np.arange(self.num_envs) / 10).astype(np.float32)
        over = self.at == self.lengths
        cut = over & (np.arange(self.num_envs) == 1) & (self.episode % 2 == 1)
        return EnvStep(obs, reward, over & ~cut, cut, life_lost=~first & (self.at % 2 == 0), is_first=first)

    def _close(self):
        pass


class EchoPlayer:
    """Acts by the pixel it sees; keeps what it was shown."""

    def __init__(self):
        self.shown = []

    def act(self, obs, is_first, is_last=None):
        self.shown.append((obs[:, 0, 0, 0].copy(), is_first.copy(), is_last.copy()))
        return (obs[:, 0, 0, 0].astype(np.int64) + 1) % NUM_ACTIONS


LENGTHS = [4, 2]


def collect(steps, *, at_random=False, count_last_reward=True):
    env, player = ScriptedEnv(LENGTHS), EchoPlayer()
    collector = Collector(env, player, np.random.default_rng(0), count_last_reward=count_last_reward)
    rows = [collector.step(collector.act(at_random=at_random)) for _ in range(steps)]
    return rows, collector, env, player


def test_rows_are_the_script():
    rows, *_ = collect(11)
    for n, length in enumerate(LENGTHS):
        for k, row in enumerate(rows):
            at, episode = k % (length + 1), k // (length + 1)
            last, brings_end = at == length, at == length - 1
            cut = n == 1 and episode % 2 == 1
            assert row.obs[n, 0, 0, 0] == at
            assert row.obs[n, 1, 0, 0] == episode
            assert row.is_first[n] == (at == 0)
            assert row.is_last[n] == last
            assert row.action[n] == (0 if last else (at + 1) % NUM_ACTIONS)
            assert row.reward[n] == np.float32(0 if last else at + 1 + n / 10)  # of the action taken at this row
            assert row.terminated[n] == (brings_end and not cut)
            assert row.truncated[n] == (brings_end and cut)
            assert row.life_lost[n] == (not last and (at + 1) % 2 == 0)


def test_rows_are_what_replay_takes():
    rows, *_ = collect(11)
    replay = Replay(40, 2, torch.device("cpu"))
    for row in rows:
        replay.append(row)  # checks dtypes and shapes
    assert len(replay) == 22


def test_the_player_sees_the_frames_and_where_episodes_begin_and_end():
    rows, _, env, player = collect(11)
    for k, (pixel, is_first, is_last) in enumerate(player.shown):
        assert pixel.tolist() == rows[k].obs[:, 0, 0, 0].tolist()
        assert is_first.tolist() == rows[k].is_first.tolist()
        assert is_last.tolist() == rows[k].is_last.tolist()
        taken = ~is_last
        assert env.actions[k][taken].tolist() == rows[k].action[taken].tolist()


def test_steps_taken_leave_out_resets():
    _, collector, *_ = collect(0)
    steps = []
    for _ in range(15):
        steps.append(collector.num_acting)
        row = collector.step(collector.act(at_random=False))
        assert steps[-1] == (~row.is_last).sum()
    assert steps[:6] == [2, 2, 1, 2, 1, 1]
    assert sum(steps) == 15 * 4 // 5 + 15 * 2 // 3


@pytest.mark.parametrize("count_last_reward", [True, False])
def test_returns_of_finished_episodes(count_last_reward):
    _, collector, *_ = collect(10, count_last_reward=count_last_reward)
    steps = [sum(range(1, length + count_last_reward)) for length in LENGTHS]
    returns = [steps[0], steps[1] + (length_of(1, count_last_reward)) / 10]
    finished = collector.take_finished()
    assert [length for _, length in finished] == [2, 4, 2, 2, 4]  # in the order they ended: steps 2, 4, 5, 8, 9
    assert [r for r, length in finished if length == 4] == pytest.approx([returns[0]] * 2)
    assert [r for r, length in finished if length == 2] == pytest.approx([returns[1]] * 3)
    assert collector.take_finished() == []


def length_of(n, count_last_reward):
    return LENGTHS[n] - (not count_last_reward)


def test_an_unfinished_episode_goes_on_counting():
    _, collector, *_ = collect(3)
    assert collector.game_return.tolist() == [6, 0]
    assert collector.length.tolist() == [3, 0]
    collector.step(collector.act(at_random=False))
    assert collector.take_finished()[1] == (10.0, 4)


def test_random_steps_do_not_ask_the_player():
    rows, _, env, player = collect(200, at_random=True)
    assert player.shown == []
    taken = np.concatenate(env.actions)
    assert np.bincount(taken, minlength=NUM_ACTIONS).min() > 400 / NUM_ACTIONS * 0.7
    again, *_ = collect(200, at_random=True)
    assert all((a.action == b.action).all() for a, b in zip(rows, again, strict=True))  # the generator decides
    assert all(row.action.dtype == np.int64 for row in rows)


def test_a_real_player_collects():
    learner = tiny_learner()
    env = ScriptedEnv(LENGTHS)
    collector = Collector(
        env, Player(learner.inference, learner.agent, learner.config.acting, 2), np.random.default_rng(0)
    )
    for _ in range(3):
        collector.step(collector.act(at_random=False))
    assert collector.player.length.tolist() == [3, 2]  # the last observation of environment 1 is not remembered
    collector.step(collector.act(at_random=False))
    assert collector.player.length.tolist() == [4, 1]
