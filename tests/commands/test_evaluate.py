"""The command scores a run by its own rules and leaves the result beside it."""

import json

import av
import numpy as np
import pytest
import torch

from stormfast.commands.evaluate import Config, check
from stormfast.commands.evaluate import run as run_command
from stormfast.errors import UserError
from stormfast.learner import build_models
from stormfast.presets import preset_config
from stormfast.replay import Replay
from stormfast.runs.checkpoint import save_checkpoint
from stormfast.runs.run import env_seed
from stormfast.schema import override
from tests.model_fixtures import create


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
        save_checkpoint(path, 123, tensors, {"num_actions": 3}, replay)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "R")


def test_the_command_scores_a_run(run, tmp_path, capsys):
    config = Config(run=str(run), episodes=5, num_envs=3, seed=1, device="cpu", video=str(tmp_path / "episode.mp4"))
    assert run_command(config) == 0
    result = json.loads((run / "evaluation-123.json").read_text())
    assert result["step"] == 123
    assert result["episode_lengths"] == [39] * 5  # five balls of seven steps, and the four serves between
    assert result["return"]["mean"] == pytest.approx(np.mean(result["episode_returns"]))
    assert all(abs(value) <= 5 for value in result["episode_returns"])
    assert result["settings"]["episodes"] == 5
    assert result["settings"]["num_envs"] == 3
    assert result["settings"]["seed"] == 1
    assert result["settings"]["device"] == "cpu"
    with av.open(str(tmp_path / "episode.mp4")) as video:
        (stream,) = video.streams
        assert (stream.codec_context.name, stream.frames, stream.width) == ("h264", 40, 256)
    out = capsys.readouterr().out
    assert "Catch: agent at step 123, 5 episodes" in out
    assert "mean return" in out


def test_the_same_command_gives_the_same_result(run):
    config, results = Config(run=str(run), episodes=4, num_envs=2, device="cpu"), []
    for _ in range(2):
        run_command(config)
        results.append((run / "evaluation-123.json").read_text())
    assert results[0] == results[1]


def test_environments_are_not_those_of_training(run):
    run_command(Config(run=str(run), episodes=1, seed=0, device="cpu", policy="random"))
    settings = json.loads((run / "evaluation-random.json").read_text())["settings"]
    assert abs(settings["env_seed"] - env_seed(0, None)) > 1024  # the run trained with that seed and the next
    assert settings["num_envs"] == 1  # never more than episodes


@pytest.mark.parametrize(("rule", "episodes"), [("each_env", 100), ("first_finished", 20)])
def test_how_many_episodes_by_default(tmp_path, rule, episodes):
    run = make_run(tmp_path / "R", checkpoint=False, **{"evaluation.episodes_from": rule})
    run_command(Config(run=str(run), device="cpu", policy="random"))
    result = json.loads((run / "evaluation-random.json").read_text())
    assert len(result["episode_returns"]) == result["settings"]["episodes"] == episodes
    assert result["settings"]["num_envs"] == 5


def test_the_random_policy_needs_no_checkpoint(tmp_path, capsys):
    run = make_run(tmp_path / "R", checkpoint=False)
    run_command(Config(run=str(run), episodes=3, device="cpu", policy="random"))
    result = json.loads((run / "evaluation-random.json").read_text())
    assert result["step"] is None
    assert result["policy"] == "random"
    assert "random policy, 3 episodes" in capsys.readouterr().out
    with pytest.raises(UserError):
        run_command(Config(run=str(run), episodes=3, device="cpu"))


def test_a_checkpoint_that_does_not_fit_its_config_is_told_in_one_line(tmp_path):
    run = make_run(tmp_path / "R")
    config = json.loads((run / "config.json").read_text())
    config["agent"]["width"] = 48
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"must fit its config\.json, but agent: ") as error:
        run_command(Config(run=str(run), episodes=1, device="cpu"))
    assert "\n" not in str(error.value)


def test_a_video_that_cannot_be_written_is_told_before_playing(run):
    with pytest.raises(UserError, match="does not"):
        check(Config(run=str(run), episodes=1, device="cpu", video=str(run / "nowhere" / "a.mp4")))


def test_the_reference_protocol_counts_as_the_original_does(tmp_path):
    fields = {"evaluation.episodes_from": "first_finished", "evaluation.count_last_reward": False}
    run = make_run(tmp_path / "R", checkpoint=False, **fields)
    run_command(Config(run=str(run), episodes=3, num_envs=2, device="cpu", policy="random"))
    result = json.loads((run / "evaluation-random.json").read_text())
    assert all(abs(value) <= 4 for value in result["episode_returns"])  # the last of five balls is not counted
    assert result["rules"]["count_last_reward"] is False
