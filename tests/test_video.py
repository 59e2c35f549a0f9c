"""What is written is what other readers read back, or nothing is written."""

import os
import resource

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from stormfast.errors import UserError
from stormfast.video import VIDEOS, check_path, enlarged, write_png, write_video

COLORS = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200], [128, 128, 128], [20, 220, 220]], np.uint8)


def make_frames(height=64, width=64, scale=4):
    """One of each colour, its right half black."""
    frames = np.broadcast_to(COLORS[:, None, None], (5, height, width, 3)).copy()
    frames[:, :, width // 2 :] = 0
    return [enlarged(frame, scale) for frame in frames]


def read(path):
    """Frames a second, and the frames."""
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            rate = container.streams.video[0].average_rate
            return float(rate), np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with Image.open(path) as image:
        frames = [
            (np.asarray(frame.convert("RGB")), frame.info.get("duration") or 1)
            for frame in ImageSequence.Iterator(image)
        ]
    return 1_000 / frames[0][1], np.stack([frame for frame, _ in frames])


@pytest.mark.parametrize("suffix", VIDEOS)
def test_frames_come_back_scaled_in_order_and_in_rgb(tmp_path, suffix):
    path = tmp_path / f"episode{suffix}"
    write_video(path, iter(make_frames()), fps=15)
    fps, got = read(path)
    assert fps == pytest.approx(15, rel=0.05)  # a .gif counts hundredths of a second
    assert got.shape == (5, 256, 256, 3)
    assert np.abs(got[:, :, :96].mean((1, 2)) - COLORS).max() < 12  # .mp4 has losses, and chroma at half size
    assert got[:, :, 160:].max() < 40
    assert os.listdir(tmp_path) == [path.name]


def test_an_mp4_is_what_browsers_play(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, make_frames())
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.pix_fmt, stream.frames) == ("h264", "yuv420p", 5)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # the index comes first: it plays while it loads


def test_one_frame_and_odd_sizes(tmp_path):
    for suffix in VIDEOS:
        write_video(tmp_path / f"one{suffix}", [np.full((31, 43, 3), 99, np.uint8)])
        shape = read(tmp_path / f"one{suffix}")[1].shape
        assert shape == ((1, 32, 44, 3) if suffix == ".mp4" else (1, 31, 43, 3))


def test_an_older_video_is_replaced(tmp_path):
    path = tmp_path / "a.mp4"
    for count in (3, 5):
        write_video(path, make_frames()[:count])
    assert len(read(path)[1]) == 5


def test_a_picture_comes_back(tmp_path):
    picture = np.random.default_rng(0).integers(256, size=(5, 7, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", picture)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), picture)


@pytest.mark.parametrize("name", ["a.avi", "a", "a.MP4", "a.png", "nowhere/a.mp4"])
def test_a_path_that_cannot_be_is_told_in_one_line(tmp_path, name):
    with pytest.raises(UserError) as error:
        write_video(tmp_path / name, make_frames())
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_directory_is_no_video(tmp_path):
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        check_path(tmp_path / "a.mp4", "video", VIDEOS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        check_path(tmp_path / "a.mp4", "video", VIDEOS)


@pytest.mark.parametrize("suffix", [*VIDEOS, ".png"])
def test_where_there_is_no_room_the_file_before_stays(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"before")
    noise = np.random.default_rng(0).integers(256, size=(4, 64, 64, 3), dtype=np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))  # as a full disk, but for its number
    try:
        with pytest.raises(UserError, match=rf"a\{suffix} cannot be written: File too large"):
            write_png(path, noise[0]) if suffix == ".png" else write_video(path, noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", VIDEOS)
@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((0, 64, 64, 3), np.uint8),
        np.zeros((2, 64, 64, 3)),
        np.zeros((2, 3, 64, 64), np.uint8),
        [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 10, 3), np.uint8)],
    ],
)
def test_other_frames_are_refused_and_leave_nothing(tmp_path, frames, suffix):
    with pytest.raises(ValueError, match="frames"):
        write_video(tmp_path / f"a{suffix}", frames)
    assert not list(tmp_path.iterdir())
