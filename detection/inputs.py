"""What a detector is given and what its steps hand on: images, boxes, and the state between them.

Images are normalised floats, (N, 3, H, W), or a list of (3, H, W) of any sizes. A target is a dict of `boxes`, float32
(n, 4), as x1, y1, x2, y2 in pixels, and `labels`, int64 (n,), from 1 to the number of classes. Detections are dicts of
`boxes`, `scores` and `labels` likewise, the best first. All as torchvision has them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from supernet.errors import InputError

Target = dict[str, Tensor]
Maps = tuple[Tensor, ...]
DetectorState = tuple[Maps, Tensor, list[Target] | None]
"""Feature maps, the finest first; height and width of every image without padding, int64 (N, 2), on the CPU; targets,
in training only."""


class Labelled(NamedTuple):
    """Images with their targets as one input, for code that hands a network a single argument."""

    images: Tensor | Sequence[Tensor]
    targets: list[Target]


class ImageBatch(nn.Module):
    """The first step of a detector: checks what it is given, pads images to a common size, begins the state.

    Zeros are added at the right and at the bottom, up to a multiple of `divisor`.

    Args:
        divisor: the largest stride of the backbone, in pixels.
        stride: the largest stride of the pyramid, in pixels; an image that lies within one such cell is refused.
        classes: the largest label.
    """

    def __init__(self, *, divisor: int, stride: int, classes: int) -> None:
        super().__init__()
        self.divisor, self.stride, self.classes = divisor, stride, classes

    def forward(self, batch: Any) -> DetectorState:
        """A `DetectorState` of one map, the images, from images or `Labelled`.

        Raises:
            InputError: images that are no normalised pictures or too small; in training, targets that are missing, are
                not one per image, or hold boxes without area or labels out of range.
        """
        images, targets = batch if isinstance(batch, Labelled) else (batch, None)
        pixels, sizes = self.stacked(images)
        if not self.training:
            return (pixels,), sizes, None
        used = checked_targets(targets, len(sizes), self.classes)
        return (pixels,), sizes, [{name: t.to(pixels.device) for name, t in target.items()} for target in used]

    def stacked(self, images: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The padded images, (N, 3, H, W), and the size of each, (N, 2)."""
        if isinstance(images, Tensor):
            self._check(images, 4)
            height, width = images.shape[-2:]
            pixels = nn.functional.pad(images, (0, -width % self.divisor, 0, -height % self.divisor))
            return pixels, torch.tensor((height, width), device="cpu").expand(images.shape[0], 2)
        if not images:
            raise InputError("the list of images is empty; give one image at least")
        for image in images:
            self._check(image, 3)
        sizes = torch.tensor([image.shape[-2:] for image in images], device="cpu")
        height, width = (side + -side % self.divisor for side in sizes.amax(dim=0).tolist())
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
        height, width = image.shape[-2:]
        if max(height, width) < self.stride:
            raise InputError(
                f"an image of {height}×{width} pixels is smaller than the largest stride of the detector, "
                f"{self.stride}; enlarge the images, or build the detector on fewer levels"
            )

    def out_layout(self, layout: Any) -> Any:
        """One map, with the channels of the images."""
        return (layout,), None, None


def checked_targets(targets: Sequence[Target] | None, images: int, classes: int) -> Sequence[Target]:
    """Targets that a training step can use; otherwise says what is wrong with which.

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
            raise InputError(f"target {number} has {shapes}; boxes are (n, 4), labels (n,), also where n is 0")
    boxes, labels = (torch.cat([target[name] for target in targets]) for name in ("boxes", "labels"))
    empty = ~(boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # NaN too
    wrong = (labels < 1) | (labels > classes)
    if not (empty | wrong).any():  # one look at the device for all
        return targets
    first = int(torch.where(empty | wrong)[0][0])
    counts = torch.tensor([len(target["labels"]) for target in targets]).cumsum(0)
    where = f"target {int((counts <= first).sum())}"
    if empty[first]:
        raise InputError(f"{where} has a box without area, {boxes[first].tolist()}; leave such boxes out")
    raise InputError(f"{where} has the label {int(labels[first])}; labels are 1 to {classes}")
