"""Resizes, mirrors, zooms and joins images together with their boxes, with torchvision's transforms."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transforms

from detection.config import DetectionAugment
from detection.inputs import Target

FILL = (124, 116, 104)
"""Colour of the border around an image zoomed out: ImageNet's mean."""
THINNEST = 0.05
"""Boxes with a shorter side than this many pixels are dropped in training: rounding could leave them no area."""


@dataclass(frozen=True)
class Resize:
    """The rule for the size of images.

    Attributes:
        size: height and width in pixels; with `longest` the shorter side.
        longest: limit of the longer side; 0 stretches to a square.
    """

    size: int
    longest: int = 0

    def of(self, height: int, width: int) -> tuple[int, int]:
        """Returns the new height and width of an image of this height and width."""
        if not self.longest:
            return self.size, self.size
        factor = min(self.size / min(height, width), self.longest / max(height, width))
        return max(1, round(height * factor)), max(1, round(width * factor))

    def at(self, size: int) -> "Resize":
        """Returns the rule for another size, with the longer side in proportion."""
        return Resize(size, round(self.longest * size / self.size))

    def __call__(self, image: Tensor) -> Tensor:
        """Returns the resized image, uint8, (3, h, w)."""
        resized: Tensor = transforms.resize(image, list(self.of(*image.shape[-2:])), antialias=True)
        return resized


def vary(
    image: Tensor, target: Target, augment: DetectionAugment, resize: Resize, draws: Tensor
) -> tuple[Tensor, Target]:
    """Mirrors, zooms and resizes an image with its boxes.

    Args:
        image: uint8, (3, H, W).
        target: from `Annotations.target`; crowds are left out of the result.
        augment: which variations, and how strong.
        resize: decides the size of the result, whatever the zoom.
        draws: four numbers from 0 to 1: for the mirror, the zoom, and its position in y and x.

    Returns:
        uint8, (3, *resize.of(H, W)), with `boxes`, float32, (n, 4), and `labels`, int64, (n,). A box is kept if its
        centre is, and clipped at the border.
    """
    height, width = image.shape[-2:]
    size = resize.of(height, width)
    single = ~target["crowd"]
    labels = target["labels"][single]
    boxes = tv_tensors.BoundingBoxes(target["boxes"][single], format="XYXY", canvas_size=(height, width))
    mirrored, zoom, down, across = draws.double().tolist()
    if augment.flip and mirrored < 0.5:
        image, boxes = transforms.horizontal_flip(image), transforms.horizontal_flip(boxes)
    factor = augment.scale[0] + (augment.scale[1] - augment.scale[0]) * zoom
    if factor < 1:
        inner = [max(1, round(side * factor)) for side in size]
        top, left = _corner(size, inner, down, across)
        border = [left, top, size[1] - inner[1] - left, size[0] - inner[0] - top]
        image = transforms.pad(transforms.resize(image, inner, antialias=True), border, fill=list(FILL))
        boxes = transforms.pad(transforms.resize(boxes, inner), border)
    else:
        part = [max(1, round(side / factor)) for side in (height, width)]
        top, left = _corner((height, width), part, down, across)
        x, y = ((boxes[:, :2] + boxes[:, 2:]) / 2).as_subclass(Tensor).unbind(1)  # of centres
        inside = (x >= left) & (x < left + part[1]) & (y >= top) & (y < top + part[0])
        boxes, labels = tv_tensors.wrap(boxes[inside], like=boxes), labels[inside]
        image = transforms.resized_crop(image, top, left, *part, size=list(size), antialias=True)
        boxes = transforms.resized_crop(boxes, top, left, *part, size=list(size))
    kept, valid = transforms.sanitize_bounding_boxes(
        transforms.clamp_bounding_boxes(boxes), min_size=THINNEST, min_area=0
    )
    return image, {"boxes": kept.as_subclass(Tensor).float(), "labels": labels[valid]}


def joined(parts: Sequence[tuple[Tensor, Target]], draws: Tensor) -> tuple[Tensor, Target]:
    """Returns a mosaic of four images, each with one corner at a common centre and cropped at the border of the mosaic.

    Args:
        parts: four images, uint8, (3, h, w), with `boxes` and `labels`: above left, above right, below left, below
            right. The mosaic has the size of the first.
        draws: two numbers from 0 to 1, which place the centre between a quarter and three quarters of height and width.

    Returns:
        the mosaic and its boxes. A box is kept if its centre is visible, and clipped at the border.
    """
    height, width = parts[0][0].shape[-2:]
    middle, across = (
        int(side * (0.25 + 0.5 * draw)) for side, draw in zip((height, width), draws.tolist(), strict=True)
    )
    mosaic = torch.tensor(FILL, dtype=torch.uint8)[:, None, None].repeat(1, height, width)
    boxes, labels = [], []
    for number, (image, target) in enumerate(parts):
        high, wide = image.shape[-2:]
        top = middle - high if number < 2 else middle
        left = across - wide if number % 2 == 0 else across
        first, last = (max(left, 0), max(top, 0)), (min(left + wide, width), min(top + high, height))
        part = image[:, first[1] - top : last[1] - top, first[0] - left : last[0] - left]
        mosaic[:, first[1] : last[1], first[0] : last[0]] = part
        moved = target["boxes"] + torch.tensor([left, top, left, top])
        start, end = torch.tensor(first).float(), torch.tensor(last).float()
        centres = (moved[:, :2] + moved[:, 2:]) / 2
        kept = ((centres >= start) & (centres < end)).all(1)
        clipped = moved.maximum(start.repeat(2)).minimum(end.repeat(2))
        kept &= ((clipped[:, 2:] - clipped[:, :2]) >= THINNEST).all(1)
        boxes.append(clipped[kept])
        labels.append(target["labels"][kept])
    return mosaic, {"boxes": torch.cat(boxes), "labels": torch.cat(labels)}


def _corner(outer: tuple[int, ...], inner: list[int], *draws: float) -> list[int]:
    """Returns top and left of the inner rectangle within the outer one."""
    return [min(int(draw * (a - b + 1)), a - b) for a, b, draw in zip(outer, inner, draws, strict=True)]
