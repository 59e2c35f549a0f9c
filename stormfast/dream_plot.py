"""A small plot: a real and a predicted number over the frames of a dream."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Series = tuple[np.ndarray, Color]
HEIGHT = 76  # pixels that a plot takes
INSET = 10  # of them, above and below what is plotted
TEXT, GRID = (200, 202, 208), (64, 66, 74)


@dataclass(frozen=True)
class Axis:
    """Frames first .. last over pixels left .. right."""

    left: int
    right: int
    first: int
    last: int

    @property
    def step(self) -> float:
        """Pixels a frame."""
        return (self.right - self.left) / (self.last - self.first + 1)

    def at(self, frame: float) -> int:
        """The middle of a frame."""
        return round(self.left + (frame - self.first + 0.5) * self.step)


def draw_series(
    page: Image.Image,
    axis: Axis,
    top: int,
    label: str,
    real: Series,
    predicted: Series,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    usual: float = 0.0,
) -> None:
    """Draws two series of numbers [H] of frames 1 .. H: the real ones as bars from the usual number on, the predicted
    ones as a line over them. What is NaN or infinite is left out.
    """
    low, high = bounds(real[0], predicted[0])
    pen, bottom = ImageDraw.Draw(page), top + HEIGHT - INSET

    def height(value: float) -> int:
        return round(bottom - (value - low) / (high - low) * (HEIGHT - 2 * INSET))

    pen.text((INSET, (top + bottom + INSET) // 2), label, TEXT, font, anchor="lm")
    for value in (low, high):
        pen.line([(axis.left, height(value)), (axis.right, height(value))], GRID)
        pen.text((axis.left - 6, height(value)), f"{value:.3g}", TEXT, font, anchor="rm")
    pen.line([(axis.at(0.5), top + INSET // 2), (axis.at(0.5), bottom + INSET // 2)], GRID)  # from here on it dreams
    half = max(1, round(axis.step * 0.35))
    for frame, value in finite(real[0]):
        ends = sorted((height(usual), height(value)))
        pen.rectangle([axis.at(frame) - half, ends[0] - 1, axis.at(frame) + half, ends[1] + 1], real[1])
    points = [(axis.at(frame), height(value)) for frame, value in finite(predicted[0])]
    if points:
        pen.line(points, predicted[1], 2)
        for x, y in points:
            pen.ellipse([x - 2, y - 2, x + 2, y + 2], predicted[1])


def finite(values: np.ndarray) -> list[tuple[int, float]]:
    """(frame, value) of those that are finite."""
    return [(t + 1, float(value)) for t, value in enumerate(values) if np.isfinite(value)]


def bounds(*series: np.ndarray) -> tuple[float, float]:
    """Lowest and highest of all finite numbers and 0, to a tenth, at least 1 from each other."""
    values = np.concatenate([[0.0], *series])
    values = values[np.isfinite(values)].round(1) + 0.0  # + 0.0: -0.0 would be written as -0
    low, high = float(values.min()), float(values.max())
    return low, max(high, low + 1)
