"""Episodes are counted fairly, and returns are scored right."""

import json
from collections import Counter

import numpy as np
import pytest

from stormfast.envs.vector import VectorEnv
from stormfast.records import EnvStep
from stormfast.scoring import RandomPolicy, Recorder, play_episodes, score


class ScriptedEnv(VectorEnv):
    """Environment n plays episodes of lengths[n] steps; a step gives 1, the last one 100 + the episode's number."""

    def __init__(self, lengths, truncate=False):
        super().__init__(len(lengths), 3, "scripted")
        self.lengths, self.truncate = np.array(lengths), truncate

    def _reset(self):
        self.at, self.episode = np.zeros(self.num_envs, int), np.zeros(self.num_envs, int)
        return self._made(np.ones(self.num_envs, bool), np.zeros(self.num_envs, bool))

    def _step(self, action):
        first = self.at == self.lengths
        self.episode += first
        self.at = np.where(first, 0, self.at + 1)
        return self._made(first, self.at == self.lengths)

    def _made(self, first, done):
        obs = np.zeros((self.num_envs, 3, 64, 64), np.uint8)
        obs[:, 0, 0, 0], obs[:, 1, 0, 0] = self.at, self.episode
        reward = np.where(first, 0, np.where(done, 100 + self.episode, 1)).astype(np.float32)
        nothing = np.zeros(self.num_envs, bool)
        ended = (nothing, done) if self.truncate else (done, nothing)
        return EnvStep(obs, reward, *ended, life_lost=nothing, is_first=first)

    def _close(self):
        pass


class Script:
    """Always action 1; keeps what it was shown."""

    def __init__(self):
        self.seen = []

    def act(self, obs, is_first, is_last):
        self.seen.append((obs[:, 0, 0, 0].copy(), is_first.copy(), is_last.copy()))
        return np.ones(len(obs), np.int64)


def test_each_env_plays_its_share_however_short_its_episodes():
    episodes = play_episodes(ScriptedEnv([2, 50, 7]), Script(), 8)
    assert Counter(e.env for e in episodes) == {0: 3, 1: 3, 2: 2}
    assert all(e.length == [2, 50, 7][e.env] for e in episodes)
    per_env = [[e.game_return for e in episodes if e.env == n] for n in range(3)]
    assert per_env == [[101, 102, 103], [149, 150, 151], [106, 107]]  # steps before the last, then 100 + number
    assert not any(e.truncated for e in episodes)


def test_the_first_to_finish_favours_short_episodes():
    episodes = play_episodes(ScriptedEnv([2, 50, 7]), Script(), 8, rule="first_finished", count_last_reward=False)
    assert [(e.env, e.length) for e in episodes] == [(0, 2), (0, 2), (2, 7), (0, 2), (0, 2), (0, 2), (2, 7), (0, 2)]
    assert [e.game_return for e in episodes] == [e.length - 1 for e in episodes]


def test_more_finish_at_once_than_are_wanted():
    episodes = play_episodes(ScriptedEnv([4, 4, 4]), Script(), 2, rule="first_finished")
    assert [e.env for e in episodes] == [0, 1]


def test_fewer_episodes_than_environments():
    assert [e.env for e in play_episodes(ScriptedEnv([3, 3, 3]), Script(), 2)] == [0, 1]


def test_truncated_episodes_are_told():
    assert all(e.truncated for e in play_episodes(ScriptedEnv([3, 4], truncate=True), Script(), 4))


def test_the_policy_is_told_where_episodes_begin_and_end():
    script = Script()
    play_episodes(ScriptedEnv([2]), script, 2)
    at, first, last = (np.concatenate(x).tolist() for x in zip(*script.seen, strict=True))
    assert at == [0, 1, 2, 0, 1]
    assert first == [True, False, False, True, False]
    assert last == [False, False, True, False, False]


def test_on_finish_sees_the_episodes_grow():
    seen = []
    play_episodes(ScriptedEnv([2, 3]), Script(), 5, on_finish=lambda done: seen.append(len(done)))
    assert seen == [1, 2, 3, 4, 5]


def test_the_recorder_keeps_the_first_episode_of_environment_0():
    recorder = Recorder(Script())
    play_episodes(ScriptedEnv([4, 9]), recorder, 6)
    video = recorder.video()
    assert video.shape == (5, 64, 64, 3)  # four steps, five frames
    assert video[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert not video[:, 0, 0, 1].any()


def test_the_recorder_keeps_an_episode_that_ends_the_evaluation():
    recorder = Recorder(Script())
    play_episodes(ScriptedEnv([4]), recorder, 1)
    assert recorder.video()[:, 0, 0, 0].tolist() == [0, 1, 2, 3]  # the last observation asks for no action


def test_the_random_policy_is_uniform_and_seeded():
    obs = np.zeros((1000, 3, 64, 64), np.uint8)
    nothing = np.zeros(1000, bool)
    first, second = (RandomPolicy(5, np.random.default_rng(3)).act(obs, nothing, nothing) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.bincount(first, minlength=5).min() > 150
    assert set(first) == set(range(5))


def test_summary_of_known_numbers():
    summary = score("Pong", np.array([-21.0, -20.0, -18.0, 3.0]), seed=0)
    assert summary.mean == -14.0
    assert summary.median == -19.0
    assert (summary.min, summary.max) == (-21.0, 3.0)
    assert summary.std == pytest.approx((390 / 3) ** 0.5)  # 49 + 36 + 16 + 289
    assert summary.standard_error == pytest.approx((390 / 3) ** 0.5 / 2)
    assert summary.human_normalised == pytest.approx((-14 + 20.7) / 35.3)
    low, high = summary.mean_interval_95
    assert -21 <= low < -14 < high <= 3
    assert summary.human_normalised_interval_95 == pytest.approx(((low + 20.7) / 35.3, (high + 20.7) / 35.3))


def test_the_interval_is_that_of_the_normal_mean():
    returns = np.random.default_rng(1).normal(5, 2, size=400)
    low, high = score("Catch", returns, seed=2).mean_interval_95
    half = 1.96 * returns.std() / 20
    assert (low, high) == pytest.approx((returns.mean() - half, returns.mean() + half), abs=0.05 * half)


def test_the_interval_is_reproducible():
    returns = np.random.default_rng(1).normal(size=33)
    assert score("Catch", returns, seed=2) == score("Catch", returns, seed=2)
    assert score("Catch", returns, seed=2) != score("Catch", returns, seed=3)


def test_a_single_episode_of_a_game_without_scores():
    summary = score("Catch", np.array([2.0]), seed=0)
    assert (
        summary.std
        is summary.standard_error
        is summary.human_normalised
        is summary.human_normalised_interval_95
        is None
    )
    assert summary.mean_interval_95 == (2.0, 2.0)


def test_the_statistics_are_what_json_can_hold():
    statistics = score("Pong", [-21.0, 3.0]).statistics()
    assert json.loads(json.dumps(statistics)) == statistics
    assert "returns" not in statistics
