"""Frames to a file that is written whole or not at all: .mp4 by PyAV, .gif, .webp and .png by Pillow."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stormfast.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

CODEC, PIXELS = "libx264", "yuv420p"  # H.264 with colours at half size, which every browser plays
Frames = Iterable[np.ndarray]  # [height, width, 3] uint8 RGB, all of one size


def check_path(path: Path, what: str, suffixes: Iterable[str]) -> None:
    """Raises UserError where a file could not be written, before anything is spent on what is to be in it.

    Args: what: it is called, as "a video". suffixes: that it may have.
    """
    known = list(suffixes)
    if path.suffix not in known:
        raise UserError(f"{what} must be the name of a file in {', '.join(known)}, got '{path}'")
    if not path.parent.is_dir():
        raise UserError(
            f"{what} must go into a directory that exists, but {path.parent} does not; make it, or choose another"
        )
    if path.is_dir() or not all(os.access(place, os.W_OK) for place in (path.parent, path) if place.exists()):
        raise UserError(f"{path} cannot be written; choose another place for the file")


def write_video(path: Path, frames: Frames, fps: int = 15) -> None:
    """Writes a video of the kind that the suffix names, one of VIDEOS. Only a .webp holds all frames in memory.

    Args: fps: frames a second; at frame skip 4, 15 is the speed of the game.
    Raises: UserError when the file cannot be written; ValueError when frames are something else, or none.
    """
    check_path(path, "a video", VIDEOS)
    with written_whole(path) as temporary:
        VIDEOS[path.suffix](temporary, checked(frames), fps)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Writes [height, width, 3] uint8 RGB. Raises: UserError when the file cannot be written."""
    from PIL import Image

    check_path(path, "a picture", (".png",))
    with written_whole(path) as temporary:
        Image.fromarray(picture).save(temporary)


def enlarged(frame: np.ndarray, scale: int) -> np.ndarray:
    """[H, W, 3] -> [H * scale, W * scale, 3], with hard pixels."""
    return frame.repeat(scale, 0).repeat(scale, 1)


def checked(frames: Frames) -> Iterator[np.ndarray]:
    """The frames. Raises: ValueError where there are none, or one is of another kind or size than the first."""
    size = None
    for frame in frames:
        if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8 or frame.shape != (size or frame.shape):
            raise ValueError(f"frames must be [height, width, 3] uint8 of one size, got {frame.shape} {frame.dtype}")
        size = frame.shape
        yield frame
    if size is None:
        raise ValueError("a video must have frames, got none")


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file beside path to write into; it takes path's place when the context is left, and is gone after an error.

    Raises: UserError in place of an OSError.
    """
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")  # the suffix names the format
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; choose another place for it") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_mp4(path: Path, frames: Iterator[np.ndarray], fps: int) -> None:
    import av  # a second to import, and only wanted by those who ask for a video

    first = next(frames)
    height, width = (size + size % 2 for size in first.shape[:2])  # its colours at half size need even ones
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream(CODEC, rate=Fraction(fps), options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, PIXELS
        for frame in itertools.chain([first], frames):
            padding = [(0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)]
            even = np.pad(frame, padding, mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode())


def write_gif(path: Path, frames: Iterator[np.ndarray], fps: int) -> None:
    pictures = map(with_palette, frames)
    hundredths = round(100 / fps)  # what the format counts
    next(pictures).save(path, save_all=True, append_images=pictures, duration=10 * hundredths, loop=0)


def write_webp(path: Path, frames: Iterator[np.ndarray], fps: int) -> None:
    """Without loss but for the palette, and without keyframes: 0.8 s and 60 kB for the film of one dream, where all
    colours at a quality of 30 take 2.8 s and 280 kB.
    """
    first, *others = (with_palette(frame).convert("RGB") for frame in frames)
    cheap: dict[str, Any] = {"lossless": True, "method": 1, "quality": 20, "kmin": 999, "kmax": 1_000}
    first.save(path, save_all=True, append_images=others, duration=round(1_000 / fps), loop=0, **cheap)


def with_palette(frame: np.ndarray) -> "Image":
    """[height, width, 3] uint8 in 256 colours of its own."""
    from PIL import Image

    return Image.fromarray(frame).quantize(method=Image.Quantize.FASTOCTREE)


VIDEOS: dict[str, Callable[[Path, Iterator[np.ndarray], int], None]] = {
    ".mp4": write_mp4,
    ".gif": write_gif,
    ".webp": write_webp,
}
