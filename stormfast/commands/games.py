"""List what --game takes, with the scores of the random policy and of a human."""

from dataclasses import dataclass

from stormfast.envs.games import ATARI_100K, BUILT_IN, SCORES, atari_games

OWN = """\
gymnasium's environments   gym:ENV_ID, such as gym:CartPole-v1 with --env.render-obs
your own (docs/games.md)   package.module:make or path/to/file.py:make, such as examples/own_game.py:make
"""


@dataclass(frozen=True)
class Config:
    """It takes no settings."""


def run(config: Config) -> int:
    others = [game for game in atari_games() if game not in ATARI_100K]
    print(f"{'the 26 of Atari 100k':<24}{'random':>10}{'human':>10}")
    for game in ATARI_100K:
        print(_row(game))
    print(f"\n{'other Atari games':<24}{'random':>10}{'human':>10}")
    for game in others:
        print(_row(game))
    print(f"\nbuilt in                   {', '.join(BUILT_IN)}")
    print(OWN, end="")
    return 0


def _row(game: str) -> str:
    """A game and its scores, blank where none are published."""
    return f"  {game:<22}{''.join(f'{score:>10.1f}' for score in SCORES.get(game, ()))}".rstrip()
