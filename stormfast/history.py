"""The last steps of several streams, in buffers made once: what the hidden state of each is computed from.

N streams   C steps   S categoricals   K classes   D width
"""

import torch
from torch import Tensor

from stormfast.world_model.transformer import SequenceModel


def hidden_state(sequence: SequenceModel, latent: Tensor, action: Tensor, length: Tensor) -> Tensor:
    """Hidden state of each stream's past, [N, D]; zeros where it has none.

    Args: latent: [N, C, S*K], oldest first. action: [N, C] int64. length: [N] int64, steps that count.
    """
    hidden = sequence.at(latent, action, (length - 1).clamp(min=0))
    return hidden * (length > 0)[:, None]


def append_step(length: Tensor, skip: Tensor, *memories: tuple[Tensor, Tensor]) -> None:
    """Appends a step to each stream, in place; the oldest one goes where it is full. No host sync.

    Args:
        length: [N] int64, steps each stream holds; grows.
        skip: [N] bool, streams that stay as they are.
        memories: (buffer [N, C, ...], what is appended [N, ...]), of any dtypes.
    """
    context = memories[0][0].shape[1]
    full, slot = length == context, length.clamp(max=context - 1)
    here = (slot[:, None] == torch.arange(context, device=slot.device)) & ~skip[:, None]  # [N, C]
    shift = full & ~skip

    def appended(memory: Tensor, new: Tensor) -> Tensor:
        wide = (...,) + (None,) * (memory.dim() - 2)
        moved = torch.where(shift[:, None][wide], memory.roll(-1, 1), memory)
        return torch.where(here[wide], new[:, None].to(memory.dtype), moved)

    for memory, new in memories:
        memory.copy_(appended(memory, new))
    length.copy_(torch.where(skip, length, slot + 1))
