"""The agent of a run: loaded or refused in one line; plays, dreams."""

import json

import numpy as np
import pytest
import torch

from stormfast.errors import UserError
from stormfast.learner import build_models
from stormfast.presets import preset_config
from stormfast.replay import Replay
from stormfast.runs.checkpoint import save_checkpoint
from stormfast.runs.evaluation import evaluate
from stormfast.runs.run import env_seed as training_seed
from stormfast.runs.state import with_prefix
from stormfast.runs.trained import Trained, env_seed, load, window_sampler
from stormfast.schema import override
from tests.model_fixtures import create

ROWS = 100


def save_run(path, meta=None, **settings):
    """A run on disk at step 123, whose models were never trained."""
    config = override(preset_config("tiny", "standard"), {"game": "Catch", "run_dir": str(path)} | settings)
    create(config)
    torch.manual_seed(0)
    models = dict(zip(("world_model", "agent"), build_models(config, 3, torch.device("cpu")), strict=True))
    tensors = {}
    for name, module in models.items():
        tensors |= with_prefix(name, module.state_dict())
    save_checkpoint(path, 123, tensors, {"num_actions": 3} if meta is None else meta, Replay(8, 1, torch.device("cpu")))
    return path, models


def change_config(path, group, name, value):
    config = json.loads((path / "config.json").read_text())
    config[group][name] = value
    (path / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="module")
def trained(saved) -> Trained:
    return load(saved[0], "cpu")


@pytest.fixture(scope="module")
def rows(trained):
    return trained.play(ROWS)


# --- loading ------------------------------------------------------------------------------------------------------


def test_load_brings_the_saved_weights_in_evaluation_mode(saved, trained):
    path, models = saved
    for name, module in models.items():
        loaded = getattr(trained, name)
        assert not any(part.training for part in loaded.modules())
        state = loaded.state_dict()
        assert state.keys() == module.state_dict().keys()
        assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())
    assert (trained.step, trained.num_actions, trained.run_dir, str(trained.device)) == (123, 3, path, "cpu")
    assert load(str(path), "cpu").config == trained.config  # a path may be text


def damage_state(path):
    state = path / "checkpoint" / "state-123.safetensors"
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.write_bytes(data)


