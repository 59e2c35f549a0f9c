"""The agent's losses against loops, what each gradient moves, and that a bandit is solved."""

import dataclasses
import math

import pytest
import torch

from stormfast.agent import Agent, reach_probability
from stormfast.records import Replayed, Rollout, WindowRollout
from stormfast.returns import lambda_return, percentiles
from tests.model_fixtures import NUM_ACTIONS, double_precision, no_sync, randomize, tiny_config

B, H = 5, 6
FEATURES = 15 + 12


@pytest.fixture(autouse=True)
def _float64():
    with double_precision():
        yield


def build(protocol="standard", seed=0, **values):
    torch.manual_seed(seed)
    config = tiny_config(protocol, {f"agent.{name}": value for name, value in values.items()})
    agent = Agent(config.agent, config.world_model, NUM_ACTIONS)
    randomize(agent)
    return agent


def make_rollout(agent, batch=B, seed=0):
    """Random, but log_prob is of the agent's own policy."""
    g = torch.Generator().manual_seed(seed)
    state = torch.randn(batch, H + 1, FEATURES, generator=g)
    action = torch.randint(NUM_ACTIONS, (batch, H), generator=g)
    with torch.no_grad():
        log_prob = agent.log_policy(state[:, :-1]).gather(-1, action[..., None]).squeeze(-1)
    reward, continuation = 2 * torch.randn(batch, H, generator=g), torch.rand(batch, H, generator=g)
    return Rollout(state, action, log_prob, reward, continuation, alive=torch.ones(batch))


def gradients(agent, loss):
    parameters = dict(agent.named_parameters())
    trained = [name for name, p in parameters.items() if p.requires_grad]
    return dict(
        zip(trained, torch.autograd.grad(loss, [parameters[name] for name in trained], allow_unused=True), strict=True)
    )


def assert_same(left, right, **tolerance):
    for name, gradient in left.items():
        torch.testing.assert_close(
            gradient,
            right[name],
            msg=lambda m, name=name: f"{name}: {m}",
            **(tolerance or {"rtol": 1e-10, "atol": 1e-12}),
        )


# --- state and policy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("choice", "features"), [("latent", 15), ("hidden", 12), ("both", 27)])
def test_state_choices(choice, features):
    agent, latent, hidden = build(state=choice), torch.randn(2, 3, 15), torch.randn(2, 3, 12)
    expected = {"latent": latent, "hidden": hidden, "both": torch.cat([latent, hidden], -1)}[choice]
    assert torch.equal(agent.state(latent, hidden), expected)
    assert agent.actor[0].weight.shape == agent.critic[0].weight.shape == (10, features)
    assert agent.log_policy(expected).shape == (2, 3, NUM_ACTIONS)


@pytest.mark.parametrize("unimix", [0.0, 0.01, 0.4])
def test_policy_is_the_mixed_softmax(unimix):
    agent, state = build(unimix=unimix), torch.randn(40, FEATURES)
    with torch.no_grad():
        agent.actor[-1].weight.mul_(20)  # sure of itself, so that the floor shows
    probs = agent.log_policy(state).exp()
    torch.testing.assert_close(
        probs, (1 - unimix) * agent.actor(state).softmax(-1) + unimix / NUM_ACTIONS, rtol=1e-9, atol=1e-15
    )
    torch.testing.assert_close(probs.sum(-1), torch.ones(40))
    assert probs.min() >= unimix / NUM_ACTIONS * (1 - 1e-9)
    assert probs.min() < (unimix / NUM_ACTIONS) * 1.001 + 1e-6


def test_sample_action_is_the_inverse_cdf():
    agent, count = build(), 4000
    probs = torch.tensor([0.2, 0.5, 0.0, 0.3])
    grid = (
        torch.arange(count) + 0.5
    ) / count  # each u once: class counts are the probabilities, and classes come in order
    action = agent.sample_action(probs.log().expand(count, -1), grid)
    assert torch.equal(action, action.sort().values)
    assert torch.bincount(action, minlength=4).tolist() == [800, 2000, 0, 1200]
    assert action.dtype == torch.int64


