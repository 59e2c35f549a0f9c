"""The published scores that are shipped, and how they are named."""

import json

import pytest

from stormfast.baselines import DATA, find_baseline, find_baselines, load_baselines
from stormfast.envs.scores import ATARI_100K, SCORES
from stormfast.errors import UserError


def test_the_file_and_the_table_of_games_agree() -> None:
    """Scores are normalised by SCORES: those that the file was made with must be the same."""
    document = json.loads(DATA.read_text(encoding="utf-8"))
    assert set(document["random"]) == set(document["human"]) == set(ATARI_100K)
    assert {game: (document["random"][game], document["human"][game]) for game in ATARI_100K} == {
        game: SCORES[game] for game in ATARI_100K
    }


def test_every_method_has_every_game() -> None:
    methods = load_baselines()
    assert len(methods) == 15
    assert all(set(method.returns) == set(ATARI_100K) for method in methods.values())
    assert {name for name, method in methods.items() if method.means_only} == {"BBF", "EfficientZero"}
    assert methods["STORM"].mean("Pong") == pytest.approx((20.8 + 20.5 - 7.4 + 20.4 + 2.1) / 5)
    assert methods["STORM"].mean("Catch") is None


def test_names_in_upper_or_lower_case() -> None:
    assert [each.name for each in find_baselines("bbf, Storm-2026-RETUNE")] == ["BBF", "STORM-2026-retune"]
    assert [each.name for each in find_baselines(None)] == ["STORM"]
    assert find_baselines("none") == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("dreamerv3", r"'dreamerv3'. Did you mean DreamerV3-2024 or DreamerV3-2023\?"),
        ("strom", r"'strom'. Did you mean 'STORM'\?"),
        ("storm,,bbf", "Unknown baseline ''. There are STORM, "),
        ("storm,STORM", "must name each method once"),
    ],
)
def test_bad_names_are_told_in_one_line(names: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        find_baselines(names)
    assert "\n" not in str(error.value)


def test_one_name() -> None:
    assert find_baseline("iris").name == "IRIS"
    with pytest.raises(UserError, match="Unknown baseline 'none'"):
        find_baseline("none")
