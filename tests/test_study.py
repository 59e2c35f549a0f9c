"""Studies: the built-in ones hold settings that can be, one's own are read, and what cannot be is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from stormfast.errors import UserError
from stormfast.presets import PRESETS
from stormfast.study import STUDIES, Study, changed_settings, choose, choose_games, config_of, read_study

OWN = {"question": "Why?", "arms": {"a": {}, "b": {"agent.entropy": 0.03, "world_model.channels": [2, 4, 8, 16]}}}


@pytest.mark.parametrize("name", STUDIES)
def test_arms_of_built_in_studies_can_be_and_differ(name: str) -> None:
    study = STUDIES[name]
    for preset in PRESETS:
        configs = [config_of(study, arm, preset=preset, demonstration="play.npz") for arm in study.arms]
        settings = [json.dumps(changed_settings(config)) for config in configs]
        assert len(set(settings)) == len(study.arms)
    assert choose_games(None, study.games) == study.games


def test_arms_are_compared_with_the_preset_and_at_as_many_steps() -> None:
    state, budget = STUDIES["agent-state"], STUDIES["budget"]
    assert changed_settings(config_of(state, "latent", preset="cpu")) == {"steps": 40_000, "agent.state": "latent"}
    assert config_of(state, "latent", preset="cpu", steps=7).steps == 7
    assert [config_of(budget, arm, preset="cpu", steps=70).steps for arm in budget.arms] == [70, 700, 7_000]
    assert {study.seeds for study in STUDIES.values()} == {3, 5}
    assert len(STUDIES["table"].games) * STUDIES["table"].seeds == 130


def test_demonstrations_need_a_file() -> None:
    study = STUDIES["demonstration"]
    with pytest.raises(UserError, match=r"^arm with: replay.demonstration needs a file: add --demonstration FILE.npz$"):
        config_of(study, "with", preset="cpu")
    assert config_of(study, "with", preset="cpu", demonstration="x.npz").replay.demonstration == "x.npz"
    assert config_of(study, "without", preset="cpu", demonstration="x.npz").replay.demonstration is None


def test_a_study_of_ones_own_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps(OWN | {"games": ["Catch"], "steps": 70, "preset": "tiny"}))
    study = read_study(str(path))
    assert study == Study("Why?", OWN["arms"], ("Catch",), 3, 70, "tiny")  # type: ignore[arg-type]
    config = config_of(study, "b", preset="tiny")
    assert (config.steps, config.agent.entropy, config.world_model.channels) == (70, 0.03, (2, 4, 8, 16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gams": ["Pong"]}, "Unknown key 'gams'. Did you mean 'games'? Keys are arms, games, preset,"),
        ({"arms": None}, "arms must be an object of name: settings, got None"),
        ({"arms": {}}, "arms must be an object of name: settings, got {}"),
        ({"arms": {"a/b": {}}}, "the name of an arm must be letters, digits, '-', '_' and '.', got 'a/b'"),
        ({"arms": {"a": 3}}, "arm a must be an object of setting: value, got 3"),
        ({"games": "Pong"}, "games must be a list of names, got 'Pong'"),
        ({"games": [3]}, "games must be a list of names, got (3,)"),
        ({"seeds": 0}, "seeds must be a whole number from 1 to 1000, got 0"),
        ({"steps": "many"}, "steps must be a whole number of 1 or more, got 'many'"),
        ({"preset": "big"}, "preset must be one of auto, storm, fast, cpu, tiny, got 'big'"),
        ({"question": ""}, "question must be text, got ''"),
        ([], "a study must be an object, got list"),
        ({"a": 1, "-": "question"}, "Unknown key 'a'."),
    ],
)
def test_files_that_are_no_study_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps(OWN | change if isinstance(change, dict) else change))
    with pytest.raises(UserError) as error:
        read_study(str(path))
    assert str(error.value).startswith(f"{path}: {message}")


def test_a_study_needs_its_question_and_arms_and_a_name_that_is_known(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    for text, message in (("{}", "question is missing"), ("{", "must be JSON")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_study(str(path))
    with pytest.raises(UserError, match=r"none.json cannot be read: No such file"):
        read_study("none.json")
    with pytest.raises(UserError, match=r"Unknown study 'agent-stat'. Did you mean 'agent-state'\? Studies are table,"):
        read_study("agent-stat")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"agent.entropi": 1}, "arm a: Unknown field 'agent.entropi'. Did you mean 'agent.entropy'?"),
        ({"agent.entropy": "much"}, "arm a: agent.entropy must be float, got 'much'"),
        ({"agent.gamma": 2}, "arm a: agent.gamma must be > 0 and <= 1, got 2"),
        ({"seed": 3}, "arm a: seed cannot be set by an arm; leave it out"),
        ({"steps": "x0"}, "arm a: steps must be int, got 'x0'"),
        ({"protocol": "mine"}, "arm a: protocol must be one of standard, reference, got 'mine'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        config_of(Study("Why?", {"a": settings}), "a", preset="tiny")
    assert str(error.value).startswith(message)


def test_names_are_chosen_from_those_there_are() -> None:
    assert choose("arms", "b, a,b", ["a", "b", "c"]) == ("b", "a")
    with pytest.raises(UserError, match=r"--arms must be some of latent,both, got 'latnt'. Did you mean 'latent'\?"):
        choose("arms", "latnt", ["latent", "both"])
    with pytest.raises(UserError, match="--games must name each game once, got 'Pong,Pong'"):
        choose_games("Pong,ALE/Pong-v5", ("Pong",))
