"""stormfast games lists whatever --game takes."""

import pytest

from stormfast.commands.games import Config, run
from stormfast.envs.games import ATARI_100K, BUILT_IN, SCORES, atari_games


def test_every_game_is_listed_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Config()) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.startswith("  ")]
    assert sorted(row[0] for row in rows) == sorted(atari_games())
    assert [row[0] for row in rows[:26]] == list(ATARI_100K)
    assert {row[0]: tuple(map(float, row[1:])) for row in rows if len(row) > 1} == SCORES
    assert all(text in out for text in (*BUILT_IN, "gym:ENV_ID", "package.module:make", "path/to/file.py:make"))
    assert max(map(len, out.splitlines())) <= 120
