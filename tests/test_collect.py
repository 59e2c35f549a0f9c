"""The collector against a scripted environment."""

import numpy as np
import pytest
import torch

from stormfast.collect import Collector
from stormfast.envs.vector import VectorEnv
from stormfast.player import Player
from stormfast.records import EnvStep
from stormfast.replay import Replay
from tests.model_fixtures import NUM_ACTIONS, tiny_learner


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
