"""Images resized, mirrored and zoomed together with their boxes, by torchvision's transforms and given draws."""

from dataclasses import dataclass

from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transforms

from detection.config import DetectionAugment
from detection.inputs import Target

FILL = (124, 116, 104)
"""What a zoom below 1 leaves around an image: ImageNet's mean colour."""
THINNEST = 0.05
"""Pixels of a side below which a box is dropped in training: rounding could leave it no area."""


@dataclass(frozen=True)
class Resize:
    """Which size an image gets.

    Attributes:
        size: height and width in pixels; with `longest` the shorter side.
        longest: the most that the longer side may get; 0 stretches to a square.
    """

    size: int
    longest: int = 0

    def of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image of this height and width gets."""
        if not self.longest:
            return self.size, self.size
        factor = min(self.size / min(height, width), self.longest / max(height, width))
        return max(1, round(height * factor)), max(1, round(width * factor))

    def __call__(self, image: Tensor) -> Tensor:
        """The image in that size, uint8, (3, h, w)."""
        resized: Tensor = transforms.resize(image, list(self.of(*image.shape[-2:])), antialias=True)
        return resized


def vary(
    image: Tensor, target: Target, augment: DetectionAugment, resize: Resize, draws: Tensor
) -> tuple[Tensor, Target]:
    """Mirror, zoom and resize an image with its boxes.

    Args:
        image: uint8, (3, H, W).
        target: of `Annotations.target`; crowds are left out of what is returned.
        augment: how.
        resize: which size the result has, whatever the zoom.
        draws: four numbers from 0 to 1: for the mirror, the zoom, and its place in y and x.

    Returns:
        uint8, (3, *resize.of(H, W)), with `boxes`, float32, (n, 4), and `labels`, int64, (n,). A box is kept if its
        centre is, and cut at the border.
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


def _corner(outer: tuple[int, ...], inner: list[int], *draws: float) -> list[int]:
    """Top and left of a part of this size within another one."""
    return [min(int(draw * (a - b + 1)), a - b) for a, b, draw in zip(outer, inner, draws, strict=True)]
