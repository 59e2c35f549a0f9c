"""What stands where in a film and in a strip of dreams."""

import numpy as np
import pytest

from stormfast.dream_film import (
    BORDER,
    COLUMNS,
    DIM,
    DREAMT,
    GAP,
    HEADER,
    LABELS,
    MARGIN,
    REAL,
    SCALE,
    SIZE,
    STRIP_SCALE,
    TITLE,
    WRONG,
    DreamFilm,
)
from stormfast.dream_plot import HEIGHT, bounds
from tests.dream_fixtures import C, H, make_dream


def film(*right, filmed=None, **changes):
    return DreamFilm(make_dream(*right, **changes), "Pong", 1_234, filmed)


def panel(page, k):
    """Panel k of a frame of the film, its border and [64, 64, 3] in it."""
    x, size = MARGIN + k * (SIZE * SCALE + 2 * BORDER + MARGIN), SIZE * SCALE + 2 * BORDER
    inside = page[HEADER + TITLE : HEADER + TITLE + size, x : x + size]
    pixels = inside[BORDER:-BORDER, BORDER:-BORDER]
    blocks = pixels.reshape(SIZE, SCALE, SIZE, SCALE, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()  # hard pixels
    return tuple(inside[0, 0]), blocks[:, 0, :, 0]


def says_wrong(picture):
    return bool((picture == WRONG).all(-1).any())


def test_a_film_shows_context_then_real_dream_and_difference():
    shown = film(4, None)
    frames = list(shown.frames())
    assert len(frames) == 2 * (C + H)
    assert {frame.shape for frame in frames} == {frames[0].shape}
    assert all(size % 2 == 0 for size in frames[0].shape[:2])
    for n in range(2):
        for k in range(C + H):
            i, page = k - (C - 1), frames[n * (C + H) + k]
            real = shown.dream.real[n, max(i, 0)] if i >= 0 else shown.dream.context[n, k]
            dreamt = shown.dream.imagined[n, i] if i > 0 else real
            panels = [panel(page, k) for k in range(3)]
            assert [border for border, _ in panels[:2]] == [REAL, REAL if i <= 0 else DREAMT]
            for (_, pixels), expected in zip(panels, (real, dreamt, real - dreamt), strict=True):
                assert np.array_equal(pixels, expected.transpose(1, 2, 0))
            assert says_wrong(page[:HEADER]) == (n == 0 and i >= 4)


def test_what_follows_the_end_of_an_episode_is_dark():
    same = np.ones((1, H), bool)
    same[0, 5:] = False
    frames = list(film(None, same_episode=same).frames())
    brightest = [panel(frame, 0)[1].max() for frame in frames]
    assert brightest == [255] * (C + 5) + [255 // DIM] * (H - 5)


def test_the_plots_show_rewards_and_ends_and_where_the_film_is():
    reward, end = np.zeros((1, H), np.float32), np.zeros((1, H), bool)
    quiet, told = (
        film(None),
        film(None, real_reward=reward - 2 * (np.arange(H) == 3), real_end=end | (np.arange(H) == 8)),
    )
    top = HEADER + TITLE + SIZE * SCALE + 2 * BORDER + MARGIN
    for k, part in enumerate((slice(top, top + HEIGHT), slice(top + HEIGHT, top + 2 * HEIGHT))):
        blue = [(next(iter(shown.frames()))[part] == REAL).all(-1).sum(0) for shown in (quiet, told)]
        taller = np.flatnonzero(blue[1] > blue[0] + 20)  # the columns of one bar
        assert len(taller) and np.ptp(taller) < 48  # pixels a frame
        if k == 0:
            first = taller
    assert taller.min() > first.max()  # the end comes after the reward
    cursors = [np.flatnonzero((frame[top:-MARGIN] > 230).all((0, 2))) for frame in quiet.frames()]
    assert all(len(cursor) == 1 for cursor in cursors)
    assert np.all(np.diff(np.concatenate(cursors)) > 0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_diverged_is_drawn_too(value):
    numbers = np.full((1, H), value, np.float32)
    shown = film(3, reward=numbers, continuation=numbers)
    assert len(list(shown.frames())) == C + H
    assert shown.score.rewards_right == 0
    assert bounds(numbers[0]) == (0, 1)


def test_a_strip_has_rows_of_real_dream_and_difference_under_the_frames_shown():
    shown = film(4, None)
    picture = shown.strip()
    cell = SIZE * STRIP_SCALE + 2 * BORDER
    height = HEADER + TITLE + 3 * (cell + GAP) + MARGIN + 2 * HEIGHT + MARGIN
    assert picture.shape == (2 * height, LABELS + COLUMNS * (cell + GAP) + MARGIN, 3)
    for n in range(2):
        columns = [-1, 0, *range(1, H + 1)]
        for k, i in enumerate(columns):
            real = shown.dream.context[n, C - 1 + i] if i < 0 else shown.dream.real[n, i]
            dreamt = real if i < 0 else shown.dream.imagined[n, i]
            x = LABELS + k * (cell + GAP)
            for row, expected in enumerate((real, dreamt, real - dreamt)):
                y = n * height + HEADER + TITLE + row * (cell + GAP)
                got = picture[
                    y + BORDER : y + cell - BORDER : STRIP_SCALE, x + BORDER : x + cell - BORDER : STRIP_SCALE
                ]
                assert np.array_equal(got, expected.transpose(1, 2, 0))
            head = picture[n * height + HEADER : n * height + HEADER + TITLE, x : x + cell]
            assert says_wrong(head) == (n == 0 and i >= 4)


def test_a_strip_ends_with_the_episode_and_only_so_many_dreams_are_drawn():
    same = np.ones((3, H), bool)
    same[:, 5:] = False
    shown = film(None, None, None, same_episode=same, filmed=1)
    assert shown._columns(0) == [-1, 0, 1, 2, 3, 4, 5]
    assert len(shown.score.first_wrong_of) == 3
    assert len(list(shown.frames())) == C + H
    assert shown.strip().shape[0] * 3 == film(None, None, None).strip().shape[0]
