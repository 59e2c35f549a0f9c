"""Action spaces of gymnasium as a number of actions, and back."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from stormfast.envs.frames import shortly
from stormfast.errors import UserError

MOST_ACTIONS = 256  # replay keeps an action in a byte


def flatten_actions(game: str, space: Any) -> tuple[int, Callable[[int], Any]]:
    """How many actions a space has, and what turns 0 <= action < that number into one of its elements.

    Several choices at once (MultiDiscrete, MultiBinary) are one action for each combination; the last choice varies
    fastest.
    Raises: UserError for a space that is not finite, or holds more than 256 actions.
    """
    if isinstance(space, Discrete):
        count, start = int(space.n), int(space.start)
        return _checked(game, space, count), lambda action: action + start
    if isinstance(space, MultiDiscrete):
        choices, offset = space.nvec, space.start
    elif isinstance(space, MultiBinary):
        choices, offset = np.full(space.shape, 2), np.zeros(space.shape, np.int64)
    else:
        hint = (
            "choose some of its actions in a wrapper, as gymnasium.wrappers.DiscretizeAction does"
            if isinstance(space, Box)
            else "flatten it in a wrapper"
        )
        wanted = "Discrete, MultiDiscrete or MultiBinary"
        raise UserError(f"{game} must take {wanted} actions, got {shortly(space)}; {hint}")
    sizes = [int(size) for size in choices.flat]

    def unflatten(action: int) -> np.ndarray:
        combination = np.array(np.unravel_index(action, sizes)).reshape(space.shape)
        return (combination + offset).astype(space.dtype)

    return _checked(game, space, math.prod(sizes)), unflatten


def _checked(game: str, space: Any, count: int) -> int:
    if count > MOST_ACTIONS:
        raise UserError(
            f"{game} must have at most {MOST_ACTIONS} actions, got {count} in {shortly(space)}; "
            "leave some out in a wrapper"
        )
    return count
