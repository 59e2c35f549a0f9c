"""Networks with a scalar meaning: MLP heads, and the symlog two-hot code for reward and value.

N bins (255)   ... any leading shape
"""

import torch
from torch import Tensor, nn

from stormfast.settings import ReadOut

NUM_BINS = 255
LOWEST, HIGHEST = -20.0, 20.0  # in symlog space
MOST = 1e5  # that a bin counts as in a mean: the least doubt about one of 4.9e8 would drown all others


def mlp(features: int, width: int, outputs: int, *, zero: bool = False) -> nn.Sequential:
    """2 x [Linear without bias, LN, ReLU], Linear; `zero` starts the output layer at 0, so that it begins undecided."""
    head = nn.Linear(width, outputs)
    if zero:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    layers = [nn.Linear(features, width, bias=False), nn.LayerNorm(width), nn.ReLU(inplace=True)]
    layers += [nn.Linear(width, width, bias=False), nn.LayerNorm(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, head)


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|). Source: DreamerV3, arXiv 2301.04104."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of symlog."""
    return x.sign() * x.abs().expm1()


class TwoHot(nn.Module):
    """A scalar as a distribution over 255 bins, evenly spaced in symlog space: two neighbours share the weight.

    Source: DreamerV3, arXiv 2301.04104, section "Critic learning"; STORM uses the same bins.
    """

    bins: Tensor
    values: Tensor

    def __init__(self, read_out: ReadOut = "symlog") -> None:
        super().__init__()
        self.read_out = read_out
        self.register_buffer("bins", torch.linspace(LOWEST, HIGHEST, NUM_BINS), persistent=False)
        upper = symexp(torch.linspace(LOWEST, HIGHEST, NUM_BINS)[NUM_BINS // 2 + 1 :]).clamp(max=MOST)
        self.register_buffer("values", upper, persistent=False)  # of the bins above 0

    def decode(self, logits: Tensor) -> Tensor:
        """logits [..., 255] -> the scalar they stand for [...], at least float32.

        "symlog" reads symexp(E[bin]), as the original does: of a reward of 100 with probability 0.1 it says 0.59.
        "mean" reads E[symexp(bin)], 10 there, in differences of a bin and its negative, so that even odds give 0.
        """
        probs = upcast(logits).softmax(-1)
        if self.read_out == "symlog":  # no matmul here and below: autocast would round it to bfloat16
            return symexp((probs * self.bins).sum(-1))
        above, below = probs[..., NUM_BINS // 2 + 1 :], probs[..., : NUM_BINS // 2]
        return ((above - below.flip(-1)) * self.values).sum(-1)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of logits [..., 255] to the two-hot code of target [...], elementwise [...]."""
        return self.cross_entropy(upcast(logits).log_softmax(-1), target)

    def cross_entropy(self, log_probs: Tensor, target: Tensor) -> Tensor:
        """The same from log-probabilities, where several targets share them."""
        if log_probs.shape[:-1] != target.shape:
            raise ValueError(
                f"two-hot logits [..., {NUM_BINS}] and target [...] must fit, got {tuple(log_probs.shape)} and "
                f"{tuple(target.shape)}"
            )
        scaled = symlog(target.to(self.bins.dtype))
        upper = torch.bucketize(scaled, self.bins).clamp(1, NUM_BINS - 1)
        weight = ((scaled - self.bins[upper - 1]) / (self.bins[1] - self.bins[0])).clamp(0, 1)
        on_upper, on_lower = (log_probs.gather(-1, index[..., None]).squeeze(-1) for index in (upper, upper - 1))
        return -(weight * on_upper + (1 - weight) * on_lower)


def upcast(x: Tensor) -> Tensor:
    """bfloat16 and float16 to float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
