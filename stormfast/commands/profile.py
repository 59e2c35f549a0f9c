"""Time each phase of a training step, and compare it with what the device could do."""

import dataclasses
import sys

from stormfast.envs.games import check_game
from stormfast.schema import check_fields
from stormfast.settings import ProfileConfig as Config

__all__ = ["Config", "check", "run"]


def check(config: Config) -> None:
    """Raises UserError for a value of the wrong type or out of range, and for an unknown game."""
    check_fields(config)
    check_game(config.game)


def run(config: Config) -> int:
    """Prints the report. Raises: UserError for settings that cannot be had, or that do not fit in memory."""
    from stormfast.measure.profile import profile
    from stormfast.plan import choose_preset

    preset, why = choose_preset(config.preset, config.device)
    if config.preset == "auto":
        print(f"preset {preset}: {why}", file=sys.stderr, flush=True)
    return profile(dataclasses.replace(config, preset=preset))
