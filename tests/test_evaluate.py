"""Episodes are counted fairly and scored right, and the command leaves its result beside the run."""

import json
from collections import Counter

import cv2
import numpy as np
import pytest
import torch

from stormfast.config import EvaluateConfig, preset_config
from stormfast.envs.vector import VectorEnv
from stormfast.errors import UserError
from stormfast.evaluate import RandomPolicy, Recorder, evaluate, play_episodes, summarise
from stormfast.learner import build_models
from stormfast.records import EnvStep
from stormfast.replay import Replay
from stormfast.runs.checkpoint import save_checkpoint
from stormfast.runs.directory import create
from stormfast.runs.run import env_seed
from stormfast.schema import override


class ScriptedEnv(VectorEnv):
    """Environment n plays episodes of lengths[n] steps; a step gives 1, the last one 100 + the number of the episode."""

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
    summary = summarise("Pong", np.array([-21.0, -20.0, -18.0, 3.0]), seed=0)
    assert summary["mean"] == -14.0
    assert summary["median"] == -19.0
    assert (summary["min"], summary["max"]) == (-21.0, 3.0)
    assert summary["std"] == pytest.approx((390 / 3) ** 0.5)  # 49 + 36 + 16 + 289
    assert summary["standard_error"] == pytest.approx((390 / 3) ** 0.5 / 2)
    assert summary["human_normalised"] == pytest.approx((-14 + 20.7) / 35.3)
    low, high = summary["mean_interval_95"]
    assert -21 <= low < -14 < high <= 3
    assert summary["human_normalised_interval_95"] == pytest.approx([(low + 20.7) / 35.3, (high + 20.7) / 35.3])


def test_the_interval_is_that_of_the_normal_mean():
    returns = np.random.default_rng(1).normal(5, 2, size=400)
    low, high = summarise("Catch", returns, seed=2)["mean_interval_95"]
    half = 1.96 * returns.std() / 20
    assert (low, high) == pytest.approx((returns.mean() - half, returns.mean() + half), abs=0.05 * half)


def test_the_interval_is_reproducible():
    returns = np.random.default_rng(1).normal(size=33)
    assert summarise("Catch", returns, seed=2) == summarise("Catch", returns, seed=2)
    assert summarise("Catch", returns, seed=2) != summarise("Catch", returns, seed=3)


def test_a_single_episode_of_a_game_without_scores():
    summary = summarise("Catch", np.array([2.0]), seed=0)
    assert (
        summary["std"]
        is summary["standard_error"]
        is summary["human_normalised"]
        is summary["human_normalised_interval_95"]
        is None
    )
    assert summary["mean_interval_95"] == [2.0, 2.0]


# --- the command -------------------------------------------------------------------------------------------------


def make_run(path, *, checkpoint=True, **fields):
    config = override(
        preset_config("tiny", "standard"), {"game": "Catch", "run_dir": str(path), "num_envs": 2} | fields
    )
    create(config)
    if checkpoint:
        torch.manual_seed(0)
        world_model, agent = build_models(config, 3, torch.device("cpu"))
        tensors = {
            f"{name}.{key}": value
            for name, module in (("world_model", world_model), ("agent", agent))
            for key, value in module.state_dict().items()
        }
        replay = Replay(100, num_streams=2, device=torch.device("cpu"))
        save_checkpoint(path, 123, tensors, {}, replay)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "R")


def test_the_command_scores_a_run(run, tmp_path, capsys):
    config = EvaluateConfig(
        run=str(run), episodes=5, num_envs=3, seed=1, device="cpu", video=str(tmp_path / "episode.mp4")
    )
    assert evaluate(config) == 0
    result = json.loads((run / "evaluation-123.json").read_text())
    assert result["step"] == 123
    assert result["episode_lengths"] == [39] * 5  # five balls of seven steps, and the four serves between
    assert result["return"]["mean"] == pytest.approx(np.mean(result["episode_returns"]))
    assert all(abs(value) <= 5 for value in result["episode_returns"])
    assert result["settings"]["episodes"] == 5
    assert result["settings"]["num_envs"] == 3
    assert result["settings"]["seed"] == 1
    assert result["settings"]["device"] == "cpu"
    video = cv2.VideoCapture(str(tmp_path / "episode.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 40
    out = capsys.readouterr().out
    assert "Catch: agent at step 123, 5 episodes" in out
    assert "mean return" in out


def test_the_same_command_gives_the_same_result(run):
    config, results = EvaluateConfig(run=str(run), episodes=4, num_envs=2, device="cpu"), []
    for _ in range(2):
        evaluate(config)
        results.append((run / "evaluation-123.json").read_text())
    assert results[0] == results[1]


def test_environments_are_not_those_of_training(run):
    evaluate(EvaluateConfig(run=str(run), episodes=1, seed=0, device="cpu", policy="random"))
    settings = json.loads((run / "evaluation-random.json").read_text())["settings"]
    assert abs(settings["env_seed"] - env_seed(0, None)) > 1024  # the run trained with that seed and the next
    assert settings["num_envs"] == 1  # never more than episodes


@pytest.mark.parametrize(("rule", "episodes"), [("each_env", 100), ("first_finished", 20)])
def test_how_many_episodes_unless_told(tmp_path, rule, episodes):
    run = make_run(tmp_path / "R", checkpoint=False, **{"evaluation.episodes_from": rule})
    evaluate(EvaluateConfig(run=str(run), device="cpu", policy="random"))
    result = json.loads((run / "evaluation-random.json").read_text())
    assert len(result["episode_returns"]) == result["settings"]["episodes"] == episodes
    assert result["settings"]["num_envs"] == 5


def test_the_random_policy_needs_no_checkpoint(tmp_path, capsys):
    run = make_run(tmp_path / "R", checkpoint=False)
    evaluate(EvaluateConfig(run=str(run), episodes=3, device="cpu", policy="random"))
    result = json.loads((run / "evaluation-random.json").read_text())
    assert result["step"] is None
    assert result["policy"] == "random"
    assert "random policy, 3 episodes" in capsys.readouterr().out
    with pytest.raises(UserError):
        evaluate(EvaluateConfig(run=str(run), episodes=3, device="cpu"))


def test_a_checkpoint_that_does_not_fit_its_config_is_told_in_one_line(tmp_path):
    run = make_run(tmp_path / "R")
    config = json.loads((run / "config.json").read_text())
    config["agent"]["width"] = 48
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"must fit its config\.json, but agent: ") as error:
        evaluate(EvaluateConfig(run=str(run), episodes=1, device="cpu"))
    assert "\n" not in str(error.value)


def test_a_video_that_cannot_be_written_is_told_before_playing(run, monkeypatch):
    monkeypatch.setattr("stormfast.evaluate.play_episodes", lambda *args, **kwargs: pytest.fail("played"))
    with pytest.raises(UserError, match="does not"):
        evaluate(EvaluateConfig(run=str(run), episodes=1, device="cpu", video=str(run / "nowhere" / "a.mp4")))


def test_the_reference_protocol_counts_as_the_original_does(tmp_path):
    fields = {"evaluation.episodes_from": "first_finished", "evaluation.count_last_reward": False}
    run = make_run(tmp_path / "R", checkpoint=False, **fields)
    evaluate(EvaluateConfig(run=str(run), episodes=3, num_envs=2, device="cpu", policy="random"))
    result = json.loads((run / "evaluation-random.json").read_text())
    assert all(abs(value) <= 4 for value in result["episode_returns"])  # the last of five balls is not counted
    assert result["rules"]["count_last_reward"] is False
