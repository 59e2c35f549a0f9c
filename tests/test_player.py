"""The player against a memory of plain Python lists."""

import math

import numpy as np
import pytest
import torch

from stormfast.player import Player
from tests.model_fixtures import NUM_ACTIONS, double_precision, no_sync, tiny_learner

N, C, S, K, D = 3, 5, 3, 5, 12
STEPS = 23


@pytest.fixture(autouse=True)
def _float64():
    with double_precision():
        yield


class ListPlayer:
    """The player as its description says it: a list of (latent, action) for each environment."""

    def __init__(self, learner):
        self.model, self.agent, self.config = learner.world_model, learner.agent, learner.config.acting
        self.memory = [[] for _ in range(N)]
        self.hidden_norms = []

    @torch.no_grad()
    def act(self, obs, is_first, is_last):
        latent_uniform, action_uniform = torch.rand(2, N, S), torch.rand(N)
        actions = []
        for n in range(N):
            if is_first[n] and self.config.reset_context:
                self.memory[n] = []
            actions.append(
                self.act_alone(
                    n,
                    torch.from_numpy(obs[n : n + 1]),
                    latent_uniform[:, n : n + 1],
                    action_uniform[n : n + 1],
                    is_last[n],
                )
            )
        return np.array(actions)

    def act_alone(self, n, obs, latent_uniform, action_uniform, is_last):
        model, agent, memory = self.model, self.agent, self.memory[n]
        latent = model.sample(model.encode(obs), latent_uniform[0])
        hidden = torch.zeros(1, D)
        if memory:
            past, action = torch.stack([m[0] for m in memory], 1), torch.tensor([[m[1] for m in memory]])
            hidden = model.sequence(past, action, None)[:, -1]
        self.hidden_norms.append(hidden.norm().item())
        seen = latent if self.config.latent == "posterior" else model.sample(model.prior(hidden), latent_uniform[1])
        log_policy = agent.log_policy(agent.state(seen, hidden))
        if self.config.latent == "prior" and not memory:
            log_policy = torch.full((1, NUM_ACTIONS), -math.log(NUM_ACTIONS))
        action = agent.sample_action(log_policy, action_uniform).item()
        if not is_last:
            self.memory[n] = [*memory, (latent, action)][-self.config.context :]
        return action


def frames(rng):
    return rng.integers(256, size=(N, 3, 64, 64), dtype=np.uint8)


def episode_flags():
    """is_first, is_last [STEPS, N]: environment 0 never ends; 1 has episodes shorter than the memory; 2 longer."""
    is_first, is_last = np.zeros((2, STEPS, N), bool)
    is_first[0] = True
    for n, length in ((1, 3), (2, 9)):
        is_last[length :: length + 1, n] = True
        is_first[length + 1 :: length + 1, n] = True
    return is_first, is_last


@pytest.mark.parametrize("latent", ["posterior", "prior"])
@pytest.mark.parametrize("reset_context", [True, False])
@pytest.mark.parametrize("context", [1, C])
def test_the_player_is_the_list_player(latent, reset_context, context):
    values = {"acting.latent": latent, "acting.reset_context": reset_context, "acting.context": context}
    learner = tiny_learner(values=values)
    ours, theirs = Player(learner.inference, learner.agent, learner.config.acting, N), ListPlayer(learner)
    rng, (is_first, is_last) = np.random.default_rng(0), episode_flags()
    for t in range(STEPS):
        obs = frames(rng)
        torch.manual_seed(t)
        got = ours.act(obs, is_first[t], is_last[t])
        torch.manual_seed(t)
        expected = theirs.act(obs, is_first[t], is_last[t])
        assert got.tolist() == expected.tolist(), f"step {t}"
        assert got.dtype == np.int64
        assert ours.length.tolist() == [len(memory) for memory in theirs.memory], f"step {t}"
        for n, memory in enumerate(theirs.memory):
            for i, (z, a) in enumerate(memory):
                assert torch.equal(ours.latent[n, i], z[0])
                assert ours.action[n, i] == a
    assert (ours.length == context).any()  # it was full, so that the oldest were dropped
    assert (
        min(theirs.hidden_norms[N:]) == 0
    ) == reset_context  # after the first step, only a reset leaves nothing to see


