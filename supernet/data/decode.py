"""Images as uint8 tensors: what a source of images offers, and how its images are decoded."""

import struct
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from supernet.config import Data
from supernet.errors import InputError

if TYPE_CHECKING:
    from PIL import Image


UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
"""What Pillow raises for damaged files; it has no class of its own for them."""

Labelled = tuple[Tensor, Tensor]
Problem = tuple[str, str]


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
        """What a message calls this image."""
        ...

    def identity(self, index: Tensor) -> str:
        """Digest of the images at these positions, without decoding them."""
        ...


# -- decoding ---------------------------------------------------------------------------------------------------------


def fit(image: "Image.Image", size: int) -> Tensor:
    """An RGB image as uint8, (3, size, size): its shorter side resized to fit, then cropped at the centre."""
    from torchvision.transforms.v2 import functional as transforms

    pixels: Tensor = transforms.pil_to_tensor(image)
    if pixels.shape[-2:] != (size, size):
        pixels = transforms.center_crop(transforms.resize(pixels, [size], antialias=True), [size, size])
    return pixels


def decode(source: Source, index: Tensor, config: Data) -> Labelled:
    """Read images into memory, in the given order.

    Args:
        source: of the images.
        index: int64, (N,), positions in it.
        config: `size`, and whether unreadable images are left out (with a warning) or an error.

    Returns:
        pixels, uint8, (N, 3, size, size), and labels, int64, (N,); without those left out.

    Raises:
        InputError: images that cannot be read; it counts all of them and names the first.
    """
    pixels = torch.empty(len(index), 3, config.size, config.size, dtype=torch.uint8)
    readable = torch.ones(len(index), dtype=torch.bool)
    positions = index.tolist()

    def read(start: int) -> list[Problem]:
        problems = []
        for row in range(start, min(start + 64, len(positions))):
            try:
                pixels[row] = fit(source[positions[row]][0], config.size)
            except UNREADABLE as error:
                readable[row] = False
                problems.append(problem(source, positions[row], error))
        return problems

    with ThreadPoolExecutor(source.threads) as pool:
        problems = [one for some in pool.map(read, range(0, len(positions), 64)) for one in some]
    labels = source.labels[index]
    if not problems:
        return pixels, labels
    report_unreadable(problems, skip=config.skip_unreadable)
    return pixels[readable], labels[readable]


def problem(source: Source, index: int, error: Exception) -> Problem:
    """Name of an image that cannot be read, and why."""
    name = source.name(index)
    return name, str(error).replace(f" {name!r}", "")  # Pillow names the file again


def report_unreadable(problems: Sequence[Problem], *, skip: bool) -> None:
    """Warn of images that cannot be read, or raise `InputError`; either names the first and counts all."""
    shown = ", ".join(f"{name} ({why})" for name, why in problems[:5])
    shown += f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    if skip:
        warnings.warn(f"left out what cannot be read, {len(problems)} images: {shown}", stacklevel=3)
        return
    what = f"{len(problems)} images cannot be read: {shown}"
    if len(problems) == 1:
        what = f"the image {problems[0][0]} cannot be read ({problems[0][1]})"
    raise InputError(f"{what}; repair or remove what is damaged, or leave it out with --data.skip-unreadable")
