"""How true a dream is: errors on pixels, rewards, and the first frame that is wrong.

N dreams   H imagined steps

Only what belongs to the episode that the model was shown counts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stormfast.diagnosis import squared_error_share
from stormfast.dream_env import Dream
from stormfast.world_model.focus import MOVES, moving_pixels

WRONG = 0.5  # share of the mean frame's squared error from which on a frame is wrong
UNSEEN = MOVES**2  # squared error of a colour up to which it is not


@dataclass(frozen=True)
class DreamScore:
    """Numbers of N dreams. An error is the squared error / that of the mean frame: 0 is perfect, 1 no better than it.

    Attributes:
        moving_error, still_error: on pixels that move and on the rest; None where there are none.
        rewards_right: how many of the `rewards` predicted ones are within half of 1, or half of the real one if that
            is more.
        first_wrong_of: [N] the first wrong frame of each dream, frame 0 being the last one shown; 0 where none is. So k
            says that frames 0 to k - 1 are right.
    """

    moving_error: float | None
    still_error: float | None
    rewards_right: int
    rewards: int
    first_wrong_of: tuple[int, ...]

    @property
    def first_wrong(self) -> int:
        """The frame by which half of the dreams are wrong; 0 where fewer ever are."""
        late = sorted(self.first_wrong_of, key=lambda frame: frame or np.inf)
        return late[(len(late) - 1) // 2]

    def metrics(self) -> dict[str, float]:
        """By the names of a run's metrics, without those that there is nothing to measure on."""
        share = self.rewards_right / self.rewards if self.rewards else None
        numbers = {
            "moving_error": self.moving_error,
            "still_error": self.still_error,
            "rewards_right": share,
            "first_wrong": float(self.first_wrong),
        }
        return {f"dream/{name}": value for name, value in numbers.items() if value is not None}

    def __str__(self) -> str:
        errors = ["-" if error is None else f"{error:.3g}" for error in (self.moving_error, self.still_error)]
        each = ", ".join(str(frame or "none") for frame in self.first_wrong_of)
        return (
            f"error on moving pixels {errors[0]}, on the rest {errors[1]}; rewards right {self.rewards_right} of "
            f"{self.rewards}; first wrong frame {self.first_wrong or 'none'}"
            + (f" ({each})" if len(self.first_wrong_of) > 1 else "")
        )


def score_dream(dream: Dream) -> DreamScore:
    """The numbers of a dream."""
    real, imagined = (torch.from_numpy(frames) / 255 for frames in (dream.real, dream.imagined))  # [N, H+1, 3, 64, 64]
    same, mean_frame = torch.from_numpy(dream.same_episode), real.mean((0, 1))
    moving = moving_pixels(real, same)[:, 1:]
    counts = same[:, :, None, None, None]
    kinds = [moving & counts, ~moving & counts]  # [N, H, 1, 64, 64] each
    moving_error, still_error = (squared_error_share(imagined[:, 1:], real[:, 1:], mean_frame, kind) for kind in kinds)
    wrong = torch.stack([wrong_frames(imagined[:, 1:], real[:, 1:], mean_frame, kind) for kind in kinds]).any(0)
    right = np.abs(dream.reward - dream.real_reward) <= np.maximum(1, np.abs(dream.real_reward)) / 2
    return DreamScore(
        moving_error=float(moving_error) if moving_error.isfinite() else None,
        still_error=float(still_error) if still_error.isfinite() else None,
        rewards_right=int((right & dream.acted).sum()),
        rewards=int(dream.acted.sum()),
        first_wrong_of=tuple(int(row.int().argmax()) + 1 if row.any() else 0 for row in wrong),
    )


def wrong_frames(imagined: Tensor, real: Tensor, mean_frame: Tensor, where: Tensor) -> Tensor:
    """Which frames [N, H] are wrong on the pixels `where` [N, H, 1, 64, 64] bool. Frames are [N, H, 3, 64, 64].

    Those whose mean squared error there is over WRONG of the mean frame's and over UNSEEN: what hardly differs from the
    mean frame would else be wrong by what nobody sees.
    """
    error, base = (((frames - real).square() * where).sum((2, 3, 4)) for frames in (imagined, mean_frame))
    unseen = 3 * UNSEEN * where.sum((2, 3, 4))
    return error > torch.maximum(WRONG * base, unseen)
