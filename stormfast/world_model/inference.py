"""The world model as imagination and acting use it: a copy without gradients, refreshed from the one in training.

Its matrices are kept in the dtype of the arithmetic, so that no step casts them again; its batch norms, which use
running statistics here, are folded into the convolutions, whose first one reads uint8 frames. Both are exact up to
rounding.

B frames   C channels
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stormfast.world_model.encoder import Encoder
from stormfast.world_model.model import WorldModel

M = TypeVar("M", bound=nn.Module)


class InferenceModel:
    """Holds `model`, which is `source` for inference as of the last refresh()."""

    def __init__(self, source: WorldModel, dtype: torch.dtype) -> None:
        self.source, self.dtype = source, dtype
        self.model = inference_copy(source, dtype, without=("encoder", "decoder"))
        self.folded = FoldedEncoder(source.encoder, dtype).eval()
        self.model.encoder = self.folded  # type: ignore[assignment]
        self.pairs = pairs(self.model, source)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over what training has changed; no host sync."""
        copy_over(self.pairs)
        self.folded.fold(self.source.encoder)

    def autocast(self) -> torch.autocast:
        return autocast(self.model.device, self.dtype)


def inference_copy(module: M, dtype: torch.dtype, without: tuple[str, ...] = ()) -> M:
    """A copy in evaluation mode, without gradients and without the named parts; weights and biases of linear layers in
    `dtype`.
    """
    left_out = {id(getattr(module, name)): None for name in without}
    twin = copy.deepcopy(module, left_out).requires_grad_(False).eval()
    for part in twin.modules():
        if isinstance(part, nn.Linear):
            part.to(dtype)
    return twin


def pairs(twin: nn.Module, source: nn.Module) -> list[tuple[list[Tensor], list[Tensor]]]:
    """The tensors of a copy and those they are copied from, in the same order; a group for each dtype of the copy."""
    state, groups = source.state_dict(keep_vars=True), dict[torch.dtype, tuple[list[Tensor], list[Tensor]]]()
    for name, tensor in twin.state_dict().items():
        if name in state:
            copies, originals = groups.setdefault(tensor.dtype, ([], []))
            copies.append(tensor)
            originals.append(state[name].detach())
    return list(groups.values())


def copy_over(groups: list[tuple[list[Tensor], list[Tensor]]]) -> None:
    """One launch a group: CUDA copies several tensors at once only where all copies have one dtype."""
    for copies, originals in groups:
        torch._foreach_copy_(copies, originals)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Arithmetic in bfloat16 where it is safe, if that is the dtype; else as the tensors are."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


class FoldedEncoder(nn.Module):
    """Encoder in evaluation mode, each batch norm folded into the convolution before it."""

    mean_frame: Tensor | None  # [3, 64, 64] in 0..255

    def __init__(self, encoder: Encoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        convolutions, _ = layers_of(encoder)
        for i, convolution in enumerate(convolutions):
            weight = convolution.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
            self.register_buffer(f"weight_{i}", weight.clone(), persistent=False)
            self.register_buffer(f"bias_{i}", weight.new_zeros(len(weight)), persistent=False)
        self.num_layers = len(convolutions)
        mean_frame = encoder.mean_frame
        mean = None if mean_frame is None else torch.zeros_like(mean_frame, dtype=dtype)
        self.register_buffer("mean_frame", mean, persistent=False)

    @torch.no_grad()
    def fold(self, encoder: Encoder) -> None:
        """w x -> scale w x + shift, with scale = gamma / sqrt(var + eps); the first layer takes frames in 0..255."""
        convolutions, norms = layers_of(encoder)
        scale = [norm.weight * (norm.running_var + norm.eps).rsqrt() for norm in norms]  # type: ignore[union-attr, operator]
        for i, (convolution, norm) in enumerate(zip(convolutions, norms, strict=True)):
            pixel = 1 / 255 if i == 0 else 1.0
            getattr(self, f"weight_{i}").copy_(convolution.weight * (scale[i] * pixel)[:, None, None, None])
            getattr(self, f"bias_{i}").copy_(norm.bias - norm.running_mean * scale[i])  # type: ignore[operator]
        if self.mean_frame is not None and encoder.mean_frame is not None:
            self.mean_frame.copy_(encoder.mean_frame * 255)

    def embed(self, obs: Tensor) -> Tensor:
        """Frames [..., 3, 64, 64], uint8 or float in [0, 1] -> [prod(...), E], as Encoder.embed in evaluation mode."""
        x = obs.flatten(0, -4).contiguous(memory_format=torch.channels_last)  # in uint8: a quarter of the bytes to move
        x = x.to(self.dtype) if x.dtype == torch.uint8 else (x * 255).to(self.dtype)
        if self.mean_frame is not None:  # subtracted, not folded into a bias: bfloat16 would lose what is small
            x = x - self.mean_frame
        for i in range(self.num_layers):
            x = F.conv2d(x, getattr(self, f"weight_{i}"), getattr(self, f"bias_{i}"), stride=2, padding=1).relu_()
        return x.flatten(1)


def layers_of(encoder: Encoder) -> tuple[list[nn.Conv2d], list[nn.BatchNorm2d]]:
    layers = list(encoder.layers)
    return [layer for layer in layers if isinstance(layer, nn.Conv2d)], [
        layer for layer in layers if isinstance(layer, nn.BatchNorm2d)
    ]
