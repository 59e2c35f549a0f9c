"""Dreams of runs: which stretches of play they are of.

C context steps   H imagined steps
"""

import numpy as np
import pytest
import torch

from stormfast.records import Transition
from stormfast.replay import Replay
from stormfast.runs import dreams

# --- which stretches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_stretches_are_the_longest_and_then_the_newest_that_do_not_overlap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths, context, length, num = np.array([40, 0, 25]), 3, 12, 4
    is_first = rng.random(65) < 0.1
    starts = dreams.choose_starts(is_first, lengths, context, length, num)
    fits = {}  # first row -> (steps in the episode, newness)
    for begin, end in ((0, 40), (40, 65)):
        for start in range(begin, end - length + 1):
            after = [t for t in range(start + 1, start + length) if is_first[t]]
            steps = (after[0] if after else start + length) - start - context
            if steps > 0:
                fits[start] = (steps, start - end)
    assert starts
    taken: set[int] = set()
    for start in starts:
        free = {s: key for s, key in fits.items() if not taken & set(range(s, s + context + key[0]))}
        assert fits[start] == max(free.values())
        taken |= set(range(start, start + context + fits[start][0]))
    left = {s for s, key in fits.items() if not taken & set(range(s, s + context + key[0]))}
    assert len(starts) == num or not left


def filled(num_streams: int, rows: int, capacity: int, every: int = 1_000) -> Replay:
    """Replay whose obs say stream and row; episodes of `every` rows."""
    replay, n = Replay(capacity, num_streams, torch.device("cpu")), num_streams
    for t in range(rows):
        obs = np.zeros((n, 3, 64, 64), np.uint8)
        obs[:, 0, 0, 0], obs[:, 0, 0, 1] = np.arange(n), t
        zeros = np.zeros(n, np.bool_)
        replay.append(
            Transition(
                obs=obs,
                action=np.full(n, t % 3),
                reward=np.full(n, t, np.float32),
                terminated=zeros,
                truncated=zeros,
                life_lost=zeros,
                is_first=zeros | (t % every == 0),
                is_last=zeros | (t % every == every - 1),
            )
        )
    return replay


@pytest.mark.parametrize("capacity", [400, 120])  # the second has overwritten its oldest rows
def test_the_newest_rows_of_replay_are_taken(capacity: int) -> None:
    window = dreams.newest_stretches(filled(2, 100, capacity), context=4, horizon=8, num=5)
    assert window is not None
    assert window.action.shape == (5, 12)
    place = sorted(zip(window.obs[:, 0, 0, 0, 0].tolist(), window.obs[:, 0, 0, 0, 1].tolist(), strict=True))
    assert place in (
        [(0, 64), (0, 76), (0, 88), (1, 76), (1, 88)],
        [(0, 76), (0, 88), (1, 64), (1, 76), (1, 88)],
    )
    assert torch.equal(window.reward, window.obs[:, :, 0, 0, 1].float())
    assert torch.equal(window.action, window.obs[:, :, 0, 0, 1].long() % 3)


def test_a_short_replay_gives_a_shorter_horizon_and_short_episodes_give_none() -> None:
    window = dreams.newest_stretches(filled(1, 10, 100), context=4, horizon=45, num=4)
    assert window is not None and window.action.shape == (1, 10)
    assert dreams.newest_stretches(filled(1, 40, 100, every=4), context=4, horizon=8, num=4) is None
    assert dreams.newest_stretches(filled(1, 3, 100), context=4, horizon=8, num=4) is None