def test_sample_action_at_the_ends():
    agent = build()
    ends = torch.tensor([0.0, 1 - 2**-53])
    assert agent.sample_action(torch.full((2, NUM_ACTIONS), 1 / NUM_ACTIONS).log(), ends).tolist() == [
        0,
        NUM_ACTIONS - 1,
    ]
    impossible = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).log().expand(3, -1)
    assert agent.sample_action(impossible, torch.tensor([0.0, 0.5, 1 - 2**-53])).tolist() == [
        1,
        2,
        2,
    ]  # never one of probability 0
    short = torch.full((1, NUM_ACTIONS), 0.2499999)  # a cdf that rounding leaves below 1
    assert agent.sample_action(short.log(), ends[1:]).tolist() == [NUM_ACTIONS - 1]


# --- losses ------------------------------------------------------------------------------------------------------


def naive_losses(agent, rollout):
    """By loops over rollouts and steps. Lambda-return, percentile and two-hot have tests of their own."""
    config, two_hot = agent.config, agent.two_hot
    value, slow = (two_hot.decode(critic(rollout.state)).detach() for critic in (agent.critic, agent.slow_critic))
    discount = config.gamma * rollout.continuation
    returns, slow_returns = (
        lambda_return(rollout.reward, discount, v, config.lam, config.bootstrap) for v in (value, slow)
    )
    decay = config.percentile_decay
    low, high = percentiles(returns, 0.05, 0.95)
    scale = (1 - decay) * (high - low)
    sums = dict.fromkeys(("policy", "value", "slow_value", "entropy", "bonus"), 0.0)
    count = rollout.reward.numel()
    for b in range(rollout.reward.shape[0]):
        weight = rollout.alive[b].item() if config.weight_by_continuation else 1.0
        for t in range(H):
            log_policy, action = agent.log_policy(rollout.state[b, t]), rollout.action[b, t]
            advantage = (returns[b, t] - value[b, t]) / max(config.return_floor, scale)
            ratio = (
                1.0 if config.minibatches == 1 else math.exp(log_policy[action].item() - rollout.log_prob[b, t].item())
            )
            logits = agent.critic(rollout.state[b, t])
            sums["policy"] += -weight * ratio * advantage * log_policy[action] / count
            entropy = -sum(p.exp() * p for p in log_policy) / count
            sums["entropy"] += entropy
            sums["bonus"] += config.entropy * weight * entropy
            sums["value"] += weight * two_hot.loss(logits, returns[b, t]) / count
            sums["slow_value"] += weight * two_hot.loss(logits, slow_returns[b, t]) / count
            weight *= rollout.continuation[b, t].item() if config.weight_by_continuation else 1.0
    total = sums["policy"] + sums["value"] + sums["slow_value"] - sums.pop("bonus")
    return sums | {"total": total, "return_scale": scale}


@pytest.mark.parametrize(
    ("protocol", "values"),
    [
        ("standard", {}),
        ("reference", {}),
        ("standard", {"minibatches": 2, "unimix": 0.1}),
        ("standard", {"percentile_decay": 0.0, "entropy": 0.1}),
        ("standard", {"return_floor": 0.01}),
    ],
)
def test_every_term_and_gradient_is_that_of_the_loops(protocol, values):
    agent = build(protocol, **values)
    rollout = make_rollout(agent)
    rollout = dataclasses.replace(
        rollout, alive=torch.tensor([1.0, 0, 1, 1, 0]), log_prob=rollout.log_prob - 0.1 * torch.rand(B, H)
    )
    expected, got = naive_losses(agent, rollout), agent.loss(rollout)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-12)
    # the oracle's ratio is a number, so it carries no gradient either
    assert_same(gradients(agent, got["total"]), gradients(agent, expected["total"]))
    assert (got["return_scale"] > 1) == (values.get("percentile_decay") == 0.0)  # both sides of max(1, S) are covered
    torch.testing.assert_close(got["imagined_reward"], rollout.reward.mean())


