"""Every finite action space becomes numbers, and every number one of its elements."""

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from stormfast.envs.actions import flatten_actions
from stormfast.errors import UserError

FINITE = [
    (Discrete(5), 5),
    (Discrete(3, start=-1), 3),
    (MultiDiscrete([3, 4]), 12),
    (MultiDiscrete([2, 3], start=[1, -1]), 6),
    (MultiDiscrete([[2, 2], [2, 3]]), 24),
    (MultiBinary(8), 256),
    (MultiBinary([2, 2]), 16),
]


@pytest.mark.parametrize(("space", "count"), FINITE, ids=str)
def test_each_action_is_an_element_of_its_own(space: Any, count: int) -> None:
    num_actions, to_action = flatten_actions("G", space)
    assert num_actions == count
    actions = [to_action(i) for i in range(count)]
    assert all(space.contains(action) for action in actions)
    assert len({np.asarray(action).tobytes() for action in actions}) == count


def test_the_last_choice_is_the_fastest() -> None:
    _, to_action = flatten_actions("G", MultiDiscrete([2, 3], start=[1, -1]))
    assert [to_action(i).tolist() for i in range(4)] == [[1, -1], [1, 0], [1, 1], [2, -1]]
    assert flatten_actions("G", Discrete(3, start=7))[1](2) == 9


REFUSED = [
    (Box(-1, 1, (2,)), "G must take Discrete, MultiDiscrete or MultiBinary actions, got Box.*DiscretizeAction"),
    (Tuple([Discrete(2)]), "got Tuple.*flatten it"),
    (Dict(a=Discrete(2)), "got Dict.*flatten it"),
    (Discrete(257), "G must have at most 256 actions, got 257"),
    (MultiBinary(9), "at most 256 actions, got 512"),
    (MultiDiscrete([10**9] * 9), "at most 256 actions, got 10{81}"),
]


@pytest.mark.parametrize(("space", "expected"), REFUSED, ids=str)
def test_spaces_that_do_not_fit(space: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        flatten_actions("G", space)
    assert "\n" not in str(caught.value)
