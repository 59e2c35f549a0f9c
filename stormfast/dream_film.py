"""Dreams as pictures: the real episode, the model's imagination of it and their difference, side by side, and beneath
them rewards and continuation over time.

N dreams   C context steps   H imagined steps   F = C + H frames of a film: frame 0 is the last one shown to the model

Blue is real and orange is imagined, everywhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stormfast.dream_env import Dream
from stormfast.dream_plot import HEIGHT as PLOT
from stormfast.dream_plot import Axis, draw_series
from stormfast.dream_score import DreamScore, score_dream
from stormfast.video import enlarged

Color = tuple[int, int, int]
BACKGROUND, TEXT, FAINT = (16, 17, 20), (236, 236, 236), (150, 152, 158)
REAL, DREAMT, WRONG = (96, 176, 255), (255, 160, 64), (255, 92, 92)
ROWS = {"real": REAL, "dream": DREAMT, "difference": TEXT}
SIZE = 64
SCALE = 4  # pixels beside each other that one becomes in a film
STRIP_SCALE = 2
COLUMNS = 14  # frames beside each other in a strip
SHOWN_COLUMNS = 2  # of them, frames that the model was shown
MARGIN, BORDER, GAP, HEADER, TITLE = 10, 3, 2, 30, 24
LABELS = 96  # pixels left of a strip and of plots
DIM = 4  # frames after the end of the episode are so much darker


@dataclass(frozen=True)
class DreamFilm:
    """Dreams, to be drawn.

    Attributes:
        game, step: of the run, which every picture says.
        filmed: how many of the dreams are drawn; None for all. The score is of all.
    """

    dream: Dream
    game: str
    step: int
    filmed: int | None = None

    @property
    def title(self) -> str:
        return f"{self.game} at step {self.step:,}"

    @cached_property
    def score(self) -> DreamScore:
        return score_dream(self.dream)

    def frames(self) -> Iterator[np.ndarray]:
        """The film, one dream after the other: [height, width, 3] uint8, all of one even size."""
        for n in range(self._num_drawn):
            yield from self._film(n)

    def strip(self) -> np.ndarray:
        """All dreams in one picture, some frames of each: [height, width, 3] uint8."""
        return np.concatenate([self._strip(n) for n in range(self._num_drawn)])

    @property
    def _num_drawn(self) -> int:
        return len(self.dream.action[: self.filmed])

    # --- the film ------------------------------------------------------------------------------------------------

    def _film(self, n: int) -> Iterator[np.ndarray]:
        panel = SIZE * SCALE + 2 * BORDER
        width, top = 4 * MARGIN + 3 * panel, HEADER + TITLE + panel + MARGIN
        page = self._page(n, width, top)
        pen, left = ImageDraw.Draw(page), [MARGIN + k * (panel + MARGIN) for k in range(3)]
        for x, (name, color) in zip(left, ROWS.items(), strict=True):
            pen.text((x + BORDER, HEADER + 3), name, color, font(15))
        for i in range(1 - self._shown, self._horizon + 1):
            yield self._moment(page.copy(), n, i, left, top)

    def _moment(self, page: Image.Image, n: int, i: int, left: list[int], top: int) -> np.ndarray:
        """The page of a dream as it is at frame i."""
        pen, (what, color), x = ImageDraw.Draw(page), self._state(n, i), self._axis(page.width).at(i)
        pen.text((page.width - MARGIN, 8), what, color, font(16), anchor="ra")
        for place, panel in zip(left, self._panels(n, i, SCALE), strict=True):
            page.paste(panel, (place, HEADER + TITLE))
        pen.line([(x, top), (x, page.height - MARGIN)], TEXT, 1)
        return np.asarray(page)

    # --- the strip -----------------------------------------------------------------------------------------------

    def _strip(self, n: int) -> np.ndarray:
        cell = SIZE * STRIP_SCALE + 2 * BORDER
        page = self._page(n, LABELS + COLUMNS * (cell + GAP) + MARGIN, HEADER + TITLE + 3 * (cell + GAP) + MARGIN)
        pen, wrong = ImageDraw.Draw(page), self.score.first_wrong_of[n]
        found = f"wrong from frame {wrong} on" if wrong else "no frame is wrong"
        pen.text((page.width - MARGIN, 8), found, WRONG if wrong else TEXT, font(16), anchor="ra")
        rows = [HEADER + TITLE + k * (cell + GAP) for k in range(3)]
        for y, (name, color) in zip(rows, ROWS.items(), strict=True):
            pen.text((MARGIN, y + cell // 2), name, color, font(15), anchor="lm")
        for k, i in enumerate(self._columns(n)):
            x = LABELS + k * (cell + GAP)
            label = f"shown {i}" if i <= 0 else f"+{i}"
            pen.text((x + cell // 2, HEADER + 3), label, self._state(n, i)[1], font(15), anchor="ma")
            for y, panel in zip(rows, self._panels(n, i, STRIP_SCALE), strict=True):
                page.paste(panel, (x, y))
        return np.asarray(page)

    def _columns(self, n: int) -> list[int]:
        """The frames of a strip: the last ones shown, and as many as fit of those dreamt, up to the episode's end."""
        shown = list(range(1 - min(SHOWN_COLUMNS, self._shown), 1))
        last = max(1, int(self.dream.same_episode[n].sum()))
        count = min(last, COLUMNS - len(shown))
        return shown + np.linspace(1, last, count).round().astype(int).tolist()

    # --- both ----------------------------------------------------------------------------------------------------

    @property
    def _shown(self) -> int:
        return self.dream.context.shape[1]

    @property
    def _horizon(self) -> int:
        return self.dream.action.shape[1]

    def _axis(self, width: int) -> Axis:
        return Axis(LABELS, width - MARGIN, 1 - self._shown, self._horizon)

    def _page(self, n: int, width: int, top: int) -> Image.Image:
        """Title, and from `top` on the plots of dream n."""
        page = Image.new("RGB", (width, top + 2 * PLOT + MARGIN), BACKGROUND)
        of = f", dream {n + 1} of {self._num_drawn}" if self._num_drawn > 1 else ""
        ImageDraw.Draw(page).text((MARGIN, 8), self.title + of, TEXT, font(16))
        dream, axis = self.dream, self._axis(width)
        real, predicted, goes_on, chance = (
            np.where(dream.acted[n], numbers[n], np.nan)
            for numbers in (dream.real_reward, dream.reward, 1.0 - dream.real_end, dream.continuation)
        )
        draw_series(page, axis, top, "reward", (real, REAL), (predicted, DREAMT), font(13))
        draw_series(page, axis, top + PLOT, "continues", (goes_on, REAL), (chance, DREAMT), font(13), usual=1)
        return page

    def _state(self, n: int, i: int) -> tuple[str, Color]:
        """What is to be said of frame i, and its colour."""
        if i <= 0:
            return f"context {self._shown + i} of {self._shown}: real, shown to the model", REAL
        if not self.dream.same_episode[n, i - 1]:
            return "after the end of the episode", FAINT
        wrong = self.score.first_wrong_of[n]
        if wrong and i >= wrong:
            return f"imagined {i} of {self._horizon}, wrong from {wrong} on", WRONG
        return f"imagined {i} of {self._horizon}", DREAMT

    def _panels(self, n: int, i: int, scale: int) -> list[Image.Image]:
        """Frame i of real, dream and difference; dark after the end of the episode."""
        real = self.dream.context[n, self._shown - 1 + i] if i <= 0 else self.dream.real[n, i]
        imagined = real if i <= 0 else self.dream.imagined[n, i]
        difference = np.abs(real.astype(np.int16) - imagined).astype(np.uint8)
        dim = DIM if i > 0 and not self.dream.same_episode[n, i - 1] else 1
        colors = REAL, REAL if i <= 0 else DREAMT, FAINT
        return [
            bordered(frame.transpose(1, 2, 0) // dim, scale, color)
            for frame, color in zip((real, imagined, difference), colors, strict=True)
        ]


def bordered(frame: np.ndarray, scale: int, color: Color) -> Image.Image:
    """A frame [64, 64, 3] uint8 with hard pixels of scale x scale, in a border."""
    picture = Image.new("RGB", (frame.shape[1] * scale + 2 * BORDER, frame.shape[0] * scale + 2 * BORDER), color)
    picture.paste(Image.fromarray(enlarged(frame, scale)), (BORDER, BORDER))
    return picture


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
