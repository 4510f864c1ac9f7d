"""The inputs and outputs of detectors, and the state between their steps.

Images are normalised floats, (N, 3, H, W), or a list of (3, H, W) of any sizes. A target is a dict of `boxes`, float32
(n, 4), as x1, y1, x2, y2 in pixels, and `labels`, int64 (n,), from 1 to the number of classes. Detections are dicts of
`boxes`, `scores` and `labels` of the same form, in descending order of score. These are torchvision's conventions.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from supernet.errors import InputError

Target = dict[str, Tensor]
Maps = tuple[Tensor, ...]
DetectorState = tuple[Maps, Tensor, list[Target] | None]
"""Feature maps, the finest first; height and width of every image without padding, int64 (N, 2), on the CPU; and
targets, or None outside of training."""


class Labelled(NamedTuple):
    """Images with their targets as one input, for code that calls a network with a single argument."""

    images: Tensor | Sequence[Tensor]
    targets: list[Target]


class ImageBatch(nn.Module):
    """The first step of a detector, which checks and pads its inputs and returns the initial state.

    Images are padded to a common size with zeros at the right and at the bottom, up to a multiple of `divisor`.

    Args:
        divisor: the largest stride of the backbone in pixels.
        stride: the largest stride of the pyramid in pixels; images smaller than this on both sides are refused.
        classes: the largest label.
    """

    def __init__(self, *, divisor: int, stride: int, classes: int) -> None:
        super().__init__()
        self.divisor, self.stride, self.classes = divisor, stride, classes

    def forward(self, batch: Any) -> DetectorState:
        """Returns a `DetectorState` whose only map holds the images.

        Args:
            batch: images, or `Labelled`.

        Raises:
            InputError: images that are not normalised floats or are too small; in training, targets that are missing,
                not one per image, or have boxes without area or labels out of range.
        """
        images, targets = batch if isinstance(batch, Labelled) else (batch, None)
        pixels, sizes = self.stacked(images)
        if not self.training:
            return (pixels,), sizes, None
        used = checked_targets(targets, len(sizes), self.classes)
        return (pixels,), sizes, [{name: t.to(pixels.device) for name, t in target.items()} for target in used]

    def stacked(self, images: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the padded images, (N, 3, H, W), and the original height and width of each, (N, 2)."""
        if isinstance(images, Tensor):
            self._check(images, 4)
            height, width = images.shape[-2:]
            below, right = (padded(side, self.divisor) - side for side in (height, width))
            pixels = nn.functional.pad(images, (0, right, 0, below))
            sides = [torch.full((images.shape[0],), side, device="cpu") for side in (height, width)]  # can be traced
            return pixels, torch.stack(sides, 1)
        if not images:
            raise InputError("the list of images is empty; give at least one image")
        for image in images:
            self._check(image, 3)
        sizes = torch.tensor([image.shape[-2:] for image in images], device="cpu")
        height, width = (padded(side, self.divisor) for side in sizes.amax(dim=0).tolist())
        pixels = images[0].new_zeros(len(images), images[0].shape[0], height, width)
        for row, image in zip(pixels, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image
        return pixels, sizes

    def _check(self, image: Tensor, dims: int) -> None:
        if image.dim() != dims or not image.is_floating_point():
            raise InputError(
                "a detector takes normalised float images, (N, 3, H, W) or a list of (3, H, W), not "
                f"{image.dtype} of shape {tuple(image.shape)}"
            )
        if torch.compiler.is_compiling():  # a graph takes images of any size
            return
        height, width = image.shape[-2:]
        if max(height, width) < self.stride:
            raise InputError(
                f"an image of {height}×{width} pixels is smaller than the largest stride of the detector, "
                f"{self.stride}; enlarge the images, or build the detector on fewer levels"
            )

    def out_layout(self, layout: Any) -> Any:
        """Returns a state of one map with the channels of the images."""
        return (layout,), None, None


def padded(side: int, divisor: int) -> int:
    """Returns the smallest multiple of the divisor that is not below a side."""
    return (side + divisor - 1) // divisor * divisor


def checked_targets(targets: Sequence[Target] | None, images: int, classes: int) -> Sequence[Target]:
    """Returns the targets unchanged after checking that a training step can use them.

    Args:
        targets: one per image.
        images: number of images.
        classes: the largest label.

    Raises:
        InputError: see `ImageBatch.forward`.
    """
    if targets is None:
        raise InputError("a detector in training mode needs targets: detector(images, arch, targets); or call eval()")
    if len(targets) != images:
        raise InputError(f"there are {images} images and {len(targets)} targets; give one per image")
    for number, target in enumerate(targets):
        boxes, labels = target["boxes"], target["labels"]
        if boxes.dim() != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
            shapes = f"boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)}"
            raise InputError(f"target {number} has {shapes}; give boxes (n, 4) and labels (n,), also if n is 0")
    boxes, labels = (torch.cat([target[name] for target in targets]) for name in ("boxes", "labels"))
    empty = ~(boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # also true of NaN
    wrong = (labels < 1) | (labels > classes)
    if not (empty | wrong).any():  # one synchronisation with the device for all targets
        return targets
    first = int(torch.where(empty | wrong)[0][0])
    counts = torch.tensor([len(target["labels"]) for target in targets]).cumsum(0)
    where = f"target {int((counts <= first).sum())}"
    if empty[first]:
        raise InputError(f"{where} has a box without area, {boxes[first].tolist()}; leave such boxes out")
    raise InputError(f"{where} has the label {int(labels[first])}; labels are 1 to {classes}")
