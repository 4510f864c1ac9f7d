"""A classification set to pre-train backbones for composed digits: crops of the boxes in the same images."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from detection.config import DetectionData
from detection.data.digits import CLASSES, Composed, compose
from supernet.checked import checked_arguments, shown
from supernet.config import Data
from supernet.data.images import Images, Splits
from supernet.data.split import warn_if_fewer
from supernet.errors import InputError

MARGIN = 1.3
"""Side of a crop over the longer side of its box."""


@checked_arguments
def digit_crops(config: Data, counts: Sequence[int] = DetectionData().compose) -> Splits:
    """Returns square crops around the boxes of `DetectionData("digits")` at 96 pixels; a `Data.source`.

        Data("detection.data.crops:digit_crops", size=32)

    Training, search validation and test are cut from the same images, and thus the same scans, as these splits of a
    detector with the same seed: nothing that a detector is scored on was seen in pre-training.

    Args:
        config: `size` of the crops in pixels, `calibration` and `seed`; shares of splits do not apply.
        counts: images for training, search validation and test.

    Raises:
        InputError: other than three counts, or one below 1.
    """
    if len(counts) != 3:
        raise InputError(f"counts={shown(counts)} should be three, for training, search validation and test")
    sets = [_crops(part, config.size) for part in compose(DetectionData().size, counts, seed=config.seed)]
    pixels, _ = sets[0]
    flat = pixels.float().div(255).transpose(0, 1).flatten(1)
    mean, std = flat.mean(1).view(3, 1, 1), flat.std(1).view(3, 1, 1)
    train, validation, test = (Images(*part, mean, std) for part in sets)
    warn_if_fewer(config.calibration, len(train), default=Data.calibration)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))
    calibration = train.subset(order[: config.calibration])
    sha = hashlib.sha256()
    for tensor in (t for part in sets for t in part):
        sha.update(tensor.contiguous().numpy().data)
    return Splits(train, calibration, validation, test, CLASSES, sha.hexdigest()[:16])


def _crops(part: Composed, size: int) -> tuple[Tensor, Tensor]:
    """Returns crops, uint8, (n, 3, size, size), and labels from 0, (n,); outside the image they are its reflection."""
    crops = []
    for image, boxes in zip(part.pixels, part.boxes, strict=True):
        side = image.shape[-1]
        pad = side // 2
        wide = transforms.pad(image, [pad] * 4, padding_mode="reflect")
        for x1, y1, x2, y2 in boxes.tolist():
            half = MARGIN * max(x2 - x1, y2 - y1) / 2
            left, top = round((x1 + x2) / 2 - half) + pad, round((y1 + y2) / 2 - half) + pad
            length = max(1, round(2 * half))
            crops.append(transforms.resized_crop(wide, top, left, length, length, [size, size], antialias=True))
    return torch.stack(crops), torch.cat(part.labels) - 1