def window_rollout(agent, windows=3, steps=4):
    """Rollouts from random states beside random steps of replay."""
    g = torch.Generator().manual_seed(4)
    reward = torch.randn(windows, steps, generator=g)
    ended, known = (torch.rand(windows, steps, generator=g) < share for share in (0.3, 0.7))
    return WindowRollout(**vars(make_rollout(agent, windows * steps)), replayed=Replayed(reward, ended, known))


def test_the_loss_on_replayed_returns_is_that_of_the_loops_and_moves_the_critic_alone():
    agent, config = build(replay_value=0.3), build().config
    rollout = window_rollout(agent)
    replayed, (windows, steps) = rollout.replayed, rollout.replayed.reward.shape
    slow = agent.two_hot.decode(agent.slow_critic(rollout.state))
    imagined = lambda_return(rollout.reward, config.gamma * rollout.continuation, slow, config.lam)[:, 0]
    expected, count = 0.0, windows * (steps - 1)
    for w in range(windows):
        following = imagined[w * steps + steps - 1]
        for k in reversed(range(steps - 1)):
            after = imagined[w * steps + k + 1]
            if replayed.known[w, k + 1]:
                after = (1 - config.lam) * after + config.lam * following
            following = replayed.reward[w, k] + config.gamma * (not replayed.ended[w, k]) * after
            if replayed.known[w, k]:
                logits = agent.critic(rollout.state[w * steps + k, 0])
                expected += agent.two_hot.loss(logits, following.detach()) / count
    losses = agent.loss(rollout)
    torch.testing.assert_close(losses["replay_value"], expected, rtol=1e-10, atol=1e-12)
    assert_same(gradients_of(agent, losses["replay_value"]), gradients_of(agent, expected))
    moved = {
        n.split(".")[0] for n, g in gradients_of(agent, losses["replay_value"]).items() if g is not None and g.any()
    }
    assert moved == {"critic"}
    plain = build(replay_value=0.0).loss(make_rollout(agent, windows * steps))
    assert plain.keys() == losses.keys() - {"replay_value"}
    torch.testing.assert_close(losses["total"], plain["total"] + 0.3 * losses["replay_value"])


def test_policy_loss_moves_the_actor_alone_and_value_losses_the_critic_alone():
    agent = build()
    losses = agent.loss(make_rollout(agent))
    for name, moved in (("policy", "actor"), ("entropy", "actor"), ("value", "critic"), ("slow_value", "critic")):
        by_name = gradients_of(agent, losses[name])
        reached = {n.split(".")[0] for n, g in by_name.items() if g is not None and g.any()}
        assert reached == {moved}
    assert not any(p.requires_grad for p in agent.slow_critic.parameters())
    assert {id(p) for p in agent.trained_parameters()} == {
        id(p) for n, p in agent.named_parameters() if not n.startswith("slow_critic")
    }


def gradients_of(agent, loss):
    trained = {n: p for n, p in agent.named_parameters() if p.requires_grad}
    return dict(
        zip(
            trained,
            torch.autograd.grad(loss, list(trained.values()), allow_unused=True, retain_graph=True),
            strict=True,
        )
    )


def test_a_step_after_a_predicted_end_does_not_count():
    agent = build()
    rollout = make_rollout(agent)
    rollout.continuation[:, 2] = 0
    before = gradients(agent, agent.loss(rollout)["total"])
    agent.return_scale.low.zero_(), agent.return_scale.high.zero_()
    altered = dataclasses.replace(rollout, action=rollout.action.clone(), state=rollout.state.clone())
    altered.action[:, 3:] = (altered.action[:, 3:] + 1) % NUM_ACTIONS
    altered.state[:, 3:] += 1
    assert_same(before, gradients(agent, agent.loss(altered)["total"]))
    agent.return_scale.low.zero_(), agent.return_scale.high.zero_()
    altered.action[:, 2] = (altered.action[:, 2] + 1) % NUM_ACTIONS  # the step that ends it does
    after = gradients(agent, agent.loss(altered)["total"])
    assert any((before[name] - after[name]).abs().max() > 1e-6 for name in before)


