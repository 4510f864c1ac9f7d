"""Sources of image files, and how their images are decoded into uint8 tensors of one size."""

import struct
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from supernet.config import Data
from supernet.data.opening import FRAMES
from supernet.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
"""What Pillow raises for damaged files; it has no class of its own for them."""

Labelled = tuple[Tensor, Tensor]
"""Pixels, uint8, (N, C, H, W), and labels, int64, (N,)."""
ELONGATED = 16
"""From this ratio of its sides on, the ends of an image are cut off before it is resized. They would be cut off
afterwards, but could need gigabytes until then."""
Problem = tuple[str, str]
"""Name of an image that cannot be read, and the reason."""


class Source(Protocol):
    """Labelled images that can be read one by one, in any order and from several processes."""

    @property
    def labels(self) -> Tensor:
        """int64, (N,)."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of labels."""
        ...

    @property
    def threads(self) -> int:
        """How many threads of one process may read at a time."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, index: int) -> "tuple[Image.Image, int]":
        """An image in RGB and its label."""
        ...

    def name(self, index: int) -> str:
        """The name of this image in messages."""
        ...

    def identity(self, index: Tensor) -> str:
        """Digest of the images at these positions, without decoding them."""
        ...


@dataclass(frozen=True)
class Decoded:
    """Images of a source in memory.

    Attributes:
        pixels: those that could be read, uint8, (M, 3, size, size).
        readable: which of the requested images these are, bool, (N,).
        problems: name and reason of each of the others.
        animated: names of those that have several frames, of which the first is used.
    """

    pixels: Tensor
    readable: Tensor
    problems: list[Problem]
    animated: list[str]


def fit(image: "Image.Image", size: int) -> Tensor:
    """Returns an RGB image as uint8, (3, size, size): its shorter side resized to fit, then cropped at the centre.

    A change of the result must raise `supernet.data.cache.FORMAT`.
    """
    from torchvision.transforms.v2 import functional as transforms

    shorter = min(image.size)
    if max(image.size) > ELONGATED * shorter:
        left, top = ((side - min(side, ELONGATED // 2 * shorter)) // 2 for side in image.size)
        image = image.crop((left, top, image.width - left, image.height - top))
    pixels: Tensor = transforms.pil_to_tensor(image)
    if pixels.shape[-2:] != (size, size):
        pixels = transforms.center_crop(transforms.resize(pixels, [size], antialias=True), [size, size])
    return pixels


def decode(source: Source, index: Tensor, config: Data) -> Labelled:
    """Reads images into memory, in the given order.

    Args:
        source: the source of the images.
        index: int64, (N,), positions in it.
        config: `size`, and whether unreadable images are left out (with a warning) or an error.

    Returns:
        pixels, uint8, (N, 3, size, size), and labels, int64, (N,); without those left out.

    Raises:
        InputError: images that cannot be read; it counts all of them and names the first.
    """
    decoded = read_images(source, index, config)
    if decoded.problems:
        report_unreadable(decoded.problems, skip=True)
    report_animated(decoded.animated)
    return decoded.pixels, source.labels[index][decoded.readable]


def read_images(source: Source, index: Tensor, config: Data) -> Decoded:
    """Reads images as `decode` does, and leaves the warning about those that are left out to the caller."""
    pixels = torch.empty(len(index), 3, config.size, config.size, dtype=torch.uint8)
    readable = torch.ones(len(index), dtype=torch.bool)
    positions = index.tolist()
    animated: list[int] = []

    def read(start: int) -> list[Problem]:
        problems = []
        for row in range(start, min(start + 64, len(positions))):
            try:
                image = source[positions[row]][0]
                pixels[row] = fit(image, config.size)
                if FRAMES in image.info:
                    animated.append(row)
            except UNREADABLE as error:
                readable[row] = False
                problems.append(problem(source, positions[row], error))
        return problems

    with ThreadPoolExecutor(source.threads) as pool:
        chunks = list(pool.map(read, range(0, len(positions), 64)))
    problems = [problem for chunk in chunks for problem in chunk]
    if problems and not config.skip_unreadable:
        report_unreadable(problems, skip=False)
    names = [source.name(positions[row]) for row in sorted(animated)]
    return Decoded(pixels[readable] if problems else pixels, readable, problems, names)


def problem(source: Source, index: int, error: Exception) -> Problem:
    """Returns the name of an image that cannot be read, and the reason."""
    name = source.name(index)
    return name, str(error).replace(f" {name!r}", "")  # Pillow names the file again


def report_animated(names: Sequence[str]) -> None:
    """Warns of images with several frames or pages; the warning counts all and names the first."""
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        warnings.warn(f"only the first frame of {len(names)} images with several is used: {shown}", stacklevel=3)


def report_unreadable(problems: Sequence[Problem], *, skip: bool) -> None:
    """Warns of images that cannot be read, or raises `InputError`; either counts all and names the first."""
    shown = ", ".join(f"{name} ({reason})" for name, reason in problems[:5])
    shown += f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    if skip:
        warnings.warn(f"{len(problems)} images cannot be read and are left out: {shown}", stacklevel=3)
        return
    if len(problems) == 1:
        text = f"the image {problems[0][0]} cannot be read ({problems[0][1]})"
    else:
        text = f"{len(problems)} images cannot be read: {shown}"
    raise InputError(f"{text}; repair or remove what is damaged, or set data.skip_unreadable=True to leave it out")