@torch.no_grad()
def test_hidden_is_zero_without_a_past_and_that_of_the_past_otherwise():
    learner = tiny_learner()
    player = Player(learner.inference, learner.agent, learner.config.acting, N)
    assert torch.equal(player.hidden(), torch.zeros(N, D))
    rng, nowhere = np.random.default_rng(0), np.zeros(N, bool)
    for _ in range(3):
        player.act(frames(rng), nowhere, np.array([False, True, False]))
    hidden = player.hidden()
    assert player.length.tolist() == [3, 0, 3]
    assert torch.equal(hidden[1], torch.zeros(D))
    expected = learner.world_model.sequence(player.latent[:1, :3], player.action[:1, :3], None)[0, -1]
    torch.testing.assert_close(hidden[0], expected, rtol=1e-11, atol=1e-11)


def test_without_is_last_every_step_is_remembered():
    learner = tiny_learner()
    player = Player(learner.inference, learner.agent, learner.config.acting, N)
    player.act(frames(np.random.default_rng(0)), np.ones(N, bool))
    assert player.length.tolist() == [1] * N


def test_a_prior_player_begins_at_random_and_a_posterior_player_does_not():
    """A policy that always takes action 1, asked at the first step."""
    obs, first = frames(np.random.default_rng(0)), np.ones(N, bool)
    for latent, expected in (("posterior", {1}), ("prior", set(range(NUM_ACTIONS)))):
        learner = tiny_learner(values={"acting.latent": latent})
        learner.agent.actor[-1].bias.data[1] += 100
        player = Player(learner.inference, learner.agent, learner.config.acting, N)
        actions = set()
        for _ in range(12):
            actions |= set(player.act(obs, first).tolist())
        assert actions == expected
        assert set(player.act(obs, ~first).tolist()) == {1}


@torch.no_grad()
def test_refresh_encodes_the_remembered_frames_with_the_new_weights():
    learner, rng = tiny_learner(), np.random.default_rng(0)
    model = learner.world_model
    player = Player(learner.inference, learner.agent, learner.config.acting, N)
    nowhere, seen = np.zeros(N, bool), []
    for _ in range(C + 2):  # two more than it holds
        seen.append(frames(rng))
        player.act(seen[-1], nowhere)
    before, action = player.latent.clone(), player.action.clone()
    for parameter in model.encoder.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    learner.inference.refresh()  # as a world-model update does
    torch.manual_seed(5)
    player.refresh()
    torch.manual_seed(5)
    remembered = torch.from_numpy(np.stack(seen[-C:], 1))
    expected = model.sample(model.encode(remembered), torch.rand(N, C, model.config.categoricals))
    assert torch.equal(player.latent, expected)
    assert not torch.equal(player.latent, before)
    assert torch.equal(player.action, action)


def test_state_brings_a_player_back():
    learner, rng = tiny_learner(), np.random.default_rng(0)
    first = np.ones(N, bool)
    player, other = (Player(learner.inference, learner.agent, learner.config.acting, N) for _ in range(2))
    for t in range(4):
        player.act(frames(rng), first & (t == 0))
    state = player.state()
    kept = {name: value.clone() for name, value in state.items()}
    other.load_state(state)
    rest = [frames(rng) for _ in range(6)]
    actions = []
    for p in (player, other):
        torch.manual_seed(3)
        actions.append([p.act(obs, first & (t == 2)).tolist() for t, obs in enumerate(rest)])
    assert actions[0] == actions[1]
    assert all(
        torch.equal(state[name], kept[name]) for name in kept
    )  # a state that was taken does not change with the player


def test_acting_waits_for_the_device_only_to_hand_over_the_actions():
    learner = tiny_learner()
    player = Player(learner.inference, learner.agent, learner.config.acting, N)
    with no_sync():
        player.act(frames(np.random.default_rng(0)), np.ones(N, bool), np.zeros(N, bool))