def test_under_reference_every_step_counts():
    agent = build("reference")
    rollout = make_rollout(agent)
    rollout.continuation[:, 2] = 0
    targets = agent.targets(rollout, agent.critic(rollout.state))
    assert torch.equal(targets.weight, torch.ones(B, H))


def test_reach_probability_is_the_running_product():
    rollout = make_rollout(build())
    rollout = dataclasses.replace(rollout, alive=torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]))
    got = reach_probability(rollout)
    for b in range(B):
        for t in range(H):
            assert got[b, t].item() == pytest.approx(
                math.prod([rollout.alive[b].item(), *rollout.continuation[b, :t].tolist()]), abs=1e-15
            )


def test_rows_that_cannot_start_have_no_gradient():
    """Half of the rows switched off: the gradients are those of the other half alone, halved by the mean."""
    agent = build(percentile_decay=0.9)  # scale below 1 either way, so that percentiles do not enter
    rollout = make_rollout(agent, batch=6)
    rollout = dataclasses.replace(rollout, reward=0.1 * rollout.reward, alive=torch.tensor([1.0, 0, 0, 1, 0, 1]))
    on = rollout.alive.bool()
    alone = Rollout(**{f.name: getattr(rollout, f.name)[on] for f in dataclasses.fields(rollout)})
    both = agent.loss(rollout)
    halves = agent.loss(alone)
    assert both["return_scale"] < 1
    assert halves["return_scale"] < 1
    assert_same(gradients(agent, both["total"]), {name: g / 2 for name, g in gradients(agent, halves["total"]).items()})


def test_the_importance_ratio_is_one_while_the_policy_is_unchanged():
    plain, weighted = build(minibatches=1), build(minibatches=2)
    weighted.load_state_dict(plain.state_dict())
    rollout = make_rollout(plain)
    totals = [agent.loss(rollout) for agent in (plain, weighted)]
    assert_same(gradients(plain, totals[0]["total"]), gradients(weighted, totals[1]["total"]))
    doubled = dataclasses.replace(
        rollout, log_prob=rollout.log_prob - math.log(2)
    )  # half as likely under the policy that took them
    torch.testing.assert_close(weighted.loss(doubled)["policy"], 2 * plain.loss(rollout)["policy"])
    torch.testing.assert_close(plain.loss(doubled)["policy"], plain.loss(rollout)["policy"])


def test_positive_advantage_raises_the_probability_of_its_action():
    agent = build()
    rollout = make_rollout(agent, batch=1)
    with torch.no_grad():
        advantage = agent.targets(rollout, agent.critic(rollout.state)).advantage[0]
    loss = agent.loss(rollout)["policy"]
    gradient = torch.autograd.grad(loss, [*agent.actor.parameters()])
    with torch.no_grad():
        for parameter, g in zip(agent.actor.parameters(), gradient, strict=True):
            parameter.sub_(1e-4 * g)
        after = agent.log_policy(rollout.state[:, :-1]).gather(-1, rollout.action[..., None]).squeeze(-1)[0]
    weight = reach_probability(rollout)[0]
    assert (weight * advantage * (after - rollout.log_prob[0])).sum() > 0


