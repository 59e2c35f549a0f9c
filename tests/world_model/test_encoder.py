"""Frames in, features out, against plain functional convolutions; and what memory format and dtype must not change."""

import pytest
import torch
from torch.nn import functional as F

from stormfast.world_model.encoder import Decoder, Encoder, normalize_frames
from tests.model_fixtures import randomize

CHANNELS = [(2, 3, 4, 5), (7, 1, 6, 3)]


def naive_norm(x, norm):
    shape = (1, -1, 1, 1)
    x = (x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
    return x * norm.weight.view(shape) + norm.bias.view(shape)


@pytest.mark.parametrize("channels", CHANNELS)
@torch.no_grad()
def test_encoder_is_its_convolutions_flattened_as_channel_row_column(channels):
    encoder = Encoder(channels).eval()
    randomize(encoder)
    frames = torch.rand(3, 3, 64, 64)
    x = frames
    for i in range(4):
        x = F.conv2d(x, encoder.layers[3 * i].weight.contiguous(), stride=2, padding=1)
        x = naive_norm(x, encoder.layers[3 * i + 1]).relu()
    assert x.shape == (3, channels[-1], 4, 4)
    got = encoder(normalize_frames(frames))
    assert got.shape == (3, encoder.num_features)
    by_hand = torch.empty_like(got)
    for c in range(channels[-1]):
        for row in range(4):
            for column in range(4):
                by_hand[:, (c * 4 + row) * 4 + column] = x[:, c, row, column]
    torch.testing.assert_close(got, by_hand, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        encoder(frames.contiguous()), by_hand, rtol=1e-10, atol=1e-10
    )  # whatever the memory format


@pytest.mark.parametrize("channels", CHANNELS)
@torch.no_grad()
def test_decoder_mirrors_the_encoder(channels):
    decoder = Decoder(15, channels).eval()
    randomize(decoder)
    latent = torch.randn(2, 15)
    features = latent @ decoder.linear.weight.T
    x = torch.stack([features[:, c * 16 : (c + 1) * 16].reshape(2, 4, 4) for c in range(channels[-1])], 1)
    x = naive_norm(x, decoder.layers[0]).relu()
    for i in range(3):
        x = F.conv_transpose2d(x, decoder.layers[2 + 3 * i].weight.contiguous(), stride=2, padding=1)
        x = naive_norm(x, decoder.layers[3 + 3 * i]).relu()
    last = decoder.layers[-1]
    x = F.conv_transpose2d(x, last.weight.contiguous(), last.bias, stride=2, padding=1)
    got = decoder(latent)
    assert got.shape == (2, 3, 64, 64)
    torch.testing.assert_close(got, x, rtol=1e-10, atol=1e-10)


def test_batch_statistics_in_training_and_running_ones_otherwise():
    encoder = Encoder((2, 3, 4, 5)).train()
    frames = torch.rand(4, 3, 64, 64)
    before = encoder.layers[1].running_mean.clone()
    encoder(frames)
    moved = encoder.layers[1].running_mean.clone()
    raw = encoder.layers[0](frames)
    torch.testing.assert_close(moved, 0.9 * before + 0.1 * raw.mean((0, 2, 3)).detach())
    encoder.eval()(frames)
    assert torch.equal(encoder.layers[1].running_mean, moved)


@pytest.mark.parametrize("lead", [(5,), (2, 3), (1, 1)])
def test_uint8_and_float_frames_agree(lead):
    obs = torch.randint(256, (*lead, 3, 64, 64), dtype=torch.uint8)
    frames = normalize_frames(obs)
    assert frames.dtype == torch.get_default_dtype()
    assert torch.equal(frames, (obs.to(frames.dtype) / 255).flatten(0, -4))
    assert torch.equal(normalize_frames(obs.to(frames.dtype) / 255), frames)
    assert frames.is_contiguous(memory_format=torch.channels_last)
    assert obs.max() > 1  # the replay's own frames are not scaled in place


def test_float_frames_are_not_written_to():
    frames = torch.rand(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    kept = frames.clone()
    Encoder((2, 3, 4, 5))(normalize_frames(frames))
    assert torch.equal(frames, kept)


def test_weights_are_channels_last():
    for module in (Encoder((3, 4, 5, 6)), Decoder(9, (3, 4, 5, 6))):
        convolutions = [p for p in module.parameters() if p.dim() == 4]
        assert len(convolutions) == 4
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in convolutions)


@torch.no_grad()
def test_a_centred_encoder_sees_the_difference_to_the_mean_frame():
    encoder = Encoder((2, 3, 4, 5), centre=True).eval()
    mean, frames = torch.rand(3, 64, 64), torch.rand(2, 3, 64, 64)
    plain = encoder(frames)
    encoder.mean_frame.copy_(mean)
    torch.testing.assert_close(encoder(frames + mean), plain)
    assert not torch.allclose(encoder(frames), plain)


@pytest.mark.parametrize("momentum", [0.1, 0.3])
@torch.no_grad()
def test_running_statistics_move_by_their_momentum(momentum):
    for module, shape in (
        (Encoder((2, 3, 4, 5), momentum=momentum), (4, 3, 64, 64)),
        (Decoder(9, (2, 3, 4, 5), momentum=momentum), (4, 9)),
    ):
        norms = [norm for norm in module.modules() if isinstance(norm, torch.nn.BatchNorm2d)]
        assert len(norms) == 4
        before = [norm.running_var.clone() for norm in norms]
        seen = {}
        for norm in norms:
            norm.register_forward_pre_hook(lambda norm, inputs, seen=seen: seen.update({norm: inputs[0].clone()}))
        module.train()(torch.rand(shape))
        for norm, old in zip(norms, before, strict=True):
            expected = (1 - momentum) * old + momentum * seen[norm].var((0, 2, 3), unbiased=True)
            torch.testing.assert_close(norm.running_var, expected)
