"""List the games, with the scores of the random policy and of a human."""

from dataclasses import dataclass

from stormfast.envs.games import BUILT_IN, SCORES


@dataclass(frozen=True)
class Config:
    """It takes no settings."""


def run(config: Config) -> int:
    print(f"{'game':<16}{'random':>10}{'human':>10}")
    for game, (random, human) in SCORES.items():
        print(f"{game:<16}{random:>10.1f}{human:>10.1f}")
    for game in BUILT_IN:
        print(f"{game:<16}{'built in, no published scores':>20}")
    return 0
