"""Returns of what was replayed, against a loop that walks each window forward from each step."""

import dataclasses

import pytest
import torch

from stormfast.records import Batch
from stormfast.replay_value import replay_returns, replayed_steps
from tests.model_fixtures import double_precision, make_batch

GAMMA, LAM, CONTEXT, LENGTH = 0.9, 0.8, 3, 12
STEPS = LENGTH - CONTEXT + 1


@pytest.fixture(autouse=True)
def _float64():
    with double_precision():
        yield


def return_by_walking(windows, imagined, w, k, life_loss_terminates):
    """The return of row k + CONTEXT - 1 of window w, None where it cannot be known: what is certain is summed, what
    may be cut short is mixed with what was imagined.
    """
    total, weight = 0.0, 1.0
    for at in range(k, STEPS):
        row = at + CONTEXT - 1
        if at == STEPS - 1 or windows.is_last[w, row]:
            return None if at == k else total + weight * imagined[w, at].item()
        ended = windows.terminated[w, row] or (life_loss_terminates and windows.life_lost[w, row])
        if not ended and windows.is_first[w, row + 1]:  # cut off, and its last observation is not there
            return None if at == k else total + weight * imagined[w, at].item()
        if at > k:
            total += weight * (1 - LAM) * imagined[w, at].item()
            weight *= LAM
        total += weight * windows.reward[w, row].item()
        if ended:
            return total
        weight *= GAMMA
    raise AssertionError


def without_last_observations(windows):
    """As the reference protocol stores episodes: a first frame follows an episode's last action at once."""
    is_first = torch.zeros_like(windows.is_first)
    is_first[:, 1:] = (windows.terminated | windows.truncated)[:, :-1]
    return dataclasses.replace(windows, is_first=is_first, is_last=torch.zeros_like(windows.is_last))


@pytest.mark.parametrize("life_loss_terminates", [True, False])
@pytest.mark.parametrize("stored", [lambda windows: windows, without_last_observations])
def test_returns_are_those_of_a_walk_over_each_window(stored, life_loss_terminates):
    windows = stored(make_batch(40, LENGTH, seed=1))
    imagined = torch.randn(40, STEPS, generator=torch.Generator().manual_seed(2))
    replayed = replayed_steps(windows, CONTEXT, life_loss_terminates)
    got = replay_returns(replayed, imagined, GAMMA, LAM)
    assert got.shape == (40, STEPS - 1)
    unknown = 0
    for w in range(40):
        for k in range(STEPS - 1):
            expected = return_by_walking(windows, imagined, w, k, life_loss_terminates)
            assert replayed.known[w, k] == (expected is not None)
            if expected is not None:
                assert got[w, k].item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
            unknown += expected is None
    assert 5 < unknown < 100
    inside = slice(CONTEXT - 1, -2)
    assert all(flag[:, inside].any() for flag in (windows.terminated, windows.truncated, windows.life_lost))


def one_window(**flags: list[int]) -> Batch:
    """Four rows of reward 1, 2, 4, 8; the flags are set at the rows named."""
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    marks = {name: nothing.clone() for name in ("terminated", "truncated", "life_lost", "is_first", "is_last")}
    for name, rows in flags.items():
        marks[name][0, rows] = True
    reward = torch.tensor([[1.0, 2, 4, 8]])
    return Batch(torch.zeros(1, 4, 0), torch.zeros(1, 4, dtype=torch.int64), reward, **marks)


@pytest.mark.parametrize(("flags", "known", "expected"), [
    ({}, [1, 1, 1], [1 + 0.9 * (0.2 * 20 + 0.8 * 36.2), 2 + 0.9 * (0.2 * 30 + 0.8 * 40), 4 + 0.9 * 40]),
    ({"terminated": [1], "is_last": [2]}, [1, 1, 0], [1 + 0.9 * (0.2 * 20 + 0.8 * 2), 2]),
    ({"truncated": [1], "is_last": [2]}, [1, 1, 0], [1 + 0.9 * (0.2 * 20 + 0.8 * 29), 2 + 0.9 * 30]),
    ({"truncated": [1], "is_first": [2]}, [1, 0, 1], [1 + 0.9 * 20]),
    ({"life_lost": [0]}, [1, 1, 1], [1]),
])  # fmt: skip
def test_returns_by_hand(flags: dict[str, list[int]], known: list[int], expected: list[float]) -> None:
    imagined = torch.tensor([[10.0, 20, 30, 40]])
    replayed = replayed_steps(one_window(**flags), 1, True)
    assert replayed.known[0, :-1].tolist() == known
    assert replay_returns(replayed, imagined, 0.9, 0.8)[0, : len(expected)].tolist() == pytest.approx(expected)
