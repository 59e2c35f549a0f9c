"""Every term of the world-model loss against loops over batch and time, and what each mask leaves out."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical
from torch.distributions import kl_divergence as torch_kl
from torch.utils._pytree import tree_map

from stormfast.objective import weighted_sum
from stormfast.settings import WorldModelConfig, WorldModelLossConfig
from stormfast.world_model import WorldModel
from stormfast.world_model.focus import focus_weight, moving_pixels
from stormfast.world_model.heads import NUM_BINS, TwoHot
from stormfast.world_model.losses import (
    HEADS,
    Prediction,
    free_bits_mean,
    masked_mean,
    world_model_loss,
)
from stormfast_kernels import unimix_log_probs
from tests.model_fixtures import make_batch, tiny_config

B, T, S, K = 4, 6, 3, 5
UNIMIX = WorldModelConfig().unimix
WEIGHTS = WorldModelLossConfig.weights


def make_prediction(seed=0):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=1.0):
        return (scale * torch.randn(B, T, *shape, generator=g)).requires_grad_()

    posterior = draw(S, K)
    return Prediction(
        posterior=posterior,
        posterior_log_probs=unimix_log_probs(posterior, UNIMIX),
        prior=draw(S, K),
        reconstruction=draw(3, 64, 64),
        heads={"reward": draw(NUM_BINS), "termination": draw(1, scale=2.0)},
        hidden=draw(7),
    )


LOSS = {"reconstruction", "dynamics", "representation", "free_bits", "free_bits_per"}


def config_of(**values):
    values = {"focus": 0.0} | values
    names = {name: f"world_model.{'loss.' if name in LOSS else ''}{name}" for name in values}
    return tiny_config(values={names[name]: value for name, value in values.items()}).world_model


def losses_of(prediction, batch, **values):
    frames = torch.rand(B * T, 3, 64, 64, generator=torch.Generator().manual_seed(9))
    return world_model_loss(prediction, frames, batch, TwoHot(), config_of(**values))


def close(got, expected):
    torch.testing.assert_close(got.detach(), torch.as_tensor(expected, dtype=got.dtype), rtol=1e-10, atol=1e-12)


def naive_losses(prediction, batch, config):
    """The terms by loops: lists of what counts, then their means."""
    frames = torch.rand(B * T, 3, 64, 64, generator=torch.Generator().manual_seed(9))
    separate_episodes = config.separate_episodes
    terms = {name: [] for name in ("reconstruction", "reward", "termination", "kl")}
    two_hot = TwoHot()  # tested by itself in test_heads.py
    for b in range(B):
        for t in range(T):
            terms["reconstruction"].append(((prediction.reconstruction[b, t] - frames[b * T + t]) ** 2).sum().item())
            if not (separate_episodes and batch.is_last[b, t]):
                terms["reward"].append(two_hot.loss(prediction.heads["reward"][b, t], batch.reward[b, t]).item())
                end = batch.terminated[b, t] or (config.life_loss_terminates and batch.life_lost[b, t])
                logit = prediction.heads["termination"][b, t].item()
                terms["termination"].append(math.log1p(math.exp(-logit if end else logit)))
            if t > 0 and not (separate_episodes and batch.is_first[b, t]):
                p, q = (
                    Categorical(probs=(1 - config.unimix) * logits.softmax(-1) + config.unimix / K)
                    for logits in (prediction.posterior[b, t], prediction.prior[b, t - 1])
                )
                terms["kl"].append(torch_kl(p, q).sum().item())
    kl = sum(terms["kl"]) / len(terms["kl"])
    free = (
        max(config.loss.free_bits, kl)
        if config.loss.free_bits_per == "batch"
        else sum(max(config.loss.free_bits, x) for x in terms["kl"]) / len(terms["kl"])
    )
    named = {name: sum(values) / len(values) for name, values in terms.items() if name != "kl"}
    total = sum(named.values()) + (config.loss.dynamics + config.loss.representation) * free
    return named | {
        "total": total,
        "dynamics": free,
        "dynamics_kl": kl,
        "representation": free,
        "representation_kl": kl,
    }


@pytest.mark.parametrize("separate_episodes", [True, False])
@pytest.mark.parametrize("free_bits_per", ["step", "batch"])
@pytest.mark.parametrize("life_loss_terminates", [True, False])
@pytest.mark.parametrize("free_bits", [1.6, 100.0])  # below the mean KL but above some steps', and above all
def test_every_term_is_that_of_the_loops(separate_episodes, free_bits_per, life_loss_terminates, free_bits):
    prediction, batch = make_prediction(), make_batch(B, T, seed=5)
    assert batch.is_last.any()
    assert batch.is_first[:, 1:].any()
    settings = {
        "free_bits_per": free_bits_per,
        "life_loss_terminates": life_loss_terminates,
        "free_bits": free_bits,
        "dynamics": 0.7,
        "separate_episodes": separate_episodes,
    }
    got = losses_of(prediction, batch, **settings)
    expected = naive_losses(prediction, batch, config_of(**settings))
    assert set(got) == set(expected)
    for name, value in expected.items():
        close(got[name], value)


@pytest.mark.parametrize("separate_episodes", [True, False])
def test_a_last_observation_has_no_reward_or_continuation_target(separate_episodes):
    prediction, batch = make_prediction(), make_batch(B, T, seed=5)
    before = losses_of(prediction, batch, separate_episodes=separate_episodes)
    nonsense = {"reward": torch.where(batch.is_last, 1e4, batch.reward), "terminated": batch.terminated | batch.is_last}
    after = losses_of(prediction, dataclasses.replace(batch, **nonsense), separate_episodes=separate_episodes)
    for name in ("reward", "termination", "total"):
        assert (after[name] == before[name]) == separate_episodes
    for name in ("reward", "termination"):
        (gradient,) = torch.autograd.grad(before[name], prediction.heads[name], retain_graph=True)
        at_last = gradient.abs()[batch.is_last].max()
        assert (at_last == 0) if separate_episodes else (at_last > 0)


def test_the_frame_of_a_last_observation_is_learned():
    prediction, batch = make_prediction(), make_batch(B, T, seed=5)
    (gradient,) = torch.autograd.grad(losses_of(prediction, batch)["total"], prediction.reconstruction)
    assert gradient.abs().amax((2, 3, 4)).min() > 0


@pytest.mark.parametrize("separate_episodes", [True, False])
def test_the_kl_across_a_reset_does_not_matter(separate_episodes):
    prediction, batch = make_prediction(), make_batch(B, T, seed=5)
    losses = losses_of(prediction, batch, separate_episodes=separate_episodes, free_bits=0.0)
    (gradient,) = torch.autograd.grad(losses["dynamics"], prediction.prior)
    reached = gradient.abs().amax((2, 3)) > 0  # [B, T]
    expected = ~batch.is_first[:, 1:] if separate_episodes else torch.ones(B, T - 1, dtype=torch.bool)
    assert torch.equal(reached[:, :-1], expected)
    assert not reached[:, -1].any()  # what follows the window is not known


def test_each_kl_moves_its_own_side():
    prediction, batch = make_prediction(), make_batch(B, T)
    losses = losses_of(prediction, batch, free_bits=0.0)
    for name, moved, still in (("dynamics", "prior", "posterior"), ("representation", "posterior", "prior")):
        gradients = torch.autograd.grad(
            losses[name], [getattr(prediction, moved), getattr(prediction, still)], allow_unused=True, retain_graph=True
        )
        assert gradients[0].abs().max() > 0
        assert gradients[1] is None


def test_free_bits_cost_nothing_where_they_apply():
    """Per step, a step below the limit has no gradient though the mean is above it; on the batch mean, all steps or
    none have one.
    """
    batch, config = make_batch(B, T, resets=False), config_of(free_bits_per="step")
    kl = torch.tensor([[0.2, 3.0], [0.9, 5.0]], requires_grad=True)
    loss, mean = free_bits_mean(kl, None, config)
    close(loss, (1 + 3 + 1 + 5) / 4)
    close(mean, (0.2 + 3 + 0.9 + 5) / 4)
    assert torch.autograd.grad(loss, kl)[0].tolist() == [[0, 0.25], [0, 0.25]]
    loss, _ = free_bits_mean(kl, None, config_of(free_bits_per="batch"))
    close(loss, 9.1 / 4)
    assert torch.autograd.grad(loss, kl)[0].tolist() == [[0.25, 0.25], [0.25, 0.25]]
    loss, _ = free_bits_mean(kl, None, config_of(free_bits_per="batch", free_bits=3.0))
    close(loss, 3.0)
    assert not torch.autograd.grad(loss, kl)[0].any()
    keep = torch.tensor([[True, False], [True, True]])
    close(free_bits_mean(kl, keep, config)[0], (1 + 1 + 5) / 3)
    assert batch.is_first.sum() == 0


def test_a_lost_life_ends_the_episode_or_does_not():
    prediction, batch = make_prediction(), make_batch(B, T, resets=False)
    without = dataclasses.replace(batch, life_lost=torch.zeros_like(batch.life_lost))
    assert batch.life_lost.any()
    for terminates in (True, False):
        pair = [losses_of(prediction, x, life_loss_terminates=terminates)["termination"] for x in (batch, without)]
        assert (pair[0] != pair[1]) == terminates


def test_truncation_is_no_termination():
    prediction, batch = make_prediction(), make_batch(B, T, resets=False)
    cut = dataclasses.replace(batch, truncated=torch.ones_like(batch.truncated))
    assert losses_of(prediction, cut)["total"] == losses_of(prediction, batch)["total"]


def test_masked_mean():
    x = torch.tensor([[1.0, 2.0, math.nan], [4.0, math.inf, 6.0]])
    keep = torch.tensor([[True, False, False], [True, False, True]])
    assert masked_mean(x, keep) == 11 / 3  # what is masked is not looked at
    assert masked_mean(x, torch.zeros_like(keep)) == 0
    assert masked_mean(torch.tensor([[1.0, 2.0]]), None) == 1.5
    with pytest.raises(ValueError, match=r"\(2, 3\) and mask \(2, 1\)"):
        masked_mean(x, keep[:, :1])


def test_shapes_are_checked():
    prediction, batch = make_prediction(), make_batch(B, T)
    shorter_heads = [prediction.heads | {name: prediction.heads[name][:, :-1]} for name in ("reward", "termination")]
    for change in ({"prior": prediction.prior[:, :-1]}, *({"heads": heads} for heads in shorter_heads)):
        shorter = dataclasses.replace(prediction, **change)
        with pytest.raises(ValueError, match=r"got|must"):
            losses_of(shorter, batch)
    shorter = dataclasses.replace(prediction, reconstruction=prediction.reconstruction[:1, :1])
    with pytest.raises(ValueError, match=r"reconstruction"):
        losses_of(shorter, batch)


def test_half_precision_predictions_give_float32_losses():
    half = tree_map(lambda x: x.detach().to(torch.bfloat16), vars(make_prediction()))
    half = half | {"posterior_log_probs": unimix_log_probs(half["posterior"], UNIMIX)}  # never less than float32
    half, wide = Prediction(**half), Prediction(**tree_map(Tensor.float, half))
    batch, frames, two_hot = make_batch(B, T), torch.rand(B * T, 3, 64, 64, dtype=torch.float32), TwoHot().float()
    got, expected = (world_model_loss(p, frames, batch, two_hot, config_of()) for p in (half, wide))
    for name, value in got.items():
        assert value.dtype == torch.float32, name
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)


def test_a_term_without_weight_has_no_parameters_and_no_gradient():
    config = tiny_config(values={"world_model.loss.reconstruction": 0.0}).world_model
    model = WorldModel(config, 3)
    assert model.decoder is None
    losses = model.loss(make_batch(B, T))
    assert losses["reconstruction"].item() == 0
    losses["total"].backward()


def test_a_head_is_made_only_where_its_term_has_a_weight(monkeypatch):
    """As a term that is added later: off, it leaves parameters, and so saved weights, as they were."""
    monkeypatch.setitem(HEADS, "speed", lambda config: torch.nn.Linear(config.width, 1))
    config = tiny_config().world_model
    for weight in (0.0, 2.0):
        monkeypatch.setattr(type(config.loss), "weights", lambda loss, w=weight: WEIGHTS(loss) | {"speed": w})
        assert ("speed.weight" in WorldModel(config, 3).state_dict()) == (weight != 0)


def test_each_term_needs_a_weight(monkeypatch):
    monkeypatch.setattr(WorldModelLossConfig, "weights", lambda loss: WEIGHTS(loss) | {"speed": 1.0})
    with pytest.raises(ValueError, match="speed"):
        losses_of(make_prediction(), make_batch(B, T))


def test_weighted_sum():
    terms = {"a": torch.tensor(2.0), "b": torch.tensor(3.0), "c": torch.tensor(math.nan)}
    assert weighted_sum(terms, {"a": 1.0, "b": -0.5, "c": 0.0}).item() == 0.5
    with pytest.raises(ValueError, match="must not be 0"):
        weighted_sum(terms, dict.fromkeys(terms, 0))


def naive_motion_weight(frames: Tensor, is_first: Tensor, focus: float) -> Tensor:
    weight = torch.ones(B, T, 1, 64, 64)
    for b in range(B):
        for t in range(T):
            for other, begins in ((t - 1, t), (t + 1, t + 1)):
                if 0 <= other < T and not is_first[b, begins]:
                    change = (frames[b, t] - frames[b, other]).abs().max(0).values
                    weight[b, t, 0][change > 0.05] = 1 + focus
    return weight / weight.mean()


def moving_frames(batch):
    """A block that moves over one still picture, another one from each reset on. [B, T, 3, 64, 64]."""
    g = torch.Generator().manual_seed(1)
    frames = torch.rand(B, 1, 3, 64, 64, generator=g).repeat(1, T, 1, 1, 1)
    for b in range(B):
        for t in range(T):
            if batch.is_first[b, t]:
                frames[b, t:] = torch.rand(3, 64, 64, generator=g)
            frames[b, t, :, 8 : 8 + b, 5 * t : 5 * t + 3] += 0.3  # nothing moves in window 0
    return frames


def test_pixels_that_move_weigh_more():
    batch = make_batch(B, T, seed=5)
    assert batch.is_first[:, 1:].any()
    frames = moving_frames(batch)
    weight = focus_weight(moving_pixels(frames, ~batch.is_first[:, 1:]), 9.0)
    close(weight, naive_motion_weight(frames, batch.is_first, 9.0))
    close(weight.mean(), 1.0)
    close(weight.max() / weight.min(), 10.0)
    assert (weight[0] == weight.min()).all()


@pytest.mark.parametrize("known", [True, False])
def test_motion_of_some_frames_is_that_of_all_of_them(known):
    batch = make_batch(B, T, seed=5)
    frames, follows = moving_frames(batch), ~batch.is_first[:, 1:] if known else None
    for steps in (torch.arange(T), torch.tensor([0, T - 1]), torch.tensor([2])):
        assert torch.equal(moving_pixels(frames, follows, steps), moving_pixels(frames, follows)[:, steps])


def test_a_reset_counts_as_motion_only_where_it_is_not_known():
    batch = make_batch(B, T, seed=5)
    frames = moving_frames(batch)
    everywhere = focus_weight(moving_pixels(frames, None), 9.0)
    close(everywhere, naive_motion_weight(frames, torch.zeros_like(batch.is_first), 9.0))
    assert not torch.equal(everywhere, focus_weight(moving_pixels(frames, ~batch.is_first[:, 1:]), 9.0))


def test_focus_weighs_the_squared_error_and_nothing_else():
    prediction, batch = make_prediction(), make_batch(B, T, seed=5)
    frames = moving_frames(batch)
    plain, focused = (
        world_model_loss(prediction, frames.flatten(0, 1), batch, TwoHot(), config_of(focus=focus))
        for focus in (0.0, 9.0)
    )
    weight = naive_motion_weight(frames, batch.is_first, 9.0)
    close(focused["reconstruction"], (weight * (prediction.reconstruction - frames) ** 2).sum((2, 3, 4)).mean())
    assert focused["reconstruction"] != plain["reconstruction"]
    for name in plain.keys() - {"reconstruction", "total"}:
        assert torch.equal(plain[name], focused[name])


def test_focus_may_be_on_what_differs_from_the_mean_frame():
    prediction, batch, mean_frame = make_prediction(), make_batch(B, T, seed=5), torch.full((3, 64, 64), 0.5)
    frames = torch.full((B, T, 3, 64, 64), 0.5)
    frames[1, :, 2, 5:9, 3:5] = 0.6  # still, but not of the mean frame; one colour of it
    frames[2, :, :, 0, 0] = 0.54
    loss = world_model_loss(
        prediction, frames.flatten(0, 1), batch, TwoHot(), config_of(focus=4.0, focus_on="mean_frame"),
        mean_frame=mean_frame,
    )  # fmt: skip
    weight = torch.ones(B, T, 1, 64, 64)
    weight[1, :, 0, 5:9, 3:5] = 5.0
    error = (weight / weight.mean() * (prediction.reconstruction - frames) ** 2).sum((2, 3, 4))
    close(loss["reconstruction"], error.mean())


def test_where_nothing_moves_focus_changes_nothing():
    prediction, batch = make_prediction(), make_batch(B, T, resets=False)
    frames = torch.rand(B, 1, 3, 64, 64).repeat(1, T, 1, 1, 1).flatten(0, 1)
    plain, focused = (
        world_model_loss(prediction, frames, batch, TwoHot(), config_of(focus=focus)) for focus in (0.0, 9.0)
    )
    assert torch.equal(plain["total"], focused["total"])


def test_only_the_decoded_steps_are_compared():
    prediction, batch, steps = make_prediction(), make_batch(B, T, seed=5), torch.tensor([1, 3])
    frames = moving_frames(batch)
    part = dataclasses.replace(prediction, reconstruction=prediction.reconstruction[:, steps])
    for focus in (0.0, 9.0):
        whole, got = (
            world_model_loss(p, frames.flatten(0, 1), batch, TwoHot(), config_of(focus=focus), decoded=decoded)
            for p, decoded in ((prediction, None), (part, steps))
        )
        weight = naive_motion_weight(frames, batch.is_first, focus)[:, steps]
        error = (weight / weight.mean() * (part.reconstruction - frames[:, steps]) ** 2).sum((2, 3, 4))
        close(got["reconstruction"], error.mean())
        for name in whole.keys() - {"reconstruction", "total"}:
            assert torch.equal(whole[name], got[name])
