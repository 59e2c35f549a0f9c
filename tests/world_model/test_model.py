"""The world model as a whole: shapes, which gradients reach what, determinism, resets, syncs."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from stormfast.world_model import WorldModel
from stormfast.world_model.encoder import normalize_frames
from tests.model_fixtures import NUM_ACTIONS, make_batch, no_sync, randomize, tiny_config

TERMS = {
    "total",
    "reconstruction",
    "reward",
    "termination",
    "dynamics",
    "dynamics_kl",
    "representation",
    "representation_kl",
}


def build(protocol="standard", **values):
    torch.manual_seed(1)
    config = tiny_config(protocol, {f"world_model.{name}": value for name, value in values.items()})
    model = WorldModel(config.world_model, NUM_ACTIONS)
    randomize(model)
    return model.eval()


def predict(model, batch, seed=0):
    frames = normalize_frames(batch.obs)
    uniform = torch.rand(*batch.action.shape, 3, generator=torch.Generator().manual_seed(seed))
    return model.predict(frames, batch, uniform)


def tensors_of(prediction):
    parts = {f.name: getattr(prediction, f.name) for f in dataclasses.fields(prediction)}
    heads = parts.pop("heads")
    return parts | heads


@pytest.mark.parametrize("tokens", ["fused", "separate"])
@torch.no_grad()
def test_shapes_of_a_prediction(tokens):
    prediction = predict(build(tokens=tokens), make_batch(2, 5))
    shapes = {name: tuple(value.shape) for name, value in tensors_of(prediction).items()}
    assert shapes == {
        "posterior": (2, 5, 3, 5),
        "posterior_log_probs": (2, 5, 3, 5),
        "prior": (2, 5, 3, 5),
        "reconstruction": (2, 5, 3, 64, 64),
        "reward": (2, 5, 255),
        "termination": (2, 5, 1),
        "hidden": (2, 5, 12),
    }


@torch.no_grad()
def test_encode_is_the_posterior_of_each_frame_alone():
    model, batch = build(), make_batch(2, 5)
    posterior = predict(model, batch).posterior
    torch.testing.assert_close(model.encode(batch.obs), posterior, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        model.encode(batch.obs[1]), posterior[1], rtol=1e-10, atol=1e-10
    )  # [N, 3, 64, 64], as in acting
    torch.testing.assert_close(model.encode(batch.obs[1:, 3:4]), posterior[1:, 3:4], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_prediction_is_its_parts():
    model, batch = build(), make_batch(2, 5)
    uniform = torch.rand(2, 5, 3)
    prediction = model.predict(normalize_frames(batch.obs), batch, uniform)
    latent = model.sample(prediction.posterior, uniform)
    hidden = model.sequence(latent, batch.action, batch.is_first)
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(prediction.hidden, hidden, **close)
    torch.testing.assert_close(prediction.prior, model.prior(hidden), **close)
    torch.testing.assert_close(prediction.heads["reward"], model.reward(hidden), **close)
    torch.testing.assert_close(prediction.heads["termination"].squeeze(-1), model.termination(hidden)[..., 0], **close)
    torch.testing.assert_close(prediction.reconstruction[1, 3], model.decoder(latent[1, 3:4])[0], **close)


@torch.no_grad()
def test_without_uniform_numbers_the_latent_is_the_mode():
    model = build()
    logits = torch.randn(2, 5, 3, 5)
    assert torch.equal(model.sample(logits, None), F.one_hot(logits.argmax(-1), 5).double().flatten(-2))


@pytest.mark.parametrize(("protocol", "leaks"), [("standard", False), ("reference", True)])
@torch.no_grad()
def test_what_lies_before_a_reset_reaches_beyond_it_only_under_reference(protocol, leaks):
    model, batch = build(protocol), make_batch(3, 6, resets=False)
    is_first = torch.zeros(3, 6, dtype=torch.bool)
    is_first[:, 2] = True
    batch = dataclasses.replace(batch, is_first=is_first)
    altered = dataclasses.replace(batch, obs=batch.obs.clone(), action=batch.action.clone())
    altered.obs[:, :2] = 255 - altered.obs[:, :2]
    altered.action[:, :2] = (altered.action[:, :2] + 1) % NUM_ACTIONS
    before, after = predict(model, batch), predict(model, altered)
    assert (before.hidden - after.hidden)[:, :2].abs().amax(-1).min() > 1e-6
    assert ((before.hidden - after.hidden)[:, 2:].abs().max() > 1e-6) == leaks


@pytest.mark.parametrize("protocol", ["standard", "reference"])
@pytest.mark.parametrize("tokens", ["fused", "separate"])
def test_the_total_reaches_every_parameter(protocol, tokens):
    model = build(protocol, tokens=tokens, **{"loss.free_bits": 0.0}).train()
    losses = model.loss(make_batch())
    assert set(losses) == TERMS
    assert all(value.shape == () and value.isfinite() for value in losses.values())
    losses["total"].backward()
    untouched = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert untouched == set()
    positions = model.sequence.positions.weight.grad
    assert (
        positions.abs().amax(-1) > 0
    ).sum() == 7 * model.sequence.tokens.per_step  # and no position beyond the window


def test_the_reconstruction_trains_the_encoder_through_the_sample():
    model = build().train()
    model.loss(make_batch())["reconstruction"].backward()
    assert model.encoder.layers[0].weight.grad.abs().max() > 0
    assert all(p.grad is None for p in model.sequence.parameters())


def test_the_same_seed_gives_the_same_loss():
    model, batch, totals = build(), make_batch(), []
    for seed in (4, 4, 5):
        torch.manual_seed(seed)
        totals.append(model.loss(batch)["total"].item())
    assert totals[0] == totals[1] != totals[2]


def test_every_step_of_a_window_is_decoded_at_times():
    model, batch = build(decode_every=3), make_batch(2, 7)
    with no_sync():
        drawn = [model.draw_decoded(batch.action) for _ in range(60)]
    assert {tuple(steps.tolist()) for steps in drawn} == {(0, 3), (1, 4), (2, 5), (3, 6)}
    frames, uniform = normalize_frames(batch.obs), torch.rand(2, 7, 3)
    whole, part = (model.predict(frames, batch, uniform, steps) for steps in (None, drawn[0]))
    torch.testing.assert_close(part.reconstruction, whole.reconstruction[:, drawn[0]])
    assert torch.equal(part.hidden, whole.hidden)
    model.train().loss(batch)["total"].backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("head_init", "zero"), [("zero", True), ("default", False)])
def test_the_reward_head_starts_at_zero_where_asked(head_init, zero):
    model = WorldModel(tiny_config(values={"world_model.head_init": head_init}).world_model, NUM_ACTIONS)
    reward = model.two_hot.decode(model.reward(torch.randn(5, 12)))
    assert (reward.abs().max() < 1e-12) == zero


def test_no_loss_waits_for_the_device():
    model, batch = build().train(), make_batch()
    with no_sync():
        model.loss(batch)["total"].backward()


def test_the_weights_of_a_checkpoint_are_all_there_is():
    model, other = build(), build()
    randomize(other)
    other.load_state_dict(model.state_dict())
    batch = make_batch()
    with torch.no_grad():
        ours, theirs = (tensors_of(predict(which, batch)) for which in (model, other))
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@torch.no_grad()
def test_a_centred_model_begins_by_drawing_the_mean_frame():
    values = {"world_model.centre_frames": True, "world_model.decoder_init": "zero"}
    model = WorldModel(tiny_config(values=values).world_model, NUM_ACTIONS).eval()
    mean, batch = torch.rand(3, 64, 64), make_batch()
    model.centre(mean)
    frames = normalize_frames(batch.obs)
    drawn = model.predict(frames, batch, None).reconstruction
    assert torch.equal(drawn, mean.expand_as(drawn))


def test_zero_is_the_decoders_output_layer_alone():
    drawn = [
        WorldModel(tiny_config(values={"world_model.decoder_init": init}).world_model, NUM_ACTIONS)
        for init in ("default", "zero")
    ]
    default, zero = (model.decoder.layers[-1] for model in drawn)
    assert default.weight.abs().min() > 0
    assert not zero.weight.any()
    assert not zero.bias.any()
    assert drawn[1].decoder.layers[-4].weight.abs().min() > 0