@pytest.mark.parametrize("minibatches", [1, 2])
def test_a_bandit_is_solved(minibatches):
    """Action 2 pays 1, the others nothing; the episode ends after each step."""
    torch.manual_seed(1)
    config = tiny_config(values={"agent.minibatches": minibatches})
    agent = Agent(config.agent, config.world_model, NUM_ACTIONS)
    optimizer = torch.optim.Adam(agent.trained_parameters(), lr=1e-2)
    state = torch.randn(1, 1, FEATURES).expand(32, 2, -1)
    before = agent.log_policy(state[0, 0]).exp()[2].item()
    for _ in range(150):
        with torch.no_grad():
            log_policy = agent.log_policy(state[:, :1])
            action = agent.sample_action(log_policy, torch.rand(32, 1))
            log_prob = log_policy.gather(-1, action[..., None]).squeeze(-1)
        reward = (action == 2).to(state.dtype)
        loss = agent.loss(Rollout(state, action, log_prob, reward, torch.zeros(32, 1), torch.ones(32)))["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        agent.update_slow_critic()
    after = agent.log_policy(state[0, 0]).exp()[2].item()
    assert before < 0.5
    assert after > 0.8
    assert agent.two_hot.decode(agent.critic(state[0, 0])).item() == pytest.approx(after, abs=0.1)  # what it can expect


def test_entropy_bonus_flattens_the_policy():
    agent = build(entropy=1.0, weight_by_continuation=False)
    rollout = make_rollout(agent)
    losses = agent.loss(rollout)
    assert 0 < losses["entropy"] < math.log(NUM_ACTIONS)
    flattening = gradients(agent, agent.loss(rollout)["total"])
    agent.config = dataclasses.replace(agent.config, entropy=0.0)
    plain = gradients(agent, agent.loss(rollout)["total"])
    entropy = gradients(agent, -agent.loss(rollout)["entropy"])
    actor = [name for name in plain if name.startswith("actor")]
    torch.testing.assert_close(
        [flattening[n] - plain[n] for n in actor], [entropy[n] for n in actor], rtol=1e-9, atol=1e-12
    )


# --- slow critic, percentiles, shapes ----------------------------------------------------------------------------


def test_the_slow_critic_starts_equal_and_follows():
    torch.manual_seed(0)
    config = tiny_config(values={"agent.slow_critic_decay": 0.9, "agent.head_init": "default"})
    agent = Agent(config.agent, config.world_model, NUM_ACTIONS)
    critic, slow = [*agent.critic.parameters()], [*agent.slow_critic.parameters()]
    assert all(torch.equal(a, b) and a is not b for a, b in zip(critic, slow, strict=True))
    randomize(agent.critic)
    before = [p.clone() for p in slow]
    agent.update_slow_critic()
    for a, b, now in zip(critic, before, slow, strict=True):
        torch.testing.assert_close(now, 0.9 * b + 0.1 * a)
        assert not now.requires_grad


def test_the_critic_starts_at_zero_where_asked():
    for head_init, zero in (("zero", True), ("default", False)):
        config = tiny_config(values={"agent.head_init": head_init})
        agent = Agent(config.agent, config.world_model, NUM_ACTIONS)
        value = agent.two_hot.decode(agent.critic(torch.randn(6, FEATURES)))
        assert (value.abs().max() < 1e-12) == zero


def test_the_running_percentiles_are_saved_with_the_agent():
    agent, other = build(), build(seed=1)
    agent.loss(make_rollout(agent))
    other.load_state_dict(agent.state_dict())
    assert agent.return_scale.high != 0
    assert other.return_scale.high == agent.return_scale.high


def test_shapes_that_would_broadcast_are_refused():
    agent = build()
    rollout = make_rollout(agent)
    with pytest.raises(ValueError, match=r"continuation must be \[B, H\] = \(\d+, \d+\), got"):
        dataclasses.replace(rollout, continuation=rollout.continuation[:, :1])
    with pytest.raises(ValueError, match=r"log_prob must be \[B, H\]"):
        dataclasses.replace(rollout, state=rollout.state[:, :-1], action=rollout.action[:, :-1])
    with pytest.raises(ValueError, match=r"must have state \[B, H\+1, F\] and alive \[B\]"):
        dataclasses.replace(rollout, state=rollout.state[:, :-1])


def test_a_loss_does_not_wait_for_the_device():
    agent = build(minibatches=2)
    rollout = make_rollout(agent)
    with no_sync():
        agent.loss(rollout)["total"].backward()
        agent.update_slow_critic()
