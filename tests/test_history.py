"""Memories of several streams against plain Python lists."""

import pytest
import torch

from stormfast.history import append_step, hidden_state
from tests.model_fixtures import NUM_ACTIONS, double_precision, no_sync, one_hot_latent, tiny_learner

N, C, D = 3, 4, 12


def streams():
    return torch.zeros(N, dtype=torch.int64), torch.zeros(N, C, 2), torch.zeros(N, C, dtype=torch.int64)


def test_memories_are_the_last_steps_of_lists_with_skips_and_restarts():
    length, latent, action = streams()
    lists = [[] for _ in range(N)]
    g = torch.Generator().manual_seed(0)
    for t in range(30):
        if t == 17:  # a stream that starts anew
            length[1], lists[1] = 0, []
        skip = torch.rand(N, generator=g) < 0.3
        new_latent, new_action = torch.randn(N, 2, generator=g), torch.randint(9, (N,), generator=g)
        append_step(length, skip, (latent, new_latent), (action, new_action))
        for n in range(N):
            if not skip[n]:
                lists[n] = [*lists[n], (new_latent[n].tolist(), int(new_action[n]))][-C:]
            got = list(zip(latent[n, : length[n]].tolist(), action[n, : length[n]].tolist(), strict=True))
            assert got == lists[n], f"stream {n}, step {t}"
    assert length.tolist() == [C] * N  # all full: the oldest steps went


def test_what_is_appended_takes_the_dtype_of_the_memory():
    length = torch.zeros(N, dtype=torch.int64)
    frames, half = torch.zeros(N, C, 2, 2, dtype=torch.uint8), torch.zeros(N, C, dtype=torch.bfloat16)
    never = torch.zeros(N, dtype=torch.bool)
    append_step(length, never, (frames, torch.full((N, 2, 2), 200)), (half, torch.full((N,), 0.5)))
    assert frames.dtype == torch.uint8
    assert frames[:, 0].eq(200).all()
    assert half[:, 0].tolist() == [0.5] * N
    assert not frames[:, 1:].any()


@torch.no_grad()
def test_the_hidden_state_is_that_of_the_past_alone():
    with double_precision():
        sequence = tiny_learner().world_model.sequence
        latent, action = one_hot_latent(N, C), torch.randint(NUM_ACTIONS, (N, C))
        length = torch.tensor([0, 2, C])
        hidden = hidden_state(sequence, latent, action, length)
        assert hidden.shape == (N, D)
        assert not hidden[0].any()
        for n in (1, 2):
            past = sequence(latent[n : n + 1, : length[n]], action[n : n + 1, : length[n]], None)[0, -1]
            torch.testing.assert_close(hidden[n], past, rtol=1e-11, atol=1e-11)


def test_neither_waits_for_the_device():
    sequence = tiny_learner().world_model.sequence
    length, action = torch.zeros(N, dtype=torch.int64), torch.zeros(N, C, dtype=torch.int64)
    latent, never = one_hot_latent(N, C), torch.zeros(N, dtype=torch.bool)
    with no_sync(), torch.no_grad():
        append_step(length, never, (latent, latent[:, 0]), (action, action[:, 0]))
        hidden_state(sequence, latent, action, length)


@pytest.mark.parametrize("context", [1, 2])
def test_short_memories(context):
    length, action = torch.zeros(1, dtype=torch.int64), torch.zeros(1, context, dtype=torch.int64)
    for t in range(1, 5):
        append_step(length, torch.tensor([False]), (action, torch.tensor([t])))
    assert action[0].tolist() == list(range(5 - context, 5))
    assert length.tolist() == [context]
