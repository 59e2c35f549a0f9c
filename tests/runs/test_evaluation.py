"""An evaluation plays full episodes by the run's rules, the same ones for the same seed."""

import json

import numpy as np
import pytest
import torch

from stormfast.errors import UserError
from stormfast.learner import build_models
from stormfast.presets import preset_config
from stormfast.runs.evaluation import default_episodes, evaluate
from stormfast.runs.trained import Trained, env_seed
from stormfast.schema import override


def run_config(**settings):
    return override(preset_config("tiny", "standard"), {"game": "Catch", "seed": 7} | settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    config = run_config()
    torch.manual_seed(0)
    models = build_models(config, 3, torch.device("cpu"))
    return Trained(tmp_path_factory.mktemp("run"), config, 500, 3, torch.device("cpu"), *models)


def same(first, second):
    return first.score == second.score and first.episodes == second.episodes


def test_the_same_seed_gives_the_same_numbers(trained):
    evaluations = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 3)):
        torch.manual_seed(global_seed)  # what went before does not matter
        evaluations.append(evaluate(trained.config, trained, episodes=6, num_envs=3, seed=seed))
    first, again, other = evaluations
    assert same(first, again)
    assert not same(first, other)
    assert first.env_seed == env_seed(7, 0) != other.env_seed


def test_what_is_found(trained):
    counts = []
    found = evaluate(trained.config, trained, episodes=5, num_envs=9, on_finish=lambda done: counts.append(len(done)))
    assert (found.step, found.num_envs, found.env_backend, found.frames) == (500, 5, "gymnasium", None)
    assert counts == [1, 2, 3, 4, 5]
    assert found.score.returns == tuple(episode.game_return for episode in found.episodes)
    assert [episode.length for episode in found.episodes] == [39] * 5
    document = json.loads(json.dumps(found.to_dict()))
    assert document["policy"] == "agent"
    assert document["step"] == 500
    assert document["game"] == "Catch"
    assert document["return"]["mean"] == pytest.approx(np.mean(document["episode_returns"]))
    assert document["episode_lengths"] == [39] * 5
    assert document["episode_truncated"] == [False] * 5
    assert document["rules"]["episodes_from"] == "each_env"


def test_without_an_agent_actions_are_random_on_the_same_footing(trained):
    random = evaluate(trained.config, None, episodes=30)
    assert random.step is None
    assert random.to_dict()["policy"] == "random"
    assert same(random, evaluate(trained.config, None, episodes=30))
    assert len(set(random.score.returns)) > 1
    assert random.env_seed == evaluate(trained.config, trained, episodes=1).env_seed  # the same games


def test_the_first_episode_is_filmed(trained):
    found = evaluate(trained.config, trained, episodes=3, num_envs=2, film=True)
    assert found.frames is not None
    assert found.frames.shape == (40, 64, 64, 3)
    assert found.frames.dtype == np.uint8
    assert same(found, evaluate(trained.config, trained, episodes=3, num_envs=2))  # a film changes nothing


@pytest.mark.parametrize(("rule", "episodes"), [("each_env", 100), ("first_finished", 20)])
def test_how_many_episodes_by_default(rule, episodes):
    config = run_config(**{"evaluation.episodes_from": rule})
    assert default_episodes(config) == episodes
    assert len(evaluate(config, None).episodes) == episodes


@pytest.mark.parametrize("episodes", [0, -2])
def test_fewer_episodes_than_one_are_refused(episodes):
    with pytest.raises(UserError, match=f"episodes must be a whole number of 1 or more, got {episodes}"):
        evaluate(run_config(), None, episodes=episodes)


def test_the_environments_are_closed_whatever_happens(monkeypatch):
    from stormfast.runs import evaluation

    made = []

    def make_env(*args, **options):
        made.append(make(*args, **options))
        return made[-1]

    make = evaluation.make_env
    monkeypatch.setattr(evaluation, "make_env", make_env)

    def interrupt(episodes):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(run_config(), None, episodes=2, on_finish=interrupt)
    with pytest.raises(ValueError, match="closed"):
        made[0].reset()
