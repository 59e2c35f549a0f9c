"""Observations of any pixel game -> frames of the one shape that everything else here takes.

H, W = height and width of the game's own pictures
"""

from dataclasses import dataclass
from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium.spaces import Box

from stormfast.errors import UserError
from stormfast.records import OBS_SHAPE

SIZE = OBS_SHAPE[1]  # 64, height and width of a frame
RENDER_OBS = "where render() draws the game, --env.render-obs takes its frames instead"
PICTURES = "uint8 in 0..255 or float in 0..1, of shape [H, W], [H, W, 3 or 1] or [3 or 1, H, W]"


@dataclass(frozen=True)
class FrameFormat:
    """What pictures a game gives; calling it makes a frame of one.

    Attributes:
        game: its name, for messages.
        shape: of a picture, as the game gives it.
        dtype: uint8, or a floating-point type, whose values lie in [0, 1].
        layout: grey "HW", "HWC" or "CHW".
    """

    game: str
    shape: tuple[int, ...]
    dtype: np.dtype
    layout: str

    def __call__(self, picture: Any) -> np.ndarray:
        """A picture -> [3, 64, 64] uint8 RGB, always a copy: the game may use its array again.

        Raises: UserError for another shape or type than the format's, and for floats outside [0, 1].
        """
        try:
            picture = np.asarray(picture)
        except ValueError:  # nested lists of unequal lengths
            picture = np.asarray(None)
        if picture.shape != self.shape or not self._is_of_kind(picture.dtype):
            raise UserError(
                f"{self.game} must show {self.dtype} of shape {self.shape} at every step, as its first observation or "
                f"observation_space says, got {picture.dtype} of shape {picture.shape}"
            )
        if picture.dtype.kind == "f":
            picture = self._to_uint8(picture)
        if self.layout == "CHW":
            picture = picture.transpose(1, 2, 0)
        picture = resize(picture.reshape(*picture.shape[:2], -1))
        return np.broadcast_to(picture.transpose(2, 0, 1), OBS_SHAPE).copy(
            order="C"
        )  # one grey channel fills all three

    def _is_of_kind(self, dtype: np.dtype) -> bool:
        """Any float passes for any other, since all lie in [0, 1]; of the integers only uint8."""
        return dtype.kind == "f" if self.dtype.kind == "f" else dtype == np.uint8

    def _to_uint8(self, picture: np.ndarray) -> np.ndarray:
        if not (picture.min() >= 0 and picture.max() <= 1):  # nan fails too
            low, high = picture.min(), picture.max()
            raise UserError(
                f"{self.game} must show floats in [0, 1], got values from {low:.6g} to {high:.6g}; rescale them"
            )
        return np.rint(picture * 255).astype(np.uint8)


def resize(picture: np.ndarray) -> np.ndarray:
    """[H, W, C] uint8 -> [64, 64, C]. The aspect is not kept, as it is not for Atari: no pixel of a frame is wasted.

    A side that shrinks is averaged over its area, so that thin things fade instead of vanishing; a side that grows
    repeats its pixels, so that the edges and colours of a small game stay as they are.
    """
    height, width, channels = picture.shape
    if height > SIZE or width > SIZE:
        picture = cv2.resize(picture, (min(width, SIZE), min(height, SIZE)), interpolation=cv2.INTER_AREA)
    if height < SIZE or width < SIZE:
        picture = cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)
    return picture.reshape(SIZE, SIZE, channels)  # cv2 drops a single channel


def format_of_space(game: str, env: gymnasium.Env[Any, Any]) -> FrameFormat:
    """The format that an environment's observation_space promises. Raises: UserError for anything but pixels."""
    space = getattr(env, "observation_space", None)
    if not isinstance(space, Box):
        raise UserError(f"{game} must show pixels, got {shortly(space)}; give one Box of them, or {RENDER_OBS}")
    _refuse_frame_stack(game, env, space.shape)
    found = _format(game, space.shape, space.dtype)
    high = 255 if found.dtype.kind == "u" else 1
    if space.low.min() < 0 or space.high.max() != high:  # symbols of a grid, for example, look like a black picture
        bounds = f"{space.low.min():g} to {space.high.max():g}"
        raise UserError(
            f"{game} must show {found.dtype} pixels in 0..{high}, got a Box from {bounds}; rescale them and say so in "
            f"observation_space, or {RENDER_OBS}"
        )
    return found


def format_of_picture(game: str, picture: Any) -> FrameFormat:
    """The format of what render() gave. Raises: UserError for anything but pixels."""
    if not isinstance(picture, np.ndarray):
        got = type(picture).__name__
        raise UserError(f'{game} must give an array from render(), got {got}; make it with render_mode="rgb_array"')
    return _format(game, picture.shape, picture.dtype)


def _format(game: str, shape: tuple[int, ...], dtype: Any) -> FrameFormat:
    layout = _layout(shape)
    if layout is None:
        hint = _why_not_pixels(shape)
        raise UserError(f"{game} must show pixels, {PICTURES}, got {dtype} of shape {shape}{hint}")
    dtype = np.dtype(dtype)
    if dtype != np.uint8 and dtype.kind != "f":
        raise UserError(f"{game} must show pixels, {PICTURES}, got {dtype}; convert them, or {RENDER_OBS}")
    return FrameFormat(game, shape, dtype, layout)


def _layout(shape: tuple[int, ...]) -> str | None:
    """Where the channels are; last where both ends could be, None where neither could."""
    if 0 in shape:
        return None
    if len(shape) == 2:
        return "HW"
    if len(shape) != 3:
        return None
    return "HWC" if shape[2] in (1, 3) else "CHW" if shape[0] in (1, 3) else None


def _why_not_pixels(shape: tuple[int, ...]) -> str:
    if len(shape) < 2:
        return f"; {RENDER_OBS}"
    if 0 in shape:
        return "; no side may be 0"
    channels = min(shape[0], shape[-1])
    if len(shape) == 3 and channels == 4:
        return "; drop the alpha of RGBA; of four stacked frames give one: the agent has a memory of its own"
    if len(shape) > 3 or channels % 3 == 0 or channels % 4 == 0:
        return "; stacked frames? Leave the wrapper that stacks them out: the agent has a memory of its own"
    return ""


def _refuse_frame_stack(game: str, env: Any, shape: tuple[int, ...]) -> None:
    """Raises UserError where a wrapper stacks frames: three grey ones would pass for the channels of one."""
    while isinstance(env, gymnasium.Wrapper):
        name = type(env).__name__
        if name.startswith("FrameStack"):
            raise UserError(
                f"{game} must show one frame a step, but the wrapper {name} stacks them (shape {shape}); leave it out: "
                "the agent has a memory of its own"
            )
        env = env.env


def shortly(space: Any) -> str:
    """A space in at most 80 characters, on one line, for messages."""
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