REFUSED = {
    "no such directory": (lambda path: path.rename(path.with_name("gone")), "does not exist"),
    "no config": (lambda path: (path / "config.json").unlink(), "is not a run"),
    "no checkpoint": (lambda path: (path / "checkpoint" / "checkpoint.json").unlink(), "checkpoint"),
    "no weights": (lambda path: (path / "checkpoint" / "state-123.safetensors").unlink(), "state-123"),
    "damaged weights": (damage_state, "state-123"),
    "another agent": (lambda path: change_config(path, "agent", "width", 48), r"must fit its config\.json, but agent"),
    "another model": (
        lambda path: change_config(path, "world_model", "classes", 4),
        r"must fit its config\.json, but world_model",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_run_is_refused_in_one_line(case, tmp_path):
    spoil, message = REFUSED[case]
    path, _ = save_run(tmp_path / "run")
    spoil(path)
    with pytest.raises(UserError, match=message) as error:
        load(path, "cpu")
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("num_actions", [None, 0, "3", True])
def test_a_checkpoint_must_say_how_many_actions_there_are(num_actions, tmp_path):
    path, _ = save_run(tmp_path / "run", {} if num_actions is None else {"num_actions": num_actions})
    with pytest.raises(UserError, match=f"how many actions its game has, got {num_actions!r}"):
        load(path, "cpu")


def test_a_device_that_is_not_here_is_refused(saved):
    with pytest.raises(UserError, match="cuda:99"):
        load(saved[0], "cuda:99")


# --- playing ------------------------------------------------------------------------------------------------------


def test_players_act_alike_and_each_remembers_for_itself(trained):
    env = trained.make_env(2, seed=4)
    now, players = env.reset(), [trained.player(2) for _ in range(2)]
    for _ in range(12):
        chosen = []
        for player in players:
            torch.manual_seed(9)
            chosen.append(player.act(now.obs, now.is_first))
        assert np.array_equal(*chosen)
        now = env.step(chosen[0])
    assert players[0].length.tolist() == [trained.config.acting.context] * 2
    assert trained.player(2).length.tolist() == [0, 0]


def test_play_gives_rows_of_real_episodes(trained, rows):
    assert len(rows) == ROWS
    batch = rows.gather(torch.arange(ROWS)[None])
    firsts = batch.is_first[0].nonzero().flatten().tolist()
    assert firsts == [0, 40, 80]  # 39 steps and the last observation
    assert batch.terminated[0].nonzero().flatten().tolist() == [38, 78]
    assert set(batch.action[0].tolist()) <= {0, 1, 2}
    assert batch.reward.abs().sum() > 0


def test_the_seed_decides_what_is_played(trained):
    def played(seed):
        rows = trained.play(20, seed=seed)
        return rows.gather(torch.arange(20)[None])

    first, again, other = played(1), played(1), played(2)
    assert torch.equal(first.obs, again.obs)
    assert torch.equal(first.action, again.action)
    assert not torch.equal(first.obs, other.obs)


def test_the_callers_own_random_numbers_are_left_alone(trained):
    torch.manual_seed(5)
    expected = torch.rand(4)
    for use in (lambda: trained.play(5, seed=1), lambda: evaluate(trained.config, trained, episodes=1)):
        torch.manual_seed(5)
        use()
        assert torch.equal(torch.rand(4), expected)


def test_games_are_not_those_of_training():
    seeds = {env_seed(run_seed, seed) for run_seed in range(20) for seed in range(20)}
    assert len(seeds) == 400
    assert all(abs(env_seed(seed, 0) - training_seed(seed, None)) > 1024 for seed in range(20))


# --- dreams -------------------------------------------------------------------------------------------------------


def test_dreams_start_from_the_rows_given(trained, rows):
    env = trained.dream_env(3, horizon=4, seed=2, replay=rows)
    now = env.reset()
    real = {frame.numpy().tobytes() for frame in rows.gather(torch.arange(ROWS)[None]).obs[0]}
    assert all(frame.tobytes() in real for frame in now.obs)
    for _ in range(4):
        now = env.step(np.array([0, 1, 2]))
    assert (now.truncated | now.terminated | now.is_first | (env.elapsed < 4)).all()


def test_dreams_do_not_start_from_the_end_of_an_episode(trained, rows):
    env = trained.dream_env(16, replay=rows)
    assert not any(env.contexts(16).is_last[:, -1].any() for _ in range(10))


def test_dream_env_plays_for_itself(trained, monkeypatch, rows):
    asked = []
    monkeypatch.setattr(Trained, "play", lambda self, steps, seed: asked.append((steps, seed)) or rows)
    env = trained.dream_env(2, seed=5)
    env.reset()
    assert asked == [(512, 5)]


def test_a_dream_lies_within_an_episode_where_one_is_long_enough(trained, monkeypatch, rows):
    monkeypatch.setattr(Trained, "play", lambda self, steps, seed: rows)
    clip = trained.dream(horizon=8, num=16)
    assert clip.real.shape == (16, 9, 3, 64, 64)
    batch = rows.gather(torch.arange(ROWS)[None])
    frames = [frame.tobytes() for frame in batch.obs[0].numpy()]
    last = {frames[t] for t in batch.is_last[0].nonzero().flatten()}
    middle = {frames[t] for t in range(ROWS) if not batch.is_last[0, t]}
    assert not any(frame.tobytes() in last - middle for window in clip.real for frame in window)
    assert not clip.real_end.any()
    # Catch has no episode of 50 steps: then there is a reset within, and the dream goes on
    longer = trained.dream(horizon=50, num=2)
    assert longer.real_end.any()
    assert longer.imagined.shape == (2, 51, 3, 64, 64)


def test_a_dream_lies_within_an_episode_where_replay_has_no_last_observations(tmp_path, monkeypatch):
    path, _ = save_run(tmp_path / "run", **{"world_model.separate_episodes": False})
    agent = load(path, "cpu")
    rows = agent.play(ROWS)
    monkeypatch.setattr(Trained, "play", lambda self, steps, seed: rows)
    clip = agent.dream(horizon=5, num=64)
    assert not clip.real_end.any()


@pytest.mark.parametrize(("horizon", "num"), [(0, 1), (1, 0), (-1, 1)])
def test_a_dream_of_nothing_is_refused(trained, horizon, num):
    with pytest.raises(UserError, match=f"must be a whole number from 1 to 100000, got {min(horizon, num)}"):
        trained.dream(horizon, num)


def test_a_run_without_a_decoder_acts_but_cannot_dream(tmp_path):
    path, _ = save_run(tmp_path / "run", **{"world_model.loss.reconstruction": 0.0})
    blind = load(path, "cpu")
    assert blind.player().act(np.zeros((1, 3, 64, 64), np.uint8), np.ones(1, bool)).shape == (1,)
    for dream in (blind.dream, blind.dream_env):
        with pytest.raises(UserError, match=r"no decoder to dream with: it was trained with loss\.reconstruction 0"):
            dream()


def test_windows_that_do_not_fit_are_drawn_again_where_others_are_there(rows):
    sample = window_sampler(rows, 4, lambda window: window.is_first[:, 0], seed=0)
    assert sample(5).is_first[:, 0].all()  # 3 of 97 windows
    never = window_sampler(rows, 4, lambda window: torch.zeros(5, dtype=torch.bool), seed=0)
    assert never(5).action.shape == (5, 4)
