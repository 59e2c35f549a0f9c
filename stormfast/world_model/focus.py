"""Which pixels the reconstruction must not miss, and how much more than others they weigh.

B batch   T time   T' the frames of a window that are reconstructed
"""

import torch
from torch import Tensor

MOVES = 0.05  # difference of a colour, of 1, from which on a pixel counts as another


@torch.no_grad()
def moving_pixels(frames: Tensor, follows: Tensor | None, steps: Tensor | None = None) -> Tensor:
    """Where something moves: a colour differs by more than MOVES from the frame before or after it in the window.

    Args:
        frames: [B, T, 3, 64, 64] in [0, 1].
        follows: [B, T-1] bool, whether frame t + 1 follows frame t in one episode; None where that is not known.
        steps: [T'] int64, the frames of each window to look at; None for all. No other pixels are compared.
    Returns: [B, T', 1, 64, 64] bool.
    """
    if steps is None:
        changes = differ(frames[:, 1:], frames[:, :-1])
        if follows is not None:
            changes = changes & follows[:, :, None, None, None]
        still = torch.zeros_like(changes[:, :1])
        return torch.cat([changes, still], 1) | torch.cat([still, changes], 1)
    last = frames.shape[1] - 1
    before, after = (steps - 1).clamp(min=0), (steps + 1).clamp(max=last)  # at an edge the frame itself: no change
    shown = frames.index_select(1, steps)
    changed = [differ(shown, frames.index_select(1, other)) for other in (before, after)]
    if follows is not None:
        known = [follows.index_select(1, pair) for pair in (before, steps.clamp(max=last - 1))]
        changed = [change & same[:, :, None, None, None] for change, same in zip(changed, known, strict=True)]
    return changed[0] | changed[1]


def differ(one: Tensor, other: Tensor) -> Tensor:
    """Whether a colour differs by more than MOVES: [..., 3, 64, 64] twice -> [..., 1, 64, 64] bool."""
    return (one - other).abs().amax(-3, keepdim=True) > MOVES


@torch.no_grad()
def unusual_pixels(frames: Tensor, mean_frame: Tensor) -> Tensor:
    """Where a colour differs by more than MOVES from the mean frame [3, 64, 64]; otherwise as moving_pixels."""
    return differ(frames, mean_frame)


@torch.no_grad()
def focus_weight(pixels: Tensor, focus: float) -> Tensor:
    """Weights in the reconstruction: 1 + focus for the pixels [B, T', 1, 64, 64] bool, 1 elsewhere; their mean is 1.

    Small things that move are a thousandth of the pixels of a frame: the plain squared error hardly shows them.
    """
    weight = 1 + focus * pixels.to(torch.get_default_dtype())
    return weight / weight.mean()
