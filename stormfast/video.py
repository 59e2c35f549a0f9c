"""Frames to an .mp4 file, by OpenCV."""

import os
from pathlib import Path

import numpy as np

from stormfast.errors import UserError

CODEC = "mp4v"  # MPEG-4 part 2: in every OpenCV wheel; H.264 is not


def check_video_path(path: Path) -> None:
    """Raises UserError where write_mp4 could not write, before anything is spent on making the frames."""
    if path.suffix != ".mp4":
        raise UserError(f"A video must be an .mp4 file, got '{path}'")
    if not path.parent.is_dir():
        raise UserError(
            f"A video must go into a directory that exists, but {path.parent} does not; make it, or choose another"
        )
    if (
        path.is_dir()
        or not os.access(path if path.exists() else path.parent, os.W_OK)
        or not os.access(path.parent, os.W_OK)
    ):
        raise UserError(f"{path} cannot be written; choose another place for the video")


def write_mp4(path: Path, frames: np.ndarray, fps: int = 15, scale: int = 4) -> None:
    """Writes a video, whole or not at all.

    Args:
        frames: [T, H, W, 3] uint8 RGB, at least one.
        fps:    frames a second; at frame skip 4, 15 is the speed of the game.
        scale:  each pixel becomes scale x scale.
    Raises: UserError when the file cannot be written; ValueError when frames are something else.
    """
    import cv2  # only wanted by those who ask for a video

    path = Path(path)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(f"frames must be [T, H, W, 3] uint8, got {frames.shape} {frames.dtype}")
    check_video_path(path)
    temporary = path.with_name(f".{path.stem}.tmp.mp4")  # OpenCV takes the container from the suffix
    height, width = frames.shape[1] * scale, frames.shape[2] * scale
    try:
        writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*CODEC), fps, (width, height))
        if not writer.isOpened():
            raise UserError(
                f"OpenCV {cv2.__version__} cannot write {path}: it opens no {CODEC} encoder of {width}x{height} "
                "pixels here"
            )
        for frame in frames:
            writer.write(
                cv2.cvtColor(cv2.resize(frame, (width, height), interpolation=cv2.INTER_NEAREST), cv2.COLOR_RGB2BGR)
            )
        writer.release()
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
