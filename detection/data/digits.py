"""An embedded detection set: scikit-learn's scanned digits pasted onto crops of its two photographs, by seed."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from supernet.checked import checked_arguments
from supernet.errors import InputError
from supernet.seeding import generator

Bytes = NDArray[np.uint8]

SMALLEST = 32
"""Smallest side of an image in pixels; four digits fit in it."""
COUNT = (2, 6)
"""Digits per image, fewer if no more fit."""
HEIGHT = (0.12, 0.45)
"""Height of a digit as a share of the image's height."""
CONTRAST = 80
"""Least difference of a digit's gray level from the mean it covers: brighter on dark ground, darker on bright."""
VISIBLE = 64
"""Least coverage, of 255, of a digit's pixels; fainter ones are not drawn, so that boxes are tight."""
TRIES = 20
"""Positions tried for a digit before it is left out."""
CLASSES = tuple("0123456789")


@dataclass(frozen=True)
class Composed:
    """Composed images.

    Attributes:
        pixels: uint8, (N, 3, size, size).
        boxes: per image, float64, (n, 4): x1, y1, x2, y2 in pixels, the extent of each digit's drawn pixels.
        labels: per image, int64, (n,): the digit plus 1.
        scans: per image, int64, (n,): which of scikit-learn's 1,797 scans each digit is.
    """

    pixels: Tensor
    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    scans: tuple[Tensor, ...]


@checked_arguments
def compose(size: int, counts: Sequence[int], *, seed: int) -> tuple[Composed, ...]:
    """Composes sets of images, each from its own scans, so that no scan appears in both training and test.

    Args:
        size: height and width in pixels.
        counts: images per set; the scans are divided in the same proportions.
        seed: the seed of the division and of the images.

    Raises:
        InputError: a size too small for digits, or a set without images.
    """
    from sklearn.datasets import load_digits, load_sample_images

    if size < SMALLEST or min(counts) < 1:
        raise InputError(
            f"composed digits need a size of at least {SMALLEST} and images in every split: {size=}, {counts=}"
        )
    scans = load_digits()
    glyphs = [_cut(np.round(scan * (255 / 16)).astype(np.uint8)) for scan in scans.images]
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    order = list(range(len(glyphs)))
    generator(seed, "digits").shuffle(order)
    ends = [round(len(order) * sum(counts[:number]) / sum(counts)) for number in range(len(counts) + 1)]
    pools = [[(i, glyphs[i]) for i in order[start:end]] for start, end in itertools.pairwise(ends)]
    if not all(pools):
        raise InputError(f"there are {len(order)} scans: too few to give each of {counts} images some")
    sets = []
    for number, (count, pool) in enumerate(zip(counts, pools, strict=True)):
        images = [_image(size, pool, photographs, generator(seed, "digits", number, i)) for i in range(count)]
        pixels, boxes, used = zip(*images, strict=True)
        labels = tuple(torch.from_numpy(scans.target)[index].long() + 1 for index in used)
        sets.append(Composed(torch.stack(pixels), boxes, labels, used))
    return tuple(sets)


def _image(
    size: int, pool: list[tuple[int, Bytes]], photographs: list[Image.Image], rng: random.Random
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns one image, (3, size, size), its boxes, (n, 4), and the numbers of their scans, (n,)."""
    canvas = _background(rng.choice(photographs), size, rng)
    boxes: list[tuple[int, int, int, int]] = []
    used: list[int] = []
    for _ in range(rng.randint(*COUNT)):
        number, glyph = rng.choice(pool)
        coverage = _scaled(glyph, max(8, round(size * rng.uniform(*HEIGHT))), widest=size)
        height, width = coverage.shape
        box = _place(size, height, width, boxes, rng)
        if box is None:
            continue
        x1, y1, x2, y2 = box
        part, share = canvas[y1:y2, x1:x2].astype(np.int32), coverage[:, :, None].astype(np.int32)
        mean = int(part.mean())
        level = rng.randint(mean + CONTRAST, 255) if mean < 128 else rng.randint(0, mean - CONTRAST)
        canvas[y1:y2, x1:x2] = (part * (255 - share) + level * share + 127) // 255
        boxes.append(box)
        used.append(number)
    pixels = torch.from_numpy(canvas).permute(2, 0, 1).contiguous()
    return pixels, torch.tensor(boxes, dtype=torch.float64).view(-1, 4), torch.tensor(used)


def _background(photograph: Image.Image, size: int, rng: random.Random) -> Bytes:
    """Returns a square of a photograph, at a random position and scale, (size, size, 3)."""
    side = rng.randint(min(photograph.size) // 4, min(photograph.size))
    left, top = (rng.randint(0, length - side) for length in photograph.size)
    crop = photograph.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.array(crop)


def _place(
    size: int, height: int, width: int, taken: list[tuple[int, int, int, int]], rng: random.Random
) -> tuple[int, int, int, int] | None:
    """Returns a box of this size that overlaps none of the others; None if no free position is found."""
    for _ in range(TRIES):
        x, y = rng.randint(0, size - width), rng.randint(0, size - height)
        if all(x >= x2 or x + width <= x1 or y >= y2 or y + height <= y1 for x1, y1, x2, y2 in taken):
            return x, y, x + width, y + height
    return None


def _scaled(glyph: Bytes, height: int, *, widest: int) -> Bytes:
    """Returns the coverage of a digit scaled to this height, (H, W), without faint rows and columns.

    Pillow resizes in integers, which give the same result on every machine.
    """
    width = min(widest, max(2, round(height * glyph.shape[1] / glyph.shape[0])))
    return _cut(np.array(Image.fromarray(glyph).resize((width, height), Image.Resampling.BICUBIC)))


def _cut(coverage: Bytes) -> Bytes:
    """Returns the smallest part that holds all drawn pixels; fainter ones are zero."""
    drawn = coverage >= VISIBLE
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    kept = np.where(drawn, coverage, 0).astype(np.uint8)
    return kept[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
