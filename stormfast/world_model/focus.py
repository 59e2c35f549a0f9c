"""Which pixels the reconstruction must not miss, and how much more than others they weigh.

B batch   T time
"""

import torch
from torch import Tensor

MOVES = 0.05  # difference of a colour, of 1, from which on a pixel counts as another


@torch.no_grad()
def moving_pixels(frames: Tensor, follows: Tensor | None) -> Tensor:
    """Where something moves: a colour differs by more than MOVES from the frame before or after it in the window.

    Args:
        frames: [B, T, 3, 64, 64] in [0, 1].
        follows: [B, T-1] bool, whether frame t + 1 follows frame t in one episode; None where that is not known.
    Returns: [B, T, 1, 64, 64] bool.
    """
    changes = (frames[:, 1:] - frames[:, :-1]).abs().amax(2, keepdim=True) > MOVES
    if follows is not None:
        changes = changes & follows[:, :, None, None, None]
    still = torch.zeros_like(changes[:, :1])
    return torch.cat([changes, still], 1) | torch.cat([still, changes], 1)


@torch.no_grad()
def unusual_pixels(frames: Tensor, mean_frame: Tensor) -> Tensor:
    """Where a colour differs by more than MOVES from the mean frame [3, 64, 64]; otherwise as moving_pixels."""
    return (frames - mean_frame).abs().amax(2, keepdim=True) > MOVES


@torch.no_grad()
def focus_weight(pixels: Tensor, focus: float) -> Tensor:
    """Weights in the reconstruction: 1 + focus for the pixels [B, T, 1, 64, 64] bool, 1 elsewhere; their mean is 1.

    Small things that move are a thousandth of the pixels of a frame: the plain squared error hardly shows them.
    """
    weight = 1 + focus * pixels.to(torch.get_default_dtype())
    return weight / weight.mean()
