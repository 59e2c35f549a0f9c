"""Random numbers that are a function of a seed and a counter, both on the device: Philox 4x32 with ten rounds.

A kernel computes its own numbers from them, so that none are stored; replaying a captured graph draws anew, because the
counter it reads has moved on; and saving two integers saves the whole generator.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

LOW_32 = 0xFFFFFFFF


@dataclass(frozen=True)
class CounterRng:
    """Draw n of a stream is the same number on every path and for every block size.

    state:  [2] int64 on the device that draws: seed, counter.
    offset: added to the counter, so that several draws share one state that moves once, by advance().
    Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011).
    """

    state: Tensor
    offset: int = 0

    @classmethod
    def seeded(cls, seed: int, device: torch.device | str) -> "CounterRng":
        """The stream of a seed (any int64), at its start."""
        return cls(torch.tensor([seed, 0], dtype=torch.int64, device=device))

    def at(self, offset: int) -> "CounterRng":
        """The same state, read `offset` draws further on."""
        return replace(self, offset=self.offset + offset)

    def advance(self, draws: int) -> None:
        """Moves the counter, on the device: in a captured graph, at every replay."""
        self.state[1:].add_(draws)

    def uniform(self, count: int) -> Tensor:
        """The next `count` numbers, [count] float32 in [0, 1), by plain torch; does not advance."""
        draw = torch.arange(count, dtype=torch.int64, device=self.state.device) + (self.state[1] + self.offset)
        zero = torch.zeros_like(draw)
        bits = philox((draw & LOW_32, (draw >> 32) & LOW_32, zero, zero), self.state[0])[0]
        signed = torch.where(bits > 0x7FFFFFFF, bits - (1 << 32), bits)
        return (
            torch.where(signed < 0, -signed - 1, signed).float() * 4.6566127342e-10
        )  # the largest is below 1, as in triton.language.rand


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox 4x32. counter: four int64 tensors that hold unsigned 32-bit words; seed: 0-d int64."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & LOW_32, (seed >> 32) & LOW_32
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # wraps beyond 63 bits, which the masks below make good
        c0, c1, c2, c3 = ((b >> 32) & LOW_32) ^ c1 ^ k0, b & LOW_32, ((a >> 32) & LOW_32) ^ c3 ^ k1, a & LOW_32
        k0, k1 = (k0 + 0x9E3779B9) & LOW_32, (k1 + 0xBB67AE85) & LOW_32
    return c0, c1, c2, c3
