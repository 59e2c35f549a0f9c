"""Philox from plain torch against recorded words, and the uniform numbers made of them."""

import pytest
import torch

from stormfast_kernels import CounterRng
from stormfast_kernels.counter_rng import LOW_32, philox


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers that the Random123 library tests philox4x32-10 with
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([LOW_32] * 4, [LOW_32] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter, key, words):
    seed = key[0] | key[1] << 32
    seed = torch.tensor(seed - (1 << 64) if seed >= 1 << 63 else seed)
    assert [int(word) for word in philox(tuple(torch.tensor(c) for c in counter), seed)] == words


def test_uniform_numbers_are_spread_over_the_unit_interval():
    draws = 2**18
    x = CounterRng.seeded(3, "cpu").uniform(draws)
    assert x.dtype == torch.float32
    assert ((x >= 0) & (x < 1)).all()
    step = (torch.arange(1, draws + 1) / draws - x.double().sort().values).abs().max()
    assert draws**0.5 * step < 2.7  # Kolmogorov-Smirnov, p = 1e-6


def test_offsets_counters_and_seeds_beyond_32_bits_count():
    start = CounterRng(torch.tensor([5, 0]))
    x = start.uniform(1_000)
    assert torch.equal(start.at(400).uniform(600), x[400:])
    assert torch.equal(start.at(100).at(300).uniform(600), x[400:])
    for other in (
        CounterRng(torch.tensor([5, 2**33])),
        CounterRng(torch.tensor([5 + 2**32, 0])),
        CounterRng(torch.tensor([-5, 0])),
    ):
        assert (other.uniform(1_000) == x).float().mean() < 0.01


def test_advancing_moves_the_state_in_place():
    rng = CounterRng.seeded(7, "cpu")
    state, x = rng.state, rng.uniform(50)
    rng.advance(20)
    assert rng.state is state
    assert torch.equal(rng.uniform(30), x[20:])
