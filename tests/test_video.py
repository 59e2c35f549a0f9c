"""What write_mp4 writes is what OpenCV reads back."""

import os

import cv2
import numpy as np
import pytest

from stormfast.errors import UserError
from stormfast.video import check_video_path, write_mp4


def read(path):
    video = cv2.VideoCapture(str(path))
    fps, frames = video.get(cv2.CAP_PROP_FPS), []
    while (got := video.read())[0]:
        frames.append(cv2.cvtColor(got[1], cv2.COLOR_BGR2RGB))
    video.release()
    return fps, np.stack(frames)


def test_frames_come_back_scaled_in_order_and_in_rgb(tmp_path):
    colors = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200], [128, 128, 128], [20, 220, 220]], np.uint8)
    frames = np.broadcast_to(colors[:, None, None], (5, 64, 64, 3)).copy()
    frames[:, :, 32:] = 0
    write_mp4(tmp_path / "episode.mp4", frames, fps=15, scale=4)
    fps, got = read(tmp_path / "episode.mp4")
    assert fps == 15
    assert got.shape == (5, 256, 256, 3)
    assert np.abs(got[:, :, :96].mean((1, 2)) - colors).max() < 12  # lossy: mpeg4 with chroma at half size
    assert got[:, :, 160:].max() < 40
    assert os.listdir(tmp_path) == ["episode.mp4"]


def test_one_frame_and_odd_sizes(tmp_path):
    write_mp4(tmp_path / "one.mp4", np.full((1, 10, 14, 3), 99, np.uint8), scale=3)
    assert read(tmp_path / "one.mp4")[1].shape == (1, 30, 42, 3)


def test_an_older_video_is_replaced(tmp_path):
    path = tmp_path / "a.mp4"
    for count in (3, 7):
        write_mp4(path, np.zeros((count, 64, 64, 3), np.uint8))
    assert len(read(path)[1]) == 7


@pytest.mark.parametrize("name", ["a.avi", "a", "a.MP4", "nowhere/a.mp4"])
def test_a_path_that_cannot_be_is_told_in_one_line(tmp_path, name):
    with pytest.raises(UserError) as error:
        write_mp4(tmp_path / name, np.zeros((2, 64, 64, 3), np.uint8))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_directory_is_no_video(tmp_path):
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        check_video_path(tmp_path / "a.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        check_video_path(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "frames", [np.zeros((0, 64, 64, 3), np.uint8), np.zeros((2, 64, 64, 3)), np.zeros((2, 3, 64, 64), np.uint8)]
)
def test_other_frames_are_refused(tmp_path, frames):
    with pytest.raises(ValueError, match="uint8, got"):
        write_mp4(tmp_path / "a.mp4", frames)
