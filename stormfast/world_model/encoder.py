"""Frames to embeddings and latents back to frames: the convolutional halves of the categorical VAE.

B any batch of frames   C channels   E embedding features (channels[-1] * 4 * 4)
"""

import itertools

import torch
from torch import Tensor, nn

from stormfast.records import OBS_SHAPE

FEATURE_SIZE = OBS_SHAPE[1] // 2**4  # four stride-2 convolutions


def normalize_frames(obs: Tensor) -> Tensor:
    """uint8 frames to [0, 1] in the default float dtype, channels-last in memory; float frames pass through.

    Args:
        obs: [..., 3, 64, 64] uint8, or float already in [0, 1].
    Returns: [prod(...), 3, 64, 64] float.
    """
    frames = obs.flatten(0, -4).contiguous(
        memory_format=torch.channels_last
    )  # in uint8: a quarter of the bytes to move
    return frames if frames.is_floating_point() else frames.to(torch.get_default_dtype()).div_(255)


def channels_last(module: nn.Sequential) -> nn.Sequential:
    """Convolution weights in the layout that convolutions are fastest in, on CPUs as on tensor cores; in place."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Encoder(nn.Module):
    """4 x [conv 4x4 stride 2 pad 1 no bias, batch norm, ReLU]: [B, 3, 64, 64] -> [B, E], flattened as C, H, W.

    Args:
        centre: see the difference to `mean_frame`, [3, 64, 64] in [0, 1], a buffer of zeros until it is set. Frames of
            a game are nearly all the same, and what is the same in all of them says nothing.
        momentum: share of a batch in the running statistics of the batch norms.
    Source: STORM, arXiv 2310.09615, appendix (image encoder), without `centre`.
    """

    mean_frame: Tensor | None

    def __init__(self, channels: tuple[int, ...], *, centre: bool = False, momentum: float = 0.1) -> None:
        super().__init__()
        self.register_buffer("mean_frame", torch.zeros(OBS_SHAPE) if centre else None)
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *channels[:-1]), channels, strict=True):
            layers += [
                nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(outputs, momentum=momentum),
                nn.ReLU(inplace=True),
            ]
        self.layers = channels_last(nn.Sequential(*layers))
        self.num_features = channels[-1] * FEATURE_SIZE**2

    def forward(self, frames: Tensor) -> Tensor:
        centred = frames if self.mean_frame is None else frames - self.mean_frame
        return self.layers(centred).flatten(1)

    def embed(self, obs: Tensor) -> Tensor:
        """Frames [..., 3, 64, 64], uint8 or float in [0, 1] -> [prod(...), E]."""
        return self(normalize_frames(obs))


class Decoder(nn.Module):
    """The encoder mirrored: [B, S*K] -> linear, batch norm, ReLU -> 4 transposed convolutions -> [B, 3, 64, 64],
    unbounded.

    Args:
        zero: start the output layer at 0, so that the first frames drawn are black, or the mean frame.
        momentum: share of a batch in the running statistics of the batch norms.
    Source: STORM, arXiv 2310.09615, appendix (image decoder).
    """

    def __init__(
        self, latent_features: int, channels: tuple[int, ...], *, zero: bool = False, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(latent_features, channels[-1] * FEATURE_SIZE**2, bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(channels[-1], momentum=momentum), nn.ReLU(inplace=True)]
        upward = channels[::-1]
        for inputs, outputs in itertools.pairwise(upward):
            layers += [
                nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(outputs, momentum=momentum),
                nn.ReLU(inplace=True),
            ]
        output = nn.ConvTranspose2d(upward[-1], 3, 4, stride=2, padding=1)
        if zero:
            nn.init.zeros_(output.weight)
            nn.init.zeros_(output.bias)  # type: ignore[arg-type]
        layers.append(output)
        self.layers = channels_last(nn.Sequential(*layers))

    def forward(self, latent: Tensor) -> Tensor:
        features = self.linear(latent).unflatten(1, (-1, FEATURE_SIZE, FEATURE_SIZE))
        return self.layers(features.contiguous(memory_format=torch.channels_last))
