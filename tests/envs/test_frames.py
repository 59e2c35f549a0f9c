"""Pictures of every kind become 64x64 RGB, or one line says why not."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.wrappers import FrameStackObservation, GrayscaleObservation

from stormfast.envs.frames import format_of_picture, format_of_space, resize
from stormfast.errors import UserError


class Shows(gymnasium.Env):
    """An environment that is asked for its spaces alone."""

    def __init__(self, space: Any) -> None:
        self.observation_space = space
        self.action_space = Discrete(2)


def uint8(*shape: int) -> Box:
    return Box(0, 255, shape, np.uint8)


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def test_frames_that_fit_are_only_transposed() -> None:
    picture = pixels(64, 64, 3)
    frame = format_of_space("G", Shows(uint8(64, 64, 3)))(picture)
    np.testing.assert_array_equal(frame, picture.transpose(2, 0, 1))
    assert frame.flags.c_contiguous
    assert not np.shares_memory(frame, picture)


def test_layouts_agree() -> None:
    """One picture, given in every way that there is."""
    rgb = pixels(64, 64, 3)
    expected = rgb.transpose(2, 0, 1)
    for picture, space in [
        (expected, uint8(3, 64, 64)),
        ((rgb / 255).astype(np.float32), Box(0, 1, (64, 64, 3), np.float32)),
        ((expected / 255).astype(np.float64), Box(0, 1, (3, 64, 64), np.float64)),
        ((rgb / 255).astype(np.float16), Box(0, 1, (64, 64, 3), np.float16)),
    ]:
        np.testing.assert_array_equal(format_of_space("G", Shows(space))(picture), expected)
    grey = rgb[..., 0]
    for picture in (grey, grey[..., None], grey[None]):
        frame = format_of_space("G", Shows(uint8(*picture.shape)))(picture)
        np.testing.assert_array_equal(frame, np.stack([grey] * 3))


def test_channels_last_where_both_ends_could_be() -> None:
    picture = pixels(3, 5, 3)
    frame = format_of_space("G", Shows(uint8(3, 5, 3)))(picture)
    assert {tuple(color) for color in frame.reshape(3, -1).T} == {tuple(color) for color in picture.reshape(-1, 3)}


@pytest.mark.parametrize("shape", [(210, 160, 3), (1, 1, 3), (8, 200, 1), (200, 8, 3), (65, 63, 3), (64, 7, 1)])
def test_any_size(shape: tuple[int, ...]) -> None:
    assert resize(pixels(*shape)).shape == (64, 64, shape[2])
    np.testing.assert_array_equal(resize(np.full(shape, 77, np.uint8)), np.full((64, 64, shape[2]), 77))


def test_shrinking_averages_and_enlarging_repeats() -> None:
    picture = pixels(128, 128, 3)
    blocks = picture.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(resize(picture) - blocks).max() <= 0.5  # of rounding
    small = pixels(8, 4, 3)
    np.testing.assert_array_equal(resize(small), small.repeat(8, axis=0).repeat(16, axis=1))


def test_rendered_pictures() -> None:
    picture = pixels(400, 600, 3)
    assert format_of_picture("G", picture)(picture).shape == (3, 64, 64)
    with pytest.raises(UserError, match=r'G must give an array from render\(\), got NoneType.*render_mode="rgb_array"'):
        format_of_picture("G", None)
    with pytest.raises(UserError, match="got list"):
        format_of_picture("G", [picture])


def stacked(count: int) -> gymnasium.Env:
    return FrameStackObservation(GrayscaleObservation(Shows(uint8(64, 64, 3))), count)


NOT_PIXELS = [
    (Shows(uint8(4, 64, 64)), r"shape \(4, 64, 64\); drop the alpha of RGBA; of four stacked frames give one"),
    (Shows(uint8(64, 64, 4)), "drop the alpha"),
    (Shows(uint8(64, 64, 12)), "stacked frames\\? Leave the wrapper"),
    (Shows(uint8(9, 64, 64)), "stacked frames"),
    (Shows(uint8(4, 64, 64, 3)), "stacked frames"),
    (stacked(4), "wrapper FrameStackObservation stacks them.*leave it out"),
    (stacked(3), "wrapper FrameStackObservation stacks them"),  # would pass for RGB
    (Shows(uint8(64, 64, 5)), r"G must show pixels, uint8.*got uint8 of shape \(64, 64, 5\)"),
    (Shows(uint8(0, 64, 3)), r"got uint8 of shape \(0, 64, 3\); no side may be 0"),
    (Shows(Box(-1, 1, (4,))), r"got float32 of shape \(4,\); .*--env.render-obs"),
    (Shows(Box(0, 255, (64, 64, 3), np.int64)), "got int64; convert them"),
    (Shows(Box(0, 255, (64, 64, 3), np.float32)), r"float32 pixels in 0\.\.1, got a Box from 0 to 255; rescale"),
    (Shows(Box(-1, 1, (64, 64, 3), np.float32)), "got a Box from -1 to 1"),
    (Shows(Box(-np.inf, np.inf, (64, 64, 3), np.float32)), "got a Box from -inf to inf"),
    (Shows(Box(0, 10, (7, 7, 3), np.uint8)), r"uint8 pixels in 0\.\.255, got a Box from 0 to 10.*--env.render-obs"),
    (Shows(Discrete(4)), r"got Discrete\(4\); .*--env.render-obs"),
    (Shows(Dict(image=uint8(64, 64, 3))), "got Dict.*give one Box of them"),
]


@pytest.mark.parametrize(("env", "expected"), NOT_PIXELS, ids=lambda case: str(case)[:40])
def test_observations_that_are_no_pixels(env: gymnasium.Env, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        format_of_space("G", env)
    assert "\n" not in str(caught.value)


BROKEN = [
    (uint8(64, 64, 3), np.zeros((64, 64, 3), np.float32), r"uint8 of shape \(64, 64, 3\).*got float32"),
    (uint8(64, 64, 3), np.zeros((64, 60, 3), np.uint8), r"got uint8 of shape \(64, 60, 3\)"),
    (uint8(64, 64, 3), None, r"got object of shape \(\)"),
    (
        Box(0, 1, (9, 9), np.float32),
        np.full((9, 9), 1.5, np.float32),
        r"floats in \[0, 1\], got values from 1.5 to 1.5",
    ),
    (Box(0, 1, (9, 9), np.float32), np.full((9, 9), np.nan, np.float32), "got values from nan to nan"),
]


@pytest.mark.parametrize(("space", "picture", "expected"), BROKEN)
def test_pictures_other_than_the_space_says(space: Box, picture: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        format_of_space("G", Shows(space))(picture)
    assert "\n" not in str(caught.value)
