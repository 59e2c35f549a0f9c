"""Dreams whose truth is known: a white square moves over black, and the model loses it.

N dreams   C context steps   H imagined steps
"""

from typing import Any

import numpy as np

from stormfast.dream_env import Dream

C, H = 3, 12


def square_at(place: int) -> np.ndarray:
    """[3, 64, 64] uint8"""
    frame = np.zeros((3, 64, 64), np.uint8)
    frame[:, 20:24, 4 * place : 4 * place + 4] = 255
    return frame


def make_dream(*right: int | None, **changes: Any) -> Dream:
    """A dream for each number: frames 0 .. right - 1 are right, and from there on the square is gone. None: all are."""
    num = len(right)
    real = np.stack([np.stack([square_at(t + n % 2) for t in range(H + 1)]) for n in range(num)])
    imagined = real.copy()
    for n, count in enumerate(right):
        if count is not None:
            imagined[n, count:] = 0
    reward = np.zeros((num, H), np.float32)
    parts: dict[str, Any] = {
        "context": real[:, :1].repeat(C, 1),
        "real": real,
        "imagined": imagined,
        "action": np.zeros((num, H), np.int64),
        "real_reward": reward,
        "reward": reward.copy(),
        "real_end": np.zeros((num, H), np.bool_),
        "continuation": np.ones((num, H), np.float32),
        "acted": np.ones((num, H), np.bool_),
        "same_episode": np.ones((num, H), np.bool_),
    }
    return Dream(**parts | changes)
