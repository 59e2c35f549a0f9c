"""The inference copy is the model in evaluation mode, as of its last refresh."""

import pytest
import torch
from torch import nn

from stormfast.world_model.inference import InferenceModel
from tests.model_fixtures import double_precision, make_batch, tiny_learner


@pytest.fixture(autouse=True)
def _float64():
    with double_precision():
        yield


def difference(got, expected):
    return (got.double() - expected.double()).norm() / expected.double().norm()


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@torch.no_grad()
def test_the_folded_encoder_is_the_encoder(dtype, error):
    model = tiny_learner().world_model
    obs, expected = make_batch(3, 2).obs, model.encoder.embed(make_batch(3, 2).obs)
    assert expected.std() > 0.1
    embedded = InferenceModel(model, dtype).folded.embed(obs)
    assert embedded.dtype == dtype
    assert difference(embedded, expected) < error
    assert difference(InferenceModel(model, dtype).folded.embed(obs / 255), expected) < error


def test_only_folding_writes_what_is_folded():
    """In [0, 1] the mean frame would be copied over what folding made of it, in 0..255, were it part of the state."""
    twin = tiny_learner(values={"world_model.centre_frames": True}).inference
    copied = {tensor.data_ptr() for copies, _ in twin.pairs for tensor in copies}
    assert twin.folded.mean_frame is not None
    assert not copied & {buffer.data_ptr() for buffer in twin.folded.buffers()}


@torch.no_grad()
def test_frames_are_whole_numbers_in_bfloat16():
    assert torch.equal(torch.arange(256).to(torch.bfloat16).int(), torch.arange(256))


@pytest.mark.parametrize("tokens", ["fused", "separate"])
def test_it_changes_with_a_refresh_and_not_before(tokens):
    learner = tiny_learner(values={"world_model.tokens": tokens})
    source, twin, batch = learner.world_model, learner.inference, make_batch(3, 4)

    @torch.no_grad()
    def outputs(model):
        logits = model.encode(batch.obs)
        hidden = model.sequence(model.sample(logits, None), batch.action, batch.is_first)
        return torch.cat(
            [
                x.flatten()
                for x in (logits, hidden, model.prior(hidden), model.reward(hidden), model.termination(hidden))
            ]
        )

    before = outputs(twin.model)
    torch.testing.assert_close(before, outputs(source), rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter += 0.01
    assert torch.equal(outputs(twin.model), before)
    twin.refresh()
    after = outputs(twin.model)
    torch.testing.assert_close(after, outputs(source), rtol=1e-10, atol=1e-10)
    assert (after - before).abs().max() > 1e-6


def test_it_holds_matrices_in_the_dtype_of_the_arithmetic_and_needs_no_gradient():
    twin = InferenceModel(tiny_learner().world_model, torch.bfloat16).model
    linear = [module for module in twin.modules() if isinstance(module, nn.Linear)]
    assert len(linear) > 10
    assert all(module.weight.dtype == torch.bfloat16 for module in linear)
    assert all(module.weight.dtype == torch.float64 for module in twin.modules() if isinstance(module, nn.LayerNorm))
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert not any(module.training for module in twin.modules())
    assert twin.decoder is None


def test_imagination_and_acting_take_the_newest_weights():
    learner = tiny_learner()
    context = make_batch(6, 4)

    def imagined():
        torch.manual_seed(3)
        return learner.imagination(context).state

    before = imagined()
    learner.update_world_model(make_batch())
    assert not torch.equal(imagined(), before)
    before = imagined()
    with torch.no_grad():
        learner.agent.actor[-1].bias += torch.tensor([9.0, 0, 0, 0])
    assert not torch.equal(imagined(), before)


@pytest.mark.parametrize("tokens", ["fused", "separate"])
@torch.no_grad()
def test_a_row_alone_is_that_of_the_full_pass(tokens):
    model = tiny_learner(values={"world_model.tokens": tokens}).world_model
    batch, step = make_batch(5, 6), torch.tensor([0, 5, 2, 3, 1])
    latent = model.sample(model.encode(batch.obs), None)
    expected = model.sequence(latent, batch.action, None)[torch.arange(5), step]
    torch.testing.assert_close(model.sequence.at(latent, batch.action, step), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@torch.no_grad()
def test_the_folded_encoder_takes_the_mean_frame_away(dtype, error):
    learner = tiny_learner(values={"world_model.centre_frames": True})
    model, obs, mean = learner.world_model, make_batch(3, 2).obs, torch.rand(3, 64, 64)
    plain = model.encoder.embed(obs)
    inference = InferenceModel(model, dtype)
    model.centre(mean)
    expected = model.encoder.embed(obs)
    assert difference(expected, plain) > 0.1
    assert difference(inference.folded.embed(obs), plain) < error  # until the refresh
    inference.refresh()
    for frames in (obs, obs / 255):
        assert difference(inference.folded.embed(frames), expected) < error
