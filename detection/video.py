"""Frames of video files, read and written by PyAV."""

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from supernet.checked import is_whole, shown
from supernet.errors import InputError

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
"""Suffixes of files that are read as videos."""


def is_video(path: Path) -> bool:
    """Returns whether a file's name is that of a video."""
    return path.suffix.lower() in SUFFIXES


def frame_rate(path: Path) -> Fraction:
    """Returns the frames per second of a video, 25 where the file does not say.

    Raises:
        InputError: see `frames`.
    """
    with _opened(path) as container:
        return Fraction(container.streams.video[0].average_rate or 25)


def frames(path: Path) -> Iterator[Tensor]:
    """Yields the frames of a video in display order, uint8, (3, H, W), rotated as players show them.

    One frame is in memory at a time.

    Raises:
        InputError: PyAV is not installed, or the file cannot be read as a video. It may come after some frames, where
            the file is damaged.
    """
    av = _library()
    with _opened(path) as container:
        try:
            for frame in container.decode(video=0):
                pixels = torch.from_numpy(np.ascontiguousarray(frame.to_ndarray(format="rgb24")))
                quarters = round(frame.rotation) // 90  # players turn by quarters only
                yield turned(pixels.permute(2, 0, 1), 90 * quarters)
        except av.error.FFmpegError as error:
            raise InputError(f"the video {path} cannot be read ({error}); repair it or leave it out") from error


def turned(pixels: Tensor, degrees: int) -> Tensor:
    """Returns an image, (3, H, W), turned counterclockwise by a multiple of 90 degrees.

    Raises:
        InputError: other degrees, whose picture would need other pixels.
    """
    if not is_whole(degrees, -(10**6), 10**6) or degrees % 90:
        raise InputError(f"degrees={shown(degrees)} should be a multiple of 90")
    return torch.rot90(pixels, degrees // 90 % 4, (1, 2)).contiguous()


def encoded(pictures: Iterator[Image.Image], rate: Fraction) -> bytes:
    """Returns pictures of one size as an MP4 file (H.264); an odd last row or column is dropped.

    Args:
        pictures: at least one.
        rate: pictures per second.
    """
    file = io.BytesIO()
    with _library().open(file, "w", format="mp4") as container:
        stream: Any = None
        for picture in pictures:
            pixels = np.asarray(picture)[: picture.height // 2 * 2, : picture.width // 2 * 2]
            if stream is None:
                stream = container.add_stream("libx264", rate=rate)
                stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "yuv420p"
            frame = _library().VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame))
        if stream is None:
            raise InputError("the video has no frame; give a longer one")
        container.mux(stream.encode(None))
    return file.getvalue()


def _opened(path: Path) -> Any:
    av = _library()
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(f"the video {path} cannot be read ({error}); repair it or leave it out") from error
    if not container.streams.video:
        container.close()
        raise InputError(f"{path} holds no video; give a file with one")
    return container


def _library() -> Any:
    try:
        import av
    except ImportError as error:
        raise InputError(f"videos are read by PyAV ({error}): pip install 'supernet[video]'") from error
    return av
